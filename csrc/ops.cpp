// The kernels as torch operators, over the stable ABI: one binary for every torch from 2.10 on.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <tuple>

#include "kernel.h"

namespace {

using normkit::Backward;
using normkit::Forward;
using normkit::Kernels;
using normkit::Pool;
using normkit::Storage;
using normkit::View;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The best instruction set this processor has; NORMKIT_ISA=baseline|avx2|avx512 asks for a lesser one.
const Kernels& kernels() {
  static const Kernels* chosen = [] {
#if defined(__x86_64__) || defined(_M_X64)
    const char* wish = std::getenv("NORMKIT_ISA");
    const std::string asked = wish ? wish : "";
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx512 && (asked.empty() || asked == "avx512")) return normkit::kernels_avx512();
    if (avx2 && asked != "baseline") return normkit::kernels_avx2();
#endif
    return normkit::kernels_baseline();
  }();
  return *chosen;
}

Storage storage_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Double: return Storage::f64;
    case ScalarType::Float: return Storage::f32;
    case ScalarType::BFloat16: return Storage::bf16;
    case ScalarType::Half: return Storage::f16;
    default: STD_TORCH_CHECK(false, "normkit kernels take float64, float32, bfloat16 and float16"); return Storage::f32;
  }
}
ScalarType arithmetic_of(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}
Tensor fresh(const Tensor& x, int64_t n) { return torch::stable::new_empty(x, {n}, arithmetic_of(x)); }

const void* pointer(const std::optional<Tensor>& t) { return t ? t->const_data_ptr() : nullptr; }

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

// The numbers of a plan come from Python's normkit.plan; the sizes must cover the tensor, whatever they claim.
View view_of(const Tensor& x, int64_t k0, int64_t r0, int64_t k1, int64_t r1, int64_t period, int64_t inner, bool columns) {
  const View v{k0, r0, k1, r1, period, inner, columns};
  STD_TORCH_CHECK(v.numel() == x.numel() && period > 0 && inner > 0, "normkit: the plan does not cover the tensor");
  return v;
}

void check_length(const std::optional<Tensor>& t, int64_t n, const Tensor& x, const char* what) {
  STD_TORCH_CHECK(!t || (t->numel() == n && t->scalar_type() == arithmetic_of(x) && t->is_contiguous()),
                  "normkit: ", what, " must be contiguous, in the arithmetic type, with ", n, " elements");
}

std::tuple<Tensor, Tensor, Tensor> cpu_normalize(
    const Tensor& x, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, int64_t k0, int64_t r0,
    int64_t k1, int64_t r1, int64_t period, int64_t inner, bool columns, double eps, bool center) {
  const View v = view_of(x, k0, r0, k1, r1, period, inner, columns);
  check_length(weight, period, x, "weight");
  check_length(bias, period, x, "bias");
  Tensor y = torch::stable::empty_like(x);
  Tensor mean = fresh(x, center ? v.cells() : 0), dev = fresh(x, v.cells());
  const Forward f{x.const_data_ptr(), y.mutable_data_ptr(), pointer(weight), pointer(bias),
                  center ? mean.mutable_data_ptr() : nullptr, dev.mutable_data_ptr(), eps, center, false};
  kernels().forward(storage_of(x), v, f, pool_for(v.numel()));
  return {y, mean, dev};
}

Tensor cpu_standardize(
    const Tensor& x, const Tensor& mean, const Tensor& dev, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias, int64_t k0, int64_t r0, int64_t k1, int64_t r1, int64_t period, int64_t inner,
    bool columns, double eps) {
  const View v = view_of(x, k0, r0, k1, r1, period, inner, columns);
  check_length(weight, period, x, "weight");
  check_length(bias, period, x, "bias");
  check_length(mean, v.cells(), x, "mean");
  check_length(dev, v.cells(), x, "std");
  Tensor y = torch::stable::empty_like(x);
  const Forward f{x.const_data_ptr(), y.mutable_data_ptr(), pointer(weight), pointer(bias),
                  const_cast<void*>(mean.const_data_ptr()), const_cast<void*>(dev.const_data_ptr()), eps, true, true};
  kernels().forward(storage_of(x), v, f, pool_for(v.numel()));
  return y;
}

std::tuple<Tensor, Tensor, Tensor> cpu_backward(
    const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& dev, const std::optional<Tensor>& weight,
    int64_t k0, int64_t r0, int64_t k1, int64_t r1, int64_t period, int64_t inner, bool columns, double eps,
    bool center, bool fixed, bool want_x, bool want_weight, bool want_bias) {
  const View v = view_of(x, k0, r0, k1, r1, period, inner, columns);
  check_length(weight, period, x, "weight");
  if (center) check_length(mean, v.cells(), x, "mean");
  check_length(dev, v.cells(), x, "std");
  STD_TORCH_CHECK(dy.numel() == x.numel() && dy.scalar_type() == x.scalar_type(), "normkit: dy must be like x");
  Tensor dx = want_x ? torch::stable::empty_like(x) : fresh(x, 0);
  Tensor dw = fresh(x, want_weight ? period : 0), db = fresh(x, want_bias ? period : 0);
  const Backward f{dy.const_data_ptr(), x.const_data_ptr(), pointer(weight), mean.const_data_ptr(), dev.const_data_ptr(),
                   want_x ? dx.mutable_data_ptr() : nullptr, want_weight ? dw.mutable_data_ptr() : nullptr,
                   want_bias ? db.mutable_data_ptr() : nullptr, eps, center, fixed};
  kernels().backward(storage_of(x), v, f, pool_for(v.numel()));
  return {dx, dw, db};
}

std::string isa() { return kernels().isa; }

}  // namespace

#define PLAN "int k0, int r0, int k1, int r1, int period, int inner, bool columns, "

STABLE_TORCH_LIBRARY(normkit_native, m) {
  m.def("normalize(Tensor x, Tensor? weight, Tensor? bias, " PLAN "float eps, bool center) -> (Tensor, Tensor, Tensor)");
  m.def("standardize(Tensor x, Tensor mean, Tensor std, Tensor? weight, Tensor? bias, " PLAN "float eps) -> Tensor");
  m.def("backward(Tensor dy, Tensor x, Tensor mean, Tensor std, Tensor? weight, " PLAN
        "float eps, bool center, bool fixed, bool want_x, bool want_weight, bool want_bias) -> (Tensor, Tensor, Tensor)");
  m.def("isa() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(normkit_native, CPU, m) {
  m.impl("normalize", TORCH_BOX(&cpu_normalize));
  m.impl("standardize", TORCH_BOX(&cpu_standardize));
  m.impl("backward", TORCH_BOX(&cpu_backward));
}

STABLE_TORCH_LIBRARY_IMPL(normkit_native, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&isa));
}
