// Padding in rows. While the moments of a cell are taken, padding is replaced by a value near the mean of its valid
// elements; afterwards that value is taken out of the moments again.
#pragma once
#include "block/moments.h"
#include "block/source.h"
#include "walk/spans.h"

namespace {

// Valid elements whose mean is near enough to that of all. They are added one after the other, which takes time.
constexpr int ENOUGH = 8;

template <class S, class T> class RowPadding {
  using A = arithmetic<S>;
  const Source<S, T>& source;
  const Spans& spans;
  const Forward& f;
  Array<A> values;  // one for each cell, or none without a mask

 public:
  RowPadding(const View& v, const Forward& forward, const Source<S, T>& from, const Spans& cut)
      : source(from), spans(cut), f(forward), values(from.mask ? v.cells() : 0) {}

  Constant<A> of(int64_t cell) const { return Constant<A>{source.mask ? values[cell] : A(0)}; }

  // The mean of the first few valid elements, where there are both these and padding.
  void find(int64_t cell) {
    const double valid = f.fused->counts[cell];
    if (f.center && valid > 0 && valid != double(spans.v.count())) search(cell);
    else values[cell] = 0;
  }

  // From the moments of all elements to those of the valid ones. Precision is lost where the value is far from their
  // mean: then the result is true, the value is now the mean, and the moments have to be computed again.
  OUT_OF_LINE bool remove(int64_t cell, Moments& m) {
    const double valid = f.fused->counts[cell];
    if (valid == m.count) return false;
    const double sum = (m.mean - double(values[cell])) * m.count, shift = valid ? sum / valid : 0;
    m.m2 += sum * sum / m.count - sum * shift;
    if (m.m2 < 0) m.m2 = 0;
    m.mean = double(values[cell]) + shift;
    m.count = valid;
    const bool far_off = f.center && sum * shift > FAR_OFF * m.m2;
    values[cell] = source.format.stored(A(m.mean));
    return far_off;
  }

 private:
  OUT_OF_LINE void search(int64_t cell) {
    double sum = 0, count = 0;
    for (int64_t s = 0; s < spans.per_cell && count == 0; ++s)
      spans.blocks(cell, s, [&, gap = source.gaps.before(cell)](int64_t at, int64_t, int64_t n, int64_t) {
        const auto take = [&](int64_t i) {
          sum += source.unread(i, gap);
          ++count;
        };
        const auto same = [&](int64_t start, int64_t length, bool is_valid) {
          for (int64_t i = 0; is_valid && i < length && count < ENOUGH; ++i) take(at + start + i);
        };
        const auto by_bytes = [&](int64_t start, int64_t length, const uint8_t* bytes) {
          for (int64_t i = 0; i < length && count < ENOUGH; ++i)
            if (bytes[i]) take(at + start + i);
        };
        source.mask.runs(at, n, same, by_bytes);
      });
    values[cell] = count ? source.format.stored(A(sum / count)) : A(0);
  }
};

}  // namespace
