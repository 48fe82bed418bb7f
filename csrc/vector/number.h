// The numbers that kernels store and compute with, one of them converted, and other small things that all headers need.
// Everything here has internal linkage: it is compiled once for each instruction set, and the linker must not mix them.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

// For what a hot loop calls: without it the compiler inlines while its budget for the whole file lasts, and a loop with
// a call is not vectorized.
#define ALWAYS_INLINE __attribute__((always_inline)) inline
// For what is called once for a tile, a span or a call, but from several places, each of which would get a copy. And
// for what is fused: kept out of the loops of calls that fuse nothing, which would lose registers to it.
#define OUT_OF_LINE __attribute__((noinline))

namespace {

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };
// One of the two. For walks that see floats they differ in conversions alone, which are told by a Format when the call
// begins, so that one copy of a walk serves both.
struct half { uint16_t bits; };

template <class S> struct arithmetic_of { using type = float; };
template <> struct arithmetic_of<double> { using type = double; };
template <class S> using arithmetic = typename arithmetic_of<S>::type;

// Elements handled at a time: small enough for the first-level cache, and every fp32 lane adds at most
// BLOCK / LANES of them before it is merged in double.
constexpr int64_t BLOCK = 2048;
constexpr int LANES = 64;
// Bytes of a cache line: what arrays inside a struct are aligned to, because a vector that crosses two lines costs
// twice.
constexpr int LINE = 64;

// std::vector would be emitted as a weak symbol in every instruction set, and the linker would keep one of them.
template <class T> class Array {
  T* data_ = nullptr;
  size_t size_ = 0;

 public:
  Array() = default;
  explicit Array(int64_t n) { resize(n); }
  ~Array() { delete[] data_; }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  void resize(int64_t n) {
    delete[] data_;
    data_ = nullptr;
    size_ = size_t(n);
    if (n > 0) data_ = new T[size_]();
  }
  int64_t size() const { return int64_t(size_); }
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }
};

// 64-bit division costs several times that of 32 bits, and sizes rarely need it.
ALWAYS_INLINE int64_t divide(int64_t a, int64_t b) {
  return ((a | b) >> 32) == 0 ? int64_t(uint32_t(a) / uint32_t(b)) : a / b;
}
ALWAYS_INLINE int64_t remainder(int64_t a, int64_t b) {
  return ((a | b) >> 32) == 0 ? int64_t(uint32_t(a) % uint32_t(b)) : a % b;
}

ALWAYS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
ALWAYS_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
ALWAYS_INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

ALWAYS_INLINE float from_bits(uint32_t u) { float f; std::memcpy(&f, &u, 4); return f; }
ALWAYS_INLINE uint32_t to_bits(float f) { uint32_t u; std::memcpy(&u, &f, 4); return u; }

// A stored number in the arithmetic type.
ALWAYS_INLINE float widen(float f) { return f; }
ALWAYS_INLINE double widen(double f) { return f; }
ALWAYS_INLINE float widen(bf16 h) { return from_bits(uint32_t(h.bits) << 16); }
ALWAYS_INLINE float widen(f16 h) {
  // Exponent and mantissa moved into place, then the bias corrected by one multiplication: subnormals come out right.
  const uint32_t sign = uint32_t(h.bits & 0x8000u) << 16;
  const uint32_t rest = uint32_t(h.bits & 0x7fffu) << 13;
  const float scaled = from_bits(rest) * 0x1p112f;
  const uint32_t special = (rest | 0x7f800000u);
  return from_bits((rest >= 0x0f800000u ? special : to_bits(scaled)) | sign);
}
// And back, rounded to nearest, ties to even.
ALWAYS_INLINE bf16 narrow(float f, bf16) {
  const uint32_t u = to_bits(f);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return {uint16_t(f != f ? (u >> 16) | 0x0040u : rounded)};
}
ALWAYS_INLINE f16 narrow(float f, f16) {
  const uint32_t u = to_bits(f), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};
  if (magnitude < 0x38800000u) {  // subnormal: the addition rounds to the last bit that half precision has
    const uint32_t bits = to_bits(from_bits(magnitude) + 0.5f) - to_bits(0.5f);
    return {uint16_t(sign | bits)};
  }
  const uint32_t rounded = magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u);
  return {uint16_t(sign | (rounded >> 13))};
}

// A value after it has been stored as S and read again.
template <class S> ALWAYS_INLINE arithmetic<S> stored(arithmetic<S> a) {
  if constexpr (std::is_same<S, bf16>::value) {  // as `narrow`, but in 32 bits, which loops like better
    const uint32_t u = to_bits(a), rounded = u + 0x7fffu + ((u >> 16) & 1u);
    return from_bits((a != a ? u | 0x400000u : rounded) & 0xffff0000u);
  } else if constexpr (std::is_same<S, f16>::value) {
    return widen(narrow(a, S{}));
  } else {
    return a;
  }
}

}  // namespace
