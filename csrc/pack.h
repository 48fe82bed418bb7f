// How a loop sees its elements: one by one, for the compiler to vectorize, or, where half precision is stored and AVX-512
// is there, sixteen at once, converted on the way between memory and register.
#pragma once
#include "convert.h"

namespace {

// Element i. at(p, fill) is what p holds there; at.put(q, v) writes it. `fill` stands for what lies beyond the end.
template <class A> struct Element {
  int64_t i;
  A operator()(const A* p, A = 0) const { return p[i]; }
  A of(A value) const { return value; }
  void put(A* q, A v) const { q[i] = v; }
};

#if defined(__AVX512F__)
constexpr int PACK = 16;
using Pack = float __attribute__((vector_size(64)));

// Elements i to i + 15.
struct Whole {
  int64_t i;
  Pack operator()(const float* p, float = 0) const { return Pack(_mm512_loadu_ps(p + i)); }
  template <class S> Pack operator()(const S* p, float = 0) const {
    return Pack(extend(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i)), S{}));
  }
  Pack of(float value) const { return Pack(_mm512_set1_ps(value)); }
  void put(float* q, Pack v) const { _mm512_storeu_ps(q + i, __m512(v)); }
  template <class S> void put(S* q, Pack v) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + i), round_to(__m512(v), S{}));
  }
};
// Those of them that are there.
struct Part {
  int64_t i;
  __mmask16 some;
  Pack operator()(const float* p, float fill = 0) const {
    return Pack(_mm512_mask_loadu_ps(_mm512_set1_ps(fill), some, p + i));
  }
  template <class S> Pack operator()(const S* p, float fill = 0) const {
    return Pack(_mm512_mask_mov_ps(_mm512_set1_ps(fill), some, extend(_mm256_maskz_loadu_epi16(some, p + i), S{})));
  }
  Pack of(float value) const { return Pack(_mm512_set1_ps(value)); }
  void put(float* q, Pack v) const { _mm512_mask_storeu_ps(q + i, some, __m512(v)); }
  template <class S> void put(S* q, Pack v) const { _mm256_mask_storeu_epi16(q + i, some, round_to(__m512(v), S{})); }
};
template <class S> constexpr bool PACKED = sizeof(S) == 2;
template <class A> constexpr bool ACROSS = std::is_same<A, float>::value;

// body(at) for the elements from `i` to `end` of what loops see as T.
template <class T, class Body> inline void each(int64_t i, int64_t end, const Body& body) {
  if constexpr (PACKED<T>) {
    for (; i + PACK <= end; i += PACK) body(Whole{i});
    if (i < end) body(Part{i, lanes_left(end - i)});
  } else {
#pragma omp simd
    for (int64_t k = i; k < end; ++k) body(Element<arithmetic<T>>{k});
  }
}
#else
template <class S> constexpr bool PACKED = false;
template <class A> constexpr bool ACROSS = false;  // sums of each row by itself

template <class T, class Body> inline void each(int64_t i, int64_t end, const Body& body) {
#pragma omp simd
  for (int64_t k = i; k < end; ++k) body(Element<arithmetic<T>>{k});
}
#endif

// The type that loops see in memory: that of the storage, or the arithmetic's, of a converted copy.
template <class S> using Seen = typename std::conditional<PACKED<S>, S, arithmetic<S>>::type;

// At most BLOCK elements in the arithmetic type: the memory itself where it has that, else a copy in `buffer`.
inline const float* converted(const float* x, float*, int64_t) { return x; }
inline const double* converted(const double* x, double*, int64_t) { return x; }
template <class S> const float* converted(const S* x, float* buffer, int64_t n) {
  widen(x, buffer, n);
  return buffer;
}
// The same as loops see them.
template <class S> const Seen<S>* load(const S* x, Seen<S>* buffer, int64_t n) {
  if constexpr (PACKED<S>) return x;
  else return converted(x, buffer, n);
}

}  // namespace
