// The plans that the fast path knows: each has passed all checks once, in Python.
#pragma once
#include <Python.h>

#include <string>
#include <unordered_map>

#include "fastpath/kernels.h"
#include "fastpath/tensors.h"

namespace {

// The kernels' library, once Python has connected it.
const normkit::FastPathKernels* library = nullptr;

// A region on sizes and strides, known once Python has checked and planned it. On a GPU `number` is what Python calls
// its plan by; on a CPU it is -1.
struct Known {
  PyObject* pattern;
  at::DimVector sizes, strides;
  View view;
  int64_t number;
};
std::unordered_multimap<size_t, Known> known_plans;
constexpr size_t MOST = 4096;

void forget_plans(bool only_on_gpu) {
  std::erase_if(known_plans, [&](const auto& entry) {
    const bool goes = !only_on_gpu || entry.second.number >= 0;
    if (goes) Py_DECREF(entry.second.pattern);
    return goes;
  });
}

size_t hash_of(PyObject* pattern, at::IntArrayRef sizes, at::IntArrayRef strides) {
  size_t h = size_t(PyObject_Hash(pattern));
  for (const at::IntArrayRef& numbers : {sizes, strides})
    for (const int64_t n : numbers) h = (h ^ size_t(n)) * 0x9E3779B97F4A7C15ull;
  return h;
}
const Known* known_of(const Tensor& x, PyObject* pattern) {
  const auto [begin, end] = known_plans.equal_range(hash_of(pattern, x.sizes(), x.strides()));
  for (auto it = begin; it != end; ++it) {
    const Known& k = it->second;
    if (x.sizes() == k.sizes && x.strides() == k.strides && (k.number >= 0) == on_gpu(x) &&
        (pattern == k.pattern || PyUnicode_Compare(pattern, k.pattern) == 0))
      return &k;
  }
  return nullptr;
}

// Whether all plans that were known before are given up, for want of room.
bool keep_plan(PyObject* pattern, PyObject* sizes, PyObject* strides, const View& view, int64_t number) {
  const auto numbers = [](PyObject* tuple) {
    at::DimVector out;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i)
      out.push_back(PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i)));
    return out;
  };
  const bool full = known_plans.size() >= MOST;
  if (full) forget_plans(false);
  Known k{pattern, numbers(sizes), numbers(strides), view, number};
  const size_t hash = hash_of(k.pattern, k.sizes, k.strides);
  if (PyErr_Occurred()) throw python_error();
  Py_INCREF(k.pattern);
  known_plans.emplace(hash, std::move(k));
  return full;
}

}  // namespace
