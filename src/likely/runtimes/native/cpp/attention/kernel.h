// Rows meet a block of columns: scores, weights, and what was summed before faded to them.
#pragma once
#include "tiles.h"

template <bool half>
INLINE f32x16 step(f32x16 sum, const uint8_t* lanes, const uint8_t* one) {
  if constexpr (half) return dot2(sum, (const uint16_t*)lanes, (const uint16_t*)one);
  float factor;
  memcpy(&factor, one, 4);
  return fma16(load16((const float*)lanes), factor, sum);
}

// score[r] = query[r] x key, for R rows and C vectors of 16 columns
template <bool half, int R, int C>
INLINE void scores(const uint8_t* query, const Block& block, float* score, int steps) {
  f32x16 s[R][C];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) s[r][c] = f32x16{};
  for (int d = 0; d < steps; d++)
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int c = 0; c < C; c++)
        s[r][c] = step<half>(s[r][c], block.key[c] + (size_t)d * 64, query + ((size_t)r * steps + d) * 4);
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) store16(score + r * BLOCK + 16 * c, s[r][c]);
}

// A query for keys of Q8_0: int8 codes, of each 32 a scale, and of each 32 what dot4 adds too much.
constexpr int KEY_BLOCK = 32;
INLINE void encode_query(uint8_t* to, const float* x, int dim, float factor) {
  float* scale = (float*)(to + dim);
  int32_t* bias = (int32_t*)(scale + dim / KEY_BLOCK);
  for (int b = 0; b < dim / KEY_BLOCK; b++) {
    const f32x16 part[2] = {load16(x + KEY_BLOCK * b) * factor, load16(x + KEY_BLOCK * b + 16) * factor};
    const float most = max_of(max16(abs16(part[0]), abs16(part[1])));
    const float finite = sum_of(part[0] * 0.0f + part[1] * 0.0f), inverse = most > 0 ? 127.0f / most : 0.0f;
    i32x16 sum = {};
    for (int i = 0; i < 2; i++) {
      const i32x16 code = __builtin_convertvector(round16(part[i] * inverse), i32x16);
      sum += code;
      store_bytes_of(to + KEY_BLOCK * b + 16 * i, code);
    }
    scale[b] = most / 127.0f + finite;
    bias[b] = SIGNED_WEIGHTS ? 0 : -128 * sum_of(sum);
  }
}

// score[r] = query[r] x key in whole numbers of each 32 dimensions, which are then added in their order
template <int R>
INLINE void scores_of_codes(const uint8_t* query, size_t row, const Block& block, float* score, int dim) {
  for (int c = 0; c < block.vectors(); c++) {
    f32x16 s[R] = {};
    for (int b = 0; b < dim / KEY_BLOCK; b++) {
      i32x16 sum[R];
      for (int r = 0; r < R; r++) sum[r] = all16i(((const int32_t*)(query + r * row + dim))[dim / KEY_BLOCK + b]);
#pragma GCC unroll 8
      for (int k = 0; k < KEY_BLOCK; k += 4)
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
          sum[r] = dot4(sum[r], block.key[c] + (size_t)(KEY_BLOCK * b + k) * LANES,
                        (const int8_t*)query + r * row + KEY_BLOCK * b + k);
      const f32x16 own = scales16<Form::Q8_0>(block.key[c] + (size_t)dim * LANES + b * LANES * 2);
      for (int r = 0; r < R; r++)
        s[r] = fma16(to_float(sum[r]), own * ((const float*)(query + r * row + dim))[b], s[r]);
    }
    for (int r = 0; r < R; r++) store16(score + r * BLOCK + LANES * c, s[r]);
  }
}

