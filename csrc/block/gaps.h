// Rows of x that lie apart, as those of a query sliced out of a tensor that holds keys and values too.
#pragma once
#include "kernel.h"
#include "vector/number.h"

namespace {

using normkit::View;

// Row r of x starts at element r / group * outer + r % group * pitch. All other tensors are dense.
class Gaps {
  int64_t step_ = 0, jump_ = 0, group_ = 0;  // a step for every row and a jump for every group; none where x is dense
  uint64_t reciprocal_ = 0;                  // of the group, in units of 2^-64

 public:
  Gaps() = default;
  explicit Gaps(const View& v) {
    if (!v.group) return;
    const bool single = v.group == 1;  // whose reciprocal has no room: then every row is a step
    step_ = (single ? v.outer : v.pitch) - v.r1;
    if (single || v.group >= v.rows()) return;
    jump_ = v.outer - v.group * v.pitch;
    group_ = v.group;
    reciprocal_ = ~uint64_t(0) / uint64_t(v.group) + 1;
  }
  explicit operator bool() const { return step_ || jump_; }
  // The elements of the gaps before row r, which are to be added to its offset in a dense tensor.
  ALWAYS_INLINE int64_t before(int64_t r) const {
    const bool small = ((r | group_) >> 32) == 0;  // then the product is exact, at a fraction of a division's cost
    const auto product = (unsigned __int128)(reciprocal_) * uint64_t(r);
    const int64_t groups = small ? int64_t(product >> 64) : group_ ? r / group_ : 0;
    return r * step_ + groups * jump_;
  }
};

}  // namespace
