// Tasks for the pool of threads.
#pragma once
#include "kernel.h"
#include "vector/number.h"

namespace {

using normkit::Pool;
using normkit::View;

// Elements that a task has at least, where it can: with fewer, threads cost more than they bring.
constexpr int64_t GRAIN = 16384;

template <class Body> void parallel(const Pool& pool, int64_t n, Body&& body) {
  using Plain = typename std::remove_reference<Body>::type;
  if (n <= 1) {
    if (n == 1) body(int64_t(0));
    return;
  }
  pool.run(n, [](void* context, int64_t i) { (*static_cast<Plain*>(context))(i); }, &body);
}

}  // namespace
