// The forward pass along rows. A cell is R0 rows of R1 contiguous elements with one mean and one variance.
//
// A cell is read for its moments and again to be normalized, while it is in the cache. How depends on the rows:
//   transposed     cells of one row of at most TINY elements: SIDE rows, one in each lane
//   side_by_side   of one row of at most SHORT elements: SIDE rows, whose sums are taken together
//   in_stages      of one row of at most BLOCK elements: three rows, each in another stage
//   by_spans       all other cells, block by block
// split_cells shares huge cells among threads, and apply_given needs no moments, because it is given them.
#pragma once
#include "block/cast_first.h"
#include "walk/row_padding.h"
#include "walk/short_rows.h"
#include "walk/transposed.h"

namespace {

// The longest rows whose sums are taken side by side.
constexpr int64_t SHORT = 512;

template <class S, class T> class RowsForward {
  using A = arithmetic<S>;
  const View& v;
  const Forward& f;
  const Pool& pool;
  const Source<S, T> source;   // blocks as they are read first
  const Source<S, T> again;    // as they are read again for moments
  const Source<S, T> applied;  // as they are read to be normalized: the writer sets what is padding to 0
  S* const y;
  A *const mean, *const std;
  const Affine<A> affine;
  const Spans spans;
  const bool prefetches, prefetches_cell;  // whether the tensor, or a cell on its second pass, comes from memory
  const int64_t burst, rows_ahead;
  const bool relu;  // in the loop that normalizes
  RowPadding<S, T> padding;

 public:
  RowsForward(const View& view, const Forward& forward, const Pool& threads)
      : v(view), f(forward), pool(threads), source(v, f.x, f.fused), again(source.again()),
        applied((f.fixed ? source : again).unmasked()), y(static_cast<S*>(f.y)), mean(static_cast<A*>(f.mean)),
        std(static_cast<A*>(f.std)), affine(v, f.weight, f.bias, convention(f, v)), spans(v),
        prefetches(needs_prefetch<S>(v.numel())), prefetches_cell(needs_prefetch<S>(4 * v.count())),
        burst(prefetches ? BURST : BLOCK), rows_ahead(AHEAD / max(v.r1, 1)),
        relu(is_in_loop(f.fused) && !(sizeof(S) == 2 && f.cast_first) && !is_transposed(v, affine)),
        padding(v, f, source, spans) {}

  void run() {
    if (f.fixed) return apply_given();
    const RowShare share(v, spans, pool);
    if (share.split) return split_cells();
    parallel(pool, share.tasks, [&](int64_t task) {
      const int64_t first = task * share.cells_per_task;
      whole_cells(first, min(first + share.cells_per_task, v.cells()));
    });
  }

 private:
  // Nothing to wait for: the rows in the order of memory.
  void apply_given() {
    const int64_t r1 = v.r1, step = ceil_div(GRAIN, r1), size = burst;
    Array<Scale<A>> scales(v.cells());
    for (int64_t cell = 0; cell < v.cells(); ++cell)
      scales[cell] = Scale<A>(double(mean[cell]), square(std[cell]), f.eps);
    parallel(pool, ceil_div(v.rows(), step), [&, r1, step, size, prefetches = prefetches](int64_t task) {
      T buffer[BLOCK];
      Writer<S, T> writer(y, v, f.fused, relu);
      const int64_t end = min((task + 1) * step, v.rows());
      for (int64_t row = task * step; row < end; ++row) {
        const Scale<A>& scale = scales[v.cell_of_row(row)];
        for (int64_t j = 0; j < r1; j += size) {
          const int64_t n = min(size, r1 - j), at = row * r1 + j;
          if (prefetches) prefetch(source.x + at + AHEAD + source.gaps.before(row + (j + AHEAD) / r1), n);
          apply_block(applied(at, n, buffer, Constant<A>{0}, applied.gaps.before(row)), at, j, n, scale, writer);
        }
      }
    });
  }

  // Every span is a task; the moments of cells are merged between two phases.
  void split_cells() {
    const int64_t tasks = v.cells() * spans.per_cell;
    Array<Moments> partial(tasks);
    Array<Scale<A>> scales(v.cells());
    if (source.mask) parallel(pool, v.cells(), [&](int64_t cell) { padding.find(cell); });
    for (bool twice = false;; twice = true) {
      parallel(pool, tasks, [&](int64_t t) { partial[t] = moments_of_span(t / spans.per_cell, t % spans.per_cell); });
      bool far_off = false;
      for (int64_t cell = 0; cell < v.cells(); ++cell) {
        Moments m;
        for (int64_t s = 0; s < spans.per_cell; ++s) m.merge(partial[cell * spans.per_cell + s]);
        if (source.mask) far_off |= padding.remove(cell, m);
        scales[cell] = finish(cell, m);
      }
      if (!far_off || twice) break;
    }
    parallel(pool, tasks, [&](int64_t t) {
      Writer<S, T> writer(y, v, f.fused, relu);
      apply_span(t / spans.per_cell, t % spans.per_cell, scales[t / spans.per_cell], writer);
    });
  }

  // The cells of one task.
  void whole_cells(int64_t cell, int64_t end) {
    Writer<S, T> writer(y, v, f.fused, relu);
    if (is_transposed(v, affine) && source.is_plain()) {
      with_length(v.r1, [&](auto n) { transposed(n, cell, end, writer); });
    } else if (v.r0 == 1 && v.r1 <= BLOCK) {
      if (!SUMS_IN_PACKS<T> || v.r1 > SHORT || has_mixed_rows()) in_stages(cell, end - cell, writer);
      else
        for (; cell < end; cell += SIDE) side_by_side(cell, min(SIDE, end - cell), writer);
    } else {
      for (; cell < end; ++cell) by_spans(cell, writer);
    }
  }

  // Whether a row may have both valid elements and padding.
  bool has_mixed_rows() const { return source.mask && !source.mask.has_whole_rows(v.r1); }

  void by_spans(int64_t cell, Writer<S, T>& writer) {
    const auto moments_of_cell = [&] {
      Moments m;
      for (int64_t s = 0; s < spans.per_cell; ++s) m.merge(moments_of_span(cell, s));
      return m;
    };
    if (source.mask) padding.find(cell);
    Moments m = moments_of_cell();
    if (source.mask && padding.remove(cell, m)) {
      m = moments_of_cell();
      padding.remove(cell, m);
    }
    const Scale<A> scale = finish(cell, m);
    for (int64_t s = spans.per_cell; s-- > 0;) apply_span(cell, s, scale, writer);  // what was read last is still near
  }

  // The first block in two passes; its mean is the guess that all others deviate from, in one pass. Where it is more
  // than a standard deviation off, or the squares leave the range, each block is taken by itself.
  OUT_OF_LINE Moments moments_of_span(int64_t cell, int64_t s) const {
    Moments first;
    Lanes<T> lanes;
    T buffer[BLOCK];
    A guess = 0;
    int64_t rest = 0;
    const auto fill = padding.of(cell);
    const int64_t gap = source.gaps.before(cell), gap_again = again.gaps.before(cell);
    spans.blocks(cell, s, [&, prefetches = prefetches, burst = burst](int64_t at, int64_t, int64_t n, int64_t ahead) {
      const T* in = source(at, n, buffer, fill, gap);
      if (first.count == 0) {
        first = moments_of(in, n, f.center, f.eps);
        guess = A(first.mean);
        return;
      }
      rest += n;
      for (int64_t i = 0; i < n; i += burst) {
        if (prefetches) prefetch(source.x + ahead + i, min(burst, n - i));
        lanes.add(min(burst, n - i), [p = in + i, guess](auto at, auto& d, auto& d2) {
          d = at(p, guess) - guess;
          d2 = d * d;
        });
      }
      lanes.block_done();
    });
    if (rest == 0) return first;
    lanes.flush();
    const double shift = f.center ? lanes.ta / double(rest) : 0, off = shift * lanes.ta;
    if (off <= lanes.tb - off && !(std::is_same<A, float>::value && out_of_range(lanes.tb, f.eps))) {
      first.merge({double(rest), double(guess) + shift, lanes.tb - off});
      return first;
    }
    Moments each;
    spans.blocks(cell, s, [&](int64_t at, int64_t, int64_t n, int64_t) {
      each.merge(moments_of(again(at, n, buffer, fill, gap_again), n, f.center, f.eps));
    });
    return each;
  }

  // Stores the moments of a cell, and returns how they are applied.
  Scale<A> finish(int64_t cell, const Moments& m) const {
    if (source.mask && f.fused->counts[cell] == 0) {
      if (mean) mean[cell] = 0;
      if (std) std[cell] = 1;
      return Scale<A>(0, 1, 0);
    }
    if (f.length) {  // `apply_to` divides by it
      Scale<A> scale{};
      scale.rstd = std[cell] = A(length_of(m.m2));
      return scale;
    }
    const double var = m.m2 / m.count;
    if (mean) mean[cell] = A(m.mean);
    if (std) std[cell] = A(std::sqrt(var));
    return Scale<A>(m.mean, var, f.eps);
  }

  OUT_OF_LINE void apply_span(int64_t cell, int64_t s, const Scale<A>& scale, Writer<S, T>& writer) const {
    T buffer[BLOCK];
    const int64_t step = prefetches_cell ? BURST : BLOCK, gap = applied.gaps.before(cell);
    spans.blocks(cell, s, [&](int64_t at, int64_t j, int64_t n, int64_t ahead) {
      const T* in = applied(at, n, buffer, Constant<A>{0}, gap);
      for (int64_t i = 0; i < n; i += step) {
        if (prefetches_cell) prefetch(source.x + ahead + i, min(step, n - i));
        apply_block(in + i, at + i, j + i, min(step, n - i), scale, writer);
      }
    });
  }
  ALWAYS_INLINE void apply_block(const T* in, int64_t at, int64_t j, int64_t n, const Scale<A>& scale,
                                 Writer<S, T>& writer) const {
    apply_to(writer.open(y + at), in, at, j, n, scale);
    writer.close(n);
  }
  // out = the n elements at `in`, normalized; `at` is their offset, j that in the row.
  ALWAYS_INLINE void apply_to(T* out, const T* in, int64_t at, int64_t j, int64_t n, const Scale<A>& scale) const {
    if (relu) apply_to(out, in, at, j, n, scale, Function<Activation::relu>());
    else apply_to(out, in, at, j, n, scale, Function<Activation::none>());
  }
  template <class Finally>
  ALWAYS_INLINE void apply_to(T* out, const T* in, int64_t at, int64_t j, int64_t n, const Scale<A>& scale,
                              const Finally& finally) const {
    affine.pieces(at, j, n, [&](int64_t start, int64_t length, int64_t index) __attribute__((always_inline)) {
      const T* p = in + start;
      T* q = out + start;
      const A m = scale.mean;
      if constexpr (sizeof(S) == 2) {
        if (f.cast_first) return cast_first(q, p, length, index, scale);
      }
      if (affine.vector && (affine.weight || affine.bias)) {
        const A rstd = scale.rstd, shift = scale.shift;
        const A *w = affine.weight + index, *b = affine.bias + index;
        if (!affine.bias) {
          each<T>(0, length, [=](auto at) { at.put(q, finally.value(((at(p) - m) * rstd + shift) * at(w))); });
        } else if (!affine.weight) {
          each<T>(0, length, [=](auto at) { at.put(q, finally.value(((at(p) - m) * rstd + shift) + at(b))); });
        } else {
          each<T>(0, length, [=](auto at) { at.put(q, finally.value(((at(p) - m) * rstd + shift) * at(w) + at(b))); });
        }
      } else {
        const bool plain = affine.vector;
        const A w = plain ? A(1) : affine.w(index), b = plain ? A(0) : affine.b(index);
        const A a = f.length ? w / scale.rstd : scale.rstd * w, c = scale.shift * w + b;
        each<T>(0, length, [=](auto at) { at.put(q, finally.value((at(p) - m) * a + c)); });
      }
    });
  }

  void cast_first(T* q, const T* p, int64_t n, int64_t index, const Scale<A>& scale) const {
    const auto hat = [p, m = scale.mean, rstd = scale.rstd, shift = scale.shift](auto at) {
      return (at(p) - m) * rstd + shift;
    };
    const A *w = affine.weight, *b = affine.bias;
    const bool finally = rounds_before<T>(f.fused);
    if (affine.vector) apply_rounded_along(source.format, q, n, finally, hat, w ? w + index : w, b ? b + index : b);
    else apply_rounded_constant(source.format, q, n, finally, hat, affine.w(index), affine.b(index), b != nullptr);
  }

  // Prefetches one of four parts of the row that comes AHEAD of `row`: the parts are asked for among the steps.
  void fetch(int64_t row, int64_t part) const {
    const int64_t size = v.r1 <= BURST ? v.r1 : ceil_div(v.r1, 4), from = part * size;
    if (!prefetches || from >= v.r1) return;
    prefetch(source.x + row * v.r1 + AHEAD + from + source.gaps.before(row + rows_ahead), min(size, v.r1 - from));
  }

  // Each row is converted once and normalized from the same buffer. Each step takes three rows on by a stage: reading
  // goes on while results are written, and the sums and roots of one row overlap with the work on the others.
  void in_stages(int64_t first, int64_t rows, Writer<S, T>& writer) {
    constexpr int64_t STAGES = 3;
    T buffer[STAGES * BLOCK];
    const T* in[STAGES];
    A guess[STAGES];
    TwoSums sums[STAGES];
    Scale<A> scales[STAGES];
    const int64_t n = v.r1;
    const bool mixed = has_mixed_rows();
    for (int64_t step = 0; step < rows + STAGES - 1; ++step) {
      const auto at_stage = [&](int64_t stage, auto&& body) {
        const int64_t k = step - stage;
        if (k < 0 || k >= rows) return;
        fetch(first + step, stage);
        body(first + k, k % STAGES);
      };
      at_stage(0, [&](int64_t row, int64_t k) {
        if (mixed) padding.find(row);
        in[k] = source(row * n, n, buffer + k * BLOCK, padding.of(row), source.gaps.before(row));
        guess[k] = guess_mean(in[k], n, f.center);
        sums[k] = deviations(in[k], n, guess[k]);
      });
      at_stage(1, [&](int64_t row, int64_t k) {
        Moments m = conclude(in[k], n, guess[k], sums[k], f.center, f.eps);
        if (mixed && padding.remove(row, m)) {
          in[k] = again(row * n, n, buffer + k * BLOCK, padding.of(row), again.gaps.before(row));
          m = moments_of(in[k], n, f.center, f.eps);
          padding.remove(row, m);
        }
        scales[k] = finish(row, m);
      });
      at_stage(2, [&](int64_t row, int64_t k) {
        apply_block(in[k], row * n, 0, n, scales[k], writer);
        fetch(first + step, 3);
      });
    }
  }

  void side_by_side(int64_t first, int64_t rows, Writer<S, T>& writer) const {
    T buffer[SIDE * SHORT];
    const T* in[SIDE];
    double mu[SIDE], var[SIDE];
    const int64_t n = v.r1;
    for (int64_t k = 0; k < rows; ++k) {
      fetch(first + k, 0);
      in[k] = source((first + k) * n, n, buffer + k * n, Constant<A>{0}, source.gaps.before(first + k));
    }
    moments_side_by_side<T>(in, n, rows, f.center, f.eps, mu, var);
    if (f.length) {
      for (int64_t k = 0; k < rows; ++k) {
        const Scale<A> scale = finish(first + k, {double(n), 0, var[k] * double(n)});
        apply_block(in[k], (first + k) * n, 0, n, scale, writer);
      }
      return;
    }
    const Scales<A, SIDE> scales(mu, var, f.eps, sizeof(S) == 2);
    if (mean) store_some(rows, mean + first, [&](int64_t k) { return A(mu[k]); });
    if (std) store_some(rows, std + first, [&](int64_t k) { return A(std::sqrt(var[k])); });
    for (int64_t k = 0; k < rows && std && source.mask; ++k)
      if (f.fused->counts[first + k] == 0) std[first + k] = 1;
    for (int64_t done = 0, step = BURST / n; done < rows; done += step) {
      const int64_t some = min(step, rows - done), start = (first + done) * n;
      apply_rows(writer.open(y + start), in, done, some, start, scales);
      writer.close(some * n);
    }
  }
  // The rows from `first` of `in` on, next to each other; their offset is `at`.
  void apply_rows(T* out, const T* const* in, int64_t first, int64_t rows, int64_t at, const Scales<A, SIDE>& s) const {
    const bool usual = affine.whole_row && affine.weight && affine.bias && !f.cast_first;
    if (usual && relu) return apply_usual(out, in, first, rows, s, Function<Activation::relu>());
    if (usual) return apply_usual(out, in, first, rows, s, Function<Activation::none>());
    const int64_t n = v.r1;
    for (int64_t k = 0; k < rows; ++k) apply_to(out + k * n, in[first + k], at + k * n, 0, n, s.of(first + k));
  }
  // With weight and bias for each element of a row, as most norms have: what is asked for each row elsewhere is known.
  template <class Finally>
  void apply_usual(T* out, const T* const* in, int64_t first, int64_t rows, const Scales<A, SIDE>& s,
                   const Finally& finally) const {
    const A *w = affine.weight, *b = affine.bias;
    for (int64_t k = first; k < first + rows; ++k, out += v.r1) {
      each<T>(0, v.r1, [=, p = in[k], m = s.mean[k], rstd = s.rstd[k], shift = s.shift[k]](auto at) {
        at.put(out, finally.value(((at(p) - m) * rstd + shift) * at(w) + at(b)));
      });
    }
  }
  template <class Length>
  OUT_OF_LINE void transposed(Length n, int64_t first, int64_t end, Writer<S, T>& writer) const {
    constexpr bool DIRECT = std::is_same<T, A>::value;
    S dense[BLOCK];
    A wide[BLOCK], results[DIRECT ? 1 : BLOCK], *out = results;
    for (int64_t rows, row = first; row < end; row += rows) {
      rows = min(rows_of_block(n), end - row);
      const A* in = converted(source.format, adjacent_rows(source.x, source.gaps, row, n, rows, dense), wide, n * rows);
      T* q = writer.open(y + row * n);
      if constexpr (DIRECT) out = q;
      for (int64_t k = 0; k < rows; k += SIDE)
        normalize_transposed(n, in + k * n, row + k, min(SIDE, rows - k), out + k * n);
      if constexpr (!DIRECT) each<T>(0, n * rows, [p = out, q](auto at) { at.put(q, at(p)); });
      writer.close(n * rows);
    }
  }
  // SIDE rows at most, the first of them `cell`.
  template <class Length>
  ALWAYS_INLINE void normalize_transposed(Length n, const A* in, int64_t cell, int64_t rows, A* out) const {
    alignas(LINE) A x[TINY][SIDE];
    TransposedMoments<A> m;
    read_transposed(in, n, rows, x);
    m.find(x, in, n, rows, f.center, f.eps);
    if (mean) copy_lanes(m.mean, mean + cell, rows);
    if (std) copy_lanes(m.std, std + cell, rows);
    const bool rounds = sizeof(S) == 2 && f.cast_first;
    for (int64_t j = 0; j < n; ++j) {
      const A w = affine.w(j), b = affine.b(j);
      if (rounds) {
        for (int k = 0; k < SIDE; ++k) {
          const A z = source.format.stored(source.format.stored(x[j][k] * m.rstd[k]) * w);
          x[j][k] = affine.bias ? source.format.stored(z + b) : z;
        }
        continue;
      }
#pragma omp simd
      for (int k = 0; k < SIDE; ++k) x[j][k] = x[j][k] * m.rstd[k] * w + b;
    }
    write_transposed(x, n, rows, out);
  }
};

}  // namespace
