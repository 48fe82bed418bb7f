// torch's threads as the kernels use them.
#pragma once
#include <torch/csrc/stable/ops.h>

#include "kernel.h"

namespace {

using normkit::Pool;

struct Task {
  void (*body)(void*, int64_t);
  void* context;
};
Pool pool_for(int64_t numel) {
  // Below this, waking the other threads costs more than the work.
  constexpr int64_t serial = 32768;
  const auto inline_run = [](int64_t n, void (*body)(void*, int64_t), void* context) {
    for (int64_t i = 0; i < n; ++i) body(context, i);
  };
  const auto shared_run = [](int64_t n, void (*body)(void*, int64_t), void* context) {
    Task task{body, context};
    torch_parallel_for(0, n, 1, [](int64_t begin, int64_t end, void* raw) {
      const Task* t = static_cast<const Task*>(raw);
      for (int64_t i = begin; i < end; ++i) t->body(t->context, i);
    }, &task);
  };
  const int threads = numel < serial ? 1 : int(torch::stable::get_num_threads());
  if (threads == 1) return Pool{inline_run, 1};
  return Pool{shared_run, threads};
}

}  // namespace
