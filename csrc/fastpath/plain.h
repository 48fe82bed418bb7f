// The gradient of a call that only normalizes, and of weight normalization.
#pragma once
#include "fastpath/gradients.h"

namespace {

// Saves the same tensors in the same order as kernels/operator.py: activation checkpointing pairs the tensors that a
// forward has saved with those of its recomputation, and the two may take different ways.
struct NormalizeBackward final : NormNode {
  SavedVariable x, weight, mean, std;  // std: the variance, where moments are given
  bool length = false;

  std::string name() const override { return "NormkitNormalizeBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* saved : {&x, &weight, &mean, &std}) saved->reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list out(3);
    if (!grads[0].defined()) return out;
    const Tensor x_ = x.unpack(), weight_ = weight.unpack(), mean_ = mean.unpack(), std_ = std.unpack();
    const bool want[] = {task_should_compute_output(0), task_should_compute_output(1), task_should_compute_output(2)};
    if (!(want[0] || want[1] || want[2])) return out;
    if (!is_simple(grads[0], x_, weight_, mean_, std_) || !run(grads[0], x_, weight_, mean_, std_, want, out))
      run_python(grads[0], x_, weight_, mean_, std_, want, out);
    if (want[1]) out[1] = weight_like(out[1]);
    if (want[2]) out[2] = bias_like(out[2]);
    return out;
  }

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    for (const SavedVariable* saved : {&x, &weight, &mean, &std}) args.collect(*saved, false);
    args.collect(pattern), args.collect(eps), args.collect(center), args.collect(fixed), args.collect(length);
    args.collect(zero_centered), args.collect(cast_first);
  }
  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& saved) override {
    saved.before(x), saved.before(weight), saved.before(mean), saved.before(std);
    variable_list out = apply(variable_list(grads));
    saved.after(x), saved.after(weight), saved.after(mean), saved.after(std);
    return out;
  }

 private:
  // Hooks on saved tensors may bring back others than went away.
  bool is_simple(const Tensor& dy, const Tensor& x_, const Tensor& weight_, const Tensor& mean_,
                 const Tensor& std_) const {
    const auto same = [&](const Tensor& t, int64_t n) {
      return is_like(t, x_) && t.numel() == n && t.is_contiguous() && t.scalar_type() == arithmetic_of(x_);
    };
    const auto parameter = [&](const Tensor& t) {
      return !t.defined() || (is_like(t, x_) && t.is_contiguous() && t.numel() == view.weights());
    };
    return !at::GradMode::is_enabled() && !is_watched() && is_like(dy, x_) && is_plain(x_) &&
           dy.sizes() == x_.sizes() && dy.scalar_type() == x_.scalar_type() && x_.strides() == strides &&
           x_.numel() == view.numel() && parameter(weight_) &&
           (length || same(mean_, center ? view.cells() : 0)) && same(std_, view.cells());
  }

  // False where Python has to take the call.
  bool run(const Tensor& given, const Tensor& x_, const Tensor& weight_, const Tensor& mean_, const Tensor& std_,
           const bool* want, variable_list& out) const {
    const Tensor std = fixed && number < 0 ? root_of(std_, eps) : std_;  // a GPU's kernels take the root
    const Tensor dy = lies_like(given, x_, view) ? given : like(x_, view).copy_(given);
    if (number >= 0) {
      Tensors3 grads;
      GpuBackward f{number, view.period, eps, center, fixed, length, 0, dy, x_, weight_, {}, mean_, std, {},
                    weight_like.asked(), bias_like.asked(), {want[0], want[1], want[2]}};
      if (!f.run(grads)) return false;
      for (size_t i = 0; i < 3; ++i) out[i] = grads[i];
      return true;
    }
    if (want[0]) out[0] = like(x_, view);
    for (const int i : {1, 2})
      if (want[i]) out[size_t(i)] = fresh(x_, view.weights());
    const auto place = [](const Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; };
    const Backward f{.dy = dy.const_data_ptr(), .x = x_.const_data_ptr(), .weight = parameter(weight_),
                     .mean = pointer(mean_), .std = std.const_data_ptr(), .dx = place(out[0]),
                     .dweight = place(out[1]), .dbias = place(out[2]), .eps = fixed ? 0 : eps, .center = center,
                     .fixed = fixed, .length = length, .zero_centered = zero_centered};
    library->kernels->backward(storage_of(x_), view, f, library->pool(x_.numel()));
    return true;
  }

  void run_python(const Tensor& dy, const Tensor& x_, const Tensor& weight_, const Tensor& mean_, const Tensor& std_,
                  const bool* want, variable_list& out) const {
    const Tensor none, *inputs[] = {&dy, &x_, &weight_, &none, &mean_, &std_, &none, &none};
    const Tensors3 grads = gradients_by_python(length ? "normkit.kernels.weight" : "normkit.kernels.operator", inputs,
                                               pattern, eps, center, 0, fixed, want, zero_centered);
    for (size_t i = 0; i < 3; ++i)
      if (want[i]) out[i] = grads[i];
  }
};

// With given moments `std` is their variance.
void record(const Call& c, const Tensor& y, const Tensor& mean, const Tensor& std) {
  const auto node = make_node<NormalizeBackward>();
  node->set_next_edges(torch::autograd::collect_next_edges(c.x, c.weight, c.bias));
  node->set(c);
  node->length = c.length;
  node->x = SavedVariable(c.x, false);
  if (c.weight.defined()) node->weight = SavedVariable(c.weight, false);
  if (!c.length) node->mean = SavedVariable(mean, false);
  node->std = SavedVariable(std, false);
  torch::autograd::set_history(y, node);
}

}  // namespace
