// Mean and sum of squared deviations, merged by Chan's formula (Chan, Golub & LeVeque 1983).
#pragma once
#include "vector/lanes.h"

namespace {

struct Moments {
  double count = 0, mean = 0, m2 = 0;

  void merge(const Moments& other) {
    if (count == 0 || other.count == 0) {
      if (count == 0) *this = other;
      return;
    }
    const double total = count + other.count, delta = other.mean - mean;
    const double share = other.count / total;
    mean += delta * share;
    m2 += other.m2 + delta * delta * count * share;
    count = total;
  }
};

// fp32 squares with such sums have overflowed, or underflowed where eps does not hide it: the block is then summed
// again in double.
constexpr double HUGE_SQUARES = 1e37, TINY_SQUARES = 1e-28;
inline bool out_of_range(double squares, double eps) {
  return !(squares < HUGE_SQUARES) || (squares < TINY_SQUARES && eps < TINY_SQUARES);
}

inline double square(double s) { return s * s; }

// How far a guess may be from the mean, squared and in variances, before the deviations from it are too inexact.
constexpr double FAR_OFF = 16;

// TwoSums passes over a block that is in the cache: a mean, then the deviations from it, whose own sum corrects the
// mean. In stages, so that several short rows can go through them side by side.
template <class T> arithmetic<T> guess_mean(const T* x, int64_t n, bool center) {
  using A = arithmetic<T>;
  if (!center) return A(0);
  // With half precision a guess that is a little off is good enough, and saves a pass.
  const int64_t some = PACKED<T> && n > LANES ? LANES : n;
  return A(sum_one(x, some) * (1.0 / double(some)));
}
template <class T> TwoSums deviations(const T* x, int64_t n, arithmetic<T> guess) {
  return sum_two<T>(n, [x, guess](auto at, auto& d, auto& d2) {
    d = at(x, guess) - guess;
    d2 = d * d;
  });
}
template <class T>
Moments conclude(const T* x, int64_t n, arithmetic<T> guess, const TwoSums& sums, bool center, double eps) {
  const double shift = center ? sums.a * (1.0 / double(n)) : 0, off = shift * sums.a;
  // Squares that are all 0 cannot tell whether another guess is better, and would ask for one forever.
  const bool far_off = PACKED<T> && center && sums.b > 0 && off > FAR_OFF * (sums.b - off);
  if (far_off && guess != arithmetic<T>(double(guess) + shift)) {
    const arithmetic<T> better = arithmetic<T>(double(guess) + shift);
    return conclude(x, n, better, deviations(x, n, better), center, eps);
  }
  Moments m{double(n), double(guess) + shift, sums.b - off};
  if (!std::is_same<T, double>::value && out_of_range(sums.b, eps)) {
    double s = 0, q = 0;
    for (int64_t i = 0; center && i < n; ++i) s += double(widen(x[i]));
    m.mean = s / double(n);
    for (int64_t i = 0; i < n; ++i) q += square(double(widen(x[i])) - m.mean);
    m.m2 = q;
  }
  if (m.m2 < 0) m.m2 = 0;
  return m;
}
template <class T> OUT_OF_LINE Moments moments_of(const T* x, int64_t n, bool center, double eps) {
  const arithmetic<T> guess = guess_mean(x, n, center);
  return conclude(x, n, guess, deviations(x, n, guess), center, eps);
}

// How moments are applied: y = (x - mean) * rstd + shift, the mean in the arithmetic type and `shift` its rest; n of
// them.
template <class A>
void scales_of(int64_t n, const double* mu, const double* var, double eps, A* mean, A* rstd, A* shift) {
#pragma omp simd
  for (int64_t k = 0; k < n; ++k) {
    const double r = 1.0 / std::sqrt(var[k] + eps);
    mean[k] = A(mu[k]);
    rstd[k] = A(r);
    shift[k] = A((double(mean[k]) - mu[k]) * r);
  }
}
// The same for values that are stored in half precision, for which roots in the arithmetic type are exact enough; where
// all variances are in its range.
inline void scales_of_halves(
    int64_t n, const double* mu, const double* var, double eps, float* mean, float* rstd, float* shift) {
  int64_t outside = 0;
#pragma omp simd reduction(+ : outside)
  for (int64_t k = 0; k < n; ++k) outside += var[k] + eps > 1e-37 && var[k] + eps < 1e37 ? 0 : 1;
  if (outside) return scales_of(n, mu, var, eps, mean, rstd, shift);
#pragma omp simd
  for (int64_t k = 0; k < n; ++k) {
    mean[k] = float(mu[k]);
    rstd[k] = 1.0f / std::sqrt(float(var[k] + eps));
    shift[k] = float(double(mean[k]) - mu[k]) * rstd[k];
  }
}

// One of them.
template <class A> struct Scale {
  A mean, rstd, shift;

  Scale() = default;
  Scale(double m, double var, double eps) { scales_of(1, &m, &var, eps, &mean, &rstd, &shift); }
};

// The same for G rows side by side.
template <class A, int G> struct Scales {
  alignas(LINE) A mean[G], rstd[G], shift[G];

  // `halves`: of what is stored in half precision.
  Scales(const double* mu, const double* var, double eps, bool halves = false) {
    if constexpr (std::is_same<A, float>::value) {
      if (halves) {
        scales_of_halves(int64_t(G), mu, var, eps, mean, rstd, shift);
        return;
      }
    }
    scales_of(int64_t(G), mu, var, eps, mean, rstd, shift);
  }
  Scale<A> of(int64_t k) const {
    Scale<A> s;
    s.mean = mean[k], s.rstd = rstd[k], s.shift = shift[k];
    return s;
  }
};

// The length of a cell with that sum of squares; 1 where it is 0, because the cell is divided by it.
inline double length_of(double squares) { return squares > 0 ? std::sqrt(squares) : 1; }

}  // namespace
