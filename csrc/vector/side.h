// Short rows side by side: each row's sums stay in one vector, and SIDE of those are added up across their lanes
// together. A row's bits do not depend on its neighbours: all do the same.
#pragma once
#include "vector/lanes.h"

namespace {

constexpr int SIDE = 16;
// Whether the sums of a row stay in one register. Other instruction sets gain nothing from rows side by side.
template <class T> constexpr bool SUMS_IN_PACKS = PACKED<T> || USES_PACKS<arithmetic<T>>;

// a[k], b[k] = the sums over row k's n elements, seen as T, of what row(k)(at, a, b) gives for each; `rows` of them, at
// most G.
template <int G, class T, class Row>
void sums_of_rows(int64_t n, int64_t rows, arithmetic<T>* a, arithmetic<T>* b, const Row& row) {
  using A = arithmetic<T>;
  if constexpr (G == SIDE && SUMS_IN_PACKS<T>) {
    Pack sa[SIDE] = {}, sb[SIDE] = {};
    const PackMask some = first_lanes(n % PACK);
    for (int64_t k = 0; k < rows; ++k) {
      const auto term = row(k);
      Pack ta = {}, tb = {}, u, v;
      int64_t i = 0;
      for (; i + PACK <= n; i += PACK) {
        term(Whole{i}, u, v);
        ta += u;
        tb += v;
      }
      if (i < n) {
        term(Part{i, some}, u, v);
        ta += u;
        tb += v;
      }
      sa[k] = ta;
      sb[k] = tb;
    }
    lane_sums(sa, a);
    lane_sums(sb, b);
    return;
  }
  for (int64_t k = 0; k < rows; ++k) {
    const TwoSums sums = sum_two<T>(n, row(k));
    a[k] = A(sums.a);
    b[k] = A(sums.b);
  }
}

}  // namespace
