// Packs with AVX-512: sixteen numbers, and masks for the lanes of a part. Included by simd.h alone.
#pragma once

namespace {

constexpr bool HAS_PACKS = true, IS_WIDE = true;
constexpr int PACK = 16;
using Pack = float __attribute__((vector_size(64)));

inline Pack pack_of(float value) { return Pack(_mm512_set1_ps(value)); }
// 0 in place of what is below; NaN stays NaN.
inline Pack positive(Pack v) { return Pack(_mm512_max_ps(_mm512_setzero_ps(), __m512(v))); }

inline Pack clamp(Pack v, float low, float high) {
  return Pack(_mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), __m512(v))));
}
// Only for what has an inverse that is not subnormal: an estimate of 14 bits, and one step of Newton's method.
inline Pack inverse(Pack v) {
  const Pack r = Pack(_mm512_rcp14_ps(__m512(v)));
  return r * (2.0f - v * r);
}
inline Pack quotient(Pack a, Pack b) { return a * inverse(b); }
inline Pack nearest_whole(Pack v) { return Pack(_mm512_roundscale_ps(__m512(v), 0)); }
// v * 2^n
inline Pack scaled_by_power(Pack v, Pack n) { return Pack(_mm512_scalef_ps(__m512(v), __m512(n))); }

// Sixteen numbers of half precision, as they are stored, to floats and back.
inline __m512 widen_halves(__m256i h, f16) { return _mm512_cvtph_ps(h); }
inline __m512 widen_halves(__m256i h, bf16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
inline __m256i narrow_pack(Pack v, f16) { return _mm512_cvtps_ph(__m512(v), 0); }
#if defined(__AVX512BF16__)
inline __m256i narrow_pack(Pack v, bf16) { return (__m256i)_mm512_cvtneps_pbh(__m512(v)); }
#else
inline __m256i narrow_pack(Pack v, bf16) {
  // The upper half of each lane is the rounded value, ties to even; the lower half is dropped.
  const __m512 f = __m512(v);
  const __m512i u = _mm512_castps_si512(f);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(f, f, _CMP_UNORD_Q);
  const __m512i rounded = _mm512_mask_or_epi32(up, nan, u, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
#endif

template <class S> inline Pack stored(Pack v) { return Pack(widen_halves(narrow_pack(v, S{}), S{})); }

// Sixteen elements at p; with `some`, only those lanes are read and the others are `fill`.
inline Pack load_pack(const float* p) { return Pack(_mm512_loadu_ps(p)); }
inline Pack load_pack(const float* p, PackMask some, float fill) {
  return Pack(_mm512_mask_loadu_ps(_mm512_set1_ps(fill), some, p));
}
template <class S> inline Pack load_pack(const S* p) {
  return Pack(widen_halves(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), S{}));
}
template <class S> inline Pack load_pack(const S* p, PackMask some, float fill) {
  return Pack(_mm512_mask_mov_ps(_mm512_set1_ps(fill), some, widen_halves(_mm256_maskz_loadu_epi16(some, p), S{})));
}
// Sixteen elements to q; with `some`, only those lanes are written.
inline void store_pack(float* q, Pack v) { _mm512_storeu_ps(q, __m512(v)); }
inline void store_pack(float* q, PackMask some, Pack v) { _mm512_mask_storeu_ps(q, some, __m512(v)); }
template <class S> inline void store_pack(S* q, Pack v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), narrow_pack(v, S{}));
}
template <class S> inline void store_pack(S* q, PackMask some, Pack v) {
  _mm256_mask_storeu_epi16(q, some, narrow_pack(v, S{}));
}

// out[k] = the sum of the lanes of in[k], sixteen of them. Each step adds two vectors into one of half the lanes of
// both.
inline void lane_sums(const Pack* in, float* out) {
  __m512 r[PACK];
  for (int k = 0; k < PACK; ++k) r[k] = __m512(in[k]);
  for (int k = 0; k < 8; ++k)
    r[k] = _mm512_add_ps(_mm512_shuffle_f32x4(r[k], r[k + 8], 0x44), _mm512_shuffle_f32x4(r[k], r[k + 8], 0xee));
  for (int k = 0; k < 4; ++k)
    r[k] = _mm512_add_ps(_mm512_shuffle_f32x4(r[k], r[k + 4], 0x88), _mm512_shuffle_f32x4(r[k], r[k + 4], 0xdd));
  for (int k = 0; k < 4; k += 2)
    r[k] = _mm512_add_ps(_mm512_unpacklo_ps(r[k], r[k + 1]), _mm512_unpackhi_ps(r[k], r[k + 1]));
  r[0] = _mm512_add_ps(_mm512_shuffle_ps(r[0], r[2], 0x44), _mm512_shuffle_ps(r[0], r[2], 0xee));
  _mm512_storeu_ps(out, _mm512_shuffle_f32x4(r[0], r[0], 0xd8));
}

