// Products of packed weights with a few or many rows of activations.
//
// A panel holds 32 outputs: two tiles of 16, side by side, with the inputs running down in groups of 64.
//   int8   a group is 16 x [tile 0: 16 outputs x 4 inputs][tile 1: the same], then 32 scales in bf16 (2112 bytes).
//          A code is stored as code + 128: the dot-product instruction takes one unsigned factor.
//          Weights and activations are both multiplied by a Hadamard matrix (over 8, so that it is orthogonal) within
//          each group: products stay as they are, outliers are spread over 64 numbers and rounding errors shrink.
//   bf16   a group is 32 x [16 outputs x 2 inputs] x 2 (4096 bytes)
//   fp32   a group is 64 x [16 outputs] x 2 (8192 bytes)
// One row's sums are made in the same order whatever other rows are computed beside it.
#pragma once
#include <algorithm>

#include "simd/vectors.h"
#if LIKELY_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

constexpr int GROUP = 64, PANEL = 32;
enum Kind { INT8 = 0, BF16 = 1, FP32 = 2, CODES = 3 };  // CODES: each matrix has a type of its own, see codes.h
constexpr int CODES_UNIT = 112, CODES_UNIT_WITH_FLOATS = CODES_UNIT + 4 * GROUP;  // bytes of 64 inputs of a row

template <Kind kind>
struct Format;
template <>
struct Format<INT8> {
  static constexpr size_t panel_group = 2 * 1024 + 64, row_group = 64;
};
template <>
struct Format<BF16> {
  static constexpr size_t panel_group = 4096, row_group = 128;
};
template <>
struct Format<FP32> {
  static constexpr size_t panel_group = 8192, row_group = 256;
};
template <>
struct Format<CODES> {
  static constexpr size_t row_group = CODES_UNIT_WITH_FLOATS;  // at most
};

// Rows of activations in the form of a kind: int8 codes with a scale and 128 times their sum per group, or floats.
struct Rows {
  uint8_t* data;
  float* scale;   // (rows, groups), int8 only
  int32_t* bias;  // (rows, groups): -128 * sum of codes
  int groups;
  int count = 0, unit = 0;  // CODES: rows that lie together, and the bytes of 64 inputs of each
  bool rotated = false;
  template <Kind kind>
  uint8_t* row(int m) const {
    return data + (size_t)m * groups * Format<kind>::row_group;
  }
};

// One group of 64 inputs of a row.
template <Kind kind>
INLINE void prepare_group(const Rows& rows, int m, int g, f32x16 a, f32x16 b, f32x16 c, f32x16 d) {
  f32x16 part[4] = {a, b, c, d};
  uint8_t* to = rows.row<kind>(m) + (size_t)g * Format<kind>::row_group;
  if constexpr (kind == FP32) {
    for (int i = 0; i < 4; i++) store16((float*)to + 16 * i, part[i]);
  } else if constexpr (kind == BF16) {
    for (int i = 0; i < 4; i++) to_bf16((uint16_t*)to + 16 * i, part[i]);
  } else {
    hadamard64(part);
    f32x16 peak = max16(max16(abs16(part[0]), abs16(part[1])), max16(abs16(part[2]), abs16(part[3])));
    const float finite = part[0][0] * 0.0f;  // the sum of all: NaN if one is not a number, which codes would hide
    float most = max_of(peak), scale = most / (8 * 127.0f) + finite, inverse = most > 0 ? 127.0f / most : 0.0f;
    i32x16 sum = {};
    for (int i = 0; i < 4; i++) {
      i32x16 code = __builtin_convertvector(round16(part[i] * inverse), i32x16);
      sum += code;
      i8x16 narrow = __builtin_convertvector(code, i8x16);
      memcpy(to + 16 * i, &narrow, 16);
    }
    rows.scale[(size_t)m * rows.groups + g] = scale;
    rows.bias[(size_t)m * rows.groups + g] = -128 * sum_of(sum);
  }
}

// What is on its way while a product is made: in every group `lines` lines, from `at` on, and from group `turn` on from
// `then` on.
struct Ahead {
  const uint8_t *at, *then;
  int turn, lines;
};

