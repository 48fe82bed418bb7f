// Weights for each of several slabs: each slab of the tensor is a smaller call with weights of its own.
#pragma once
#include <initializer_list>

#include "block/affine.h"
#include "walk/parallel.h"

namespace {

using normkit::Backward;
using normkit::Fusion;

// Slabs shorter than SHORT_SLAB, or MANY_SLABS of any length, are tasks. Otherwise threads share one after the other.
constexpr int64_t SHORT_SLAB = 32768, MANY_SLABS = 64;

inline void move(const void*& p, int64_t bytes) { p = p ? static_cast<const char*>(p) + bytes : nullptr; }
inline void move(void*& p, int64_t bytes) { p = p ? static_cast<char*>(p) + bytes : nullptr; }
inline void move(Parameter& p, int64_t values) {
  move(p.data, values * (p.storage == Storage::f64 ? 8 : p.storage == Storage::f32 ? 4 : 2));
}

// Slab number `index` of a view: its shape, and where its data start.
template <class S> struct Slab {
  static constexpr int64_t BYTES = sizeof(S), WIDE = sizeof(arithmetic<S>);
  View view;
  int64_t index, elements, cells, x_at;  // x_at: where x starts in the tensor

  Slab(const View& whole, int64_t number)
      : view(whole), index(number), elements(whole.numel() / whole.slabs), cells(whole.cells() / whole.slabs),
        x_at(number * elements) {
    view.k0 = whole.k0 / whole.slabs;
    view.slabs = 1;
    if (!whole.group) return;
    const int64_t row = number * view.rows();
    x_at = row / whole.group * whole.outer + row % whole.group * whole.pitch;
    view.group = min(whole.group, view.rows());
  }
  void enter(Forward& f) const {
    move(f.x, x_at * BYTES), move(f.y, index * elements * BYTES);
    move(f.weight, index * view.period), move(f.bias, index * view.period);
    move(f.mean, index * cells * WIDE), move(f.std, index * cells * WIDE);
  }
  void enter(Backward& f) const {
    move(f.x, x_at * BYTES), move(f.dy, index * elements * BYTES), move(f.dx, index * elements * BYTES);
    move(f.weight, index * view.period);
    move(f.dweight, index * view.period * WIDE), move(f.dbias, index * view.period * WIDE);
    move(f.mean, index * cells * WIDE), move(f.std, index * cells * WIDE);
  }
  void enter(Fusion& f) const {
    move(f.residual, index * elements * BYTES), move(f.sum, index * elements * BYTES);
    for (const void** p : {&f.gate, &f.skip}) move(*p, index * elements * BYTES);
    for (void** p : {&f.dgate, &f.dskip}) move(*p, index * elements * BYTES);
    move(f.bias, index * view.period);
    if (!f.mask) return;
    f.counts += index * cells;
    // Sizes in a tensor divide one another: a slab holds whole places with all their channels, or else some channels of
    // one place or line.
    const int64_t at = index * elements, sample = f.channels * f.inner;
    f.mask += at / sample * f.inner;
    if (elements % sample == 0) return;
    f.mask += at % f.inner;
    f.channels = max(elements / f.inner, 1);
    f.inner = min(elements, f.inner);
  }
};

// body(view, call, pool) for the whole, or for each slab of it. Results do not depend on the threads.
template <class S, class Call, class Body>
void each_slab(const View& whole, const Call& call, const Pool& pool, const Body& body) {
  if (whole.slabs <= 1 || whole.has_slabs_in_regions()) return body(whole, call, pool);
  const auto one = [&](int64_t index, const Pool& threads) {
    const Slab<S> slab(whole, index);
    Call part = call;
    slab.enter(part);
    Fusion fusion;
    if (call.fused) {
      fusion = *call.fused;
      slab.enter(fusion);
      part.fused = &fusion;
    }
    body(slab.view, part, threads);
  };
  if (whole.slabs < MANY_SLABS && whole.numel() / whole.slabs >= SHORT_SLAB) {
    for (int64_t i = 0; i < whole.slabs; ++i) one(i, pool);
    return;
  }
  const Pool alone{[](int64_t n, void (*task)(void*, int64_t), void* context) {
    for (int64_t i = 0; i < n; ++i) task(context, i);
  }, 1};
  const int64_t per_task = max(GRAIN * whole.slabs / max(whole.numel(), 1), 1);
  parallel(pool, ceil_div(whole.slabs, per_task), [&](int64_t task) {
    for (int64_t i = task * per_task; i < min((task + 1) * per_task, whole.slabs); ++i) one(i, alone);
  });
}

}  // namespace
