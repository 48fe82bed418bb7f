// Walking along rows, backward.
#pragma once
#include "rows.h"

namespace {

// Rows up to which their sums are taken side by side: there are two tensors to keep in the cache.
constexpr int64_t SIDE_BACKWARD = 96;
template <int N> using Count = std::integral_constant<int, N>;

// The two sums that a cell's dx needs: of g = dy * weight, and of g * x_hat.
struct CellSums {
  double g = 0, gx = 0;
};

template <class S> void backward_rows(const View& v, const Backward& f, const Pool& pool) {
  using A = arithmetic<S>;
  using T = Seen<S>;
  const Upstream<S> source(f), shown = (needs_sums(f) ? source.again() : source).unmasked();
  const A *mean = static_cast<const A*>(f.mean), *dev = static_cast<const A*>(f.std);
  S* dx = static_cast<S*>(f.dx);
  const Affine<A> affine(v, f.weight, f.fused ? f.fused->bias : nullptr);
  const bool sums_needed = needs_sums(f);
  const Spans spans(v);
  const Share share(v, spans, pool);

  // Weight gradients: a vector of slots for each of a fixed number of cells, or in every row a slot for each run of
  // constant weight in each span; the sum of both numbers names the pair, as both only grow along the row.
  const int64_t grain = least(affine.inner, v.r1);
  const int64_t per_row = (v.r1 - 1) / grain + (v.r1 - 1) / CHUNK + 1;
  const int64_t busy = ceil_div(v.cells(), CELLS_PER_VECTOR) > FEWEST ? ceil_div(v.cells(), CELLS_PER_VECTOR) : FEWEST;
  const int64_t per_vector = ceil_div(v.cells(), least(v.cells(), least(VECTORS, busy)));
  const int64_t vectors = ceil_div(v.cells(), per_vector);
  AffineGrads<A> grads(f.dweight, f.dbias, affine.vector ? vectors * affine.period : v.numel() / v.r1 * per_row);

  const auto scale_of = [&](int64_t cell) {
    return Scale<A>(f.center || f.fixed ? double(mean[cell]) : 0.0, square(dev[cell]), f.eps);
  };
  const auto count_of = [&](int64_t cell) {
    const double count = source.mask ? f.fused->counts[cell] : double(v.count());
    return f.length ? 1 : count > 0 ? count : 1;
  };
  // What the activation was given.
  const auto z_of = [&](int64_t at, int64_t j, int64_t n, const Scale<A>& scale) {
    return [&affine, at, j, n, m = scale.mean, rstd = scale.rstd](const T* in, A* out) {
      affine.pieces(at, j, n, [&](int64_t start, int64_t length, int64_t index) {
        const T* p = in + start;
        A* z = out + start;
        if (affine.vector) {
          for (int64_t i = 0; i < length; ++i)
            z[i] = ((A(widen(p[i])) - m) * rstd) * affine.w(index + i) + affine.b(index + i);
        } else {
          const A w = affine.w(index) * rstd, b = affine.b(index);
          each<T>(0, length, [=](auto at) { at.put(z, (at(p) - m) * w + b); });
        }
      });
    };
  };
  const auto sums_of_span = [&](int64_t cell, int64_t s, const Scale<A>& scale) {
    CellSums sums;
    T bx[BLOCK], bg[BLOCK];
    const A m = scale.mean, rstd = scale.rstd;
    spans.blocks(cell, s, [&](int64_t at, int64_t j, int64_t n, int64_t) {
      const T* px = source.input(at, n, bx, Constant<A>{m});
      const T* pg = source.gradient(at, n, bg, px, z_of(at, j, n, scale));
      affine.pieces(at, j, n, [&](int64_t start, int64_t length, int64_t index) {
        const T *p = px + start, *g = pg + start;
        if (affine.vector && affine.weight) {
          const A* w = affine.weight + index;
          const Two two = sum_two<T>(length, [=](auto at, auto& a, auto& b) {
            a = at(g) * at(w);
            b = a * ((at(p) - m) * rstd);
          });
          sums.g += two.a;
          sums.gx += two.b;
        } else {
          const Two two = sum_two<T>(length, [=](auto at, auto& a, auto& b) {
            a = at(g);
            b = a * ((at(p) - m) * rstd);
          });
          const double w = affine.vector ? 1.0 : double(affine.w(index));
          sums.g += two.a * w;
          sums.gx += two.b * w;
          if (!affine.vector && grads.wanted()) {
            const int64_t place = j + start;
            const int64_t slot = divide(at - j, v.r1) * per_row + divide(place, grain) + place / CHUNK;
            grads.w[slot] += A(two.b);
            grads.b[slot] += A(two.a);
          }
        }
        if (affine.vector && grads.wanted()) {
          A* tw = grads.w.data() + cell / per_vector * affine.period + index;
          A* tb = grads.b.data() + cell / per_vector * affine.period + index;
          each<T>(0, length, [=](auto at) {
            at.put(tw, at(tw) + at(g) * ((at(p) - m) * rstd));
            at.put(tb, at(tb) + at(g));
          });
        }
      });
    });
    return sums;
  };
  const auto apply_span = [&](int64_t cell, int64_t s, const Scale<A>& scale, const CellSums& sums, Writer<S>& writer) {
    T bx[BLOCK], bg[BLOCK];
    const double count = count_of(cell);
    const A m = scale.mean, rstd = scale.rstd;
    const A c1 = f.fixed || !f.center ? A(0) : -rstd * A(sums.g / count);
    const A c2 = f.fixed ? A(0) : -rstd * A(sums.gx / count);
    spans.blocks(cell, s, [&](int64_t at, int64_t j, int64_t n, int64_t) {
      const T* px = shown.input(at, n, bx, Constant<A>{m});
      const T* pg = shown.gradient(at, n, bg, px, z_of(at, j, n, scale));
      T* out = writer.open(dx + at);
      affine.pieces(at, j, n, [&](int64_t start, int64_t length, int64_t index) {
        const T *p = px + start, *g = pg + start;
        T* q = out + start;
        if (affine.vector && affine.weight) {
          const A* w = affine.weight + index;
          each<T>(0, length, [=](auto at) { at.put(q, at(g) * (at(w) * rstd) + ((at(p) - m) * rstd) * c2 + c1); });
        } else {
          const A a = rstd * (affine.vector ? A(1) : affine.w(index));
          each<T>(0, length, [=](auto at) { at.put(q, at(g) * a + ((at(p) - m) * rstd) * c2 + c1); });
        }
      });
      writer.close(n);
    });
  };

  Array<Scale<A>> scales(f.fixed && !affine.vector ? v.cells() : 0);
  for (int64_t cell = 0; cell < scales.size(); ++cell) scales[cell] = scale_of(cell);
  // Moments given and one weight for each run: nothing to wait for, so the rows in the order of memory.
  const auto rows_in_order = [&](int64_t from, int64_t to) {
    T bx[BLOCK], bg[BLOCK];
    Writer<S> writer(dx, v.numel(), f.fused);
    for (int64_t row = from; row < to; ++row) {
      const Scale<A>& scale = scales[v.cell_of_row(row)];
      const A m = scale.mean, rstd = scale.rstd;
      for (int64_t left = 0; left < v.r1; left += BLOCK) {
        const int64_t n = least(BLOCK, v.r1 - left), at = row * v.r1 + left;
        const T* px = source.input(at, n, bx, Constant<A>{m});
        const T* pg = source.gradient(at, n, bg, px, z_of(at, left, n, scale));
        T* out = dx ? writer.open(dx + at) : nullptr;
        affine.pieces(at, left, n, [&](int64_t start, int64_t length, int64_t index) {
          const T *p = px + start, *g = pg + start;
          if (grads.wanted()) {
            const Two two = sum_two<T>(length, [=](auto at, auto& a, auto& b) {
              a = at(g);
              b = a * ((at(p) - m) * rstd);
            });
            const int64_t place = left + start, slot = row * per_row + divide(place, grain) + place / CHUNK;
            grads.w[slot] += A(two.b);
            grads.b[slot] += A(two.a);
          }
          const A a = rstd * affine.w(index);
          each<T>(0, dx ? length : 0, [=, q = out + start](auto at) { at.put(q, at(g) * a); });
        });
        if (dx) writer.close(n);
      }
    }
  };
  // Short rows with a weight for each element, G at a time: the roots of all at once, and few trips to the sums of weight
  // gradients. Half precision is converted once: what its sums are of is kept for what follows them.
  const auto short_rows = [&](auto group, int64_t first, int64_t rows, Writer<S>& writer) {
    constexpr int G = decltype(group)::value;
    constexpr int64_t ROOM = G == SIDE ? SIDE_BACKWARD : BLOCK;
    T bx[G * ROOM], bg[G * ROOM];
    A hats[PACKED<T> ? G * ROOM : 1], weighted[PACKED<T> ? G * ROOM : 1];
    const T *p[G], *g[G];
    double mu[G], var[G];
    const A* w = affine.weight;
    const int64_t n = v.r1;
    for (int64_t k = 0; k < G; ++k) {
      const int64_t cell = first + (k < rows ? k : 0);
      mu[k] = f.center || f.fixed ? double(mean[cell]) : 0;
      var[k] = square(dev[cell]);
    }
    const Scales<A, G> scales(mu, var, f.eps);
    for (int64_t k = 0; k < rows; ++k) {
      const int64_t at = (first + k) * n;
      p[k] = source.input(at, n, bx + k * ROOM, Constant<A>{scales.mean[k]});
      g[k] = source.gradient(at, n, bg + k * ROOM, p[k], z_of(at, 0, n, scales.of(k)));
    }
    const auto hat_of = [&](int64_t k) {
      if constexpr (PACKED<T>) return [h = hats + k * ROOM](auto at) { return at(h); };
      else return [px = p[k], m = scales.mean[k], rstd = scales.rstd[k]](auto at) { return (at(px) - m) * rstd; };
    };
    const auto weighted_of = [&](int64_t k) {
      if constexpr (PACKED<T>) return [q = weighted + k * ROOM](auto at) { return at(q); };
      else return [pg = g[k], w](auto at) { return w ? at(pg) * at(w) : at(pg); };
    };
    A c1[G] = {}, c2[G] = {};
    if (PACKED<T> || (dx && !f.fixed)) {
      sums_of_rows<G, T>(n, rows, c1, c2, [&](int64_t k) {
        return [px = p[k], pg = g[k], m = scales.mean[k], rstd = scales.rstd[k], w, h = hats + k * ROOM,
                q = weighted + k * ROOM](auto at, auto& u, auto& v) {
          u = at(pg);
          if (w) u = u * at(w);
          v = (at(px) - m) * rstd;
          if constexpr (PACKED<T>) at.put(q, u), at.put(h, v);
          v = u * v;
        };
      });
    }
    if (dx && !f.fixed) {
      A per[G];
      for (int k = 0; k < G; ++k) per[k] = A(1.0 / (source.mask && k < rows ? count_of(first + k) : double(n)));
#pragma omp simd
      for (int k = 0; k < G; ++k) {
        c1[k] = f.center ? -scales.rstd[k] * (c1[k] * per[k]) : A(0);
        c2[k] = -scales.rstd[k] * (c2[k] * per[k]);
      }
    } else {
      for (int k = 0; k < G; ++k) c1[k] = c2[k] = 0;  // the moments are constants
    }
    // Before dx: with an activation its memory still holds the gradient.
    const int64_t wanted = grads.wanted() ? rows : 0;
    A* tw = grads.w.data() + first / per_vector * n;
    A* tb = grads.b.data() + first / per_vector * n;
    int64_t k = 0;
    for (; k + 4 <= wanted; k += 4) {
      const auto h0 = hat_of(k), h1 = hat_of(k + 1), h2 = hat_of(k + 2), h3 = hat_of(k + 3);
      const T *g0 = g[k], *g1 = g[k + 1], *g2 = g[k + 2], *g3 = g[k + 3];
      each<T>(0, n, [=](auto at) {
        at.put(tw, at(tw) + ((at(g0) * h0(at) + at(g1) * h1(at)) + (at(g2) * h2(at) + at(g3) * h3(at))));
        at.put(tb, at(tb) + ((at(g0) + at(g1)) + (at(g2) + at(g3))));
      });
    }
    for (; k < wanted; ++k) {
      each<T>(0, n, [=, h = hat_of(k), pg = g[k]](auto at) {
        at.put(tw, at(tw) + at(pg) * h(at));
        at.put(tb, at(tb) + at(pg));
      });
    }
    for (int64_t k = 0; dx && k < rows; ++k) {
      const A rstd = scales.rstd[k], b1 = c1[k], b2 = c2[k];
      T* q = writer.open(dx + (first + k) * n);
      each<T>(0, n, [=, h = hat_of(k), u = weighted_of(k)](auto at) { at.put(q, u(at) * rstd + h(at) * b2 + b1); });
      writer.close(n);
    }
  };

  if (f.fixed && !affine.vector) {
    const int64_t step = ceil_div(GRAIN, v.r1);
    parallel(pool, ceil_div(v.rows(), step), [&](int64_t t) { rows_in_order(t * step, least(t * step + step, v.rows())); });
  } else if (share.split && !(affine.vector && grads.wanted())) {
    const int64_t tasks = v.cells() * spans.per_cell;
    Array<CellSums> partial(sums_needed ? tasks : 0), total(v.cells());
    if (sums_needed)
      parallel(pool, tasks, [&](int64_t t) {
        const int64_t cell = t / spans.per_cell;
        partial[t] = sums_of_span(cell, t % spans.per_cell, scale_of(cell));
      });
    for (int64_t t = 0; t < partial.size(); ++t) {
      total[t / spans.per_cell].g += partial[t].g;
      total[t / spans.per_cell].gx += partial[t].gx;
    }
    if (dx)
      parallel(pool, tasks, [&](int64_t t) {
        const int64_t cell = t / spans.per_cell;
        Writer<S> writer(dx, v.numel(), f.fused);
        apply_span(cell, t % spans.per_cell, scale_of(cell), total[cell], writer);
      });
  } else {
    const int64_t per_task = affine.vector && grads.wanted() ? per_vector : share.cells_per_task;
    parallel(pool, ceil_div(v.cells(), per_task), [&](int64_t task) {
      const int64_t end = least((task + 1) * per_task, v.cells());
      Writer<S> writer(dx, v.numel(), f.fused);
      if (is_narrow(v, affine) && !f.fused && (affine.whole_row || !grads.wanted())) {
        const int64_t vector = grads.wanted() ? task * per_task / per_vector * v.r1 : 0;
        for (int64_t cell = task * per_task; cell < end; cell += SIDE)
          backward_narrow(source.dy + cell * v.r1, source.x + cell * v.r1, mean + (f.center || f.fixed ? cell : 0), dev + cell,
                          dx ? dx + cell * v.r1 : nullptr, v.r1, least(SIDE, end - cell), affine, f.center, f.fixed, f.eps,
                          grads.wanted() ? grads.w.data() + vector : nullptr, grads.b.data() + vector, writer);
        return;
      }
      if (affine.whole_row && v.r1 <= BLOCK) {
        const bool side = ACROSS<A> && v.r1 <= SIDE_BACKWARD;
        const int64_t step = side ? SIDE : 4;
        for (int64_t cell = task * per_task; cell < end; cell += step) {
          const int64_t rows = least(step, end - cell);
          side ? short_rows(Count<SIDE>(), cell, rows, writer) : short_rows(Count<4>(), cell, rows, writer);
        }
        return;
      }
      for (int64_t cell = task * per_task; cell < end; ++cell) {
        const Scale<A> scale = scale_of(cell);
        CellSums sums;
        for (int64_t s = 0; s < spans.per_cell && sums_needed; ++s) {
          const CellSums part = sums_of_span(cell, s, scale);
          sums.g += part.g;
          sums.gx += part.gx;
        }
        for (int64_t s = dx ? spans.per_cell : 0; s-- > 0;) apply_span(cell, s, scale, sums, writer);
      }
    });
  }
  if (!grads.wanted()) return;
  if (affine.vector) return grads.reduce(affine.period, v.period, [&](int64_t j) { return j / v.inner % v.period; });
  const int64_t cycle = v.period * v.inner > v.r1 ? v.period * v.inner : v.r1;
  Array<int64_t> index(cycle / v.r1 * per_row);
  for (int64_t row = 0; row < cycle / v.r1; ++row)
    for (int64_t j = 0; j < v.r1; j += grain)
      for (int64_t part = j / CHUNK; part <= (j + grain - 1) / CHUNK; ++part)
        index[row * per_row + j / grain + part] = (row * v.r1 + j) / v.inner % v.period;
  grads.reduce(index.size(), v.period, [&](int64_t slot) { return index[slot]; });
}

}  // namespace