// out[m][t] = row m0 + m times tile t of the panel.  Never inlined: the sums need all registers, whoever calls.
template <Kind kind, int M>
__attribute__((noinline)) static void multiply(const uint8_t* panel, const Rows& rows, int m0, Ahead ahead,
                                               f32x16 (&out)[M][2]) {
  f32x16 f[M][2];
  for (int m = 0; m < M; m++) f[m][0] = f[m][1] = f32x16{};
  const uint8_t* a = rows.row<kind>(m0);
  const size_t stride = rows.groups * Format<kind>::row_group;
  for (int g = 0; g < rows.groups; g++, panel += Format<kind>::panel_group, a += Format<kind>::row_group) {
    if (g == ahead.turn) ahead.at = ahead.then;
    for (int line = 0; line < ahead.lines; line++) __builtin_prefetch(ahead.at + 64 * line, 0, M <= 2 ? 3 : 2);
    ahead.at += Format<kind>::panel_group;
    if constexpr (M > 2)  // the rows of the next block
      for (int m = M; m < 2 * M; m++)
        fetch_lines(a + m * stride, Format<kind>::row_group);
    if constexpr (kind == INT8) {
      constexpr int CHAINS = M <= 2 ? 2 : 1;  // few rows: sums in two parts, so that products need not wait
      const float* scale = rows.scale + (size_t)m0 * rows.groups + g;
      const int32_t* bias = rows.bias + (size_t)m0 * rows.groups + g;
      i32x16 sum[CHAINS][M][2];
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        sum[0][m][0] = sum[0][m][1] = all16i(SIGNED_WEIGHTS ? 0 : bias[(size_t)m * rows.groups]);
        if (CHAINS == 2) sum[CHAINS - 1][m][0] = sum[CHAINS - 1][m][1] = i32x16{};
      }
#pragma GCC unroll 16
      for (int k = 0; k < 16; k++)
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
          const int8_t* four = (const int8_t*)a + m * stride + 4 * k;
          i32x16(&own)[2] = sum[k % CHAINS][m];
          own[0] = dot4(own[0], panel + 128 * k, four);
          own[1] = dot4(own[1], panel + 128 * k + 64, four);
        }
      const f32x16 s0 = from_bf16((const uint16_t*)(panel + 2048)), s1 = from_bf16((const uint16_t*)(panel + 2080));
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        const float own = scale[(size_t)m * rows.groups];
        if (CHAINS == 2) {
          sum[0][m][0] += sum[CHAINS - 1][m][0];
          sum[0][m][1] += sum[CHAINS - 1][m][1];
        }
        f[m][0] = fma16(to_float(sum[0][m][0]), s0 * own, f[m][0]);
        f[m][1] = fma16(to_float(sum[0][m][1]), s1 * own, f[m][1]);
      }
    } else if constexpr (kind == BF16) {
#pragma GCC unroll 8
      for (int k = 0; k < 32; k++)
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
          const uint16_t* two = (const uint16_t*)(a + m * stride) + 2 * k;
          f[m][0] = dot2(f[m][0], (const uint16_t*)(panel + 128 * k), two);
          f[m][1] = dot2(f[m][1], (const uint16_t*)(panel + 128 * k + 64), two);
        }
    } else {
      f32x16 part[M][2];  // of this group alone: shorter sums lose less
      for (int m = 0; m < M; m++) part[m][0] = part[m][1] = f32x16{};
#pragma GCC unroll 8
      for (int k = 0; k < 64; k++) {
        const f32x16 w0 = load16((const float*)(panel + 128 * k)), w1 = load16((const float*)(panel + 128 * k + 64));
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
          const float one = *((const float*)(a + m * stride) + k);
          part[m][0] = fma16(w0, one, part[m][0]);
          part[m][1] = fma16(w1, one, part[m][1]);
        }
      }
      for (int m = 0; m < M; m++) {
        f[m][0] += part[m][0];
        f[m][1] += part[m][1];
      }
    }
  }
  for (int m = 0; m < M; m++) {
    out[m][0] = f[m][0];
    out[m][1] = f[m][1];
  }
}

#if LIKELY_AMX
// The tile unit of this process: the kernel has to allow it once.  A thread sets its tiles up while it computes and
// gives them back, since other libraries in the process (torch, llama.cpp) set up their own.
inline bool tiles_allowed() {
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM
  static const bool allowed = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return allowed;
}
struct Tiles {
  const bool ready = tiles_allowed();
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 32, 32, 64, 64};  // from 4 on 32 inputs: of rows twice, of outputs twice
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 8, 8};
    } config;
    if (ready) _tile_loadconfig(&config);
  }
  ~Tiles() {
    if (ready) _tile_release();
  }
};

