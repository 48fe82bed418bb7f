// The gradient of a call that fuses padding, a residual or an activation.
#pragma once
#include "fastpath/gradients.h"

namespace {

// Outputs: y, and with a residual the sum. Inputs: x, residual, weight, bias.
struct FusedBackward final : NormNode {
  SavedVariable x, mask, weight, bias, mean, std;  // x: the sum where there is one; dev: as in NormalizeBackward
  Extras extras;                                   // without its tensors, but for the counts
  int64_t last = 0;                                // dimensions of channels at the end; 0: dimension 1
  bool has_sum = false;

  std::string name() const override { return "NormkitFusedBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* saved : {&x, &mask, &weight, &bias, &mean, &std}) saved->reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list out(4);
    const Tensor dsum = has_sum ? grads[1] : Tensor();
    bool want[4];
    for (size_t i = 0; i < 4; ++i) want[i] = task_should_compute_output(i);
    if (!grads[0].defined()) {
      if (want[0]) out[0] = dsum;
      if (want[1]) out[1] = dsum;
      return out;
    }
    Tensor x_ = has_sum ? x.unpack(pointer_to(this)) : x.unpack();
    const Tensor mask_ = mask.unpack(), weight_ = weight.unpack(), bias_ = bias.unpack(), mean_ = mean.unpack(),
                 std_ = std.unpack();
    if (!(want[0] || want[1] || want[2] || want[3])) return out;
    const Tensor saved[] = {x_, mask_, weight_, bias_, mean_, std_};
    Tensor dx;
    if (!is_simple(grads[0], dsum, saved) || !run(grads[0], dsum, saved, want, dx, out))
      run_python(grads[0], dsum, saved, want, dx, out);
    if (want[0]) out[0] = dx;
    if (want[1]) out[1] = dx;
    if (want[2]) out[2] = weight_like(out[2]);
    if (want[3]) out[3] = bias_like(out[3]);
    return out;
  }

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    args.collect(x, has_sum);
    for (const SavedVariable* saved : {&mask, &weight, &bias, &mean, &std}) args.collect(*saved, false);
    args.collect(pattern), args.collect(eps), args.collect(int64_t(extras.activation)), args.collect(last);
    args.collect(center), args.collect(fixed), args.collect(has_sum);
    args.collect(zero_centered), args.collect(cast_first);
  }
  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override {
    for (SavedVariable* saved : {&x, &mask, &weight, &bias, &mean, &std}) swap.before(*saved);
    variable_list out = apply(variable_list(grads));
    for (SavedVariable* saved : {&x, &mask, &weight, &bias, &mean, &std}) swap.after(*saved);
    return out;
  }

 private:
  bool is_simple(const Tensor& dy, const Tensor& dsum, const Tensor (&saved)[6]) const {
    const auto& [x_, mask_, weight_, bias_, mean_, std_] = saved;
    const auto same = [&](const Tensor& t, int64_t n) {
      return is_like(t, x_) && t.numel() == n && t.is_contiguous() && t.scalar_type() == arithmetic_of(x_);
    };
    const auto gradient = [&](const Tensor& t) {
      return is_like(t, x_) && t.sizes() == x_.sizes() && t.scalar_type() == x_.scalar_type();
    };
    const auto parameter = [&](const Tensor& t) {
      return !t.defined() || (is_like(t, x_) && t.is_contiguous() && t.numel() == view.weights());
    };
    return !at::GradMode::is_enabled() && !is_watched() && is_plain(x_) && gradient(dy) &&
           (!dsum.defined() || gradient(dsum)) && x_.strides() == strides && x_.numel() == view.numel() &&
           parameter(weight_) && parameter(bias_) &&
           (!mask_.defined() || (is_like(mask_, x_) && mask_.is_contiguous() && mask_.scalar_type() == at::kBool &&
                                 mask_.numel() * extras.channels == x_.numel())) &&
           same(mean_, center ? view.cells() : 0) && same(std_, view.cells());
  }

