// Rows of a few elements, each of them a cell: SIDE rows are transposed, so that each lies in its own lane and
// every step is one vector instruction for all of them. The bits of a row do not depend on its neighbours: all lanes do
// the same.
#pragma once
#include "block/affine.h"
#include "block/gaps.h"
#include "block/moments.h"
#include "block/writer.h"
#include "vector/side.h"

namespace {

// The longest row that is transposed.
constexpr int64_t TINY = 16;

template <class A> bool is_transposed(const View& v, const Affine<A>& affine) {
  return v.r0 == 1 && v.k1 == 1 && v.r1 <= TINY && (affine.whole_row || (!affine.weight && !affine.bias));
}

// Rows of n elements from row `first` of x on: in memory, or without their gaps in `dense`.
template <class S>
const S* adjacent_rows(const S* x, const Gaps& gaps, int64_t first, int64_t n, int64_t rows, S* dense) {
  const S* from = x + first * n;
  if (!gaps) return from;
  for (int64_t k = 0; k < rows; ++k)
    std::memcpy(dense + k * n, from + k * n + gaps.before(first + k), size_t(n) * sizeof(S));
  return dense;
}
// SIDE rows of n elements as n vectors; lanes beyond the last row repeat it.
template <class S, class A>
void read_transposed(const Format<S>& format, const S* x, int64_t n, int64_t rows, A (*out)[SIDE]) {
  A buffer[TINY * SIDE];
  const A* in = converted(format, x, buffer, n * rows);
  if constexpr (USES_PACKS<A>) {
    transpose_in(in, n, rows, out);
  } else {
    for (int64_t j = 0; j < n; ++j)
      for (int64_t k = 0; k < SIDE; ++k) out[j][k] = in[(k < rows ? k : rows - 1) * n + j];
  }
}
template <class S, class T, class A>
void write_transposed(const A (*in)[SIDE], int64_t n, int64_t rows, S* y, Writer<S, T>& writer) {
  constexpr bool DIRECT = std::is_same<T, A>::value;
  A buffer[DIRECT ? 1 : TINY * SIDE], *out = buffer;
  T* q = writer.open(y);
  if constexpr (DIRECT) out = q;
  if constexpr (USES_PACKS<A>) {
    transpose_out(in, n, rows, out);
  } else {
    for (int64_t k = 0; k < rows; ++k)
      for (int64_t j = 0; j < n; ++j) out[k * n + j] = in[j][k];
  }
  if constexpr (!DIRECT) each<T>(0, n * rows, [p = out, q](auto at) { at.put(q, at(p)); });
  writer.close(n * rows);
}

// The moments of SIDE rows.
template <class A>
void transposed_moments(const A (*x)[SIDE], int64_t n, bool center, double eps, double* mean, double* var) {
  A sum[SIDE] = {}, d1[SIDE] = {}, d2[SIDE] = {}, guess[SIDE];
  const A per = A(1) / A(n);
  for (int64_t j = 0; j < n && center; ++j)
#pragma omp simd
    for (int k = 0; k < SIDE; ++k) sum[k] += x[j][k];
#pragma omp simd
  for (int k = 0; k < SIDE; ++k) guess[k] = sum[k] * per;
  for (int64_t j = 0; j < n; ++j)
#pragma omp simd
    for (int k = 0; k < SIDE; ++k) {
      const A d = x[j][k] - guess[k];
      d1[k] += d;
      d2[k] += d * d;
    }
  const double exact = 1.0 / double(n);
#pragma omp simd
  for (int k = 0; k < SIDE; ++k) {
    const double shift = center ? double(d1[k]) * exact : 0, rest = double(d2[k]) - shift * double(d1[k]);
    mean[k] = double(guess[k]) + shift;
    var[k] = (rest < 0 ? 0 : rest) * exact;
  }
  for (int k = 0; k < SIDE && std::is_same<A, float>::value; ++k) {
    if (!out_of_range(double(d2[k]), eps)) continue;
    double s = 0, q = 0;
    for (int64_t j = 0; j < n && center; ++j) s += double(x[j][k]);
    mean[k] = s * exact;
    for (int64_t j = 0; j < n; ++j) q += (double(x[j][k]) - mean[k]) * (double(x[j][k]) - mean[k]);
    var[k] = q * exact;
  }
}

}  // namespace
