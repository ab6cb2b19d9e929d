// Weights as a GGUF file quantised them: codes of 4, 5, 6 or 8 bits, and what makes numbers of them.
//
// A tile holds 16 outputs, the inputs running down in groups of 32; a panel is two tiles, one after the other:
//   a group    16 scales in half precision (and 16 minima), then the codes of 16 outputs x 32 inputs
//   K types    every 256 inputs begin with 16 scales (and 16 minima) in half precision; a group begins with 16 scales
//              and 16 minima in a byte each, or, in Q6_K, with two rows of 16 scales: one per 16 inputs
//   codes      a step is 16 outputs x 4 inputs, 64 bytes; bytes of two steps share their nibbles, and the bits above
//              four lie in planes of 64 bytes: of the eight steps one bit each, or of four steps two bits each
//   MQ types   MergeQuant's: a tile begins with the scales of its 16 outputs in fp32, and groups are codes alone
//   floats     of each input the 16 outputs
// A number is scale x (code - offset) + minimum, as the file means it: nothing is rounded again.
#pragma once
#include "linear.h"

enum class Type : int32_t { Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, MQ4, MQ8, F32, F16, BF16 };
INLINE bool is_merged(Type t) { return t == Type::MQ4 || t == Type::MQ8; }

template <Type t>
struct Coding {
  static constexpr bool codes = t < Type::F32, merged = t == Type::MQ4 || t == Type::MQ8;
  static constexpr bool super = t == Type::Q4_K || t == Type::Q5_K || t == Type::Q6_K;
  static constexpr bool minimum = t == Type::Q4_1 || t == Type::Q5_1 || t == Type::Q4_K || t == Type::Q5_K;
  static constexpr int bits = t == Type::Q8_0 || t == Type::MQ8                              ? 8
                              : t == Type::Q6_K                                              ? 6
                              : t == Type::Q5_0 || t == Type::Q5_1 || t == Type::Q5_K        ? 5
                                                                                             : 4;
  static constexpr int offset = minimum ? 0 : 1 << (bits - 1);
  static constexpr int scales = t == Type::Q6_K ? 2 : 1;  // of 32 inputs
  static constexpr int item = t == Type::F32 ? 4 : 2;     // bytes of a float
  static constexpr size_t head = super ? (minimum ? 64 : 32) : 0, code_bytes = 64 * bits;
  static constexpr size_t scale_bytes = merged ? 0 : super || !minimum ? 32 : 64, group = scale_bytes + code_bytes;
  static constexpr size_t first = merged ? 64 : 0;  // what a tile begins with
  static constexpr size_t tile_bytes(int groups) {  // of 64 inputs
    if (!codes) return (size_t)groups * GROUP * 16 * item;
    return super ? (size_t)groups / 4 * (head + 8 * group) : first + (size_t)groups * 2 * group;
  }
  // in a file
  static constexpr int values = super ? 256 : codes ? 32 : 1;
  static constexpr size_t row_head = merged ? 4 : 0;  // a row's scale
  static constexpr size_t file_bytes = !codes   ? item
                                       : merged ? (size_t)4 * bits
                                       : super ? (t == Type::Q6_K ? 210 : 16 + 32 * bits)
                                               : (minimum ? 4 : 2) + (size_t)4 * bits;
};

template <class Work>
INLINE auto with_type(Type type, const Work& work) {
  switch (type) {
#define LIKELY_CASE(name) \
  case Type::name: return work(std::integral_constant<Type, Type::name>{});
    LIKELY_CASE(Q4_0) LIKELY_CASE(Q4_1) LIKELY_CASE(Q5_0) LIKELY_CASE(Q5_1) LIKELY_CASE(Q8_0) LIKELY_CASE(Q4_K)
    LIKELY_CASE(Q5_K) LIKELY_CASE(Q6_K) LIKELY_CASE(MQ4) LIKELY_CASE(MQ8) LIKELY_CASE(F32) LIKELY_CASE(F16)
#undef LIKELY_CASE
    default: return work(std::integral_constant<Type, Type::BF16>{});
  }
}
__attribute__((noinline)) static size_t panel_bytes_of(Type type, int groups) {
  return with_type(type, [&](auto t) { return 2 * Coding<decltype(t)::value>::tile_bytes(groups); });
}

