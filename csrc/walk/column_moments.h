// Sums and moments down the columns of a tile.
#pragma once
#include "block/moments.h"
#include "block/source.h"
#include "walk/tiles.h"

namespace {

// Moments of the columns of a tile over some rows, all columns over the same number of them.
struct ColumnMoments {
  double count = 0;
  alignas(LINE) double mean[TILE], m2[TILE];

  void merge(double n, const double* other_mean, const double* other_m2, int64_t columns) {
    const double total = count + n, share = n / total, weight = count * share;
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j) {
      const double delta = (count == 0 ? 0.0 : other_mean[j] - mean[j]);
      mean[j] = count == 0 ? other_mean[j] : mean[j] + delta * share;
      m2[j] = (count == 0 ? 0.0 : m2[j]) + other_m2[j] + delta * delta * weight;
    }
    count = total;
  }
};

// Sums down the columns, four rows at a time: fewer trips to the accumulators, and shorter chains of rounding. row(r,
// k) makes row r ready in slot k; term(that, k, at, a, b) gives what its column adds; fetch(r, j, n) may prefetch what
// comes later than columns [j, j + n) of row r.
template <int K> using Slot = std::integral_constant<int, K>;
template <class T, class A, class Row, class Fetch, class Term>
void sum_columns(int64_t rows, int64_t n, A* sa, A* sb, const Row& row, const Fetch& fetch, const Term& term) {
  for (int64_t j = 0; j < n; ++j) sa[j] = sb[j] = 0;
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    const auto r0 = row(r, 0), r1 = row(r + 1, 1), r2 = row(r + 2, 2), r3 = row(r + 3, 3);
    const auto add = [&](int64_t left, int64_t right) {
      for (int64_t k = 0; k < 4; ++k) fetch(r + k, left, right - left);
      each<T>(left, right, [&](auto at) {
        auto a0 = at(sa), b0 = a0, a1 = a0, b1 = a0, a2 = a0, b2 = a0, a3 = a0, b3 = a0;
        term(r0, Slot<0>(), at, a0, b0);
        term(r1, Slot<1>(), at, a1, b1);
        term(r2, Slot<2>(), at, a2, b2);
        term(r3, Slot<3>(), at, a3, b3);
        at.put(sa, at(sa) + ((a0 + a1) + (a2 + a3)));
        at.put(sb, at(sb) + ((b0 + b1) + (b2 + b3)));
      });
    };
    if (n <= BURST) {
      add(0, n);
    } else {
      for (int64_t left = 0; left < n; left += BURST / 4) add(left, min(left + BURST / 4, n));
    }
  }
  for (; r < rows; ++r) {
    const auto one = row(r, 0);
    each<T>(0, n, [&](auto at) {
      auto a = at(sa), b = a;
      term(one, Slot<0>(), at, a, b);
      at.put(sa, at(sa) + a);
      at.put(sb, at(sb) + b);
    });
  }
}