// out[r] += weight[r] x value, for R rows and D vectors of 16 dimensions from `at` on
template <bool half, int R, int D>
INLINE void weigh(const uint8_t* weight, const Block& block, float* out, int wide, int at) {
  constexpr int STEPS = half ? LANES / 2 : LANES;
  f32x16 o[R][D];
  for (int r = 0; r < R; r++)
    for (int d = 0; d < D; d++) o[r][d] = f32x16{};
  for (int v = 0; v < block.vectors(); v++)
    for (int c = 0; c < STEPS; c++)
#pragma GCC unroll 8
      for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int d = 0; d < D; d++)
          o[r][d] = step<half>(o[r][d], block.value[v] + ((size_t)c * wide + at + 16 * d) * 4,
                               weight + ((size_t)r * BLOCK + v * STEPS + c) * 4);
  for (int r = 0; r < R; r++)
    for (int d = 0; d < D; d++) {
      float* to = out + (size_t)r * wide + at + 16 * d;
      store16(to, load16(to) + o[r][d]);
    }
}

template <bool half, int R>
static void scores_rows(const uint8_t* query, const Block& block, float* score, int steps) {
  as_constant<VECTORS>(block.vectors(), [&](auto c) { scores<half, R, c.value>(query, block, score, steps); });
}
template <bool half, int R>
static void weigh_rows(const uint8_t* weight, const Block& block, float* out, int wide) {
  int at = 0;
  for (; at + 64 <= wide; at += 64) weigh<half, R, 4>(weight, block, out, wide, at);
  for (; at < wide; at += 16) weigh<half, R, 1>(weight, block, out, wide, at);
}

// e^x for x <= 0: as exact as the weights, which are stored in half precision or not
template <bool half>
INLINE f32x16 weight16(f32x16 x) {
#if LIKELY_AVX512
  if constexpr (half) return exp16_to_bf16(x);
#endif
  return exp16(x);
}

// Scores of rows [from, to) to weights: e^(score - the most so far), with what was summed before faded to it.
template <bool half, int C>
static void soften_rows(const Shape& s, const Seen* seen, int share, int from, int to, int column, int count,
                        Scratch& x) {
  const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int r = from; r < to; r++) {
    const float* row = &x.score[(size_t)r * BLOCK];
    const int low = seen[r / share].low - column, high = std::min(seen[r / share].high - column, count);
    uint8_t* weight = &x.weight[(size_t)r * BLOCK * 4];
    if (low >= LANES * C || high <= 0) {
      memset(weight, 0, BLOCK * 4);
      continue;
    }
    const bool whole = low <= 0 && high >= LANES * C;
    f32x16 v[C], most = all16(-INFINITY);
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      v[c] = load16(row + LANES * c);
      if (s.softcap > 0) v[c] = s.softcap * tanh16(v[c] / s.softcap);
      if (!whole) {
        const i32x16 at = lane + LANES * c;
        v[c] = ((at >= low) & (at < high)) ? v[c] : all16(-INFINITY);
      }
      most = max16(most, v[c]);
    }
    const float before = x.most[r], now = std::max(before, max_of(most));
    f32x16 sum = {};
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      const f32x16 p = weight16<half>(v[c] - now);
      store_as<half>(weight, LANES * c, p);
      sum += p;
    }
    x.most[r] = now;
    float* all = &x.sum[(size_t)r * LANES];
    if (before == now || before == -INFINITY) {  // nothing before, or nothing changed
      store16(all, load16(all) + sum);
    } else {
      const float fade = exp16(all16(before - now))[0];
      store16(all, fma16(load16(all), fade, sum));
      for (int d = 0; d < s.wide; d += 16) {
        float* o = &x.out[(size_t)r * s.wide + d];
        store16(o, load16(o) * fade);
      }
    }
  }
}

