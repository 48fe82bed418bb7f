// The short way in for calls that fuse padding, a residual or an activation. A part of door.cpp, which alone includes it.
#pragma once
#include "kernel.h"

namespace {

using normkit::Activation;
using normkit::Fusion;

// What Python passes beside the arguments of a plain call, and how the kernels see it.
struct Extras {
  Tensor residual, mask, counts;
  Activation activation = Activation::none;
  int64_t channels = 1, inner = 1;
  bool return_residual = false;

  Fusion fusion() const {
    Fusion f;
    f.activation = activation;
    f.mask = static_cast<const uint8_t*>(pointer(mask));
    f.counts = counts.defined() ? counts.const_data_ptr<double>() : nullptr;
    f.channels = channels;
    f.inner = inner;
    return f;
  }
};

bool activation_of(PyObject* o, Activation& out) {
  static constexpr const char* names[] = {"", "relu", "leaky_relu", "silu", "gelu", "gelu_tanh", "sigmoid", "tanh"};
  if (o == Py_None) return true;
  if (!PyUnicode_CheckExact(o)) return false;
  for (int i = 1; i < int(std::size(names)); ++i)
    if (PyUnicode_CompareWithASCIIString(o, names[i]) == 0) return out = Activation(i), true;
  return false;
}

// How many of n bytes are not 0, eight at a time.
int64_t count_real(const uint8_t* bytes, int64_t n) {
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

// The real elements of each cell, for the ways that a mask without channels can lie in a plan; false for any other.
bool count_cells(const View& v, const uint8_t* real, int64_t channels, int64_t inner, double* counts) {
  if (inner == 1) {  // every row of the view is one place
    if (v.width() != channels) return false;
    for (int64_t block = 0; block < v.k0; ++block) {
      const double count = double(count_real(real + block * v.r0, v.r0) * v.r1);
      for (int64_t k = 0; k < v.k1; ++k) counts[block * v.k1 + k] = count;
    }
    return true;
  }
  if (v.r1 == 1 && v.k1 == inner && v.r0 == channels) {  // all channels of a place are one cell
    for (int64_t cell = 0; cell < v.cells(); ++cell) counts[cell] = real[cell] ? double(channels) : 0.0;
    return true;
  }
  const int64_t sample = channels * inner;
  if (v.r1 % inner || sample % v.r1) return false;
  std::fill(counts, counts + v.cells(), 0.0);
  double count = 0;
  for (int64_t row = 0; row < v.rows(); ++row) {  // some whole channels of one sample
    const int64_t at = row * v.r1;
    if (at % sample == 0) count = double(count_real(real + at / sample * inner, inner) * (v.r1 / inner));
    counts[v.cell_of_row(row)] += count;
  }
  return true;
}

// A mask of exactly the input's sizes without the channels, which are dimension 1 (`last` is none) or so many at the end.
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
    // Channels last, or nothing known here.
    if (last || x.stride(1) != 1) return false;
    for (int64_t d = x.dim() - 1, step = x.size(1); d >= 0; --d) {
      if (d == 1) continue;
      if (x.stride(d) != step) return false;
      step *= x.size(d);
    }
    e.inner = 1;
  }
  e.counts = at::detail::empty_cpu({v.cells()}, at::kDouble);
  return count_cells(v, static_cast<const uint8_t*>(e.mask.const_data_ptr()), e.channels, e.inner, e.counts.mutable_data_ptr<double>());
}

// False where a keyword is unknown or what it says is not plain.
bool take_extras(PyObject* dict, PyObject* last, const Call& c, Extras& e) {
  if (!PyDict_CheckExact(dict)) return false;
  PyObject *key, *value;
  for (Py_ssize_t i = 0; PyDict_Next(dict, &i, &key, &value);) {
    const auto is = [&](const char* name) { return PyUnicode_CompareWithASCIIString(key, name) == 0; };
    if (is("activation")) {
      if (!activation_of(value, e.activation)) return false;
    } else if (is("residual")) {
      if (!take(value, e.residual)) return false;
      if (e.residual.defined() && (e.residual.sizes() != c.x.sizes() || e.residual.strides() != c.x.strides() ||
                                   e.residual.scalar_type() != c.x.scalar_type()))
        return false;
    } else if (is("return_residual")) {
      if (!PyBool_Check(value)) return false;
      e.return_residual = value == Py_True;
    } else if (is("mask")) {
      if (!take_mask(value, c.x, last == Py_None ? 0 : PySequence_Fast_GET_SIZE(last), c.view, e)) return false;
    } else if (!is("lengths") || value != Py_None) {
      return false;
    }
  }
  return true;
}

