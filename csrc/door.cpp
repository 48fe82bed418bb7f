// Over 400 lines, because all of it belongs to one torch version and nothing else may.
//
// The short way in for eager calls on a CPU: tensors unpacked and gradients recorded in C++, past the dispatcher and
// Python's autograd, which cost many times a small kernel. It needs torch's C++ interface and so belongs to one version
// of torch; without it the Python in kernels/autograd.py does the same. What is not plain (subclasses, transforms,
// modes, wrong arguments) is answered with None, and the caller takes the longer way, which knows all of it.
#include <Python.h>

#include <ATen/EmptyTensor.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <unordered_map>

#include "door.h"
#include "node.h"
#include "running.h"
#include "storage.h"

namespace {

using at::Tensor;
using normkit::Backward;
using normkit::Forward;
using normkit::Storage;
using normkit::View;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

const normkit::Door* kernels_door = nullptr;

// Fewer elements are done before another thread could take the interpreter.
constexpr int64_t LONG = 32768;

// Tensors -------------------------------------------------------------------------------------------------

Storage storage_of(const Tensor& x) { return *storage_of(x.scalar_type()); }
at::ScalarType arithmetic_of(const Tensor& x) { return arithmetic_of(x.scalar_type()); }
bool is_number(const Tensor& x) { return storage_of(x.scalar_type()).has_value(); }
Tensor like(const Tensor& x) { return at::detail::empty_strided_cpu(x.sizes(), x.strides(), x.scalar_type()); }
Tensor fresh(const Tensor& x, int64_t n) { return at::detail::empty_cpu({n}, arithmetic_of(x)); }
const void* pointer(const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }

// A dense tensor in CPU memory and nothing else: no wrapper, no negation to be resolved, no tangent.
bool is_plain(const Tensor& t) {
  constexpr c10::DispatchKeySet known({c10::DispatchKey::CPU, c10::DispatchKey::AutogradCPU, c10::DispatchKey::AutocastCPU,
                                       c10::DispatchKey::ADInplaceOrView});
  return !(t.key_set().raw_repr() & ~known.raw_repr()) && t.is_cpu() && t.layout() == at::kStrided && !t._fw_grad(0).defined();
}
// Modes, transforms and tracers all put a key of theirs into the dispatcher, except the modes of __torch_function__.
bool is_watched() {
  return (c10::impl::tls_local_dispatch_key_set().included_.raw_repr() & ~c10::default_included_set.raw_repr()) ||
         at::impl::torch_function_mode_enabled();
}
bool has_gradient(const Tensor& t) { return t.defined() && t.requires_grad(); }

// The tensor, or false where Python holds something else than None or a plain tensor.
bool take(PyObject* o, Tensor& t) {
  if (o == Py_None) return true;
  if (!THPVariable_CheckExact(o)) return false;
  t = THPVariable_Unpack(o);
  return is_plain(t) && is_number(t);
}
bool fits(const Tensor& t, const Tensor& x, at::IntArrayRef shape) {
  return !t.defined() || (t.sizes() == shape && t.is_contiguous() && t.element_size() <= (x.scalar_type() == at::kDouble ? 8 : 4));
}
bool is_statistic(const Tensor& t, const Tensor& x, at::IntArrayRef shape) {
  return t.sizes() == shape && t.is_contiguous() && t.scalar_type() == arithmetic_of(x) && !t.requires_grad() &&
         (!t.is_inference() || c10::InferenceMode::is_enabled());
}
Tensor in_arithmetic(const Tensor& t, const Tensor& x) {
  if (!t.defined() || t.scalar_type() == arithmetic_of(x)) return t;
  const at::NoGradGuard guard;
  return t.to(arithmetic_of(x));
}

Tensor root_of(const Tensor& var, double eps) {
  const Tensor dev = fresh(var, var.numel());
  const auto root = [&]<class T>(T) { roots(var.const_data_ptr<T>(), dev.mutable_data_ptr<T>(), dev.numel(), eps); };
  if (dev.scalar_type() == at::kDouble) root(0.0);
  else root(0.0f);
  return dev;
}

// Plans ---------------------------------------------------------------------------------------------------

// A region on sizes and strides, known only once the longer way has checked and planned it.
struct Known {
  PyObject* pattern;
  at::DimVector sizes, strides;
  View view;
};
std::unordered_multimap<size_t, Known> known_plans;
constexpr size_t MOST = 4096;

size_t hash_of(PyObject* pattern, at::IntArrayRef sizes, at::IntArrayRef strides) {
  size_t h = size_t(PyObject_Hash(pattern));
  for (const at::IntArrayRef& numbers : {sizes, strides})
    for (const int64_t n : numbers) h = (h ^ size_t(n)) * 0x9E3779B97F4A7C15ull;
  return h;
}
const View* view_of(const Tensor& x, PyObject* pattern) {
  const auto [begin, end] = known_plans.equal_range(hash_of(pattern, x.sizes(), x.strides()));
  for (auto it = begin; it != end; ++it) {
    const Known& k = it->second;
    if (x.sizes() == k.sizes && x.strides() == k.strides &&
        (pattern == k.pattern || PyUnicode_Compare(pattern, k.pattern) == 0))
      return &k.view;
  }
  return nullptr;
}

// Gradients -----------------------------------------------------------------------------------------------

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

// Second derivatives, batches of gradients, tracing: Python has the operator for whatever watches. Tensors: dy, x, weight,
// bias, mean, dev, dsum, mask; the arguments of Python's function are those of normkit::norm_backward.
using Tensors3 = std::array<Tensor, 3>;
Tensors3 gradients_by_python(const char* module, const Tensor* const (&t)[8], const std::string& pattern, double eps, bool center,
                             int activation, bool fixed, const bool* want) {
  const pybind11::gil_scoped_acquire lock;
  const auto wrapped = [&](size_t i) { return pybind11::reinterpret_steal<pybind11::object>(THPVariable_Wrap(*t[i])); };
  const auto given = [](bool b) { return pybind11::bool_(b); };
  const pybind11::object python = pybind11::module_::import(module).attr("gradients_of_fast_path");
  const auto grads = pybind11::reinterpret_steal<pybind11::object>(PyObject_CallFunctionObjArgs(
      python.ptr(), wrapped(0).ptr(), wrapped(1).ptr(), wrapped(2).ptr(), wrapped(3).ptr(), pybind11::str(pattern).ptr(),
      pybind11::float_(eps).ptr(), given(center).ptr(), wrapped(4).ptr(), wrapped(5).ptr(), wrapped(6).ptr(), wrapped(7).ptr(),
      pybind11::int_(activation).ptr(), given(fixed).ptr(), given(want[0]).ptr(), given(want[1]).ptr(), given(want[2]).ptr(),
      nullptr));
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

// What is saved, and in which order, is the same as in kernels/operator.py: activation checkpointing pairs the tensors that
// a forward has saved with those of its recomputation, and the two may take different ways.
struct NormalizeBackward final : torch::autograd::Node {
  SavedVariable x, weight, mean, dev;  // dev: the variance, where moments are given
  View view;
  at::DimVector strides;
  Like weight_like, bias_like;
  std::string pattern;
  double eps = 0;
  bool center = true, fixed = false, length = false;

  std::string name() const override { return "NormkitNormalizeBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* saved : {&x, &weight, &mean, &dev}) saved->reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list out(3);
    if (!grads[0].defined()) return out;
    const Tensor x_ = x.unpack(), weight_ = weight.unpack(), mean_ = mean.unpack(), dev_ = dev.unpack();
    const bool want[] = {task_should_compute_output(0), task_should_compute_output(1), task_should_compute_output(2)};
    if (!(want[0] || want[1] || want[2])) return out;
    if (is_simple(grads[0], x_, weight_, mean_, dev_))
      run(grads[0], x_, weight_, mean_, dev_, want, out);
    else
      ask_python(grads[0], x_, weight_, mean_, dev_, want, out);
    if (want[1]) out[1] = weight_like(out[1]);
    if (want[2]) out[2] = bias_like(out[2]);
    return out;
  }

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    for (const SavedVariable* saved : {&x, &weight, &mean, &dev}) args.collect(*saved, false);
    args.collect(pattern), args.collect(eps), args.collect(center), args.collect(fixed), args.collect(length);
  }
  variable_list apply_with_saved(const variable_list& grads, torch::dynamo::autograd::SwapSavedVariables& saved) override {
    saved.before(x), saved.before(weight), saved.before(mean), saved.before(dev);
    variable_list out = apply(variable_list(grads));
    saved.after(x), saved.after(weight), saved.after(mean), saved.after(dev);
    return out;
  }

 private:
  // Hooks on saved tensors may bring back others than went away.
  bool is_simple(const Tensor& dy, const Tensor& x_, const Tensor& weight_, const Tensor& mean_, const Tensor& dev_) const {
    const auto same = [&](const Tensor& t, int64_t n) {
      return is_plain(t) && t.numel() == n && t.is_contiguous() && t.scalar_type() == arithmetic_of(x_);
    };
    return !at::GradMode::is_enabled() && !is_watched() && is_plain(dy) && is_plain(x_) && dy.sizes() == x_.sizes() &&
           dy.scalar_type() == x_.scalar_type() && x_.strides() == strides && x_.numel() == view.numel() &&
           (!weight_.defined() || (is_plain(weight_) && weight_.is_contiguous() && weight_.numel() == view.period)) &&
           (length || same(mean_, center ? view.cells() : 0)) && same(dev_, view.cells());
  }

  void run(const Tensor& given, const Tensor& x_, const Tensor& weight_, const Tensor& mean_, const Tensor& dev_,
           const bool* want, variable_list& out) const {
    const Tensor std = fixed ? root_of(dev_, eps) : dev_;
    const Tensor dy = given.strides() == x_.strides() ? given : like(x_).copy_(given);
    const Tensor w = in_arithmetic(weight_, x_);
    if (want[0]) out[0] = like(x_);
    for (const int i : {1, 2})
      if (want[i]) out[size_t(i)] = fresh(x_, view.period);
    const auto place = [](const Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; };
    const Backward f{dy.const_data_ptr(), x_.const_data_ptr(), pointer(w), pointer(mean_), std.const_data_ptr(),
                     place(out[0]), place(out[1]), place(out[2]), fixed ? 0 : eps, center, fixed, length};
    kernels_door->kernels->backward(storage_of(x_), view, f, kernels_door->pool(x_.numel()));
  }

  void ask_python(const Tensor& dy, const Tensor& x_, const Tensor& weight_, const Tensor& mean_, const Tensor& dev_,
                  const bool* want, variable_list& out) const {
    const Tensor none, *inputs[] = {&dy, &x_, &weight_, &none, &mean_, &dev_, &none, &none};
    const Tensors3 grads = gradients_by_python(length ? "normkit.kernels.weight" : "normkit.kernels.operator", inputs, pattern, eps,
                                               center, 0, fixed, want);
    for (size_t i = 0; i < 3; ++i)
      if (want[i]) out[i] = grads[i];
  }
};

struct Call {
  Tensor x, weight, bias;
  View view;  // a copy, because plans may be forgotten while other threads run
  PyObject* pattern = nullptr;
  double eps = 0;
  bool center = true, fixed = false, length = false;

