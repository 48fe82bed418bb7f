// Walking down columns, and the forward pass that way. K0 blocks of R0 rows, each row K1 * R1 contiguous elements; a
// column's sums stay apart while the rows pass, and R1 neighbouring columns make one cell.
#pragma once
#include "rows.h"

namespace {

// Columns side by side in one task, rows summed in the arithmetic type before double takes over, and rows after which
// a tall block is cut (TALL elements and STRIPS strips at least) so that several threads can share it; rows of the first
// strip; and the width up to which narrow rows are folded.
constexpr int64_t TILE = 1024;
constexpr int64_t STRIP = 128;
constexpr int64_t TALL = 16384;
constexpr int64_t STRIPS = 4;
constexpr int64_t FIRST = 16;
constexpr int64_t FOLDED = 192;
// Rows whose mask is looked at together.
constexpr int64_t GLANCE = 16;

struct Tiles {
  const View& v;
  int64_t fold, rows, width_all, width, per_block, strip, tall, talls;
  int64_t ahead;  // rows to look ahead
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
    ahead = ceil_div(AHEAD, 4 * width) * 4;
    strip = least(STRIP, rows);
    tall = strip * (ceil_div(TALL, strip * width) > STRIPS ? ceil_div(TALL, strip * width) : STRIPS);
    talls = ceil_div(rows, tall);
    split = pool.threads > 1 && talls > 1 && v.k0 * per_block < 4 * pool.threads &&
            (v.k0 * per_block) % pool.threads;
  }
  int64_t count() const { return v.k0 * per_block; }
  // The rows of a tile from its end: what was read last is still near.
  template <class Body> void backwards(Body&& body) const {
    for (int64_t tall_ = talls; tall_-- > 0;) body(tall_ * tall, least(tall_ * tall + tall, rows));
  }
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
// row(r, k) makes row r ready in slot k; term(that, at, a, b) gives what its column adds; fetch(r, j, n) may ask for what
// comes later than columns [j, j + n) of row r.
template <class T, class A, class Row, class Fetch, class Term>
void sum_columns(int64_t rows, int64_t n, A* sa, A* sb, const Row& row, const Fetch& fetch, const Term& term) {
  for (int64_t j = 0; j < n; ++j) sa[j] = sb[j] = 0;
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    const auto r0 = row(r, 0), r1 = row(r + 1, 1), r2 = row(r + 2, 2), r3 = row(r + 3, 3);
    const auto add = [&](int64_t left, int64_t right) {
      for (int64_t k = 0; k < 4; ++k) fetch(r + k, left, right - left);
      each<T>(left, right, [&](auto at) {
        auto a0 = at(sa), b0 = a0, a1 = a0, b1 = a0, a2 = a0, b2 = a0, a3 = a0, b3 = a0;
        term(r0, at, a0, b0);
        term(r1, at, a1, b1);
        term(r2, at, a2, b2);
        term(r3, at, a3, b3);
        at.put(sa, at(sa) + ((a0 + a1) + (a2 + a3)));
        at.put(sb, at(sb) + ((b0 + b1) + (b2 + b3)));
      });
    };
    if (n <= BURST) {
      add(0, n);
    } else {
      for (int64_t left = 0; left < n; left += BURST / 4) add(left, least(left + BURST / 4, n));
    }
  }
  for (; r < rows; ++r) {
    const auto one = row(r, 0);
    each<T>(0, n, [&](auto at) {
      auto a = at(sa), b = a;
      term(one, at, a, b);
      at.put(sa, at(sa) + a);
      at.put(sb, at(sb) + b);
    });
  }
}

