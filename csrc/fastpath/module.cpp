// The fast path for eager calls on a CPU or GPU: it unpacks tensors and records gradients in C++, without the
// dispatcher and Python's autograd, which cost many times a small kernel. It needs torch's C++ interface and so belongs
// to one version of torch; without it kernels/operator.py does the same in Python. It answers None to every call that
// is not plain (subclasses, transforms, modes, wrong arguments), and Python takes that call.
#include <Python.h>

#include <dlfcn.h>

#include "fastpath/compiled.h"
#include "fastpath/fused.h"
#include "fastpath/plain.h"

namespace {

PyObject* pair_of(Tensor y, Tensor sum, PyObject* x) {
  auto first = pybind11::reinterpret_steal<pybind11::object>(THPVariable_Wrap(std::move(y)));
  PyObject* second = sum.defined() ? THPVariable_Wrap(std::move(sum)) : Py_NewRef(x);
  return first && second ? Py_BuildValue("(NN)", first.release().ptr(), second) : nullptr;
}

void run_on_cpu(const Call& c, const Statistics& s, bool moments, int64_t count, Outputs& out) {
  auto& [y, sum, mean, std] = out;
  if (s.given) {
    mean = s.mean, std = root_of(s.var, c.eps);
  } else if (moments) {
    mean = fresh(c.x, c.center ? c.view.cells() : 0), std = fresh(c.x, c.view.cells());
  }
  if (c.extras.residual.defined()) sum = like(c.x, c.view);
  y = c.run(mean, std, sum);
  if (s.updated) update(s, mean, std, count);
}

// norm(spec, pattern, x, weight, bias, eps, fused, size, statistics) -> y, with return_residual the pair of y and the
// sum; or None if Python has to take the call.
PyObject* norm(PyObject*, PyObject* const* args, Py_ssize_t) {
  HANDLE_TH_ERRORS
  Call c;
  Statistics s;
  bool pair = false;
  if (!PyTuple_Check(args[SPEC])) Py_RETURN_NONE;
  const auto fact = [&](InSpec i) { return PyTuple_GET_ITEM(args[SPEC], Py_ssize_t(i)) == Py_True; };
  PyObject* last = fact(OVER_LAST) ? args[SIZE] : fact(CHECKED_BEFORE) ? Py_True : Py_None;
  c.center = fact(CENTER), c.cast_first = fact(CAST_FIRST), c.zero_centered = fact(ZERO_CENTERED);
  if (!take_tensors(c, args[X], args[WEIGHT], args[BIAS]) || !take_modulation(c, args[FUSED], last) ||
      !take_plan(c, args[PATTERN]) || !take_eps(c, args[EPS]) ||
      !(c.varying == FEATURES ? fits_features(c, last) : fits_elsewhere(c)) ||
      !take_statistics(c, args[STATISTICS], s) || !take_extras(c, args[FUSED], last, pair))
    Py_RETURN_NONE;
  // Methods differ in which regions of a single value they refuse.
  if (!s.given && c.view.count() == 1) Py_RETURN_NONE;
  const bool running = s.mean.defined() && !s.given;
  const int64_t count = running ? common_count(c) : 0;
  if (running && count < 2) Py_RETURN_NONE;
  const bool followed = c.is_followed();
  Outputs out;
  auto& [y, sum, mean, std] = out;
  if (c.number < 0) run_on_cpu(c, s, followed || s.updated, count, out);
  else if (!run_on_gpu(c, s, followed || s.updated, out)) Py_RETURN_NONE;
  if (s.given) mean = s.mean;
  if (followed) {
    const Tensor& spread = s.given ? s.var : std;
    const int64_t dims = fact(OVER_LAST) ? PySequence_Fast_GET_SIZE(last) : 0;
    if (c.extras.any()) record_fused(c, y, sum, dims, mean, spread);
    else record(c, y, mean, spread);
  }
  return pair ? pair_of(std::move(y), std::move(sum), args[X]) : THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

// weight_norm(v, g, pattern) -> w, or None: each cell of v divided by its length and multiplied by its value in g.
PyObject* weight_norm(PyObject*, PyObject* const* args, Py_ssize_t) {
  HANDLE_TH_ERRORS
  Call c;
  if (!take_tensors(c, args[0], args[1], Py_None) || !take_plan(c, args[2]) || !c.weight.defined() ||
      c.view.weights() != c.view.cells() || c.weight.numel() != c.view.weights() ||
      !fits(c.weight, c.x, c.weight.sizes()))
    Py_RETURN_NONE;
  c.length = true;
  c.center = false;
  const Tensor none;
  Outputs out;
  if (c.number < 0) out.std = fresh(c.x, c.view.cells()), out.y = c.run(none, out.std, none);
  else if (!run_on_gpu(c, {}, true, out)) Py_RETURN_NONE;
  if (c.is_followed()) record(c, out.y, none, out.std);
  return THPVariable_Wrap(std::move(out.y));
  END_HANDLE_TH_ERRORS
}

// cache_plan(pattern, sizes, strides, varying, over_features, plan) -> whether all plans that were known before are
// given up, for want of room.
PyObject* cache_plan(PyObject*, PyObject* const* args, Py_ssize_t) {
  HANDLE_TH_ERRORS
  View view;
  if (!library || !library->plan(PyLong_AsLongLong(args[5]), &view)) Py_RETURN_FALSE;
  return PyBool_FromLong(keep_plan(args, view, -1));
  END_HANDLE_TH_ERRORS
}

// cache_gpu_plan(pattern, sizes, strides, varying, over_features, plan, the numbers of the plan in the order of View)
// -> as cache_plan
PyObject* cache_gpu_plan(PyObject*, PyObject* const* args, Py_ssize_t) {
  HANDLE_TH_ERRORS
  if (gpu_type == NO_GPU) Py_RETURN_FALSE;
  std::array<int64_t, 12> n;
  for (size_t i = 0; i < n.size(); ++i) n[i] = PyLong_AsLongLong(args[i + 5]);
  const View view{n[1], n[2], n[3], n[4], n[5], n[6], n[7] != 0, n[8], n[9], n[10], n[11]};
  return PyBool_FromLong(keep_plan(args, view, n[0]));
  END_HANDLE_TH_ERRORS
}

// connect_gpu(path of the driver, path of the library that knows torch's streams, type of the devices in torch's words)
// -> whether calls on the GPU can be carried out here from now on. Both libraries have to be loaded already.
PyObject* connect_gpu(PyObject*, PyObject* const* args, Py_ssize_t) {
  HANDLE_TH_ERRORS
  const char *path = PyUnicode_AsUTF8(args[0]), *runtime = PyUnicode_AsUTF8(args[1]);
  const char* type = PyUnicode_AsUTF8(args[2]);
  if (!path || !runtime || !type) return nullptr;
  const bool there = driver.connect(path, runtime);
  gpu_type = there ? c10::Device(type).type() : NO_GPU;
  forget_plans(true);
  recipes.clear();
  return PyBool_FromLong(there);
  END_HANDLE_TH_ERRORS
}

// forget_gpu_plans(): Python no longer knows them by their numbers.
PyObject* forget_gpu_plans(PyObject*, PyObject*) {
  forget_plans(true);
  Py_RETURN_NONE;
}

// ignore_mode(type) -> None: modes of __torch_function__ of this type do not keep calls from the fast path.
PyObject* ignore_mode(PyObject*, PyObject* type) {
  Py_INCREF(type);
  default_device_mode = reinterpret_cast<PyTypeObject*>(type);
  Py_RETURN_NONE;
}

// known_recipes() -> the number of recipes that are kept.
PyObject* known_recipes(PyObject*, PyObject*) { return PyLong_FromSize_t(recipes.size()); }

// skipped() -> how many channels have kept their running statistics so far, because a batch's moments were not finite.
PyObject* skipped(PyObject*, PyObject*) { return PyLong_FromLongLong(skipped_channels); }

// connect(path of the kernels' library) -> whether the fast path can be used from now on. Only the library that torch
// has loaded knows the plans, so none is loaded here.
PyObject* connect(PyObject*, PyObject* name) {
  const char* path = PyUnicode_AsUTF8(name);
  if (!path) return nullptr;
  void* loaded = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
  const auto function =
      loaded ? reinterpret_cast<normkit_fastpath_function>(dlsym(loaded, "normkit_fastpath")) : nullptr;
  library = function ? function() : nullptr;
  return PyBool_FromLong(library != nullptr);
}

template <class F>
PyCFunction fast(F* f) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f));
}
PyMethodDef methods[] = {
    {"norm", fast(norm), METH_FASTCALL, nullptr},
    {"weight_norm", fast(weight_norm), METH_FASTCALL, nullptr},
    {"bind_forward", fast(bind_forward), METH_FASTCALL, nullptr},
    {"bind_backward", fast(bind_backward), METH_FASTCALL, nullptr},
    {"cache_plan", fast(cache_plan), METH_FASTCALL, nullptr},
    {"cache_gpu_plan", fast(cache_gpu_plan), METH_FASTCALL, nullptr},
    {"connect_gpu", fast(connect_gpu), METH_FASTCALL, nullptr},
    {"forget_gpu_plans", forget_gpu_plans, METH_NOARGS, nullptr},
    {"ignore_mode", ignore_mode, METH_O, nullptr},
    {"known_recipes", known_recipes, METH_NOARGS, nullptr},
    {"skipped", skipped, METH_NOARGS, nullptr},
    {"connect", connect, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_fastpath", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__fastpath() {
  PyObject* m = PyModule_Create(&module);
  if (m && PyModule_AddStringConstant(m, "torch_version", NORMKIT_TORCH) < 0) Py_CLEAR(m);
  return m;
}