// --- numbers of a file, one at a time ---------------------------------------------------------------------------------

template <Type t>
INLINE float float_at(const uint8_t* from) {
  if constexpr (t == Type::F16) return half_at(from);
  uint32_t bits = 0;
  memcpy((uint8_t*)&bits + 4 - Coding<t>::item, from, Coding<t>::item);
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// A block of a file: the stored codes of 32 values, and what stands before them in a tile.
struct FileGroup {
  alignas(16) uint8_t code[32];
  uint8_t scale[2][2];  // of a group: half precision; of K types: a byte each
};
template <Type t>
static void read_group(const uint8_t* block, int j, FileGroup& to) {  // j: which 32 of the block
  using B = Coding<t>;
  uint8_t* q = to.code;
  if constexpr (!B::super) {
    if (!B::merged) memcpy(to.scale[0], block, 2);
    if (B::minimum) memcpy(to.scale[1], block + 2, 2);
    const uint8_t* low = block + (B::merged ? 0 : B::minimum ? 4 : 2) + (B::bits == 5 ? 4 : 0);
    if constexpr (B::bits == 8) {
      for (int i = 0; i < 32; i++) q[i] = low[i] ^ 0x80;
    } else {
      for (int i = 0; i < 16; i++) q[i] = low[i] & 15, q[i + 16] = low[i] >> 4;
      if constexpr (B::bits == 5) {
        uint32_t high;
        memcpy(&high, low - 4, 4);
        for (int i = 0; i < 32; i++) q[i] |= (high >> i & 1) << 4;
      }
    }
  } else if constexpr (t == Type::Q6_K) {
    const uint8_t *low = block + 64 * (j / 4) + 32 * (j % 2), *high = block + 128 + 32 * (j / 4);
    const int quarter = j % 4;
    for (int i = 0; i < 32; i++)
      q[i] = (quarter < 2 ? low[i] & 15 : low[i] >> 4) | (high[i] >> (2 * quarter) & 3) << 4;
    for (int k = 0; k < 2; k++) to.scale[k][0] = block[192 + 2 * j + k];
  } else {
    const uint8_t *s = block + 4, *low = block + (B::bits == 5 ? 48 : 16) + 32 * (j / 2);
    to.scale[0][0] = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
    to.scale[1][0] = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4;
    for (int i = 0; i < 32; i++) q[i] = j % 2 ? low[i] >> 4 : low[i] & 15;
    if constexpr (B::bits == 5)
      for (int i = 0; i < 32; i++) q[i] |= (block[16 + i] >> j & 1) << 4;
  }
}

INLINE uint32_t four_at(const uint8_t* from) { return load_as<uint32_t>(from); }

// 32 stored codes of one output of a tile, and back.
template <Type t>
INLINE void put_codes(uint8_t* codes, int lane, const uint8_t* q) {
  constexpr int bits = Coding<t>::bits;
  auto put = [&](int line, uint32_t word) { memcpy(codes + 64 * line + 4 * lane, &word, 4); };
  if constexpr (bits == 8) {
    for (int s = 0; s < 8; s++) put(s, four_at(q + 4 * s));
  } else {
    constexpr uint32_t nibble = 0x0f0f0f0fu;
    for (int v = 0; v < 4; v++) put(v, (four_at(q + 8 * v) & nibble) | (four_at(q + 8 * v + 4) & nibble) << 4);
    if constexpr (bits > 4)
      for (int plane = 0; plane < bits - 4; plane++) {
        constexpr int steps = bits == 5 ? 8 : 4, wide = bits - 4;
        uint32_t word = 0;
        for (int s = 0; s < steps; s++)
          word |= (four_at(q + 4 * (plane * steps + s)) >> 4 & (bits == 5 ? 0x01010101u : 0x03030303u)) << wide * s;
        put(4 + plane, word);
      }
  }
}
template <Type t>
INLINE int code_at(const uint8_t* codes, int lane, int i) {
  constexpr int bits = Coding<t>::bits;
  const int s = i / 4, byte = 4 * lane + i % 4;
  if (bits == 8) return codes[64 * s + byte];
  int code = codes[64 * (s / 2) + byte] >> 4 * (s % 2) & 15;
  if (bits == 5) code |= (codes[256 + byte] >> s & 1) << 4;
  if (bits == 6) code |= (codes[256 + 64 * (s / 4) + byte] >> 2 * (s % 4) & 3) << 4;
  return code;
}

// Where a tile's groups are: `next` in the order of the inputs.
template <Type t>
struct Groups {
  const uint8_t *at, *head = nullptr;
  int passed = 0;
  explicit Groups(const uint8_t* tile) : at(tile + Coding<t>::first) {}
  inline __attribute__((always_inline)) const uint8_t* next() {
    if (Coding<t>::super && passed++ % 8 == 0) {
      head = at;
      at += Coding<t>::head;
    }
    const uint8_t* group = at;
    at += Coding<t>::group;
    return group;
  }
};

// Rows of a file (width values each) -> panels; rows that fill the last panel are zero.  false: a number is not finite,
// or a code of MQ8 is -128.
template <Type t>
static bool pack_rows(const uint8_t* file, int rows, int width, uint8_t* panels) {
  using B = Coding<t>;
  const int groups = (width + GROUP - 1) / GROUP;
  const size_t row_bytes = B::row_head + (size_t)(width / B::values) * B::file_bytes;
  bool finite = true;
  auto check = [&](float v) { finite = finite && v - v == 0; };
  memset(panels, 0, B::tile_bytes(groups) * 2 * ((rows + PANEL - 1) / PANEL));
  for (int row = 0; row < rows; row++) {
    const uint8_t* from = file + row * row_bytes;
    uint8_t* tile = panels + B::tile_bytes(groups) * (row / 16);
    const int lane = row % 16;
    if constexpr (!B::codes) {
      for (int i = 0; i < width; i++) {
        check(float_at<t>(from + B::item * i));
        memcpy(tile + ((size_t)16 * i + lane) * B::item, from + B::item * i, B::item);
      }
    } else {
      FileGroup group;
      if constexpr (B::merged) {
        check(float_at<Type::F32>(from));
        memcpy(tile + 4 * lane, from, 4);
        from += B::row_head;
        tile += B::first;
      }
      for (int i = 0; i < width; i += 32) {
        const uint8_t* block = from + i / B::values * B::file_bytes;
        if constexpr (B::super)
          if (i % 256 == 0) {
            const uint8_t* numbers = block + (t == Type::Q6_K ? 208 : 0);
            for (int k = 0; k < (B::minimum ? 2 : 1); k++) {
              check(half_at(numbers + 2 * k));
              memcpy(tile + 32 * k + 2 * lane, numbers + 2 * k, 2);
            }
            tile += B::head;
          }
        read_group<t>(block, i / 32 % 8, group);
        for (int k = 0; k < (B::merged ? 0 : B::super || B::minimum ? 2 : 1); k++)
          if constexpr (B::super) {
            tile[16 * k + lane] = group.scale[k][0];
          } else {
            check(half_at(group.scale[k]));
            memcpy(tile + 32 * k + 2 * lane, group.scale[k], 2);
          }
        if constexpr (t == Type::MQ8)
          for (uint8_t code : group.code) finite = finite && code > 0;  // -128, which sums of pairs do not hold
        put_codes<t>(tile + B::scale_bytes, lane, group.code);
        tile += B::group;
      }
    }
  }
  return finite;
}

// One row of a packed matrix as floats, times `factor`; rotated: its groups of 64 were multiplied by a Hadamard matrix.
template <Type t>
static void unpack_code_row(const uint8_t* panels, int groups, int row, float* to, int n, float factor, bool rotated) {
  using B = Coding<t>;
  const uint8_t* tile = panels + B::tile_bytes(groups) * (row / 16);
  const int lane = row % 16;
  Groups<t> walk(tile);
  for (int start = 0; start < n; start += GROUP) {
    alignas(64) float value[GROUP];
    if constexpr (!B::codes) {
      for (int i = 0; i < GROUP; i++) value[i] = float_at<t>(tile + ((size_t)16 * (start + i) + lane) * B::item);
    } else {
      const uint8_t* group = nullptr;
      for (int i = 0; i < GROUP; i++) {
        if (i % 32 == 0) group = walk.next();
        const int k = B::scales == 2 ? i % 32 / 16 : 0;
        float scale = B::merged ? float_at<Type::F32>(tile + 4 * lane) : half_at((B::super ? walk.head : group) + 2 * lane);
        float low = 0;
        if (B::super) scale *= t == Type::Q6_K ? (float)(int8_t)group[16 * k + lane] : (float)group[lane];
        if (B::super && B::minimum) low = -(half_at(walk.head + 32 + 2 * lane) * group[16 + lane]);
        if (!B::super && B::minimum) low = half_at(group + 32 + 2 * lane);
        value[i] = scale * (float)(code_at<t>(group + B::scale_bytes, lane, i % 32) - B::offset) + low;
      }
    }
    float times = factor;
    if (rotated) {
      rotate_group(value);
      times = factor / 8;
    }
    for (int i = 0; i < GROUP && start + i < n; i++) to[start + i] = value[i] * times;
  }
}

// 64 weights, rotated, to codes with a scale per 32 in half precision: blocks of Q4_0 or Q8_0.  Of several scales in 4
// bits the one whose squared error is least.
inline void round_rotated(int bits, const float* weights, uint8_t* blocks) {
  alignas(64) float w[GROUP];
  memcpy(w, weights, sizeof w);
  rotate_group(w);
  const int low = -(1 << (bits - 1)), high = -low - 1;
  for (int h = 0; h < 2; h++, blocks += bits == 4 ? 18 : 34) {
    const float* x = w + 32 * h;
    float most = 0;
    for (int i = 0; i < 32; i++) most = std::max(most, std::fabs(x[i]) / 8);
    float best = INFINITY;
    int8_t code[32] = {};
    uint16_t scale = 0;
    const int tries = bits == 4 ? 13 : 1;  // largest code: 7 .. 8.5 and on to values that are cut off
    for (int k = 0; k < tries && most > 0; k++) {
      const float divisor = bits == 4 ? 7.0f + 0.25f * (float)k : 127.0f;
      const uint16_t half = to_half(most / divisor);
      const float d = half_at((const uint8_t*)&half), inverse = d > 0 ? 1 / (8 * d) : 0;
      float error = 0;
      int8_t own[32];
      for (int i = 0; i < 32; i++) {
        const int q = std::min(high, std::max(low, (int)std::nearbyint(x[i] * inverse)));
        const float off = x[i] / 8 - d * (float)q;
        own[i] = (int8_t)q;
        error += off * off;
      }
      if (!(error < best)) continue;
      best = error;
      scale = half;
      memcpy(code, own, 32);
    }
    memcpy(blocks, &scale, 2);
    if (bits == 4)
      for (int i = 0; i < 16; i++) blocks[2 + i] = (uint8_t)((code[i] + 8) | (code[i + 16] + 8) << 4);
    else
      memcpy(blocks + 2, code, 32);
  }
}
