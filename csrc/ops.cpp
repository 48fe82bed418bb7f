// The kernels as torch operators, over the stable ABI: one binary for every torch from 2.10 on.
#include <cstdlib>
#include <string>
#include <tuple>

#include "fastpath/kernels.h"
#include "ops/pool.h"
#include "ops/tensors.h"
#include "plans.h"
#include "running.h"

namespace {

using normkit::Activation;
using normkit::Backward;
using normkit::Forward;
using normkit::Fusion;
using normkit::Kernels;

// The best instruction set this processor has; NORMKIT_ISA=baseline|avx2|avx512|avx512_bf16 asks for a lesser one.
const Kernels& kernels() {
  static const Kernels* chosen = [] {
#if defined(__x86_64__) || defined(_M_X64)
    const char* value = std::getenv("NORMKIT_ISA");
    const std::string asked = value ? value : "";
    __builtin_cpu_init();
    // These processors have F16C too, which Clang cannot ask for.
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const bool any = asked.empty() || asked == "avx512_bf16";
    if (avx512 && any && __builtin_cpu_supports("avx512bf16")) return normkit::kernels_avx512_bf16();
    if (avx512 && (any || asked == "avx512")) return normkit::kernels_avx512();
    if (avx2 && asked != "baseline") return normkit::kernels_avx2();
#endif
    return normkit::kernels_baseline();
  }();
  return *chosen;
}

Plans& plans() {
  static Plans all;
  return all;
}
int64_t add_plan(int64_t k0, int64_t r0, int64_t k1, int64_t r1, int64_t period, int64_t inner, bool columns,
                 int64_t slabs, int64_t group, int64_t pitch, int64_t outer) {
  return plans().add({k0, r0, k1, r1, period, inner, columns, slabs, group, pitch, outer});
}
void forget_plan(int64_t plan) { plans().forget(plan); }
View view_of(const Tensor& x, int64_t plan) {
  View v;
  STD_TORCH_CHECK(plans().find(plan, &v), "normkit: no plan ", plan);
  STD_TORCH_CHECK(v.numel() == x.numel(), "normkit: the plan does not cover the tensor");
  return v;
}

// The bits of `flags`.
struct Flags {
  bool center, zero_centered, cast_first;

  explicit Flags(int64_t bits) : center(bits & 1), zero_centered(bits & 2), cast_first(bits & 4) {}
};

// Forward: everything but the moments.
Forward forward_of(
    const Tensor& x, Tensor& y, const View& v, const Given& weight, const Given& bias, double eps, Flags flags) {
  return {.x = x.const_data_ptr(), .y = y.mutable_data_ptr(), .weight = parameter(weight, v, "weight"),
          .bias = parameter(bias, v, "bias"), .mean = nullptr, .std = nullptr, .eps = eps, .center = flags.center,
          .fixed = false, .zero_centered = flags.zero_centered, .cast_first = flags.cast_first};
}
void give_moments(Forward& f, const Tensor& x, const View& v, const Given& mean, const Given& std) {
  check_length(mean, v.cells(), x, "mean");
  check_length(std, v.cells(), x, "std");
  f.mean = const_cast<void*>(pointer(mean));
  f.std = const_cast<void*>(pointer(std));
  f.fixed = true;
}
void run(const Tensor& x, const View& v, const Forward& f) {
  kernels().forward(storage_of(x), v, f, pool_for(v.numel()));
}
void run(const Tensor& x, const View& v, const Backward& f) {
  kernels().backward(storage_of(x), v, f, pool_for(v.numel()));
}

// The moments of x, which a call returns.
struct Moments {
  Tensor mean, std;

