// The short way in for eager calls: tensors unpacked and gradients recorded in C++, past the dispatcher and Python's
// autograd, which cost many times a small kernel. It needs torch's C++ interface and so belongs to one torch version;
// without it the Python in kernels/autograd.py does the same. The kernels are in the library that `connect` opens.
#include <Python.h>

#include <ATen/EmptyTensor.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/version.h>

#include <dlfcn.h>

#include <optional>
#include <string>

#include "door.h"
#include "running.h"

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

Storage storage_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kDouble: return Storage::f64;
    case at::kFloat: return Storage::f32;
    case at::kBFloat16: return Storage::bf16;
    default: return Storage::f16;
  }
}
at::ScalarType arithmetic_of(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }
Tensor like(const Tensor& x) { return at::detail::empty_strided_cpu(x.sizes(), x.strides(), x.scalar_type()); }
Tensor fresh(const Tensor& x, int64_t n) { return at::detail::empty_cpu({n}, arithmetic_of(x)); }
const void* pointer(const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }
bool is_ready(const Tensor& t, const Tensor& x, int64_t n) {
  return !t.defined() || (t.scalar_type() == arithmetic_of(x) && t.is_contiguous() && t.numel() == n && t.is_cpu());
}
Tensor shaped(const Tensor& flat, const std::optional<at::TensorOptions>& options, at::IntArrayRef sizes) {
  const Tensor out = sizes.size() == 1 ? flat : flat.view(sizes);
  return out.scalar_type() == options->dtype().toScalarType() ? out : out.to(options->dtype().toScalarType());
}

struct NormalizeBackward final : torch::autograd::Node {
  SavedVariable x, weight, mean, dev;
  const View* view;
  std::string pattern;
  double eps;
  bool center, fixed;
  std::vector<int64_t> weight_sizes, bias_sizes;
  std::optional<at::TensorOptions> weight_options, bias_options;

  std::string name() const override { return "NormkitNormalizeBackward"; }
  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* saved : {&x, &weight, &mean, &dev}) saved->reset_data();
  }
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list out(3);
    const Tensor& dy = grads[0];
    if (!dy.defined()) return out;
    const Tensor x_ = x.unpack(), weight_ = weight.unpack(), mean_ = mean.unpack(), dev_ = dev.unpack();
    const bool want_x = task_should_compute_output(0), want_weight = task_should_compute_output(1),
               want_bias = task_should_compute_output(2);
    Tensor dx, dw, db;
    const bool plain = !at::GradMode::is_enabled() && !at::isTensorSubclassLike(dy) && !at::isTensorSubclassLike(x_) &&
                       dy.layout() == at::kStrided && dy.is_cpu() && dy.strides() == x_.strides() &&
                       dy.scalar_type() == x_.scalar_type() && !dy.is_neg() && !dy._is_zerotensor();
    if (plain) {
      dx = want_x ? like(x_) : Tensor();
      dw = want_weight ? fresh(x_, view->period) : Tensor();
      db = want_bias ? fresh(x_, view->period) : Tensor();
      const auto to = [](Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; };
      const Backward f{dy.const_data_ptr(), x_.const_data_ptr(), pointer(weight_), pointer(mean_), dev_.const_data_ptr(),
                       to(dx), to(dw), to(db), eps, center, fixed};
      kernels_door->kernels->backward(storage_of(x_), *view, f, kernels_door->pool(x_.numel()));
    } else {
      // Second derivatives, or a gradient of another kind: the operator knows what to do.
      using Signature = std::tuple<Tensor, Tensor, Tensor>(
          const Tensor&, const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, std::string_view,
          double, bool, bool, bool, bool, bool);
      static const auto op =
          c10::Dispatcher::singleton().findSchemaOrThrow("normkit::backward", "").typed<Signature>();
      const std::optional<Tensor> w = weight_.defined() ? std::optional<Tensor>(weight_) : std::nullopt;
      std::tie(dx, dw, db) =
          op.call(dy, x_, mean_, dev_, w, pattern, eps, center, fixed, want_x, want_weight, want_bias);
    }
    if (want_x) out[0] = dx;
    if (want_weight) out[1] = shaped(dw, weight_options, weight_sizes);
    if (want_bias) out[2] = shaped(db, bias_options, bias_sizes);
    return out;
  }
};

void record(Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& mean, const Tensor& dev,
            const View* view, const char* pattern, double eps, bool center, bool fixed) {
  const auto node = c10::make_intrusive<NormalizeBackward>();
  node->set_next_edges(torch::autograd::collect_next_edges(x, weight, bias));
  node->x = SavedVariable(x, false);
  if (weight.defined()) {
    node->weight = SavedVariable(weight, false);
    node->weight_sizes = weight.sizes().vec();
    node->weight_options = weight.options();
  }
  if (bias.defined()) {
    node->bias_sizes = bias.sizes().vec();
    node->bias_options = bias.options();
  }
  node->mean = SavedVariable(mean, false);
  node->dev = SavedVariable(dev, false);
  node->view = view;
  node->pattern = pattern;
  node->eps = eps;
  node->center = center;
  node->fixed = fixed;
  torch::autograd::set_history(y, node);
}

Tensor tensor(PyObject* o) { return o == Py_None ? Tensor() : THPVariable_Unpack(o); }

void run(const Tensor& x, const View& view, const Forward& f) {
  const auto call = [&] { kernels_door->kernels->forward(storage_of(x), view, f, kernels_door->pool(x.numel())); };
  if (x.numel() < LONG) return call();
  const pybind11::gil_scoped_release free;
  call();
}

