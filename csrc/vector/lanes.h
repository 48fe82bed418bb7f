// Sums over n elements that loops see as T. Many independent sums keep the adders busy and the error small. How an
// element is summed depends on its place and on n alone.
#pragma once
#include "vector/memory.h"

namespace {

struct TwoSums { double a, b; };

// How many sums: with packs, four registers of them.
template <class T> constexpr int SUMS = PACKED<T> ? 4 * PACK : LANES;

template <int N, class A> inline double total(const A* lanes) {
  A t = 0;
#pragma omp simd reduction(+ : t)
  for (int j = 0; j < N; ++j) t += lanes[j];
  return double(t);
}

// Adds to N sums each what `term(at, a, b)` gives for n elements.
template <int N, class T, class Term>
ALWAYS_INLINE void add_lanes(int64_t n, arithmetic<T>* a, arithmetic<T>* b, const Term& term) {
  using A = arithmetic<T>;
  int64_t i = 0;
  if constexpr (PACKED<T>) {
    constexpr int P = N / PACK;
    Pack pa[P], pb[P], u, v;
    for (int k = 0; k < P; ++k) pa[k] = Whole{k * PACK}(a), pb[k] = Whole{k * PACK}(b);
    for (; i + N <= n; i += N) {
      for (int k = 0; k < P; ++k) {
        term(Whole{i + k * PACK}, u, v);
        pa[k] += u;
        pb[k] += v;
      }
    }
    for (int k = 0; k < P && i < n; ++k, i += PACK) {
      if (i + PACK <= n) term(Whole{i}, u, v);
      else term(Part{i, first_lanes(n - i)}, u, v);
      pa[k] += u;
      pb[k] += v;
    }
    for (int k = 0; k < P; ++k) Whole{k * PACK}.put(a, pa[k]), Whole{k * PACK}.put(b, pb[k]);
  } else {
    for (; i + N <= n; i += N) {
#pragma omp simd
      for (int j = 0; j < N; ++j) {
        A u, v;
        term(Element<A>{i + j}, u, v);
        a[j] += u;
        b[j] += v;
      }
    }
#pragma omp simd
    for (int j = 0; j < int(n - i); ++j) {
      A u, v;
      term(Element<A>{i + j}, u, v);
      a[j] += u;
      b[j] += v;
    }
  }
}

// TwoSums running sums, for when the elements come in several pieces.
template <class T> struct Lanes {
  using A = arithmetic<T>;
  static constexpr int N = SUMS<T>;
  A a[N] = {}, b[N] = {};
  int64_t held = 0;
  double ta = 0, tb = 0;

  template <class Term> void add(int64_t n, const Term& term) {
    A la[N], lb[N];  // local, so that they can live in registers
    for (int j = 0; j < N; ++j) la[j] = a[j], lb[j] = b[j];
    add_lanes<N, T>(n, la, lb, term);
    for (int j = 0; j < N; ++j) a[j] = la[j], b[j] = lb[j];
    held += n;
  }
  // Called where it does not depend on how a block was cut: that must not show in the bits.
  void block_done() {
    if (held > 2 * BLOCK) flush();
  }
  void flush() {
    ta += total<N>(a);
    tb += total<N>(b);
    for (int j = 0; j < N; ++j) a[j] = b[j] = 0;
    held = 0;
  }
};

template <int N, class T, class Term> inline TwoSums sum_two_in(int64_t n, const Term& term) {
  arithmetic<T> a[N] = {}, b[N] = {};
  add_lanes<N, T>(n, a, b, term);
  return {total<N>(a), total<N>(b)};
}
template <class T, class Term> inline TwoSums sum_two(int64_t n, const Term& term) {
  return n < 2 * SUMS<T> ? sum_two_in<SUMS<T> / 4, T>(n, term) : sum_two_in<SUMS<T>, T>(n, term);
}
template <class T> inline double sum_one(const T* x, int64_t n) {
  if constexpr (PACKED<T>) {
    return sum_two<T>(n, [x](auto at, auto& a, auto& b) { a = at(x), b = a - a; }).a;
  } else {
    const auto sum_in = [x, n](auto lanes) {
      constexpr int N = decltype(lanes)::value;
      T s[N] = {};
      int64_t i = 0;
      for (; i + N <= n; i += N) {
#pragma omp simd
        for (int j = 0; j < N; ++j) s[j] += x[i + j];
      }
#pragma omp simd
      for (int j = 0; j < int(n - i); ++j) s[j] += x[i + j];
      return total<N>(s);
    };
    if (n < 2 * LANES) return sum_in(std::integral_constant<int, LANES / 4>());
    return sum_in(std::integral_constant<int, LANES>());
  }
}

}  // namespace
