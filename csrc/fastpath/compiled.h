// Calls in graphs of torch.compile for a CPU: bound to one plan when a graph is loaded, and then called with tensors
// alone. The generated code of a graph calls them in place of the operators (kernels/traced/entry.py).
#pragma once
#include <torch/csrc/Dtype.h>

#include <memory>

#include "fastpath/backward.h"

namespace {

// The arguments of bind_forward and bind_backward, in their order.
enum InBinding { PLAN, SIZES, STRIDES, DTYPE, B_EPS, FLAGS, B_ACTIVATION, B_GATE_ACTIVATION, B_GATE_FIRST, FIXED, WANTED,
                 BY_OPERATOR };

// A call without its tensors. Tensors that do not suit it, or that something watches, go to `by_operator`, a function
// of Python with the same arguments.
struct Binding : Facts {
  at::DimVector sizes;
  at::ScalarType dtype = at::kFloat;
  int64_t wanted = 0;  // forward: 1 for the moments; backward: a bit for each gradient
  PyObject* by_operator = nullptr;

  bool suits(const Tensor& x) const {
    return x.scalar_type() == dtype && x.sizes() == sizes && x.strides() == strides;
  }
  bool is_parameter(const Tensor& t, const Tensor& x) const {
    return !t.defined() || (t.is_contiguous() && t.numel() == view.weights() &&
                            t.element_size() <= (x.scalar_type() == at::kDouble ? 8 : 4));
  }
  bool is_moment(const Tensor& t, int64_t n, const Tensor& x) const {
    return t.defined() && t.numel() == n && t.is_contiguous() && t.scalar_type() == arithmetic_of(x);
  }
  bool is_mean(const Tensor& t, const Tensor& x) const {
    return center ? is_moment(t, view.cells(), x) : !t.defined() || is_moment(t, t.numel(), x);
  }
  bool is_like_result(const Tensor& t, const Tensor& x) const {
    return !t.defined() ||
           (t.scalar_type() == dtype && t.sizes() == sizes && lies_like(t, x, view));
  }
};

const char* const BINDING = "normkit.Binding";
const Binding& binding_of(PyObject* capsule) {
  return *static_cast<const Binding*>(PyCapsule_GetPointer(capsule, BINDING));
}
PyObject* ask_operator(const Binding& b, PyObject* const* args, Py_ssize_t n) {
  return PyObject_Vectorcall(b.by_operator, args, size_t(n), nullptr);
}
template <size_t N>
bool take_all(PyObject* const* args, Py_ssize_t n, std::array<Tensor, N>& out) {
  if (n != Py_ssize_t(N) || is_watched()) return false;
  for (size_t i = 0; i < N; ++i)
    if (!take(args[i], out[i])) return false;
  return true;
}
// A tuple of tensors, None in place of undefined ones.
template <size_t N>
PyObject* tuple_of(std::array<Tensor, N>& tensors) {
  PyObject* out = PyTuple_New(N);
  for (size_t i = 0; out && i < N; ++i) {
    PyObject* item = tensors[i].defined() ? THPVariable_Wrap(std::move(tensors[i])) : Py_NewRef(Py_None);
    if (!item) Py_CLEAR(out);
    else PyTuple_SET_ITEM(out, Py_ssize_t(i), item);
  }
  return out;
}

// (x, weight, bias, mean, var, residual, gate, skip) -> (y, sum, mean, std)
PyObject* run_forward(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  HANDLE_TH_ERRORS
  const Binding& b = binding_of(self);
  std::array<Tensor, 8> t;
  if (!take_all(args, n, t)) return ask_operator(b, args, n);
  auto& [x, weight, bias, mean, var, residual, gate, skip] = t;
  const int64_t cells = b.view.cells();
  if (!x.defined() || !b.suits(x) || !b.is_parameter(weight, x) || !b.is_parameter(bias, x) ||
      (b.fixed && !(b.is_mean(mean, x) && b.is_moment(var, cells, x))) || !b.is_like_result(residual, x) ||
      !b.is_like_result(gate, x) || !b.is_like_result(skip, x))
    return ask_operator(b, args, n);
  Call c;
  c.x = std::move(x), c.weight = std::move(weight), c.bias = std::move(bias);
  c.view = b.view, c.eps = b.eps, c.center = b.center, c.fixed = b.fixed;
  c.zero_centered = b.zero_centered, c.cast_first = b.cast_first;
  c.extras = b.extras;
  c.extras.residual = std::move(residual), c.extras.gate = std::move(gate), c.extras.skip = std::move(skip);
  std::array<Tensor, 4> out;
  Tensor std;
  if (!b.center && b.fixed) mean = Tensor();
  if (b.fixed) {
    std = root_of(var, b.eps);
  } else if (b.wanted) {
    mean = fresh(c.x, b.center ? cells : 0), std = fresh(c.x, cells);
  } else {
    mean = Tensor();
  }
  if (c.extras.residual.defined()) out[1] = like(c.x, c.view);
  out[0] = c.run(mean, std, out[1]);
  if (!b.fixed && b.wanted) out[2] = std::move(mean), out[3] = std::move(std);
  return tuple_of(out);
  END_HANDLE_TH_ERRORS
}

// (dy, x, weight, bias, mean, std or var, dsum, gate, skip) -> (dx, dweight, dbias, dgate, dskip)
PyObject* run_backward_bound(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  HANDLE_TH_ERRORS
  const Binding& b = binding_of(self);
  std::array<Tensor, 9> t;
  if (!take_all(args, n, t)) return ask_operator(b, args, n);
  auto& [dy, x, weight, bias, mean, spread, dsum, gate, skip] = t;
  if (!x.defined() || !b.suits(x) || !dy.defined() || !b.is_parameter(weight, x) || !b.is_parameter(bias, x) ||
      !b.is_mean(mean, x) || !b.is_moment(spread, b.view.cells(), x))
    return ask_operator(b, args, n);
  for (const Tensor* o : {&dy, &dsum, &gate, &skip})
    if (!b.is_like_result(*o, x)) return ask_operator(b, args, n);
  Wanted want;
  for (size_t i = 0; i < want.size(); ++i) want[i] = b.wanted >> i & 1;
  RECORD_FUNCTION("normkit::norm_backward", std::vector<c10::IValue>{x});
  const bool is_long = x.numel() >= LONG;
  const Saved saved{.dy = std::move(dy), .x = std::move(x), .weight = std::move(weight), .bias = std::move(bias),
                    .mean = std::move(mean), .std = std::move(spread), .dsum = std::move(dsum), .mask = {},
                    .gate = std::move(gate), .skip = std::move(skip)};
  Gradients out;
  if (is_long) {
    const pybind11::gil_scoped_release others;
    run_backward(b, saved, want, out);
  } else {
    run_backward(b, saved, want, out);
  }
  for (size_t i = 0; i < want.size(); ++i)
    if (!want[i]) out[i] = Tensor();
  return tuple_of(out);
  END_HANDLE_TH_ERRORS
}

PyMethodDef bound_forward = {
    "norm", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(run_forward)), METH_FASTCALL, nullptr};
PyMethodDef bound_backward = {
    "norm_backward", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(run_backward_bound)), METH_FASTCALL,
    nullptr};

// The function of a call in a graph; None where the plan is not known.
PyObject* bind(PyMethodDef* method, PyObject* const* args) {
  View view;
  if (!library || !library->plan(PyLong_AsLongLong(args[PLAN]), &view)) Py_RETURN_NONE;
  auto b = std::make_unique<Binding>();
  const auto numbers = [](PyObject* tuple) {
    at::DimVector out;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i)
      out.push_back(PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i)));
    return out;
  };
  const int64_t flags = PyLong_AsLongLong(args[FLAGS]);
  b->view = view;
  b->sizes = numbers(args[SIZES]), b->strides = numbers(args[STRIDES]);
  b->dtype = reinterpret_cast<THPDtype*>(args[DTYPE])->scalar_type;
  b->eps = PyFloat_AsDouble(args[B_EPS]);
  b->center = flags & 1, b->zero_centered = flags & 2, b->cast_first = flags & 4;
  b->extras.activation = Activation(PyLong_AsLongLong(args[B_ACTIVATION]));
  b->extras.gate_activation = Activation(PyLong_AsLongLong(args[B_GATE_ACTIVATION]));
  b->extras.gate_first = args[B_GATE_FIRST] == Py_True;
  b->fixed = args[FIXED] == Py_True;
  b->wanted = PyLong_AsLongLong(args[WANTED]);
  if (PyErr_Occurred()) return nullptr;
  b->by_operator = Py_NewRef(args[BY_OPERATOR]);
  const auto destroy = [](PyObject* capsule) {
    const auto* gone = static_cast<Binding*>(PyCapsule_GetPointer(capsule, BINDING));
    Py_DECREF(gone->by_operator);
    delete gone;
  };
  PyObject* capsule = PyCapsule_New(b.get(), BINDING, destroy);
  if (!capsule) return Py_DECREF(b->by_operator), nullptr;
  b.release();
  PyObject* function = PyCFunction_New(method, capsule);
  Py_DECREF(capsule);
  return function;
}

// bind_forward(plan, sizes, strides, dtype, eps, flags, activation, gate_activation, gate_first, fixed, wanted,
// by_operator) -> run_forward of such a call
PyObject* bind_forward(PyObject*, PyObject* const* args, Py_ssize_t) {
  HANDLE_TH_ERRORS
  return bind(&bound_forward, args);
  END_HANDLE_TH_ERRORS
}
// bind_backward: the same with run_backward_bound
PyObject* bind_backward(PyObject*, PyObject* const* args, Py_ssize_t) {
  HANDLE_TH_ERRORS
  return bind(&bound_backward, args);
  END_HANDLE_TH_ERRORS
}

}  // namespace
