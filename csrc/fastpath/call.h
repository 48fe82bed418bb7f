// One call: its arguments as Python gives them, checked; and the kernel's run of it.
#pragma once
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "fastpath/plans.h"

namespace {

using normkit::Activation;
using normkit::Forward;
using normkit::Fusion;

// Shorter calls end before another thread could take the interpreter.
constexpr int64_t LONG = 32768;

// The arguments of `norm` in module.cpp, in their order, and the items of those that are tuples, as they are in
// functional/call/spec.py.
enum Argument { SPEC, PATTERN, X, WEIGHT, BIAS, EPS, FUSED, SIZE, STATISTICS };
enum InSpec {
  NAME, CHECK, CENTER, OVER_LAST, CHECKED_BEFORE, KEEPS_VECTOR, LENIENT, CAST_FIRST, ZERO_CENTERED
};
enum InStatistics { RUNNING_MEAN, RUNNING_VAR, MOMENTUM };
// Those from GATE on are there if the method takes gates; its weight and bias may then vary over any dimensions.
enum InFused {
  MASK, LENGTHS, RESIDUAL, RETURN_RESIDUAL, ACTIVATION, GATE, SKIP, GATE_ACTIVATION, GATE_FIRST
};

// The fused part of a call: padding, a residual, a gate, a skip, an activation.
struct Extras {
  Tensor residual, mask, counts, gate, skip;
  Activation activation = Activation::none, gate_activation = Activation::none;
  bool gate_first = false;
  int64_t channels = 1, inner = 1;  // elements that share a byte of the mask, and the distance between them

  // Both activations, in a byte.
  int activations() const { return int(activation) | int(gate_activation) << 4; }
  bool any() const {
    return residual.defined() || mask.defined() || gate.defined() || skip.defined() || activation != Activation::none;
  }
  Fusion fusion() const {
    Fusion f;
    f.activation = activation;
    f.mask = static_cast<const uint8_t*>(pointer(mask));
    f.counts = counts.defined() ? counts.const_data_ptr<double>() : nullptr;
    f.channels = channels;
    f.inner = inner;
    f.gate = pointer(gate);
    f.skip = pointer(skip);
    f.gate_activation = gate_activation;
    f.gate_first = gate_first;
    return f;
  }
};

// Statistics of the channels: given ones that normalize, or running ones that the call updates.
struct Statistics {
  Tensor mean, var;
  double momentum = 0;
  bool given = false, updated = false;
};

struct Call {
  Tensor x, weight, bias;
  Extras extras;
  View view;  // a copy, because plans may be forgotten while other threads run
  int64_t number = -1;  // of the plan on a GPU
  int64_t varying = FEATURES;  // the dimensions of weight and bias, as bits
  PyObject* pattern = nullptr;
  double eps = 0;
  bool center = true, fixed = false, length = false, zero_centered = false, cast_first = false;

  bool is_followed() const {
    return at::GradMode::is_enabled() &&
           (has_gradient(x) || has_gradient(weight) || has_gradient(bias) || has_gradient(extras.residual) ||
            has_gradient(extras.gate) || has_gradient(extras.skip));
  }