  // False where Python has to take the call.
  bool run(const Tensor& dy, const Tensor& dsum, const Tensor (&saved)[6], const bool* want, Tensor& dx,
           variable_list& out) const {
    const auto& [x_, mask_, weight_, bias_, mean_, std_] = saved;
    const auto laid = [&](const Tensor& t) {
      return !t.defined() || lies_like(t, x_, view) ? t : like(x_, view).copy_(t);
    };
    const Tensor std = fixed && number < 0 ? root_of(std_, eps) : std_;  // a GPU's kernels take the root
    const Tensor g = laid(dy), more = laid(dsum);
    if (number >= 0) {
      Tensors3 grads;
      GpuBackward f{number, view.period, eps, center, fixed, false, int(extras.activation), g, x_, weight_, bias_,
                    mean_, std, more, weight_like.asked(), bias_like.asked(), {want[0] || want[1], want[2], want[3]}};
      if (!f.run(grads)) return false;
      dx = grads[0], out[2] = grads[1], out[3] = grads[2];
      return true;
    }
    dx = like(x_, view);  // also where nobody wants it: a place for dy times the activation's slope
    for (const size_t i : {size_t(2), size_t(3)})
      if (want[i]) out[i] = fresh(x_, view.weights());
    Fusion fusion = extras.fusion();
    fusion.mask = static_cast<const uint8_t*>(pointer(mask_));
    fusion.residual = pointer(more);
    fusion.bias = parameter(bias_);
    fusion.backward = true;
    const auto place = [](const Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; };
    Backward f{.dy = g.const_data_ptr(), .x = x_.const_data_ptr(), .weight = parameter(weight_),
               .mean = mean_.const_data_ptr(), .std = std.const_data_ptr(), .dx = place(dx), .dweight = place(out[2]),
               .dbias = place(out[3]), .eps = fixed ? 0 : eps, .center = center, .fixed = fixed,
               .zero_centered = zero_centered};
    // If a residual was added and no gradient reached the sum, backward is plain, as in kernels/native.py.
    if (more.defined() || mask_.defined() || extras.activation != Activation::none) f.fused = &fusion;
    library->kernels->backward(storage_of(x_), view, f, library->pool(x_.numel()));
    return true;
  }

  void run_python(const Tensor& dy, const Tensor& dsum, const Tensor (&saved)[6], const bool* want, Tensor& dx,
                  variable_list& out) const {
    const auto& [x_, mask_, weight_, bias_, mean_, std_] = saved;
    Tensor places = mask_;  // with the channels that the mask has been given without
    if (mask_.defined() && !last) places = mask_.unsqueeze(1);
    for (int64_t i = 0; mask_.defined() && i < last; ++i) places = places.unsqueeze(-1);
    const Tensor* inputs[] = {&dy, &x_, &weight_, &bias_, &mean_, &std_, &dsum, &places};
    const bool wanted[] = {want[0] || want[1], want[2], want[3]};
    const Tensors3 grads = gradients_by_python("normkit.kernels.operator", inputs, pattern, eps, center,
                                               int(extras.activation), fixed, wanted, zero_centered);
    dx = grads[0], out[2] = grads[1], out[3] = grads[2];
  }
};

void record_fused(const Call& c, const Tensor& y, const Tensor& sum, int64_t last, const Tensor& mean,
                  const Tensor& std) {
  const auto node = make_node<FusedBackward>();
  node->set_next_edges(torch::autograd::collect_next_edges(c.x, c.extras.residual, c.weight, c.bias));
  node->set(c);
  node->has_sum = sum.defined();
  if (sum.defined()) node->strides = sum.strides(), node->view.group = 0;  // the sum is the x of backward, and dense
  node->last = last;
  node->extras = c.extras;
  node->extras.residual = node->extras.mask = Tensor();
  torch::autograd::set_history(y, node);
  if (sum.defined()) torch::autograd::set_history(sum, node);
  node->x = sum.defined() ? SavedVariable(sum, true) : SavedVariable(c.x, false);
  if (c.extras.mask.defined()) node->mask = SavedVariable(c.extras.mask, false);
  if (c.weight.defined()) node->weight = SavedVariable(c.weight, false);
  if (c.bias.defined()) node->bias = SavedVariable(c.bias, false);
  node->mean = SavedVariable(mean, false);
  node->std = SavedVariable(std, false);
}

}  // namespace
