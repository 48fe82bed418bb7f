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
    width = width_all <= TILE ? width_all : TILE / v.r1 * v.r1;
    per_block = ceil_div(width_all, width);
    strip = least(STRIP, rows);
    tall = strip * ceil_div(TALL, strip * width);
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

// The rows of a strip for arithmetic, converted once.
template <class S> struct Strip {
  using A = arithmetic<S>;
  static constexpr bool direct = std::is_same<S, A>::value;
  Array<A> buffer;
  const A* base = nullptr;
  int64_t stride = 0;

  explicit Strip(int64_t rows, int64_t columns) : buffer(direct ? 0 : rows * columns) {}
  void fill(const S* x, int64_t row_stride, int64_t rows, int64_t columns) {
    if constexpr (direct) {
      base = x;
      stride = row_stride;
    } else {
      for (int64_t r = 0; r < rows; ++r) widen(x + r * row_stride, buffer.data() + r * columns, columns);
      base = buffer.data();
      stride = columns;
    }
  }
  const A* row(int64_t r) const { return base + r * stride; }
};

// Four rows at a time: fewer trips to the accumulators, and shorter chains of rounding.
template <class A, class Term>
void sum_columns(int64_t rows, int64_t columns, A* sa, A* sb, const Term& term) {
  for (int64_t j = 0; j < columns; ++j) sa[j] = sb[j] = 0;
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j) {
      A a0, b0, a1, b1, a2, b2, a3, b3;
      term(r, j, a0, b0);
      term(r + 1, j, a1, b1);
      term(r + 2, j, a2, b2);
      term(r + 3, j, a3, b3);
      sa[j] += (a0 + a1) + (a2 + a3);
      sb[j] += (b0 + b1) + (b2 + b3);
    }
  }
  for (; r < rows; ++r) {
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j) {
      A a, b;
      term(r, j, a, b);
      sa[j] += a;
      sb[j] += b;
    }
  }
}

