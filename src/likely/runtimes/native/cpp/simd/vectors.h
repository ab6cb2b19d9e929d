// Sixteen numbers at a time, by the compiler's vector extensions: one source for every instruction set.
// What has no portable form (integer dot products, half precision) is chosen here, at compile time.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
// LIKELY_PLAIN: the slow obvious version, for tests; no instruction is chosen by hand.
#if !defined(LIKELY_PLAIN) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && \
    defined(__AVX512DQ__)
#define LIKELY_AVX512 1
#else
#define LIKELY_AVX512 0
#endif
#ifndef LIKELY_VNNI
#if LIKELY_AVX512 && defined(__AVX512VNNI__)
#define LIKELY_VNNI 1
#else
#define LIKELY_VNNI 0
#endif
#endif
#if LIKELY_AVX512 && defined(__AVX512BF16__)
#define LIKELY_BF16 1
#else
#define LIKELY_BF16 0
#endif
#if LIKELY_VNNI && defined(__AMX_INT8__) && defined(__AMX_TILE__) && defined(__linux__)
#define LIKELY_AMX 1
#else
#define LIKELY_AMX 0
#endif
#if LIKELY_AMX && defined(__AMX_BF16__)
#define LIKELY_AMX_BF16 1
#else
#define LIKELY_AMX_BF16 0
#endif
#if !defined(LIKELY_PLAIN) && defined(__AVX2__)
#define LIKELY_AVX2 1
#else
#define LIKELY_AVX2 0
#endif
#if LIKELY_AVX2 && !LIKELY_AVX512 && !LIKELY_VNNI && defined(__AVXVNNI__)  // the same instruction on 32 bytes
#define LIKELY_AVX_VNNI 1
#else
#define LIKELY_AVX_VNNI 0
#endif
#define LIKELY_DOTS (LIKELY_VNNI || LIKELY_AVX_VNNI)

typedef float f32x16 __attribute__((vector_size(64)));
typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));

constexpr int MOST_ROWS = LIKELY_AVX512 ? 6 : LIKELY_AVX2 ? 2 : 1;  // rows whose sums stay in registers together

#define INLINE static inline __attribute__((always_inline))

