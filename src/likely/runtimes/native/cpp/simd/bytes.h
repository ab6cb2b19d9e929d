// What products of codes (products.h) are made of: a step of a tile, 16 outputs x 4 inputs.
//
// Its bytes, whole sums and floats are one register where bytes are multiplied by one instruction (VNNI), two where AVX2
// does it, and plain loops elsewhere.  All give the same bits.
#pragma once
#include "vectors.h"

#if LIKELY_VNNI
struct Bytes { __m512i v; };
struct Ints { __m512i v; };
struct Floats { __m512 v; };
INLINE Bytes load_bytes(const uint8_t* from) { return {_mm512_loadu_si512(from)}; }
INLINE void store_bytes(uint8_t* to, Bytes b) { _mm512_storeu_si512(to, b.v); }
INLINE Bytes both(Bytes a, uint8_t mask) { return {_mm512_and_si512(a.v, _mm512_set1_epi8((char)mask))}; }
INLINE Bytes either(Bytes a, Bytes b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int by>
INLINE Bytes shifted(Bytes a) {  // up if by > 0; bits cross bytes
  if constexpr (by > 0) return {_mm512_slli_epi16(a.v, by)};
  if constexpr (by < 0) return {_mm512_srli_epi16(a.v, -by)};
  return a;
}
INLINE Ints ints(int32_t x) { return {_mm512_set1_epi32(x)}; }
template <int power>
INLINE Ints less(Ints a, int32_t b) {  // a - 2^power b
  return {_mm512_sub_epi32(a.v, _mm512_slli_epi32(_mm512_set1_epi32(b), power))};
}
INLINE Ints plus(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
INLINE Ints dots(Ints sum, Bytes w, int32_t four) {  // sum[n] += the sum over k < 4 of w[n][k] times a signed byte
  return {_mm512_dpbusd_epi32(sum.v, w.v, _mm512_set1_epi32(four))};
}
INLINE Floats floats(float x) { return {_mm512_set1_ps(x)}; }
INLINE Floats load_floats(const float* from) { return {_mm512_loadu_ps(from)}; }
INLINE void store_floats(float* to, Floats x) { _mm512_storeu_ps(to, x.v); }
INLINE Floats to_floats(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
INLINE Floats times(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
INLINE Floats plus(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
INLINE Floats fma_floats(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
INLINE Floats from_halves(const uint8_t* at) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)at))};
}
INLINE Floats from_bytes(const uint8_t* at) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)at)))};
}
INLINE Floats from_signed(const uint8_t* at) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)at)))};
}
#elif LIKELY_AVX2
struct Bytes { __m256i v[2]; };
struct Ints { __m256i v[2]; };
struct Floats { __m256 v[2]; };
#define LIKELY_PAIR(type, expression) \
  type r; \
  for (int i = 0; i < 2; i++) r.v[i] = expression; \
  return r