// Outputs: y, and with a residual the sum. Inputs: x, residual, weight, bias.
struct FusedBackward final : torch::autograd::Node {
  SavedVariable x, mask, weight, bias, mean, dev;  // x: the sum where there is one; dev: as in NormalizeBackward
  Extras extras;                                   // without its tensors, but for the counts
  View view;
  at::DimVector strides;
  Like weight_like, bias_like;
  std::string pattern;
  double eps = 0;
  int64_t last = 0;  // dimensions of channels at the end; 0: dimension 1
  bool center = true, fixed = false, has_sum = false;

  std::string name() const override { return "NormkitFusedBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* saved : {&x, &mask, &weight, &bias, &mean, &dev}) saved->reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list out(4);
    const Tensor dsum = has_sum ? grads[1] : Tensor();
    bool want[4];
    for (size_t i = 0; i < 4; ++i) want[i] = task_should_compute_output(i);
    if (!grads[0].defined()) {
      if (want[0]) out[0] = dsum;
      if (want[1]) out[1] = dsum;
      return out;
    }
    Tensor x_ = has_sum ? x.unpack(pointer_to(this)) : x.unpack();
    const Tensor mask_ = mask.unpack(), weight_ = weight.unpack(), bias_ = bias.unpack(), mean_ = mean.unpack(), dev_ = dev.unpack();
    if (!(want[0] || want[1] || want[2] || want[3])) return out;
    const Tensor saved[] = {x_, mask_, weight_, bias_, mean_, dev_};
    Tensor dx;
    if (is_simple(grads[0], dsum, saved))
      run(grads[0], dsum, saved, want, dx, out);
    else
      ask_python(grads[0], dsum, saved, want, dx, out);
    if (want[0]) out[0] = dx;
    if (want[1]) out[1] = dx;
    if (want[2]) out[2] = weight_like(out[2]);
    if (want[3]) out[3] = bias_like(out[3]);
    return out;
  }

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    args.collect(x, has_sum);
    for (const SavedVariable* saved : {&mask, &weight, &bias, &mean, &dev}) args.collect(*saved, false);
    args.collect(pattern), args.collect(eps), args.collect(int64_t(extras.activation)), args.collect(last);
    args.collect(center), args.collect(fixed), args.collect(has_sum);
  }
  variable_list apply_with_saved(const variable_list& grads, torch::dynamo::autograd::SwapSavedVariables& swap) override {
    for (SavedVariable* saved : {&x, &mask, &weight, &bias, &mean, &dev}) swap.before(*saved);
    variable_list out = apply(variable_list(grads));
    for (SavedVariable* saved : {&x, &mask, &weight, &bias, &mean, &dev}) swap.after(*saved);
    return out;
  }

 private:
  bool is_simple(const Tensor& dy, const Tensor& dsum, const Tensor (&saved)[6]) const {
    const auto& [x_, mask_, weight_, bias_, mean_, dev_] = saved;
    const auto same = [&](const Tensor& t, int64_t n) {
      return is_plain(t) && t.numel() == n && t.is_contiguous() && t.scalar_type() == arithmetic_of(x_);
    };
    const auto gradient = [&](const Tensor& t) { return is_plain(t) && t.sizes() == x_.sizes() && t.scalar_type() == x_.scalar_type(); };
    const auto parameter = [&](const Tensor& t) {
      return !t.defined() || (is_plain(t) && t.is_contiguous() && t.numel() == view.period);
    };
    return !at::GradMode::is_enabled() && !is_watched() && is_plain(x_) && gradient(dy) && (!dsum.defined() || gradient(dsum)) &&
           x_.strides() == strides && x_.numel() == view.numel() && parameter(weight_) && parameter(bias_) &&
           (!mask_.defined() || (is_plain(mask_) && mask_.is_contiguous() && mask_.scalar_type() == at::kBool &&
                                 mask_.numel() * extras.channels == x_.numel())) &&
           same(mean_, center ? view.cells() : 0) && same(dev_, view.cells());
  }

  void run(const Tensor& dy, const Tensor& dsum, const Tensor (&saved)[6], const bool* want, Tensor& dx, variable_list& out) const {
    const auto& [x_, mask_, weight_, bias_, mean_, dev_] = saved;
    const auto laid = [&](const Tensor& t) { return !t.defined() || t.strides() == x_.strides() ? t : like(x_).copy_(t); };
    const Tensor std = fixed ? root_of(dev_, eps) : dev_;
    const Tensor g = laid(dy), more = laid(dsum), w = in_arithmetic(weight_, x_), b = in_arithmetic(bias_, x_);
    dx = like(x_);  // also where nobody wants it: a place for dy times the activation's slope
    for (const size_t i : {size_t(2), size_t(3)})
      if (want[i]) out[i] = fresh(x_, view.period);
    Fusion fusion = extras.fusion();
    fusion.mask = static_cast<const uint8_t*>(pointer(mask_));
    fusion.residual = pointer(more);
    fusion.bias = pointer(b);
    fusion.backward = true;
    const auto place = [](const Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; };
    Backward f{g.const_data_ptr(), x_.const_data_ptr(), pointer(w), mean_.const_data_ptr(), std.const_data_ptr(),
               place(dx), place(out[2]), place(out[3]), fixed ? 0 : eps, center, fixed};
    // Where a residual was added and nothing reached the sum, backward is that of a plain call, as in kernels/native.py.
    if (more.defined() || mask_.defined() || extras.activation != Activation::none) f.fused = &fusion;
    kernels_door->kernels->backward(storage_of(x_), view, f, kernels_door->pool(x_.numel()));
  }

  void ask_python(const Tensor& dy, const Tensor& dsum, const Tensor (&saved)[6], const bool* want, Tensor& dx,
                  variable_list& out) const {
    const auto& [x_, mask_, weight_, bias_, mean_, dev_] = saved;
    Tensor places = mask_;  // with the channels that the mask has been given without
    if (mask_.defined() && !last) places = mask_.unsqueeze(1);
    for (int64_t i = 0; mask_.defined() && i < last; ++i) places = places.unsqueeze(-1);
    const Tensor* inputs[] = {&dy, &x_, &weight_, &bias_, &mean_, &dev_, &dsum, &places};
    const bool wanted[] = {want[0] || want[1], want[2], want[3]};
    const Tensors3 grads =
        gradients_by_python("normkit.kernels.operator", inputs, pattern, eps, center, int(extras.activation), fixed, wanted);
    dx = grads[0], out[2] = grads[1], out[3] = grads[2];
  }
};

