// A backward pass on a GPU: by its recipe, or by Python, which writes the recipe down.
#pragma once
#include <torch/csrc/DynamicTypes.h>

#include "fastpath/gpu/forward.h"

namespace {

using Tensors3 = std::array<Tensor, 3>;

// The gradient of one call; tensors as autograd has saved them, dy and dsum in x's strides.
struct GpuBackward {
  int64_t plan;
  View view;
  double eps;
  bool center, fixed, length;
  int activation;
  Tensor dy, x, weight, bias, mean, std, dsum;
  std::optional<at::ScalarType> weight_dtype, bias_dtype;  // those of the gradients
  std::array<bool, 3> want;
  bool zero_centered;

  // Hooks of autograd may return a saved tensor in another dtype.
  static bool is_still(const Tensor& saved, std::optional<at::ScalarType> dtype) {
    return !saved.defined() || saved.scalar_type() == dtype;
  }

  // False where Python has to take the call.
  bool run(Tensors3& out) {
    if (!is_current(x) || !are_aligned({&dy, &x, &weight, &bias, &mean, &std, &dsum}) ||
        !is_readable(weight, x, length) || !is_readable(bias, x, false) || !is_still(weight, weight_dtype) ||
        !is_still(bias, bias_dtype))
      return false;
    const Key key = key_of(plan, eps, x, weight_dtype, bias_dtype, activation,
                           {true, center, dsum.defined(), fixed, want[0], want[1], want[2], length, weight.defined(),
                            bias.defined(), zero_centered});
    const auto known = recipes.find(key);
    if (known && !*known) return false;
    if (!known) return learn(key, out);
    if (want[0]) out[0] = like(x, view);
    if (want[1]) out[1] = room(x, {view.weights()}, {1}, (*known)->dweight);
    if (want[2]) out[2] = room(x, {view.weights()}, {1}, (*known)->dbias);
    Pointers p;
    p.set(Slot::dy, dy), p.set(Slot::x, x), p.set(Slot::weight, weight), p.set(Slot::bias, bias);
    p.set(Slot::mean, mean), p.set(Slot::std, std), p.set(Slot::residual, dsum);
    p.set(Slot::dx, out[0]), p.set(Slot::dweight, out[1]), p.set(Slot::dbias, out[2]);
    carry_out("normkit::norm_backward", **known, p, x);
    return true;
  }

 private:
  // False where Python has given up the plan meanwhile.
  bool learn(const Key& key, Tensors3& out) const {
    const pybind11::gil_scoped_acquire lock;
    const auto dtype = [](std::optional<at::ScalarType> type) {
      return type ? pybind11::reinterpret_borrow<pybind11::object>(
                        reinterpret_cast<PyObject*>(torch::getTHPDtype(*type)))
                  : pybind11::none();
    };
    const pybind11::object answer = ask_python(
        LEARNT_IN, "norm_backward",
        pybind11::make_tuple(plan, wrapped(dy), wrapped(x), wrapped(weight), wrapped(bias), wrapped(mean), wrapped(std),
                             wrapped(dsum), eps, center, activation, fixed, want[0], want[1], want[2],
                             dtype(weight_dtype), dtype(bias_dtype), length, zero_centered));
    if (answer.is_none()) return false;
    const auto got = answer.cast<pybind11::tuple>();
    for (size_t i = 0; i < 3; ++i)
      if (want[i]) out[i] = unwrapped(got[i]);
    recipes.keep(key, recipe_of(got[3]));
    return true;
  }
};

}  // namespace