  // y. Writes the moments into `mean` and `std` unless they are given (`fixed`), and x + residual into `sum`.
  Tensor run(const Tensor& mean, const Tensor& std, const Tensor& sum) const {
    Tensor y = like(x, view);
    const auto place = [](const Tensor& t) {
      return t.defined() && t.numel() ? const_cast<void*>(t.const_data_ptr()) : nullptr;
    };
    RECORD_FUNCTION("normkit::norm", std::vector<c10::IValue>{x});
    Forward f{.x = x.const_data_ptr(), .y = y.mutable_data_ptr(), .weight = parameter(weight),
              .bias = parameter(bias), .mean = place(mean), .std = place(std), .eps = fixed ? 0 : eps,
              .center = center, .fixed = fixed, .length = length, .zero_centered = zero_centered,
              .cast_first = cast_first};
    Fusion fusion;
    if (extras.any()) {
      fusion = extras.fusion();
      fusion.residual = pointer(extras.residual);
      fusion.sum = sum.defined() ? sum.mutable_data_ptr() : nullptr;
      f.fused = &fusion;
    }
    const auto go = [&] { library->kernels->forward(storage_of(x), view, f, library->pool(x.numel())); };
    if (x.numel() < LONG) return go(), y;
    const pybind11::gil_scoped_release others;
    return go(), y;
  }
};

// Reading arguments: each function returns false where Python has to take the call -----------------------------

bool take_tensors(Call& c, PyObject* x, PyObject* weight, PyObject* bias) {
  return !is_watched() && x != Py_None && take(x, c.x) && take(weight, c.weight) && take(bias, c.bias);
}
bool take_plan(Call& c, PyObject* pattern) {
  c.pattern = pattern;
  const Known* known = known_of(c.x, c.pattern, c.varying);
  return known && (c.view = known->view, c.number = known->number, true);
}
// Weight and bias with the dimensions of x vary over others than the features; with its size they are gate and skip.
bool take_modulation(Call& c, PyObject* fused, PyObject* last) {
  const int64_t dims = c.x.dim();
  const auto is_wide = [&](const Tensor& t) { return t.defined() && t.dim() == dims; };
  if (dims < 2 || (!is_wide(c.weight) && !is_wide(c.bias)) || (last != Py_None && last != Py_True &&
      PySequence_Check(last) && PySequence_Size(last) == dims))
    return true;
  if (!PyTuple_CheckExact(fused) || PyTuple_GET_SIZE(fused) <= GATE || last == Py_True) return false;
  const Tensor& t = c.weight.defined() ? c.weight : c.bias;
  if (c.bias.defined() && c.bias.sizes() != t.sizes()) return false;
  if (t.numel() == c.x.numel()) {
    if (c.weight.defined()) {
      c.extras.gate = std::move(c.weight);
      c.extras.gate_activation = c.zero_centered ? Activation::plus_one : Activation::none;
      c.zero_centered = false;
    }
    c.extras.skip = std::move(c.bias);
    c.weight = c.bias = Tensor();
    return true;
  }
  if (!c.weight.defined()) return false;
  c.varying = 0;
  for (int64_t d = 0; d < dims; ++d)
    if (t.size(d) != 1) c.varying |= int64_t(1) << d;
  return true;
}
bool take_eps(Call& c, PyObject* eps) {
  if (eps == Py_None) {
    c.eps = c.x.scalar_type() == at::kDouble ? 0x1p-52 : 0x1p-23;
  } else {
    c.eps = PyFloat_AsDouble(eps);
    if (PyErr_Occurred()) PyErr_Clear(), c.eps = -1;
  }
  return c.eps >= 0;
}

// Whether weight and bias that vary over any dimensions broadcast to x; they have the same sizes.
bool fits_elsewhere(const Call& c) {
  for (int64_t d = 0; d < c.x.dim(); ++d)
    if (c.weight.size(d) != 1 && c.weight.size(d) != c.x.size(d)) return false;
  return fits(c.weight, c.x, c.weight.sizes()) && fits(c.bias, c.x, c.weight.sizes());
}

// Whether weight and bias have the shape of the channels (`last` is None), or of the last dimensions (their sizes); or
// the caller has checked them (True), and they have as many values as the plan says.
bool fits_features(const Call& c, PyObject* last) {
  if (last == Py_True) {
    const auto covers = [&](const Tensor& t) {
      return !t.defined() || (t.numel() == c.view.weights() && fits(t, c.x, t.sizes()));
    };
    return covers(c.weight) && covers(c.bias);
  }
  at::IntArrayRef sizes = c.x.sizes();
  if (last == Py_None) {
    if (sizes.size() < 2) return false;
    sizes = sizes.slice(1, 1);
  } else {
    if (!PyTuple_Check(last) && !PyList_Check(last)) return false;
    const size_t n = size_t(PySequence_Fast_GET_SIZE(last));
    if (n > sizes.size()) return false;
    sizes = sizes.slice(sizes.size() - n);
    for (size_t i = 0; i < n; ++i) {
      PyObject* size = PySequence_Fast_GET_ITEM(last, Py_ssize_t(i));
      if (!PyLong_CheckExact(size) || PyLong_AsLongLong(size) != sizes[i]) return PyErr_Clear(), false;
    }
  }
  return fits(c.weight, c.x, sizes) && fits(c.bias, c.x, sizes);
}

// Without a momentum the statistics are given, else the call updates them, unless activation checkpointing computes it
// again inside a backward pass.
bool take_statistics(Call& c, PyObject* tuple, Statistics& s) {
  if (!PyTuple_CheckExact(tuple)) return false;
  const auto item = [&](InStatistics i) { return PyTuple_GET_ITEM(tuple, Py_ssize_t(i)); };
  if (item(RUNNING_MEAN) == Py_None && item(RUNNING_VAR) == Py_None) return true;
  const auto channels = c.x.sizes().slice(1, 1);
  if (!take(item(RUNNING_MEAN), s.mean) || !take(item(RUNNING_VAR), s.var) || !s.mean.defined() || !s.var.defined() ||
      !is_statistic(s.mean, c.x, channels) || !is_statistic(s.var, c.x, channels))
    return false;
  c.fixed = s.given = item(MOMENTUM) == Py_None;
  if (s.given) return true;
  s.momentum = PyFloat_AsDouble(item(MOMENTUM));
  if (PyErr_Occurred()) return PyErr_Clear(), false;
  s.updated = torch::autograd::get_current_graph_task_id() == -1;
  return true;
}

bool activation_of(PyObject* o, Activation& out) {
  static constexpr const char* names[] = {"", "relu", "leaky_relu", "silu", "gelu", "gelu_tanh", "sigmoid", "tanh"};
  if (o == Py_None) return true;
  if (!PyUnicode_CheckExact(o)) return false;
  for (int i = 1; i < int(std::size(names)); ++i)
    if (PyUnicode_CompareWithASCIIString(o, names[i]) == 0) return out = Activation(i), true;
  return false;
}

// How many of n bytes are not 0, eight at a time.
int64_t count_valid(const uint8_t* bytes, int64_t n) {
  constexpr uint64_t low = 0x7F7F7F7F7F7F7F7Full, ones = 0x0101010101010101ull;
  int64_t count = 0, i = 0;
  for (; i + 8 <= n; i += 8) {
    uint64_t w;
    std::memcpy(&w, bytes + i, 8);
    count += int64_t((((((w & low) + low) | w) >> 7 & ones) * ones) >> 56);
  }
  for (; i < n; ++i) count += bytes[i] != 0;
  return count;
}

// The valid elements of each cell, for the ways that a mask without channels can lie in a plan; false for any other.
bool count_cells(const View& v, const uint8_t* valid, int64_t channels, int64_t inner, double* counts) {
  if (inner == 1) {  // every row of the view is one place
    if (v.width() != channels) return false;
    for (int64_t block = 0; block < v.k0; ++block) {
      const double count = double(count_valid(valid + block * v.r0, v.r0) * v.r1);
      for (int64_t k = 0; k < v.k1; ++k) counts[block * v.k1 + k] = count;
    }
    return true;
  }
  if (v.r1 == 1 && v.k1 == inner && v.r0 == channels) {  // all channels of a place are one cell
    for (int64_t cell = 0; cell < v.cells(); ++cell) counts[cell] = valid[cell] ? double(channels) : 0.0;
    return true;
  }
  const int64_t sample = channels * inner;
  if (v.r1 % inner || sample % v.r1) return false;
  std::fill(counts, counts + v.cells(), 0.0);
  double count = 0;
  for (int64_t row = 0; row < v.rows(); ++row) {  // some whole channels of one sample
    const int64_t at = row * v.r1;
    if (at % sample == 0) count = double(count_valid(valid + at / sample * inner, inner) * (v.r1 / inner));
    counts[v.cell_of_row(row)] += count;
  }
  return true;
}

// A mask of exactly the input's sizes without the channels, which are dimension 1, or the `last` ones if that is not 0.
bool take_mask(PyObject* o, const Tensor& x, int64_t last, const View& v, Extras& e) {
  if (o == Py_None) return true;
  if (!THPVariable_CheckExact(o)) return false;
  e.mask = THPVariable_Unpack(o);
  if (!is_plain(e.mask) || e.mask.scalar_type() != at::kBool || !e.mask.is_contiguous() || x.dim() < 2) return false;
  at::DimVector places(x.sizes());
  if (last) places.resize(places.size() - size_t(last));
  else places.erase(places.begin() + 1);
  if (e.mask.sizes() != places || !e.mask.numel()) return false;
  e.channels = x.numel() / e.mask.numel();
  if (x.is_contiguous()) {
    e.inner = last ? 1 : e.mask.numel() / x.size(0);
  } else {
    // Channels last; other layouts are left to Python.
    if (last || x.stride(1) != 1) return false;
    for (int64_t d = x.dim() - 1, step = x.size(1); d >= 0; --d) {
      if (d == 1) continue;
      if (x.stride(d) != step) return false;
      step *= x.size(d);
    }
    e.inner = 1;
  }
  e.counts = at::detail::empty_cpu({v.cells()}, at::kDouble);
  return count_cells(v, static_cast<const uint8_t*>(e.mask.const_data_ptr()), e.channels, e.inner,
                     e.counts.mutable_data_ptr<double>());
}

// `pair`: whether the sum is to be returned as well.
bool take_extras(Call& c, PyObject* tuple, PyObject* last, bool& pair) {
  if (!PyTuple_CheckExact(tuple)) return false;
  const auto item = [&](InFused i) { return PyTuple_GET_ITEM(tuple, Py_ssize_t(i)); };
  pair = item(RETURN_RESIDUAL) != Py_False;
  Extras& e = c.extras;
  const bool gates = PyTuple_GET_SIZE(tuple) > GATE;
  const bool gated = gates && (item(GATE) != Py_None || item(SKIP) != Py_None || item(GATE_ACTIVATION) != Py_None ||
                               item(GATE_FIRST) != Py_False);
  const bool modulated = e.gate.defined() || e.skip.defined();
  if (!pair && !gated && !modulated && item(MASK) == Py_None && item(LENGTHS) == Py_None &&
      item(RESIDUAL) == Py_None && item(ACTIVATION) == Py_None)
    return true;
  // A mask on a GPU is Python's: what counts its elements here reads memory of the CPU. So is one with a gate, whose
  // padding has no gradient.
  if (item(MASK) != Py_None && (c.number >= 0 || gated || modulated || c.varying != FEATURES)) return false;
  if (item(LENGTHS) != Py_None || last == Py_True || !PyBool_Check(item(RETURN_RESIDUAL)) ||
      !activation_of(item(ACTIVATION), e.activation) || !take(item(RESIDUAL), e.residual))
    return false;
  if (gated && (modulated || !PyBool_Check(item(GATE_FIRST)) || !take(item(GATE), e.gate) ||
                !take(item(SKIP), e.skip) || !activation_of(item(GATE_ACTIVATION), e.gate_activation)))
    return false;
  e.gate_first = gated && item(GATE_FIRST) == Py_True;
  // What is wrong, Python says.
  if (gated && !e.gate.defined() && (e.gate_first || e.gate_activation != Activation::none)) return false;
  if (e.gate_first && e.residual.defined()) return false;
  const auto same = [&](const Tensor& t) {
    return t.device() == c.x.device() && t.sizes() == c.x.sizes() && lies_like(t, c.x, c.view) &&
           t.scalar_type() == c.x.scalar_type();
  };
  for (const Tensor* t : {&e.residual, &e.gate, &e.skip})
    if (t->defined() && !same(*t)) return false;
  return take_mask(item(MASK), c.x, last == Py_None ? 0 : PySequence_Fast_GET_SIZE(last), c.view, e);
}

// The number of valid elements in each cell where all cells have the same; else -1.
int64_t common_count(const Call& c) {
  if (!c.extras.mask.defined()) return c.view.count();
  const double* counts = c.extras.counts.const_data_ptr<double>();
  for (int64_t i = 1; i < c.view.cells(); ++i)
    if (counts[i] != counts[0]) return -1;
  return int64_t(counts[0]);
}

// Channels whose running statistics no call has updated so far, because the new ones would not be finite.
std::atomic<int64_t> skipped_channels{0};

// Autograd has to see that the running statistics have changed.
void count_update(const Statistics& running) {
  for (const Tensor& t : {running.mean, running.var})
    if (!t.is_inference()) t.unsafeGetTensorImpl()->bump_version();
}

void update(const Statistics& running, const Tensor& mean, const Tensor& std, int64_t count) {
  const int64_t channels = running.mean.numel(), samples = mean.numel() / channels;
  const auto go = [&]<class T>(T) {
    skipped_channels +=
        move_running(running.mean.mutable_data_ptr<T>(), running.var.mutable_data_ptr<T>(), mean.const_data_ptr<T>(),
                     std.const_data_ptr<T>(), channels, samples, double(count), running.momentum);
  };
  if (mean.scalar_type() == at::kDouble) go(0.0);
  else go(0.0f);
  count_update(running);
}

}  // namespace
