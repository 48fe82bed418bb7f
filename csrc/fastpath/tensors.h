// Tensors of an eager call: which ones the fast path takes, and new ones like them.
#pragma once
#include <Python.h>

#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>
#include <ATen/ops/add.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/sqrt.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/autograd/python_variable.h>

#include "running.h"
#include "storage.h"

namespace {

using at::Tensor;
using normkit::Storage;
using normkit::View;

Storage storage_of(const Tensor& x) { return *storage_of(x.scalar_type()); }
at::ScalarType arithmetic_of(const Tensor& x) { return arithmetic_of(x.scalar_type()); }
bool is_number(const Tensor& x) { return storage_of(x.scalar_type()).has_value(); }

// What torch calls the GPUs whose driver is connected (gpu/driver.h); AMD's are CUDA, too. Tests name the CPU.
constexpr auto NO_GPU = c10::DeviceType::COMPILE_TIME_MAX_DEVICE_TYPES;
c10::DeviceType gpu_type = NO_GPU;
bool on_gpu(const Tensor& x) { return x.device().type() == gpu_type; }

// Uninitialized memory on x's device. On a GPU torch's allocator is reached directly, without autograd.
Tensor room(const Tensor& x, at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType dtype) {
  if (x.is_cpu()) return at::detail::empty_strided_cpu(sizes, strides, dtype);
  return at::_ops::empty_strided::redispatch(c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                             c10::fromIntArrayRefSlow(sizes), c10::fromIntArrayRefSlow(strides), dtype,
                                             at::kStrided, x.device(), false);
}
Tensor like(const Tensor& x) { return room(x, x.sizes(), x.strides(), x.scalar_type()); }
// In x's layout, without the gaps between rows that lie apart.
Tensor like(const Tensor& x, const View& v) {
  return v.group ? room(x, x.sizes(), at::infer_dense_strides(x.sizes(), x.strides()), x.scalar_type()) : like(x);
}
// Whether t, with x's sizes, lies in memory as the results for x do.
bool lies_like(const Tensor& t, const Tensor& x, const View& v) {
  if (!v.group) return t.strides() == x.strides();
  return t.strides() == at::IntArrayRef(at::infer_dense_strides(x.sizes(), x.strides()));
}
Tensor fresh(const Tensor& x, int64_t n) {
  return x.is_cpu() ? at::detail::empty_cpu({n}, arithmetic_of(x)) : room(x, {n}, {1}, arithmetic_of(x));
}
const void* pointer(const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }
normkit::Parameter parameter(const Tensor& t) {
  if (!t.defined()) return {};
  return {t.const_data_ptr(), storage_of(t)};
}

// A dense tensor in memory of the CPU or GPU and nothing else: no wrapper, no negation to be resolved, no tangent.
bool is_plain(const Tensor& t) {
  constexpr c10::DispatchKeySet known({c10::DispatchKey::CPU, c10::DispatchKey::AutogradCPU,
                                       c10::DispatchKey::AutocastCPU, c10::DispatchKey::CUDA,
                                       c10::DispatchKey::AutogradCUDA, c10::DispatchKey::AutocastCUDA,
                                       c10::DispatchKey::ADInplaceOrView});
  return !(t.key_set().raw_repr() & ~known.raw_repr()) && (t.is_cpu() || on_gpu(t)) && t.layout() == at::kStrided &&
         !t._fw_grad(0).defined();
}
bool is_like(const Tensor& t, const Tensor& x) { return is_plain(t) && t.device() == x.device(); }

// The mode of a default device, which changes nothing here: every tensor is made on x's device.
PyTypeObject* default_device_mode = nullptr;
bool function_modes_watch() {
  using Modes = at::impl::PythonTorchFunctionTLS;
  if (!at::impl::torch_function_mode_enabled()) return false;
  for (int64_t i = 0; i < Modes::stack_len(); ++i)
    if (Py_TYPE(Modes::get_stack_at(i)->ptr(getPyInterpreter())) != default_device_mode) return true;
  return false;
}
// Modes, transforms and tracers all put a key of theirs into the dispatcher, except the modes of __torch_function__.
bool is_watched() {
  return (c10::impl::tls_local_dispatch_key_set().included_.raw_repr() & ~c10::default_included_set.raw_repr()) ||
         function_modes_watch();
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
  return !t.defined() ||
         (t.device() == x.device() && t.sizes() == shape && t.is_contiguous() &&
          t.element_size() <= (x.scalar_type() == at::kDouble ? 8 : 4));
}
bool is_statistic(const Tensor& t, const Tensor& x, at::IntArrayRef shape) {
  return t.device() == x.device() && t.sizes() == shape && t.is_contiguous() &&
         t.scalar_type() == arithmetic_of(x) && !t.requires_grad() &&
         (!t.is_inference() || c10::InferenceMode::is_enabled());
}

Tensor root_of(const Tensor& var, double eps) {
  const Tensor std = fresh(var, var.numel());
  const auto root = [&]<class T>(T) { roots(var.const_data_ptr<T>(), std.mutable_data_ptr<T>(), std.numel(), eps); };
  if (std.scalar_type() == at::kDouble) root(0.0);
  else root(0.0f);
  return std;
}

}  // namespace
