// The backward pass down columns: dx = dy * weight * rstd + x_hat * c2 + c1, where c1 and c2 come from the cell's sums.
//
// For each tile: prepare reads the moments and weights of its columns; sums_of_chunk takes the sums of dy and of dy *
// x_hat; finish keeps them as gradients of weights and merges them into the factors c1 and c2; apply_rows reads the
// tile again, from its end, and writes dx. Tiles are tasks, or chunks of them where there are few tiles (split_tiles).
#pragma once
#include "block/upstream.h"
#include "walk/columns.h"

namespace {

// Sums down the columns of a tile: of g, and of g * x_hat; g = dy, times the row's weight where rows have them.
struct ColumnSums {
  alignas(LINE) double g[TILE], gx[TILE];

  void add(const ColumnSums& other, int64_t n) {
    for (int64_t j = 0; j < n; ++j) g[j] += other.g[j], gx[j] += other.gx[j];
  }
};

// The gradients of the weights of four rows, summed in packs while the sums of their columns are taken. Elsewhere they
// take a pass of their own.
template <class T> struct RowGradients {
  Pack g[4] = {}, gx[4] = {};
  int64_t slots[4] = {-1, -1, -1, -1};

  ALWAYS_INLINE void add(int k, Pack dy, Pack product) { g[k] += dy, gx[k] += product; }
  // Row k is now that of another slot.
  void next(int k, int64_t slot, AffineGrads<arithmetic<T>>& grads) {
    if (slots[k] >= 0 && grads.wanted()) {
      grads.b[slots[k]] = float(total<PACK>(reinterpret_cast<const float*>(&g[k])));
      grads.w[slots[k]] = float(total<PACK>(reinterpret_cast<const float*>(&gx[k])));
    }
    slots[k] = slot;
    g[k] = gx[k] = Pack{};
  }
  void end(AffineGrads<arithmetic<T>>& grads) {
    for (int k = 0; k < 4; ++k) next(k, -1, grads);
  }
};

template <class S, class T> class ColumnsBackward {
  using A = arithmetic<S>;
  const View& v;
  const Backward& f;
  const Pool& pool;
  const Upstream<S, T> source;   // blocks as they are read first
  const Upstream<S, T> applied;  // as they are read for dx: the writer sets what is padding to 0
  const A *const mean, *const std;
  S* const dx;
  const Affine<A> affine;
  const TileAffine<A> weights;
  const Tiles tiles;
  const bool by_row, plain, sums_needed;
  AffineGrads<A> grads;  // a slot for every column of every block, or for every row of every tile

  // w is the column's weight, and after `finish` its product with rstd.
  struct Factors { alignas(LINE) A mu[TILE], rstd[TILE], w[TILE], b[TILE], c1[TILE], c2[TILE]; };
  struct Row { const T *x, *g; A w; };

 public:
  ColumnsBackward(const View& view, const Backward& backward, const Pool& threads)
      : v(view), f(backward), pool(threads), source(v, f),
        applied((needs_sums(f) ? source.again() : source).unmasked()),
        mean(static_cast<const A*>(f.mean)), std(static_cast<const A*>(f.std)), dx(static_cast<S*>(f.dx)),
        affine(v, f.weight, f.fused ? f.fused->bias : Parameter{}, {f.zero_centered}), weights(v, affine),
        tiles(v, pool, weights.by_row, true), by_row(weights.by_row), plain(!f.fused), sums_needed(needs_sums(f)),
        grads(f.dweight, f.dbias, by_row ? tiles.count() * v.r0 : v.k0 * tiles.slabs * tiles.row_width) {}

  void run() {
    if (tiles.split) {
      split_tiles();
    } else {
      parallel(pool, tiles.count(), [&](int64_t i) {
        const Tile t(tiles, i);
        Factors to;
        ColumnSums total = {}, part;
        prepare(t, to);
        for (int64_t c = 0; c < tiles.chunks && sums_needed; ++c) {
          sums_of_chunk(i, t, c, to, part);
          add(t, c, to, part, total);
        }
        finish(t, total, to);
        for (int64_t c = dx ? tiles.chunks : 0; c-- > 0;) apply_chunk(t, c, to);
      });
    }
    if (grads.wanted()) reduce_weight_gradients();
  }

 private:
  // Every chunk is a task; the sums of tiles are added up between two phases.
  void split_tiles() {
    const int64_t tasks = tiles.count() * tiles.chunks;
    Array<Factors> factors(tiles.count());
    for (int64_t i = 0; i < tiles.count(); ++i) prepare(Tile(tiles, i), factors[i]);
    Array<ColumnSums> partial(sums_needed ? tasks : 0);
    if (sums_needed)
      parallel(pool, tasks, [&](int64_t i) {
        const int64_t index = i % tiles.count();
        sums_of_chunk(index, Tile(tiles, index), i / tiles.count(), factors[index], partial[i]);
      });
    for (int64_t i = 0; i < tiles.count(); ++i) {
      const Tile t(tiles, i);
      ColumnSums total = {};
      for (int64_t c = 0; c < tiles.chunks && sums_needed; ++c)
        add(t, c, factors[i], partial[c * tiles.count() + i], total);
      finish(t, total, factors[i]);
    }
    if (dx)
      parallel(pool, tasks, [&](int64_t i) {
        const int64_t index = i % tiles.count(), c = i / tiles.count();
        apply_chunk(Tile(tiles, index), c, factors[index]);
      });
  }

  OUT_OF_LINE void prepare(const Tile& t, Factors& to) const {
    const int64_t cells = t.cells(tiles), first = t.cell(v, 0);
    double cell_mean[TILE], cell_var[TILE];
    const A *means = mean + first, *stds = std + first;
    const bool shifted = f.center || f.fixed;
#pragma omp simd
    for (int64_t i = 0; i < cells; ++i) {
      cell_mean[i] = shifted ? double(means[i]) : 0.0;
      cell_var[i] = square(stds[i]);
    }
    A mu[TILE], rstd[TILE], unused[TILE];
    if constexpr (sizeof(S) == 2) scales_of_halves(cells, cell_mean, cell_var, f.eps, mu, rstd, unused);
    else scales_of(cells, cell_mean, cell_var, f.eps, mu, rstd, unused);
    // c1 and c2 are not known yet.
    weights.broadcast(t, tiles, ToColumns<A>{mu, rstd, rstd, to.mu, to.rstd, to.c1, to.w, to.b, true});
    for (int64_t j = 0; j < t.n && tiles.slabs > 1; ++j) to.w[j] = 1, to.b[j] = 0;
  }
  // The same with the weights of a slab.
  OUT_OF_LINE Factors of_slab(const Tile& t, int64_t slab, const Factors& with) const {
    Factors own = with;
    weights.broadcast(t, tiles, WeightsOnly<A>{own.w, own.b}, slab);
    for (int64_t j = 0; j < t.n; ++j) own.w[j] *= with.w[j];
    return own;
  }
  // Adds the sums of a chunk: those of a slab are the gradients of its weights, by which the total is weighted.
  OUT_OF_LINE void add(const Tile& t, int64_t c, const Factors& with, const ColumnSums& part, ColumnSums& total) {
    if (tiles.slabs == 1) return total.add(part, t.n);
    const int64_t slab = c / tiles.per_slab;
    const Factors own = of_slab(t, slab, with);
    A* const slots = grads.wanted() ? grads.w + slab * tiles.row_width + t.left : nullptr;
    A* const biases = grads.wanted() ? grads.b + slab * tiles.row_width + t.left : nullptr;
    for (int64_t j = 0; j < t.n; ++j) {
      if (slots) slots[j] += A(part.gx[j]), biases[j] += A(part.g[j]);
      total.g[j] += part.g[j] * double(own.w[j]);
      total.gx[j] += part.gx[j] * double(own.w[j]);
    }
  }

  // Writes what the activation was applied to in one row. `scaled`: whether w is already times rstd.
  auto z_of(const Tile& t, int64_t r, const Factors& with, bool scaled) const {
    const A weight = weights.row_weight(t, r), bias = weights.row_bias(t, r);
    return [=, n = t.n, mu = &with.mu[0], rstd = &with.rstd[0], w = &with.w[0], b = &with.b[0]](const T* p, A* z) {
      if (scaled) each<T>(0, n, [=](auto at) { at.put(z, (at(p) - at(mu)) * at(w) * weight + at(b) + bias); });
      else each<T>(0, n, [=](auto at) { at.put(z, (at(p) - at(mu)) * (at(w) * at(rstd)) * weight + at(b) + bias); });
    };
  }

  void sums_of_chunk(int64_t index, const Tile& t, int64_t c, const Factors& with, ColumnSums& sums) {
    if (tiles.slabs > 1 && !plain) return sums_of_rows(index, t, c, of_slab(t, c / tiles.per_slab, with), sums);
    sums_of_rows(index, t, c, with, sums);
  }
  OUT_OF_LINE void sums_of_rows(int64_t index, const Tile& t, int64_t c, const Factors& with, ColumnSums& sums) {
    A g[TILE], gx[TILE];
    T buffer[8 * TILE], room[TILE];
    const auto nothing = [](int64_t, int64_t, int64_t) {};  // with two tensors to read, prefetching gains nothing
    RowGradients<T> of_rows;
    const A *mu = with.mu, *rstd = with.rstd;
    const Along<T> fill = along(mu, room, source.mask() ? t.n : 0);
    for (int64_t j = 0; j < t.n; ++j) sums.g[j] = sums.gx[j] = 0;
    const int64_t end = tiles.chunk_end(c), n = t.n, stride = tiles.row_width;
    for (int64_t r0 = tiles.chunk_start(c); r0 < end; r0 += tiles.panel) {
      const int64_t rows = min(tiles.panel, end - r0), at = t.at(tiles, r0);
      const bool simple = is_simple(t, r0, rows);
      const S *x = source.x() + at, *dy = source.dy() + at;
      const Format<S>& format = source.format();
      const auto row = [&, x, dy, n, stride, simple, by_row = by_row](int64_t r, int k) {
        T *bx = buffer + k * TILE, *bg = buffer + (4 + k) * TILE;
        Row ready{nullptr, nullptr, A(1)};
        if (simple) ready.x = load(format, x + r * stride, bx, n), ready.g = load(format, dy + r * stride, bg, n);
        else read_fused(t, r0 + r, with, fill, bx, bg, ready);
        if (!by_row) return ready;
        ready.w = weights.row_weight(t, r0 + r);
        const int64_t slot = index * v.r0 + r0 + r;
        if constexpr (PACKED<T>) of_rows.next(k, slot, grads);
        else if (grads.wanted()) add_row_gradient(slot, n, ready, mu, rstd);
        return ready;
      };
      const auto plain_term = [=](const Row& p, auto, auto at, auto& a, auto& b) {
        a = at(p.g) * p.w;
        b = a * ((at(p.x) - at(mu)) * at(rstd));
      };
      if constexpr (PACKED<T>) {
        if (by_row) {
          const auto term = [=, &of_rows](const Row& p, auto k, auto at, auto& a, auto& b) {
            const auto dy = at(p.g), product = dy * ((at(p.x) - at(mu)) * at(rstd));
            of_rows.add(k, dy, product);
            a = dy * p.w, b = product * p.w;
          };
          sum_columns<T>(rows, t.n, g, gx, row, nothing, term);
          of_rows.end(grads);
        } else {
          sum_columns<T>(rows, t.n, g, gx, row, nothing, plain_term);
        }
      } else {
        sum_columns<T>(rows, t.n, g, gx, row, nothing, plain_term);
      }
#pragma omp simd
      for (int64_t j = 0; j < t.n; ++j) sums.g[j] += double(g[j]), sums.gx[j] += double(gx[j]);
    }
    source.end();
  }
  // Whether x and dy are read as they are in these rows.
  bool is_simple(const Tile& t, int64_t r, int64_t rows) const {
    if (plain) return true;
    return !source.computes() &&
           (!source.mask() || source.mask().is_all_valid(t.at(tiles, r), (rows - 1) * tiles.row_width + t.n));
  }
  OUT_OF_LINE void read_fused(const Tile& t, int64_t r, const Factors& with, const Along<T>& fill, T* bx, T* bg,
                              Row& row) const {
    const int64_t at = t.at(tiles, r);
    row.x = source.input(at, t.n, bx, fill);
    row.g = source.gradient(at, t.n, bg, row.x, z_of(t, r, with, false));
  }
  OUT_OF_LINE void add_row_gradient(int64_t slot, int64_t n, const Row& row, const A* mu, const A* rstd) {
    const TwoSums two = sum_two<T>(n, [=, x = row.x, g = row.g](auto at, auto& db, auto& dw) {
      db = at(g);
      dw = db * ((at(x) - at(mu)) * at(rstd));
    });
    grads.b[slot] = A(two.a);
    grads.w[slot] = A(two.b);
  }

  OUT_OF_LINE void finish(const Tile& t, const ColumnSums& sums, Factors& to) {
    for (int64_t j = 0; j < t.n && grads.wanted() && !by_row && tiles.slabs == 1; ++j) {
      const int64_t slot = t.block * tiles.row_width + t.left + j;
      grads.b[slot] = A(sums.g[j]);
      grads.w[slot] = A(sums.gx[j]);
    }
    const int64_t copies = tiles.joined, step = v.width();
    if (copies == 1 && v.r1 == 1 && !source.mask()) return finish_columns(t.n, sums, to);
    for (int64_t j = 0; j < t.n / copies; j += v.r1) {
      double g = 0, gx = 0, count = source.mask() ? f.fused->counts[t.cell(v, j)] : f.length ? 1 : double(v.count());
      if (count == 0) count = 1;
      for (int64_t c = 0; c < copies && !f.fixed; ++c)
        for (int64_t i = c * step + j; i < c * step + j + v.r1; ++i) {
          g += sums.g[i] * double(to.w[i]);
          gx += sums.gx[i] * double(to.w[i]);
        }
      for (int64_t c = 0; c < copies; ++c)
        for (int64_t i = c * step + j; i < c * step + j + v.r1; ++i) {
          to.c1[i] = f.center ? -to.rstd[i] * A(g / count) : A(0);
          to.c2[i] = -to.rstd[i] * A(gx / count);
          to.w[i] *= to.rstd[i];
        }
    }
  }

  // Where each column is a cell.
  void finish_columns(int64_t n, const ColumnSums& sums, Factors& to) const {
    const double per = f.fixed ? 0 : f.length ? -1 : -1 / double(v.count()), per1 = f.center ? per : 0;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const double w = double(to.w[j]);
      to.c1[j] = to.rstd[j] * A(sums.g[j] * w * per1);
      to.c2[j] = to.rstd[j] * A(sums.gx[j] * w * per);
      to.w[j] *= to.rstd[j];
    }
  }

