// Tensors of torch's stable interface: their types and checks, and new ones like them.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "kernel.h"
#include "storage.h"

namespace {

using normkit::Parameter;
using normkit::Storage;
using normkit::View;
using torch::stable::Tensor;

Storage storage_of(const Tensor& x) {
  const std::optional<Storage> storage = storage_of(x.scalar_type());
  STD_TORCH_CHECK(storage, "normkit kernels take float64, float32, bfloat16 and float16");
  return *storage;
}
ScalarType arithmetic_of(const Tensor& x) { return arithmetic_of(x.scalar_type()); }
int32_t type_code(const Tensor& x) {
  int32_t code;
  STD_TORCH_CHECK(aoti_torch_get_dtype(x.get(), &code) == 0, "normkit: a tensor without a type");
  return code;
}
int32_t arithmetic_code(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
}

// Memory straight from the allocator: the same through the dispatcher costs as much as all the rest of a small call.
Tensor allocate(int64_t dims, const int64_t* sizes, const int64_t* strides, bool wide, const Tensor& x) {
  AtenTensorHandle handle;
  const int32_t dtype = wide ? arithmetic_code(x) : type_code(x);
  STD_TORCH_CHECK(
      aoti_torch_empty_strided(dims, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &handle) == 0,
      "normkit: out of memory");
  return Tensor(handle);
}
Tensor fresh(const Tensor& x, int64_t n) {
  const int64_t one = 1;
  return allocate(1, &n, &one, true, x);
}
// In x's layout; without the gaps between the rows of a strided one.
Tensor like(const Tensor& x, const View& v) {
  if (v.group) return torch::stable::empty_like(x);
  return allocate(x.dim(), x.sizes().data(), x.strides().data(), false, x);
}

using Given = std::optional<Tensor>;

const void* pointer(const Given& t) { return t ? t->const_data_ptr() : nullptr; }

void check_length(const Given& t, int64_t n, const Tensor& x, const char* what) {
  STD_TORCH_CHECK(!t || (t->numel() == n && t->scalar_type() == arithmetic_of(x) && t->is_contiguous()),
                  "normkit: ", what, " must be contiguous, in the arithmetic type, with ", n, " elements");
}
// A weight or bias, of any type that is stored.
Parameter parameter(const Given& t, const View& v, const char* what) {
  if (!t) return {};
  STD_TORCH_CHECK(t->numel() == v.weights() && t->is_contiguous(), "normkit: ", what, " must be contiguous, with ",
                  v.weights(), " elements");
  return {t->const_data_ptr(), storage_of(*t)};
}

}  // namespace
