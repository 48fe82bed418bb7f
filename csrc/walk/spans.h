// How cells of rows are cut for the walk and for the threads.
#pragma once
#include "block/gaps.h"
#include "vector/memory.h"
#include "walk/parallel.h"

namespace {

// Elements after which a cell's moments are summed up separately, so that one huge cell can occupy every thread.
constexpr int64_t SPAN = 32768;

// A cell's rows cut into spans of at most SPAN elements: `rows` whole rows, or one of `parts` of a row.
struct Spans {
  int64_t rows, parts, per_cell;
  const View& v;
  const Gaps gaps;

  explicit Spans(const View& view) : v(view), gaps(view) {
    rows = v.r1 >= SPAN ? 1 : min(v.r0, SPAN / v.r1);
    parts = v.r1 > SPAN ? ceil_div(v.r1, SPAN) : 1;
    per_cell = ceil_div(v.r0, rows) * parts;
  }
  // body(offset, offset in its row, n, where x lies AHEAD on the walk) for every contiguous piece of span `s` of
  // `cell`, at most BLOCK elements each.
  template <class Body> void blocks(int64_t cell, int64_t s, Body&& body) const {
    const int64_t from = s / parts * rows, to = min(from + rows, v.r0);
    const int64_t left = s % parts * SPAN, right = parts == 1 ? v.r1 : min(left + SPAN, v.r1);
    const int64_t block = divide(cell, v.k1), start = (block * v.r0 * v.k1 + cell - block * v.k1) * v.r1;
    for (int64_t r = from; r < to; ++r) {
      const int64_t base = start + r * v.k1 * v.r1;
      for (int64_t j = left; j < right; j += BLOCK) {
        const int64_t later = divide(j + AHEAD, v.r1);
        const int64_t ahead = base + later * (v.k1 - 1) * v.r1 + j + AHEAD + gaps.before(cell + later);
        body(base + j, j, min(BLOCK, right - j), ahead);
      }
    }
  }
};

// Cells go to threads whole where there are enough of them, several to a task where they are small. Otherwise every
// span is a task, and the cells are finished between two phases. Both ways compute the same sums in the same order.
struct RowShare {
  int64_t cells_per_task, tasks;
  bool split;

  RowShare(const View& v, const Spans& spans, const Pool& pool) {
    cells_per_task = v.count() >= GRAIN ? 1 : ceil_div(GRAIN, v.count());
    tasks = ceil_div(v.cells(), cells_per_task);
    split = pool.threads > 1 && spans.per_cell > 1 && v.cells() % pool.threads && v.cells() < 4 * pool.threads;
  }
};

}  // namespace