  void apply_chunk(const Tile& t, int64_t c, const Factors& with) const {
    const int64_t from = tiles.chunk_start(c), end = tiles.chunk_end(c);
    if (tiles.slabs == 1) apply_rows(t, from, end, with);
    else apply_rows(t, from, end, of_slab(t, c / tiles.per_slab, with));
  }
  OUT_OF_LINE void apply_rows(const Tile& t, int64_t from, int64_t end, const Factors& with) const {
    T bx[TILE], bg[TILE];
    Writer<S, T> writer(dx, v, f.fused);  // its fence also serves the gradients of gate and skip
    const int64_t n = t.n;
    for (int64_t r = from; r < end; ++r) {
      const int64_t offset = t.at(tiles, r);
      if (source.mask() && (r - from) % MASK_LOOKAHEAD == 0)
        writer.look_ahead(dx + offset, (min(MASK_LOOKAHEAD, end - r) - 1) * tiles.row_width + n);
      const T *p, *g;
      if (plain) {
        p = load(source.format(), source.x() + offset, bx, n);
        g = load(source.format(), source.dy() + offset, bg, n);
      } else {
        p = applied.input(offset, n, bx, Constant<A>{0});
        g = applied.gradient(offset, n, bg, p, z_of(t, r, with, true));
      }
      T* q = writer.open(dx + offset);
      const A row_weight = weights.row_weight(t, r);
      each<T>(0, n, [=, mu = with.mu, rstd = with.rstd, w = with.w, c1 = with.c1, c2 = with.c2](auto at) {
        at.put(q, at(g) * (at(w) * row_weight) + ((at(p) - at(mu)) * at(rstd)) * at(c2) + at(c1));
      });
      applied.through_gate(q, offset, n);
      writer.close(n);
    }
  }

  OUT_OF_LINE void reduce_weight_gradients() const {
    if (!by_row)
      return grads.reduce(
          tiles.row_width, v.period, [&](int64_t j) { return j % v.width() / v.inner % v.period; }, tiles.slabs);
    // The rows of a block have as many weights as a block has, or all of them in turn.
    Array<int64_t> index(tiles.count() * v.r0);
    for (int64_t i = 0; i < tiles.count(); ++i)
      for (int64_t r = 0; r < v.r0; ++r) index[i * v.r0 + r] = weights.of_row(Tile(tiles, i), r);
    grads.reduce(index.size(), v.period, [&](int64_t slot) { return index[slot]; });
  }
};

}  // namespace
