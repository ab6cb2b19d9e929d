// Attention of one call's queries over keys and values that lie in slots.
//
// Every query has a list of columns, in the order of their positions: first `shared` slots of its piece's list, then
// its own (the path of a tree node).  Columns are taken in blocks of 64 counted from the text's beginning, so that a
// query's sums are made in one order however its text was cut, forked or drafted.
#pragma once
#include <algorithm>
#include <vector>

#include "simd.h"
#include "threads.h"

constexpr int BLOCK = 64, QUERIES = 16, LANES = 16, VECTORS = BLOCK / LANES, MOST_DIM = 1024;

// One piece of work: rows [first, first + count) of the call, and the slots that its queries share.
struct Piece {
  int32_t first, count;
  int32_t columns_at, columns;  // slots of the shared columns, in `Queries::slots`
};

struct Queries {
  const Piece* pieces;
  int pieces_count;
  const int32_t* slots;     // of all columns of the call
  const int32_t* position;  // (n,)
  const int32_t* shared;    // (n,) how many of its piece's columns a query may see
  const int32_t* own_at;    // (n,) its own further columns, in `slots`
  const int32_t* own;       // (n,)
};

// Keys, values, queries and weights are bf16 (half) or fp32.  What is multiplied lies in steps of four bytes: two bf16
// numbers or one fp32 number of each lane.  So do keys and values in memory, sixteen slots together:
//   keys    per step of dimensions the sixteen slots
//   values  per step of slots the `wide` dimensions
// Sixteen columns that are sixteen slots in a row from a multiple of sixteen are read where they are.
struct Shape {
  int heads, kv_heads, dim, wide;  // wide: dim rounded up to 32
  float scale;
  bool half;
  size_t capacity;  // slots, a multiple of 16: keys and values lie as (kv_heads, capacity / 16, 16 * row())
  size_t row() const { return (size_t)wide * (half ? 2 : 4); }
  size_t sixteen(int head, int slot) const { return ((size_t)head * capacity + slot / LANES * LANES) * row(); }
};

// Scratch of one thread.
struct Scratch {
  std::vector<uint8_t> query, key, value, weight;
  std::vector<float> score, out, most, sum;  // sum: of each row sixteen parts, by column
  void fit(const Shape& s) {
    const size_t rows = (size_t)QUERIES * (s.heads / s.kv_heads);
    if (query.size() >= rows * s.row() && !query.empty()) return;
    query.assign(rows * s.row(), 0);
    key.assign(BLOCK * s.row(), 0);
    value.assign(BLOCK * s.row(), 0);
    weight.assign(rows * BLOCK * 4, 0);
    score.assign(rows * BLOCK, 0);
    out.assign(rows * s.wide, 0);
    most.assign(rows, 0);
    sum.assign(rows * LANES, 0);
  }
};

// Where the columns of a block are, sixteen by sixteen.
struct Block {
  const uint8_t *key[VECTORS], *value[VECTORS];
  int count;  // columns
  int vectors() const { return (count + LANES - 1) / LANES; }
};

template <bool half>
INLINE f32x16 step(f32x16 sum, const uint8_t* lanes, const uint8_t* one) {
  if constexpr (half) return dot2(sum, (const uint16_t*)lanes, (const uint16_t*)one);
  float factor;
  memcpy(&factor, one, 4);
  return fma16(load16((const float*)lanes), factor, sum);
}
template <bool half>
INLINE void store_as(uint8_t* to, int at, f32x16 v) {
  if constexpr (half)
    to_bf16((uint16_t*)to + at, v);
  else
    store16((float*)to + at, v);
}

// Up to sixteen numbers; zeros beyond.
INLINE f32x16 load_some(const float* from, int count) {
  if (count >= 16) return load16(from);
  f32x16 x = {};
  memcpy(&x, from, 4 * count);
  return x;
}

