// The shared part of the gradients of plain and of fused calls.
#pragma once
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <array>

#include "fastpath/node.h"
#include "fastpath/call.h"

namespace {

using normkit::Backward;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

struct Like {
  at::DimVector sizes;
  at::ScalarType dtype = at::kFloat;

  void of(const Tensor& t) {
    if (t.defined()) sizes = t.sizes(), dtype = t.scalar_type();
  }
  Tensor operator()(const Tensor& flat) const {
    const Tensor shaped = sizes.size() == 1 ? flat : flat.view(sizes);
    return shaped.scalar_type() == dtype ? shaped : shaped.to(dtype);
  }
};

// For second derivatives, batches of gradients and tracing, Python calls the operator. Tensors: dy, x, weight, bias,
// mean, std, dsum, mask; the arguments of Python's function are those of normkit::norm_backward.
using Tensors3 = std::array<Tensor, 3>;
Tensors3 gradients_by_python(const char* module, const Tensor* const (&t)[8], const std::string& pattern, double eps,
                             bool center, int activation, bool fixed, const bool* want) {
  const pybind11::gil_scoped_acquire lock;
  const auto wrapped = [&](size_t i) { return pybind11::reinterpret_steal<pybind11::object>(THPVariable_Wrap(*t[i])); };
  const auto given = [](bool b) { return pybind11::bool_(b); };
  const pybind11::object python = pybind11::module_::import(module).attr("gradients_of_fast_path");
  const auto grads = pybind11::reinterpret_steal<pybind11::object>(PyObject_CallFunctionObjArgs(
      python.ptr(), wrapped(0).ptr(), wrapped(1).ptr(), wrapped(2).ptr(), wrapped(3).ptr(),
      pybind11::str(pattern).ptr(), pybind11::float_(eps).ptr(), given(center).ptr(), wrapped(4).ptr(),
      wrapped(5).ptr(), wrapped(6).ptr(), wrapped(7).ptr(), pybind11::int_(activation).ptr(), given(fixed).ptr(),
      given(want[0]).ptr(), given(want[1]).ptr(), given(want[2]).ptr(), nullptr));
  if (!grads) {
    python_error error;
    error.persist();
    throw std::move(error);
  }
  Tensors3 out;
  for (size_t i = 0; i < 3; ++i)
    if (want[i]) out[i] = THPVariable_Unpack(PyTuple_GET_ITEM(grads.ptr(), Py_ssize_t(i)));
  return out;
}

// The facts of a call that every gradient keeps.
struct NormNode : torch::autograd::Node {
  View view;
  at::DimVector strides;
  Like weight_like, bias_like;
  std::string pattern;
  double eps = 0;
  bool center = true, fixed = false;

  void set(const Call& c) {
    view = c.view;
    strides = c.x.strides();
    weight_like.of(c.weight);
    bias_like.of(c.bias);
    pattern = PyUnicode_AsUTF8(c.pattern);
    eps = c.eps;
    center = c.center;
    fixed = c.fixed;
  }
};

}  // namespace
