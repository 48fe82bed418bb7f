// What short rows of the forward pass do side by side, SIDE of them.
#pragma once
#include "block/moments.h"
#include "vector/side.h"
#include "walk/transposed.h"

namespace {

// The moments of `rows` rows of n elements, at most SIDE of them; the sums of all rows are taken together.
template <class T>
void moments_side_by_side(const T* const* in, int64_t n, int64_t rows, bool center, double eps, double* mu, double* var) {
  using A = arithmetic<T>;
  A a[SIDE] = {}, b[SIDE] = {}, guess[SIDE] = {};
  const double per = 1.0 / double(n);
  if (center) {
    const int64_t some = PACKED<T> ? min(n, SIDE) : n;  // as in `guess_mean`
    sums_of_rows<SIDE, T>(some, rows, a, b, [&](int64_t k) {
      return [p = in[k]](auto at, auto& u, auto& v) { u = at(p), v = u - u; };
    });
#pragma omp simd
    for (int k = 0; k < SIDE; ++k) guess[k] = A(double(a[k]) / double(some));
  }
  sums_of_rows<SIDE, T>(n, rows, a, b, [&](int64_t k) {
    return [p = in[k], m = guess[k]](auto at, auto& u, auto& v) { u = at(p, m) - m, v = u * u; };
  });
  const auto is_exact = [&](int64_t k) {
    const bool far_off = PACKED<T> && square(mu[k] - double(guess[k])) > FAR_OFF * var[k];
    return !far_off && !out_of_range(double(b[k]), eps);
  };
  int64_t exact = 0;
#pragma omp simd reduction(+ : exact)
  for (int k = 0; k < SIDE; ++k) {
    const double shift = center ? double(a[k]) * per : 0, rest = double(b[k]) - shift * double(a[k]);
    mu[k] = double(guess[k]) + shift;
    var[k] = (rest < 0 ? 0 : rest) * per;
    exact += is_exact(k) ? 1 : 0;
  }
  for (int64_t k = 0; k < rows && exact < SIDE; ++k) {
    if (is_exact(k)) continue;
    const Moments m = moments_of(in[k], n, center, eps);
    mu[k] = m.mean, var[k] = m.m2 * per;
  }
}

// `rows` numbers, at most SIDE; value(k) also exists for the others.
template <class A, class Value> void store_some(int64_t rows, A* to, const Value& value) {
  alignas(LINE) A all[SIDE];
#pragma omp simd
  for (int k = 0; k < SIDE; ++k) all[k] = value(k);
  copy_lanes(all, to, rows);
}

}  // namespace
