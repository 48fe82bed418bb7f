// All instructions that are called by name, and all tests for an instruction set. The other headers are plain C++:
// loops that the compiler vectorizes, and calls of the functions here.
//
// Where there is AVX2 or AVX-512 (HAS_PACKS), a Pack is eight or sixteen floats in one register, read from and written
// to memory in any type that is stored. Code for it is inside `if constexpr (HAS_PACKS ...)`, which other instruction
// sets discard. IS_WIDE: whether a Pack is sixteen floats, and has masks.
#pragma once
#include "vector/number.h"

#if defined(__SSE2__)
// g++ 12 takes the placeholders of its own header for uninitialized values.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

// A length that is known to the compiler.
using Three = std::integral_constant<int64_t, 3>;
// One bit for each lane of a Pack, and the first n of them.
using PackMask = uint16_t;
inline PackMask first_lanes(int64_t n) { return PackMask((1u << n) - 1); }

}  // namespace

#if defined(__AVX512F__)
#define NORMKIT_PACKS
#include "vector/packs_avx512.h"
#elif defined(__AVX2__) && defined(__F16C__)
#define NORMKIT_PACKS
#include "vector/packs_avx2.h"
#else
namespace {

constexpr bool HAS_PACKS = false, IS_WIDE = false;
constexpr int PACK = 16;
using Pack = float __attribute__((vector_size(64)));

}  // namespace
#endif

namespace {

#if !defined(__AVX512F__)
inline uint64_t nonzero_64(const uint8_t* bytes) {
  uint64_t is = 0;
  for (int k = 0; k < 64; ++k) is |= uint64_t(bytes[k] != 0) << k;
  return is;
}
inline PackMask nonzero_16(const uint8_t* bytes, PackMask some) {
  uint32_t is = 0;
  for (int k = 0; k < 16; ++k) is |= (some >> k & 1u) && bytes[k] ? 1u << k : 0u;
  return PackMask(is);
}
#endif

// Half precision to floats and back, without packs: an instruction does HALVES<S> of them at a time; 0 where none does.
template <class S> constexpr int HALVES = 0;
#if defined(__aarch64__)
template <> constexpr int HALVES<f16> = 4;
inline void widen_step(const f16* x, float* out) {
  vst1q_f32(out, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&x->bits))));
}
inline void round_step(float* x, f16) { vst1q_f32(x, vcvt_f32_f16(vcvt_f16_f32(vld1q_f32(x)))); }
inline void narrow_step(const float* x, f16* out) {
  vst1_u16(&out->bits, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x))));
}
#endif

// Whether none of n bytes is 0.
inline bool are_nonzero(const uint8_t* bytes, int64_t n) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 256 <= n; i += 256) {
    const auto part = [=](int k) { return _mm512_loadu_si512(bytes + i + 64 * k); };
    const __m512i b = _mm512_min_epu8(_mm512_min_epu8(part(0), part(1)), _mm512_min_epu8(part(2), part(3)));
    if (_mm512_test_epi8_mask(b, b) != ~__mmask64(0)) return false;
  }
  for (; i < n; i += 64) {
    const __mmask64 some = n - i < 64 ? (__mmask64(1) << (n - i)) - 1 : ~__mmask64(0);
    const __m512i b = _mm512_maskz_loadu_epi8(some, bytes + i);
    if (_mm512_test_epi8_mask(b, b) != some) return false;
  }
  return true;
#else
#if defined(__AVX2__)
  const auto part = [=](int64_t k) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + k)); };
  const auto has_zero = [](__m256i b) { return _mm256_movemask_epi8(_mm256_cmpeq_epi8(b, _mm256_setzero_si256())) != 0; };
  for (; i + 128 <= n; i += 128) {
    const __m256i a = _mm256_min_epu8(part(i), part(i + 32)), b = _mm256_min_epu8(part(i + 64), part(i + 96));
    if (has_zero(_mm256_min_epu8(a, b))) return false;
  }
  for (; i + 32 <= n; i += 32)
    if (has_zero(part(i))) return false;
#endif
  constexpr uint64_t low = 0x7F7F7F7F7F7F7F7Full;
  for (; i + 8 <= n; i += 8) {  // the highest bit of each byte says whether it is 0
    uint64_t w;
    std::memcpy(&w, bytes + i, 8);
    if (~((((w & low) + low) | w) | low)) return false;
  }
  for (; i < n; ++i)
    if (!bytes[i]) return false;
  return true;
#endif
}

// 64 bytes written past the cache, `to` at a multiple of 64; and the fence after which other threads see them.
#if defined(__SSE2__)
inline void fence() { _mm_sfence(); }
inline void stream_line(const char* from, char* to) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
#elif defined(__AVX__)
  for (int i = 0; i < 64; i += 32)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i),
                        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
#else
  for (int i = 0; i < 64; i += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
#endif
}
// The same, or zeros, without a branch.
inline void stream_line(const char* from, char* to, bool keep) {
#if defined(__AVX512F__)
  const __mmask8 lanes = __mmask8(-int(keep));
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_maskz_loadu_epi64(lanes, from));
#else
  const __m128i bits = _mm_set1_epi32(-int(keep));
  for (int i = 0; i < 64; i += 16) {
    const __m128i part = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_and_si128(part, bits));
  }
#endif
}
#else
inline void fence() {}
inline void stream_line(const char* from, char* to) { std::memcpy(to, from, 64); }
inline void stream_line(const char* from, char* to, bool keep) {
  if (keep) std::memcpy(to, from, 64);
  else std::memset(to, 0, 64);
}
#endif

}  // namespace
