// How results go to memory: gate, skip and activation applied or a gradient added, padding set to 0, converted, and
// written past the cache where there are many.
#pragma once
#include "block/activation.h"
#include "block/mask.h"

namespace {

// At most BLOCK results at a time: `open` gives the place to put them, `close` takes them from there to where they
// belong. One Writer for each task, because it ends with a fence.
template <class S, class T> class Writer {
  using A = arithmetic<S>;
  static constexpr bool SAME = std::is_same<S, T>::value;
  static constexpr int64_t PER_LINE = LINE / int64_t(sizeof(S));
  const S* base_;
  const Fusion* fused_;
  const bool past_cache_, prefetches_;
  const Activation activation_;
  const Format<S> format_;
  bool after_;  // whether fusion changes the results
  const bool by_lines_;  // whether all that it does is to set padding to 0, on the way past the cache
  S* y_ = nullptr;
  alignas(LINE) T buffer_[BLOCK];

 public:
  // For the results of a call, from `base` on. `activated`: they come with the activation applied.
  Writer(S* base, const normkit::View& v, const Fusion* fused, bool activated = false)
      : base_(base), fused_(fused), past_cache_(v.numel() * int64_t(sizeof(S)) >= PAST_CACHE),
        prefetches_(needs_prefetch<S>(v.numel())),
        activation_(fused && !fused->backward && !activated ? fused->activation : Activation::none),
        format_(v), after_(changes() || (fused && fused->mask)),
        by_lines_(SAME && past_cache_ && after_ && !changes() && Mask(fused).has_whole_lines(base)) {}
  ~Writer() { if (past_cache_) fence(); }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  // The next results lie in the n elements from `from` on. Where those are all valid, closing skips the mask.
  void look_ahead(const S* from, int64_t n) {
    const Mask mask{fused_};
    if (!mask) return;
    after_ = changes() || !mask.is_all_valid(from - base_, n);
  }
  T* open(S* y) {
    y_ = y;
    if constexpr (SAME) return past_cache_ ? buffer_ : y;
    else return buffer_;
  }
  void close(int64_t n) {
    if constexpr (SAME) {
      if (by_lines_ && after_ && (y_ - base_) % PER_LINE == 0 && n % PER_LINE == 0) return stream_valid(n);
    }
    T* q = SAME && !past_cache_ ? reinterpret_cast<T*>(y_) : buffer_;
    if (after_) finish(q, n);
    if constexpr (SAME) {
      if (past_cache_) stream(buffer_, y_, n * int64_t(sizeof(S)));
    } else if (past_cache_) {
      S narrow[BLOCK];
      format_.write(buffer_, narrow, n);
      stream(narrow, y_, n * int64_t(sizeof(S)));
    } else {
      format_.write(buffer_, y_, n);
    }
  }

 private:
  // Whether any result changes, whatever the mask says.
  bool changes() const {
    if (!fused_) return false;
    if (fused_->backward) return fused_->residual;
    return activation_ != Activation::none || fused_->gate || fused_->skip;
  }
  OUT_OF_LINE void finish(T* q, int64_t n) const {
    const int64_t at = y_ - base_;
    if constexpr (std::is_same<T, A>::value) {
      if (!fused_->backward && (fused_->gate || fused_->skip)) {
        for (int64_t i = 0; i < n; i += BURST) apply_gate_and_skip(q + i, at + i, min(BURST, n - i));
      }
    }
    if (activation_ != Activation::none) activate(activation_, q, n);
    if (const Mask mask{fused_}; mask && !mask.is_known_valid(at, n)) mask.copy(q, q, at, n, Constant<A>{0});
    if (fused_->backward && fused_->residual) add_gradient(q, static_cast<const S*>(fused_->residual) + at, n);
  }
  OUT_OF_LINE void stream_valid(int64_t n) const {
    const auto lines = [from = buffer_, to = y_](int64_t start, int64_t length, bool is_valid) {
      for (int64_t i = start; i < start + length; i += PER_LINE)
        stream_line(reinterpret_cast<const char*>(from + i), reinterpret_cast<char*>(to + i), is_valid);
    };
    Mask(fused_).runs(y_ - base_, n, lines, [](int64_t, int64_t, const uint8_t*) {});
  }
  void apply_gate_and_skip(A* z, int64_t at, int64_t n) const {
    A wide_gate[BURST], wide_skip[BURST];
    const auto read = [&](const void* from, A* wide) {
      const S* p = static_cast<const S*>(from) + at;
      if (prefetches_) prefetch(p + AHEAD, n);
      return converted(format_, p, wide, n);
    };
    const A* gate = fused_->gate && !fused_->gate_first ? read(fused_->gate, wide_gate) : nullptr;
    const A* skip = fused_->skip ? read(fused_->skip, wide_skip) : nullptr;
    if (gate && skip) multiply_by_gate_and_add(fused_->gate_activation, gate, skip, z, z, n);
    else if (gate) multiply_by_gate(fused_->gate_activation, gate, z, z, n);
    else if (skip) add(z, skip, z, n);
  }
  void add_gradient(T* q, const S* more, int64_t n) const {
    if constexpr (std::is_same<T, A>::value) {
      A wide[BLOCK];
      add(q, converted(format_, more, wide, n), q, n);
    } else {
      each<T>(0, n, [=](auto i) { i.put(q, i(q) + i(more)); });
    }
  }
};

}  // namespace