// Moments of a panel: `rows` rows of n columns from offset `at`, `stride` apart.
//
// Deviations are taken from a guess, the mean of the rows before the panel. Where there is none yet, or its squared
// distance from the mean is more than OFF variances, a pass over the panel finds a better one first. Where squares
// leave the range of fp32, a column is summed again in double.
template <class S, class T> class Panel {
  using A = arithmetic<S>;
  static constexpr double OFF = sizeof(S) == 2 ? FAR_OFF : 2;
  const Source<S, T>& source;
  const A* padding;  // the value that replaces it in each column
  int64_t at, stride, rows, n, ahead;
  bool center;
  double eps;
  alignas(LINE) A s[TILE], q[TILE], guess[TILE];  // sums of deviations from the guess, and of their squares
  alignas(LINE) double mean[TILE], m2[TILE];
  bool outside = false;  // whether squares left the range of fp32 in some column

 public:
  Panel(const Source<S, T>& from, const A* replacement, int64_t offset, int64_t row_stride, int64_t height,
        int64_t columns, int64_t rows_ahead, const Forward& f)
      : source(from), padding(replacement), at(offset), stride(row_stride), rows(height), n(columns), ahead(rows_ahead),
        center(f.center), eps(f.eps) {}

  // get(offset, n, buffer) reads a row.
  template <class Get> void merge_into(ColumnMoments& into, const Get& get) {
    T buffer[4 * TILE];
    const auto row = [&get, slots = &buffer[0], at = at, n = n, stride = stride](int64_t r, int k) {
      return get(at + r * stride, n, slots + k * TILE);
    };
    for (int64_t j = 0; j < n; ++j) guess[j] = center && into.count > 0 ? A(into.mean[j]) : A(0);
    if ((center && into.count == 0) || (deviate(row) && center)) {
      find_guess(row);
      deviate(row);
    }
    if (std::is_same<A, float>::value && outside) sum_in_double();
    into.merge(double(rows), mean, m2, n);
  }

  // The same where all is padding.
  void merge_padding_into(ColumnMoments& into) {
    for (int64_t j = 0; j < n; ++j) mean[j] = double(padding[j]), m2[j] = 0;
    into.merge(double(rows), mean, m2, n);
  }

 private:
  auto fetch() const {
    return [x = source.x + at, stride = stride, ahead = ahead](int64_t r, int64_t j, int64_t some) {
      if (ahead) prefetch(x + (r + ahead) * stride + j, some);
    };
  }
  template <class Row> void find_guess(const Row& row) {
    sum_columns<T>(
        rows, n, s, q, row, fetch(), [](const T* p, auto, auto at, auto& a, auto& b) { a = at(p), b = a - a; });
    const double per = 1.0 / double(rows);
    for (int64_t j = 0; j < n; ++j) guess[j] = A(double(s[j]) * per);
  }
  // Moments from the deviations; whether the guess was too far off, or squares left the range, in some column.
  template <class Row> bool deviate(const Row& row) {
    const double per = 1.0 / double(rows);
    sum_columns<T>(rows, n, s, q, row, fetch(), [g = &guess[0]](const T* p, auto, auto at, auto& a, auto& b) {
      a = at(p) - at(g);
      b = a * a;
    });
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const double sum = double(s[j]), squares = double(q[j]);
      const double shift = center ? sum * per : 0, off = shift * sum, rest = squares - off;
      mean[j] = double(guess[j]) + shift;
      m2[j] = rest < 0 ? 0 : rest;
    }
    // In a separate loop, and counted in the arithmetic's width: mixed widths would cost several times as much.
    using Count = typename std::conditional<sizeof(A) == 4, int32_t, int64_t>::type;
    const A too_far = center ? A((1 + 1 / OFF) * per) : A(0), high = A(HUGE_SQUARES);
    const A low = eps < TINY_SQUARES ? A(TINY_SQUARES) : A(0);
    Count far = 0, odd = 0;
#pragma omp simd reduction(+ : far, odd)
    for (int64_t j = 0; j < n; ++j) {
      far += too_far * s[j] * s[j] > q[j] ? 1 : 0;
      odd += !(q[j] < high) || q[j] < low ? 1 : 0;
    }
    outside = odd > 0;
    return far + odd > 0;
  }
  void sum_in_double() {
    for (int64_t j = 0; j < n; ++j) {
      if (!out_of_range(double(q[j]), eps)) continue;
      const auto value = [&](int64_t r) { return source.value(at + r * stride + j, source.mask ? padding[j] : A(0)); };
      double sum = 0, squares = 0;
      for (int64_t r = 0; center && r < rows; ++r) sum += value(r);
      mean[j] = sum / double(rows);
      for (int64_t r = 0; r < rows; ++r) squares += (value(r) - mean[j]) * (value(r) - mean[j]);
      m2[j] = squares;
    }
  }
};

}  // namespace