template <class V, class T>
INLINE V load_as(const T* from) {
  V v;
  memcpy(&v, from, sizeof(V));
  return v;
}
INLINE f32x16 load16(const float* from) { return load_as<f32x16>(from); }
INLINE void store16(float* to, f32x16 v) { memcpy(to, &v, 64); }
INLINE f32x16 all16(float x) { return f32x16{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
INLINE i32x16 all16i(int32_t x) { return i32x16{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
#if LIKELY_AVX2 && !LIKELY_AVX512  // the compiler would compare vectors wider than a register number by number
template <class Work>
INLINE f32x16 by_halves(f32x16 a, f32x16 b, const Work& work) {
  f32x8 x[2], y[2];
  memcpy(x, &a, 64);
  memcpy(y, &b, 64);
  for (int i = 0; i < 2; i++) x[i] = (f32x8)work((__m256)x[i], (__m256)y[i]);
  memcpy(&a, x, 64);
  return a;
}
INLINE f32x16 max16(f32x16 a, f32x16 b) {
  return by_halves(a, b, [](__m256 x, __m256 y) { return _mm256_max_ps(x, y); });
}
INLINE f32x16 min16(f32x16 a, f32x16 b) {
  return by_halves(a, b, [](__m256 x, __m256 y) { return _mm256_min_ps(x, y); });
}
INLINE f32x16 zero_where_less(f32x16 v, f32x16 x, float least) {  // 0 where x < least, else v
  return by_halves(v, x, [least](__m256 v, __m256 x) {
    return _mm256_andnot_ps(_mm256_cmp_ps(x, _mm256_set1_ps(least), _CMP_LT_OQ), v);
  });
}
#else
INLINE f32x16 max16(f32x16 a, f32x16 b) { return a > b ? a : b; }
INLINE f32x16 min16(f32x16 a, f32x16 b) { return a < b ? a : b; }
INLINE f32x16 zero_where_less(f32x16 v, f32x16 x, float least) { return x < all16(least) ? all16(0.0f) : v; }
#endif
INLINE f32x16 to_float(i32x16 v) { return __builtin_convertvector(v, f32x16); }

// a b + c, rounded once where the processor can.  The compiler fuses nothing by itself (-ffp-contract=off): whether it
// does depends on its tuning and on what else a loop does, so that a row alone would differ from a row among others.
INLINE f32x16 fma16(f32x16 a, f32x16 b, f32x16 c) {
#if LIKELY_AVX512
  return (f32x16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif LIKELY_AVX2 && defined(__FMA__)
  f32x8 x[2], y[2], z[2];
  memcpy(x, &a, 64);
  memcpy(y, &b, 64);
  memcpy(z, &c, 64);
  for (int i = 0; i < 2; i++) z[i] = (f32x8)_mm256_fmadd_ps((__m256)x[i], (__m256)y[i], (__m256)z[i]);
  memcpy(&c, z, 64);
  return c;
#else
  return a * b + c;
#endif
}
INLINE f32x16 fma16(f32x16 a, float b, f32x16 c) { return fma16(a, all16(b), c); }

INLINE float sum_of(f32x16 v) {  // always as the same tree
#if LIKELY_AVX512
  return _mm512_reduce_add_ps((__m512)v);
#else
  float a[16];
  memcpy(a, &v, 64);
  for (int w = 8; w; w /= 2)
    for (int i = 0; i < w; i++) a[i] += a[i + w];
  return a[0];
#endif
}
INLINE float max_of(f32x16 v) {
#if LIKELY_AVX512
  return _mm512_reduce_max_ps((__m512)v);
#else
  float a[16];
  memcpy(a, &v, 64);
  for (int w = 8; w; w /= 2)
    for (int i = 0; i < w; i++) a[i] = a[i] > a[i + w] ? a[i] : a[i + w];
  return a[0];
#endif
}
INLINE int32_t sum_of(i32x16 v) {
#if LIKELY_AVX512
  return _mm512_reduce_add_epi32((__m512i)v);
#else
  int32_t s = 0;
  for (int i = 0; i < 16; i++) s += v[i];
  return s;
#endif
}
INLINE f32x16 abs16(f32x16 v) { return (f32x16)((u32x16)v & 0x7fffffffu); }

// nearest integer, ties to even, for |x| < 2^22
INLINE f32x16 round16(f32x16 x) {
#if LIKELY_AVX512
  return (f32x16)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif LIKELY_AVX2  // not by adding a large number: fused with a product before it, ties would fall another way
  f32x8 half[2];
  memcpy(half, &x, sizeof half);
  for (f32x8& h : half) h = (f32x8)_mm256_round_ps((__m256)h, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  memcpy(&x, half, sizeof half);
  return x;
#else
  volatile float magic_ = 12582912.0f;  // volatile: the compiler may not cancel it
  float magic = magic_;
  return (x + magic) - magic;
#endif
}

// e^x, relative error below 2e-7; 0 (or a number below 1e-37) from about -87 downwards, infinite or 2^127 beyond 88
INLINE f32x16 exp16(f32x16 x) {
  x = max16(all16(-110.0f), x);  // NaN stays NaN
#if !LIKELY_AVX512
  x = min16(all16(88.3f), x);  // NaN stays NaN
#endif
  f32x16 n = round16(x * 1.44269504088896341f);
  f32x16 r = fma16(n, 2.12194440e-4f, fma16(n, -0.693359375f, x));
  f32x16 p = all16(1.9875691500e-4f);
  p = fma16(p, r, all16(1.3981999507e-3f));
  p = fma16(p, r, all16(8.3334519073e-3f));
  p = fma16(p, r, all16(4.1665795894e-2f));
  p = fma16(p, r, all16(1.6666665459e-1f));
  p = fma16(p, r, all16(5.0000001201e-1f));
  p = fma16(p * r, r, r) + 1.0f;
#if LIKELY_AVX512
  return (f32x16)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  i32x16 power = (__builtin_convertvector(n, i32x16) + 127) << 23;
  return zero_where_less(p * (f32x16)power, n, -126.0f);
#endif
}
#if LIKELY_AVX512
// The same with a relative error below 1e-5 (a hundredth of a step of bf16), for x <= 0; 0 from -110 downwards.
INLINE f32x16 exp16_to_bf16(f32x16 x) {
  x = max16(all16(-110.0f), x);
  const f32x16 t = x * 1.44269504088896341f, n = round16(t), r = t - n;  // 2^r, |r| <= 1/2
  f32x16 p = all16(9.570101276e-3f);
  p = fma16(p, r, all16(5.591785908e-2f));
  p = fma16(p, r, all16(0.2402474433f));
  p = fma16(p, r, all16(0.6931217909f));
  p = fma16(p, r, all16(0.9999992847f));
  return (f32x16)_mm512_scalef_ps((__m512)p, (__m512)n);
}
#endif
INLINE f32x16 silu16(f32x16 x) { return x / (1.0f + exp16(-x)); }
INLINE f32x16 tanh16(f32x16 x) { return 1.0f - 2.0f / (exp16(2.0f * x) + 1.0f); }
INLINE f32x16 gelu16(f32x16 x) {  // the tanh form
  f32x16 u = 0.7978845608028654f * fma16(0.044715f * x * x, x, x);
  return x - x / (exp16(2.0f * u) + 1.0f);  // 0.5 x (1 + tanh u)
}

// In place: 64 numbers times the Hadamard matrix of order 64 (entries 1 and -1, Sylvester's order), its own inverse
// but for a factor of 64.
template <int H>
INLINE f32x16 butterfly16(f32x16 v, f32x16 swapped) {
  f32x16 sign;
  for (int i = 0; i < 16; i++) sign[i] = i & H ? -1.0f : 1.0f;
  return v * sign + swapped;  // exact but for the addition
}
INLINE void hadamard64(f32x16 (&v)[4]) {
  for (int i = 0; i < 4; i++) {
    f32x16 x = v[i];
    x = butterfly16<1>(x, __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
    x = butterfly16<2>(x, __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
    x = butterfly16<4>(x, __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
    x = butterfly16<8>(x, __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    v[i] = x;
  }
  const f32x16 a = v[0] + v[1], b = v[0] - v[1], c = v[2] + v[3], d = v[2] - v[3];
  v[0] = a + c;
  v[1] = b + d;
  v[2] = a - c;
  v[3] = b - d;
}
inline void rotate_group(float* x) {
  f32x16 v[4];
  for (int i = 0; i < 4; i++) v[i] = load16(x + 16 * i);
  hadamard64(v);
  for (int i = 0; i < 4; i++) store16(x + 16 * i, v[i]);
}

// bf16 <-> fp32
INLINE f32x16 from_bf16(const uint16_t* from) {
  u32x16 wide = __builtin_convertvector(load_as<u16x16>(from), u32x16);
  return (f32x16)(wide << 16);
}
INLINE uint16_t to_bf16(float x) {  // nearest, ties to even; NaN stays NaN
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40);
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
INLINE void to_bf16(uint16_t* to, f32x16 v) {
#if LIKELY_BF16
  const __m256bh out = _mm512_cvtneps_pbh((__m512)v);
  memcpy(to, &out, 32);
#else
  u32x16 bits = (u32x16)v;
  u32x16 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  u16x16 out = __builtin_convertvector(rounded, u16x16);
  memcpy(to, &out, 32);
#endif
}

// sum[n] += weights[n][0] two[0] + weights[n][1] two[1], all in bf16 but the sum
INLINE f32x16 dot2(f32x16 sum, const uint16_t* weights, const uint16_t* two) {
  uint32_t pair;
  memcpy(&pair, two, 4);
#if LIKELY_BF16
  return (f32x16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(weights),
                                  (__m512bh)_mm512_set1_epi32((int)pair));
#else
  u32x16 w = load_as<u32x16>(weights);
  uint32_t low = pair << 16, high = pair & 0xffff0000u;
  float first, second;
  memcpy(&first, &low, 4);
  memcpy(&second, &high, 4);
  return fma16((f32x16)(w & 0xffff0000u), second, fma16((f32x16)(w << 16), first, sum));
#endif
}

// sum[n] += the sum over k < 4 of w four[k], where w = weights[n][k] - 128 with SIGNED_WEIGHTS, else weights[n][k]
INLINE i32x16 dot4(i32x16 sum, const uint8_t* weights, const int8_t* four) {
#if LIKELY_VNNI
  int32_t quad;
  memcpy(&quad, four, 4);
  return (i32x16)_mm512_dpbusd_epi32((__m512i)sum, _mm512_loadu_si512(weights), _mm512_set1_epi32(quad));
#elif LIKELY_AVX_VNNI
  __m256i half[2];
  memcpy(half, &sum, 64);
  for (int i = 0; i < 2; i++)
    half[i] = _mm256_dpbusd_avx_epi32(half[i], _mm256_loadu_si256((const __m256i*)weights + i),
                                      _mm256_set1_epi32(load_as<int32_t>(four)));
  memcpy(&sum, half, 64);
  return sum;
#elif LIKELY_AVX2
  int32_t quad;
  memcpy(&quad, four, 4);
  const __m256i a = _mm256_set1_epi32(quad), size = _mm256_abs_epi8(a), one = _mm256_set1_epi16(1);
  __m256i half[2];
  memcpy(half, &sum, 64);
  for (int i = 0; i < 2; i++) {  // |a| x (weight with the sign of a): no pair of products leaves 16 bits
    __m256i w = _mm256_loadu_si256((const __m256i*)weights + i);
    w = _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80));
    __m256i pair = _mm256_maddubs_epi16(size, _mm256_sign_epi8(w, a));
    half[i] = _mm256_add_epi32(half[i], _mm256_madd_epi16(pair, one));
  }
  memcpy(&sum, half, 64);
  return sum;
#else
  for (int n = 0; n < 16; n++)
    for (int k = 0; k < 4; k++) sum[n] += (int32_t)weights[4 * n + k] * four[k];
  return sum;
#endif
}
constexpr bool SIGNED_WEIGHTS = LIKELY_AVX2 && !LIKELY_DOTS;  // dot4 has taken the 128 out again

// work(n as a constant), for n from 1 to MOST
template <int MOST, int N = 1, class Work>
INLINE void as_constant(int n, const Work& work) {
  if constexpr (N < MOST)
    if (n > N) return as_constant<MOST, N + 1>(n, work);
  work(std::integral_constant<int, N>{});
}

// Lines of memory on their way to the first cache, to be read or to be written.
template <bool to_write = false>
INLINE void fetch_lines(const void* from, size_t bytes) {
  for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch((const uint8_t*)from + line, to_write);
}

INLINE float half_at(const uint8_t* from) {  // half precision to fp32, exactly
  uint16_t h;
  memcpy(&h, from, 2);
  const uint32_t exponent = h >> 10 & 31, sign = (uint32_t)(h >> 15) << 31;
  uint32_t bits = sign | (exponent + 112) << 23 | (uint32_t)(h & 1023) << 13;
  if (exponent == 31) bits |= 0x7f800000u;
  float value;
  memcpy(&value, &bits, 4);
  if (exponent == 0) value = (float)(h & 1023) * (sign ? -0x1p-24f : 0x1p-24f);
  return value;
}

// A number >= 0 to half precision, upwards; infinite beyond 65504.
inline uint16_t to_half(float x) {
  int exponent;
  if (!(x > 0)) return 0;
  std::frexp(x, &exponent);  // x < 2^exponent
  const int step = std::max(exponent - 11, -24);
  const double units = std::ceil(std::ldexp((double)x, -step));  // at most 2^11
  if (step == -24) return (uint16_t)units;  // 1024 of them are the first normal number
  const int bits = ((step + 24) << 10) + (int)units;
  return (uint16_t)std::min(bits, 0x7c00);
}
