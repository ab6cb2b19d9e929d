// AVX-512 with VNNI by its definition (Intel's manual, volume 2), slowly, so that code for it can be checked on
// processors without it: of its instructions those that cpp/simd and the products use.  Compiled in front of
// cpp/native.cpp for AVX2; a vector of 64 bytes is the compiler's own.
#pragma once
#include <cstdint>
#include <cstring>
#include <immintrin.h>

#if !defined(__AVX512VNNI__)
namespace vnni_in_software {
inline long multiplied = 0;  // products of four bytes, sixteen at a time

template <class To, class From>
inline To as(const From& from) {
  To to;
  static_assert(sizeof(To) <= sizeof(From));
  memcpy(&to, &from, sizeof to);
  return to;
}
template <class V, class T, int N>
inline V of(const T (&items)[N]) {
  V v;
  static_assert(sizeof v == sizeof items);
  memcpy(&v, items, sizeof v);
  return v;
}
template <class T>
struct Items {
  T item[64 / sizeof(T)];
};
template <class T, class V, class Work>
inline V each(const V& a, const Work& work) {
  auto x = as<Items<T>>(a);
  for (size_t i = 0; i < 64 / sizeof(T); i++) x.item[i] = work(x.item[i], i);
  V v;
  memcpy(&v, &x, 64);
  return v;
}
template <class V>
inline V load(const void* from) {
  V v;
  memcpy(&v, from, 64);
  return v;
}
template <class T, class V>
inline V all(T x) {
  T items[64 / sizeof(T)];
  for (T& item : items) item = x;
  return of<V>(items);
}
// sum[n] += the sum over k of unsigned a[4 n + k] times signed b[4 n + k]
inline __m512i dot(__m512i sum, __m512i a, __m512i b) {
  __atomic_fetch_add(&multiplied, 1, __ATOMIC_RELAXED);
  const auto u = as<Items<uint8_t>>(a);
  const auto s = as<Items<int8_t>>(b);
  return each<int32_t>(sum, [&](int32_t x, size_t n) {
    for (int k = 0; k < 4; k++) x += u.item[4 * n + k] * s.item[4 * n + k];
    return x;
  });
}
template <class T>
inline __m512i widened(__m128i bytes) {
  T items[16];
  memcpy(items, &bytes, 16);
  int32_t wide[16];
  for (int i = 0; i < 16; i++) wide[i] = items[i];
  return of<__m512i>(wide);
}
inline __m512 halves(__m256i from) {
  float to[16];
  __m128i half[2];
  memcpy(half, &from, 32);
  for (int i = 0; i < 2; i++) _mm256_storeu_ps(to + 8 * i, _mm256_cvtph_ps(half[i]));
  return of<__m512>(to);
}
inline __m512 floats(__m512i from) {
  const auto x = as<Items<int32_t>>(from);
  float to[16];
  for (int i = 0; i < 16; i++) to[i] = (float)x.item[i];
  return of<__m512>(to);
}
inline __m512 fused(__m512 a, __m512 b, __m512 c) {
  const auto y = as<Items<float>>(b), z = as<Items<float>>(c);
  return each<float>(a, [&](float x, size_t i) { return __builtin_fmaf(x, y.item[i], z.item[i]); });
}
template <class T, class V, class Work>
inline V pairs(const V& a, const V& b, const Work& work) {
  const auto y = as<Items<T>>(b);
  return each<T>(a, [&](T x, size_t i) { return (T)work(x, y.item[i]); });
}
}  // namespace vnni_in_software

#define LIKELY_VNNI 1
#define LIKELY_SOFT vnni_in_software
#define _mm512_loadu_si512(from) LIKELY_SOFT::load<__m512i>(from)
#define _mm512_storeu_si512(to, v) memcpy(to, &(const __m512i&)(v), 64)
#define _mm512_loadu_ps(from) LIKELY_SOFT::load<__m512>(from)
#define _mm512_storeu_ps(to, v) memcpy(to, &(const __m512&)(v), 64)
#define _mm512_set1_epi8(x) LIKELY_SOFT::all<int8_t, __m512i>(x)
#define _mm512_set1_epi32(x) LIKELY_SOFT::all<int32_t, __m512i>(x)
#define _mm512_set1_ps(x) LIKELY_SOFT::all<float, __m512>(x)
#define _mm512_and_si512(a, b) LIKELY_SOFT::pairs<uint32_t>(a, b, [](auto x, auto y) { return x & y; })
#define _mm512_or_si512(a, b) LIKELY_SOFT::pairs<uint32_t>(a, b, [](auto x, auto y) { return x | y; })
#define _mm512_sub_epi32(a, b) LIKELY_SOFT::pairs<uint32_t>(a, b, [](auto x, auto y) { return x - y; })
#define _mm512_add_epi32(a, b) LIKELY_SOFT::pairs<uint32_t>(a, b, [](auto x, auto y) { return x + y; })
#define _mm512_mul_ps(a, b) LIKELY_SOFT::pairs<float>(a, b, [](auto x, auto y) { return x * y; })
#define _mm512_add_ps(a, b) LIKELY_SOFT::pairs<float>(a, b, [](auto x, auto y) { return x + y; })
#define _mm512_slli_epi16(a, by) LIKELY_SOFT::each<uint16_t>(a, [&](auto x, size_t) { return (uint16_t)(x << (by)); })
#define _mm512_srli_epi16(a, by) LIKELY_SOFT::each<uint16_t>(a, [&](auto x, size_t) { return (uint16_t)(x >> (by)); })
#define _mm512_slli_epi32(a, by) LIKELY_SOFT::each<uint32_t>(a, [&](auto x, size_t) { return x << (by); })
#define _mm512_dpbusd_epi32 LIKELY_SOFT::dot
#define _mm512_cvtepi32_ps LIKELY_SOFT::floats
#define _mm512_cvtph_ps LIKELY_SOFT::halves
#define _mm512_cvtepu8_epi32 LIKELY_SOFT::widened<uint8_t>
#define _mm512_cvtepi8_epi32 LIKELY_SOFT::widened<int8_t>
#define _mm512_fmadd_ps LIKELY_SOFT::fused

extern "C" long dots_multiplied() { return vnni_in_software::multiplied; }
#endif