// Moments of a strip, whose rows are what get(at, n, buffer) finds, merged into those of the rows before it. Their mean is the guess that deviations are taken from;
// where there is none yet, or it is more than a standard deviation off, a pass of its own finds a better one.
template <class S, class Get>
void strip_moments(const Get& get, const Source<S>& source, const arithmetic<S>* padding, int64_t at, int64_t stride,
                   int64_t rows, int64_t n, int64_t ahead, bool center, double eps, ColumnMoments& into) {
  using A = arithmetic<S>;
  using T = Seen<S>;
  A s[TILE], q[TILE], guess[TILE];
  T buffer[4 * TILE];
  double mean[TILE], m2[TILE];
  const double count = double(rows), per = 1.0 / count;
  const A* g = guess;
  T* slots = buffer;
  const auto row = [=](int64_t r, int k) { return get(at + r * stride, n, slots + k * TILE); };
  const auto fetch = [=, x = source.x + at](int64_t r, int64_t j, int64_t some) {
    if (ahead) prefetch(x + (r + ahead) * stride + j, some);
  };
  bool outside = false;  // whether squares left the range of fp32 in some column
  const auto deviate = [&] {
    sum_columns<T>(rows, n, s, q, row, fetch, [=](const T* p, auto at, auto& a, auto& b) {
      a = at(p) - at(g);
      b = a * a;
    });
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const double sum = double(s[j]), squares = double(q[j]);
      const double shift = center ? sum * per : 0, off = shift * sum, rest = squares - off;
      mean[j] = double(g[j]) + shift;
      m2[j] = rest < 0 ? 0 : rest;
    }
    // Apart, and counted in the arithmetic's own width: mixed widths would cost several times as much.
    using Count = typename std::conditional<sizeof(A) == 4, int32_t, int64_t>::type;
    const A twice = center ? A(2 * per) : A(0), high = A(HUGE_SQUARES), low = eps < TINY_SQUARES ? A(TINY_SQUARES) : A(0);
    Count far = 0, odd = 0;
#pragma omp simd reduction(+ : far, odd)
    for (int64_t j = 0; j < n; ++j) {
      far += twice * s[j] * s[j] > q[j] ? 1 : 0;
      odd += !(q[j] < high) || q[j] < low ? 1 : 0;
    }
    outside = odd > 0;
    return far + odd > 0;
  };
  for (int64_t j = 0; j < n; ++j) guess[j] = center && into.count > 0 ? A(into.mean[j]) : A(0);
  if ((center && into.count == 0) || (deviate() && center)) {
    sum_columns<T>(rows, n, s, q, row, fetch, [](const T* p, auto at, auto& a, auto& b) { a = at(p), b = a - a; });
    for (int64_t j = 0; j < n; ++j) guess[j] = A(double(s[j]) * per);
    deviate();
  }
  for (int64_t j = 0; std::is_same<A, float>::value && outside && j < n; ++j) {
    if (!out_of_range(double(q[j]), eps)) continue;
    double sum = 0, squares = 0;
    const auto value = [&](int64_t r) { return source.value(at + r * stride + j, source.mask ? padding[j] : A(0)); };
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
  int64_t of_column(const Tile& t, int64_t j) const { return remainder(divide(t.left + j, affine.inner), affine.period); }
  int64_t of_row(const Tile& t, int64_t r) const { return (t.block * v.r0 + r) * v.width() / affine.inner % affine.period; }
};

// body(cell of the tile, column, weight, bias) for every column of a tile.
template <class A, class Body>
void spread(const Tile& t, const TileAffine<A>& where, const Tiles& tiles, const Body& body) {
  const View& v = where.v;
  const A *w = where.affine.weight, *b = where.affine.bias;
  const int64_t columns = t.n / tiles.fold;
  if (v.r1 == 1 && tiles.fold == 1 && where.by_row) {
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j) body(j, j, A(1), A(0));
  } else if (v.r1 == 1 && tiles.fold == 1 && where.affine.inner == 1 && where.affine.period == v.k1 && w && b) {
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j) body(j, j, w[t.left + j], b[t.left + j]);
  } else {
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t cell = divide(j, v.r1), index = where.by_row ? 0 : where.of_column(t, j);
      const A one = where.by_row ? A(1) : where.affine.w(index), zero = where.by_row ? A(0) : where.affine.b(index);
      for (int64_t c = 0; c < tiles.fold; ++c) body(cell, c * v.width() + j, one, zero);
    }
  }
}

