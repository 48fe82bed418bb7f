// What is done to a block beside its normalization, while it is in the cache: a residual added and padding taken out as it
// comes from memory; an activation applied, padding set to 0 and a gradient added before it goes back.
#pragma once
#include "activation.h"
#include "kernel.h"
#include "lanes.h"

namespace {

using normkit::Activation;
using normkit::Fusion;

// Kept out of the loops of calls that fuse nothing, which would lose registers to it.
#define APART __attribute__((noinline))

// Which elements are real: one byte for all channels of a place, in the order of memory.
struct Mask {
  const uint8_t* real = nullptr;
  int64_t channels = 1, inner = 1;

  explicit Mask(const Fusion* f) {
    if (f) real = f->mask, channels = f->channels, inner = f->inner;
  }
  explicit operator bool() const { return real; }
  bool operator()(int64_t at) const { return real[at / (channels * inner) * inner + at % inner]; }

  // same(start, length, whether real) for neighbours that share a byte, or each(start, length, bytes) for those that do not.
  template <class Same, class Each> void runs(int64_t at, int64_t n, const Same& same, const Each& each_) const {
    if (inner == 1) {
      int64_t place = divide(at, channels), length = (place + 1) * channels - at;
      for (int64_t done = 0; done < n; done += length, length = channels, ++place) {
        if (length > n - done) length = n - done;
        same(done, length, real[place] != 0);
      }
      return;
    }
    int64_t place = remainder(at, inner), line = divide(at, inner), length = inner - place;
    for (int64_t done = 0; done < n; done += length, length = inner, place = 0, ++line) {
      if (length > n - done) length = n - done;
      each_(done, length, real + divide(line, channels) * inner + place);
    }
  }
  // Whether rows of n elements are all real or all padding.
  bool has_whole_rows(int64_t n) const { return inner == 1 && channels % n == 0; }
  // Whether n neighbours are all real: then nothing has to be done to them.
  bool is_all_real(int64_t at, int64_t n) const {
    if (inner == 1) {
      const int64_t first = divide(at, channels);
      if (!real[first]) return false;
      const int64_t here = (first + 1) * channels - at;
      return n <= here || are_nonzero(real + first + 1, (n - here + channels - 1) / channels);
    }
    int64_t place = remainder(at, inner), line = divide(at, inner), length = inner - place;
    for (int64_t done = 0; done < n; done += length, length = inner, place = 0, ++line) {
      if (length > n - done) length = n - done;
      if (!are_nonzero(real + divide(line, channels) * inner + place, length)) return false;
    }
    return true;
  }
  // to = from, with `fill` for what is not real; the two may be the same.
  template <class T, class Fill> void copy(const T* from, T* to, int64_t at, int64_t n, const Fill& fill) const {
    runs(at, n,
         [&](int64_t start, int64_t length, bool is) {
           if (!is)
             each<T>(start, start + length, [=](auto i) { i.put(to, fill(i)); });
           else if (to != from)
             std::memcpy(to + start, from + start, size_t(length) * sizeof(T));
         },
         [&](int64_t start, int64_t length, const uint8_t* bytes) { fill_by_bytes(from, to, start, start + length, bytes - start, fill); });
  }

