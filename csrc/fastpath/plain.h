// The gradient of a call that only normalizes, and of weight normalization.
#pragma once
#include "fastpath/backward.h"

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
    if (!is_simple(t) || !run_backward(*this, t, want, found)) found = by_python(t, want);
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
