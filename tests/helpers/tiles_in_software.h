// The tile unit's instructions by their definition (Intel's manual, volume 2), slowly, so that code for it can be
// checked on processors without one.  Compiled in front of cpp/native.cpp; a tile that is not set up ends the
// process, as the processor would.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace tiles_in_software {
struct Unit {
  bool ready = false;
  uint16_t row_bytes[8];
  uint8_t rows[8], data[8][16][64];
  void need(int t) const {
    if (!ready || !rows[t] || !row_bytes[t]) abort();
  }
};
inline thread_local Unit unit;
inline long multiplied = 0;  // products of two tiles

inline void load_config(const void* from) {
  const uint8_t* bytes = (const uint8_t*)from;
  if (bytes[0] != 1 || bytes[1] != 0) abort();
  memcpy(unit.row_bytes, bytes + 16, sizeof unit.row_bytes);
  memcpy(unit.rows, bytes + 48, sizeof unit.rows);
  memset(unit.data, 0, sizeof unit.data);
  unit.ready = true;
}
inline void release() { unit.ready = false; }
inline void zero(int t) {
  unit.need(t);
  memset(unit.data[t], 0, sizeof unit.data[t]);
}
inline void load(int t, const void* from, ptrdiff_t stride) {
  zero(t);
  for (int r = 0; r < unit.rows[t]; r++) memcpy(unit.data[t][r], (const uint8_t*)from + r * stride, unit.row_bytes[t]);
}
inline void store(int t, void* to, ptrdiff_t stride) {
  unit.need(t);
  for (int r = 0; r < unit.rows[t]; r++) memcpy((uint8_t*)to + r * stride, unit.data[t][r], unit.row_bytes[t]);
}
// to[m][n] += sum of signed a[m][4 k + i] times b[k][4 n + i], bytes of type B
template <class B>
inline void dot(int to, int a, int b) {
  unit.need(to), unit.need(a), unit.need(b);
  __atomic_fetch_add(&multiplied, 1, __ATOMIC_RELAXED);
  if (unit.rows[to] != unit.rows[a] || unit.row_bytes[to] != unit.row_bytes[b] || unit.row_bytes[a] != 4 * unit.rows[b])
    abort();
  for (int m = 0; m < unit.rows[to]; m++)
    for (int n = 0; n < unit.row_bytes[to] / 4; n++) {
      int32_t sum;
      memcpy(&sum, &unit.data[to][m][4 * n], 4);
      for (int k = 0; k < unit.row_bytes[a] / 4; k++)
        for (int i = 0; i < 4; i++) sum += (int8_t)unit.data[a][m][4 * k + i] * (B)unit.data[b][k][4 * n + i];
      memcpy(&unit.data[to][m][4 * n], &sum, 4);
    }
}
inline float flushed(float x) { return __builtin_fabsf(x) < 0x1p-126f ? 0 * x : x; }
inline float from_bf16(const uint8_t* at) {
  uint32_t bits = (uint32_t)at[0] << 16 | (uint32_t)at[1] << 24;
  float value;
  memcpy(&value, &bits, 4);
  return flushed(value);
}
// to[m][n] += sum of a[m][2 k + i] times b[k][2 n + i], i = 0 and i = 1 summed apart, in bf16
inline void dot_bf16(int to, int a, int b) {
  unit.need(to), unit.need(a), unit.need(b);
  if (unit.rows[to] != unit.rows[a] || unit.row_bytes[to] != unit.row_bytes[b] || unit.row_bytes[a] != 4 * unit.rows[b])
    abort();
  for (int m = 0; m < unit.rows[to]; m++)
    for (int n = 0; n < unit.row_bytes[to] / 4; n++) {
      float all, sum[2] = {0, 0};
      for (int k = 0; k < unit.row_bytes[a] / 4; k++)
        for (int i = 0; i < 2; i++)
          sum[i] = flushed(__builtin_fmaf(from_bf16(&unit.data[a][m][4 * k + 2 * i]),
                                          from_bf16(&unit.data[b][k][4 * n + 2 * i]), sum[i]));
      memcpy(&all, &unit.data[to][m][4 * n], 4);
      all = flushed(flushed(all) + flushed(sum[0] + sum[1]));
      memcpy(&unit.data[to][m][4 * n], &all, 4);
    }
}
inline long allow(long, long, long) { return 0; }  // the kernel's permission
}  // namespace tiles_in_software

extern "C" long tiles_multiplied() { return tiles_in_software::multiplied; }

#define __AMX_TILE__ 1
#define __AMX_INT8__ 1
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbsud
#undef _tile_dpbssd
#undef _tile_dpbf16ps
#define _tile_loadconfig tiles_in_software::load_config
#define _tile_release tiles_in_software::release
#define _tile_zero tiles_in_software::zero
#define _tile_loadd tiles_in_software::load
#define _tile_stored tiles_in_software::store
#define _tile_dpbsud tiles_in_software::dot<uint8_t>
#define _tile_dpbssd tiles_in_software::dot<int8_t>
#define _tile_dpbf16ps tiles_in_software::dot_bf16
#define syscall tiles_in_software::allow
