// A backward pass on a GPU: by its recipe, or by Python, which writes the recipe down.
#pragma once
#include <torch/csrc/DynamicTypes.h>

#include "fastpath/gpu/forward.h"
#include "fastpath/gradients.h"

namespace {

// The gradient of one call; dy and dsum in x's strides.
struct GpuBackward {
  const Facts& node;
  const Saved& t;
  const Wanted& want;

  // False where Python has to take the call.
  bool run(Gradients& out) const {
    if (!is_current(t.x) ||
        !are_aligned({&t.dy, &t.x, &t.weight, &t.bias, &t.mean, &t.std, &t.dsum, &t.gate, &t.skip}) ||
        !is_readable(t.weight, t.x, node.length) || !is_readable(t.bias, t.x, false) ||
        !is_still(t.weight, node.weight_like) || !is_still(t.bias, node.bias_like))
      return false;
    const Key key = key_of(node.number, node.eps, t.x, node.weight_like.asked(), node.bias_like.asked(),
                           node.extras.activations(),
                           {true, node.center, t.dsum.defined(), node.fixed, want[0], want[1], want[2], want[3],
                            want[4], node.length, t.weight.defined(), t.bias.defined(), node.zero_centered,
                            t.gate.defined(), t.skip.defined(), node.extras.gate_first});
    const auto known = recipes.find(key);
    if (known && !*known) return false;
    if (!known) return learn(key, out);
    for (const size_t i : {size_t(0), size_t(3), size_t(4)})
      if (want[i]) out[i] = like(t.x, node.view);
    if (want[1]) out[1] = room(t.x, {node.view.weights()}, {1}, (*known)->dweight);
    if (want[2]) out[2] = room(t.x, {node.view.weights()}, {1}, (*known)->dbias);
    Pointers p;
    p.set(Slot::dy, t.dy), p.set(Slot::x, t.x), p.set(Slot::weight, t.weight), p.set(Slot::bias, t.bias);
    p.set(Slot::mean, t.mean), p.set(Slot::std, t.std), p.set(Slot::residual, t.dsum);
    p.set(Slot::gate, t.gate), p.set(Slot::skip, t.skip);
    p.set(Slot::dx, out[0]), p.set(Slot::dweight, out[1]), p.set(Slot::dbias, out[2]);
    p.set(Slot::dgate, out[3]), p.set(Slot::dskip, out[4]);
    carry_out("normkit::norm_backward", **known, p, t.x);
    return true;
  }

 private:
  // Hooks of autograd may return a saved tensor in another dtype.
  static bool is_still(const Tensor& saved, const Like& parameter) {
    return !saved.defined() || saved.scalar_type() == parameter.asked();
  }

  // False where Python has given up the plan meanwhile.
  bool learn(const Key& key, Gradients& out) const {
    const pybind11::gil_scoped_acquire lock;
    const auto dtype = [](const Like& parameter) {
      return parameter.exists ? pybind11::reinterpret_borrow<pybind11::object>(
                                    reinterpret_cast<PyObject*>(torch::getTHPDtype(parameter.dtype)))
                              : pybind11::none();
    };
    const Extras& e = node.extras;
    const pybind11::object answer = ask_python(
        LEARNT_IN, "norm_backward",
        pybind11::make_tuple(node.number, wrapped(t.dy), wrapped(t.x), wrapped(t.weight), wrapped(t.bias),
                             wrapped(t.mean), wrapped(t.std), wrapped(t.dsum), wrapped(t.gate), wrapped(t.skip),
                             node.eps, node.center, int(e.activation), int(e.gate_activation), e.gate_first,
                             node.fixed, want, dtype(node.weight_like), dtype(node.bias_like), node.length,
                             node.zero_centered));
    if (answer.is_none()) return false;
    const auto got = answer.cast<pybind11::tuple>();
    for (size_t i = 0; i < out.size(); ++i)
      if (want[i]) out[i] = unwrapped(got[i]);
    recipes.keep(key, recipe_of(got[out.size()]));
    return true;
  }
};

}  // namespace
