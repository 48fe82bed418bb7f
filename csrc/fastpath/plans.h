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

// In place of the dimensions over which weight and bias vary: the features of the region, whichever those are.
constexpr int64_t FEATURES = -1;

// A region on sizes and strides, known once Python has checked and planned it. `varying`: the dimensions over which
// weight and bias vary, as bits, and whether those are the features. On a GPU `number` is what Python calls its plan
// by; on a CPU it is -1.
struct Known {
  PyObject* pattern;
  at::DimVector sizes, strides;
  int64_t varying;
  bool over_features;
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
const Known* known_of(const Tensor& x, PyObject* pattern, int64_t varying) {
  const auto [begin, end] = known_plans.equal_range(hash_of(pattern, x.sizes(), x.strides()));
  for (auto it = begin; it != end; ++it) {
    const Known& k = it->second;
    if (x.sizes() == k.sizes && x.strides() == k.strides && (k.number >= 0) == on_gpu(x) &&
        (varying == FEATURES ? k.over_features : varying == k.varying) &&
        (pattern == k.pattern || PyUnicode_Compare(pattern, k.pattern) == 0))
      return &k;
  }
  return nullptr;
}

// Given (pattern, sizes, strides, varying, over_features). Returns whether all plans that were known before are given
// up, for want of room.
bool keep_plan(PyObject* const* args, const View& view, int64_t number) {
  const auto numbers = [](PyObject* tuple) {
    at::DimVector out;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i)
      out.push_back(PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i)));
    return out;
  };
  const bool full = known_plans.size() >= MOST;
  if (full) forget_plans(false);
  Known k{args[0], numbers(args[1]), numbers(args[2]), PyLong_AsLongLong(args[3]), args[4] == Py_True, view, number};
  const size_t hash = hash_of(k.pattern, k.sizes, k.strides);
  if (PyErr_Occurred()) throw python_error();
  Py_INCREF(k.pattern);
  known_plans.emplace(hash, std::move(k));
  return full;
}

}  // namespace
