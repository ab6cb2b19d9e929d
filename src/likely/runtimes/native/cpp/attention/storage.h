// Where keys and values lie: sixteen slots together, in the form that is computed with, or in fewer bits.
#pragma once
#include <algorithm>
#include <vector>

#include "formats.h"

constexpr int BLOCK = 64, LANES = 16, VECTORS = BLOCK / LANES;
constexpr int QUERIES = 16, MOST_QUERIES = 32;  // of a tile: of one piece of work, of several

// Queries and weights are bf16 (half) or fp32, and so are keys and values when they are used.  What is multiplied lies in
// steps of four bytes: two bf16 numbers or one fp32 number of each lane.  Of sixteen slots:
//   keys    per step of dimensions the sixteen slots
//   values  per step of slots the `wide` dimensions
// Keys (or values) that are stored as they are computed with lie so in memory, and sixteen columns that are sixteen slots
// in a row from a multiple of sixteen are read where they are.  In other forms the sixteen slots are laid out alike, key
// codes of a dimension (BFP12: of two) side by side and value codes of a slot in a row (BFP12: of sixteen dimensions the
// first eight in the low halves of bytes), scales behind them; a block is decoded before it is used.  Keys of Q8_0 lie
// as weights of int8 do, four dimensions of a slot together and 128 added: with `half` they are multiplied as they are.
struct Shape {
  int heads, kv_heads, dim, wide;  // wide: dim rounded up to 32
  float scale, softcap;  // of scores; softcap 0: none
  bool half;
  size_t capacity;  // slots, a multiple of 16: keys and values lie as (kv_heads, capacity / 16, sixteen slots)
  Side keys, values;
  const int32_t *key_order, *value_order;  // (kv_heads, dim) which channel lies at each place; null: as they come
  int share() const { return heads / kv_heads; }
  int most_queries() const { return std::clamp(128 / share(), QUERIES, MOST_QUERIES); }
  size_t row() const { return (size_t)wide * (half ? 2 : 4); }
  bool in_place(Side side) const { return side.form == (half ? Form::BF16 : Form::F32); }
  bool direct() const { return half && keys.form == Form::Q8_0; }
  size_t columns() const { return (dim + 15) / 16 * 16; }
  size_t scales_at(Side side) const { return LANES * columns() * bits_of(side.form) / 8; }
  size_t sixteen_bytes(Side side) const {
    if (in_place(side)) return LANES * row();
    const size_t blocks = side.block ? columns() / side.block : 0;
    return scales_at(side) + LANES * blocks * scale_bytes_of(side.form);
  }
  size_t at(Side side, int head, int slot) const {
    return ((size_t)head * (capacity / LANES) + slot / LANES) * sixteen_bytes(side);
  }
};

