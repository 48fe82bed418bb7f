// The shared part of the gradients of plain and of fused calls.
#pragma once
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include "fastpath/call.h"
#include "fastpath/node.h"
#include "fastpath/python.h"

namespace {

using normkit::Backward;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

struct Like {
  at::DimVector sizes;
  at::ScalarType dtype = at::kFloat;
  bool exists = false;

  void of(const Tensor& t) {
    if (t.defined()) sizes = t.sizes(), dtype = t.scalar_type(), exists = true;
  }
  std::optional<at::ScalarType> asked() const { return exists ? std::optional(dtype) : std::nullopt; }
  // From a gradient as the kernels write it: flat, and in the arithmetic type.
  Tensor operator()(const Tensor& flat) const {
    if (is_ours(flat)) {
      if (flat.scalar_type() == at::kFloat && (dtype == at::kHalf || dtype == at::kBFloat16) && flat.numel() <= SMALL)
        return rounded(flat);
      flat.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
      return flat.scalar_type() == dtype ? flat : flat.to(dtype);
    }
    const Tensor shaped = sizes.size() == 1 ? flat : flat.view(sizes);
    return shaped.scalar_type() == dtype ? shaped : shaped.to(dtype);
  }

 private:
  // With so few values torch's dispatcher takes longer than they do.
  static constexpr int64_t SMALL = 1024;
  // Whether nothing else holds or follows the tensor, so that it may be changed.
  bool is_ours(const Tensor& flat) const {
    return is_plain(flat) && flat.is_cpu() && flat.use_count() == 1 && flat.is_contiguous() && !flat.requires_grad() &&
           flat.unsafeGetTensorImpl()->allow_tensor_metadata_change();
  }
  Tensor rounded(const Tensor& flat) const {
    const Tensor out = at::detail::empty_cpu(sizes, dtype);
    const float* from = flat.const_data_ptr<float>();
    const auto go = [&]<class S>(S* to) {
      for (int64_t i = 0; i < flat.numel(); ++i) to[i] = S(from[i]);
    };
    if (dtype == at::kHalf) go(out.mutable_data_ptr<at::Half>());
    else go(out.mutable_data_ptr<at::BFloat16>());
    return out;
  }
};

// The gradients of x, weight, bias, gate and skip, and which of them are wanted.
using Gradients = std::array<Tensor, 5>;
using Wanted = std::array<bool, 5>;

// The tensors of a backward pass, as autograd has saved them.
struct Saved {
  Tensor dy, x, weight, bias, mean, std, dsum, mask, gate, skip;
};

// What a backward pass has to know of its call, besides the tensors.
struct Facts {
  View view;
  int64_t number = -1;  // of the plan on a GPU
  at::DimVector strides;
  Like weight_like, bias_like;
  std::string pattern;
  double eps = 0;
  bool center = true, fixed = false, length = false, zero_centered = false, cast_first = false;
  Extras extras;  // without its tensors, but for the counts

  void set(const Call& c) {
    view = c.view;
    number = c.number;
    strides = c.x.strides();
    weight_like.of(c.weight);
    bias_like.of(c.bias);
    pattern = PyUnicode_AsUTF8(c.pattern);
    eps = c.eps;
    center = c.center;
    fixed = c.fixed;
    length = c.length;
    zero_centered = c.zero_centered, cast_first = c.cast_first;
    extras = c.extras;
    extras.residual = extras.mask = extras.gate = extras.skip = Tensor();
  }

  // Whether the tensors are those that were saved, for hooks may bring back others, and nothing watches.
  bool is_simple(const Saved& t) const {
    const auto moment = [&](const Tensor& m, int64_t n) {
      return is_like(m, t.x) && m.numel() == n && m.is_contiguous() && m.scalar_type() == arithmetic_of(t.x);
    };
    const auto like_x = [&](const Tensor& o) {
      return !o.defined() || (is_like(o, t.x) && o.sizes() == t.x.sizes() && o.scalar_type() == t.x.scalar_type());
    };
    const auto parameter = [&](const Tensor& p) {
      return !p.defined() || (is_like(p, t.x) && p.is_contiguous() && p.numel() == view.weights());
    };
    return !at::GradMode::is_enabled() && !is_watched() && is_plain(t.x) && like_x(t.dy) && like_x(t.dsum) &&
           like_x(t.gate) && like_x(t.skip) && t.x.strides() == strides && t.x.numel() == view.numel() &&
           parameter(t.weight) && parameter(t.bias) &&
           (!t.mask.defined() || (is_like(t.mask, t.x) && t.mask.is_contiguous() && t.mask.scalar_type() == at::kBool &&
                                  t.mask.numel() * extras.channels == t.x.numel())) &&
           (length || moment(t.mean, center ? view.cells() : 0)) && moment(t.std, view.cells());
  }
};

// The node of the autograd graph that every call is recorded with.
struct NormNode : torch::autograd::Node, Facts {
  // For second derivatives, batches of gradients and tracing: Python calls the operator.
  Gradients by_python(const Saved& t, const Wanted& want) const {
    const pybind11::gil_scoped_acquire lock;
    const pybind11::object grads = ask_python(
        length ? "normkit.kernels.weight" : "normkit.kernels.operator", "gradients_of_fast_path",
        pybind11::make_tuple(wrapped(t.dy), wrapped(t.x), wrapped(t.weight), wrapped(t.bias), pattern, eps, center,
                             wrapped(t.mean), wrapped(t.std), wrapped(t.dsum), wrapped(t.mask),
                             int(extras.activation), wrapped(t.gate), wrapped(t.skip), int(extras.gate_activation),
                             extras.gate_first, zero_centered, fixed, want[0], want[1], want[2], want[3], want[4]));
    Gradients out;
    const auto got = grads.cast<pybind11::tuple>();
    for (size_t i = 0; i < got.size(); ++i)
      if (want[i]) out[i] = unwrapped(got[i]);
    return out;
  }
};

}  // namespace
