// The gradient of a call that only normalizes, and of weight normalization.
#pragma once
#include "fastpath/gpu/backward.h"

namespace {

// Saves the same tensors in the same order as kernels/operator.py: activation checkpointing pairs the tensors that a
// forward has saved with those of its recomputation, and the two may take different ways.
struct NormalizeBackward final : NormNode {
  SavedVariable x, weight, mean, std;  // std: the variance, where moments are given

  std::string name() const override { return "NormkitNormalizeBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* saved : {&x, &weight, &mean, &std}) saved->reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list out(3);
    if (!grads[0].defined()) return out;
    const Saved t{.dy = grads[0], .x = x.unpack(), .weight = weight.unpack(), .bias = {}, .mean = mean.unpack(),
                  .std = std.unpack(), .dsum = {}, .mask = {}, .gate = {}, .skip = {}};
    const Wanted want{task_should_compute_output(0), task_should_compute_output(1), task_should_compute_output(2)};
    if (!(want[0] || want[1] || want[2])) return out;
    Gradients found;
    if (!is_simple(t) || !run(t, want, found)) found = by_python(t, want);
    out[0] = found[0];
    if (want[1]) out[1] = weight_like(found[1]);
    if (want[2]) out[2] = bias_like(found[2]);
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
  bool is_simple(const Saved& t) const {
    const auto same = [&](const Tensor& m, int64_t n) {
      return is_like(m, t.x) && m.numel() == n && m.is_contiguous() && m.scalar_type() == arithmetic_of(t.x);
    };
    const auto parameter = [&](const Tensor& p) {
      return !p.defined() || (is_like(p, t.x) && p.is_contiguous() && p.numel() == view.weights());
    };
    return !at::GradMode::is_enabled() && !is_watched() && is_like(t.dy, t.x) && is_plain(t.x) &&
           t.dy.sizes() == t.x.sizes() && t.dy.scalar_type() == t.x.scalar_type() && t.x.strides() == strides &&
           t.x.numel() == view.numel() && parameter(t.weight) &&
           (length || same(t.mean, center ? view.cells() : 0)) && same(t.std, view.cells());
  }

  // False where Python has to take the call.
  bool run(Saved t, const Wanted& want, Gradients& out) const {
    if (fixed && number < 0) t.std = root_of(t.std, eps);  // a GPU's kernels take the root
    if (!lies_like(t.dy, t.x, view)) t.dy = like(t.x, view).copy_(t.dy);
    if (number >= 0) return GpuBackward{*this, t, want}.run(out);
    if (want[0]) out[0] = like(t.x, view);
    for (const size_t i : {size_t(1), size_t(2)})
      if (want[i]) out[i] = fresh(t.x, view.weights());
    const auto place = [](const Tensor& o) { return o.defined() ? o.mutable_data_ptr() : nullptr; };
    const Backward f{.dy = t.dy.const_data_ptr(), .x = t.x.const_data_ptr(), .weight = parameter(t.weight),
                     .mean = pointer(t.mean), .std = t.std.const_data_ptr(), .dx = place(out[0]),
                     .dweight = place(out[1]), .dbias = place(out[2]), .eps = fixed ? 0 : eps, .center = center,
                     .fixed = fixed, .length = length, .zero_centered = zero_centered};
    library->kernels->backward(storage_of(t.x), view, f, library->pool(t.x.numel()));
    return true;
  }
};

// With given moments `std` is their variance.
void record(const Call& c, const Tensor& y, const Tensor& mean, const Tensor& std) {
  const auto node = make_node<NormalizeBackward>();
  node->set_next_edges(torch::autograd::collect_next_edges(c.x, c.weight, c.bias));
  node->set(c);
  node->x = SavedVariable(c.x, false);
  if (c.weight.defined()) node->weight = SavedVariable(c.weight, false);
  if (!c.length) node->mean = SavedVariable(mean, false);
  node->std = SavedVariable(std, false);
  torch::autograd::set_history(y, node);
}

}  // namespace
