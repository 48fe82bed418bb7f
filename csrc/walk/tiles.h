// How memory is cut for the walk down columns: K0 blocks of R0 rows, each row K1 * R1 contiguous elements; R1
// neighbouring columns make one cell.
#pragma once
#include "block/affine.h"
#include "vector/memory.h"
#include "walk/parallel.h"

namespace {

// Columns side by side in one task.
constexpr int64_t TILE = 1024;
// Rows summed in the arithmetic type before double takes over, and rows of the first panel of a chunk.
constexpr int64_t PANEL = 128, FIRST_PANEL = 16;
// Elements and panels, at least, of a chunk: threads share a block chunk by chunk.
constexpr int64_t CHUNK = 16384, CHUNK_PANELS = 4;
// The width up to which narrow rows are joined.
constexpr int64_t JOINED_WIDTH = 192;

struct Tiles {
  const View& v;
  // Narrow rows are joined, so that a loop along them is worth its start: a row of a tile is `joined` rows of the view.
  int64_t joined;
  int64_t rows;        // of each block, after that
  int64_t row_width;
  int64_t per_block;   // tiles in a block
  int64_t width;       // columns of a tile
  int64_t panel;       // rows of a panel
  int64_t chunk, chunks;  // rows of a chunk, chunks of a tile
  int64_t slabs, slab_rows;  // parts of a block with weights of their own, and rows of each
  int64_t per_slab;          // chunks of a slab, where no chunk has rows of two
  int64_t ahead;       // rows to prefetch ahead
  bool split;          // whether chunks are tasks, not tiles

  OUT_OF_LINE Tiles(const View& view, const Pool& pool, bool by_row, bool chunks_in_slabs)
      : v(view), slabs(view.has_slabs_in_regions() ? view.slabs : 1) {
    const int64_t alike = v.r0 / slabs;
    joined = by_row ? 1 : min(JOINED_WIDTH / v.width(), alike);
    while (joined > 1 && alike % joined) --joined;
    if (joined < 1) joined = 1;
    rows = v.r0 / joined;
    row_width = joined * v.width();
    per_block = ceil_div(row_width, TILE / v.r1 * v.r1);
    const int64_t even = ceil_div(ceil_div(row_width, per_block), 16 * v.r1) * 16 * v.r1;
    width = even <= TILE ? min(even, row_width) : TILE / v.r1 * v.r1;
    ahead = ceil_div(AHEAD, 4 * width) * 4;
    slab_rows = rows / slabs;
    panel = min(PANEL, rows);
    chunk = panel * max(ceil_div(CHUNK, panel * width), CHUNK_PANELS);
    per_slab = chunks_in_slabs ? ceil_div(slab_rows, chunk) : ceil_div(rows, chunk);
    chunks = chunks_in_slabs ? per_slab * slabs : per_slab;
    split = pool.threads > 1 && chunks > 1 && count() < 4 * pool.threads && count() % pool.threads;
  }
  int64_t count() const { return v.k0 * per_block; }
  int64_t chunk_start(int64_t c) const { return c / per_slab * slab_rows + c % per_slab * chunk; }
  int64_t chunk_end(int64_t c) const {
    return min(chunk_start(c) + chunk, per_slab == chunks ? rows : (c / per_slab + 1) * slab_rows);
  }
  // body(first row, end) for the chunks of a tile from its end: what was read last is still near.
  template <class Body> void backwards(Body&& body) const {
    for (int64_t c = chunks; c-- > 0;) body(chunk_start(c), chunk_end(c));
  }
};

// One tile: columns [left, left + n) of a block.
struct Tile {
  int64_t block, left, n;

  Tile(const Tiles& tiles, int64_t index)
      : block(index / tiles.per_block), left(index % tiles.per_block * tiles.width) {
    n = min(tiles.width, tiles.row_width - left);
  }
  int64_t at(const Tiles& t, int64_t row) const { return (block * t.rows + row) * t.row_width + left; }
  int64_t cell(const View& v, int64_t j) const { return block * v.k1 + (left + j) / v.r1 % v.k1; }
  int64_t cells(const Tiles& t) const { return n / t.joined / t.v.r1; }
};

// What `TileAffine::broadcast` does with the columns of a tile: structs, so that all walks of one arithmetic type share
// a copy of it. Of cells to columns: mean, factor and shift, with weight and bias in them or `apart`.
template <class A> struct ToColumns {
  const A *mu, *rstd, *shift;
  A *to_mu, *to_factor, *to_shift, *to_w, *to_b;
  bool apart;

  void operator()(int64_t i, int64_t column, A w, A b) const {
    to_mu[column] = mu[i];
    to_factor[column] = apart ? rstd[i] : rstd[i] * w;
    to_shift[column] = apart ? shift[i] : shift[i] * w + b;
    to_w[column] = w, to_b[column] = b;
  }
};
// The same for cells that are divided by their length.
template <class A> struct ByLength {
  const A* lengths;
  A *to_mu, *to_factor, *to_shift;

  void operator()(int64_t i, int64_t column, A w, A) const {
    to_mu[column] = to_shift[column] = 0;
    to_factor[column] = w / lengths[i];
  }
};
// Only weight and bias.
template <class A> struct WeightsOnly {
  A *to_w, *to_b;

  void operator()(int64_t, int64_t column, A w, A b) const { to_w[column] = w, to_b[column] = b; }
};

// The weights of a tile: one for each column, or one for each row.
template <class A> struct TileAffine {
  const View& v;
  const Affine<A>& affine;
  bool by_row;

  TileAffine(const View& view, const Affine<A>& a)
      : v(view), affine(a), by_row(v.width() % (a.period * a.inner) != 0) {}
  int64_t of_column(const Tile& t, int64_t j) const {
    return remainder(divide(t.left + j, affine.inner), affine.period);
  }
  int64_t of_row(const Tile& t, int64_t r) const {
    return (t.block * v.r0 + r) * v.width() / affine.inner % affine.period;
  }
  // The weight and bias of a row, 1 and 0 where columns have them.
  A row_weight(const Tile& t, int64_t r) const { return by_row ? affine.w(of_row(t, r)) : A(1); }
  A row_bias(const Tile& t, int64_t r) const { return by_row ? affine.b(of_row(t, r)) : A(0); }

  // body(cell of the tile, column, weight, bias) for every column of a tile, of one slab; 1 and 0 where rows have them.
  template <class Body>
  OUT_OF_LINE void broadcast(const Tile& t, const Tiles& tiles, const Body& body, int64_t slab = 0) const {
    const int64_t first = slab * affine.period;
    const A *w = affine.weight ? affine.weight + first : nullptr, *b = affine.bias ? affine.bias + first : nullptr;
    const int64_t columns = t.n / tiles.joined;
    if (v.r1 == 1 && tiles.joined == 1 && by_row) {
#pragma omp simd
      for (int64_t j = 0; j < columns; ++j) body(j, j, A(1), A(0));
    } else if (v.r1 == 1 && tiles.joined == 1 && affine.inner == 1 && affine.period == v.k1 && w && b) {
#pragma omp simd
      for (int64_t j = 0; j < columns; ++j) body(j, j, w[t.left + j], b[t.left + j]);
    } else {
      for (int64_t j = 0; j < columns; ++j) {
        const int64_t cell = divide(j, v.r1), index = by_row ? 0 : of_column(t, j);
        const A weight = by_row || !w ? A(1) : w[index], bias = by_row || !b ? A(0) : b[index];
        for (int64_t c = 0; c < tiles.joined; ++c) body(cell, c * v.width() + j, weight, bias);
      }
    }
  }
};

}  // namespace
