// Which elements are valid and which are padding, and what padding is replaced by.
#pragma once
#include "kernel.h"
#include "vector/lanes.h"

namespace {

using normkit::Fusion;

// What padding is replaced by: one value, or one for each column.
template <class A> struct Constant {
  A value;
  template <class At> auto operator()(At at) const { return at.of(value); }
};
template <class T> struct Along {
  const T* values;
  template <class At> auto operator()(At at) const { return at(values); }
};
// One for each of n columns as loops see them; in half precision they are rounded once, and not for every row.
template <class T> Along<T> along(const arithmetic<T>* values, T* buffer, int64_t n) {
  if constexpr (PACKED<T>) {
    narrow(values, buffer, n);
    return {buffer};
  } else {
    return {values};
  }
}

// What replaces element i, as it is stored.
template <class T, class A> T stored_fill(const Constant<A>& fill, int64_t) {
  if constexpr (PACKED<T>) return narrow(float(fill.value), T{});
  else return T(fill.value);
}
template <class T> T stored_fill(const Along<T>& fill, int64_t i) { return fill.values[i]; }

// With packs, runs of at most as many elements are copied without a branch, which scattered padding would make
// unpredictable. Other instruction sets gain nothing by that.
constexpr int64_t BRANCHLESS = 256;

// One byte for all channels of a place, in the order of memory; 0 where the place is padding.
struct Mask {
  const uint8_t* valid = nullptr;
  int64_t channels = 1, inner = 1;

  explicit Mask(const Fusion* f) {
    if (f) valid = f->mask, channels = f->channels, inner = f->inner;
  }
  explicit operator bool() const { return valid; }
  bool is_valid(int64_t at) const { return valid[at / (channels * inner) * inner + at % inner]; }

  // Cuts n elements from `at` into runs: same(start, length, whether valid) for neighbours that share a byte, or
  // each(start, length, bytes) for those that have one each.
  template <class Same, class Each> void runs(int64_t at, int64_t n, const Same& same, const Each& each_) const {
    if (inner == 1) {
      int64_t place = divide(at, channels), length = (place + 1) * channels - at;
      for (int64_t done = 0; done < n; done += length, length = channels, ++place) {
        if (length > n - done) length = n - done;
        same(done, length, valid[place] != 0);
      }
      return;
    }
    int64_t place = remainder(at, inner), line = divide(at, inner), length = inner - place;
    for (int64_t done = 0; done < n; done += length, length = inner, place = 0, ++line) {
      if (length > n - done) length = n - done;
      each_(done, length, valid + divide(line, channels) * inner + place);
    }
  }
  // Whether rows of n elements are each all valid or all padding.
  bool has_whole_rows(int64_t n) const { return inner == 1 && channels % n == 0; }
  // Whether every line of 64 bytes is all valid or all padding, in memory of T that begins with a line.
  template <class T> bool has_whole_lines(const T* base) const {
    const auto address = reinterpret_cast<uintptr_t>(base);
    return inner == 1 && channels <= BRANCHLESS && channels * int64_t(sizeof(T)) % LINE == 0 && address % LINE == 0;
  }
  // Whether n neighbours are all valid: then nothing has to be done to them.
  bool is_all_valid(int64_t at, int64_t n) const {
    if (inner == 1) {
      const int64_t first = divide(at, channels);
      if (!valid[first]) return false;
      const int64_t here = (first + 1) * channels - at;
      return n <= here || are_nonzero(valid + first + 1, (n - here + channels - 1) / channels);
    }
    int64_t place = remainder(at, inner), line = divide(at, inner), length = inner - place;
    for (int64_t done = 0; done < n; done += length, length = inner, place = 0, ++line) {
      if (length > n - done) length = n - done;
      if (!are_nonzero(valid + divide(line, channels) * inner + place, length)) return false;
    }
    return true;
  }
  // Whether n neighbours are all padding; false also where that would take longer to find out.
  bool is_all_padding(int64_t at, int64_t n) const {
    if (inner != 1) return false;
    const int64_t first = divide(at, channels), last = divide(at + n - 1, channels);
    if (valid[first] || valid[last]) return false;
    uint8_t any = 0;
#pragma omp simd reduction(| : any)
    for (int64_t i = first; i <= last; ++i) any |= valid[i];
    return !any;
  }
  // Whether n neighbours are all valid, but false where to find out costs as much as to copy.
  bool is_known_valid(int64_t at, int64_t n) const { return !has_short_runs() && is_all_valid(at, n); }
  // to = from, with `fill` for padding; `from` may be `to`. Valid elements are copied bit by bit.
  template <class T, class Fill> void copy(const T* from, T* to, int64_t at, int64_t n, const Fill& fill) const {
    const auto same = [&, is_short = has_short_runs()](int64_t start, int64_t length, bool is_valid) {
      if constexpr (USES_PACKS<arithmetic<T>>) {
        if (is_short) return copy_run(from, to, start, start + length, is_valid, fill);
      }
      if (!is_valid)
        each<T>(start, start + length, [=](auto i) { i.put(to, fill(i)); });
      else if (to != from)
        std::memcpy(to + start, from + start, size_t(length) * sizeof(T));
    };
    const auto by_bytes = [&](int64_t start, int64_t length, const uint8_t* bytes) {
      copy_by_bytes(from, to, start, start + length, bytes - start, fill);
    };
    runs(at, n, same, by_bytes);
  }