// Sixteen rows of n elements to n packs, and back: lane k is row k.
inline __m512i lane_numbers() { return _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0); }
inline void transpose_in(const float* in, int64_t n, float (*out)[PACK]) {
  const __m512i row = _mm512_mullo_epi32(lane_numbers(), _mm512_set1_epi32(int(n)));
  for (int64_t j = 0; j < n; ++j) _mm512_storeu_ps(out[j], _mm512_i32gather_ps(row, in + j, 4));
}
inline void transpose_out(const float (*in)[PACK], int64_t n, float* out) {
  const __m512i row = _mm512_mullo_epi32(lane_numbers(), _mm512_set1_epi32(int(n)));
  for (int64_t j = 0; j < n; ++j) _mm512_i32scatter_ps(out + j, row, _mm512_loadu_ps(in[j]), 4);
}
// The same for rows of three, without a gather: from the first two packs together, and from the third.
inline void transpose_in(const float* in, Three, float (*out)[PACK]) {
  const __m512 a = _mm512_loadu_ps(in), b = _mm512_loadu_ps(in + PACK), c = _mm512_loadu_ps(in + 2 * PACK);
  const __m512i first = _mm512_mullo_epi32(lane_numbers(), _mm512_set1_epi32(3));
  for (int j = 0; j < 3; ++j) {
    const __m512i from = _mm512_add_epi32(first, _mm512_set1_epi32(j));
    const __mmask16 last = _mm512_cmpge_epi32_mask(from, _mm512_set1_epi32(2 * PACK));
    const __m512 both = _mm512_permutex2var_ps(a, from, b);
    _mm512_storeu_ps(out[j], _mm512_mask_permutexvar_ps(both, last, from, c));
  }
}
inline void transpose_out(const float (*in)[PACK], Three, float* out) {
  const __m512 a = _mm512_loadu_ps(in[0]), b = _mm512_loadu_ps(in[1]), c = _mm512_loadu_ps(in[2]);
  for (int v = 0; v < 3; ++v) {
    const __m512i place = _mm512_add_epi32(lane_numbers(), _mm512_set1_epi32(v * PACK));
    const __m512i row = _mm512_srli_epi32(_mm512_mullo_epi32(place, _mm512_set1_epi32(171)), 9);  // place / 3
    const __m512i j = _mm512_sub_epi32(place, _mm512_mullo_epi32(row, _mm512_set1_epi32(3)));
    const __m512i of_two = _mm512_or_epi32(row, _mm512_slli_epi32(j, 4));  // j = 1 asks for b
    const __mmask16 last = _mm512_cmpeq_epi32_mask(j, _mm512_set1_epi32(2));
    const __m512 both = _mm512_permutex2var_ps(a, of_two, b);
    _mm512_storeu_ps(out + v * PACK, _mm512_mask_permutexvar_ps(both, last, row, c));
  }
}

// Which of 64 bytes are not 0; the same of `some` bytes out of sixteen.
inline uint64_t nonzero_64(const uint8_t* bytes) {
  const __m512i b = _mm512_loadu_si512(bytes);
  return _mm512_test_epi8_mask(b, b);
}
inline PackMask nonzero_16(const uint8_t* bytes, PackMask some) {
  const __m128i b = _mm_maskz_loadu_epi8(some, bytes);
  return _mm_test_epi8_mask(b, b);
}
// to = from in the lanes of `keep`, v in the others; `from` may be `to`, and kept elements are copied bit by bit.
inline void blend(uint64_t keep, const float* from, float* to, Pack v) {
  if (from == to) _mm512_mask_storeu_ps(to, __mmask16(~keep), __m512(v));
  else _mm512_storeu_ps(to, _mm512_mask_loadu_ps(__m512(v), __mmask16(keep), from));
}
// The same for 32 elements of half precision, which are replaced by others of their kind.
template <class S> inline void blend(uint64_t keep, const S* from, S* to, const S* other) {
  const __m512i v = _mm512_loadu_si512(other);
  if (from == to) _mm512_mask_storeu_epi16(to, ~__mmask32(keep), v);
  else _mm512_storeu_si512(to, _mm512_mask_loadu_epi16(v, __mmask32(keep), from));
}
template <class S> inline void blend(uint64_t keep, const S* from, S* to, Pack low, Pack high) {
  const __m256i narrow_low = narrow_pack(low, S{}), narrow_high = narrow_pack(high, S{});
  const __m512i v = _mm512_inserti64x4(_mm512_castsi256_si512(narrow_low), narrow_high, 1);
  if (from == to) _mm512_mask_storeu_epi16(to, ~__mmask32(keep), v);
  else _mm512_storeu_si512(to, _mm512_mask_loadu_epi16(v, __mmask32(keep), from));
}
// The same for `some` elements.
inline void blend_some(PackMask some, PackMask keep, const float* from, float* to, Pack v) {
  _mm512_mask_storeu_ps(to, some, _mm512_mask_loadu_ps(__m512(v), keep, from));
}
template <class S> inline void blend_some(PackMask some, PackMask keep, const S* from, S* to, Pack v) {
  _mm256_mask_storeu_epi16(to, some, _mm256_mask_loadu_epi16(narrow_pack(v, S{}), keep, from));
}

}  // namespace
