// Where the walk along rows keeps its sums of weight gradients. Their number depends on the shape alone, so the bits do
// not depend on the threads.
#pragma once
#include "block/affine.h"
#include "walk/spans.h"

namespace {

// Vectors of sums, at most and at least, and cells that make another one worth its reduction.
constexpr int64_t VECTORS = 32, FEWEST = 4, CELLS_PER_VECTOR = 16;

// Where weights change within a row: a vector of sums for each `per_vector` cells. Otherwise in every row a slot for
// each run of constant weight in each span: the sum of both numbers names the pair, as both only grow along the row.
struct RowSlots {
  int64_t grain, per_row, per_vector, number;

  template <class A> RowSlots(const View& v, const Affine<A>& affine) {
    grain = min(affine.inner, v.r1);
    per_row = (v.r1 - 1) / grain + (v.r1 - 1) / SPAN + 1;
    const int64_t worth = max(ceil_div(v.cells(), CELLS_PER_VECTOR), FEWEST);
    per_vector = ceil_div(v.cells(), min(v.cells(), min(VECTORS, worth)));
    number = affine.vector ? ceil_div(v.cells(), per_vector) * affine.period : v.numel() / v.r1 * per_row;
  }
  // The slot of the run at `place` of a row.
  int64_t of_run(int64_t row, int64_t place) const { return row * per_row + divide(place, grain) + place / SPAN; }

  template <class A> void reduce(const View& v, const Affine<A>& affine, const AffineGrads<A>& grads) const {
    if (affine.vector) return grads.reduce(affine.period, v.period, [&](int64_t j) { return j / v.inner % v.period; });
    const int64_t cycle = max(v.period * v.inner, v.r1);
    Array<int64_t> index(cycle / v.r1 * per_row);
    for (int64_t row = 0; row < cycle / v.r1; ++row)
      for (int64_t j = 0; j < v.r1; j += grain)
        for (int64_t part = j / SPAN; part <= (j + grain - 1) / SPAN; ++part)
          index[row * per_row + j / grain + part] = (row * v.r1 + j) / v.inner % v.period;
    grads.reduce(index.size(), v.period, [&](int64_t slot) { return index[slot]; });
  }
};

}  // namespace