 private:
  bool has_short_runs() const { return IS_WIDE && inner == 1 && channels <= BRANCHLESS; }

  template <class T, class Fill>
  static void copy_by_bytes(const T* from, T* to, int64_t i, int64_t end, const uint8_t* bytes, const Fill& fill) {
    if constexpr (USES_PACKS<arithmetic<T>>) {
      for (; i + 64 <= end; i += 64) blend_64(nonzero_64(bytes + i), from, to, i, fill);
      for (; i < end; i += PACK) {
        const PackMask some = end - i < PACK ? first_lanes(end - i) : PackMask(0xFFFF);
        blend_some(some, nonzero_16(bytes + i, some), from + i, to + i, fill(Part{i, some}));
      }
    } else {
      if constexpr (PACKED<T>)
        for (; i + PACK <= end; i += PACK) {
          if constexpr (std::is_same<Fill, Along<T>>::value) blend(bytes + i, from + i, to + i, fill.values + i);
          else blend(bytes + i, from + i, to + i, fill(Whole{i}));
        }
#pragma omp simd
      for (int64_t j = i; j < end; ++j) {
        const T valid = from[j], padding = stored_fill<T>(fill, j);
        to[j] = bytes[j] ? valid : padding;
      }
    }
  }
  // Elements that are all valid or all padding.
  template <class T, class Fill>
  static void copy_run(const T* from, T* to, int64_t i, int64_t end, bool is_valid, const Fill& fill) {
    const uint64_t keep = uint64_t(0) - uint64_t(is_valid);
    for (; i + 64 <= end; i += 64) blend_64(keep, from, to, i, fill);
    for (; i < end; i += PACK) {
      const PackMask some = end - i < PACK ? first_lanes(end - i) : PackMask(0xFFFF);
      blend_some(some, some & PackMask(keep), from + i, to + i, fill(Part{i, some}));
    }
  }
  template <class T, class Fill>
  ALWAYS_INLINE static void blend_64(uint64_t keep, const T* from, T* to, int64_t i, const Fill& fill) {
    if constexpr (std::is_same<Fill, Along<T>>::value && PACKED<T>) {
      for (int k = 0; k < 64; k += 2 * PACK) blend(keep >> k, from + i + k, to + i + k, fill.values + i + k);
    } else if constexpr (PACKED<T>) {
      for (int k = 0; k < 64; k += 2 * PACK)
        blend(keep >> k, from + i + k, to + i + k, fill(Whole{i + k}), fill(Whole{i + k + PACK}));
    } else {
      for (int k = 0; k < 64; k += PACK) blend(keep >> k, from + i + k, to + i + k, fill(Whole{i + k}));
    }
  }
};

}  // namespace
