// Short rows side by side: each row's sums stay in one vector, and SIDE of those are added up across their lanes together.
// A row's bits do not depend on its neighbours: all do the same.
#pragma once
#include "moments.h"

namespace {

constexpr int SIDE = 16;

// How a term sees its row: at(p, fill) is what p holds here, `fill` beyond the row's end.
template <class A> struct Element {
  int64_t i;
  A operator()(const A* p, A) const { return p[i]; }
};

#if defined(__AVX512F__)
template <class A> constexpr bool ACROSS = std::is_same<A, float>::value;

using Vector = float __attribute__((vector_size(64)));

struct Whole {
  int64_t i;
  Vector operator()(const float* p, float) const { return Vector(_mm512_loadu_ps(p + i)); }
};
struct Part {
  int64_t i;
  __mmask16 some;
  Vector operator()(const float* p, float fill) const {
    return Vector(_mm512_mask_loadu_ps(_mm512_set1_ps(fill), some, p + i));
  }
};
// out[k] = the sum of the lanes of r[k]. Four steps; each folds two vectors into one of half the lanes of both.
inline void totals(const Vector* in, float* out) {
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
#else
template <class A> constexpr bool ACROSS = false;  // each row by itself
#endif

// a[k], b[k] = the sums over row k's n elements of what row(k)(at, a, b) gives for each; `rows` of them, at most G.
template <int G, class A, class Row> void sums_of_rows(int64_t n, int64_t rows, A* a, A* b, const Row& row) {
#if defined(__AVX512F__)
  if constexpr (G == SIDE && ACROSS<A>) {
    Vector sa[SIDE] = {}, sb[SIDE] = {};
    const __mmask16 some = lanes_left(n & 15);
    for (int64_t k = 0; k < rows; ++k) {
      const auto term = row(k);
      Vector ta = {}, tb = {}, u, v;
      int64_t i = 0;
      for (; i + 16 <= n; i += 16) {
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
    const auto term = row(k);
    const Two<A> sums = sum_two<A>(n, [=](int64_t i, A& u, A& v) { term(Element<A>{i}, u, v); });
    a[k] = A(sums.a);
    b[k] = A(sums.b);
  }
}

}  // namespace
