// The backward pass of short rows with a weight for each element, G rows at a time: the roots of all are taken
// together, and there are few trips to the sums of weight gradients. Half precision is converted once: x_hat and dy *
// weight, whose sums are taken first, are kept for the steps after that.
#pragma once
#include "block/affine.h"
#include "block/moments.h"
#include "block/upstream.h"
#include "block/writer.h"
#include "vector/side.h"

namespace {

// The longest rows that go SIDE at a time: there are two tensors to keep in the cache.
constexpr int64_t SIDE_BACKWARD = 96;

template <class S, class T, int G> struct ShortRows {
  using A = arithmetic<S>;
  static constexpr int64_t ROOM = G == SIDE ? SIDE_BACKWARD : BLOCK;
  static constexpr int64_t KEPT = PACKED<T> ? G * ROOM : 1;
  const int64_t n, rows;
  const A* const w;
  const Scales<A, G> scales;
  const T *x[G], *g[G];   // g: dy
  alignas(LINE) A c1[G] = {}, c2[G] = {};  // dx = dy * weight * rstd + x_hat * c2 + c1
  alignas(LINE) T bx[G * ROOM], bg[G * ROOM];
  alignas(LINE) A hats[KEPT], weighted[KEPT];

  ShortRows(int64_t length, int64_t number, const A* weight, const Scales<A, G>& s)
      : n(length), rows(number), w(weight), scales(s) {}

  // x_hat and dy * weight of row k, as loops see them.
  auto hat_of(int64_t k) const {
    if constexpr (PACKED<T>) return [h = hats + k * ROOM](auto at) { return at(h); };
    else return [px = x[k], m = scales.mean[k], rstd = scales.rstd[k]](auto at) { return (at(px) - m) * rstd; };
  }
  auto weighted_of(int64_t k) const {
    if constexpr (PACKED<T>) return [q = weighted + k * ROOM](auto at) { return at(q); };
    else return [pg = g[k], w = w](auto at) { return w ? at(pg) * at(w) : at(pg); };
  }

  // c1, c2 = the sums of dy * weight and dy * weight * x_hat.
  void sum() {
    sums_of_rows<G, T>(n, rows, c1, c2, [&](int64_t k) {
      const T *px = x[k], *pg = g[k];
      const auto both = [px, pg, m = scales.mean[k], rstd = scales.rstd[k], w = w](auto at, auto& u, auto& v) {
        u = at(pg);
        if (w) u = u * at(w);
        v = (at(px) - m) * rstd;
      };
      if constexpr (PACKED<T>) {
        return [both, h = hats + k * ROOM, q = weighted + k * ROOM](auto at, auto& u, auto& v) {
          both(at, u, v);
          at.put(q, u), at.put(h, v);
          v = u * v;
        };
      } else {
        return [both](auto at, auto& u, auto& v) {
          both(at, u, v);
          v = u * v;
        };
      }
    });
  }
  // From the sums to the factors of dx; per[k] is 1 / the number of elements of row k.
  void finish(const A* per, bool center) {
#pragma omp simd
    for (int k = 0; k < G; ++k) {
      c1[k] = center ? -scales.rstd[k] * (c1[k] * per[k]) : A(0);
      c2[k] = -scales.rstd[k] * (c2[k] * per[k]);
    }
  }
  // The same where the moments are constants.
  void finish_constant() {
    for (int k = 0; k < G; ++k) c1[k] = c2[k] = 0;
  }
  // tw, tb: n sums each of dy * x_hat and of dy.
  void add_weight_gradients(A* tw, A* tb) const {
    int64_t k = 0;
    for (; k + 4 <= rows; k += 4) {
      const auto h0 = hat_of(k), h1 = hat_of(k + 1), h2 = hat_of(k + 2), h3 = hat_of(k + 3);
      const T *g0 = g[k], *g1 = g[k + 1], *g2 = g[k + 2], *g3 = g[k + 3];
      each<T>(0, n, [=](auto at) {
        at.put(tw, at(tw) + ((at(g0) * h0(at) + at(g1) * h1(at)) + (at(g2) * h2(at) + at(g3) * h3(at))));
        at.put(tb, at(tb) + ((at(g0) + at(g1)) + (at(g2) + at(g3))));
      });
    }
    for (; k < rows; ++k) {
      each<T>(0, n, [tw, tb, h = hat_of(k), pg = g[k]](auto at) {
        at.put(tw, at(tw) + at(pg) * h(at));
        at.put(tb, at(tb) + at(pg));
      });
    }
  }
  // dx of the rows from `first` on.
  void write(S* dx, int64_t first, Writer<S, T>& writer, const Upstream<S, T>& source) const {
    const int64_t step = G == SIDE ? BURST / n : 1;
    for (int64_t done = 0; done < rows; done += step) {
      const int64_t some = min(step, rows - done), at = (first + done) * n;
      T* out = writer.open(dx + at);
      for (int64_t k = done; k < done + some; ++k) {
        T* q = out + (k - done) * n;
        each<T>(0, n, [q, rstd = scales.rstd[k], b1 = c1[k], b2 = c2[k], h = hat_of(k), u = weighted_of(k)](auto i) {
          i.put(q, u(i) * rstd + h(i) * b2 + b1);
        });
        source.through_gate(q, at + (k - done) * n, n, source.gaps().before(first + k));
      }
      writer.close(some * n);
    }
  }
};

}  // namespace
