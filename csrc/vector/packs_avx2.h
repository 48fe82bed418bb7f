// Packs with AVX2: eight numbers. There are no masks, so the elements of a part are read and written in pieces.
// Included by simd.h alone.
#pragma once

namespace {

constexpr bool HAS_PACKS = true, IS_WIDE = false;
constexpr int PACK = 8;
using Pack = float __attribute__((vector_size(32)));

inline Pack pack_of(float value) { return Pack(_mm256_set1_ps(value)); }
// 0 in place of what is below; NaN stays NaN.
inline Pack positive(Pack v) { return Pack(_mm256_max_ps(_mm256_setzero_ps(), __m256(v))); }
inline Pack clamp(Pack v, float low, float high) {
  return Pack(_mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), __m256(v))));
}
inline Pack nearest_whole(Pack v) { return Pack(_mm256_round_ps(__m256(v), _MM_FROUND_TO_NEAREST_INT)); }
// v * 2^n, for an n whose power is a normal number.
inline Pack scaled_by_power(Pack v, Pack n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(__m256(n)), _mm256_set1_epi32(127));
  return v * Pack(_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

// Eight numbers of half precision, as they are stored, to floats and back.
inline __m256 widen_halves(__m128i h, f16) { return _mm256_cvtph_ps(h); }
inline __m256 widen_halves(__m128i h, bf16) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
inline __m128i narrow_pack(Pack v, f16) { return _mm256_cvtps_ph(__m256(v), 0); }
// The upper half of each lane is the rounded value, ties to even; the lower half is of no use. What is added to NaN may
// carry into its sign, but it stays NaN.
inline __m256i rounded_to_bf16(Pack v) {
  const __m256 f = __m256(v);
  const __m256i u = _mm256_castps_si256(f);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(f, f, _CMP_UNORD_Q));
  return _mm256_or_si256(up, _mm256_and_si256(nan, _mm256_set1_epi32(0x7fc00000)));
}
inline __m128i narrow_pack(Pack v, bf16) {
  const __m128i upper = _mm_set_epi8(-1, -1, -1, -1, -1, -1, -1, -1, 15, 14, 11, 10, 7, 6, 3, 2);
  const __m256i halves = _mm256_shuffle_epi8(rounded_to_bf16(v), _mm256_broadcastsi128_si256(upper));
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 0x08));
}
template <class S> inline Pack stored(Pack v) { return Pack(widen_halves(narrow_pack(v, S{}), S{})); }
template <> inline Pack stored<bf16>(Pack v) {
  return Pack(_mm256_castsi256_ps(_mm256_and_si256(rounded_to_bf16(v), _mm256_set1_epi32(int(0xffff0000u)))));
}

// Of a part, the number of lanes that are there, and a vector with all bits set in them. They are the first ones.
inline int count_of(PackMask some) { return __builtin_popcount(some); }
inline __m256i lanes_of(PackMask some) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count_of(some)), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
}
// n < 8 numbers of two bytes in two words, and back.
inline __m128i read_halves(const void* from, int64_t n) {
  const char* p = static_cast<const char*>(from);
  uint64_t low = 0, high = 0;
  uint16_t one;
  if (n >= 4) {
    std::memcpy(&low, p, 8);
    if (n == 4) return _mm_set_epi64x(0, int64_t(low));
    std::memcpy(&high, p + 2 * (n - 4), 8);  // the last four, of which some are in the first word
    high >>= 16 * (8 - n);
  } else {
    for (int64_t i = n; i-- > 0;) {
      std::memcpy(&one, p + 2 * i, 2);
      low = low << 16 | one;
    }
  }
  return _mm_set_epi64x(int64_t(high), int64_t(low));
}
inline void write_halves(void* to, __m128i v, int64_t n) {
  char* q = static_cast<char*>(to);
  uint64_t word = uint64_t(_mm_cvtsi128_si64(v));
  if (n >= 4) {
    std::memcpy(q, &word, 8);
    word = uint64_t(_mm_extract_epi64(v, 1)), q += 8, n -= 4;
  }
  for (; n > 0; --n, q += 2, word >>= 16) std::memcpy(q, &word, 2);
}

// Eight elements at p; with `some`, only those lanes are read and the others are `fill`.
inline Pack load_pack(const float* p) { return Pack(_mm256_loadu_ps(p)); }
inline Pack load_pack(const float* p, PackMask some, float fill) {
  const __m256i lanes = lanes_of(some);
  return Pack(_mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(p, lanes), _mm256_castsi256_ps(lanes)));
}
template <class S> inline Pack load_pack(const S* p) {
  return Pack(widen_halves(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), S{}));
}
template <class S> inline Pack load_pack(const S* p, PackMask some, float fill) {
  const __m256 v = widen_halves(read_halves(p, count_of(some)), S{});
  return Pack(_mm256_blendv_ps(_mm256_set1_ps(fill), v, _mm256_castsi256_ps(lanes_of(some))));
}
// Eight elements to q; with `some`, only those lanes are written.
inline void store_pack(float* q, Pack v) { _mm256_storeu_ps(q, __m256(v)); }
inline void store_pack(float* q, PackMask some, Pack v) { _mm256_maskstore_ps(q, lanes_of(some), __m256(v)); }
template <class S> inline void store_pack(S* q, Pack v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q), narrow_pack(v, S{}));
}
template <class S> inline void store_pack(S* q, PackMask some, Pack v) {
  write_halves(q, narrow_pack(v, S{}), count_of(some));
}

// out[k] = the sum of the lanes of in[k], sixteen of them, eight at a time.
inline void lane_sums(const Pack* in, float* out) {
  const auto four = [](const Pack* p) {
    return _mm256_hadd_ps(_mm256_hadd_ps(__m256(p[0]), __m256(p[1])), _mm256_hadd_ps(__m256(p[2]), __m256(p[3])));
  };
  for (int k = 0; k < 16; k += 8) {
    const __m256 a = four(in + k), b = four(in + k + 4);  // the sums of the lower and of the upper four lanes
    _mm256_storeu_ps(out + k, _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31)));
  }
}

// to = from where bytes are not 0, other elsewhere, for eight elements of half precision, copied bit by bit.
template <class S> inline void blend(const uint8_t* bytes, const S* from, S* to, __m128i other) {
  const __m128i none = _mm_cmpeq_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)), _mm_setzero_si128());
  const __m128i old = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_blendv_epi8(old, other, _mm_unpacklo_epi8(none, none)));
}
template <class S> inline void blend(const uint8_t* bytes, const S* from, S* to, const S* other) {
  blend(bytes, from, to, _mm_loadu_si128(reinterpret_cast<const __m128i*>(other)));
}
template <class S> inline void blend(const uint8_t* bytes, const S* from, S* to, Pack v) {
  blend(bytes, from, to, narrow_pack(v, S{}));
}

}  // namespace
