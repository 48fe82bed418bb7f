// torch's types as the kernels name them. Both of torch's C++ interfaces share the enumeration.
#pragma once
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "kernel.h"

namespace {

using torch::headeronly::ScalarType;

// None for what no kernel takes.
inline std::optional<normkit::Storage> storage_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double: return normkit::Storage::f64;
    case ScalarType::Float: return normkit::Storage::f32;
    case ScalarType::BFloat16: return normkit::Storage::bf16;
    case ScalarType::Half: return normkit::Storage::f16;
    default: return std::nullopt;
  }
}
inline ScalarType arithmetic_of(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace
