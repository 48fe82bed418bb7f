// Walking down columns: K0 blocks of R0 rows, each row K1 * R1 contiguous elements. A column's sums stay apart while
// the rows pass; R1 neighbouring columns make one cell.
#pragma once
#include "rows.h"

namespace {

// Columns side by side in one task, rows summed in the arithmetic type before double takes over, and rows after which
// a tall block is cut so that several threads can share it.
constexpr int64_t TILE = 512;
constexpr int64_t STRIP = 128;
constexpr int64_t TALL = 16384;
constexpr int64_t STRIPS = 4;
constexpr int64_t FOLDED = 192;

struct Tiles {
  const View& v;
  int64_t fold, rows, width_all, width, per_block, strip, tall, talls;
  bool split;

  Tiles(const View& view, const Pool& pool, bool by_row) : v(view) {
    // Narrow rows are folded, several side by side, so that the loops along them are worth their start.
    fold = by_row ? 1 : least(FOLDED / v.width(), v.r0);
    while (fold > 1 && v.r0 % fold) --fold;
    if (fold < 1) fold = 1;
    rows = v.r0 / fold;
    width_all = fold * v.width();
    per_block = ceil_div(width_all, TILE / v.r1 * v.r1);
    const int64_t even = ceil_div(ceil_div(width_all, per_block), 16 * v.r1) * 16 * v.r1;
    width = even <= TILE ? least(even, width_all) : TILE / v.r1 * v.r1;
    strip = least(STRIP, rows);
    tall = strip * (ceil_div(TALL, strip * width) > STRIPS ? ceil_div(TALL, strip * width) : STRIPS);
    talls = ceil_div(rows, tall);
    split = pool.threads > 1 && talls > 1 && v.k0 * per_block < 4 * pool.threads &&
            (v.k0 * per_block) % pool.threads;
  }
  int64_t count() const { return v.k0 * per_block; }
};

// One tile: columns [left, left + n) of block k0.
struct Tile {
  int64_t block, left, n;

  Tile(const Tiles& tiles, int64_t index)
      : block(index / tiles.per_block), left(index % tiles.per_block * tiles.width) {
    n = least(tiles.width, tiles.width_all - left);
  }
  int64_t at(const Tiles& t, int64_t row) const { return (block * t.rows + row) * t.width_all + left; }
  int64_t cell(const View& v, int64_t j) const { return block * v.k1 + (left + j) / v.r1 % v.k1; }
};

// Moments of the columns of a tile over some rows, all columns over the same number of them.
struct ColumnMoments {
  double count = 0;
  double mean[TILE], m2[TILE];

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

// Sums down the columns, four rows at a time: fewer trips to the accumulators, and shorter chains of rounding.
// row(r, k) makes row r ready in slot k; term(that, j, a, b) gives what its column j adds.
template <class A, class Row, class Term>
void sum_columns(int64_t rows, int64_t n, A* sa, A* sb, const Row& row, const Term& term) {
  for (int64_t j = 0; j < n; ++j) sa[j] = sb[j] = 0;
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    const auto r0 = row(r, 0), r1 = row(r + 1, 1), r2 = row(r + 2, 2), r3 = row(r + 3, 3);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      A a0, b0, a1, b1, a2, b2, a3, b3;
      term(r0, j, a0, b0);
      term(r1, j, a1, b1);
      term(r2, j, a2, b2);
      term(r3, j, a3, b3);
      sa[j] += (a0 + a1) + (a2 + a3);
      sb[j] += (b0 + b1) + (b2 + b3);
    }
  }
  for (; r < rows; ++r) {
    const auto one = row(r, 0);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      A a, b;
      term(one, j, a, b);
      sa[j] += a;
      sb[j] += b;
    }
  }
}

// Moments of a strip, merged into those of the rows before it. Their mean is the guess that deviations are taken from;
// where there is none yet, or it is more than a standard deviation off, a pass of its own finds a better one.
template <class S>
void strip_moments(const S* x, int64_t stride, int64_t rows, int64_t n, bool center, double eps, ColumnMoments& into) {
  using A = arithmetic<S>;
  A s[TILE], q[TILE], guess[TILE], buffer[4 * TILE];
  double mean[TILE], m2[TILE];
  const double count = double(rows), per = 1.0 / count;
  const A* g = guess;
  A* slots = buffer;
  const auto row = [=](int64_t r, int k) { return load(x + r * stride, slots + k * TILE, n); };
  bool redo = false;
  const auto deviate = [&] {
    sum_columns(rows, n, s, q, row, [=](const A* p, int64_t j, A& a, A& b) {
      a = p[j] - g[j];
      b = a * a;
    });
    int far = 0, out = 0;
    for (int64_t j = 0; j < n; ++j) {
      const double shift = center ? double(s[j]) * per : 0, off = shift * double(s[j]), rest = double(q[j]) - off;
      mean[j] = double(guess[j]) + shift;
      m2[j] = rest < 0 ? 0 : rest;
      far |= off > rest;
      out |= out_of_range(double(q[j]), eps);
    }
    redo = out;
    return far || out;
  };
  for (int64_t j = 0; j < n; ++j) guess[j] = center && into.count > 0 ? A(into.mean[j]) : A(0);
  if ((center && into.count == 0) || (deviate() && center)) {
    sum_columns(rows, n, s, q, row, [](const A* p, int64_t j, A& a, A& b) { a = p[j], b = 0; });
    for (int64_t j = 0; j < n; ++j) guess[j] = A(double(s[j]) * per);
    deviate();
  }
  for (int64_t j = 0; std::is_same<A, float>::value && redo && j < n; ++j) {
    double sum = 0, squares = 0;
    const auto value = [&](int64_t r) { A slot[1]; return double(*load(x + r * stride + j, slot, 1)); };
    for (int64_t r = 0; center && r < rows; ++r) sum += value(r);
    mean[j] = sum / count;
    for (int64_t r = 0; r < rows; ++r) squares += (value(r) - mean[j]) * (value(r) - mean[j]);
    m2[j] = squares;
  }
  into.merge(count, mean, m2, n);
}

// The affine parameters of a tile: along the columns, or one for each row.
template <class A> struct TileAffine {
  const View& v;
  const Affine<A>& affine;
  bool by_row;

  TileAffine(const View& view, const Affine<A>& a) : v(view), affine(a), by_row(v.width() % (a.period * a.inner) != 0) {}
  int64_t of_column(const Tile& t, int64_t j) const { return (t.left + j) / affine.inner % affine.period; }
  int64_t of_row(const Tile& t, int64_t r) const { return (t.block * v.r0 + r) * v.width() / affine.inner % affine.period; }
};

template <class S> void forward_columns(const View& v, const Forward& f, const Pool& pool) {
  using A = arithmetic<S>;
  const S* x = static_cast<const S*>(f.x);
  S* y = static_cast<S*>(f.y);
  A* mean = static_cast<A*>(f.mean);
  A* dev = static_cast<A*>(f.std);
  const Affine<A> affine(v, f.weight, f.bias);
  const TileAffine<A> where(v, affine);
  const Tiles tiles(v, pool, where.by_row);

  const auto moments_of_tall = [&](const Tile& t, int64_t tall, ColumnMoments& m) {
    m.count = 0;
    const int64_t end = least((tall + 1) * tiles.tall, tiles.rows);
    for (int64_t r = tall * tiles.tall; r < end; r += tiles.strip) {
      strip_moments(x + t.at(tiles, r), tiles.width_all, least(tiles.strip, end - r), t.n, f.center, f.eps, m);
    }
  };
  // From column moments to what each column is scaled with; cells of several columns are merged first.
  const auto finish = [&](const Tile& t, const ColumnMoments& m, A* mu, A* rstd, A* shift) {
    // A folded cell has its columns once in every fold; they all stand in this tile.
    const int64_t copies = tiles.fold, step = v.width();
    for (int64_t j = 0; j < t.n / copies; j += v.r1) {
      const int64_t cell = t.cell(v, j);
      double cell_mean = 0, cell_var = 0;
      if (f.fixed) {
        cell_mean = double(mean[cell]);
        cell_var = square(dev[cell]);
      } else {
        // All columns hold the same number of values, so their merge needs no weights.
        double away = 0, within = 0;
        for (int64_t c = 0; c < copies; ++c)
          for (int64_t i = c * step + j; i < c * step + j + v.r1; ++i) cell_mean += m.mean[i] - m.mean[j];
        cell_mean = m.mean[j] + cell_mean / double(copies * v.r1);
        for (int64_t c = 0; c < copies; ++c)
          for (int64_t i = c * step + j; i < c * step + j + v.r1; ++i) {
            away += (m.mean[i] - cell_mean) * (m.mean[i] - cell_mean);
            within += m.m2[i];
          }
        cell_var = (within / m.count + away) / double(copies * v.r1);
        if (f.center) mean[cell] = A(cell_mean);
        dev[cell] = A(std::sqrt(cell_var));
      }
      const Scale<A> scale(cell_mean, cell_var, f.eps);
      for (int64_t i = j; i < j + v.r1; ++i) {
        const int64_t index = where.by_row ? 0 : where.of_column(t, i);
        const A w = where.by_row ? A(1) : affine.w(index), b = where.by_row ? A(0) : affine.b(index);
        for (int64_t c = 0; c < copies; ++c) {
          mu[c * step + i] = scale.mean;
          rstd[c * step + i] = scale.rstd * w;
          shift[c * step + i] = scale.shift * w + b;
        }
      }
    }
  };
  const auto apply_rows = [&](const Tile& t, int64_t from, int64_t to, const A* mu, const A* rstd, const A* shift) {
    A bx[TILE], by[TILE];
    const int64_t n = t.n;
    for (int64_t r = from; r < to; ++r) {
      const A* p = load(x + t.at(tiles, r), bx, n);
      S* out = y + t.at(tiles, r);
      A* q = target(out, by);
      if (where.by_row) {
        const A w = affine.w(where.of_row(t, r)), b = affine.b(where.of_row(t, r));
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) q[j] = ((p[j] - mu[j]) * rstd[j] + shift[j]) * w + b;
      } else {
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) q[j] = (p[j] - mu[j]) * rstd[j] + shift[j];
      }
      store(q, out, n);
    }
  };

  if (tiles.split) {
    Array<ColumnMoments> partial(f.fixed ? 0 : tiles.count() * tiles.talls);
    if (!f.fixed)
      parallel(pool, tiles.count() * tiles.talls, [&](int64_t i) {
        moments_of_tall(Tile(tiles, i % tiles.count()), i / tiles.count(), partial[i]);
      });
    struct Scales { A mu[TILE], rstd[TILE], shift[TILE]; };
    Array<Scales> scales(tiles.count());
    ColumnMoments m;
    for (int64_t i = 0; i < tiles.count(); ++i) {
      const Tile t(tiles, i);
      m.count = 0;
      for (int64_t tall = 0; tall < tiles.talls && !f.fixed; ++tall) {
        const ColumnMoments& p = partial[tall * tiles.count() + i];
        m.merge(p.count, p.mean, p.m2, t.n);
      }
      finish(t, m, scales[i].mu, scales[i].rstd, scales[i].shift);
    }
    parallel(pool, tiles.count() * tiles.talls, [&](int64_t i) {
      const Scales& s = scales[i % tiles.count()];
      const int64_t from = i / tiles.count() * tiles.tall;
      apply_rows(Tile(tiles, i % tiles.count()), from, least(from + tiles.tall, tiles.rows), s.mu, s.rstd, s.shift);
    });
    return;
  }
  parallel(pool, tiles.count(), [&](int64_t i) {
    const Tile t(tiles, i);
    A mu[TILE], rstd[TILE], shift[TILE];
    ColumnMoments m, part;
    for (int64_t tall = 0; tall < tiles.talls && !f.fixed; ++tall) {
      moments_of_tall(t, tall, part);
      m.merge(part.count, part.mean, part.m2, t.n);
    }
    finish(t, m, mu, rstd, shift);
    apply_rows(t, 0, tiles.rows, mu, rstd, shift);
  });
}

// Sums down the columns of a tile: of g, and of g * x_hat; g = dy, times the row's weight where weights go by row.
struct ColumnSums {
  double g[TILE], gx[TILE];
};

template <class S> void backward_columns(const View& v, const Backward& f, const Pool& pool) {
  using A = arithmetic<S>;
  const S *dy = static_cast<const S*>(f.dy), *x = static_cast<const S*>(f.x);
  const A *mean = static_cast<const A*>(f.mean), *dev = static_cast<const A*>(f.std);
  S* dx = static_cast<S*>(f.dx);
  const Affine<A> affine(v, f.weight, nullptr);
  const TileAffine<A> where(v, affine);
  const Tiles tiles(v, pool, where.by_row);
  const bool by_row = where.by_row;

  // Weight gradients: a slot for every column of every block, or for every row of every tile.
  AffineGrads<A> grads(f.dweight, f.dbias, by_row ? tiles.count() * v.r0 : v.k0 * tiles.width_all);

  // w is the column's weight, and once the sums are there its product with rstd: dx = dy * w + x_hat * c2 + c1.
  struct Scales { A mu[TILE], rstd[TILE], w[TILE], c1[TILE], c2[TILE]; };
  const auto scales_of = [&](const Tile& t, Scales& s) {
    for (int64_t j = 0; j < t.n; ++j) {
      const int64_t cell = t.cell(v, j);
      const Scale<A> scale(f.center || f.fixed ? double(mean[cell]) : 0.0, square(dev[cell]), f.eps);
      s.mu[j] = scale.mean;
      s.rstd[j] = scale.rstd;
      s.w[j] = by_row ? A(1) : affine.w(where.of_column(t, j));
    }
  };
  const auto sums_of_tall = [&](int64_t index, const Tile& t, int64_t tall, const Scales& s, ColumnSums& sums) {
    struct Row { const A *x, *g; A w; };
    A g[TILE], gx[TILE], buffer[8 * TILE];
    const A *mu = s.mu, *rstd = s.rstd;
    for (int64_t j = 0; j < t.n; ++j) sums.g[j] = sums.gx[j] = 0;
    const int64_t end = least((tall + 1) * tiles.tall, tiles.rows);
    for (int64_t r0 = tall * tiles.tall; r0 < end; r0 += tiles.strip) {
      const auto row = [&](int64_t r, int k) {
        const int64_t at = t.at(tiles, r0 + r);
        const Row ready{load(x + at, buffer + k * TILE, t.n), load(dy + at, buffer + (4 + k) * TILE, t.n),
                        by_row ? affine.w(where.of_row(t, r0 + r)) : A(1)};
        if (by_row && grads.wanted()) {
          const A *px = ready.x, *pg = ready.g;
          const Two<A> two = sum_two<A>(t.n, [=](int64_t j, A& db, A& dw) {
            db = pg[j];
            dw = pg[j] * ((px[j] - mu[j]) * rstd[j]);
          });
          grads.b[index * v.r0 + r0 + r] = A(two.a);
          grads.w[index * v.r0 + r0 + r] = A(two.b);
        }
        return ready;
      };
      sum_columns(least(tiles.strip, end - r0), t.n, g, gx, row, [=](const Row& p, int64_t j, A& a, A& b) {
        a = p.g[j] * p.w;
        b = a * ((p.x[j] - mu[j]) * rstd[j]);
      });
#pragma omp simd
      for (int64_t j = 0; j < t.n; ++j) sums.g[j] += double(g[j]), sums.gx[j] += double(gx[j]);
    }
  };
  const auto finish = [&](const Tile& t, const ColumnSums& sums, Scales& s) {
    const double count = double(v.count());
    for (int64_t j = 0; j < t.n && grads.wanted() && !by_row; ++j) {
      const int64_t slot = t.block * tiles.width_all + t.left + j;
      grads.b[slot] = A(sums.g[j]);
      grads.w[slot] = A(sums.gx[j]);
    }
    const int64_t copies = tiles.fold, step = v.width();
    for (int64_t j = 0; j < t.n / copies; j += v.r1) {
      double g = 0, gx = 0;
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
  const auto apply_rows = [&](const Tile& t, int64_t from, int64_t to, const Scales& s) {
    A bx[TILE], bg[TILE], br[TILE];
    const int64_t n = t.n;
    for (int64_t r = from; r < to; ++r) {
      const A *p = load(x + t.at(tiles, r), bx, n), *g = load(dy + t.at(tiles, r), bg, n);
      S* out = dx + t.at(tiles, r);
      A* q = target(out, br);
      const A row_weight = by_row ? affine.w(where.of_row(t, r)) : A(1);
#pragma omp simd
      for (int64_t j = 0; j < n; ++j)
        q[j] = g[j] * (s.w[j] * row_weight) + ((p[j] - s.mu[j]) * s.rstd[j]) * s.c2[j] + s.c1[j];
      store(q, out, n);
    }
  };

  const bool sums_needed = grads.wanted() || !f.fixed;
  if (tiles.split) {
    Array<Scales> scales(tiles.count());
    for (int64_t i = 0; i < tiles.count(); ++i) scales_of(Tile(tiles, i), scales[i]);
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
      Scales s;
      ColumnSums total = {}, part;
      scales_of(t, s);
      for (int64_t tall = 0; tall < tiles.talls && sums_needed; ++tall) {
        sums_of_tall(i, t, tall, s, part);
        for (int64_t j = 0; j < t.n; ++j) total.g[j] += part.g[j], total.gx[j] += part.gx[j];
      }
      finish(t, total, s);
      if (dx) apply_rows(t, 0, tiles.rows, s);
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