  bool is_followed() const {
    return at::GradMode::is_enabled() && (has_gradient(x) || has_gradient(weight) || has_gradient(bias));
  }

  Tensor run(const Tensor& mean, const Tensor& dev) const {
    Tensor y = like(x);
    const Tensor w = in_arithmetic(weight, x), b = in_arithmetic(bias, x);
    const auto place = [](const Tensor& t) { return t.defined() && t.numel() ? const_cast<void*>(t.const_data_ptr()) : nullptr; };
    RECORD_FUNCTION("normkit::norm", std::vector<c10::IValue>{x});
    const Forward f{x.const_data_ptr(), y.mutable_data_ptr(), pointer(w), pointer(b), place(mean), place(dev),
                    fixed ? 0 : eps, center, fixed, length};
    const auto go = [&] { kernels_door->kernels->forward(storage_of(x), view, f, kernels_door->pool(x.numel())); };
    if (x.numel() < LONG) return go(), y;
    const pybind11::gil_scoped_release others;
    return go(), y;
  }

  // With given moments `dev` is their variance.
  void record(const Tensor& y, const Tensor& mean, const Tensor& dev) const {
    const auto node = make_node<NormalizeBackward>();
    node->set_next_edges(torch::autograd::collect_next_edges(x, weight, bias));
    node->x = SavedVariable(x, false);
    if (weight.defined()) node->weight = SavedVariable(weight, false);
    if (!length) node->mean = SavedVariable(mean, false);
    node->dev = SavedVariable(dev, false);
    node->view = view;
    node->strides = x.strides();
    node->weight_like.of(weight);
    node->bias_like.of(bias);
    node->pattern = PyUnicode_AsUTF8(pattern);
    node->eps = eps;
    node->center = center;
    node->fixed = fixed;
    node->length = length;
    torch::autograd::set_history(y, node);
  }
};

// The first arguments of both functions: whether they are plain, fit each other, and have a known plan.
bool find(Call& c, PyObject* x, PyObject* weight, PyObject* bias, PyObject* pattern) {
  if (!kernels_door || is_watched() || x == Py_None || !take(x, c.x) || !take(weight, c.weight) || !take(bias, c.bias))
    return false;
  c.pattern = pattern;
  const View* known = view_of(c.x, c.pattern);
  return known && (c.view = *known, true);
}
bool prepare(Call& c, PyObject* const* args) {
  if (!find(c, args[0], args[1], args[2], args[3])) return false;
  if (args[4] == Py_None) {
    c.eps = c.x.scalar_type() == at::kDouble ? 0x1p-52 : 0x1p-23;
  } else {
    c.eps = PyFloat_AsDouble(args[4]);
    if (PyErr_Occurred()) PyErr_Clear(), c.eps = -1;
  }
  return c.eps >= 0;
}

// Whether weight and bias have the shape of the channels (None), or of the last dimensions (given); or have been checked
// by the caller (True), in which case they are as many as the plan says.
bool fits_features(const Call& c, PyObject* last) {
  if (last == Py_True) {
    const auto covers = [&](const Tensor& t) { return !t.defined() || (t.numel() == c.view.period && fits(t, c.x, t.sizes())); };
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

void move(Tensor& running_mean, Tensor& running_var, const Tensor& mean, const Tensor& dev, int64_t count, double momentum) {
  const int64_t channels = running_mean.numel(), samples = mean.numel() / channels;
  const auto go = [&]<class T>(T) {
    move_running(running_mean.mutable_data_ptr<T>(), running_var.mutable_data_ptr<T>(), mean.const_data_ptr<T>(),
                 dev.const_data_ptr<T>(), channels, samples, double(count), momentum);
  };
  if (mean.scalar_type() == at::kDouble) go(0.0);
  else go(0.0f);
  for (const Tensor& t : {running_mean, running_var})
    if (!t.is_inference()) t.unsafeGetTensorImpl()->bump_version();
}


}  // namespace

#include "door_fused.h"

namespace {

// What Python sees ----------------------------------------------------------------------------------------

// normalize(x, weight, bias, pattern, eps, center, last, running_mean, running_var, momentum) -> y, or None where the
// longer way has to be taken. For `last` see fits_features.
PyObject* normalize(PyObject*, PyObject* const* args, Py_ssize_t) {
  HANDLE_TH_ERRORS
  Call c;
  // One value in a region is where methods differ in what they refuse.
  if (!prepare(c, args) || c.view.count() == 1 || !fits_features(c, args[6])) Py_RETURN_NONE;
  c.center = args[5] == Py_True;
  Tensor running_mean, running_var, mean, dev;
  double momentum = 0;
  bool moves = args[7] != Py_None && args[8] != Py_None;
  if (args[7] != Py_None || args[8] != Py_None) {
    const auto channels = c.x.sizes().slice(1, 1);
    if (!moves || !take(args[7], running_mean) || !take(args[8], running_var) ||
        !is_statistic(running_mean, c.x, channels) || !is_statistic(running_var, c.x, channels))
      Py_RETURN_NONE;
    momentum = PyFloat_AsDouble(args[9]);
    if (PyErr_Occurred()) return PyErr_Clear(), Py_NewRef(Py_None);
    // Computed again inside a backward pass, as activation checkpointing does.
    moves = torch::autograd::get_current_graph_task_id() == -1;
  }
  const bool followed = c.is_followed();
  if (followed || moves) {
    mean = fresh(c.x, c.center ? c.view.cells() : 0);
    dev = fresh(c.x, c.view.cells());
  }
  Tensor y = c.run(mean, dev);
  if (moves) move(running_mean, running_var, mean, dev, c.view.count(), momentum);
  if (followed) c.record(y, mean, dev);
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

// standardize(x, weight, bias, pattern, eps, mean, var) -> y, or None: mean and variance of each channel are given.
PyObject* standardize(PyObject*, PyObject* const* args, Py_ssize_t) {
  HANDLE_TH_ERRORS
  Call c;
  Tensor mean, var;
  if (!prepare(c, args) || !fits_features(c, Py_None) || !take(args[5], mean) || !take(args[6], var)) Py_RETURN_NONE;
  const auto channels = c.x.sizes().slice(1, 1);
  if (!mean.defined() || !var.defined() || !is_statistic(mean, c.x, channels) || !is_statistic(var, c.x, channels))
    Py_RETURN_NONE;
  c.fixed = true;
  Tensor y = c.run(mean, root_of(var, c.eps));
  if (c.is_followed()) c.record(y, mean, var);
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

// weight_norm(v, g, pattern) -> w, or None: each cell of v divided by its length and multiplied by its value in g.
PyObject* weight_norm(PyObject*, PyObject* const* args, Py_ssize_t) {
  HANDLE_TH_ERRORS
  Call c;
  if (!find(c, args[0], args[1], Py_None, args[2]) || !c.weight.defined() || c.view.period != c.view.cells() ||
      c.weight.numel() != c.view.period || !fits(c.weight, c.x, c.weight.sizes()))
    Py_RETURN_NONE;
  c.length = true;
  c.center = false;
  const Tensor none, length = fresh(c.x, c.view.cells());
  Tensor w = c.run(none, length);
  if (c.is_followed()) c.record(w, none, length);
  return THPVariable_Wrap(std::move(w));
  END_HANDLE_TH_ERRORS
}

// learn(pattern, sizes, strides, plan) -> whether all that was known before is forgotten, for want of room.
PyObject* learn(PyObject*, PyObject* const* args, Py_ssize_t) {
  HANDLE_TH_ERRORS
  View view;
  if (!kernels_door || !kernels_door->plan(PyLong_AsLongLong(args[3]), &view)) Py_RETURN_FALSE;
  const auto numbers = [](PyObject* tuple) {
    at::DimVector out;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i) out.push_back(PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i)));
    return out;
  };
  const bool full = known_plans.size() >= MOST;
  if (full) {
    for (auto& [_, k] : known_plans) Py_DECREF(k.pattern);
    known_plans.clear();
  }
  Known k{args[0], numbers(args[1]), numbers(args[2]), view};
  const size_t hash = hash_of(k.pattern, k.sizes, k.strides);
  if (PyErr_Occurred()) return nullptr;
  Py_INCREF(k.pattern);
  known_plans.emplace(hash, std::move(k));
  return PyBool_FromLong(full);
  END_HANDLE_TH_ERRORS
}

// skipped() -> how many channels have kept their running statistics so far, because a batch's moments were not finite.
PyObject* skipped(PyObject*, PyObject*) { return PyLong_FromLongLong(skipped_channels); }

// connect(path of the kernels' library) -> whether the door can be used from now on. Only the library that torch has
// loaded knows the plans, so none is loaded here.
PyObject* connect(PyObject*, PyObject* name) {
  const char* path = PyUnicode_AsUTF8(name);
  if (!path) return nullptr;
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
  const auto function = library ? reinterpret_cast<normkit_door_function>(dlsym(library, "normkit_door")) : nullptr;
  kernels_door = function ? function() : nullptr;
  return PyBool_FromLong(kernels_door != nullptr);
}

template <class F>
PyCFunction fast(F* f) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f));
}
PyMethodDef methods[] = {
    {"normalize", fast(normalize), METH_FASTCALL, nullptr},
    {"standardize", fast(standardize), METH_FASTCALL, nullptr},
    {"fused", fast(fused), METH_FASTCALL, nullptr},
    {"weight_norm", fast(weight_norm), METH_FASTCALL, nullptr},
    {"learn", fast(learn), METH_FASTCALL, nullptr},
    {"skipped", skipped, METH_NOARGS, nullptr},
    {"connect", connect, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_door", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__door() {
  PyObject* m = PyModule_Create(&module);
  if (m && PyModule_AddStringConstant(m, "torch_version", NORMKIT_TORCH) < 0) Py_CLEAR(m);
  return m;
}