 private:
  // The same from `i` to `end`, by a byte for each. Real elements go as they are, not through the arithmetic type.
  template <class T, class Fill>
  static void fill_by_bytes(const T* from, T* to, int64_t i, int64_t end, const uint8_t* bytes, const Fill& fill) {
    if constexpr (ACROSS<arithmetic<T>>) {
      for (; i + 64 <= end; i += 64) {
        const uint64_t is = nonzero_64(bytes + i);
        if (is == ~uint64_t(0)) {
          if (from != to) std::memcpy(to + i, from + i, 64 * sizeof(T));
        } else if constexpr (PACKED<T>) {
          for (int k = 0; k < 64; k += 2 * PACK)
            blend(is >> k, from + i + k, to + i + k, fill(Whole{i + k}), fill(Whole{i + k + PACK}));
        } else {
          for (int k = 0; k < 64; k += PACK) blend(is >> k, from + i + k, to + i + k, fill(Whole{i + k}));
        }
      }
      for (; i < end; i += PACK) {
        const PackMask some = end - i < PACK ? first_lanes(end - i) : PackMask(0xFFFF);
        blend_some(some, nonzero_16(bytes + i, some), from + i, to + i, fill(Part{i, some}));
      }
    } else {
      for (int64_t j = i; j < end; ++j) {
        const Element<arithmetic<T>> at{j};
        to[j] = bytes[j] ? from[j] : T(fill(at));
      }
    }
  }
};

// What padding is replaced by: one value, or one for each column.
template <class A> struct Constant {
  A value;
  template <class At> auto operator()(At at) const { return at.of(value); }
};
template <class A> struct Along {
  const A* values;
  template <class At> auto operator()(At at) const { return at(values); }
};

// What is left of a value once it has been stored.
template <class S> arithmetic<S> stored(arithmetic<S> a) {
  if constexpr (std::is_same<S, arithmetic<S>>::value) return a;
  else return widen(narrow(a, S{}));
}

// The blocks of a tensor, a residual added, padding replaced.
template <class S> struct Source {
  using A = arithmetic<S>;
  using T = Seen<S>;
  const S* x;
  const S* residual = nullptr;
  S* sum = nullptr;
  Mask mask{nullptr};

  Source(const void* from, const Fusion* f) : x(static_cast<const S*>(from)), mask(f) {
    if (!f || !f->sum) return;
    residual = static_cast<const S*>(f->residual);
    sum = static_cast<S*>(f->sum);
  }
  // The same once every block has been here.
  Source again() const {
    Source s = *this;
    if (sum) s.x = sum, s.residual = nullptr;
    return s;
  }
  // The same where padding may be whatever it is, because what comes of it is set to 0.
  Source unmasked() const {
    Source s = *this;
    s.mask = Mask(nullptr);
    return s;
  }
  bool is_plain() const { return !residual && !mask; }

  // n elements from `at`, at most BLOCK of them, with `fill` for what is not real.
  template <class Fill> const T* operator()(int64_t at, int64_t n, T* buffer, const Fill& fill) const {
    return is_plain() ? load(x + at, buffer, n) : fused(at, n, buffer, fill);
  }
  // One of them, after the others have been asked for.
  double value(int64_t at, A fill) const { return mask && !mask(at) ? double(fill) : double(widen((sum ? sum : x)[at])); }

 private:
  template <class Fill> APART const T* fused(int64_t at, int64_t n, T* buffer, const Fill& fill) const {
    if (residual) add(at, n);
    const T* in = load((residual ? sum : x) + at, buffer, n);
    if (!mask || mask.is_all_real(at, n)) return in;
    mask.copy(in, buffer, at, n, fill);
    return buffer;
  }
  void add(int64_t at, int64_t n) const {
    if constexpr (PACKED<S> || std::is_same<S, A>::value) {
      each<S>(0, n, [p = x + at, r = residual + at, q = sum + at](auto i) { i.put(q, i(p) + i(r)); });
    } else {
      A a[BLOCK], b[BLOCK];
      widen(x + at, a, n);
      widen(residual + at, b, n);
      for (int64_t i = 0; i < n; ++i) a[i] += b[i];
      narrow(a, sum + at, n);
    }
  }
};

// What backward reads: x with its padding at the mean, and the gradient with padding at 0; the latter through the slope of
// the activation, which the first of two passes leaves in dx for the second.
template <class S> struct Upstream {
  using A = arithmetic<S>;
  using T = Seen<S>;
  const S *x, *dy;
  S* dx;
  Mask mask;
  Activation activation;

  Upstream(const normkit::Backward& f)
      : x(static_cast<const S*>(f.x)), dy(static_cast<const S*>(f.dy)), dx(static_cast<S*>(f.dx)), mask(f.fused),
        activation(f.fused ? f.fused->activation : Activation::none) {}

  Upstream again() const {
    Upstream u = *this;
    if (activation == Activation::none) return u;
    return Upstream(u, dx);
  }

  // The same where padding may be whatever it is, because what comes of it is set to 0.
  Upstream unmasked() const {
    Upstream u = *this;
    u.mask = Mask(nullptr);
    return u;
  }

  template <class Fill> const T* input(int64_t at, int64_t n, T* buffer, const Fill& fill) const {
    const T* in = load(x + at, buffer, n);
    return mask ? filled(in, at, n, buffer, fill) : in;
  }
  // z(p, out) writes what the activation was given, of the n elements of x that p shows.
  template <class Z> const T* gradient(int64_t at, int64_t n, T* buffer, const T* p, const Z& z) const {
    if (activation != Activation::none) through_slope(at, n, p, z);
    const T* in = load((activation != Activation::none ? dx : dy) + at, buffer, n);
    return mask ? filled(in, at, n, buffer, Constant<A>{0}) : in;
  }

 private:
  template <class Fill> APART const T* filled(const T* in, int64_t at, int64_t n, T* buffer, const Fill& fill) const {
    if (mask.is_all_real(at, n)) return in;
    mask.copy(in, buffer, at, n, fill);
    return buffer;
  }
  Upstream(const Upstream& u, const S* gradient) : x(u.x), dy(gradient), dx(u.dx), mask(u.mask), activation(Activation::none) {}

  template <class Z> APART void through_slope(int64_t at, int64_t n, const T* p, const Z& z) const {
    A inside[BLOCK], g[BLOCK];
    z(p, inside);
    const A* from = converted(dy + at, g, n);
    if (from != g) std::memcpy(g, from, size_t(n) * sizeof(A));
    multiply_by_slope(activation, inside, g, n);
    if constexpr (PACKED<S>) each<S>(0, n, [q = dx + at, p = &g[0]](auto i) { i.put(q, i(p)); });
    else if constexpr (std::is_same<S, A>::value) std::memcpy(dx + at, g, size_t(n) * sizeof(A));
    else narrow(g, dx + at, n);
  }
};

// Takes at most BLOCK results at a time to memory: `open` gives the place to put them, `close` brings them where they
// belong. One for each task, because it ends with a fence.
template <class S> class Writer {
  using A = arithmetic<S>;
  using T = Seen<S>;
  static constexpr bool SAME = std::is_same<S, T>::value;
  const S* base_;
  const Fusion* fused_;
  const bool past_;
  bool after_;
  S* y_ = nullptr;
  T buffer_[BLOCK];

 public:
  // For results at `base` and beyond, so many in all. `after`: whether fusion has something to do to them.
  Writer(S* base, int64_t elements, const Fusion* fused)
      : base_(base), fused_(fused), past_(elements * int64_t(sizeof(S)) >= PAST_CACHE), after_(fused) {}
  ~Writer() { if (past_) fence(); }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  // What comes next lies between `from` and `from + n`. Where that is real, a mask is nothing to look at.
  void ahead(const S* from, int64_t n) {
    const Mask mask{fused_};
    if (mask) after_ = (fused_->backward ? fused_->residual != nullptr : fused_->activation != Activation::none) || !mask.is_all_real(from - base_, n);
  }
  T* open(S* y) {
    y_ = y;
    if constexpr (SAME) return past_ ? buffer_ : y;
    else return buffer_;
  }
  void close(int64_t n) {
    T* q = SAME && !past_ ? reinterpret_cast<T*>(y_) : buffer_;
    if (after_) finish(q, n);
    if constexpr (SAME) {
      if (past_) stream(buffer_, y_, n * int64_t(sizeof(S)));
    } else if (past_) {
      S half[BLOCK];
      narrow(buffer_, half, n);
      stream(half, y_, n * int64_t(sizeof(S)));
    } else {
      narrow(buffer_, y_, n);
    }
  }

 private:
  APART void finish(T* q, int64_t n) const {
    const int64_t at = y_ - base_;
    if (fused_->activation != Activation::none && !fused_->backward) {
      A wide[BLOCK];
      A* z = wide;
      if constexpr (PACKED<S>) each<S>(0, n, [q, z](auto i) { i.put(z, i(q)); });
      else z = q;
      activate(fused_->activation, z, n);
      if constexpr (PACKED<S>) each<S>(0, n, [q, z](auto i) { i.put(q, i(z)); });
    }
    if (const Mask mask{fused_}; mask && !mask.is_all_real(at, n)) mask.copy(q, q, at, n, Constant<A>{0});
    if (fused_->backward && fused_->residual) {
      const S* more = static_cast<const S*>(fused_->residual) + at;
      if constexpr (PACKED<S>) {
        each<S>(0, n, [=](auto i) { i.put(q, i(q) + i(more)); });
      } else {
        A wide[BLOCK];
        const A* add = converted(more, wide, n);
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) q[i] += add[i];
      }
    }
  }
};

}  // namespace
