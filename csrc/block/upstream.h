// How the backward pass reads a block: x, times f(gate) where the gate comes first, with its padding replaced; and the
// gradient of z = x_hat * weight + bias, with its padding at 0. That is dy times the slope of the activation and, where
// the gate comes after, f(gate); the gradients of gate and skip are written with it. Of two passes, the first keeps it
// in dx and the second reads it there; or, where dx is written past the cache, the second computes it again.
#pragma once
#include "block/activation.h"
#include "block/gaps.h"
#include "block/mask.h"
#include "block/output.h"

namespace {

using normkit::Backward;

// Whether backward needs the sums of a whole cell before it can write any of its dx, or has a first pass without dx.
inline bool needs_sums(const Backward& f) {
  return f.dweight || f.dbias || !f.fixed || (!f.dx && f.fused && (f.fused->dgate || f.fused->dskip));
}

template <class S, class T> class Upstream {
  using A = arithmetic<S>;
  static constexpr bool WIDE = std::is_same<T, A>::value, SAME = std::is_same<S, A>::value;
  const S *x_, *dy_;
  S* kept_;      // where the gradient is kept for a second pass; null where there is none
  Mask mask_;    // applied to what is read
  Mask padding_; // applied to what is written
  Gaps gaps_;
  Activation activation_ = Activation::none, gate_activation_ = Activation::none;
  const S *gate_ = nullptr, *skip_ = nullptr;
  bool gate_first_ = false, recomputes_ = false, is_second_ = false;
  Output<S> dgate_, dskip_;
  Format<S> format_;

  bool multiplies() const { return gate_ && !gate_first_; }
  bool is_dy() const { return activation_ == Activation::none && !multiplies(); }
  bool is_read() const { return is_dy() && !dskip_; }

 public:
  OUT_OF_LINE Upstream(const View& v, const Backward& f)
      : x_(static_cast<const S*>(f.x)), dy_(static_cast<const S*>(f.dy)), kept_(nullptr), mask_(f.fused),
        padding_(f.fused), gaps_(v), dgate_(f.fused ? f.fused->dgate : nullptr, v),
        dskip_(f.fused ? f.fused->dskip : nullptr, v), format_(v) {
    if (!f.fused) return;
    activation_ = f.fused->activation, gate_activation_ = f.fused->gate_activation;
    gate_ = static_cast<const S*>(f.fused->gate), skip_ = static_cast<const S*>(f.fused->skip);
    gate_first_ = f.fused->gate_first;
    if (!needs_sums(f) || is_dy()) return;
    if (dskip_ && !multiplies()) kept_ = dskip_.base;
    else if (v.numel() * int64_t(sizeof(S)) >= PAST_CACHE) recomputes_ = true;
    else kept_ = static_cast<S*>(f.dx);
  }
  // For a second pass.
  Upstream again() const {
    Upstream u = *this;
    if (recomputes_) {
      u.is_second_ = true;
      u.dskip_.base = nullptr;
      if (!gate_first_) u.dgate_.base = nullptr;
      return u;
    }
    if (kept_) u.dy_ = kept_;
    if (!gate_first_) u.gate_ = nullptr, u.dgate_.base = nullptr;
    u.activation_ = Activation::none, u.dskip_.base = nullptr;
    return u;
  }
  // For a pass that keeps its blocks until it writes dx.
  Upstream once() const {
    Upstream u = *this;
    u.kept_ = nullptr;
    return u;
  }
  // For a pass whose results at padding are set to 0 afterwards: padding is read as it is.
  Upstream unmasked() const {
    Upstream u = *this;
    u.mask_ = Mask(nullptr);
    return u;
  }
  const Mask& mask() const { return mask_; }
  // Whether x or the gradient is computed from what is read.
  bool computes() const { return gate_first_ || !is_read(); }
  const S* x() const { return x_; }
  const Gaps& gaps() const { return gaps_; }
  const S* dy() const { return dy_; }
  const Format<S>& format() const { return format_; }
  // After results that were written here past the cache.
  void end() const { if ((dgate_ && dgate_.past_cache) || (dskip_ && dskip_.past_cache)) fence(); }

  // Where rows may lie apart, `gap` is what lies before theirs in x.
  template <class Fill> const T* input(int64_t at, int64_t n, T* buffer, const Fill& fill, int64_t gap = 0) const {
    const T* in = load(format_, x_ + at + gap, buffer, n);
    if constexpr (WIDE) {
      if (gate_first_) in = gated(in, at, n, buffer);
    }
    return mask_ ? filled(in, at, n, buffer, fill) : in;
  }
  // z(p, out) writes what skip, gate and activation were applied to, for the n elements of x at p.
  template <class Z> const T* gradient(int64_t at, int64_t n, T* buffer, const T* p, const Z& z) const {
    const T* in = is_read() ? load(format_, dy_ + at, buffer, n) : computed(at, n, buffer, p, z);
    return mask_ ? filled(in, at, n, buffer, Constant<A>{0}) : in;
  }
  // Where the gate comes first, n gradients of x * f(gate) become those of x, and those of the gate are written.
  void through_gate(T* ds, int64_t at, int64_t n, int64_t gap = 0) const {
    if constexpr (WIDE) {
      if (gate_first_) split(ds, at, n, gap);
    }
  }

 private:
  template <class Fill>
  OUT_OF_LINE const T* filled(const T* in, int64_t at, int64_t n, T* buffer, const Fill& fill) const {
    if (mask_.is_known_valid(at, n)) return in;
    mask_.copy(in, buffer, at, n, fill);
    return buffer;
  }
  OUT_OF_LINE const A* gated(const A* in, int64_t at, int64_t n, A* buffer) const {
    A wide[BLOCK];
    multiply_by_gate(gate_activation_, converted(format_, gate_ + at, wide, n), in, buffer, n);
    return buffer;
  }
  OUT_OF_LINE void split(A* ds, int64_t at, int64_t n, int64_t gap) const {
    A wide_x[BLOCK], wide_gate[BLOCK];
    const A* px = converted(format_, x_ + at + gap, wide_x, n);
    multiply_back(ds, px, converted(format_, gate_ + at, wide_gate, n), ds, at, n);
  }
  // From g, the gradient of factor * f(gate), to `out`, that of the factor; the gate's is written if it is wanted.
  void multiply_back(const A* g, const A* factor, const A* gate, A* out, int64_t at, int64_t n) const {
    if (!dgate_) return multiply_by_gate(gate_activation_, gate, g, out, n);
    A room[BLOCK], *d = dgate_.open(at, room);
    gate_gradients(gate_activation_, gate, factor, g, out, d, n);
    clear_padding(d, at, n);
    dgate_.close(at, d, n);
  }
  void clear_padding(A* g, int64_t at, int64_t n) const {
    if (padding_ && !padding_.is_known_valid(at, n)) padding_.copy(g, g, at, n, Constant<A>{0});
  }

  // The gradient where it is not dy, and those of gate and skip.
  template <class Z> OUT_OF_LINE const T* computed(int64_t at, int64_t n, T* buffer, const T* p, const Z& z) const {
    A inside[BLOCK], wide[BLOCK];
    if (activation_ != Activation::none || dgate_) z(p, inside);
    if constexpr (WIDE) {
      const A* gate = multiplies() ? converted(format_, gate_ + at, wide, n) : nullptr;
      const A* g = converted(format_, dy_ + at, buffer, n);
      if (activation_ != Activation::none)
        g = before_activation(inside, gate, g, dskip_ ? dskip_.open(at, buffer) : buffer, at, n);
      if (dskip_) {
        if (padding_ && !padding_.is_known_valid(at, n)) padding_.copy(g, buffer, at, n, Constant<A>{0}), g = buffer;
        dskip_.close(at, g, n);
      }
      if (gate) multiply_back(g, inside, gate, buffer, at, n), g = buffer;
      // Of several steps, the result is rounded only for the second pass.
      if ((!gate_ && !skip_ && !dskip_) || is_second_) return rounded(g, at, n, buffer);
      if (kept_ && kept_ != dskip_.base) keep(g, at, n);
      return g;
    } else {
      multiply_by_slope(activation_, inside, converted(format_, dy_ + at, wide, n), wide, n);
      return rounded(wide, at, n, buffer);
    }
  }
  // out = g * activation'(q), with q = z * f(gate) + skip.
  const A* before_activation(const A* z, const A* gate, const A* g, A* out, int64_t at, int64_t n) const {
    A q[BLOCK], wide[BLOCK];
    if (gate) multiply_by_gate(gate_activation_, gate, z, q, n), z = q;
    if (skip_) multiply_by_slope_after(activation_, z, converted(format_, skip_ + at, wide, n), g, out, n);
    else multiply_by_slope(activation_, z, g, out, n);
    return out;
  }
  void keep(const A* g, int64_t at, int64_t n) const {
    if constexpr (SAME) std::memcpy(kept_ + at, g, size_t(n) * sizeof(A));
    else format_.write(g, kept_ + at, n);
  }
  // Where there is only an activation, its gradient is rounded to the type of dx in any case.
  const T* rounded(const A* g, int64_t at, int64_t n, T* buffer) const {
    if constexpr (SAME) {
      if (kept_) keep(g, at, n);
      return g;
    } else if constexpr (WIDE) {
      S narrow[BLOCK], *to = kept_ ? kept_ + at : narrow;
      format_.write(g, to, n);
      return load(format_, to, buffer, n);
    } else {
      S* to = kept_ ? kept_ + at : buffer;
      format_.write(g, to, n);
      return to;
    }
  }
};

}  // namespace
