// Rows of a few elements, each of them a cell: SIDE rows are transposed, so that each lies in its own lane and
// every step is one vector instruction for all of them. All is computed in the arithmetic type, because roots and
// divisions in double would take most of the time. The bits of a row do not depend on its neighbours: all lanes do the
// same.
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

// body(n): a length that is common is a constant of the code.
template <class Body> void with_length(int64_t n, const Body& body) {
  if (n == 3) body(Three());
  else body(n);
}
// Whole groups of SIDE rows that are converted together.
inline int64_t rows_of_block(int64_t n) { return BLOCK / (SIDE * n) * SIDE; }

// Rows of n elements from row `first` of x on: in memory, or without their gaps in `dense`.
template <class S>
const S* adjacent_rows(const S* x, const Gaps& gaps, int64_t first, int64_t n, int64_t rows, S* dense) {
  const S* from = x + first * n;
  if (!gaps) return from;
  for (int64_t k = 0; k < rows; ++k)
    std::memcpy(dense + k * n, from + k * n + gaps.before(first + k), size_t(n) * sizeof(S));
  return dense;
}
// SIDE rows of n elements as n vectors; lanes beyond the last row are 0.
template <class A, class Length>
ALWAYS_INLINE void read_transposed(const A* in, Length n, int64_t rows, A (*out)[SIDE]) {
  A padded[TINY * SIDE];
  if (rows < SIDE) {
    for (int64_t i = 0; i < n * SIDE; ++i) padded[i] = i < n * rows ? in[i] : A(0);
    in = padded;
  }
  if constexpr (USES_PACKS<A>) {
    transpose_in(in, n, out);
  } else {
    for (int64_t j = 0; j < n; ++j)
      for (int64_t k = 0; k < SIDE; ++k) out[j][k] = in[k * n + j];
  }
}
template <class A, class Length>
ALWAYS_INLINE void write_transposed(const A (*in)[SIDE], Length n, int64_t rows, A* out) {
  A padded[TINY * SIDE], *to = rows < SIDE ? padded : out;
  if constexpr (USES_PACKS<A>) {
    transpose_out(in, n, to);
  } else {
    for (int64_t k = 0; k < SIDE; ++k)
      for (int64_t j = 0; j < n; ++j) to[k * n + j] = in[j][k];
  }
  for (int64_t i = 0; rows < SIDE && i < n * rows; ++i) out[i] = padded[i];
}
// One number for each of SIDE rows, from or to memory that has some of them.
template <class A> ALWAYS_INLINE void copy_lanes(const A* from, A* to, int64_t rows) {
  if (rows == SIDE) {
    std::memcpy(to, from, SIDE * sizeof(A));
    return;
  }
  for (int64_t k = 0; k < rows; ++k) to[k] = from[k];
}

// Of SIDE rows; `rstd` is 1 / sqrt(std^2 + eps).
template <class A> struct TransposedMoments {
  alignas(LINE) A mean[SIDE], std[SIDE], rstd[SIDE];
  alignas(LINE) A squares[SIDE];  // where they leave the range of fp32, the rest is computed in double

  // From the n elements of each row in x, which become deviations from the mean. `in`: the rows as they were.
  template <class Length>
  ALWAYS_INLINE void find(A (*x)[SIDE], const A* in, Length n, int64_t rows, bool center, double eps) {
    const A per = A(1) / A(int64_t(n));
    for (int k = 0; k < SIDE; ++k) mean[k] = squares[k] = 0;
    for (int pass = 0; pass < 2 && center; ++pass) {  // the second corrects the mean of the first
      alignas(LINE) A sum[SIDE] = {};
      for (int64_t j = 0; j < n; ++j)
#pragma omp simd
        for (int k = 0; k < SIDE; ++k) sum[k] += x[j][k];
#pragma omp simd
      for (int k = 0; k < SIDE; ++k) sum[k] *= per, mean[k] += sum[k];
      for (int64_t j = 0; j < n; ++j)
#pragma omp simd
        for (int k = 0; k < SIDE; ++k) x[j][k] -= sum[k];
    }
    for (int64_t j = 0; j < n; ++j)
#pragma omp simd
      for (int k = 0; k < SIDE; ++k) squares[k] += x[j][k] * x[j][k];
#pragma omp simd
    for (int k = 0; k < SIDE; ++k) {
      const A var = squares[k] * per;
      std[k] = std::sqrt(var);
      rstd[k] = 1 / std::sqrt(var + A(eps));
    }
    if (leaves_range(eps)) find_in_double(x, in, n, rows, center, eps);
  }
  // From the mean and std of each row.
  ALWAYS_INLINE void read(const A* means, const A* stds, int64_t rows, double eps) {
    for (int k = 0; k < SIDE; ++k) mean[k] = 0, std[k] = 1;
    if (means) copy_lanes(means, &mean[0], rows);
    copy_lanes(stds, &std[0], rows);
#pragma omp simd
    for (int k = 0; k < SIDE; ++k) {
      squares[k] = std[k] * std[k];
      rstd[k] = 1 / std::sqrt(squares[k] + A(eps));
    }
    if (!leaves_range(eps)) return;
    for (int k = 0; k < SIDE; ++k)
      if (out_of_range(double(squares[k]), eps)) rstd[k] = A(1 / std::sqrt(square(double(std[k])) + eps));
  }

 private:
  bool leaves_range(double eps) const {
    if (!std::is_same<A, float>::value) return false;
    const A high = A(HUGE_SQUARES), low = A(eps < TINY_SQUARES ? TINY_SQUARES : 0);
    int32_t odd = 0;
#pragma omp simd reduction(+ : odd)
    for (int k = 0; k < SIDE; ++k) odd += !(squares[k] < high) || squares[k] < low ? 1 : 0;
    return odd > 0;
  }
  OUT_OF_LINE void find_in_double(A (*x)[SIDE], const A* in, int64_t n, int64_t rows, bool center, double eps) {
    const double per = 1.0 / double(n);
    for (int64_t k = 0; k < rows; ++k) {
      if (!out_of_range(double(squares[k]), eps)) continue;
      double sum = 0, m2 = 0;
      for (int64_t j = 0; j < n && center; ++j) sum += double(in[k * n + j]);
      for (int64_t j = 0; j < n; ++j) {
        const double off = double(in[k * n + j]) - sum * per;
        m2 += off * off;
        x[j][k] = A(off);
      }
      mean[k] = A(sum * per);
      std[k] = A(std::sqrt(m2 * per));
      rstd[k] = A(1 / std::sqrt(m2 * per + eps));
    }
  }
};

}  // namespace
