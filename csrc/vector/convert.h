// Arrays of stored numbers to the arithmetic type and back.
#pragma once
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
  if constexpr (HALVES<S> > 0)
    for (; i + HALVES<S> <= n; i += HALVES<S>) round_step(x + i, S{});
#pragma omp simd
  for (int64_t k = i; k < n; ++k) x[k] = stored<S>(x[k]);
}

}  // namespace
