// Stands for a GPU's driver, and for torch's library that knows the current stream. A launch is reported to a callback,
// which may carry it out. It has all functions of CUDA's driver that Triton's launcher calls, so that it may run, too.
#include <cstddef>
#include <cstdint>

namespace {
using Callback = void (*)(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned shared,
                          void* stream, void** parameters);
Callback callback = nullptr;
int next_error = 0;
void* stream_now = nullptr;
thread_local void* context = nullptr;
int contexts_made = 0;
uintptr_t functions_made = 0;

struct LaunchConfig {  // CUlaunchConfig
  unsigned x, y, z, threads, block_y, block_z, shared;
  void* stream;
  void* attributes;
  unsigned attribute_count;
};
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
  if (block_y != 1 || block_z != 1 || extra || y > 65535 || z > 65535) return 1;
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

// Only for Triton's launcher and loader.
int cuLaunchKernelEx(const LaunchConfig* c, void* function, void** parameters, void** extra) {
  if (c->attribute_count) return 1;
  return cuLaunchKernel(function, c->x, c->y, c->z, c->threads, c->block_y, c->block_z, c->shared, c->stream,
                        parameters, extra);
}
int cuGetErrorString(int error, const char** name) { return cuGetErrorName(error, name); }
int cuModuleLoadData(void** module, const void*) { return *module = &functions_made, 0; }
int cuModuleGetFunction(void** function, void*, const char*) {
  return *function = reinterpret_cast<void*>(++functions_made * 16), 0;
}
int cuModuleUnload(void*) { return 0; }
int cuFuncGetAttribute(int* out, int attribute, void*) { return *out = attribute == 0 ? 1024 : 32, 0; }
int cuFuncSetAttribute(void*, int, int) { return 0; }
int cuFuncSetCacheConfig(void*, int) { return 0; }
int cuDeviceGetAttribute(int* out, int attribute, int) {
  constexpr int major = 75, minor = 76;
  return *out = attribute == major ? 9 : attribute == minor ? 0 : 227 * 1024, 0;
}
int cuPointerGetAttribute(void* out, int, uint64_t pointer) { return *static_cast<uint64_t*>(out) = pointer, 0; }
int cuPointerGetAttributes() { return 1; }
int cuOccupancyMaxActiveClusters() { return 1; }
int cuTensorMapEncodeTiled() { return 1; }
int cuTensorMapEncodeIm2col() { return 1; }
int cuStreamIsCapturing(void*, int* out) { return *out = 0, 0; }
int cuDriverGetVersion(int* out) { return *out = 12080, 0; }
int cuCtxGetLimit(size_t* out, int) { return *out = 0, 0; }
int cuCtxSetLimit(int, size_t) { return 0; }
int cuCtxGetDevice(int* out) { return *out = 0, 0; }
int cuInit(unsigned) { return 0; }
int cuDeviceGetCount(int* out) { return *out = 1, 0; }
}
