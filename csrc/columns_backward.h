// Walking down columns, backward.
#pragma once
#include "columns.h"

namespace {

// Sums down the columns of a tile: of g, and of g * x_hat; g = dy, times the row's weight where weights go by row.
struct ColumnSums {
  double g[TILE], gx[TILE];
};

template <class S> void backward_columns(const View& v, const Backward& f, const Pool& pool) {
  using A = arithmetic<S>;
  using T = Seen<S>;
  const Upstream<S> source(f), shown = (needs_sums(f) ? source.again() : source).unmasked();
  const A *mean = static_cast<const A*>(f.mean), *dev = static_cast<const A*>(f.std);
  S* dx = static_cast<S*>(f.dx);
  const Affine<A> affine(v, f.weight, f.fused ? f.fused->bias : nullptr);
  const TileAffine<A> where(v, affine);
  const Tiles tiles(v, pool, where.by_row);
  const bool by_row = where.by_row, plain = !f.fused, sums_needed = needs_sums(f);

  // Weight gradients: a slot for every column of every block, or for every row of every tile.
  AffineGrads<A> grads(f.dweight, f.dbias, by_row ? tiles.count() * v.r0 : v.k0 * tiles.width_all);

  // w is the column's weight, and once the sums are there its product with rstd: dx = dy * w + x_hat * c2 + c1.
  struct ColumnScales { A mu[TILE], rstd[TILE], w[TILE], b[TILE], c1[TILE], c2[TILE]; };
  const auto prepare = [&](const Tile& t, ColumnScales& s) {
    const int64_t cells = t.n / tiles.fold / v.r1, first = t.cell(v, 0);
    double cell_mean[TILE], cell_var[TILE];
    const A *means = mean + first, *devs = dev + first;
    const bool shifted = f.center || f.fixed;
#pragma omp simd
    for (int64_t i = 0; i < cells; ++i) {
      cell_mean[i] = shifted ? double(means[i]) : 0.0;
      cell_var[i] = square(devs[i]);
    }
    A one_mean[TILE], one_rstd[TILE], unused[TILE];
    scales_of(cells, cell_mean, cell_var, f.eps, one_mean, one_rstd, unused);
    spread(t, where, tiles, [&](int64_t i, int64_t column, A w, A b) {
      s.b[column] = b;
      s.mu[column] = one_mean[i];
      s.rstd[column] = one_rstd[i];
      s.w[column] = w;
    });
  };
  // What the activation was given in one row; the weight of a column is already times rstd once the sums are there.
  const auto z_of = [&](const Tile& t, int64_t r, const ColumnScales& s, bool scaled) {
    const A weight = by_row ? affine.w(where.of_row(t, r)) : A(1), bias = by_row ? affine.b(where.of_row(t, r)) : A(0);
    return [=, n = t.n, mu = &s.mu[0], rstd = &s.rstd[0], w = &s.w[0], b = &s.b[0]](const T* p, A* z) {
      if (scaled) each<T>(0, n, [=](auto at) { at.put(z, ((at(p) - at(mu)) * at(w)) * weight + at(b) + bias); });
      else each<T>(0, n, [=](auto at) { at.put(z, ((at(p) - at(mu)) * at(rstd)) * (at(w) * weight) + at(b) + bias); });
    };
  };
  const auto sums_of_tall = [&](int64_t index, const Tile& t, int64_t tall, const ColumnScales& s, ColumnSums& sums) {
    struct Row { const T *x, *g; A w; };
    A g[TILE], gx[TILE];
    T buffer[8 * TILE];
    const auto nothing = [](int64_t, int64_t, int64_t) {};  // with two tensors to read, looking ahead gains nothing
    const A *mu = s.mu, *rstd = s.rstd;
    for (int64_t j = 0; j < t.n; ++j) sums.g[j] = sums.gx[j] = 0;
    const int64_t end = least((tall + 1) * tiles.tall, tiles.rows);
    for (int64_t r0 = tall * tiles.tall; r0 < end; r0 += tiles.strip) {
      const int64_t strip = least(tiles.strip, end - r0);
      const bool simple = plain || (source.activation == Activation::none &&
                                    (!source.mask || source.mask.is_all_valid(t.at(tiles, r0), (strip - 1) * tiles.width_all + t.n)));
      const auto row = [&](int64_t r, int k) {
        const int64_t at = t.at(tiles, r0 + r);
        T *bx = buffer + k * TILE, *bg = buffer + (4 + k) * TILE;
        const T *p, *pg;
        if (simple) {
          p = load(source.x + at, bx, t.n), pg = load(source.dy + at, bg, t.n);
        } else {
          p = source.input(at, t.n, bx, Along<A>{mu});
          pg = source.gradient(at, t.n, bg, p, z_of(t, r0 + r, s, false));
        }
        const Row ready{p, pg,
                        by_row ? affine.w(where.of_row(t, r0 + r)) : A(1)};
        if (by_row && grads.wanted()) {
          const Two two = sum_two<T>(t.n, [=, px = ready.x, pg = ready.g](auto at, auto& db, auto& dw) {
            db = at(pg);
            dw = db * ((at(px) - at(mu)) * at(rstd));
          });
          grads.b[index * v.r0 + r0 + r] = A(two.a);
          grads.w[index * v.r0 + r0 + r] = A(two.b);
        }
        return ready;
      };
      sum_columns<T>(strip, t.n, g, gx, row, nothing, [=](const Row& p, auto at, auto& a, auto& b) {
        a = at(p.g) * p.w;
        b = a * ((at(p.x) - at(mu)) * at(rstd));
      });
#pragma omp simd
      for (int64_t j = 0; j < t.n; ++j) sums.g[j] += double(g[j]), sums.gx[j] += double(gx[j]);
    }
  };
  const auto finish = [&](const Tile& t, const ColumnSums& sums, ColumnScales& s) {
    for (int64_t j = 0; j < t.n && grads.wanted() && !by_row; ++j) {
      const int64_t slot = t.block * tiles.width_all + t.left + j;
      grads.b[slot] = A(sums.g[j]);
      grads.w[slot] = A(sums.gx[j]);
    }
    const int64_t copies = tiles.fold, step = v.width();
    for (int64_t j = 0; j < t.n / copies; j += v.r1) {
      double g = 0, gx = 0, count = source.mask ? f.fused->counts[t.cell(v, j)] : f.length ? 1 : double(v.count());
      if (count == 0) count = 1;
      for (int64_t c = 0; c < copies && !f.fixed; ++c)
        for (int64_t i = c * step + j; i < c * step + j + v.r1; ++i) {
          g += sums.g[i] * double(s.w[i]);
          gx += sums.gx[i] * double(s.w[i]);
        }
      for (int64_t c = 0; c < copies; ++c)
        for (int64_t i = c * step + j; i < c * step + j + v.r1; ++i) {
          s.c1[i] = f.center ? -s.rstd[i] * A(g / count) : A(0);
          s.c2[i] = -s.rstd[i] * A(gx / count);
          s.w[i] *= s.rstd[i];
        }
    }
  };
  const auto apply_rows = [&](const Tile& t, int64_t from, int64_t to, const ColumnScales& s) {
    T bx[TILE], bg[TILE];
    Writer<S> writer(dx, v.numel(), f.fused);
    const int64_t n = t.n;
    for (int64_t r = from; r < to; ++r) {
      const int64_t at = t.at(tiles, r);
      if (source.mask && (r - from) % GLANCE == 0) writer.look_ahead(dx + at, (least(GLANCE, to - r) - 1) * tiles.width_all + n);
      const T* p = plain ? load(source.x + at, bx, n) : shown.input(at, n, bx, Constant<A>{0});
      const T* g = plain ? load(source.dy + at, bg, n) : shown.gradient(at, n, bg, p, z_of(t, r, s, true));
      T* q = writer.open(dx + t.at(tiles, r));
      const A row_weight = by_row ? affine.w(where.of_row(t, r)) : A(1);
      each<T>(0, n, [=, mu = s.mu, rstd = s.rstd, w = s.w, c1 = s.c1, c2 = s.c2](auto at) {
        at.put(q, at(g) * (at(w) * row_weight) + ((at(p) - at(mu)) * at(rstd)) * at(c2) + at(c1));
      });
      writer.close(n);
    }
  };

  if (tiles.split) {
    Array<ColumnScales> scales(tiles.count());
    for (int64_t i = 0; i < tiles.count(); ++i) prepare(Tile(tiles, i), scales[i]);
    Array<ColumnSums> partial(sums_needed ? tiles.count() * tiles.talls : 0);
    if (sums_needed)
      parallel(pool, tiles.count() * tiles.talls, [&](int64_t i) {
        const int64_t index = i % tiles.count();
        sums_of_tall(index, Tile(tiles, index), i / tiles.count(), scales[index], partial[i]);
      });
    for (int64_t i = 0; i < tiles.count(); ++i) {
      const Tile t(tiles, i);
      ColumnSums total = {};
      for (int64_t tall = 0; tall < tiles.talls && sums_needed; ++tall)
        for (int64_t j = 0; j < t.n; ++j) {
          total.g[j] += partial[tall * tiles.count() + i].g[j];
          total.gx[j] += partial[tall * tiles.count() + i].gx[j];
        }
      finish(t, total, scales[i]);
    }
    if (dx)
      parallel(pool, tiles.count() * tiles.talls, [&](int64_t i) {
        const int64_t from = i / tiles.count() * tiles.tall;
        apply_rows(Tile(tiles, i % tiles.count()), from, least(from + tiles.tall, tiles.rows), scales[i % tiles.count()]);
      });
  } else {
    parallel(pool, tiles.count(), [&](int64_t i) {
      const Tile t(tiles, i);
      ColumnScales s;
      ColumnSums total = {}, part;
      prepare(t, s);
      for (int64_t tall = 0; tall < tiles.talls && sums_needed; ++tall) {
        sums_of_tall(i, t, tall, s, part);
        for (int64_t j = 0; j < t.n; ++j) total.g[j] += part.g[j], total.gx[j] += part.gx[j];
      }
      finish(t, total, s);
      if (dx) tiles.backwards([&](int64_t from, int64_t to) { apply_rows(t, from, to, s); });
    });
  }
  if (!grads.wanted()) return;
  if (!by_row) return grads.reduce(tiles.width_all, v.period, [&](int64_t j) { return j % v.width() / v.inner % v.period; });
  // Weights go by row: the rows of a block meet as many weights as a block has, or all of them in turn.
  Array<int64_t> index(tiles.count() * v.r0);
  for (int64_t i = 0; i < tiles.count(); ++i)
    for (int64_t r = 0; r < v.r0; ++r) index[i * v.r0 + r] = where.of_row(Tile(tiles, i), r);
  grads.reduce(index.size(), v.period, [&](int64_t slot) { return index[slot]; });
}

}  // namespace