  Moments(const Tensor& x, const View& v, bool center)
      : mean(fresh(x, center ? v.cells() : 0)), std(fresh(x, v.cells())) {}
  void write_in(Forward& f) {
    f.mean = f.center ? mean.mutable_data_ptr() : nullptr;
    f.std = std.mutable_data_ptr();
  }
};

std::tuple<Tensor, Tensor, Tensor> cpu_normalize(
    const Tensor& x, const Given& weight, const Given& bias, int64_t plan, double eps, int64_t flags) {
  const View v = view_of(x, plan);
  Tensor y = like(x, v);
  Forward f = forward_of(x, y, v, weight, bias, eps, Flags(flags));
  Moments moments(x, v, f.center);
  moments.write_in(f);
  run(x, v, f);
  return {std::move(y), std::move(moments.mean), std::move(moments.std)};
}

// Only y: half of the time of a small call is the memory for moments, and here nobody asks for them.
Tensor cpu_infer(const Tensor& x, const Given& weight, const Given& bias, int64_t plan, double eps, int64_t flags) {
  const View v = view_of(x, plan);
  Tensor y = like(x, v);
  run(x, v, forward_of(x, y, v, weight, bias, eps, Flags(flags)));
  return y;
}

Tensor cpu_standardize(
    const Tensor& x, const Tensor& mean, const Tensor& std, const Given& weight, const Given& bias, int64_t plan,
    double eps, int64_t flags) {
  const View v = view_of(x, plan);
  Tensor y = like(x, v);
  Forward f = forward_of(x, y, v, weight, bias, eps, Flags(flags));
  give_moments(f, x, v, mean, std);
  run(x, v, f);
  return y;
}

// The gradients that a call returns, empty where they are not wanted.
struct Gradients {
  Tensor x, weight, bias;

