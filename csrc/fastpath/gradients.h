// The shared part of the gradients of plain and of fused calls.
#pragma once
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include "fastpath/gpu/backward.h"
#include "fastpath/node.h"

namespace {

using normkit::Backward;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

struct Like {
  at::DimVector sizes;
  at::ScalarType dtype = at::kFloat;
  bool exists = false;

  void of(const Tensor& t) {
    if (t.defined()) sizes = t.sizes(), dtype = t.scalar_type(), exists = true;
  }
  std::optional<at::ScalarType> asked() const { return exists ? std::optional(dtype) : std::nullopt; }
  Tensor operator()(const Tensor& flat) const {
    const Tensor shaped = sizes.size() == 1 ? flat : flat.view(sizes);
    return shaped.scalar_type() == dtype ? shaped : shaped.to(dtype);
  }
};

// For second derivatives, batches of gradients and tracing, Python calls the operator. Tensors: dy, x, weight, bias,
// mean, std, dsum, mask; the arguments of Python's function are those of normkit::norm_backward, and zero_centered.
Tensors3 gradients_by_python(const char* module, const Tensor* const (&t)[8], const std::string& pattern, double eps,
                             bool center, int activation, bool fixed, const bool* want, bool zero_centered) {
  const pybind11::gil_scoped_acquire lock;
  const pybind11::object grads = ask_python(
      module, "gradients_of_fast_path",
      pybind11::make_tuple(wrapped(*t[0]), wrapped(*t[1]), wrapped(*t[2]), wrapped(*t[3]), pattern, eps, center,
                           wrapped(*t[4]), wrapped(*t[5]), wrapped(*t[6]), wrapped(*t[7]), activation, fixed, want[0],
                           want[1], want[2], zero_centered));
  Tensors3 out;
  for (size_t i = 0; i < 3; ++i)
    if (want[i]) out[i] = unwrapped(grads[pybind11::int_(i)]);
  return out;
}

// The facts of a call that every gradient keeps.
struct NormNode : torch::autograd::Node {
  View view;
  int64_t number = -1;  // of the plan on a GPU
  at::DimVector strides;
  Like weight_like, bias_like;
  std::string pattern;
  double eps = 0;
  bool center = true, fixed = false, zero_centered = false, cast_first = false;

  void set(const Call& c) {
    view = c.view;
    number = c.number;
    strides = c.x.strides();
    weight_like.of(c.weight);
    bias_like.of(c.bias);
    pattern = PyUnicode_AsUTF8(c.pattern);
    eps = c.eps;
    center = c.center;
    fixed = c.fixed;
    zero_centered = c.zero_centered, cast_first = c.cast_first;
  }
};

}  // namespace
