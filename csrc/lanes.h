// Storage types to arithmetic and back, and sums over lanes. Everything here has internal linkage: it is
// compiled once for each instruction set, and the linker must not mix them.
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
inline __m256i round_to(__m512 f, bf16) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded(f), 16)); }
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
template <class S> void narrow_all(const float* x, S* out, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), round_to(_mm512_loadu_ps(x + i), S{}));
  if (i == n) return;
  const __mmask16 some = lanes_left(n - i);
  _mm256_mask_storeu_epi16(out + i, some, round_to(_mm512_maskz_loadu_ps(some, x + i), S{}));
}
inline void widen(const f16* x, float* out, int64_t n) { widen_all(x, out, n); }
inline void widen(const bf16* x, float* out, int64_t n) { widen_all(x, out, n); }
inline void narrow(const float* x, f16* out, int64_t n) { narrow_all(x, out, n); }
inline void narrow(const float* x, bf16* out, int64_t n) {
  // Two vectors at a time, their upper halves picked by one permutation.
  alignas(64) static const uint16_t upper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                 33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  const __m512i pick = _mm512_load_si512(upper);
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m512i a = rounded(_mm512_loadu_ps(x + i)), b = rounded(_mm512_loadu_ps(x + i + 16));
    _mm512_storeu_si512(out + i, _mm512_permutex2var_epi16(a, pick, b));
  }
  narrow_all(x + i, out + i, n - i);
}
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

// At most BLOCK elements for arithmetic: the memory itself where the type is already right, else a copy in `buffer`.
inline const float* load(const float* x, float*, int64_t) { return x; }
inline const double* load(const double* x, double*, int64_t) { return x; }
template <class S> const float* load(const S* x, float* buffer, int64_t n) {
  widen(x, buffer, n);
  return buffer;
}
// Results of so many bytes are written past the cache: nothing of them would be left there when they are read, and an
// ordinary store first fetches the line that it is going to overwrite.
constexpr int64_t PAST_CACHE = 24 << 20;

#if defined(__SSE2__)
inline void fence() { _mm_sfence(); }
inline void stream_line(const char* from, char* to) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
#elif defined(__AVX__)
  for (int i = 0; i < 64; i += 32)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
#else
  for (int i = 0; i < 64; i += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
#endif
}
#else
inline void fence() {}
inline void stream_line(const char* from, char* to) { std::memcpy(to, from, 64); }
#endif
inline void stream(const void* from_here, void* to_there, int64_t bytes) {
  const char* from = static_cast<const char*>(from_here);
  char* to = static_cast<char*>(to_there);
  int64_t head = int64_t(-reinterpret_cast<uintptr_t>(to) & 63);
  if (head > bytes) head = bytes;
  std::memcpy(to, from, size_t(head));
  int64_t i = head;
  for (; i + 64 <= bytes; i += 64) stream_line(from + i, to + i);
  std::memcpy(to + i, from + i, size_t(bytes - i));
}

// Asks for n elements some way ahead of the walk: the hardware looks ahead less far than memory is away, and not beyond a
// page. At most BURST at a time, between them work; a longer burst is worse than none.
constexpr int64_t AHEAD = 2 * BLOCK;
constexpr int64_t BURST = 512;
constexpr int64_t FAR = 4 << 20;
template <class S> void prefetch(const S* x, int64_t n) {
  const char* p = reinterpret_cast<const char*>(x);
  for (int64_t i = 0; i < n * int64_t(sizeof(S)); i += 64) __builtin_prefetch(p + i, 0, 2);
}
template <class S> bool is_far(int64_t elements) { return elements * int64_t(sizeof(S)) >= FAR; }

// Takes at most BLOCK results at a time to memory: `open` gives the place to put them, `close` brings them where they
// belong. One for each task, because it ends with a fence.
template <class S> class Writer {
  using A = arithmetic<S>;
  static constexpr bool SAME = std::is_same<S, A>::value;
  const bool past_;
  S* y_ = nullptr;
  A buffer_[BLOCK];

 public:
  explicit Writer(int64_t elements) : past_(elements * int64_t(sizeof(S)) >= PAST_CACHE) {}
  ~Writer() { if (past_) fence(); }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  A* open(S* y) {
    y_ = y;
    if constexpr (SAME) return past_ ? buffer_ : y;
    else return buffer_;
  }
  void close(int64_t n) {
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
};

// Two sums over n elements, `term(i, a, b)` giving what element i adds to each. Many independent sums keep the adders
// busy and the error small. How an element is summed depends on its place and on n alone.
template <class A> struct Two { double a, b; };

template <int N, class A> inline double total(const A* lanes) {
  A t = 0;
#pragma omp simd reduction(+ : t)
  for (int j = 0; j < N; ++j) t += lanes[j];
  return double(t);
}
// Two running sums, for when the elements come in several pieces.
template <class A> struct Lanes {
  A a[LANES] = {}, b[LANES] = {};
  int64_t held = 0;
  double ta = 0, tb = 0;

  template <class Term> void add(int64_t n, Term&& term) {
    A la[LANES], lb[LANES];  // local, so that they can live in registers
    for (int j = 0; j < LANES; ++j) la[j] = a[j], lb[j] = b[j];
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
#pragma omp simd
      for (int j = 0; j < LANES; ++j) {
        A u, v;
        term(i + j, u, v);
        la[j] += u;
        lb[j] += v;
      }
    }
    for (int j = 0; j < LANES; ++j) a[j] = la[j], b[j] = lb[j];
#pragma omp simd
    for (int j = 0; j < int(n - i); ++j) {
      A u, v;
      term(i + j, u, v);
      a[j] += u;
      b[j] += v;
    }
    held += n;
  }
  // Called where it does not depend on how a block was cut: that must not show in the bits.
  void block_done() {
    if (held > 2 * BLOCK) flush();
  }
  void flush() {
    ta += total<LANES>(a);
    tb += total<LANES>(b);
    for (int j = 0; j < LANES; ++j) a[j] = b[j] = 0;
    held = 0;
  }
};
template <int N, class A, class Term> inline Two<A> sum_two_in(int64_t n, Term&& term) {
  A sa[N] = {}, sb[N] = {};
  int64_t i = 0;
  for (; i + N <= n; i += N) {
#pragma omp simd
    for (int j = 0; j < N; ++j) {
      A a, b;
      term(i + j, a, b);
      sa[j] += a;
      sb[j] += b;
    }
  }
#pragma omp simd
  for (int j = 0; j < int(n - i); ++j) {
    A a, b;
    term(i + j, a, b);
    sa[j] += a;
    sb[j] += b;
  }
  return {total<N>(sa), total<N>(sb)};
}
template <class A, class Term> inline Two<A> sum_two(int64_t n, Term&& term) {
  return n < 2 * LANES ? sum_two_in<LANES / 4, A>(n, term) : sum_two_in<LANES, A>(n, term);
}
template <int N, class A> inline double sum_one_in(const A* x, int64_t n) {
  A s[N] = {};
  int64_t i = 0;
  for (; i + N <= n; i += N) {
#pragma omp simd
    for (int j = 0; j < N; ++j) s[j] += x[i + j];
  }
#pragma omp simd
  for (int j = 0; j < int(n - i); ++j) s[j] += x[i + j];
  return total<N>(s);
}
template <class A> inline double sum_one(const A* x, int64_t n) {
  return n < 2 * LANES ? sum_one_in<LANES / 4>(x, n) : sum_one_in<LANES>(x, n);
}

}  // namespace
