// How a loop sees its elements: one by one, for the compiler to vectorize, or, where half precision is stored and
// there are packs, eight or sixteen at once, converted on the way between memory and register.
#pragma once
#include "vector/convert.h"

namespace {

// Element i. at(p, fill) is what p holds there; at.put(q, v) writes it. `fill` stands for what lies beyond the end.
template <class A> struct Element {
  int64_t i;
  A operator()(const A* p, A = 0) const { return p[i]; }
  A of(A value) const { return value; }
  void put(A* q, A v) const { q[i] = v; }
};

// Elements i to i + PACK - 1.
struct Whole {
  int64_t i;
  template <class S> Pack operator()(const S* p, float = 0) const { return load_pack(p + i); }
  template <class A> Pack of(A value) const { return pack_of(value); }
  template <class S> void put(S* q, Pack v) const { store_pack(q + i, v); }
};
// Those of them that are there.
struct Part {
  int64_t i;
  PackMask some;
  template <class S> Pack operator()(const S* p, float fill = 0) const { return load_pack(p + i, some, fill); }
  template <class A> Pack of(A value) const { return pack_of(value); }
  template <class S> void put(S* q, Pack v) const { store_pack(q + i, some, v); }
};
// Whether loops over what is stored as S see packs, and whether arithmetic in A may use them.
template <class S> constexpr bool PACKED = HAS_PACKS && sizeof(S) == 2 && !std::is_same<S, half>::value;
template <class A> constexpr bool USES_PACKS = IS_WIDE && std::is_same<A, float>::value;

// body(at) for the elements from `i` to `end`, in packs.
template <class Body> inline void in_packs(int64_t i, int64_t end, const Body& body) {
  for (; i + PACK <= end; i += PACK) body(Whole{i});
  if (i < end) body(Part{i, first_lanes(end - i)});
}
// body(at) for the elements from `i` to `end` of what loops see as T.
template <class T, class Body> inline void each(int64_t i, int64_t end, const Body& body) {
  if constexpr (PACKED<T>) {
    in_packs(i, end, body);
  } else {
#pragma omp simd
    for (int64_t k = i; k < end; ++k) body(Element<arithmetic<T>>{k});
  }
}

// The type T that loops see in memory: that of the storage, or the arithmetic's, of a converted copy. A walk with a
// gate or a skip always has a copy, so that its steps round nothing.
template <class S> using Seen = typename std::conditional<PACKED<S>, S, arithmetic<S>>::type;

// At most BLOCK elements in the arithmetic type: the memory itself where it has that, else a copy in `buffer`.
template <class S>
const arithmetic<S>* converted(const Format<S>& format, const S* x, arithmetic<S>* buffer, int64_t n) {
  if constexpr (std::is_same<S, arithmetic<S>>::value) {
    return x;
  } else {
    format.read(x, buffer, n);
    return buffer;
  }
}
// The same as loops see them.
template <class S, class T> const T* load(const Format<S>& format, const S* x, T* buffer, int64_t n) {
  if constexpr (std::is_same<S, T>::value) return x;
  else return converted(format, x, buffer, n);
}

}  // namespace
