// The interface that the kernels' library (ops.cpp, for all versions of torch) gives the fast path (for one), by dlsym.
#pragma once
#include "kernel.h"

namespace normkit {

struct FastPathKernels {
  const Kernels* kernels;
  bool (*plan)(int64_t, View*);  // false where there is none
  Pool (*pool)(int64_t numel);
};

}  // namespace normkit

extern "C" {
using normkit_fastpath_function = const normkit::FastPathKernels* (*)();
}