Tensor run_fused(const Call& c, const Extras& e, const Tensor& sum, const Tensor& mean, const Tensor& dev) {
  Tensor y = like(c.x);
  const Tensor w = in_arithmetic(c.weight, c.x), b = in_arithmetic(c.bias, c.x);
  const auto place = [](const Tensor& t) { return t.defined() && t.numel() ? const_cast<void*>(t.const_data_ptr()) : nullptr; };
  RECORD_FUNCTION("normkit::norm", std::vector<c10::IValue>{c.x});
  Fusion fusion = e.fusion();
  fusion.residual = pointer(e.residual);
  fusion.sum = sum.defined() ? sum.mutable_data_ptr() : nullptr;
  Forward f{c.x.const_data_ptr(), y.mutable_data_ptr(), pointer(w), pointer(b), place(mean), place(dev),
            c.fixed ? 0 : c.eps, c.center, c.fixed};
  f.fused = &fusion;
  const auto go = [&] { kernels_door->kernels->forward(storage_of(c.x), c.view, f, kernels_door->pool(c.x.numel())); };
  if (c.x.numel() < LONG) return go(), y;
  const pybind11::gil_scoped_release others;
  return go(), y;
}

void record_fused(const Call& c, const Extras& e, int64_t last, const Tensor& y, const Tensor& sum, const Tensor& mean, const Tensor& dev) {
  const auto node = make_node<FusedBackward>();
  node->set_next_edges(torch::autograd::collect_next_edges(c.x, e.residual, c.weight, c.bias));
  node->has_sum = sum.defined();
  node->extras = e;
  node->extras.residual = node->extras.mask = Tensor();
  node->view = c.view;
  node->strides = c.x.strides();
  node->weight_like.of(c.weight);
  node->bias_like.of(c.bias);
  node->pattern = PyUnicode_AsUTF8(c.pattern);
  node->eps = c.eps;
  node->last = last;
  node->center = c.center;
  node->fixed = c.fixed;
  torch::autograd::set_history(y, node);
  if (sum.defined()) torch::autograd::set_history(sum, node);
  node->x = sum.defined() ? SavedVariable(sum, true) : SavedVariable(c.x, false);
  if (e.mask.defined()) node->mask = SavedVariable(e.mask, false);
  if (c.weight.defined()) node->weight = SavedVariable(c.weight, false);
  // A call that fuses nothing after all saves what a plain one does, as kernels/operator.py has it.
  const bool fuses = sum.defined() || e.mask.defined() || e.activation != Activation::none;
  if (c.bias.defined() && fuses) node->bias = SavedVariable(c.bias, false);
  node->mean = SavedVariable(mean, false);
  node->dev = SavedVariable(dev, false);
}

