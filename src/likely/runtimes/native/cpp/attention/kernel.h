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

// Rows [from, to) of the tile (share rows per query) meet the block of columns that starts at `column`.
template <bool half>
static void meet_block(const Shape& s, const Seen* seen, int share, int from, int to, int column, const Block& block,
                       Scratch& x) {
  for (int r = from; r < to; r += MOST_ROWS) {
    int some = std::min(MOST_ROWS, to - r);
    as_constant<MOST_ROWS>(some, [&](auto size) {
      scores_rows<half, size.value>(&x.query[r * s.row()], block, &x.score[(size_t)r * BLOCK], (int)(s.row() / 4));
    });
  }
  as_constant<VECTORS>(block.vectors(), [&](auto c) {
    soften_rows<half, c.value>(s, seen, share, from, to, column, block.count, x);
  });
  for (int r = from; r < to; r += MOST_ROWS) {
    int some = std::min(MOST_ROWS, to - r);
    as_constant<MOST_ROWS>(some, [&](auto size) {
      weigh_rows<half, size.value>(&x.weight[(size_t)r * BLOCK * 4], block, &x.out[(size_t)r * s.wide], s.wide);
    });
  }
}
