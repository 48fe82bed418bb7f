// The backward pass of any call: by the kernels of a CPU, or of a GPU.
#pragma once
#include "fastpath/gpu/backward.h"

namespace {

// False where Python has to take the call.
bool run_backward(const Facts& node, Saved t, const Wanted& want, Gradients& out) {
  const View& view = node.view;
  for (Tensor* o : {&t.dy, &t.dsum, &t.gate, &t.skip})
    if (o->defined() && !lies_like(*o, t.x, view)) *o = like(t.x, view).copy_(*o);
  if (node.fixed && node.number < 0) t.std = root_of(t.std, node.eps);  // a GPU's kernels take the root
  if (node.number >= 0) return GpuBackward{node, t, want}.run(out);
  // If no gradient reached the sum, and a skip is only added, backward is plain, as in kernels/native.py.
  const bool fused = t.dsum.defined() || t.mask.defined() || t.gate.defined() ||
                     node.extras.activation != Activation::none;
  // If it is fused, dx also where nobody wants it: a place for dy times the activation's slope.
  if (want[0] || fused) out[0] = like(t.x, view);
  for (const size_t i : {size_t(1), size_t(2)})
    if (want[i]) out[i] = fresh(t.x, view.weights());
  for (const size_t i : {size_t(3), size_t(4)})
    if (want[i]) out[i] = like(t.x, view);
  const auto place = [](const Tensor& o) { return o.defined() ? o.mutable_data_ptr() : nullptr; };
  Fusion fusion = node.extras.fusion();
  fusion.mask = static_cast<const uint8_t*>(pointer(t.mask));
  fusion.residual = pointer(t.dsum);
  fusion.bias = parameter(t.bias);
  fusion.gate = pointer(t.gate), fusion.skip = pointer(t.skip);
  fusion.dgate = place(out[3]), fusion.dskip = place(out[4]);
  fusion.backward = true;
  Backward f{.dy = t.dy.const_data_ptr(), .x = t.x.const_data_ptr(), .weight = parameter(t.weight),
             .mean = pointer(t.mean), .std = t.std.const_data_ptr(), .dx = place(out[0]), .dweight = place(out[1]),
             .dbias = place(out[2]), .eps = node.fixed ? 0 : node.eps, .center = node.center, .fixed = node.fixed,
             .length = node.length, .zero_centered = node.zero_centered};
  if (fused) f.fused = &fusion;
  library->kernels->backward(storage_of(t.x), view, f, library->pool(t.x.numel()));
  return true;
}

}  // namespace
