// Walking along rows, and the forward pass that way. A cell is R0 rows of R1 contiguous elements with one mean and
// one variance.
#pragma once
#include "narrow.h"

namespace {

using normkit::Backward;
using normkit::Forward;
using normkit::Pool;

// Elements after which a cell's moments are summed up apart, so that one huge cell can occupy every thread.
constexpr int64_t CHUNK = 32768;
// Vectors of weight gradients, at most and at least, and cells between that make one of them worth its reduction: their
// number depends on the shape alone, so the bits do not depend on the threads.
constexpr int64_t VECTORS = 32, FEWEST = 4, CELLS_PER_VECTOR = 16;
// Rows up to which their sums are taken side by side.
constexpr int64_t SHORT = 512;
// Below this many elements in a task, threads cost more than they bring.
constexpr int64_t GRAIN = 16384;

template <class Body> void parallel(const Pool& pool, int64_t n, Body&& body) {
  using Plain = typename std::remove_reference<Body>::type;
  if (n <= 1) {
    if (n == 1) body(int64_t(0));
    return;
  }
  pool.run(n, [](void* context, int64_t i) { (*static_cast<Plain*>(context))(i); }, &body);
}
// Whether backward has to see all of a cell before it can write any of it.
inline bool needs_sums(const Backward& f) { return f.dweight || f.dbias || !f.fixed; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// A cell's rows cut into spans of at most CHUNK elements: `rows` whole rows, or a part of one row.
struct Spans {
  int64_t rows, parts, per_cell;
  const View& v;

  explicit Spans(const View& view) : v(view) {
    rows = v.r1 >= CHUNK ? 1 : least(v.r0, CHUNK / v.r1);
    parts = v.r1 > CHUNK ? ceil_div(v.r1, CHUNK) : 1;
    per_cell = ceil_div(v.r0, rows) * parts;
  }
  // body(offset, offset in its row, n, offset AHEAD on the walk) for every contiguous piece of span `s` of `cell`, at most
  // BLOCK elements each.
  template <class Body> void blocks(int64_t cell, int64_t s, Body&& body) const {
    const int64_t from = s / parts * rows, to = least(from + rows, v.r0);
    const int64_t left = s % parts * CHUNK, right = parts == 1 ? v.r1 : least(left + CHUNK, v.r1);
    const int64_t block = divide(cell, v.k1), start = (block * v.r0 * v.k1 + cell - block * v.k1) * v.r1;
    for (int64_t r = from; r < to; ++r) {
      const int64_t base = start + r * v.k1 * v.r1;
      for (int64_t j = left; j < right; j += BLOCK) {
        const int64_t later = divide(j + AHEAD, v.r1);
        body(base + j, j, least(BLOCK, right - j), base + later * (v.k1 - 1) * v.r1 + j + AHEAD);
      }
    }
  }
};

// Cells go to threads whole where there are enough of them, several to a task where they are small. Else every
// span is a task and the cells are finished between two phases. Either way the same sums in the same order.
struct Share {
  int64_t cells_per_task, tasks;
  bool split;

  Share(const View& v, const Spans& spans, const Pool& pool) {
    cells_per_task = v.count() >= GRAIN ? 1 : ceil_div(GRAIN, v.count());
    tasks = ceil_div(v.cells(), cells_per_task);
    split = pool.threads > 1 && spans.per_cell > 1 && v.cells() % pool.threads && v.cells() < 4 * pool.threads;
  }
};

template <class S> void forward_rows(const View& v, const Forward& f, const Pool& pool) {
  using A = arithmetic<S>;
  using T = Seen<S>;
  const S* x = static_cast<const S*>(f.x);
  const Source<S> source(f.x, f.fused), again = source.again(), shown = (f.fixed ? source : again).unmasked();
  S* y = static_cast<S*>(f.y);
  A* mean = static_cast<A*>(f.mean);
  A* dev = static_cast<A*>(f.std);
  const Affine<A> affine(v, f.weight, f.bias);
  const Spans spans(v);
  const bool far = is_far<S>(v.numel()), cell_far = is_far<S>(4 * v.count());
  const int64_t burst = far ? BURST : BLOCK;

  // Padding stands for the mean of the first few real elements of its cell until `finish` takes it out again.
  Array<A> padding(source.mask ? v.cells() : 0);
  const auto fill_of = [&](int64_t cell) { return Constant<A>{source.mask ? padding[cell] : A(0)}; };
  const auto find_padding = [&](int64_t cell) {
    double sum = 0, count = 0;
    for (int64_t s = 0; s < spans.per_cell && count == 0 && f.center; ++s)
      spans.blocks(cell, s, [&](int64_t at, int64_t, int64_t n, int64_t) {
        const auto take = [&](int64_t i) {
          sum += widen(x[i]) + (source.residual ? widen(source.residual[i]) : 0);
          ++count;
        };
        source.mask.runs(
            at, n,
            [&](int64_t start, int64_t length, bool is) {
              for (int64_t i = 0; is && i < length && count < LANES; ++i) take(at + start + i);
            },
            [&](int64_t start, int64_t length, const uint8_t* bytes) {
              for (int64_t i = 0; i < length && count < LANES; ++i)
                if (bytes[i]) take(at + start + i);
            });
      });
    padding[cell] = count ? stored<S>(A(sum / count)) : A(0);
  };
  // The first block in two passes; its mean is the guess that all others deviate from, in one pass. Where it is more
  // than a standard deviation off, or the squares leave the range, each block is taken by itself.
  const auto moments_of_span = [&](int64_t cell, int64_t s) {
    Moments first;
    Lanes<T> lanes;
    T buffer[BLOCK];
    A guess = 0;
    int64_t rest = 0;
    const auto fill = fill_of(cell);
    spans.blocks(cell, s, [&](int64_t at, int64_t, int64_t n, int64_t ahead) {
      const T* in = source(at, n, buffer, fill);
      if (first.count == 0) {
        first = moments_of(in, n, f.center, f.eps);
        guess = A(first.mean);
        return;
      }
      rest += n;
      for (int64_t i = 0; i < n; i += burst) {
        if (far) prefetch(x + ahead + i, least(burst, n - i));
        lanes.add(least(burst, n - i), [p = in + i, guess](auto at, auto& d, auto& d2) {
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
      each.merge(moments_of(again(at, n, buffer, fill), n, f.center, f.eps));
    });
    return each;
  };
  // Moments of the real elements, from those of a cell whose padding stands at `fill`. It costs digits where that is far
  // from their mean: then `fill` moves there, and they are wanted again.
  const auto without_padding = [&](int64_t cell, Moments& m) {
    const double real = f.fused->counts[cell];
    if (real == m.count) return false;
    const double sum = (m.mean - double(padding[cell])) * m.count, shift = real ? sum / real : 0;
    m.m2 += sum * sum / m.count - sum * shift;
    if (m.m2 < 0) m.m2 = 0;
    m.mean = double(padding[cell]) + shift;
    m.count = real;
    const bool far_off = f.center && sum * shift > FAR_OFF * m.m2;
    padding[cell] = stored<S>(A(m.mean));
    return far_off;
  };
  const auto finish = [&](int64_t cell, const Moments& m) {
    if (source.mask && f.fused->counts[cell] == 0) {
      if (mean) mean[cell] = 0;
      if (dev) dev[cell] = 1;
      return Scale<A>(0, 1, 0);
    }
    if (f.length) {
      Scale<A> scale{};
      scale.rstd = dev[cell] = A(length_of(m.m2));
      return scale;
    }
    const double v2 = m.m2 / m.count;
    if (mean) mean[cell] = A(m.mean);
    if (dev) dev[cell] = A(std::sqrt(v2));
    return Scale<A>(m.mean, v2, f.eps);
  };
  const auto given = [&](int64_t cell) { return Scale<A>(double(mean[cell]), square(dev[cell]), f.eps); };
  const auto apply_to = [&](T* r, const T* in, int64_t at, int64_t j, int64_t n, const Scale<A>& scale) {
    affine.pieces(at, j, n, [&](int64_t start, int64_t length, int64_t index) {
      const T* p = in + start;
      T* q = r + start;
      const A m = scale.mean;
      if (affine.vector && (affine.weight || affine.bias)) {
        const A rstd = scale.rstd, shift = scale.shift;
        const A *w = affine.weight + index, *b = affine.bias + index;
        if (!affine.bias) {
          each<T>(0, length, [=](auto at) { at.put(q, ((at(p) - m) * rstd + shift) * at(w)); });
        } else if (!affine.weight) {
          each<T>(0, length, [=](auto at) { at.put(q, ((at(p) - m) * rstd + shift) + at(b)); });
        } else {
          each<T>(0, length, [=](auto at) { at.put(q, ((at(p) - m) * rstd + shift) * at(w) + at(b)); });
        }
      } else {
        const bool plain = affine.vector;
        const A w = plain ? A(1) : affine.w(index), b = plain ? A(0) : affine.b(index);
        const A a = f.length ? w / scale.rstd : scale.rstd * w, c = scale.shift * w + b;
        each<T>(0, length, [=](auto at) { at.put(q, (at(p) - m) * a + c); });
      }
    });
  };
  const auto apply_block = [&](const T* in, int64_t at, int64_t j, int64_t n, const Scale<A>& scale, Writer<S>& writer) {
    apply_to(writer.open(y + at), in, at, j, n, scale);
    writer.close(n);
  };
  const auto apply_span = [&](int64_t cell, int64_t s, const Scale<A>& scale, Writer<S>& writer) {
    T buffer[BLOCK];
    const int64_t step = cell_far ? BURST : BLOCK;
    spans.blocks(cell, s, [&](int64_t at, int64_t j, int64_t n, int64_t ahead) {
      const T* in = shown(at, n, buffer, Constant<A>{0});
      for (int64_t i = 0; i < n; i += step) {
        if (cell_far) prefetch(x + ahead + i, least(step, n - i));
        apply_block(in + i, at + i, j + i, least(step, n - i), scale, writer);
      }
    });
  };

  if (f.fixed) {  // nothing to wait for: the rows in the order of memory
    const int64_t step = ceil_div(GRAIN, v.r1);
    Array<Scale<A>> scales(v.cells());
    for (int64_t cell = 0; cell < v.cells(); ++cell) scales[cell] = given(cell);
    parallel(pool, ceil_div(v.rows(), step), [&](int64_t task) {
      T buffer[BLOCK];
      Writer<S> writer(y, v.numel(), f.fused);
      const int64_t end = least((task + 1) * step, v.rows());
      for (int64_t row = task * step; row < end; ++row) {
        const Scale<A>& scale = scales[v.cell_of_row(row)];
        for (int64_t j = 0; j < v.r1; j += burst) {
          const int64_t n = least(burst, v.r1 - j), at = row * v.r1 + j;
          if (far) prefetch(x + at + AHEAD, n);
          apply_block(shown(at, n, buffer, Constant<A>{0}), at, j, n, scale, writer);
        }
      }
    });
    return;
  }
  // Rows of one block: converted once, normalized from the same buffer. Each step takes three rows on by a stage: reading goes
  // on while results are written, and one row's sums and roots are hidden behind the others. What is ahead is asked for in
  // four parts, among the stages.
  const auto fetch = [&](int64_t row, int64_t part) {
    const int64_t size = v.r1 <= BURST ? v.r1 : ceil_div(v.r1, 4), from = part * size;
    if (far && from < v.r1) prefetch(x + row * v.r1 + AHEAD + from, least(size, v.r1 - from));
  };
  const auto in_stages = [&](int64_t first, int64_t rows, Writer<S>& writer) {
    constexpr int64_t STAGES = 3;
    T buffer[STAGES * BLOCK];
    const T* in[STAGES];
    A guess[STAGES];
    Two sums[STAGES];
    Scale<A> scales[STAGES];
    const int64_t n = v.r1;
    for (int64_t step = 0; step < rows + STAGES - 1; ++step) {
      const auto at_stage = [&](int64_t stage, auto&& body) {
        const int64_t k = step - stage;
        if (k < 0 || k >= rows) return;
        fetch(first + step, stage);
        body(first + k, k % STAGES);
      };
      at_stage(0, [&](int64_t row, int64_t k) {
        in[k] = source(row * n, n, buffer + k * BLOCK, Constant<A>{0});
        guess[k] = guess_mean(in[k], n, f.center);
        sums[k] = deviations(in[k], n, guess[k]);
      });
      at_stage(1, [&](int64_t row, int64_t k) {
        scales[k] = finish(row, conclude(in[k], n, guess[k], sums[k], f.center, f.eps));
      });
      at_stage(2, [&](int64_t row, int64_t k) {
        apply_block(in[k], row * n, 0, n, scales[k], writer);
        fetch(first + step, 3);
      });
    }
  };
  const auto side_by_side = [&](int64_t first, int64_t rows, Writer<S>& writer) {
    T buffer[SIDE * SHORT];
    A a[SIDE] = {}, b[SIDE] = {}, guess[SIDE] = {};
    const T* in[SIDE];
    double mu[SIDE], var[SIDE];
    const int64_t n = v.r1;
    const double per = 1.0 / double(n);
    for (int64_t k = 0; k < rows; ++k) {
      fetch(first + k, 0);
      in[k] = source((first + k) * n, n, buffer + k * n, Constant<A>{0});
    }
    if (f.center) {
      const int64_t some = PACKED<T> ? least(n, SIDE) : n;  // as in `guess_mean`
      sums_of_rows<SIDE, T>(some, rows, a, b, [&](int64_t k) {
        return [p = in[k]](auto at, auto& u, auto& v) { u = at(p), v = u - u; };
      });
      for (int64_t k = 0; k < rows; ++k) guess[k] = A(double(a[k]) / double(some));
    }
    sums_of_rows<SIDE, T>(n, rows, a, b, [&](int64_t k) {
      return [p = in[k], m = guess[k]](auto at, auto& u, auto& v) { u = at(p, m) - m, v = u * u; };
    });
#pragma omp simd
    for (int k = 0; k < SIDE; ++k) {
      const double shift = f.center ? double(a[k]) * per : 0, rest = double(b[k]) - shift * double(a[k]);
      mu[k] = double(guess[k]) + shift;
      var[k] = (rest < 0 ? 0 : rest) * per;
    }
    for (int64_t k = 0; k < rows; ++k) {
      const bool far_off = PACKED<T> && square(mu[k] - double(guess[k])) > FAR_OFF * var[k];
      if (!far_off && !out_of_range(double(b[k]), f.eps)) continue;
      const Moments m = moments_of(in[k], n, f.center, f.eps);
      mu[k] = m.mean, var[k] = m.m2 * per;
    }
    if (f.length) {
      for (int64_t k = 0; k < rows; ++k) {
        const Scale<A> scale = finish(first + k, {double(n), 0, var[k] * double(n)});
        apply_block(in[k], (first + k) * n, 0, n, scale, writer);
      }
      return;
    }
    const Scales<A> scales(mu, var, f.eps);
    for (int64_t k = 0; k < rows && mean; ++k) mean[first + k] = A(mu[k]);
    for (int64_t k = 0; k < rows && dev; ++k) {
      const bool empty = source.mask && f.fused->counts[first + k] == 0;
      dev[first + k] = empty ? A(1) : A(std::sqrt(var[k]));
    }
    for (int64_t done = 0, step = BURST / n; done < rows; done += step) {
      const int64_t some = least(step, rows - done), start = (first + done) * n;
      T* r = writer.open(y + start);
      for (int64_t k = 0; k < some; ++k)
        apply_to(r + k * n, in[done + k], start + k * n, 0, n, scales.of(done + k));
      writer.close(some * n);
    }
  };

  const Share share(v, spans, pool);
  if (share.split) {
    const int64_t tasks = v.cells() * spans.per_cell;
    Array<Moments> partial(tasks);
    Array<Scale<A>> scales(v.cells());
    if (source.mask) parallel(pool, v.cells(), [&](int64_t cell) { find_padding(cell); });
    for (bool twice = false;; twice = true) {
      parallel(pool, tasks, [&](int64_t t) {
        partial[t] = moments_of_span(t / spans.per_cell, t % spans.per_cell);
      });
      bool far_off = false;
      for (int64_t cell = 0; cell < v.cells(); ++cell) {
        Moments m;
        for (int64_t s = 0; s < spans.per_cell; ++s) m.merge(partial[cell * spans.per_cell + s]);
        if (source.mask) far_off |= without_padding(cell, m);
        scales[cell] = finish(cell, m);
      }
      if (!far_off || twice) break;
    }
    parallel(pool, tasks, [&](int64_t t) {
      Writer<S> writer(y, v.numel(), f.fused);
      apply_span(t / spans.per_cell, t % spans.per_cell, scales[t / spans.per_cell], writer);
    });
    return;
  }
  parallel(pool, share.tasks, [&](int64_t task) {
    const int64_t end = least((task + 1) * share.cells_per_task, v.cells());
    Writer<S> writer(y, v.numel(), f.fused);
    if (is_narrow(v, affine) && source.is_plain()) {
      for (int64_t cell = task * share.cells_per_task; cell < end; cell += SIDE)
        forward_narrow(x + cell * v.r1, y + cell * v.r1, mean ? mean + cell : nullptr, dev ? dev + cell : nullptr, v.r1,
                       least(SIDE, end - cell), affine, f.center, f.eps, writer);
      return;
    }
    if (v.r0 == 1 && v.r1 <= BLOCK && (!source.mask || source.mask.has_whole_rows(v.r1))) {
      int64_t cell = task * share.cells_per_task;
      if (!ACROSS<A> || v.r1 > SHORT) in_stages(cell, end - cell, writer);
      else
        for (; cell < end; cell += SIDE) side_by_side(cell, least(SIDE, end - cell), writer);
      return;
    }
    for (int64_t cell = task * share.cells_per_task; cell < end; ++cell) {
      Moments m;
      if (source.mask) find_padding(cell);
      for (int64_t s = 0; s < spans.per_cell; ++s) m.merge(moments_of_span(cell, s));
      if (source.mask && without_padding(cell, m)) {
        m = {};
        for (int64_t s = 0; s < spans.per_cell; ++s) m.merge(moments_of_span(cell, s));
        without_padding(cell, m);
      }
      const Scale<A> scale = finish(cell, m);
      for (int64_t s = spans.per_cell; s-- > 0;) apply_span(cell, s, scale, writer);  // what was read last is still near
    }
  });
}

}  // namespace
