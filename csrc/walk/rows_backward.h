// The backward pass along rows: dx = dy * weight * rstd + x_hat * c2 + c1, where c1 and c2 come from the cell's sums of
// g = dy * weight and of g * x_hat.
//
// A cell is read for these sums, and again for dx. How depends on the rows, as in rows.h:
//   transposed     cells of one row of at most TINY elements: SIDE rows, one in each lane
//   short_rows     of one row of at most BLOCK elements that has a weight for each: SIDE or 4 rows together
//   by_spans       all other cells, block by block
// split_cells shares huge cells among threads, and in_memory_order needs no sums, because the moments are constants.
#pragma once
#include "block/upstream.h"
#include "walk/row_slots.h"
#include "walk/short_rows_backward.h"
#include "walk/transposed.h"

namespace {

// The two sums that a cell's dx needs: of g = dy * weight, and of g * x_hat.
struct CellSums {
  double g = 0, gx = 0;

  void add(const CellSums& other) {
    g += other.g;
    gx += other.gx;
  }
};

template <class S, class T> class RowsBackward {
  using A = arithmetic<S>;
  const View& v;
  const Backward& f;
  const Pool& pool;
  const Upstream<S, T> source;   // blocks as they are read first
  const Upstream<S, T> applied;  // as they are read for dx: the writer sets what is padding to 0
  const A *const mean, *const std;
  S* const dx;
  const Affine<A> affine;
  const bool sums_needed;
  const Spans spans;
  const RowSlots slots;
  AffineGrads<A> grads;

 public:
  RowsBackward(const View& view, const Backward& backward, const Pool& threads)
      : v(view), f(backward), pool(threads), source(v, f),
        applied((needs_sums(f) ? source.again() : source).unmasked()),
        mean(static_cast<const A*>(f.mean)), std(static_cast<const A*>(f.std)), dx(static_cast<S*>(f.dx)),
        affine(v, f.weight, f.fused ? f.fused->bias : Parameter{}, {f.zero_centered}), sums_needed(needs_sums(f)),
        spans(v), slots(v, affine), grads(f.dweight, f.dbias, slots.number) {}

  void run() {
    const RowShare share(v, spans, pool);
    const bool adds_vectors = affine.vector && grads.wanted();  // then all cells of a vector are one task
    if (f.fixed && !affine.vector) {
      in_memory_order();
    } else if (share.split && !adds_vectors) {
      split_cells();
    } else {
      const int64_t per_task = adds_vectors ? slots.per_vector : share.cells_per_task;
      parallel(pool, ceil_div(v.cells(), per_task), [&](int64_t task) {
        whole_cells(task * per_task, min((task + 1) * per_task, v.cells()));
      });
    }
    if (grads.wanted()) slots.reduce(v, affine, grads);
  }

 private:
  Scale<A> scale_of(int64_t cell) const {
    return Scale<A>(f.center || f.fixed ? double(mean[cell]) : 0.0, square(std[cell]), f.eps);
  }
  double count_of(int64_t cell) const {
    const double count = source.mask() ? f.fused->counts[cell] : double(v.count());
    return f.length ? 1 : count > 0 ? count : 1;
  }
  // Writes what the activation was applied to, for n elements whose offset is `at`, and j in the row.
  auto z_of(int64_t at, int64_t j, int64_t n, const Scale<A>& scale) const {
    return [&affine = affine, at, j, n, m = scale.mean, rstd = scale.rstd](const T* in, A* out) {
      affine.pieces(at, j, n, [&](int64_t start, int64_t length, int64_t index) {
        const T* p = in + start;
        A* z = out + start;
        if (affine.vector) {
          const A *w = affine.weight + index, *b = affine.bias + index;
          const auto hat = [=](auto at) { return (at(p) - m) * rstd; };
          if (affine.weight && affine.bias) each<T>(0, length, [=](auto at) { at.put(z, hat(at) * at(w) + at(b)); });
          else if (affine.weight) each<T>(0, length, [=](auto at) { at.put(z, hat(at) * at(w)); });
          else if (affine.bias) each<T>(0, length, [=](auto at) { at.put(z, hat(at) + at(b)); });
          else each<T>(0, length, [=](auto at) { at.put(z, hat(at)); });
        } else {
          const A w = affine.w(index) * rstd, b = affine.b(index);
          each<T>(0, length, [=](auto at) { at.put(z, (at(p) - m) * w + b); });
        }
      });
    };
  }
  // The sums of dy and of dy * x_hat over n elements.
  static TwoSums gradient_sums(const T* p, const T* g, int64_t n, A m, A rstd) {
    return sum_two<T>(n, [=](auto at, auto& a, auto& b) {
      a = at(g);
      b = a * ((at(p) - m) * rstd);
    });
  }

  // The moments are constants and each run has one weight, so there is nothing to wait for: the rows in the order of
  // memory.
  void in_memory_order() {
    const int64_t step = ceil_div(GRAIN, v.r1);
    Array<Scale<A>> scales(v.cells());
    for (int64_t cell = 0; cell < scales.size(); ++cell) scales[cell] = scale_of(cell);
    parallel(pool, ceil_div(v.rows(), step), [&](int64_t t) {
      T bx[BLOCK], bg[BLOCK];
      Writer<S, T> writer(dx, v, f.fused);
      const int64_t end = min(t * step + step, v.rows());
      for (int64_t row = t * step; row < end; ++row) {
        const Scale<A>& scale = scales[v.cell_of_row(row)];
        for (int64_t left = 0; left < v.r1; left += BLOCK)
          constant_block(row, left, min(BLOCK, v.r1 - left), scale, bx, bg, writer);
      }
    });
  }
  void constant_block(int64_t row, int64_t left, int64_t n, const Scale<A>& scale, T* bx, T* bg, Writer<S, T>& writer) {
    const A m = scale.mean, rstd = scale.rstd;
    const int64_t at = row * v.r1 + left, gap = source.gaps().before(row);
    const T* px = source.input(at, n, bx, Constant<A>{m}, gap);
    const T* pg = source.gradient(at, n, bg, px, z_of(at, left, n, scale));
    T* out = dx ? writer.open(dx + at) : nullptr;
    affine.pieces(at, left, n, [&](int64_t start, int64_t length, int64_t index) {
      const T *p = px + start, *g = pg + start;
      if (grads.wanted()) {
        const TwoSums two = gradient_sums(p, g, length, m, rstd);
        const int64_t slot = slots.of_run(row, left + start);
        grads.w[slot] += A(two.b);
        grads.b[slot] += A(two.a);
      }
      const A a = rstd * affine.w(index);
      each<T>(0, dx ? length : 0, [=, q = out + start](auto at) { at.put(q, at(g) * a); });
    });
    if (dx) source.through_gate(out, at, n, gap), writer.close(n);
  }

  // Every span is a task; the sums of cells are added up between two phases.
  void split_cells() {
    const int64_t tasks = v.cells() * spans.per_cell;
    Array<CellSums> partial(sums_needed ? tasks : 0), total(v.cells());
    if (sums_needed)
      parallel(pool, tasks, [&](int64_t t) {
        const int64_t cell = t / spans.per_cell;
        partial[t] = sums_of_span(cell, t % spans.per_cell, scale_of(cell));
      });
    for (int64_t t = 0; t < partial.size(); ++t) total[t / spans.per_cell].add(partial[t]);
    if (dx)
      parallel(pool, tasks, [&](int64_t t) {
        const int64_t cell = t / spans.per_cell;
        Writer<S, T> writer(dx, v, f.fused);
        apply_span(cell, t % spans.per_cell, scale_of(cell), total[cell], writer);
      });
  }

  // The cells of one task.
  void whole_cells(int64_t first, int64_t end) {
    Writer<S, T> writer(dx, v, f.fused);
    if (is_transposed(v, affine) && !f.fused && (affine.whole_row || !grads.wanted())) {
      const int64_t vector = grads.wanted() ? first / slots.per_vector * v.r1 : 0;
      with_length(v.r1, [&](auto n) { transposed(n, first, end, vector, writer); });
    } else if (v.r0 == 1 && affine.whole_row && v.r1 <= BLOCK) {
      const bool side = SUMS_IN_PACKS<T> && v.r1 <= SIDE_BACKWARD;
      const int64_t step = side ? SIDE : 4;
      for (int64_t cell = first; cell < end; cell += step) {
        const int64_t rows = min(step, end - cell);
        side ? short_rows<SIDE>(cell, rows, writer) : short_rows<4>(cell, rows, writer);
      }
    } else {
      for (int64_t cell = first; cell < end; ++cell) by_spans(cell, writer);
    }
  }

  void by_spans(int64_t cell, Writer<S, T>& writer) {
    const Scale<A> scale = scale_of(cell);
    CellSums sums;
    for (int64_t s = 0; s < spans.per_cell && sums_needed; ++s) sums.add(sums_of_span(cell, s, scale));
    for (int64_t s = dx ? spans.per_cell : 0; s-- > 0;) apply_span(cell, s, scale, sums, writer);
  }

  OUT_OF_LINE CellSums sums_of_span(int64_t cell, int64_t s, const Scale<A>& scale) {
    CellSums sums;
    T bx[BLOCK], bg[BLOCK];
    const A m = scale.mean, rstd = scale.rstd;
    const int64_t gap = source.gaps().before(cell);
    spans.blocks(cell, s, [&](int64_t at, int64_t j, int64_t n, int64_t) {
      const T* px = source.input(at, n, bx, Constant<A>{m}, gap);
      const T* pg = source.gradient(at, n, bg, px, z_of(at, j, n, scale));
      affine.pieces(at, j, n, [&](int64_t start, int64_t length, int64_t index) {
        const T *p = px + start, *g = pg + start;
        if (affine.vector && affine.weight) {
          const A* w = affine.weight + index;
          const TwoSums two = sum_two<T>(length, [=](auto at, auto& a, auto& b) {
            a = at(g) * at(w);
            b = a * ((at(p) - m) * rstd);
          });
          sums.add({two.a, two.b});
        } else {
          const TwoSums two = gradient_sums(p, g, length, m, rstd);
          const double w = affine.vector ? 1.0 : double(affine.w(index));
          sums.g += two.a * w;
          sums.gx += two.b * w;
          if (!affine.vector && grads.wanted()) {
            const int64_t slot = slots.of_run(divide(at - j, v.r1), j + start);
            grads.w[slot] += A(two.b);
            grads.b[slot] += A(two.a);
          }
        }
        if (affine.vector && grads.wanted()) {
          A* tw = grads.w + cell / slots.per_vector * affine.period + index;
          A* tb = grads.b + cell / slots.per_vector * affine.period + index;
          each<T>(0, length, [=](auto at) {
            at.put(tw, at(tw) + at(g) * ((at(p) - m) * rstd));
            at.put(tb, at(tb) + at(g));
          });
        }
      });
    });
    source.end();
    return sums;
  }

  OUT_OF_LINE void apply_span(int64_t cell, int64_t s, const Scale<A>& scale, const CellSums& sums,
                              Writer<S, T>& writer) const {
    T bx[BLOCK], bg[BLOCK];
    const double count = count_of(cell);
    const A m = scale.mean, rstd = scale.rstd;
    const A c1 = f.fixed || !f.center ? A(0) : -rstd * A(sums.g / count);
    const A c2 = f.fixed ? A(0) : -rstd * A(sums.gx / count);
    const int64_t gap = applied.gaps().before(cell);
    spans.blocks(cell, s, [&](int64_t at, int64_t j, int64_t n, int64_t) {
      const T* px = applied.input(at, n, bx, Constant<A>{m}, gap);
      const T* pg = applied.gradient(at, n, bg, px, z_of(at, j, n, scale));
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
      applied.through_gate(out, at, n, gap);
      writer.close(n);
    });
  }

  // The scales of `rows` rows from `first` on; the rest of G are those of the first.
  template <int G> Scales<A, G> scales_from(int64_t first, int64_t rows) const {
    A m[G], s[G];
    for (int64_t k = 0; k < G; ++k) {
      const int64_t cell = first + (k < rows ? k : 0);
      m[k] = f.center || f.fixed ? mean[cell] : A(0), s[k] = std[cell];
    }
    double mu[G], var[G];
#pragma omp simd
    for (int k = 0; k < G; ++k) mu[k] = double(m[k]), var[k] = square(double(s[k]));
    return Scales<A, G>(mu, var, f.eps, sizeof(S) == 2);
  }

  template <int G> void short_rows(int64_t first, int64_t rows, Writer<S, T>& writer) {
    const int64_t n = v.r1;
    const Upstream<S, T> blocks = source.once();
    ShortRows<S, T, G> r(n, rows, affine.weight, scales_from<G>(first, rows));
    for (int64_t k = 0; k < rows; ++k) {
      const int64_t at = (first + k) * n, room = k * ShortRows<S, T, G>::ROOM, gap = source.gaps().before(first + k);
      r.x[k] = blocks.input(at, n, r.bx + room, Constant<A>{r.scales.mean[k]}, gap);
      r.g[k] = blocks.gradient(at, n, r.bg + room, r.x[k], z_of(at, 0, n, r.scales.of(k)));
    }
    const bool needs_factors = dx && !f.fixed;
    if (PACKED<T> || needs_factors) r.sum();
    if (needs_factors) {
      A per[G];
      const A all = A(1.0 / double(n));
      for (int k = 0; k < G; ++k) per[k] = source.mask() && k < rows ? A(1.0 / count_of(first + k)) : all;
      r.finish(per, f.center);
    } else {
      r.finish_constant();
    }
    if (grads.wanted()) {
      const int64_t vector = first / slots.per_vector * n;
      r.add_weight_gradients(grads.w + vector, grads.b + vector);
    }
    if (dx) r.write(dx, first, writer, source);
  }

  // `vector`: where the sums of weight gradients are.
  template <class Length>
  OUT_OF_LINE void transposed(Length n, int64_t first, int64_t end, int64_t vector, Writer<S, T>& writer) {
    constexpr bool DIRECT = std::is_same<T, A>::value;
    S dense[BLOCK];
    A wide_x[BLOCK], wide_g[BLOCK], results[BLOCK], *out = results;
    for (int64_t rows, row = first; row < end; row += rows) {
      rows = min(rows_of_block(n), end - row);
      const S* x = adjacent_rows(source.x(), source.gaps(), row, n, rows, dense);
      const A* in = converted(source.format(), x, wide_x, n * rows);
      const A* g = converted(source.format(), source.dy() + row * n, wide_g, n * rows);
      T* q = dx ? writer.open(dx + row * n) : nullptr;
      if constexpr (DIRECT) out = dx ? q : results;
      alignas(LINE) A dw[TINY][SIDE] = {}, db[TINY][SIDE] = {};
      for (int64_t k = 0; k < rows; k += SIDE)
        differentiate_transposed(n, in + k * n, g + k * n, row + k, min(SIDE, rows - k), out + k * n, dw, db);
      for (int64_t j = 0; j < n && grads.wanted(); ++j) {
        grads.w[vector + j] += A(total<SIDE>(dw[j]));
        grads.b[vector + j] += A(total<SIDE>(db[j]));
      }
      if (!dx) continue;
      if constexpr (!DIRECT) each<T>(0, n * rows, [p = out, q](auto at) { at.put(q, at(p)); });
      writer.close(n * rows);
    }
  }
  // SIDE rows at most, the first of them `cell`. Adds to dw and db.
  template <class Length>
  ALWAYS_INLINE void differentiate_transposed(Length n, const A* in, const A* upstream, int64_t cell, int64_t rows,
                                              A* out, A (*dw)[SIDE], A (*db)[SIDE]) const {
    alignas(LINE) A hat[TINY][SIDE], g[TINY][SIDE], s1[SIDE] = {}, s2[SIDE] = {};
    TransposedMoments<A> m;
    read_transposed(in, n, rows, hat);
    read_transposed(upstream, n, rows, g);
    m.read(f.center || f.fixed ? mean + cell : nullptr, std + cell, rows, f.eps);
    for (int64_t j = 0; j < n; ++j) {
      const A w = affine.w(j);
#pragma omp simd
      for (int k = 0; k < SIDE; ++k) {
        hat[j][k] = (hat[j][k] - m.mean[k]) * m.rstd[k];
        dw[j][k] += g[j][k] * hat[j][k];
        db[j][k] += g[j][k];
        g[j][k] *= w;
        s1[k] += g[j][k];
        s2[k] += g[j][k] * hat[j][k];
      }
    }
    const A per = f.fixed ? A(0) : A(1) / A(int64_t(n)), per1 = f.center ? per : A(0);
    for (int64_t j = 0; j < n; ++j)
#pragma omp simd
      for (int k = 0; k < SIDE; ++k) g[j][k] = m.rstd[k] * (g[j][k] - s1[k] * per1 - hat[j][k] * (s2[k] * per));
    write_transposed(g, n, rows, out);
  }
};

}  // namespace
