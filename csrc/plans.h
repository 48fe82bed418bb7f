// The plans that calls name by a number.
#pragma once
#include <torch/headeronly/util/Exception.h>

#include <mutex>
#include <unordered_map>

#include "kernel.h"

namespace {

using normkit::View;

// Plans are made in Python, by normkit.plan, and kept here: eleven numbers fewer to unpack in every call.
// A number is never used again, so that one whose plan has been given up names none.
class Plans {
  std::mutex lock_;
  std::unordered_map<int64_t, View> views_;
  int64_t next_ = 0;

 public:
  int64_t add(const View& v) {
    STD_TORCH_CHECK(v.period > 0 && v.inner > 0, "normkit: a plan without weights per element");
    STD_TORCH_CHECK(v.slabs < 2 || v.k0 % v.slabs == 0 ||
                        (v.has_slabs_in_regions() && v.r0 % v.slabs == 0 && v.width() % (v.period * v.inner) == 0),
                    "normkit: a plan whose regions cross slabs");
    const int64_t slab = v.slabs < 2 ? 1 : v.rows() / v.slabs;
    STD_TORCH_CHECK(!v.group || (!v.columns && v.r0 == 1 && v.k1 == 1 && (slab % v.group == 0 || v.group % slab == 0)),
                    "normkit: a plan of strided rows that does not have one row for each region");
    const std::lock_guard<std::mutex> guard(lock_);
    views_.emplace(next_, v);
    return next_++;
  }
  void forget(int64_t plan) {
    const std::lock_guard<std::mutex> guard(lock_);
    views_.erase(plan);
  }
  bool find(int64_t plan, View* out) {
    const std::lock_guard<std::mutex> guard(lock_);
    const auto found = views_.find(plan);
    return found != views_.end() && (*out = found->second, true);
  }
};

}  // namespace
