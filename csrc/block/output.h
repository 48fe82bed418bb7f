// A gradient of x's size that a pass writes besides dx, block by block.
#pragma once
#include "kernel.h"
#include "vector/memory.h"

namespace {

// At most BLOCK results at a time, in the arithmetic type: `open` gives the place to put them, `buffer` or the memory
// itself, and `close` stores them. Past the cache where there are many, so a task that writes some ends with a fence.
template <class S> struct Output {
  using A = arithmetic<S>;
  static constexpr bool SAME = std::is_same<S, A>::value;
  S* base;
  bool past_cache;
  Format<S> format;

  Output(void* to, const normkit::View& v)
      : base(static_cast<S*>(to)), past_cache(v.numel() * int64_t(sizeof(S)) >= PAST_CACHE), format(v) {}
  explicit operator bool() const { return base; }

  A* open(int64_t at, A* buffer) const {
    if constexpr (SAME) return past_cache ? buffer : base + at;
    else return buffer;
  }
  void close(int64_t at, const A* results, int64_t n) const {
    S* to = base + at;
    if constexpr (SAME) {
      if (past_cache) stream(results, to, n * int64_t(sizeof(S)));
      else if (results != to) std::memcpy(to, results, size_t(n) * sizeof(S));
    } else if (past_cache) {
      S narrow[BLOCK];
      format.write(results, narrow, n);
      stream(narrow, to, n * int64_t(sizeof(S)));
    } else {
      format.write(results, to, n);
    }
  }
};

}  // namespace