  Gradients(const Tensor& like_x, const View& v, bool want_x, bool want_weight, bool want_bias)
      : x(want_x ? like(like_x, v) : fresh(like_x, 0)), weight(fresh(like_x, want_weight ? v.weights() : 0)),
        bias(fresh(like_x, want_bias ? v.weights() : 0)) {}
  std::tuple<Tensor, Tensor, Tensor> all() { return {std::move(x), std::move(weight), std::move(bias)}; }
};
void* place(Tensor& t) { return t.numel() ? t.mutable_data_ptr() : nullptr; }

Backward backward_of(const Tensor& dy, const Tensor& x, const View& v, const Tensor& mean, const Tensor& std,
                     const Given& weight, double eps, Flags flags, bool fixed, Gradients& out) {
  if (flags.center) check_length(mean, v.cells(), x, "mean");
  check_length(std, v.cells(), x, "std");
  STD_TORCH_CHECK(dy.numel() == x.numel() && dy.scalar_type() == x.scalar_type(), "normkit: dy must be like x");
  return {.dy = dy.const_data_ptr(), .x = x.const_data_ptr(), .weight = parameter(weight, v, "weight"),
          .mean = mean.const_data_ptr(), .std = std.const_data_ptr(), .dx = place(out.x),
          .dweight = place(out.weight), .dbias = place(out.bias), .eps = eps, .center = flags.center, .fixed = fixed,
          .zero_centered = flags.zero_centered};
}

std::tuple<Tensor, Tensor, Tensor> cpu_backward(
    const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& std, const Given& weight, int64_t plan,
    double eps, int64_t flags, bool fixed, bool want_x, bool want_weight, bool want_bias) {
  const View v = view_of(x, plan);
  Gradients out(x, v, want_x, want_weight, want_bias);
  run(x, v, backward_of(dy, x, v, mean, std, weight, eps, Flags(flags), fixed, out));
  return out.all();
}

void check_like(const Given& t, const Tensor& x, const char* what) {
  STD_TORCH_CHECK(!t || (t->numel() == x.numel() && t->scalar_type() == x.scalar_type()),
                  "normkit: the ", what, " must be like x");
}
Fusion fusion_of(const Tensor& x, const View& v, const Given& residual, const Given& mask, const Given& counts,
                 int64_t channels, int64_t inner, int64_t activation) {
  check_like(residual, x, "residual");
  STD_TORCH_CHECK(!mask == !counts, "normkit: a mask comes with the number of valid elements of each cell");
  if (mask) {
    const ScalarType type = mask->scalar_type();
    const bool bytes = mask->is_contiguous() && (type == ScalarType::Byte || type == ScalarType::Bool);
    STD_TORCH_CHECK(bytes && channels > 0 && inner > 0 && mask->numel() * channels == x.numel() &&
                        x.numel() % (channels * inner) == 0,
                    "normkit: the mask must be contiguous, one byte for each place of x");
    const bool numbers = counts->scalar_type() == ScalarType::Double && counts->is_contiguous();
    STD_TORCH_CHECK(numbers && counts->numel() == v.cells(), "normkit: counts must be float64, one for each cell");
  }
  STD_TORCH_CHECK(0 <= activation && activation <= int64_t(Activation::tanh), "normkit: no activation ", activation);
  Fusion out;
  out.activation = Activation(activation);
  out.residual = pointer(residual);
  out.mask = static_cast<const uint8_t*>(pointer(mask));
  out.counts = static_cast<const double*>(pointer(counts));
  out.channels = channels;
  out.inner = inner;
  return out;
}
void add_gate_and_skip(Fusion& f, const Tensor& x, const Given& gate, const Given& skip, int64_t gate_activation,
                       bool gate_first) {
  check_like(gate, x, "gate");
  check_like(skip, x, "skip");
  STD_TORCH_CHECK(0 <= gate_activation && gate_activation <= int64_t(Activation::plus_one),
                  "normkit: no gate activation ", gate_activation);
  f.gate = pointer(gate);
  f.skip = pointer(skip);
  f.gate_activation = Activation(gate_activation);
  f.gate_first = gate && gate_first;
}

// mean and std are given, or else those of x are returned.
std::tuple<Tensor, Tensor, Tensor, Tensor> cpu_fused(
    const Tensor& x, const Given& residual, const Given& mask, const Given& counts, int64_t channels, int64_t inner,
    const Given& mean, const Given& std, const Given& weight, const Given& bias, int64_t plan, double eps,
    int64_t flags, int64_t activation, const Given& gate, const Given& skip, int64_t gate_activation, bool gate_first) {
  const View v = view_of(x, plan);
  Fusion fusion = fusion_of(x, v, residual, mask, counts, channels, inner, activation);
  add_gate_and_skip(fusion, x, gate, skip, gate_activation, gate_first);
  STD_TORCH_CHECK(!fusion.gate_first || !residual, "normkit: a gate comes before or a residual, not both");
  Tensor y = like(x, v), sum = residual ? like(x, v) : fresh(x, 0);
  if (residual) fusion.sum = sum.mutable_data_ptr();
  Forward f = forward_of(x, y, v, weight, bias, eps, Flags(flags));
  f.fused = &fusion;
  if (std) {
    give_moments(f, x, v, mean, std);
    run(x, v, f);
    return {y, sum, fresh(x, 0), fresh(x, 0)};
  }
  Moments moments(x, v, f.center);
  moments.write_in(f);
  run(x, v, f);
  return {std::move(y), std::move(sum), std::move(moments.mean), std::move(moments.std)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> cpu_fused_backward(
    const Tensor& dy, const Given& dsum, const Tensor& x, const Given& mask, const Given& counts, int64_t channels,
    int64_t inner, const Tensor& mean, const Tensor& std, const Given& weight, const Given& bias, int64_t plan,
    double eps, int64_t flags, bool fixed, int64_t activation, bool want_weight, bool want_bias, const Given& gate,
    const Given& skip, int64_t gate_activation, bool gate_first, bool want_x, bool want_gate, bool want_skip) {
  const View v = view_of(x, plan);
  Fusion fusion = fusion_of(x, v, dsum, mask, counts, channels, inner, activation);
  fusion.backward = true;
  fusion.bias = parameter(bias, v, "bias");
  add_gate_and_skip(fusion, x, gate, skip, gate_activation, gate_first);
  STD_TORCH_CHECK(!want_gate || gate, "normkit: a gradient of no gate");
  // Where the gate comes first, its gradient is made from that of the product, which takes the place of dx.
  Gradients out(x, v, want_x || (fusion.gate_first && want_gate), want_weight, want_bias);
  Tensor dgate = want_gate ? like(x, v) : fresh(x, 0), dskip = want_skip ? like(x, v) : fresh(x, 0);
  fusion.dgate = place(dgate);
  fusion.dskip = place(dskip);
  Backward f = backward_of(dy, x, v, mean, std, weight, eps, Flags(flags), fixed, out);
  f.fused = &fusion;
  run(x, v, f);
  return {std::move(out.x), std::move(out.weight), std::move(out.bias), std::move(dgate), std::move(dskip)};
}

View lengths_of(const Tensor& v, const Tensor& g, int64_t plan) {
  const View view = view_of(v, plan);
  STD_TORCH_CHECK(view.weights() == view.cells(), "normkit: a length for each cell");
  return view;
}
std::tuple<Tensor, Tensor> cpu_weight_norm(const Tensor& v, const Tensor& g, int64_t plan) {
  const View view = lengths_of(v, g, plan);
  Tensor w = like(v, view), length = fresh(v, view.cells());
  run(v, view, Forward{.x = v.const_data_ptr(), .y = w.mutable_data_ptr(), .weight = parameter(g, view, "g"),
                       .bias = {}, .mean = nullptr, .std = length.mutable_data_ptr(), .eps = 0, .center = false,
                       .fixed = false, .length = true});
  return {w, length};
}
std::tuple<Tensor, Tensor> cpu_weight_norm_backward(
    const Tensor& dw, const Tensor& v, const Tensor& g, const Tensor& length, int64_t plan) {
  const View view = lengths_of(v, g, plan);
  check_length(length, view.cells(), v, "length");
  STD_TORCH_CHECK(dw.numel() == v.numel() && dw.scalar_type() == v.scalar_type(), "normkit: dw must be like v");
  Tensor dv = like(v, view), dg = fresh(v, view.cells());
  run(v, view, Backward{.dy = dw.const_data_ptr(), .x = v.const_data_ptr(), .weight = parameter(g, view, "g"),
                        .mean = nullptr, .std = length.const_data_ptr(), .dx = dv.mutable_data_ptr(),
                        .dweight = dg.mutable_data_ptr(), .dbias = nullptr, .eps = 0, .center = false, .fixed = false,
                        .length = true});
  return {dv, dg};
}

// body(a null pointer to its type) for a tensor in an arithmetic type.
template <class Body> auto with_type(const Tensor& t, const Body& body) {
  if (t.scalar_type() == ScalarType::Double) return body(static_cast<double*>(nullptr));
  return body(static_cast<float*>(nullptr));
}

// Returns how many channels were skipped.
int64_t cpu_move_running(
    Tensor running_mean, Tensor running_var, const Tensor& mean, const Tensor& std, int64_t count, double momentum) {
  const int64_t channels = running_mean.numel(), samples = mean.numel() / (channels ? channels : 1);
  const bool same = running_var.numel() == channels && std.numel() == mean.numel();
  const bool contiguous = running_mean.is_contiguous() && running_var.is_contiguous();
  STD_TORCH_CHECK(same && mean.numel() == samples * channels && contiguous && count > 1,
                  "normkit: running statistics must be contiguous, one for each channel");
  STD_TORCH_CHECK(running_mean.scalar_type() == running_var.scalar_type() && mean.scalar_type() == std.scalar_type(),
                  "normkit: running statistics of one type");
  return with_type(running_mean, [&]<class B>(B*) {
    return with_type(mean, [&]<class A>(A*) {
      return move_running(
          static_cast<B*>(running_mean.mutable_data_ptr()), static_cast<B*>(running_var.mutable_data_ptr()),
          static_cast<const A*>(mean.const_data_ptr()), static_cast<const A*>(std.const_data_ptr()), channels, samples,
          double(count), momentum);
    });
  });
}

// By the processor's square root: torch's own, by a library of vector functions, may differ in the last bit.
Tensor cpu_root(const Tensor& var, double eps) {
  STD_TORCH_CHECK(var.is_contiguous() && var.scalar_type() == arithmetic_of(var),
                  "normkit: var must be contiguous, in the arithmetic type");
  const Tensor std = like(var, View{});
  with_type(var, [&]<class A>(A*) {
    roots(static_cast<const A*>(var.const_data_ptr()), static_cast<A*>(std.mutable_data_ptr()), var.numel(), eps);
  });
  return std;
}

std::string isa() { return kernels().isa; }

}  // namespace

STABLE_TORCH_LIBRARY(normkit_native, m) {
  m.def(
      "normalize(Tensor x, Tensor? weight, Tensor? bias, int plan, float eps, int flags) -> (Tensor, Tensor, "
      "Tensor)");
  m.def("infer(Tensor x, Tensor? weight, Tensor? bias, int plan, float eps, int flags) -> Tensor");
  m.def(
      "move_running(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor mean, Tensor std, int count, float "
      "momentum) -> int");
  m.def("weight_norm(Tensor v, Tensor g, int plan) -> (Tensor, Tensor)");
  m.def("weight_norm_backward(Tensor dw, Tensor v, Tensor g, Tensor length, int plan) -> (Tensor, Tensor)");
  m.def(
      "fused(Tensor x, Tensor? residual, Tensor? mask, Tensor? counts, int channels, int inner, Tensor? mean, "
      "Tensor? std, Tensor? weight, Tensor? bias, int plan, float eps, int flags, int activation, "
      "Tensor? gate, Tensor? skip, int gate_activation, bool gate_first) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "fused_backward(Tensor dy, Tensor? dsum, Tensor x, Tensor? mask, Tensor? counts, int channels, int inner, "
      "Tensor mean, Tensor std, Tensor? weight, Tensor? bias, int plan, float eps, int flags, bool fixed, int "
      "activation, bool want_weight, bool want_bias, Tensor? gate, Tensor? skip, int gate_activation, bool "
      "gate_first, bool want_x, bool want_gate, bool want_skip) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "standardize(Tensor x, Tensor mean, Tensor std, Tensor? weight, Tensor? bias, int plan, float eps, int flags) "
      "-> Tensor");
  m.def(
      "backward(Tensor dy, Tensor x, Tensor mean, Tensor std, Tensor? weight, int plan, float eps, int flags, "
      "bool fixed, bool want_x, bool want_weight, bool want_bias) -> (Tensor, Tensor, Tensor)");
  m.def(
      "plan(int k0, int r0, int k1, int r1, int period, int inner, bool columns, int slabs, int group, int pitch, "
      "int outer) -> int");
  m.def("forget(int plan) -> ()");
  m.def("root(Tensor var, float eps) -> Tensor");
  m.def("isa() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(normkit_native, CPU, m) {
  m.impl("normalize", TORCH_BOX(&cpu_normalize));
  m.impl("infer", TORCH_BOX(&cpu_infer));
  m.impl("move_running", TORCH_BOX(&cpu_move_running));
  m.impl("root", TORCH_BOX(&cpu_root));
  m.impl("weight_norm", TORCH_BOX(&cpu_weight_norm));
  m.impl("weight_norm_backward", TORCH_BOX(&cpu_weight_norm_backward));
  m.impl("fused", TORCH_BOX(&cpu_fused));
  m.impl("fused_backward", TORCH_BOX(&cpu_fused_backward));
  m.impl("standardize", TORCH_BOX(&cpu_standardize));
  m.impl("backward", TORCH_BOX(&cpu_backward));
}

STABLE_TORCH_LIBRARY_IMPL(normkit_native, CompositeExplicitAutograd, m) {
  m.impl("plan", TORCH_BOX(&add_plan));
  m.impl("forget", TORCH_BOX(&forget_plan));
  m.impl("isa", TORCH_BOX(&isa));
}

extern "C" __attribute__((visibility("default"))) const normkit::FastPathKernels* normkit_fastpath() {
  static const normkit::FastPathKernels shared{
      &kernels(), [](int64_t plan, View* out) { return plans().find(plan, out); }, pool_for};
  return &shared;
}
