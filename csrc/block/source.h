// How the forward pass reads a block: x, a residual added or times f(gate), padding replaced by a value that the walk
// chooses.
#pragma once
#include "block/activation.h"
#include "block/gaps.h"
#include "block/mask.h"

namespace {

template <class S, class T> struct Source {
  using A = arithmetic<S>;
  const S* x;
  const S* residual = nullptr;
  S* sum = nullptr;
  const S* gate = nullptr;  // that x is multiplied by
  Activation gate_activation = Activation::none;
  Mask mask{nullptr};
  Gaps gaps;
  bool prefetches = false;
  Format<S> format;

  Source(const View& v, const void* from, const Fusion* f)
      : x(static_cast<const S*>(from)), mask(f), gaps(v),
        prefetches(needs_prefetch<S>(v.numel())), format(v) {
    if (!f) return;
    if (f->gate_first) gate = static_cast<const S*>(f->gate), gate_activation = f->gate_activation;
    if (!f->sum) return;
    residual = static_cast<const S*>(f->residual);
    sum = static_cast<S*>(f->sum);
  }
  // For later passes, once every block has been read: the residual is already in the sum.
  Source again() const {
    Source s = *this;
    if (sum) s.x = sum, s.residual = nullptr, s.gaps = Gaps();
    return s;
  }
  // For a pass whose results at padding are set to 0 afterwards: padding is read as it is.
  Source unmasked() const {
    Source s = *this;
    s.mask = Mask(nullptr);
    return s;
  }
  // Whether what is normalized is computed from x.
  bool computes() const { return residual || gate; }
  bool is_plain() const { return !computes() && !mask; }

  // n elements from `at`, at most BLOCK of them, with `fill` for padding: in memory, or a copy in `buffer`. Where rows
  // may lie apart, `gap` is what lies before theirs.
  template <class Fill>
  const T* operator()(int64_t at, int64_t n, T* buffer, const Fill& fill, int64_t gap = 0) const {
    return is_plain() ? load(format, x + at + gap, buffer, n) : fused(at, n, buffer, fill, gap);
  }
  // One element of a block that has been read, for dense rows; and one that may not have been read.
  double value(int64_t at, A fill) const {
    if (mask && !mask.is_valid(at)) return double(fill);
    const double one = double(format.wide((sum ? sum : x)[at]));
    return gate ? one * value_of(gate_activation, double(format.wide(gate[at]))) : one;
  }
  A unread(int64_t at, int64_t gap = 0) const {
    const A one = format.wide(x[at + gap]);
    if (gate) return one * value_of(gate_activation, format.wide(gate[at]));
    return residual ? one + format.wide(residual[at]) : one;
  }

 private:
  template <class Fill>
  OUT_OF_LINE const T* fused(int64_t at, int64_t n, T* buffer, const Fill& fill, int64_t gap) const {
    if (residual) add_residual(x + at + gap, at, n);
    const T* in = load(format, residual ? sum + at : x + at + gap, buffer, n);
    if constexpr (std::is_same<T, A>::value) {
      if (gate) in = gated(in, at, n, buffer);
    }
    if (!mask || mask.is_known_valid(at, n)) return in;
    mask.copy(in, buffer, at, n, fill);
    return buffer;
  }
  const A* gated(const A* in, int64_t at, int64_t n, A* buffer) const {
    A wide[BURST];
    for (int64_t i = 0; i < n; i += BURST) {
      const S* p = gate + at + i;
      const int64_t some = min(BURST, n - i);
      if (prefetches) prefetch(p + AHEAD, some);
      multiply_by_gate(gate_activation, converted(format, p, wide, some), in + i, buffer + i, some);
    }
    return buffer;
  }
  void add_residual(const S* from, int64_t at, int64_t n) const {
    if constexpr (PACKED<S> || std::is_same<S, A>::value) {
      each<S>(0, n, [p = from, r = residual + at, q = sum + at](auto i) { i.put(q, i(p) + i(r)); });
    } else {
      A a[BLOCK], b[BLOCK];
      format.read(from, a, n);
      format.read(residual + at, b, n);
      for (int64_t i = 0; i < n; ++i) a[i] += b[i];
      format.write(a, sum + at, n);
    }
  }
};

}  // namespace
