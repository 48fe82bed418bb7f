// Stores that bypass the cache, and prefetches.
#pragma once
#include "vector/pack.h"

namespace {

// Results of at least this many bytes are written past the cache: none of them would still be there when they are read,
// and an ordinary store first fetches the line that it overwrites.
constexpr int64_t PAST_CACHE = 24 << 20;

inline void stream(const void* from_here, void* to_there, int64_t bytes) {
  const char* from = static_cast<const char*>(from_here);
  char* to = static_cast<char*>(to_there);
  int64_t head = int64_t(-reinterpret_cast<uintptr_t>(to) & 63);
  if (head > bytes) head = bytes;
  std::memcpy(to, from, size_t(head));
  int64_t i = head;
  for (; i + 64 <= bytes; i += 64) stream_line(from + i, to + i);
  std::memcpy(to + i, from + i, size_t(bytes - i));
}

// Walks over at least PREFETCHED bytes prefetch AHEAD elements: the hardware prefetches too few to hide the latency of
// memory, and none beyond a page. They prefetch at most BURST elements at a time, with work between the bursts; a
// longer burst is worse than none.
constexpr int64_t AHEAD = 2 * BLOCK;
constexpr int64_t BURST = 512;
constexpr int64_t PREFETCHED = 4 << 20;
template <class S> void prefetch(const S* x, int64_t n) {
  const char* p = reinterpret_cast<const char*>(x);
  for (int64_t i = 0; i < n * int64_t(sizeof(S)); i += 64) __builtin_prefetch(p + i, 0, 2);
}
template <class S> bool needs_prefetch(int64_t elements) { return elements * int64_t(sizeof(S)) >= PREFETCHED; }

}  // namespace