// normalize(x, weight, bias, plan, pattern, eps, center, running_mean, running_var, count, momentum) -> y, or None where
// the longer way has to be taken. Running statistics None: there are none to move.
PyObject* normalize(PyObject*, PyObject* const* args, Py_ssize_t) {
  HANDLE_TH_ERRORS
  const Tensor x = THPVariable_Unpack(args[0]), weight = tensor(args[1]), bias = tensor(args[2]);
  Tensor running_mean = tensor(args[7]), running_var = tensor(args[8]);
  const View* view = kernels_door->plan(PyLong_AsLongLong(args[3]));
  if (!view || !is_ready(weight, x, view->period) || !is_ready(bias, x, view->period)) Py_RETURN_NONE;
  if (running_mean.defined()) {
    const auto plain = [&](const Tensor& t) {
      return t.scalar_type() == arithmetic_of(x) && t.is_contiguous() && t.is_cpu() && !t.requires_grad();
    };
    if (!plain(running_mean) || !plain(running_var)) Py_RETURN_NONE;
  }
  const double eps = PyFloat_AsDouble(args[5]);
  const bool center = args[6] == Py_True;
  if (PyErr_Occurred()) throw python_error();
  const bool follow = at::GradMode::is_enabled() && (x.requires_grad() || (weight.defined() && weight.requires_grad()) ||
                                                     (bias.defined() && bias.requires_grad()));
  Tensor y = like(x), mean, dev;
  if (follow || running_mean.defined()) {
    mean = fresh(x, center ? view->cells() : 0);
    dev = fresh(x, view->cells());
  }
  run(x, *view, Forward{x.const_data_ptr(), y.mutable_data_ptr(), pointer(weight), pointer(bias),
                        mean.defined() && center ? mean.mutable_data_ptr() : nullptr,
                        dev.defined() ? dev.mutable_data_ptr() : nullptr, eps, center, false});
  if (running_mean.defined()) {
    const int64_t channels = running_mean.numel(), samples = mean.numel() / channels;
    const double count = PyFloat_AsDouble(args[9]), momentum = PyFloat_AsDouble(args[10]);
    const auto move = [&](auto* rm, auto* rv, auto* m, auto* s) {
      move_running(rm, rv, m, s, channels, samples, count, momentum);
    };
    if (arithmetic_of(x) == at::kDouble)
      move(running_mean.mutable_data_ptr<double>(), running_var.mutable_data_ptr<double>(), mean.const_data_ptr<double>(),
           dev.const_data_ptr<double>());
    else
      move(running_mean.mutable_data_ptr<float>(), running_var.mutable_data_ptr<float>(), mean.const_data_ptr<float>(),
           dev.const_data_ptr<float>());
    for (Tensor* t : {&running_mean, &running_var})
      if (!t->is_inference()) t->unsafeGetTensorImpl()->bump_version();
  }
  if (follow) record(y, x, weight, bias, mean, dev, view, PyUnicode_AsUTF8(args[4]), eps, center, false);
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

// standardize(x, mean, var, weight, bias, plan, pattern, eps) -> y, or None: the moments are given, without gradients.
PyObject* standardize(PyObject*, PyObject* const* args, Py_ssize_t) {
  HANDLE_TH_ERRORS
  const Tensor x = THPVariable_Unpack(args[0]), mean = THPVariable_Unpack(args[1]), var = THPVariable_Unpack(args[2]);
  const Tensor weight = tensor(args[3]), bias = tensor(args[4]);
  const View* view = kernels_door->plan(PyLong_AsLongLong(args[5]));
  if (!view || !is_ready(weight, x, view->period) || !is_ready(bias, x, view->period) ||
      !is_ready(mean, x, view->cells()) || !is_ready(var, x, view->cells()) || mean.requires_grad() || var.requires_grad())
    Py_RETURN_NONE;
  const double eps = PyFloat_AsDouble(args[7]);
  if (PyErr_Occurred()) throw python_error();
  const bool follow = at::GradMode::is_enabled() && (x.requires_grad() || (weight.defined() && weight.requires_grad()) ||
                                                     (bias.defined() && bias.requires_grad()));
  Tensor y = like(x), dev = fresh(x, view->cells());
  const auto root = [&](const auto* v, auto* d) {
    for (int64_t i = 0; i < dev.numel(); ++i) d[i] = std::sqrt(v[i]);
  };
  if (arithmetic_of(x) == at::kDouble) root(var.const_data_ptr<double>(), dev.mutable_data_ptr<double>());
  else root(var.const_data_ptr<float>(), dev.mutable_data_ptr<float>());
  run(x, *view, Forward{x.const_data_ptr(), y.mutable_data_ptr(), pointer(weight), pointer(bias),
                        const_cast<void*>(mean.const_data_ptr()), dev.mutable_data_ptr(), eps, true, true});
  if (follow) record(y, x, weight, bias, mean, dev, view, PyUnicode_AsUTF8(args[6]), eps, true, true);
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

// connect(path of the kernels' library): whether the door can be used from now on.
PyObject* connect(PyObject*, PyObject* path) {
  void* library = dlopen(PyUnicode_AsUTF8(path), RTLD_NOW | RTLD_LOCAL);
  const auto function = library ? reinterpret_cast<normkit_door_function>(dlsym(library, "normkit_door")) : nullptr;
  kernels_door = function ? function() : nullptr;
  return PyBool_FromLong(kernels_door != nullptr);
}

template <class F> PyCFunction fast(F* f) { return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f)); }
PyMethodDef methods[] = {
    {"normalize", fast(normalize), METH_FASTCALL, nullptr},
    {"standardize", fast(standardize), METH_FASTCALL, nullptr},
    {"connect", connect, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_door", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__door() {
  PyObject* m = PyModule_Create(&module);
  if (m) PyModule_AddStringConstant(m, "torch_version", TORCH_VERSION);
  return m;
}
