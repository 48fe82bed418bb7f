// How the backward pass reads a block: x with its padding replaced, and dy with its padding at 0, times the slope of
// the activation. Of two passes, the first leaves that product in dx and the second reads it there.
#pragma once
#include "block/activation.h"
#include "block/gaps.h"
#include "block/mask.h"

namespace {

using normkit::Backward;

// Whether backward needs the sums of a whole cell before it can write any of its dx.
inline bool needs_sums(const Backward& f) { return f.dweight || f.dbias || !f.fixed; }

template <class S> struct Upstream {
  using A = arithmetic<S>;
  using T = Seen<S>;
  const S *x, *dy;
  S* dx;
  Mask mask;
  Activation activation;
  Gaps gaps;

  Upstream(const View& v, const Backward& f)
      : x(static_cast<const S*>(f.x)), dy(static_cast<const S*>(f.dy)), dx(static_cast<S*>(f.dx)), mask(f.fused),
        activation(f.fused ? f.fused->activation : Activation::none), gaps(v) {}

  // For a second pass.
  Upstream again() const {
    Upstream u = *this;
    if (activation != Activation::none) u.dy = dx, u.activation = Activation::none;
    return u;
  }
  // For a pass whose results at padding are set to 0 afterwards: padding is read as it is.
  Upstream unmasked() const {
    Upstream u = *this;
    u.mask = Mask(nullptr);
    return u;
  }

  // Where rows may lie apart, `gap` is what lies before theirs in x.
  template <class Fill> const T* input(int64_t at, int64_t n, T* buffer, const Fill& fill, int64_t gap = 0) const {
    const T* in = load(x + at + gap, buffer, n);
    return mask ? filled(in, at, n, buffer, fill) : in;
  }
  // z(p, out) writes what the activation was applied to, for the n elements of x at p.
  template <class Z> const T* gradient(int64_t at, int64_t n, T* buffer, const T* p, const Z& z) const {
    if (activation != Activation::none) multiply_slope(at, n, p, z);
    const T* in = load((activation != Activation::none ? dx : dy) + at, buffer, n);
    return mask ? filled(in, at, n, buffer, Constant<A>{0}) : in;
  }

 private:
  template <class Fill>
  OUT_OF_LINE const T* filled(const T* in, int64_t at, int64_t n, T* buffer, const Fill& fill) const {
    if (mask.is_all_valid(at, n)) return in;
    mask.copy(in, buffer, at, n, fill);
    return buffer;
  }
  // dx = dy * f'(z)
  template <class Z> OUT_OF_LINE void multiply_slope(int64_t at, int64_t n, const T* p, const Z& z) const {
    A inside[BLOCK], g[BLOCK];
    z(p, inside);
    const A* from = converted(dy + at, g, n);
    if (from != g) std::memcpy(g, from, size_t(n) * sizeof(A));
    multiply_by_slope(activation, inside, g, n);
    if constexpr (PACKED<S>) each<S>(0, n, [q = dx + at, p = &g[0]](auto i) { i.put(q, i(p)); });
    else if constexpr (std::is_same<S, A>::value) std::memcpy(dx + at, g, size_t(n) * sizeof(A));
    else narrow(g, dx + at, n);
  }
};

}  // namespace