// Sixteen rows at once: a group of a panel is two tiles as it lies, the codes of the rows are a third.  One tile after the
// other, so that the sums of sixteen rows stay in registers; meanwhile `lines` lines from `ahead` on are fetched.
template <class Done>
static void multiply_tiles(const uint8_t* panel, const Rows& rows, int m0, const uint8_t* ahead, int lines,
                           const Done& done) {
  alignas(64) int32_t sum[16][16];
  f32x16 out[2][16];
  const size_t stride = rows.groups * Format<INT8>::row_group, start = (size_t)m0 * rows.groups;
  const int share = (lines + 2 * rows.groups - 1) / (2 * rows.groups);
  for (int tile = 0; tile < 2; tile++) {
    f32x16 f[16] = {};
    const uint8_t *a = rows.row<INT8>(m0), *group = panel;
    for (int g = 0; g < rows.groups; g++, group += Format<INT8>::panel_group, a += Format<INT8>::row_group) {
      _tile_zero(0);
      _tile_loadd(2, a, stride);
      _tile_loadd(3, group + 64 * tile, 128);
      _tile_dpbsud(0, 2, 3);
      _tile_stored(0, sum, 64);
      for (int line = std::min(lines, share); line > 0; line--, lines--, ahead += 64) __builtin_prefetch(ahead, 0, 2);
      const f32x16 scale = from_bf16((const uint16_t*)(group + 2048 + 32 * tile));
      const float* own = rows.scale + start + g;
      const int32_t* bias = rows.bias + start + g;
#pragma GCC unroll 16
      for (int m = 0; m < 16; m++, own += rows.groups, bias += rows.groups)
        f[m] = fma16(to_float(load_as<i32x16>(sum[m]) + *bias), scale * *own, f[m]);
    }
#pragma GCC unroll 16
    for (int m = 0; m < 16; m++) out[tile][m] = f[m];
  }
  for (int m = 0; m < 16; m++) done(m0 + m, out[0][m], out[1][m]);
}
#else
struct Tiles {
  const bool ready = false;
};
#endif

template <Kind kind, int M, class Done>
INLINE void multiply_block(const uint8_t* panel, const Rows& rows, int m0, const Ahead& ahead, const Done& done) {
  f32x16 f[M][2];
  multiply<kind, M>(panel, rows, m0, ahead, f);
  for (int m = 0; m < M; m++) done(m0 + m, f[m][0], f[m][1]);
}

// done(row, tile 0, tile 1) for every one of the n rows times one panel; soon(row) some time before it.
// next: the panel that is read afterwards, or null
template <Kind kind, class Done, class Soon>
static void multiply_panel(const uint8_t* panel, const uint8_t* next, const Rows& rows, int n, const Tiles& tiles,
                           const Done& done, const Soon& soon) {
  constexpr size_t size = Format<kind>::panel_group;
  int first = 0;
#if LIKELY_AMX
  if constexpr (kind == INT8)
    if (tiles.ready && n >= 16) {
      const int share = next ? (int)(rows.groups * size / 64) / (n / 16) + 1 : 0;  // lines of the next panel
      for (const uint8_t* ahead = next; n - first >= 16; first += 16, ahead += (size_t)share * 64)
        multiply_tiles(panel, rows, first, ahead, share, done);
    }
#else
  (void)tiles;
#endif
  const int blocks = (n - first + MOST_ROWS - 1) / MOST_ROWS;
  // one block of rows waits for memory: what comes two groups later is fetched.  More blocks have time: each fetches its
  // share of the next panel.
  const bool few = blocks <= 1;
  const int lines = (int)(size / 64), share = few ? lines : std::max(1, lines / std::max(1, blocks));
  for (int b = 0, m = first; b < blocks; b++) {  // blocks of nearly equal size
    const int rest = n - m, some = (rest + blocks - b - 1) / (blocks - b);
    Ahead ahead{};
    if (next && b * share < lines) ahead = {next + (size_t)b * share * 64, next, -1, share};
    if (few) ahead = {panel + 2 * size, next ? next : panel, std::max(0, rows.groups - 2), lines};
    for (int i = m; i < m + some; i++) soon(i);
    auto block = [&](auto size) { multiply_block<kind, size.value>(panel, rows, m, ahead, done); };
    as_constant<MOST_ROWS>(some, block);
    m += some;
  }
}
