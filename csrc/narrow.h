// Rows of a few elements, each a cell: SIDE of them are turned so that they lie side by side, and every step is one vector
// instruction for all. A row's bits do not depend on its neighbours: all lanes do the same.
#pragma once
#include "affine.h"
#include "source.h"
#include "upstream.h"
#include "writer.h"
#include "side.h"

namespace {

constexpr int64_t NARROW = 16;

template <class A> bool is_narrow(const View& v, const Affine<A>& affine) {
  return v.r0 == 1 && v.k1 == 1 && v.r1 <= NARROW && (affine.whole_row || (!affine.weight && !affine.bias));
}

// SIDE rows of n elements as n vectors; lanes beyond the last row repeat it.
template <class S, class A> void turn_in(const S* x, int64_t n, int64_t rows, A (*out)[SIDE]) {
  A buffer[NARROW * SIDE];
  const A* in = converted(x, buffer, n * rows);
  if constexpr (ACROSS<A>) {
    transpose_in(in, n, rows, out);
    return;
  }
  for (int64_t j = 0; j < n; ++j)
    for (int64_t k = 0; k < SIDE; ++k) out[j][k] = in[(k < rows ? k : rows - 1) * n + j];
}
template <class S, class A> void turn_out(const A (*in)[SIDE], int64_t n, int64_t rows, S* y, Writer<S>& writer) {
  constexpr bool DIRECT = std::is_same<Seen<S>, A>::value;
  A buffer[DIRECT ? 1 : NARROW * SIDE], *out = buffer;
  Seen<S>* q = writer.open(y);
  if constexpr (DIRECT) out = q;
  if constexpr (ACROSS<A>) {
    transpose_out(in, n, rows, out);
  } else {
    for (int64_t k = 0; k < rows; ++k)
      for (int64_t j = 0; j < n; ++j) out[k * n + j] = in[j][k];
  }
  if constexpr (!DIRECT) each<S>(0, n * rows, [p = out, q](auto at) { at.put(q, at(p)); });
  writer.close(n * rows);
}

// `Scale` for G rows side by side.
template <class A, int G = SIDE> struct Scales {
  A mean[G], rstd[G], shift[G];

  Scales(const double* mu, const double* var, double eps) { scales_of(int64_t(G), mu, var, eps, mean, rstd, shift); }
  Scale<A> of(int64_t k) const {
    Scale<A> s;
    s.mean = mean[k], s.rstd = rstd[k], s.shift = shift[k];
    return s;
  }
};

// mean, std: where to write SIDE of them.
template <class A>
void narrow_moments(const A (*x)[SIDE], int64_t n, bool center, double eps, double* mean, double* var) {
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

template <class S, class A>
void forward_narrow(const S* x, S* y, A* mean, A* dev, int64_t n, int64_t rows, const Affine<A>& affine, bool center, double eps,
                    Writer<S>& writer) {
  A in[NARROW][SIDE];
  double mu[SIDE], var[SIDE];
  turn_in(x, n, rows, in);
  narrow_moments(in, n, center, eps, mu, var);
  const Scales<A> s(mu, var, eps);
  A root[SIDE];
#pragma omp simd
  for (int k = 0; k < SIDE; ++k) root[k] = A(std::sqrt(var[k]));
  for (int64_t k = 0; k < rows && mean; ++k) mean[k] = A(mu[k]);
  for (int64_t k = 0; k < rows && dev; ++k) dev[k] = root[k];
  for (int64_t j = 0; j < n; ++j) {
    const A w = affine.w(j), b = affine.b(j);
#pragma omp simd
    for (int k = 0; k < SIDE; ++k) in[j][k] = ((in[j][k] - s.mean[k]) * s.rstd[k] + s.shift[k]) * w + b;
  }
  turn_out(in, n, rows, y, writer);
}

// tw, tb: n sums each of dy * x_hat and dy, added to; null where not wanted. dx may be null.
template <class S, class A>
void backward_narrow(const S* dy, const S* x, const A* mean, const A* dev, S* dx, int64_t n, int64_t rows,
                     const Affine<A>& affine, bool center, bool fixed, double eps, A* tw, A* tb, Writer<S>& writer) {
  A in[NARROW][SIDE], g[NARROW][SIDE], s1[SIDE] = {}, s2[SIDE] = {};
  double mu[SIDE], var[SIDE];
  turn_in(x, n, rows, in);
  turn_in(dy, n, rows, g);
  for (int64_t k = 0; k < SIDE; ++k) {
    const int64_t row = k < rows ? k : rows - 1;
    mu[k] = center || fixed ? double(mean[row]) : 0;
    var[k] = square(dev[row]);
  }
  const Scales<A> s(mu, var, eps);
  for (int64_t j = 0; j < n; ++j) {
    const A w = affine.w(j);
    A sw[SIDE], sb[SIDE];
#pragma omp simd
    for (int k = 0; k < SIDE; ++k) {
      in[j][k] = (in[j][k] - s.mean[k]) * s.rstd[k];
      sw[k] = k < rows ? g[j][k] * in[j][k] : A(0);
      sb[k] = k < rows ? g[j][k] : A(0);
      g[j][k] *= w;
      s1[k] += g[j][k];
      s2[k] += g[j][k] * in[j][k];
    }
    if (tw) {
      tw[j] += A(total<SIDE>(sw));
      tb[j] += A(total<SIDE>(sb));
    }
  }
  if (!dx) return;
  const A per = fixed ? A(0) : A(1.0 / double(n)), per1 = center ? per : A(0);
  for (int64_t j = 0; j < n; ++j)
#pragma omp simd
    for (int k = 0; k < SIDE; ++k) g[j][k] = s.rstd[k] * (g[j][k] - s1[k] * per1 - in[j][k] * (s2[k] * per));
  turn_out(g, n, rows, dx, writer);
}

}  // namespace
