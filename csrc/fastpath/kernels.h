// What the fast path (of one torch version) asks of the kernels' library (ops.cpp, of all versions), by dlsym.
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
