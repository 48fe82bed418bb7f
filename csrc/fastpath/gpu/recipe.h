// A recipe is what a call has launched on the GPU, with the names of its tensors in place of their addresses. Python
// writes it down (kernels/triton/recipes.py) while it carries out the first such call.
#pragma once
#include <pybind11/stl.h>
#include <torch/csrc/Dtype.h>

#include <array>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "fastpath/gpu/driver.h"

namespace {

// What a parameter of a kernel points to, in the order of `Slot` in kernels/triton/recipes.py.
enum class Slot { x, weight, bias, mean, std, residual, y, sum, running_mean, running_var, dy, dx, dweight, dbias,
                  gate, skip, dgate, dskip, workspace, count };
// In place of a slot, besides -1 for a number of the recipe: the momentum of the call, and what remains when it is
// rounded to fp32, in which numbers are passed.
constexpr int MOMENTUM_OF_CALL = -2, MOMENTUM_REST = -3;
constexpr size_t MOST_PARAMETERS = 64;

struct Parameter {
  int slot;
  uint64_t value;  // the bits of a number, or the distance in bytes from the start of the slot
};
struct Launch {
  void* function;
  std::array<unsigned, 3> grid;
  unsigned threads, shared;
  std::vector<Parameter> parameters;
};

struct Recipe {
  int64_t workspace = 0;  // bytes for all temporary tensors
  at::ScalarType dweight = at::kFloat, dbias = at::kFloat;
  std::vector<Launch> launches;
};

struct Pointers {
  std::array<uint64_t, size_t(Slot::count)> at{};

  void set(Slot slot, const Tensor& t) {
    if (t.defined()) at[size_t(slot)] = reinterpret_cast<uint64_t>(t.const_data_ptr());
  }
};

// Launches all kernels of a recipe on the current stream of x's device; a profiler of torch sees `name`.
void carry_out(const char* name, const Recipe& recipe, Pointers& pointers, const Tensor& x, double momentum = 0) {
  RECORD_FUNCTION(name, std::vector<c10::IValue>{x});
  Tensor workspace;
  if (recipe.workspace) {
    workspace = room(x, {recipe.workspace}, {1}, at::kByte);
    pointers.set(Slot::workspace, workspace);
  }
  driver.enter(x.device());
  void* stream = driver.stream_of(x.device());
  const float rounded = float(momentum), rest = float(momentum - double(rounded));
  for (const Launch& l : recipe.launches) {
    std::array<uint64_t, MOST_PARAMETERS> words;
    std::array<void*, MOST_PARAMETERS> places;
    for (size_t i = 0; i < l.parameters.size(); ++i) {
      const auto [slot, value] = l.parameters[i];
      words[i] = slot >= 0 ? pointers.at[size_t(slot)] + value : value;
      if (slot == MOMENTUM_OF_CALL) std::memcpy(&words[i], &rounded, sizeof rounded);
      if (slot == MOMENTUM_REST) std::memcpy(&words[i], &rest, sizeof rest);
      places[i] = &words[i];
    }
    driver.check(driver.launch(l.function, l.grid[0], l.grid[1], l.grid[2], l.threads, 1, 1, l.shared, stream,
                               places.data(), nullptr));
  }
}

// From Python: (bytes of the workspace, dtype of dweight, dtype of dbias, launches); a launch is (function, grid,
// threads, shared memory, parameters), a parameter (slot, value).
std::shared_ptr<const Recipe> recipe_of(const pybind11::object& python) {
  if (python.is_none()) return nullptr;
  const auto dtype = [](const pybind11::handle& o) { return reinterpret_cast<THPDtype*>(o.ptr())->scalar_type; };
  const auto t = python.cast<pybind11::tuple>();
  auto out = std::make_shared<Recipe>();
  out->workspace = t[0].cast<int64_t>();
  out->dweight = dtype(t[1]), out->dbias = dtype(t[2]);
  for (const auto& one : t[3].cast<pybind11::tuple>()) {
    const auto l = one.cast<pybind11::tuple>();
    Launch launch{reinterpret_cast<void*>(l[0].cast<uint64_t>()), l[1].cast<std::array<unsigned, 3>>(),
                  l[2].cast<unsigned>(), l[3].cast<unsigned>(), {}};
    for (const auto& p : l[4].cast<pybind11::tuple>()) {
      const auto pair = p.cast<pybind11::tuple>();
      launch.parameters.push_back({pair[0].cast<int>(), pair[1].cast<uint64_t>()});
    }
    TORCH_CHECK(launch.parameters.size() <= MOST_PARAMETERS, "normkit: a recipe has too many parameters");
    out->launches.push_back(std::move(launch));
  }
  return out;
}

// All that a recipe depends on, besides the addresses and the momentum.
struct Key {
  int64_t plan;
  double eps;
  uint64_t rest;  // bytes: the dtypes of x, weight and bias, the device, both activations, and the flags of the call
  bool operator==(const Key&) const = default;
};
Key key_of(int64_t plan, double eps, const Tensor& x, std::optional<at::ScalarType> weight,
           std::optional<at::ScalarType> bias, int activation, std::initializer_list<bool> flags) {
  uint64_t rest = 0;
  const auto add = [&](int byte) { rest = rest << 8 | uint8_t(byte); };
  add(int(x.scalar_type())), add(weight ? int(*weight) : -1), add(bias ? int(*bias) : -1);
  add(x.device().index()), add(activation);
  rest <<= 24;
  uint64_t bit = 1;
  for (const bool flag : flags) rest |= flag ? bit : 0, bit <<= 1;
  return {plan, eps, rest};
}
std::optional<at::ScalarType> dtype_of(const Tensor& t) {
  return t.defined() ? std::optional(t.scalar_type()) : std::nullopt;
}

// The recipes that are known. Threads of autograd look for theirs without Python's lock.
class Recipes {
 public:
  // Nothing for an unknown call; a null pointer for one that stays Python's.
  std::optional<std::shared_ptr<const Recipe>> find(const Key& key) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto it = known_.find(key);
    return it == known_.end() ? std::nullopt : std::optional(it->second);
  }
  void keep(const Key& key, std::shared_ptr<const Recipe> recipe) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (known_.size() >= most) known_.clear();
    known_.insert_or_assign(key, std::move(recipe));
  }
  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    known_.clear();
  }
  size_t size() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return known_.size();
  }

 private:
  static constexpr size_t most = 4096;
  struct Hash {
    size_t operator()(const Key& k) const {
      size_t h = size_t(k.plan) * 0x9E3779B97F4A7C15ull;
      uint64_t eps;
      std::memcpy(&eps, &k.eps, sizeof eps);
      for (const uint64_t n : {eps, k.rest}) h = (h ^ n ^ h >> 29) * 0x9E3779B97F4A7C15ull;
      return h;
    }
  };
  std::mutex mutex_;
  std::unordered_map<Key, std::shared_ptr<const Recipe>, Hash> known_;
};
Recipes recipes;

// Triton's forms are compiled for addresses that are multiples of 16.
bool are_aligned(std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* t : tensors)
    if (t->defined() && reinterpret_cast<uintptr_t>(t->const_data_ptr()) % 16) return false;
  return true;
}

}  // namespace
