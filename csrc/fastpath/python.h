// Calls of normkit's functions in Python, from threads that may not hold Python's lock.
#pragma once
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include "fastpath/tensors.h"

namespace {

pybind11::object wrapped(const Tensor& t) {
  return pybind11::reinterpret_steal<pybind11::object>(THPVariable_Wrap(t));
}
Tensor unwrapped(const pybind11::handle& o) { return o.is_none() ? Tensor() : THPVariable_Unpack(o.ptr()); }

// The caller holds Python's lock.
pybind11::object ask_python(const char* module, const char* function, const pybind11::tuple& arguments) {
  PyObject* out = nullptr;
  const auto python = pybind11::reinterpret_steal<pybind11::object>(PyImport_ImportModule(module));
  if (python) {
    const auto f = pybind11::reinterpret_steal<pybind11::object>(PyObject_GetAttrString(python.ptr(), function));
    if (f) out = PyObject_CallObject(f.ptr(), arguments.ptr());
  }
  if (!out) {
    python_error error;
    error.persist();
    throw std::move(error);
  }
  return pybind11::reinterpret_steal<pybind11::object>(out);
}

}  // namespace
