// Storage types to arithmetic and back. Everything here has internal linkage: it is compiled once for each instruction
// set, and the linker must not mix them.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

template <class S> struct arithmetic_of { using type = float; };
template <> struct arithmetic_of<double> { using type = double; };
template <class S> using arithmetic = typename arithmetic_of<S>::type;

// Elements handled at a time: small enough for the first-level cache, and every fp32 lane adds at most
// BLOCK / LANES of them before it is merged in double.
constexpr int64_t BLOCK = 2048;
constexpr int LANES = 64;

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
inline int64_t divide(int64_t a, int64_t b) {
  return ((a | b) >> 32) == 0 ? int64_t(uint32_t(a) / uint32_t(b)) : a / b;
}
inline int64_t remainder(int64_t a, int64_t b) {
  return ((a | b) >> 32) == 0 ? int64_t(uint32_t(a) % uint32_t(b)) : a % b;
}

inline float from_bits(uint32_t u) { float f; std::memcpy(&f, &u, 4); return f; }
inline uint32_t to_bits(float f) { uint32_t u; std::memcpy(&u, &f, 4); return u; }

inline float widen(float f) { return f; }
inline double widen(double f) { return f; }
inline float widen(bf16 h) { return from_bits(uint32_t(h.bits) << 16); }
inline float widen(f16 h) {
  // Exponent and mantissa moved into place, then the bias corrected by one multiplication: subnormals come out right.
  const uint32_t sign = uint32_t(h.bits & 0x8000u) << 16;
  const uint32_t rest = uint32_t(h.bits & 0x7fffu) << 13;
  const float scaled = from_bits(rest) * 0x1p112f;
  const uint32_t special = (rest | 0x7f800000u);
  return from_bits((rest >= 0x0f800000u ? special : to_bits(scaled)) | sign);
}
inline bf16 narrow(float f, bf16) {
  const uint32_t u = to_bits(f);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return {uint16_t(f != f ? (u >> 16) | 0x0040u : rounded)};
}
inline f16 narrow(float f, f16) {
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

template <class S> void widen(const S* x, float* out, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = widen(x[i]);
}
template <class S> void narrow(const float* x, S* out, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = narrow(x[i], S{});
}
#if defined(__AVX512F__)
// Sixteen at a time, the rest under a mask: a tail done one by one costs as much as a hundred elements.
inline __mmask16 lanes_left(int64_t n) { return __mmask16((1u << n) - 1); }
inline __m256i round_to(__m512 f, f16) { return _mm512_cvtps_ph(f, 0); }
// The upper half of each lane is the rounded value, ties to even; what lies below it is of no use.
inline __m512i rounded(__m512 f) {
  const __m512i u = _mm512_castps_si512(f);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(f, f, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(up, nan, u, _mm512_set1_epi32(0x400000));
}
#if defined(__AVX512BF16__)
inline __m256i round_to(__m512 f, bf16) { return (__m256i)_mm512_cvtneps_pbh(f); }
#else
inline __m256i round_to(__m512 f, bf16) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded(f), 16)); }
#endif
inline __m512 extend(__m256i h, f16) { return _mm512_cvtph_ps(h); }
inline __m512 extend(__m256i h, bf16) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)); }
template <class S> void widen_all(const S* x, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    _mm512_storeu_ps(out + i, extend(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i)), S{}));
  if (i == n) return;
  const __mmask16 some = lanes_left(n - i);
  _mm512_mask_storeu_ps(out + i, some, extend(_mm256_maskz_loadu_epi16(some, x + i), S{}));
}
inline void widen(const f16* x, float* out, int64_t n) { widen_all(x, out, n); }
inline void widen(const bf16* x, float* out, int64_t n) { widen_all(x, out, n); }
#elif defined(__F16C__)
inline void widen(const f16* x, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i))));
  for (; i < n; ++i) out[i] = widen(x[i]);
}
inline void narrow(const float* x, f16* out, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), 0));
  for (; i < n; ++i) out[i] = narrow(x[i], f16{});
}
#elif defined(__aarch64__)
inline void widen(const f16* x, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&x[i].bits))));
  for (; i < n; ++i) out[i] = widen(x[i]);
}
inline void narrow(const float* x, f16* out, int64_t n) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) vst1_u16(&out[i].bits, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x + i))));
  for (; i < n; ++i) out[i] = narrow(x[i], f16{});
}
#endif

}  // namespace
