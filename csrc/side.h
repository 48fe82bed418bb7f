// Short rows side by side: each row's sums stay in one vector, and SIDE of those are added up across their lanes together.
// A row's bits do not depend on its neighbours: all do the same.
#pragma once
#include "moments.h"

namespace {

constexpr int SIDE = 16;

#if defined(__AVX512F__)
// out[k] = the sum of the lanes of r[k]. Four steps; each folds two vectors into one of half the lanes of both.
inline void totals(const Pack* in, float* out) {
  __m512 r[SIDE];
  for (int k = 0; k < SIDE; ++k) r[k] = __m512(in[k]);
  for (int k = 0; k < 8; ++k)
    r[k] = _mm512_add_ps(_mm512_shuffle_f32x4(r[k], r[k + 8], 0x44), _mm512_shuffle_f32x4(r[k], r[k + 8], 0xee));
  for (int k = 0; k < 4; ++k)
    r[k] = _mm512_add_ps(_mm512_shuffle_f32x4(r[k], r[k + 4], 0x88), _mm512_shuffle_f32x4(r[k], r[k + 4], 0xdd));
  for (int k = 0; k < 4; k += 2)
    r[k] = _mm512_add_ps(_mm512_unpacklo_ps(r[k], r[k + 1]), _mm512_unpackhi_ps(r[k], r[k + 1]));
  r[0] = _mm512_add_ps(_mm512_shuffle_ps(r[0], r[2], 0x44), _mm512_shuffle_ps(r[0], r[2], 0xee));
  _mm512_storeu_ps(out, _mm512_shuffle_f32x4(r[0], r[0], 0xd8));
}
#endif

// a[k], b[k] = the sums over row k's n elements, seen as T, of what row(k)(at, a, b) gives for each; `rows` of them, at most G.
template <int G, class T, class Row>
void sums_of_rows(int64_t n, int64_t rows, arithmetic<T>* a, arithmetic<T>* b, const Row& row) {
  using A = arithmetic<T>;
#if defined(__AVX512F__)
  if constexpr (G == SIDE && ACROSS<A>) {
    Pack sa[SIDE] = {}, sb[SIDE] = {};
    const __mmask16 some = lanes_left(n & 15);
    for (int64_t k = 0; k < rows; ++k) {
      const auto term = row(k);
      Pack ta = {}, tb = {}, u, v;
      int64_t i = 0;
      for (; i + PACK <= n; i += PACK) {
        term(Whole{i}, u, v);
        ta += u;
        tb += v;
      }
      if (i < n) {
        term(Part{i, some}, u, v);
        ta += u;
        tb += v;
      }
      sa[k] = ta;
      sb[k] = tb;
    }
    totals(sa, a);
    totals(sb, b);
    return;
  }
#endif
  for (int64_t k = 0; k < rows; ++k) {
    const Two sums = sum_two<T>(n, row(k));
    a[k] = A(sums.a);
    b[k] = A(sums.b);
  }
}

}  // namespace