INLINE Bytes load_bytes(const uint8_t* from) { LIKELY_PAIR(Bytes, _mm256_loadu_si256((const __m256i*)from + i)); }
INLINE void store_bytes(uint8_t* to, Bytes b) {
  for (int i = 0; i < 2; i++) _mm256_storeu_si256((__m256i*)to + i, b.v[i]);
}
INLINE Bytes both(Bytes a, uint8_t mask) {
  LIKELY_PAIR(Bytes, _mm256_and_si256(a.v[i], _mm256_set1_epi8((char)mask)));
}
INLINE Bytes either(Bytes a, Bytes b) { LIKELY_PAIR(Bytes, _mm256_or_si256(a.v[i], b.v[i])); }
template <int by>
INLINE Bytes shifted(Bytes a) {
  if constexpr (by > 0) {
    LIKELY_PAIR(Bytes, _mm256_slli_epi16(a.v[i], by));
  } else if constexpr (by < 0) {
    LIKELY_PAIR(Bytes, _mm256_srli_epi16(a.v[i], -by));
  }
  return a;
}
INLINE Ints ints(int32_t x) { LIKELY_PAIR(Ints, _mm256_set1_epi32(x)); }
template <int power>
INLINE Ints less(Ints a, int32_t b) {  // a - 2^power b
  const __m256i many = _mm256_slli_epi32(_mm256_set1_epi32(b), power);
  LIKELY_PAIR(Ints, _mm256_sub_epi32(a.v[i], many));
}
INLINE Ints plus(Ints a, Ints b) { LIKELY_PAIR(Ints, _mm256_add_epi32(a.v[i], b.v[i])); }
#if LIKELY_AVX_VNNI
INLINE Ints dots(Ints sum, Bytes w, int32_t four) {
  LIKELY_PAIR(Ints, _mm256_dpbusd_avx_epi32(sum.v[i], w.v[i], _mm256_set1_epi32(four)));
}
#endif
INLINE Floats floats(float x) { LIKELY_PAIR(Floats, _mm256_set1_ps(x)); }
INLINE Floats load_floats(const float* from) { LIKELY_PAIR(Floats, _mm256_loadu_ps(from + 8 * i)); }
INLINE void store_floats(float* to, Floats x) {
  for (int i = 0; i < 2; i++) _mm256_storeu_ps(to + 8 * i, x.v[i]);
}
INLINE Floats to_floats(Ints a) { LIKELY_PAIR(Floats, _mm256_cvtepi32_ps(a.v[i])); }
INLINE Floats times(Floats a, Floats b) { LIKELY_PAIR(Floats, _mm256_mul_ps(a.v[i], b.v[i])); }
INLINE Floats plus(Floats a, Floats b) { LIKELY_PAIR(Floats, _mm256_add_ps(a.v[i], b.v[i])); }
INLINE Floats fma_floats(Floats a, Floats b, Floats c) {
  LIKELY_PAIR(Floats, _mm256_fmadd_ps(a.v[i], b.v[i], c.v[i]));
}
INLINE Floats from_halves(const uint8_t* at) {
  LIKELY_PAIR(Floats, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)at + i)));
}
INLINE Floats from_bytes(const uint8_t* at) {
  LIKELY_PAIR(Floats, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(at + 8 * i)))));
}
INLINE Floats from_signed(const uint8_t* at) {
  LIKELY_PAIR(Floats, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(at + 8 * i)))));
}
#undef LIKELY_PAIR
#else
struct Bytes { uint8_t v[64]; };
struct Ints { int32_t v[16]; };
struct Floats { float v[16]; };
#define LIKELY_EACH(type, count, expression) \
  type r; \
  for (int i = 0; i < count; i++) r.v[i] = expression; \
  return r
INLINE Bytes load_bytes(const uint8_t* from) { return load_as<Bytes>(from); }
INLINE void store_bytes(uint8_t* to, Bytes b) { memcpy(to, &b, 64); }
INLINE Bytes both(Bytes a, uint8_t mask) { LIKELY_EACH(Bytes, 64, a.v[i] & mask); }
INLINE Bytes either(Bytes a, Bytes b) { LIKELY_EACH(Bytes, 64, a.v[i] | b.v[i]); }
template <int by>
INLINE Bytes shifted(Bytes a) {
  LIKELY_EACH(Bytes, 64, (uint8_t)(by > 0 ? a.v[i] << (by > 0 ? by : 0) : a.v[i] >> (by < 0 ? -by : 0)));
}
INLINE Ints ints(int32_t x) { LIKELY_EACH(Ints, 16, x); }
template <int power>
INLINE Ints less(Ints a, int32_t b) { LIKELY_EACH(Ints, 16, a.v[i] - (1 << power) * b); }  // a - 2^power b
INLINE Ints plus(Ints a, Ints b) { LIKELY_EACH(Ints, 16, a.v[i] + b.v[i]); }
INLINE Floats floats(float x) { LIKELY_EACH(Floats, 16, x); }
INLINE Floats load_floats(const float* from) { return load_as<Floats>(from); }
INLINE void store_floats(float* to, Floats x) { memcpy(to, &x, 64); }
INLINE Floats to_floats(Ints a) { LIKELY_EACH(Floats, 16, (float)a.v[i]); }
INLINE Floats times(Floats a, Floats b) { LIKELY_EACH(Floats, 16, a.v[i] * b.v[i]); }
INLINE Floats plus(Floats a, Floats b) { LIKELY_EACH(Floats, 16, a.v[i] + b.v[i]); }
INLINE Floats fma_floats(Floats a, Floats b, Floats c) { LIKELY_EACH(Floats, 16, std::fma(a.v[i], b.v[i], c.v[i])); }
INLINE Floats from_halves(const uint8_t* at) { LIKELY_EACH(Floats, 16, half_at(at + 2 * i)); }
INLINE Floats from_bytes(const uint8_t* at) { LIKELY_EACH(Floats, 16, (float)at[i]); }
INLINE Floats from_signed(const uint8_t* at) { LIKELY_EACH(Floats, 16, (float)(int8_t)at[i]); }
#undef LIKELY_EACH
#endif
