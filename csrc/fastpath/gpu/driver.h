// The GPU's driver, found among the libraries that the process has loaded: the module is built without a GPU's toolkit
// and is loaded without a GPU, too.
#pragma once
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <dlfcn.h>

#include <string>

#include "fastpath/tensors.h"

namespace {

struct Driver {
  // In CUDA's words; those of HIP take the same arguments. Functions, streams and contexts are pointers to both.
  int (*launch)(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned,
                unsigned shared, void* stream, void** parameters, void** extra) = nullptr;
  int (*error_name)(int, const char**) = nullptr;
  int32_t (*current_stream)(int32_t device, void** stream) = nullptr;
  // Of CUDA only.
  int (*current_context)(void**) = nullptr;
  int (*set_context)(void*) = nullptr;
  int (*device)(int*, int) = nullptr;
  int (*retain_context)(void**, int) = nullptr;

  // Whether all that a launch needs is there. `driver` and `runtime` are the paths of loaded libraries.
  bool connect(const char* driver, const char* runtime) {
    void *d = dlopen(driver, RTLD_NOW | RTLD_NOLOAD), *r = dlopen(runtime, RTLD_NOW | RTLD_NOLOAD);
    if (!d || !r) return false;
    find(d, launch, "cuLaunchKernel", "hipModuleLaunchKernel");
    find(d, error_name, "cuGetErrorName", "hipDrvGetErrorName");
    find(d, current_context, "cuCtxGetCurrent");
    find(d, set_context, "cuCtxSetCurrent");
    find(d, device, "cuDeviceGet");
    find(d, retain_context, "cuDevicePrimaryCtxRetain");
    find(r, current_stream, "aoti_torch_get_current_cuda_stream");
    return launch && current_stream;
  }

  void check(int error) const {
    if (!error) return;
    const char* name = nullptr;
    if (error_name) error_name(error, &name);
    TORCH_CHECK(false, "normkit: the GPU's driver has refused a launch: ",
                name ? std::string(name) : "error " + std::to_string(error));
  }

  void* stream_of(c10::Device on) const {
    void* stream = nullptr;
    TORCH_CHECK(!current_stream(on.index(), &stream), "normkit: torch has no current stream for ", on);
    return stream;
  }

  // A thread of autograd that has launched nothing yet has no context, and only CUDA's runtime makes one by itself.
  void enter(c10::Device on) const {
    void* context = nullptr;
    if (!current_context || !set_context || !device || !retain_context) return;
    check(current_context(&context));
    if (context) return;
    int number = 0;
    check(device(&number, on.index()));
    check(retain_context(&context, number));
    check(set_context(context));
  }

 private:
  template <class F>
  static void find(void* library, F*& function, const char* cuda, const char* hip = nullptr) {
    function = reinterpret_cast<F*>(dlsym(library, cuda));
    if (!function && hip) function = reinterpret_cast<F*>(dlsym(library, hip));
  }
};

// Connected where `gpu_type` of tensors.h names a kind of device.
Driver driver;

// Whether kernels may be launched for x as things are: its device is the current one.
bool is_current(const Tensor& x) {
  return on_gpu(x) && c10::impl::getDeviceGuardImpl(gpu_type)->getDevice() == x.device();
}

}  // namespace