// Key and value (dim,) fp32 of one token to its slot.
template <bool half>
INLINE void store_token(const Shape& s, uint8_t* keys, uint8_t* values, int head, int slot, const float* key,
                        const float* value) {
  const int lane = slot % LANES, item = half ? 2 : 4, steps = (s.dim * item + 3) / 4;
  uint8_t *k = keys + s.sixteen(head, slot) + 4 * lane, *v = values + s.sixteen(head, slot);
  alignas(64) uint8_t row[2][MOST_DIM * 4];
  for (int d = 0; d < s.dim; d += 16)
    for (int i = 0; i < 2; i++) {
      const float* from = i ? value : key;
      store_as<half>(row[i], d, load_some(from + d, s.dim - d));
    }
  for (int d = 0; d < steps; d++) memcpy(k + 64 * d, row[0] + 4 * d, 4);
  if constexpr (half) {
    v += (size_t)(lane / 2) * s.wide * 4 + 2 * (lane % 2);
    for (int d = 0; d < s.dim; d++) memcpy(v + 4 * d, row[1] + 2 * d, 2);
  } else {
    memcpy(v + (size_t)lane * s.wide * 4, row[1], (size_t)s.dim * 4);
  }
}

// Up to sixteen columns from anywhere, brought together; lanes without a column are zero.
template <bool half>
static void gather(const Shape& s, const uint8_t* keys, const uint8_t* values, const int32_t* slots, int count,
                   int head, uint8_t* key, uint8_t* value) {
  const int steps = (int)(s.row() / 4);
  memset(key, 0, LANES * s.row());
  memset(value, 0, LANES * s.row());
  for (int i = 0; i < count; i++) {
    const int lane = slots[i] % LANES;
    const uint8_t *k = keys + s.sixteen(head, slots[i]) + 4 * lane, *v = values + s.sixteen(head, slots[i]);
    for (int d = 0; d < steps; d++) memcpy(key + 64 * d + 4 * i, k + 64 * d, 4);
    if constexpr (half) {
      const u32x16* from = (const u32x16*)(v + (size_t)(lane / 2) * s.wide * 4);
      uint8_t* to = value + (size_t)(i / 2) * s.wide * 4;
      for (int d = 0; d < s.wide / 16; d++) {
        const u32x16 own = load_as<u32x16>(from + d) >> (lane % 2 ? 16u : 0u) & 0xffffu;
        const u32x16 both = load_as<u32x16>(to + 64 * d) | own << (i % 2 ? 16u : 0u);
        memcpy(to + 64 * d, &both, 64);
      }
    } else {
      memcpy(value + (size_t)i * s.wide * 4, v + (size_t)lane * s.wide * 4, (size_t)s.wide * 4);
    }
  }
}

// Keys and values that come next, on their way while the present block is computed.
static void fetch(const Shape& s, const uint8_t* keys, const uint8_t* values, const int32_t* slots, int count,
                  int head) {
  for (int c = 0; c < count; c += LANES) {
    const size_t at = s.sixteen(head, slots[c]);
    fetch_lines(keys + at, LANES * s.row());
    fetch_lines(values + at, LANES * s.row());
  }
}

