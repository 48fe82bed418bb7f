// Stands for a GPU's driver, and for torch's library that knows the current stream. A launch is reported to a callback,
// which may carry it out.
#include <cstdint>

namespace {
using Callback = void (*)(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned shared,
                          void* stream, void** parameters);
Callback callback = nullptr;
int next_error = 0;
void* stream_now = nullptr;
thread_local void* context = nullptr;
int contexts_made = 0;
}  // namespace

extern "C" {
void stub_callback(Callback f) { callback = f; }
void stub_error(int error) { next_error = error; }
void stub_stream(void* stream) { stream_now = stream; }
int stub_contexts() { return contexts_made; }

int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned block_y,
                   unsigned block_z, unsigned shared, void* stream, void** parameters, void** extra) {
  if (!context) return 201;
  if (next_error) return next_error;
  if (block_y != 1 || block_z != 1 || extra) return 1;
  if (callback) callback(function, x, y, z, threads, shared, stream, parameters);
  return 0;
}
int cuGetErrorName(int error, const char** name) {
  *name = error == 719 ? "CUDA_ERROR_LAUNCH_FAILED" : error == 201 ? "CUDA_ERROR_INVALID_CONTEXT" : "another error";
  return 0;
}
int cuCtxGetCurrent(void** out) { return *out = context, 0; }
int cuCtxSetCurrent(void* given) { return context = given, 0; }
int cuDeviceGet(int* device, int number) { return *device = number, 0; }
int cuDevicePrimaryCtxRetain(void** out, int) { return ++contexts_made, *out = &contexts_made, 0; }
int32_t aoti_torch_get_current_cuda_stream(int32_t, void** out) { return *out = stream_now, 0; }
}
