// A call on a GPU: by its recipe, or by Python, which writes the recipe down.
#pragma once
#include "fastpath/call.h"
#include "fastpath/gpu/recipe.h"
#include "fastpath/python.h"

namespace {

constexpr const char* LEARNT_IN = "normkit.kernels.triton.recipes";

struct Outputs {
  Tensor y, sum, mean, std;
};

// Kernels read weights in their own dtype, but for that of float64.
bool is_readable(const Tensor& t, const Tensor& x, bool exactly) {
  return !t.defined() || (exactly || x.scalar_type() == at::kDouble ? t.scalar_type() == arithmetic_of(x)
                                                                    : t.scalar_type() != at::kDouble);
}

// False where Python has given up the plan meanwhile.
bool learn(const Call& c, const Statistics& s, bool moments, const Key& key, Outputs& out) {
  const at::NoGradGuard guard;
  const Tensor none;
  const Extras& e = c.extras;
  const pybind11::object answer = ask_python(
      LEARNT_IN, "norm",
      pybind11::make_tuple(c.number, wrapped(c.x), wrapped(c.weight), wrapped(c.bias),
                           wrapped(s.given ? s.mean : none), wrapped(s.given ? s.var : none),
                           wrapped(e.residual), wrapped(e.gate), wrapped(e.skip),
                           wrapped(s.updated ? s.mean : none), wrapped(s.updated ? s.var : none), s.momentum,
                           c.view.count(), key.eps, c.center, int(e.activation), int(e.gate_activation), e.gate_first,
                           moments, c.length, c.zero_centered, c.cast_first));
  if (answer.is_none()) return false;
  const auto got = answer.cast<pybind11::tuple>();
  out = {unwrapped(got[0]), unwrapped(got[1]), unwrapped(got[2]), unwrapped(got[3])};
  recipes.keep(key, recipe_of(got[4]));
  return true;
}

// Writes `out`, and updates running statistics; false where Python has to take the call. With given statistics the
// moments in `out` stay empty.
bool run_on_gpu(const Call& c, const Statistics& s, bool moments, Outputs& out) {
  const Tensor &residual = c.extras.residual, &gate = c.extras.gate, &skip = c.extras.skip;
  // Rows with gaps and a dense sum would need two plans.
  if (c.view.group && residual.defined()) return false;
  if (!is_current(c.x) || !are_aligned({&c.x, &c.weight, &c.bias, &residual, &gate, &skip, &s.mean, &s.var}) ||
      !is_readable(c.weight, c.x, c.length) || !is_readable(c.bias, c.x, false) ||
      (s.updated && s.mean.numel() != c.view.period))
    return false;
  const bool computed = moments && !s.given;
  const Key key = key_of(c.number, c.eps, c.x, dtype_of(c.weight), dtype_of(c.bias),
                         c.extras.activations(),
                         {false, c.center, residual.defined(), s.given, computed, s.updated, c.length,
                          c.zero_centered, c.cast_first, gate.defined(), skip.defined(), c.extras.gate_first});
  const auto known = recipes.find(key);
  if (known && !*known) return false;
  if (!known) {
    if (!learn(c, s, computed, key, out)) return false;
  } else {
    const pybind11::gil_scoped_release others;
    out.y = like(c.x, c.view);
    if (residual.defined()) out.sum = like(c.x);
    if (computed) {
      out.std = fresh(c.x, c.view.cells());
      if (!c.length) out.mean = fresh(c.x, c.center ? c.view.cells() : 0);
    }
    Pointers p;
    p.set(Slot::x, c.x), p.set(Slot::weight, c.weight), p.set(Slot::bias, c.bias), p.set(Slot::residual, residual);
    p.set(Slot::gate, gate), p.set(Slot::skip, skip);
    p.set(Slot::y, out.y), p.set(Slot::sum, out.sum);
    p.set(Slot::mean, s.given ? s.mean : out.mean), p.set(Slot::std, s.given ? s.var : out.std);
    if (s.updated) p.set(Slot::running_mean, s.mean), p.set(Slot::running_var, s.var);
    carry_out("normkit::norm", **known, p, c.x, s.momentum);
  }
  if (s.updated) count_update(s);
  return true;
}

}  // namespace