// `slots` of `count` columns as a block.  Only whole sixteens are read in place: what is beside fewer may be anything.
template <bool half>
static Block find_block(const Shape& s, const uint8_t* keys, const uint8_t* values, const int32_t* slots, int count,
                        int head, Scratch& x) {
  const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Block block;
  block.count = count;
  for (int v = 0; v < block.vectors(); v++) {
    const int32_t* own = slots + LANES * v;
    const int some = std::min(LANES, count - LANES * v);
    if (some == LANES && own[0] % LANES == 0) {
      const i32x16 other = load_as<i32x16>(own) ^ (lane + own[0]);
      if (sum_of(other & 0xff) == 0 && sum_of(other >> 8 & 0xffffff) == 0) {
        block.key[v] = keys + s.sixteen(head, own[0]);
        block.value[v] = values + s.sixteen(head, own[0]);
        continue;
      }
    }
    uint8_t *key = &x.key[LANES * v * s.row()], *value = &x.value[LANES * v * s.row()];
    gather<half>(s, keys, values, own, some, head, key, value);
    block.key[v] = key;
    block.value[v] = value;
  }
  return block;
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
// What a query sees: columns low to high.
struct Seen {
  int low, high;
};
INLINE Seen seen_by(const Queries& q, int i, int window) {
  int all = q.shared[i] + q.own[i];
  if (window <= 0) return {0, all};
  return {std::max(0, q.position[i] - window + 1), std::min(all, q.position[i] + window)};
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

// Queries [first, last) of a piece on one key head; query (n, q_stride) fp32, out (n, heads * dim)
template <bool half>
static void attend_tile(const Shape& s, const Queries& q, const Piece& piece, int first, int last, int head,
                        const uint8_t* keys, const uint8_t* values, int window, const float* query, size_t q_stride,
                        float* out, size_t out_stride, Scratch& x) {
  const int share = s.heads / s.kv_heads, rows = (last - first) * share;
  Seen seen[QUERIES];
  int low = INT32_MAX, high = 0;
  for (int i = first; i < last; i++) {
    seen[i - first] = seen_by(q, i, window);
    low = std::min(low, seen[i - first].low);
    high = std::max(high, q.own[i] ? std::min(seen[i - first].high, q.shared[i] / BLOCK * BLOCK)
                                   : seen[i - first].high);
  }
  const size_t own_bytes = (size_t)share * s.dim * 4;  // of a query, and of its result
  for (int i = first; i < last; i++) {
    const size_t at = (size_t)head * share * s.dim;
    fetch_lines(query + (size_t)i * q_stride + at, own_bytes);
    fetch_lines<true>(out + (size_t)i * out_stride + at, own_bytes);
  }
  for (int r = 0; r < rows; r++) {
    const float* from = query + (size_t)(first + r / share) * q_stride + (size_t)(head * share + r % share) * s.dim;
    for (int d = 0; d < s.dim; d += 16) store_as<half>(&x.query[r * s.row()], d, load_some(from + d, s.dim - d) * s.scale);
    x.most[r] = -INFINITY;
    store16(&x.sum[(size_t)r * LANES], f32x16{});
  }
  std::fill_n(x.out.data(), (size_t)rows * s.wide, 0.0f);
  const int32_t* columns = q.slots + piece.columns_at;
  for (int column = low / BLOCK * BLOCK; column < high; column += BLOCK) {
    // sixteens that nobody here sees are left out; a part of one would have to be gathered
    const int seen_here = (high - column + LANES - 1) / LANES * LANES;
    const int count = std::min({BLOCK, piece.columns - column, seen_here});
    const Block block = find_block<half>(s, keys, values, columns + column, count, head, x);
    if (column + BLOCK < high)
      fetch(s, keys, values, columns + column + BLOCK, std::min(BLOCK, high - column - BLOCK), head);
    int from = 0, to = last - first;  // whoever has columns of its own in this block meets them below
    auto meets = [&](int i) {
      return seen[i].low < column + BLOCK && seen[i].high > column &&
             (!q.own[first + i] || column + BLOCK <= q.shared[first + i]);
    };
    while (from < to && !meets(from)) from++;
    while (to > from && !meets(to - 1)) to--;
    for (int i = from; i < to;) {  // runs of queries that meet the block
      int stop = i;
      while (stop < to && meets(stop)) stop++;
      if (stop > i) meet_block<half>(s, seen, share, i * share, stop * share, column, block, x);
      i = std::max(stop, i + 1);
    }
  }
  int32_t mixed[BLOCK];
  for (int i = first; i < last; i++) {
    if (!q.own[i]) continue;
    const Seen own = seen[i - first];
    for (int column = std::max(q.shared[i], own.low) / BLOCK * BLOCK; column < own.high; column += BLOCK) {
      const int count = std::min(BLOCK, q.shared[i] + q.own[i] - column);
      for (int c = 0; c < count; c++) {
        int at = column + c;
        mixed[c] = at < q.shared[i] ? columns[at] : q.slots[q.own_at[i] + at - q.shared[i]];
      }
      const Block block = find_block<half>(s, keys, values, mixed, count, head, x);
      meet_block<half>(s, seen, share, (i - first) * share, (i - first + 1) * share, column, block, x);
    }
  }
  for (int r = 0; r < rows; r++) {
    float* to = out + (size_t)(first + r / share) * out_stride + (size_t)(head * share + r % share) * s.dim;
    const float sum = sum_of(load16(&x.sum[(size_t)r * LANES]));
    for (int d = 0; d < s.dim; d++) to[d] = x.out[(size_t)r * s.wide + d] / sum;
  }
}