template <class S> void forward_columns(const View& v, const Forward& f, const Pool& pool) {
  using A = arithmetic<S>;
  using T = Seen<S>;
  const S* x = static_cast<const S*>(f.x);
  const Source<S> source(f.x, f.fused), shown = (f.fixed ? source : source.again()).unmasked();
  S* y = static_cast<S*>(f.y);
  A* mean = static_cast<A*>(f.mean);
  A* dev = static_cast<A*>(f.std);
  const Affine<A> affine(v, f.weight, f.bias);
  const TileAffine<A> where(v, affine);
  const Tiles tiles(v, pool, where.by_row);
  const bool far = is_far<S>(v.numel()), tile_far = is_far<S>((f.fixed || tiles.split ? 1 : 4) * tiles.rows * tiles.width);

  // Padding stands for the first real value of its column until `finish` takes it out again; one value for a whole cell.
  const auto find_padding = [&](const Tile& t, A* padding) {
    bool found[TILE] = {};
    for (int64_t j = 0; j < t.n; ++j) padding[j] = 0;
    int64_t open = t.n;
    for (int64_t r = 0; r < tiles.rows && open && f.center; ++r) {
      const int64_t at = t.at(tiles, r);
      const auto take = [&](int64_t j) {
        const int64_t head = remainder(j, v.width()) / v.r1 * v.r1;
        if (found[head]) return;
        found[head] = true;
        padding[head] = stored<S>(widen(x[at + j]) + (source.residual ? widen(source.residual[at + j]) : 0));
        open -= tiles.fold * v.r1;
      };
      source.mask.runs(
          at, t.n,
          [&](int64_t start, int64_t length, bool is) {
            for (int64_t j = start; is && j < start + length; ++j) take(j);
          },
          [&](int64_t start, int64_t length, const uint8_t* bytes) {
            for (int64_t i = 0; i < length; ++i)
              if (bytes[i]) take(start + i);
          });
    }
    for (int64_t j = 0; j < t.n; ++j) padding[j] = padding[j % v.width() / v.r1 * v.r1];
  };
  const auto moments_of_tall = [&](const Tile& t, int64_t tall, const A* padding, ColumnMoments& m) {
    m.count = 0;
    const int64_t end = least((tall + 1) * tiles.tall, tiles.rows);
    const auto plain = [x](int64_t at, int64_t n, T* buffer) { return load(x + at, buffer, n); };
    const auto fused = [&source, padding](int64_t at, int64_t n, T* buffer) {
      return source(at, n, buffer, Along<A>{padding});
    };
    // A short strip first: it takes two passes to find the mean that the others are guessed from.
    for (int64_t r = tall * tiles.tall, rows; r < end; r += rows) {
      rows = least(m.count == 0 && f.center ? FIRST : tiles.strip, end - r);
      const auto strip = [&](const auto& get) {
        strip_moments(get, source, padding, t.at(tiles, r), tiles.width_all, rows, t.n, far ? tiles.ahead : 0, f.center, f.eps, m);
      };
      const bool real = source.mask && !source.residual && source.mask.is_all_valid(t.at(tiles, r), (rows - 1) * tiles.width_all + t.n);
      source.is_plain() || real ? strip(plain) : strip(fused);
    }
  };
  // From column moments to what each column is scaled with. Cells of several columns, and those folded, are merged first.
  // True where `padding` was so far from the mean that it cost digits; it has moved there, and moments are wanted again.
  const auto finish = [&](const Tile& t, const ColumnMoments& m, A* padding, A* mu, A* rstd, A* shift) {
    const int64_t copies = tiles.fold, step = v.width(), cells = t.n / copies / v.r1, first = t.cell(v, 0);
    double cell_mean[TILE], cell_var[TILE];
    A *means = mean ? mean + first : nullptr, *devs = dev ? dev + first : nullptr;
    if (f.fixed) {
#pragma omp simd
      for (int64_t i = 0; i < cells; ++i) cell_mean[i] = double(means[i]), cell_var[i] = square(devs[i]);
    } else if (copies == 1 && v.r1 == 1) {
      const double per = 1.0 / m.count;
#pragma omp simd
      for (int64_t i = 0; i < cells; ++i) cell_mean[i] = m.mean[i], cell_var[i] = m.m2[i] * per;
    } else {
      for (int64_t i = 0; i < cells; ++i) {
        // All columns hold the same number of values, so their merge needs no weights.
        const int64_t from = i * v.r1;
        double sum = 0, away = 0, within = 0;
        for (int64_t c = 0; c < copies; ++c)
          for (int64_t j = c * step + from; j < c * step + from + v.r1; ++j) sum += m.mean[j] - m.mean[from];
        cell_mean[i] = m.mean[from] + sum / double(copies * v.r1);
        for (int64_t c = 0; c < copies; ++c)
          for (int64_t j = c * step + from; j < c * step + from + v.r1; ++j) {
            away += square(m.mean[j] - cell_mean[i]);
            within += m.m2[j];
          }
        cell_var[i] = (within / m.count + away) / double(copies * v.r1);
      }
    }
    bool far_off = false;
    for (int64_t i = 0; i < cells && source.mask && !f.fixed; ++i) {
      const double all = double(v.count()), real = f.fused->counts[first + i], guess = double(padding[i * v.r1]);
      const double sum = (cell_mean[i] - guess) * all, off = real ? sum / real : 0;
      const double m2 = cell_var[i] * all + sum * sum / all - sum * off;
      cell_mean[i] = real ? guess + off : 0;
      cell_var[i] = real ? (m2 > 0 ? m2 / real : 0) : 1;
      far_off |= f.center && sum * off > FAR_OFF * m2;
      for (int64_t j = i * v.r1; j < t.n; j += v.width())
        for (int64_t c = 0; c < v.r1; ++c) padding[j + c] = stored<S>(A(cell_mean[i]));
    }
    if (!f.fixed && means) {
#pragma omp simd
      for (int64_t i = 0; i < cells; ++i) means[i] = A(cell_mean[i]);
    }
    if (!f.fixed && devs) {
#pragma omp simd
      for (int64_t i = 0; i < cells; ++i) devs[i] = A(std::sqrt(cell_var[i]));
    }
    A one_mean[TILE], one_rstd[TILE], one_shift[TILE];
    if (f.length) {
      for (int64_t i = 0; i < cells; ++i) devs[i] = one_rstd[i] = A(length_of(cell_var[i] * double(v.count())));
      spread(t, where, tiles, [&](int64_t i, int64_t column, A w, A) {
        mu[column] = shift[column] = 0;
        rstd[column] = w / one_rstd[i];
      });
      return far_off;
    }
    scales_of(cells, cell_mean, cell_var, f.eps, one_mean, one_rstd, one_shift);
    spread(t, where, tiles, [&](int64_t i, int64_t column, A w, A b) {
      mu[column] = one_mean[i];
      rstd[column] = one_rstd[i] * w;
      shift[column] = one_shift[i] * w + b;
    });
    return far_off;
  };
  const auto apply_rows = [&](const Tile& t, int64_t from, int64_t to, const A* mu, const A* rstd, const A* shift) {
    T bx[TILE];
    Writer<S> writer(y, v.numel(), f.fused);
    const int64_t n = t.n;
    for (int64_t r = from; r < to; ++r) {
      if (source.mask && (r - from) % GLANCE == 0)
        writer.look_ahead(y + t.at(tiles, r), (least(GLANCE, to - r) - 1) * tiles.width_all + n);
      const T* p = shown(t.at(tiles, r), n, bx, Constant<A>{0});
      T* q = writer.open(y + t.at(tiles, r));
      const A w = where.by_row ? affine.w(where.of_row(t, r)) : A(1), b = where.by_row ? affine.b(where.of_row(t, r)) : A(0);
      const auto apply = [&](int64_t left, int64_t right) {
        if (where.by_row) {
          each<T>(left, right, [=](auto at) { at.put(q, ((at(p) - at(mu)) * at(rstd) + at(shift)) * w + b); });
        } else {
          each<T>(left, right, [=](auto at) { at.put(q, (at(p) - at(mu)) * at(rstd) + at(shift)); });
        }
      };
      if (tile_far) {
        for (int64_t left = 0; left < n; left += BURST) {
          const int64_t right = least(left + BURST, n);
          prefetch(x + t.at(tiles, r + tiles.ahead) + left, right - left);
          apply(left, right);
        }
      } else {
        apply(0, n);
      }
      writer.close(n);
    }
  };

  if (tiles.split) {
    Array<ColumnMoments> partial(f.fixed ? 0 : tiles.count() * tiles.talls);
    struct Scales { A mu[TILE], rstd[TILE], shift[TILE], padding[TILE]; };
    Array<Scales> scales(tiles.count());
    if (source.mask && !f.fixed)
      parallel(pool, tiles.count(), [&](int64_t i) { find_padding(Tile(tiles, i), scales[i].padding); });
    ColumnMoments m;
    for (bool twice = false;; twice = true) {
      if (!f.fixed)
        parallel(pool, tiles.count() * tiles.talls, [&](int64_t i) {
          const int64_t tile = i % tiles.count();
          moments_of_tall(Tile(tiles, tile), i / tiles.count(), scales[tile].padding, partial[i]);
        });
      bool far_off = false;
      for (int64_t i = 0; i < tiles.count(); ++i) {
        const Tile t(tiles, i);
        m.count = 0;
        for (int64_t tall = 0; tall < tiles.talls && !f.fixed; ++tall) {
          const ColumnMoments& p = partial[tall * tiles.count() + i];
          m.merge(p.count, p.mean, p.m2, t.n);
        }
        far_off |= finish(t, m, scales[i].padding, scales[i].mu, scales[i].rstd, scales[i].shift);
      }
      if (!far_off || twice) break;
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
    A mu[TILE], rstd[TILE], shift[TILE], padding[TILE];
    ColumnMoments m, part;
    if (source.mask && !f.fixed) find_padding(t, padding);
    for (bool twice = false;; twice = true) {
      m.count = 0;
      for (int64_t tall = 0; tall < tiles.talls && !f.fixed; ++tall) {
        moments_of_tall(t, tall, padding, part);
        m.merge(part.count, part.mean, part.m2, t.n);
      }
      if (!finish(t, m, padding, mu, rstd, shift) || twice) break;
    }
    tiles.backwards([&](int64_t from, int64_t to) { apply_rows(t, from, to, mu, rstd, shift); });
  });
}

}  // namespace