// The number of real elements in each cell where it is the same for all; -1 where it is not.
int64_t common_count(const Call& c, const Extras& e) {
  if (!e.mask.defined()) return c.view.count();
  const double* counts = e.counts.const_data_ptr<double>();
  for (int64_t i = 1; i < c.view.cells(); ++i)
    if (counts[i] != counts[0]) return -1;
  return int64_t(counts[0]);
}

// fused(x, weight, bias, pattern, eps, center, last, running_mean, running_var, momentum, extras) -> y, or with
// return_residual a pair, or None where the longer way has to be taken. Without a momentum the running statistics are what
// x is normalized with, else they are moved.
PyObject* fused(PyObject*, PyObject* const* args, Py_ssize_t) {
  HANDLE_TH_ERRORS
  Call c;
  Extras e;
  Tensor running_mean, running_var, mean, dev, sum;
  if (!prepare(c, args) || args[6] == Py_True || !fits_features(c, args[6]) || !take_extras(args[10], args[6], c, e)) Py_RETURN_NONE;
  c.center = args[5] == Py_True;
  const bool has_running = args[7] != Py_None || args[8] != Py_None;
  c.fixed = args[9] == Py_None && has_running;
  if (!c.fixed && c.view.count() == 1) Py_RETURN_NONE;
  if (has_running) {
    const auto channels = c.x.sizes().slice(1, 1);
    if (!take(args[7], running_mean) || !take(args[8], running_var) || !running_mean.defined() || !running_var.defined() ||
        !is_statistic(running_mean, c.x, channels) || !is_statistic(running_var, c.x, channels))
      Py_RETURN_NONE;
  }
  double momentum = 0;
  int64_t count = 0;
  bool moves = has_running && !c.fixed;
  if (moves) {
    momentum = PyFloat_AsDouble(args[9]);
    if (PyErr_Occurred()) return PyErr_Clear(), Py_NewRef(Py_None);
    count = common_count(c, e);
    if (count < 2) Py_RETURN_NONE;
    moves = torch::autograd::get_current_graph_task_id() == -1;
  }
  const bool followed = c.is_followed() || (at::GradMode::is_enabled() && has_gradient(e.residual));
  if (c.fixed) {
    mean = running_mean, dev = root_of(running_var, c.eps);
  } else if (followed || moves) {
    mean = fresh(c.x, c.center ? c.view.cells() : 0), dev = fresh(c.x, c.view.cells());
  }
  if (e.residual.defined()) sum = like(c.x);
  Tensor y = run_fused(c, e, sum, mean, dev);
  if (moves) move(running_mean, running_var, mean, dev, count, momentum);
  const int64_t last = args[6] == Py_None ? 0 : PySequence_Fast_GET_SIZE(args[6]);
  if (followed) record_fused(c, e, last, y, sum, mean, c.fixed ? running_var : dev);
  if (!e.return_residual) return THPVariable_Wrap(std::move(y));
  auto first = pybind11::reinterpret_steal<pybind11::object>(THPVariable_Wrap(std::move(y)));
  PyObject* second = sum.defined() ? THPVariable_Wrap(std::move(sum)) : Py_NewRef(args[0]);
  return first && second ? Py_BuildValue("(NN)", first.release().ptr(), second) : nullptr;
  END_HANDLE_TH_ERRORS
}

}  // namespace