template <class A> void strip_moments(const A* x, int64_t stride, int64_t rows, int64_t n, bool center, double eps, ColumnMoments& into) {
  A s[TILE], q[TILE], guess[TILE];
  double mean[TILE], m2[TILE];
  const double count = double(rows);
  if (center) {
    sum_columns(rows, n, s, q, [x, stride](int64_t r, int64_t j, A& a, A& b) { a = x[r * stride + j]; b = 0; });
    for (int64_t j = 0; j < n; ++j) guess[j] = A(double(s[j]) / count);
  } else {
    for (int64_t j = 0; j < n; ++j) guess[j] = 0;
  }
  const A* g = guess;
  sum_columns(rows, n, s, q, [x, stride, g](int64_t r, int64_t j, A& a, A& b) {
    a = x[r * stride + j] - g[j];
    b = a * a;
  });
  bool redo = false;
  for (int64_t j = 0; j < n; ++j) {
    const double shift = center ? double(s[j]) / count : 0;
    mean[j] = double(guess[j]) + shift;
    const double rest = double(q[j]) - shift * double(s[j]);
    m2[j] = rest < 0 ? 0 : rest;
    redo |= out_of_range(double(q[j]), eps);
  }
  if (std::is_same<A, float>::value && redo) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0, squares = 0;
      for (int64_t r = 0; center && r < rows; ++r) sum += double(x[r * stride + j]);
      mean[j] = sum / count;
      for (int64_t r = 0; r < rows; ++r) {
        const double d = double(x[r * stride + j]) - mean[j];
        squares += d * d;
      }
      m2[j] = squares;
    }
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
    Strip<S> strip(tiles.strip, t.n);
    m.count = 0;
    const int64_t end = least((tall + 1) * tiles.tall, tiles.rows);
    for (int64_t r = tall * tiles.tall; r < end; r += tiles.strip) {
      const int64_t rows = least(tiles.strip, end - r);
      strip.fill(x + t.at(tiles, r), tiles.width_all, rows, t.n);
      strip_moments(strip.base, strip.stride, rows, t.n, f.center, f.eps, m);
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
        Moments total;
        for (int64_t c = 0; c < copies; ++c)
          for (int64_t i = c * step + j; i < c * step + j + v.r1; ++i) total.merge({m.count, m.mean[i], m.m2[i]});
        cell_mean = total.mean;
        cell_var = total.m2 / total.count;
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
        moments_of_tall(Tile(tiles, i / tiles.talls), i % tiles.talls, partial[i]);
      });
    struct Scales { A mu[TILE], rstd[TILE], shift[TILE]; };
    Array<Scales> scales(tiles.count());
    ColumnMoments m;
    for (int64_t i = 0; i < tiles.count(); ++i) {
      const Tile t(tiles, i);
      m.count = 0;
      for (int64_t tall = 0; tall < tiles.talls && !f.fixed; ++tall) {
        const ColumnMoments& p = partial[i * tiles.talls + tall];
        m.merge(p.count, p.mean, p.m2, t.n);
      }
      finish(t, m, scales[i].mu, scales[i].rstd, scales[i].shift);
    }
    parallel(pool, tiles.count() * tiles.talls, [&](int64_t i) {
      const Scales& s = scales[i / tiles.talls];
      const int64_t from = i % tiles.talls * tiles.tall;
      apply_rows(Tile(tiles, i / tiles.talls), from, least(from + tiles.tall, tiles.rows), s.mu, s.rstd, s.shift);
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
    Strip<S> sx(tiles.strip, t.n), sg(tiles.strip, t.n);
    A g[TILE], gx[TILE];
    const A *mu = s.mu, *rstd = s.rstd;
    for (int64_t j = 0; j < t.n; ++j) sums.g[j] = sums.gx[j] = 0;
    const int64_t end = least((tall + 1) * tiles.tall, tiles.rows);
    for (int64_t r0 = tall * tiles.tall; r0 < end; r0 += tiles.strip) {
      const int64_t rows = least(tiles.strip, end - r0);
      sx.fill(x + t.at(tiles, r0), tiles.width_all, rows, t.n);
      sg.fill(dy + t.at(tiles, r0), tiles.width_all, rows, t.n);
      const A *px = sx.base, *pg = sg.base;
      const int64_t stx = sx.stride, stg = sg.stride;
      if (by_row) {
        A w[STRIP];
        for (int64_t r = 0; r < rows; ++r) w[r] = affine.w(where.of_row(t, r0 + r));
        const A* pw = w;
        sum_columns(rows, t.n, g, gx, [=](int64_t r, int64_t j, A& a, A& b) {
          a = pg[r * stg + j] * pw[r];
          b = a * ((px[r * stx + j] - mu[j]) * rstd[j]);
        });
        for (int64_t r = 0; r < rows && grads.wanted(); ++r) {
          const A *a = pg + r * stg, *b = px + r * stx;
          const Two<A> two = sum_two<A>(t.n, [&](int64_t j, A& db, A& dw) {
            db = a[j];
            dw = a[j] * ((b[j] - mu[j]) * rstd[j]);
          });
          grads.b[index * v.r0 + r0 + r] = A(two.a);
          grads.w[index * v.r0 + r0 + r] = A(two.b);
        }
      } else {
        sum_columns(rows, t.n, g, gx, [=](int64_t r, int64_t j, A& a, A& b) {
          a = pg[r * stg + j];
          b = a * ((px[r * stx + j] - mu[j]) * rstd[j]);
        });
      }
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
          s.c1[i] = f.center ? A(g / count) : A(0);
          s.c2[i] = A(gx / count);
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
        q[j] = s.rstd[j] * (g[j] * (s.w[j] * row_weight) - s.c1[j] - (p[j] - s.mu[j]) * s.rstd[j] * s.c2[j]);
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
        const int64_t index = i / tiles.talls;
        sums_of_tall(index, Tile(tiles, index), i % tiles.talls, scales[index], partial[i]);
      });
    for (int64_t i = 0; i < tiles.count(); ++i) {
      const Tile t(tiles, i);
      ColumnSums total = {};
      for (int64_t tall = 0; tall < tiles.talls && sums_needed; ++tall)
        for (int64_t j = 0; j < t.n; ++j) {
          total.g[j] += partial[i * tiles.talls + tall].g[j];
          total.gx[j] += partial[i * tiles.talls + tall].gx[j];
        }
      finish(t, total, scales[i]);
    }
    if (dx)
      parallel(pool, tiles.count() * tiles.talls, [&](int64_t i) {
        const int64_t from = i % tiles.talls * tiles.tall;
        apply_rows(Tile(tiles, i / tiles.talls), from, least(from + tiles.tall, tiles.rows), scales[i / tiles.talls]);
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
