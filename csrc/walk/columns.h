// The forward pass down columns. The sums of each column are kept separately while the rows pass.
//
// For each tile: find_padding chooses values for padding; moments_of_chunk reads it panel by panel; finish merges
// columns into cells, stores their moments and prepares the factors of each column; apply_rows reads the tile again,
// from its end, and writes it normalized. Tiles are tasks, or chunks of them where there are few tiles (split_tiles).
#pragma once
#include "block/cast_first.h"
#include "block/writer.h"
#include "walk/column_moments.h"

namespace {

// Rows whose mask is looked at together.
constexpr int64_t MASK_LOOKAHEAD = 16;

template <class S, class T> class ColumnsForward {
  using A = arithmetic<S>;
  const View& v;
  const Forward& f;
  const Pool& pool;
  const Source<S, T> source;   // blocks as they are read first
  const Source<S, T> applied;  // as they are read to be normalized: the writer sets what is padding to 0
  S* const y;
  A *const mean, *const std;
  const Affine<A> affine;
  const TileAffine<A> weights;
  const Tiles tiles;
  const bool prefetches, prefetches_tile;  // whether the tensor, or a tile on its second pass, comes from memory
  const bool relu;                         // in the loop that normalizes

  // y = (x - mu) * factor + shift in each column, and the value that replaces padding. With `cast_first` that is x_hat,
  // and weight and bias are kept.
  struct Factors { alignas(LINE) A mu[TILE], factor[TILE], shift[TILE], padding[TILE], w[TILE], b[TILE]; };
  struct CellMoments { alignas(LINE) double mean[TILE], var[TILE]; };

 public:
  ColumnsForward(const View& view, const Forward& forward, const Pool& threads)
      : v(view), f(forward), pool(threads), source(v, f.x, f.fused),
        applied((f.fixed ? source : source.again()).unmasked()), y(static_cast<S*>(f.y)), mean(static_cast<A*>(f.mean)),
        std(static_cast<A*>(f.std)), affine(v, f.weight, f.bias, convention(f, v)), weights(v, affine),
        tiles(v, pool, weights.by_row, false), prefetches(needs_prefetch<S>(v.numel())),
        prefetches_tile(needs_prefetch<S>((f.fixed || tiles.split ? 1 : 4) * tiles.rows * tiles.width)),
        relu(is_in_loop(f.fused) && !(sizeof(S) == 2 && f.cast_first)) {}

  void run() {
    if (tiles.split) return split_tiles();
    parallel(pool, tiles.count(), [&](int64_t i) {
      const Tile t(tiles, i);
      Factors to;
      ColumnMoments m, part;
      if (source.mask && !f.fixed) find_padding(t, to.padding);
      for (bool twice = false;; twice = true) {
        m.count = 0;
        for (int64_t c = 0; c < tiles.chunks && !f.fixed; ++c) {
          moments_of_chunk(t, c, to.padding, part);
          m.merge(part.count, part.mean, part.m2, t.n);
        }
        if (!finish(t, m, to) || twice) break;
      }
      tiles.backwards([&](int64_t from, int64_t end) { apply_slabs(t, from, end, to); });
    });
  }

 private:
  // Every chunk is a task; the moments of tiles are merged between two phases.
  void split_tiles() {
    const int64_t tasks = tiles.count() * tiles.chunks;
    Array<ColumnMoments> partial(f.fixed ? 0 : tasks);
    Array<Factors> factors(tiles.count());
    if (source.mask && !f.fixed)
      parallel(pool, tiles.count(), [&](int64_t i) { find_padding(Tile(tiles, i), factors[i].padding); });
    ColumnMoments m;
    for (bool twice = false;; twice = true) {
      if (!f.fixed)
        parallel(pool, tasks, [&](int64_t i) {
          const int64_t tile = i % tiles.count();
          moments_of_chunk(Tile(tiles, tile), i / tiles.count(), factors[tile].padding, partial[i]);
        });
      bool far_off = false;
      for (int64_t i = 0; i < tiles.count(); ++i) {
        const Tile t(tiles, i);
        m.count = 0;
        for (int64_t c = 0; c < tiles.chunks && !f.fixed; ++c) {
          const ColumnMoments& p = partial[c * tiles.count() + i];
          m.merge(p.count, p.mean, p.m2, t.n);
        }
        far_off |= finish(t, m, factors[i]);
      }
      if (!far_off || twice) break;
    }
    parallel(pool, tasks, [&](int64_t i) {
      const int64_t tile = i % tiles.count(), c = i / tiles.count();
      apply_slabs(Tile(tiles, tile), tiles.chunk_start(c), tiles.chunk_end(c), factors[tile]);
    });
  }

  // Padding is replaced by the first valid value of its cell until `remove_padding` takes it out again.
  OUT_OF_LINE void find_padding(const Tile& t, A* padding) const {
    bool found[TILE] = {};
    for (int64_t j = 0; j < t.n; ++j) padding[j] = 0;
    int64_t open = t.n;
    for (int64_t r = 0; r < tiles.rows && open && f.center; ++r) {
      const int64_t at = t.at(tiles, r);
      const auto take = [&](int64_t j) {
        const int64_t head = remainder(j, v.width()) / v.r1 * v.r1;
        if (found[head]) return;
        found[head] = true;
        padding[head] = source.format.stored(source.unread(at + j));
        open -= tiles.joined * v.r1;
      };
      const auto same = [&](int64_t start, int64_t length, bool is_valid) {
        for (int64_t j = start; is_valid && j < start + length; ++j) take(j);
      };
      const auto by_bytes = [&](int64_t start, int64_t length, const uint8_t* bytes) {
        for (int64_t i = 0; i < length; ++i)
          if (bytes[i]) take(start + i);
      };
      source.mask.runs(at, t.n, same, by_bytes);
    }
    for (int64_t j = 0; j < t.n; ++j) padding[j] = padding[j % v.width() / v.r1 * v.r1];
  }

  OUT_OF_LINE void moments_of_chunk(const Tile& t, int64_t c, const A* padding, ColumnMoments& m) const {
    m.count = 0;
    const int64_t end = tiles.chunk_end(c);
    T room[TILE];
    const Along<T> fill = along(padding, room, source.mask ? t.n : 0);
    // A short panel first: it takes two passes to find the mean that the others are guessed from.
    for (int64_t r = tiles.chunk_start(c), rows; r < end; r += rows) {
      rows = min(m.count == 0 && f.center ? FIRST_PANEL : tiles.panel, end - r);
      const int64_t at = t.at(tiles, r), stride = tiles.row_width, ahead = prefetches ? tiles.ahead : 0;
      const int64_t all = (rows - 1) * stride + t.n;
      const bool masks_only = source.mask && !source.computes(), valid = masks_only && source.mask.is_all_valid(at, all);
      Panel<S, T> panel(source, padding, at, stride, rows, t.n, ahead, f);
      if (masks_only && !valid && source.mask.is_all_padding(at, all)) {
        panel.merge_padding_into(m);
        continue;
      }
      const bool plain = source.is_plain() || valid;
      if constexpr (std::is_same<S, T>::value) {  // then a row is only a pointer, and a branch for each would show
        if (plain) {
          panel.merge_into(m, [x = source.x](int64_t offset, int64_t, T*) { return x + offset; });
          continue;
        }
      }
      panel.merge_into(m, [&source = source, fill, plain](int64_t offset, int64_t n, T* buffer) {
        if (plain) return load(source.format, source.x + offset, buffer, n);
        return source(offset, n, buffer, fill);
      });
    }
  }

  // From the moments of columns to those of cells and to the factors of columns. True where the values for padding were
  // so far from the mean that precision was lost: they are the means now, and the moments have to be computed again.
  OUT_OF_LINE bool finish(const Tile& t, const ColumnMoments& m, Factors& to) const {
    CellMoments cells;
    const int64_t n = t.cells(tiles), first = t.cell(v, 0);
    A *means = mean ? mean + first : nullptr, *stds = std ? std + first : nullptr;
    bool far_off = false;
    if (f.fixed) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) cells.mean[i] = double(means[i]), cells.var[i] = square(stds[i]);
    } else {
      merge_columns(m, n, cells);
      if (source.mask) far_off = remove_padding(t, n, cells, to.padding);
    }
    if (!f.fixed && means) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) means[i] = A(cells.mean[i]);
    }
    if (!f.fixed && stds) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) stds[i] = A(std::sqrt(cells.var[i]));
    }
    f.length ? divide_by_length(t, n, cells, stds, to) : standardize(t, n, cells, to);
    return far_off;
  }
  // Cells of several columns, and joined rows, are merged; all columns hold the same number of values, so no weights
  // are needed.
  void merge_columns(const ColumnMoments& m, int64_t n, CellMoments& cells) const {
    const int64_t copies = tiles.joined, step = v.width();
    if (copies == 1 && v.r1 == 1) {
      const double per = 1.0 / m.count;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) cells.mean[i] = m.mean[i], cells.var[i] = m.m2[i] * per;
      return;
    }
    for (int64_t i = 0; i < n; ++i) {
      const int64_t from = i * v.r1;
      double sum = 0, away = 0, within = 0;
      for (int64_t c = 0; c < copies; ++c)
        for (int64_t j = c * step + from; j < c * step + from + v.r1; ++j) sum += m.mean[j] - m.mean[from];
      cells.mean[i] = m.mean[from] + sum / double(copies * v.r1);
      for (int64_t c = 0; c < copies; ++c)
        for (int64_t j = c * step + from; j < c * step + from + v.r1; ++j) {
          away += square(m.mean[j] - cells.mean[i]);
          within += m.m2[j];
        }
      cells.var[i] = (within / m.count + away) / double(copies * v.r1);
    }
  }
  bool remove_padding(const Tile& t, int64_t n, CellMoments& cells, A* padding) const {
    bool far_off = false;
    const double* counts = f.fused->counts + t.cell(v, 0);
    for (int64_t i = 0; i < n; ++i) {
      const double all = double(v.count()), valid = counts[i], guess = double(padding[i * v.r1]);
      const double sum = (cells.mean[i] - guess) * all, off = valid ? sum / valid : 0;
      const double m2 = cells.var[i] * all + sum * sum / all - sum * off;
      cells.mean[i] = valid ? guess + off : 0;
      cells.var[i] = valid ? (m2 > 0 ? m2 / valid : 0) : 1;
      far_off |= f.center && sum * off > FAR_OFF * m2;
      for (int64_t j = i * v.r1; j < t.n; j += v.width())
        for (int64_t c = 0; c < v.r1; ++c) padding[j + c] = source.format.stored(A(cells.mean[i]));
    }
    return far_off;
  }
  void standardize(const Tile& t, int64_t n, const CellMoments& cells, Factors& to) const {
    A mu[TILE], rstd[TILE], shift[TILE];
    if constexpr (sizeof(S) == 2) scales_of_halves(n, cells.mean, cells.var, f.eps, mu, rstd, shift);
    else scales_of(n, cells.mean, cells.var, f.eps, mu, rstd, shift);
    const bool apart = tiles.slabs > 1 || (sizeof(S) == 2 && f.cast_first);
    weights.broadcast(
        t, tiles, ToColumns<A>{mu, rstd, shift, to.mu, to.factor, to.shift, to.w, to.b, apart});
  }
  void divide_by_length(const Tile& t, int64_t n, const CellMoments& cells, A* lengths, Factors& to) const {
    for (int64_t i = 0; i < n; ++i) lengths[i] = A(length_of(cells.var[i] * double(v.count())));
    weights.broadcast(t, tiles, ByLength<A>{lengths, to.mu, to.factor, to.shift});
  }

  OUT_OF_LINE void cast_first(const Tile& t, int64_t r, int64_t left, int64_t n, const T* p, T* q,
                              const Factors& with) const {
    const A *mu = with.mu + left, *rstd = with.factor + left, *shift = with.shift + left;
    const auto hat = [=, p = p + left](auto at) { return (at(p) - at(mu)) * at(rstd) + at(shift); };
    const bool finally = rounds_before<T>(f.fused), biased = affine.bias;
    if (weights.by_row)
      apply_rounded_constant(
          source.format, q + left, n, finally, hat, weights.row_weight(t, r), weights.row_bias(t, r), biased);
    else
      apply_rounded_along(source.format, q + left, n, finally, hat, with.w + left, biased ? with.b + left : nullptr);
  }

  // Each slab with weights of its own.
  OUT_OF_LINE void apply_slabs(const Tile& t, int64_t from, int64_t end, const Factors& with) const {
    if (tiles.slabs == 1) return apply_rows(t, from, end, with);
    const bool rounds = sizeof(S) == 2 && f.cast_first;
    for (int64_t next; from < end; from = next) {
      const int64_t slab = from / tiles.slab_rows;
      next = min((slab + 1) * tiles.slab_rows, end);
      Factors own;
      weights.broadcast(t, tiles, WeightsOnly<A>{own.w, own.b}, slab);
      for (int64_t j = 0; j < t.n; ++j) {
        own.mu[j] = with.mu[j];
        own.factor[j] = rounds ? with.factor[j] : with.factor[j] * own.w[j];
        own.shift[j] = rounds ? with.shift[j] : with.shift[j] * own.w[j] + own.b[j];
      }
      apply_rows(t, from, next, own);
    }
  }
  void apply_rows(const Tile& t, int64_t from, int64_t end, const Factors& with) const {
    if (relu) apply_rows(t, from, end, with, Function<Activation::relu>());
    else apply_rows(t, from, end, with, Function<Activation::none>());
  }
  template <class Finally>
  OUT_OF_LINE void apply_rows(const Tile& t, int64_t from, int64_t end, const Factors& with,
                              const Finally& finally) const {
    T bx[TILE];
    Writer<S, T> writer(y, v, f.fused, relu);
    const int64_t n = t.n;
    const A *mu = with.mu, *factor = with.factor, *shift = with.shift;
    for (int64_t r = from; r < end; ++r) {
      const int64_t offset = t.at(tiles, r);
      if (source.mask && (r - from) % MASK_LOOKAHEAD == 0)
        writer.look_ahead(y + offset, (min(MASK_LOOKAHEAD, end - r) - 1) * tiles.row_width + n);
      const T* p = applied(offset, n, bx, Constant<A>{0});
      T* q = writer.open(y + offset);
      const A w = weights.row_weight(t, r), b = weights.row_bias(t, r);
      const auto apply = [&](int64_t left, int64_t right) {
        if constexpr (sizeof(S) == 2) {
          if (f.cast_first) return cast_first(t, r, left, right - left, p, q, with);
        }
        if (weights.by_row) {
          each<T>(left, right, [=](auto at) {
            at.put(q, finally.value(((at(p) - at(mu)) * at(factor) + at(shift)) * w + b));
          });
        } else {
          each<T>(left, right, [=](auto at) { at.put(q, finally.value((at(p) - at(mu)) * at(factor) + at(shift))); });
        }
      };
      if (prefetches_tile) {
        for (int64_t left = 0; left < n; left += BURST) {
          const int64_t right = min(left + BURST, n);
          prefetch(source.x + t.at(tiles, r + tiles.ahead) + left, right - left);
          apply(left, right);
        }
      } else {
        apply(0, n);
      }
      writer.close(n);
    }
  }
};

}  // namespace