#if LIKELY_AMX_BF16
// Sixteen rows at once by the tile unit, however many are asked for: the rows after those are computed and left out, so
// that a row's numbers do not depend on its company.
static void scores_by_tiles(const Shape& s, const uint8_t* query, const Block& block, float* score) {
  asm volatile("" ::: "memory");  // tiles are read behind the compiler's back
  for (int c = 0; c < block.vectors(); c += 2) {
    const bool two = c + 1 < block.vectors();
    _tile_zero(0);
    _tile_zero(1);
    for (int d = 0; d < s.wide; d += 32) {
      _tile_loadd(2, query + 2 * d, s.row());
      _tile_loadd(3, block.key[c] + 32 * d, 64);
      _tile_dpbf16ps(0, 2, 3);
      if (!two) continue;
      _tile_loadd(3, block.key[c + 1] + 32 * d, 64);
      _tile_dpbf16ps(1, 2, 3);
    }
    _tile_stored(0, score + LANES * c, BLOCK * 4);
    if (two) _tile_stored(1, score + LANES * (c + 1), BLOCK * 4);
  }
}
static void weigh_by_tiles(const Shape& s, const uint8_t* weight, const Block& block, float* out, int rows) {
  alignas(64) float sum[2][LANES][LANES];
  asm volatile("" ::: "memory");
  for (int at = 0; at < s.wide; at += 2 * LANES) {
    _tile_zero(0);
    _tile_zero(1);
    for (int v = 0; v < block.vectors(); v++) {
      const uint8_t* value = block.value[v] + 4 * at;
      _tile_loadd(4, weight + 2 * LANES * v, BLOCK * 4);
      _tile_loadd(6, value, s.wide * 4);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, value + 64, s.wide * 4);
      _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, sum[0], 64);
    _tile_stored(1, sum[1], 64);
    for (int r = 0; r < rows; r++)
      for (int i = 0; i < 2; i++) {
        float* to = out + (size_t)r * s.wide + at + LANES * i;
        store16(to, load16(to) + load16(sum[i][r]));
      }
  }
}
#endif

template <bool half>
static void score_rows(const Shape& s, int from, int to, const Block& block, Scratch& x) {
#if LIKELY_AMX_BF16
  if (half && x.tiles && !s.direct()) {
    for (int r = from; r < to; r += LANES)
      scores_by_tiles(s, &x.query[r * s.row()], block, &x.score[(size_t)r * BLOCK]);
    return;
  }
#endif
  for (int r = from; r < to; r += MOST_ROWS) {
    const int some = std::min(MOST_ROWS, to - r);
    as_constant<MOST_ROWS>(some, [&](auto size) {
      const uint8_t* query = &x.query[r * s.row()];
      float* score = &x.score[(size_t)r * BLOCK];
      if (half && s.direct())
        scores_of_codes<size.value>(query, s.row(), block, score, s.dim);
      else
        scores_rows<half, size.value>(query, block, score, (int)(s.row() / 4));
    });
  }
}
template <bool half>
static void sum_values(const Shape& s, int from, int to, const Block& block, Scratch& x) {
#if LIKELY_AMX_BF16
  if (half && x.tiles) {
    for (int r = from; r < to; r += LANES)
      weigh_by_tiles(s, &x.weight[(size_t)r * BLOCK * 4], block, &x.out[(size_t)r * s.wide], std::min(LANES, to - r));
    return;
  }
#endif
  for (int r = from; r < to; r += MOST_ROWS) {
    const int some = std::min(MOST_ROWS, to - r);
    as_constant<MOST_ROWS>(some, [&](auto size) {
      weigh_rows<half, size.value>(&x.weight[(size_t)r * BLOCK * 4], block, &x.out[(size_t)r * s.wide], s.wide);
    });
  }
}

// Rows [from, to) of the tile (share rows per query) meet the block of columns that starts at `column`.
template <bool half>
static void meet_block(const Shape& s, const Seen* seen, int share, int from, int to, int column, const Block& block,
                       Scratch& x) {
  score_rows<half>(s, from, to, block, x);
  as_constant<VECTORS>(block.vectors(), [&](auto c) {
    soften_rows<half, c.value>(s, seen, share, from, to, column, block.count, x);
  });
  sum_values<half>(s, from, to, block, x);
}