// Scratch of one thread.  Its rows are the query heads of one key head, of each query of a tile, and sixteen after them,
// which the tile unit may compute with.
struct Scratch {
  bool tiles = false;  // the thread has that unit set up
  std::vector<uint8_t> query, key, value, weight, coded;
  std::vector<float> score, out, most, sum;  // sum: of each row sixteen parts, by column
  int64_t columns_read = 0;                  // of one key head, over all calls
  void fit(const Shape& s) {
    const size_t rows = (size_t)s.most_queries() * s.share() + LANES;
    if (query.size() >= rows * s.row() && !query.empty()) return;
    query.assign(rows * s.row(), 0);
    key.assign(BLOCK * s.row(), 0);
    value.assign(BLOCK * s.row(), 0);
    coded.assign(std::max(s.sixteen_bytes(s.keys), s.sixteen_bytes(s.values)) + 64, 0);
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
INLINE void store_as(uint8_t* to, int at, f32x16 v) {
  if constexpr (half)
    to_bf16((uint16_t*)to + at, v);
  else
    store16((float*)to + at, v);
}

// Channels (dim,) of a head in the order in which they lie: as they come, or brought to `room`.
INLINE const float* in_order(const int32_t* orders, int head, int dim, const float* x, float* room) {
  if (!orders) return x;
  for (int d = 0; d < dim; d++) room[d] = x[orders[head * dim + d]];
  return room;
}

// --- one token to its lane of sixteen slots ---------------------------------------------------------------------------

template <bool half>
INLINE void store_key(const Shape& s, uint8_t* sixteen, int lane, const float* key) {
  const int item = half ? 2 : 4, steps = (s.dim * item + 3) / 4;
  alignas(64) uint8_t row[MOST_DIM * 4];
  for (int d = 0; d < s.dim; d += 16) store_as<half>(row, d, load_some(key + d, s.dim - d));
  for (int d = 0; d < steps; d++) memcpy(sixteen + 64 * d + 4 * lane, row + 4 * d, 4);
}
template <bool half>
INLINE void store_value(const Shape& s, uint8_t* sixteen, int lane, const float* value) {
  alignas(64) uint8_t row[MOST_DIM * 4];
  for (int d = 0; d < s.dim; d += 16) store_as<half>(row, d, load_some(value + d, s.dim - d));
  if constexpr (half) {
    uint8_t* to = sixteen + (size_t)(lane / 2) * s.wide * 4 + 2 * (lane % 2);
    for (int d = 0; d < s.dim; d++) memcpy(to + 4 * d, row + 2 * d, 2);
  } else {
    memcpy(sixteen + (size_t)lane * s.wide * 4, row, (size_t)s.dim * 4);
  }
}
inline void store_coded_key(const Shape& s, uint8_t* sixteen, int lane, const Coded& row) {
  const int columns = (int)s.columns(), bytes = scale_bytes_of(s.keys.form);
  if (s.keys.form == Form::BFP12)
    for (int d = 0; d < columns; d += 2) sixteen[d / 2 * LANES + lane] = (row.code[d] & 15) | row.code[d + 1] << 4;
  else if (bits_of(s.keys.form) == 16)
    for (int d = 0; d < columns; d++) memcpy(sixteen + 2 * (d * LANES + lane), row.code + 2 * d, 2);
  else if (s.keys.form == Form::Q8_0)
    for (int d = 0; d < columns; d++) sixteen[d / 4 * 4 * LANES + 4 * lane + d % 4] = row.code[d] ^ 0x80;
  else
    for (int d = 0; d < columns; d++) sixteen[d * LANES + lane] = row.code[d];
  uint8_t* scales = sixteen + s.scales_at(s.keys);
  for (int b = 0; bytes && b < columns / s.keys.block; b++)
    memcpy(scales + (b * LANES + lane) * bytes, row.scale + b * bytes, bytes);
}
inline void store_coded_value(const Shape& s, uint8_t* sixteen, int lane, const Coded& row) {
  const size_t columns = s.columns(), own = columns * bits_of(s.values.form) / 8;
  uint8_t* to = sixteen + lane * own;
  if (s.values.form == Form::BFP12)
    for (size_t d = 0; d < columns; d += 16)
      for (int i = 0; i < 8; i++) to[d / 2 + i] = (row.code[d + i] & 15) | row.code[d + 8 + i] << 4;
  else
    memcpy(to, row.code, own);
  const size_t scales = scale_bytes_of(s.values.form) ? columns / s.values.block * scale_bytes_of(s.values.form) : 0;
  memcpy(sixteen + s.scales_at(s.values) + lane * scales, row.scale, scales);
}

// Key and value (dim,) fp32 of one token to its slot.
template <bool half>
inline void store_token(const Shape& s, uint8_t* keys, uint8_t* values, int head, int slot, const float* key,
                        const float* value) {
  uint8_t *k = keys + s.at(s.keys, head, slot), *v = values + s.at(s.values, head, slot);
  const int lane = slot % LANES;
  float room[MOST_DIM + 16];
  Coded row;
  key = in_order(s.key_order, head, s.dim, key, room);
  if (s.in_place(s.keys)) {
    store_key<half>(s, k, lane, key);
  } else {
    encode(s.keys, key, s.dim, row);
    store_coded_key(s, k, lane, row);
  }
  value = in_order(s.value_order, head, s.dim, value, room);
  if (s.in_place(s.values)) {
    store_value<half>(s, v, lane, value);
  } else {
    encode(s.values, value, s.dim, row);
    store_coded_value(s, v, lane, row);
  }
}

// --- sixteen columns to what is computed with -------------------------------------------------------------------------

INLINE u32x16 bf16_bits(f32x16 v) { return ((u32x16)v + 0x7fffu + ((u32x16)v >> 16 & 1u)) >> 16; }

// Two numbers of each lane, as two bf16 or in rows of fp32.
template <bool half>
INLINE void store_two(uint8_t* first, uint8_t* second, f32x16 a, f32x16 b) {
  if constexpr (half) {
    const u32x16 both = bf16_bits(a) | bf16_bits(b) << 16;
    memcpy(first, &both, 64);
  } else {
    store16((float*)first, a);
    store16((float*)second, b);
  }
}

template <Form form, bool half>
static void decode_keys(const Shape& s, const uint8_t* from, uint8_t* to) {
  constexpr int bytes = form == Form::BFP12 ? 1 : (form == Form::BF16 || form == Form::F16) ? 2 : 1;
  const uint8_t* scales = from + s.scales_at(s.keys);
  const int columns = (int)s.columns();
  f32x16 scale = {};
  for (int d = 0; d < columns; d += 2) {
    if (scale_bytes_of(form) && d % s.keys.block == 0)
      scale = scales16<form>(scales + d / s.keys.block * LANES * scale_bytes_of(form));
    f32x16 a, b;
    if constexpr (form == Form::BFP12) {
      const i8x16 both = load_as<i8x16>(from + d / 2 * LANES), low = low_halves(both), high = high_halves(both);
      a = decode16<form>((const uint8_t*)&low, scale);
      b = decode16<form>((const uint8_t*)&high, scale);
    } else if constexpr (form == Form::Q8_0) {  // two of each slot's four
      const u32x16 four = load_as<u32x16>(from + d / 4 * 4 * LANES) ^ 0x80808080u, two = d % 4 ? four : four << 16;
      a = to_float((i32x16)(two << 8) >> 24) * scale;
      b = to_float((i32x16)two >> 24) * scale;
    } else {
      a = decode16<form>(from + (size_t)d * LANES * bytes, scale);
      b = decode16<form>(from + (size_t)(d + 1) * LANES * bytes, scale);
    }
    uint8_t* first = to + (half ? d / 2 : d) * 64;
    store_two<half>(first, first + 64, a, b);
  }
  const size_t done = LANES * (size_t)columns * (half ? 2 : 4);
  memset(to + done, 0, LANES * s.row() - done);
}

template <Form form, bool half>
static void decode_values(const Shape& s, const uint8_t* from, uint8_t* to) {
  const int columns = (int)s.columns();
  const size_t own = (size_t)columns * bits_of(form) / 8;
  const size_t scales = scale_bytes_of(form) ? columns / s.values.block * scale_bytes_of(form) : 0;
  auto numbers = [&](int slot, int d) {
    f32x16 scale = {};
    if constexpr (scale_bytes_of(form) > 0)
      scale = all16(scale_at<form>(from + s.scales_at(s.values) + slot * scales + d / s.values.block * scale_bytes_of(form)));
    const uint8_t* row = from + slot * own;
    if constexpr (form == Form::BFP12) {
      int8_t eight[16];
      for (int i = 0; i < 8; i++) {
        const int8_t both = (int8_t)row[d / 2 + i];
        eight[i] = (int8_t)(((both & 15) ^ 8) - 8);
        eight[8 + i] = both >> 4;
      }
      return decode16<form>((const uint8_t*)eight, scale);
    } else {
      return decode16<form>(row + d * bits_of(form) / 8, scale);
    }
  };
  for (int slot = 0; slot < LANES; slot += 2) {
    uint8_t* first = to + (size_t)(half ? slot / 2 : slot) * s.wide * 4;
    uint8_t* second = first + (size_t)s.wide * 4;
    for (int d = 0; d < columns; d += 16)
      store_two<half>(first + 4 * d, second + 4 * d, numbers(slot, d), numbers(slot + 1, d));
    const size_t rest = 4 * (size_t)(s.wide - columns);
    memset(first + 4 * columns, 0, rest);
    if (!half) memset(second + 4 * columns, 0, rest);
  }
}

// Lane `lane` of sixteen slots to lane `i` of others; `to` starts as zeros.
template <bool half>
INLINE void take_key(const Shape& s, const uint8_t* from, int lane, uint8_t* to, int i) {
  auto copy = [&](size_t at, size_t steps, int bytes) {
    for (size_t d = 0; d < steps; d++)
      memcpy(to + at + (d * LANES + i) * bytes, from + at + (d * LANES + lane) * bytes, bytes);
  };
  if (s.in_place(s.keys)) return copy(0, s.row() / 4, 4);
  const Form form = s.keys.form;
  if (bits_of(form) == 16) return copy(0, s.columns(), 2);
  if (form == Form::Q8_0)
    copy(0, s.columns() / 4, 4);
  else
    copy(0, form == Form::BFP12 ? s.columns() / 2 : s.columns(), 1);
  copy(s.scales_at(s.keys), s.columns() / s.keys.block, scale_bytes_of(form));
}
template <bool half>
INLINE void take_value(const Shape& s, const uint8_t* from, int lane, uint8_t* to, int i) {
  if (!s.in_place(s.values)) {
    const size_t own = s.columns() * bits_of(s.values.form) / 8, at = s.scales_at(s.values);
    memcpy(to + i * own, from + lane * own, own);
    const size_t scales = (s.sixteen_bytes(s.values) - at) / LANES;
    memcpy(to + at + i * scales, from + at + lane * scales, scales);
    return;
  }
  if constexpr (half) {
    const u32x16* own = (const u32x16*)(from + (size_t)(lane / 2) * s.wide * 4);
    uint8_t* row = to + (size_t)(i / 2) * s.wide * 4;
    for (int d = 0; d < s.wide / 16; d++) {
      const u32x16 one = load_as<u32x16>(own + d) >> (lane % 2 ? 16u : 0u) & 0xffffu;
      const u32x16 both = load_as<u32x16>(row + 64 * d) | one << (i % 2 ? 16u : 0u);
      memcpy(row + 64 * d, &both, 64);
    }
  } else {
    memcpy(to + (size_t)i * s.wide * 4, from + (size_t)lane * s.wide * 4, (size_t)s.wide * 4);
  }
}

// Keys (or values) of up to sixteen columns: where they are if they are a run of slots, else brought together in `to`;
// lanes without a column are zero.  as_stored: not decoded
template <bool half, bool is_key>
static const uint8_t* find_sixteen(const Shape& s, const uint8_t* all, const int32_t* slots, int count, bool run,
                                   int head, uint8_t* to, Scratch& x, bool as_stored) {
  const Side side = is_key ? s.keys : s.values;
  const bool in_place = as_stored || s.in_place(side);
  const uint8_t* found = all + s.at(side, head, slots[0]);
  if (!run) {
    uint8_t* together = in_place ? to : x.coded.data();
    memset(together, 0, s.sixteen_bytes(side));
    for (int i = 0; i < count; i++) {
      const uint8_t* from = all + s.at(side, head, slots[i]);
      if constexpr (is_key)
        take_key<half>(s, from, slots[i] % LANES, together, i);
      else
        take_value<half>(s, from, slots[i] % LANES, together, i);
    }
    found = together;
  }
  if (in_place) return found;
  with_form(side.form, [&](auto form) {
    constexpr bool never = half && (form.value == Form::BF16 || form.value == Form::F16);
    if constexpr (never)
      return;
    else if constexpr (is_key)
      decode_keys<form.value, half>(s, found, to);
    else
      decode_values<form.value, half>(s, found, to);
  });
  return to;
}

// Keys and values that come next, on their way while the present block is computed.
static void fetch(const Shape& s, const uint8_t* keys, const uint8_t* values, const int32_t* slots, int count,
                  int head) {
  for (int c = 0; c < count; c += LANES) {
    fetch_lines(keys + s.at(s.keys, head, slots[c]), s.sixteen_bytes(s.keys));
    fetch_lines(values + s.at(s.values, head, slots[c]), s.sixteen_bytes(s.values));
  }
}

// `slots` of `count` columns as a block; direct: keys as they are stored.  Only whole sixteens are read in place: what is
// beside fewer may be anything.
template <bool half>
static Block find_block(const Shape& s, const uint8_t* keys, const uint8_t* values, const int32_t* slots, int count,
                        int head, Scratch& x, bool direct) {
  const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Block block;
  block.count = count;
  x.columns_read += count;
  for (int v = 0; v < block.vectors(); v++) {
    const int32_t* own = slots + LANES * v;
    const int some = std::min(LANES, count - LANES * v);
    bool run = false;
    if (some == LANES && own[0] % LANES == 0) {
      const i32x16 other = load_as<i32x16>(own) ^ (lane + own[0]);
      run = sum_of(other & 0xff) == 0 && sum_of(other >> 8 & 0xffffff) == 0;
    }
    const size_t at = LANES * v * s.row();
    block.key[v] = find_sixteen<half, true>(s, keys, own, some, run, head, &x.key[at], x, direct);
    block.value[v] = find_sixteen<half, false>(s, values, own, some, run, head, &x.value[at], x, false);
  }
  return block;
}
