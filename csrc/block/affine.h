// Weight and bias along memory: constant over a run of elements, or one for each element of a vector.
#pragma once
#include "kernel.h"
#include "vector/lanes.h"

namespace {

using normkit::Forward;
using normkit::Parameter;
using normkit::Storage;
using normkit::View;

// Runs shorter than this are written out, so that the loops below see vectors: of VECTOR elements or more, and of
// LONG_VECTOR where rows are so long that it pays.
constexpr int64_t SHORT_RUN = 64;
constexpr int64_t VECTOR = 256, LONG_VECTOR = 1024;

// From what is stored to the arithmetic type.
template <class A> OUT_OF_LINE void read_parameter(const Parameter& p, int64_t n, A* out) {
  const auto as = [=]<class S>(S) {
    const S* in = static_cast<const S*>(p.data);
    if constexpr (sizeof(S) == 2) {
      float wide[VECTOR];
      for (int64_t i = 0; i < n; i += VECTOR) {
        const int64_t some = min(VECTOR, n - i);
        widen(in + i, wide, some);
        for (int64_t j = 0; j < some; ++j) out[i + j] = A(wide[j]);
      }
    } else {
      for (int64_t i = 0; i < n; ++i) out[i] = A(in[i]);
    }
  };
  switch (p.storage) {
    case Storage::f64: return as(double());
    case Storage::f32: return as(float());
    case Storage::bf16: return as(bf16());
    case Storage::f16: return as(f16());
  }
}

// How the stored weight and bias become those that are applied: 1 added to the weight, both rounded to half precision.
struct Convention {
  bool zero_centered = false;
  Storage rounded = Storage::f64;
};

template <class S> constexpr Storage STORAGE = Storage::f32;
template <> constexpr Storage STORAGE<double> = Storage::f64;
inline Convention convention(const Forward& f, const View& v) {
  return {f.zero_centered, f.cast_first ? v.storage : Storage::f64};
}

template <class A> struct Affine {
  Array<A> read_weight, read_bias, written_out;  // first, because the pointers are made from them
  const A* weight;
  const A* bias;
  int64_t period, inner;
  bool vector, whole_row;

  OUT_OF_LINE Affine(const View& v, const Parameter& w, const Parameter& b, const Convention& how)
      : weight(in_arithmetic(w, v.weights(), A(how.zero_centered ? 1 : 0), how.rounded, read_weight)),
        bias(in_arithmetic(b, v.weights(), A(0), how.rounded, read_bias)), period(v.period), inner(v.inner) {
    vector = !v.columns && inner < v.r1 && inner < SHORT_RUN;
    whole_row = vector && inner == 1 && period == v.r1;
    const int64_t least = v.r1 >= 16 * LONG_VECTOR ? LONG_VECTOR : VECTOR;
    if (!vector || (inner == 1 && (period >= least || period == v.r1))) return;
    const int64_t once = period * inner, times = ceil_div(least, once);
    written_out.resize(2 * once * times);
    for (const A** values : {&weight, &bias}) {
      A* const out = written_out.data() + (values == &bias ? once * times : 0);
      if (!*values) continue;
      for (int64_t i = 0; i < once; ++i) out[i] = (*values)[divide(i, inner)];
      for (int64_t i = 1; i < times; ++i) std::memcpy(out + i * once, out, size_t(once) * sizeof(A));
      *values = out;
    }
    period = once * times;
    inner = 1;
  }
  Affine(const Affine&) = delete;
  Affine& operator=(const Affine&) = delete;

  A w(int64_t index) const { return weight ? weight[index] : A(1); }
  A b(int64_t index) const { return bias ? bias[index] : A(0); }

  // Where the values are: in memory, or in `room`, where they are not stored as they are applied.
  OUT_OF_LINE static const A* in_arithmetic(const Parameter& p, int64_t n, A more, Storage rounded, Array<A>& room) {
    const bool rounds = rounded == Storage::bf16 || rounded == Storage::f16;
    if (!p.data || (p.storage == STORAGE<A> && !more && !rounds)) return static_cast<const A*>(p.data);
    room.resize(n);
    A* out = room.data();
    read_parameter(p, n, out);
    for (int64_t i = 0; (more || rounds) && i < n; ++i) out[i] += more;
    for (int64_t i = 0; rounds && i < n; ++i)
      out[i] = rounded == Storage::bf16 ? stored<bf16>(float(out[i])) : stored<f16>(float(out[i]));
    return room.data();
  }

  // Cuts n elements, the first of them `at` in memory and `j` in its row, where the weight jumps:
  // body(start within the piece, length, index of its first weight).
  template <class Body> void pieces(int64_t at, int64_t j, int64_t n, Body&& body) const {
    if (whole_row) return body(int64_t(0), n, j);
    for (int64_t done = 0; done < n;) {
      const int64_t run = divide(at + done, inner), index = remainder(run, period);
      const int64_t room = vector ? period - index : (run + 1) * inner - at - done;
      const int64_t length = room < n - done ? room : n - done;
      body(done, length, index);
      done += length;
    }
  }
};

// Sums of dy * x_hat and dy in slots that one task alone writes, added up at the end in a fixed order.
template <class A> struct AffineGrads {
  A* dweight;
  A* dbias;
  int64_t slots = 0;
  Array<A> room;
  A *w = nullptr, *b = nullptr;  // in vectors that start with a line, and half a page apart

  // Half a page apart, because a load waits for a store that is on its way to the same place of another page (decision
  // 6): two arrays of their own may have such a distance.
  AffineGrads(void* dw, void* db, int64_t number) : dweight(static_cast<A*>(dw)), dbias(static_cast<A*>(db)) {
    if (!wanted()) return;
    constexpr int64_t page = 4096 / sizeof(A), line = LINE / sizeof(A);
    const int64_t apart = ceil_div(number - page / 2, page) * page + page / 2;
    slots = number;
    room.resize(apart + slots + line);
    w = room.data() + (-reinterpret_cast<uintptr_t>(room.data()) & (LINE - 1)) / sizeof(A);
    b = w + apart;
  }
  bool wanted() const { return dweight || dbias; }

  // Slots in vectors of `width`; slot j of each adds to weight `index(j)` of `period`. Of several slabs, each has an
  // equal part of the slots.
  template <class Index> void reduce(int64_t width, int64_t period, Index&& index, int64_t slabs = 1) const {
    Array<int64_t> to(width == period ? 0 : width);  // else there is one slot for each weight, in the same order
    for (int64_t j = 0; j < to.size(); ++j) to[j] = index(j);
    for (int64_t s = 0; s < slabs; ++s)
      reduce_part(s * slots / slabs, (s + 1) * slots / slabs, width, period, to, s * period);
  }

 private:
  OUT_OF_LINE void reduce_part(
      int64_t first, int64_t end, int64_t width, int64_t period, const Array<int64_t>& index, int64_t to) const {
    Array<double> sw(width), sb(width), tw(period), tb(period);
    for (int64_t from = first; from < end; from += width) {
      const A *pw = w + from, *pb = b + from;
      double *qw = sw.data(), *qb = sb.data();
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) qw[j] += double(pw[j]), qb[j] += double(pb[j]);
    }
    for (int64_t j = 0; j < width; ++j) {
      const int64_t i = index.size() ? index.data()[j] : j;
      tw[i] += sw[j];
      tb[i] += sb[j];
    }
    for (int64_t i = 0; i < period; ++i) {
      if (dweight) dweight[to + i] = A(tw[i]);
      if (dbias) dbias[to + i] = A(tb[i]);
    }
  }
};

}  // namespace
