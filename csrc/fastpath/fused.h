// The gradient of a call that fuses padding, a residual, a gate, a skip or an activation.
#pragma once
#include "fastpath/backward.h"

namespace {

// Outputs: y, and with a residual the sum. Inputs: x, residual, weight, bias, gate, skip.
struct FusedBackward final : NormNode {
  // x: the sum where there is one; std: as in NormalizeBackward; skip: only before an activation.
  SavedVariable x, mask, weight, bias, mean, std, gate, skip;
  int64_t last = 0;  // dimensions of channels at the end; 0: dimension 1
  bool has_sum = false, skip_is_added = false;  // the latter: its gradient is dy

  std::string name() const override { return "NormkitFusedBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* saved : all()) saved->reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list out(6);
    Saved t{.dy = grads[0], .x = {}, .weight = {}, .bias = {}, .mean = {}, .std = {},
            .dsum = has_sum ? grads[1] : Tensor(), .mask = {}, .gate = {}, .skip = {}};
    const auto is_asked = [&](size_t i) { return task_should_compute_output(i); };
    if (!t.dy.defined()) {
      if (is_asked(0)) out[0] = t.dsum;
      if (is_asked(1)) out[1] = t.dsum;
      return out;
    }
    t.x = has_sum ? x.unpack(pointer_to(this)) : x.unpack();
    t.mask = mask.unpack(), t.weight = weight.unpack(), t.bias = bias.unpack(), t.mean = mean.unpack();
    t.std = std.unpack(), t.gate = gate.unpack(), t.skip = skip.unpack();
    const Wanted want{is_asked(0) || is_asked(1), is_asked(2), is_asked(3), is_asked(4),
                      is_asked(5) && !skip_is_added};
    Gradients found;
    if (std::any_of(want.begin(), want.end(), [](bool w) { return w; }) &&
        (!is_simple(t) || !run_backward(*this, t, want, found)))
      found = through_python(t, want);
    if (is_asked(0)) out[0] = found[0];
    if (is_asked(1)) out[1] = found[0];
    if (want[1]) out[2] = weight_like(found[1]);
    if (want[2]) out[3] = bias_like(found[2]);
    if (want[3]) out[4] = found[3];
    if (is_asked(5)) out[5] = skip_is_added ? t.dy : found[4];
    return out;
  }

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    args.collect(x, has_sum);
    for (const SavedVariable* saved : {&mask, &weight, &bias, &mean, &std, &gate, &skip}) args.collect(*saved, false);
    args.collect(pattern), args.collect(eps), args.collect(int64_t(extras.activation)), args.collect(last);
    args.collect(center), args.collect(fixed), args.collect(has_sum);
    args.collect(zero_centered), args.collect(cast_first), args.collect(int64_t(extras.gate_activation));
    args.collect(extras.gate_first), args.collect(skip_is_added);
  }
  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override {
    for (SavedVariable* saved : all()) swap.before(*saved);
    variable_list out = apply(variable_list(grads));
    for (SavedVariable* saved : all()) swap.after(*saved);
    return out;
  }

 private:
  std::array<SavedVariable*, 8> all() { return {&x, &mask, &weight, &bias, &mean, &std, &gate, &skip}; }

  // The mask with the channels that it has been given without.
  Gradients through_python(Saved t, const Wanted& want) const {
    if (t.mask.defined() && !last) t.mask = t.mask.unsqueeze(1);
    for (int64_t i = 0; t.mask.defined() && i < last; ++i) t.mask = t.mask.unsqueeze(-1);
    return by_python(t, want);
  }
};

void record_fused(const Call& c, const Tensor& y, const Tensor& sum, int64_t last, const Tensor& mean,
                  const Tensor& std) {
  const auto node = make_node<FusedBackward>();
  node->set_next_edges(torch::autograd::collect_next_edges(
      c.x, c.extras.residual, c.weight, c.bias, c.extras.gate, c.extras.skip));
  node->set(c);
  node->has_sum = sum.defined();
  if (sum.defined()) node->strides = sum.strides(), node->view.group = 0;  // the sum is the x of backward, and dense
  node->last = last;
  torch::autograd::set_history(y, node);
  if (sum.defined()) torch::autograd::set_history(sum, node);
  node->x = sum.defined() ? SavedVariable(sum, true) : SavedVariable(c.x, false);
  const bool activated = c.extras.activation != Activation::none;
  node->skip_is_added = c.extras.skip.defined() && !activated && !c.extras.mask.defined();
  if (c.extras.mask.defined()) node->mask = SavedVariable(c.extras.mask, false);
  if (c.weight.defined()) node->weight = SavedVariable(c.weight, false);
  if (c.bias.defined()) node->bias = SavedVariable(c.bias, false);
  node->mean = SavedVariable(mean, false);
  node->std = SavedVariable(std, false);
  if (c.extras.gate.defined()) node->gate = SavedVariable(c.extras.gate, false);
  if (c.extras.skip.defined() && activated) node->skip = SavedVariable(c.extras.skip, false);
}

}  // namespace
