// Arrays of stored numbers to the arithmetic type and back.
#pragma once
#include "kernel.h"
#include "vector/simd.h"

namespace {

template <class S> inline void widen(const S* x, float* out, int64_t n) {
  int64_t i = 0;
  if constexpr (HAS_PACKS) {  // the rest under a mask: one by one, a tail costs as much as a hundred elements
    for (; i + PACK <= n; i += PACK) store_pack(out + i, load_pack(x + i));
    if (i == n) return;
    const PackMask some = first_lanes(n - i);
    store_pack(out + i, some, load_pack(x + i, some, 0));
  } else if constexpr (HALVES<S> > 0) {
    for (; i + HALVES<S> <= n; i += HALVES<S>) widen_step(x + i, out + i);
    for (; i < n; ++i) out[i] = widen(x[i]);
  } else {
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) out[k] = widen(x[k]);
  }
}
template <class S> inline void narrow(const float* x, S* out, int64_t n) {
  int64_t i = 0;
  if constexpr (HAS_PACKS) {
    const arithmetic<S>* from = x;  // a type that depends on S, as other instruction sets have no packs to load
    for (; i + PACK <= n; i += PACK) store_pack(out + i, load_pack(from + i));
    if (i == n) return;
    const PackMask some = first_lanes(n - i);
    store_pack(out + i, some, load_pack(from + i, some, 0));
  } else if constexpr (HALVES<S> > 0) {
    for (; i + HALVES<S> <= n; i += HALVES<S>) narrow_step(x + i, out + i);
    for (; i < n; ++i) out[i] = narrow(x[i], S{});
  } else {
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) out[k] = narrow(x[k], S{});
  }
}

// x = x rounded to S.
template <class S> inline void round_to(float* x, int64_t n) {
  int64_t i = 0;
  if constexpr (HAS_PACKS) {
    arithmetic<S>* to = x;  // as above
    for (; i + PACK <= n; i += PACK) store_pack(to + i, stored<S>(load_pack(to + i)));
  } else if constexpr (HALVES<S> > 0) {
    for (; i + HALVES<S> <= n; i += HALVES<S>) round_step(x + i, S{});
  }
#pragma omp simd
  for (int64_t k = i; k < n; ++k) x[k] = stored<S>(x[k]);
}

// How elements that are stored as S are converted.
template <class S> struct Format {
  using A = arithmetic<S>;

  explicit Format(const normkit::View&) {}
  A wide(S x) const { return widen(x); }
  A stored(A a) const { return ::stored<S>(a); }
  void read(const S* x, A* out, int64_t n) const { widen(x, out, n); }
  void write(const A* x, S* out, int64_t n) const { narrow(x, out, n); }
  void round(A* x, int64_t n) const { round_to<S>(x, n); }
};
template <> struct Format<half> {
  bool is_bf16;

  explicit Format(const normkit::View& v) : is_bf16(v.storage == normkit::Storage::bf16) {}
  float wide(half x) const { return is_bf16 ? widen(bf16{x.bits}) : widen(f16{x.bits}); }
  float stored(float a) const { return is_bf16 ? ::stored<bf16>(a) : ::stored<f16>(a); }
  OUT_OF_LINE void read(const half* x, float* out, int64_t n) const {
    if (is_bf16) widen(reinterpret_cast<const bf16*>(x), out, n);
    else widen(reinterpret_cast<const f16*>(x), out, n);
  }
  OUT_OF_LINE void write(const float* x, half* out, int64_t n) const {
    if (is_bf16) narrow(x, reinterpret_cast<bf16*>(out), n);
    else narrow(x, reinterpret_cast<f16*>(out), n);
  }
  OUT_OF_LINE void round(float* x, int64_t n) const { is_bf16 ? round_to<bf16>(x, n) : round_to<f16>(x, n); }
};

}  // namespace
