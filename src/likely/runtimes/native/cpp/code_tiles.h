// Products of a file's codes by the tile unit (AMX), sixteen rows at once, and the choice between it and products.h.
#pragma once
#include "products.h"

#if LIKELY_AMX
// One scale per output and row: sixteen rows at once.
template <Type t>
static void multiply_merged_by_tiles(const uint8_t* tile, const Rows& rows, int m0, float* out) {
  alignas(64) uint8_t codes[16 * 64];
  alignas(64) int32_t sum[16][16];
  Groups<t> walk(tile);
  _tile_zero(0);
  for (int g = 0; g < rows.groups; g++) {
    for (int h = 0; h < 2; h++) {
      const uint8_t* group = walk.next();
      each_step<0, 8>([&](auto s) { store_bytes(codes + 64 * (8 * h + s.value), unpack_step<t, s.value>(group)); });
    }
    asm volatile("" ::: "memory");  // a tile is read behind the compiler's back
    _tile_loadd(2, rows.data + ((size_t)g * rows.count + m0) * MERGED_UNIT, MERGED_UNIT);
    _tile_loadd(3, codes, 64);
    _tile_dpbsud(0, 2, 3);
  }
  _tile_stored(0, sum, 64);
  const Floats scale = load_floats((const float*)tile);
  for (int m = 0; m < 16; m++) {
    const Ints own = less<Coding<t>::bits - 1>(Ints{_mm512_load_si512(sum[m])}, rows.bias[m0 + m]);
    store_floats(out + m * PANEL, times(times(to_floats(own), scale), floats(rows.scale[m0 + m])));
  }
}

// Some groups of a tile as they are multiplied: codes less their offset, one byte each.  Inputs with a scale of their own
// have codes of their own, zero for the other inputs of the group.
template <Type t>
struct Unpacked {
  static constexpr int PARTS = Coding<t>::scales, GROUPS = 8 / PARTS, ALL = GROUPS * PARTS;
  alignas(64) uint8_t code[ALL][8 * 64];
  Floats scale[ALL], minimum[GROUPS];
  void read(Groups<t>& walk, int count) {
    for (int j = 0; j < count; j++) {
      const uint8_t* group = walk.next();
      const Scales<t> s = scales_of<t>(walk.head, group);
      if constexpr (Coding<t>::minimum) minimum[j] = s.minimum;
      each_step<0, PARTS>([&](auto k) {
        scale[PARTS * j + k] = s.scale[k];
        each_step<0, 8>([&](auto step) {
          __m512i v = _mm512_setzero_si512();
          if constexpr (step.value * PARTS / 8 == k.value)
            v = _mm512_sub_epi8(unpack_step<t, step.value>(group + Coding<t>::scale_bytes).v,
                                _mm512_set1_epi8((char)Coding<t>::offset));
          _mm512_store_si512(code[PARTS * j + k] + 64 * step.value, v);
        });
      });
    }
    asm volatile("" ::: "memory");  // tiles are read behind the compiler's back
  }
};

// sum_one, sum_other (16 rows, 16 outputs) = sixteen rows of 32 codes, `unit` bytes apart, times the codes of two tiles.
// again: the same rows as last time.  WHICH: of the two sets of registers, so that one product need not wait for another.
template <int WHICH>
INLINE void sum_by_tiles(const uint8_t* rows, int unit, const uint8_t* one, const uint8_t* other, int32_t* sum_one,
                         int32_t* sum_other, bool again) {
#define LIKELY_TILES(first, second, row)    \
  if (!again) _tile_loadd(row, rows, unit); \
  _tile_loadd(6, one, 64);                  \
  _tile_loadd(7, other, 64);                \
  _tile_zero(first);                        \
  _tile_dpbssd(first, row, 6);              \
  _tile_zero(second);                       \
  _tile_dpbssd(second, row, 7);             \
  _tile_stored(first, sum_one, 64);         \
  _tile_stored(second, sum_other, 64);
  if constexpr (WHICH == 0) {
    LIKELY_TILES(0, 1, 4)
  } else {
    LIKELY_TILES(2, 3, 5)
  }
#undef LIKELY_TILES
}

// out (n, 32) = rows m0.. times a panel, n a multiple of 16: sixteen rows at once, codes unpacked once for all of them.
// Sums are whole, and so all bits are those of multiply_tile.
template <Type t>
static void multiply_by_tiles(const uint8_t* panel, const Rows& rows, int m0, int n, float* out) {
  constexpr int PARTS = Unpacked<t>::PARTS;
  const int together = n > 16 ? Unpacked<t>::GROUPS : Unpacked<t>::GROUPS / 2;  // few rows: less between two reads
  alignas(64) int32_t sum[2][Unpacked<t>::ALL][16][16];
  Unpacked<t> tile[2];
  const size_t stride = (size_t)rows.count * rows.unit;  // from 64 inputs to the next
  Groups<t> walk[2] = {Groups<t>(panel), Groups<t>(panel + Coding<t>::tile_bytes(rows.groups))};
  for (int first = 0; first < 2 * rows.groups; first += together) {
    const int count = std::min(together, 2 * rows.groups - first);
    for (int i = 0; i < 2; i++) tile[i].read(walk[i], count);
    // what comes next is fetched little by little, while these are multiplied: all at once it would be waited for.  What
    // follows that is on its way to the second cache.
    const size_t bytes = count * Coding<t>::group;
    const size_t steps = 3 * n / 16 * PARTS * count, share = (bytes / 64 + steps) / steps * 64;
    const auto next_of = [&](int i, int step) {  // behind a panel the next one's two tiles, each a tile's bytes further
      const bool beyond = first + (step + 1) * count >= 2 * rows.groups;
      return walk[i].at + step * bytes + (beyond ? Coding<t>::tile_bytes(rows.groups) : 0);
    };
    const uint8_t *const soon[2] = {next_of(0, 0), next_of(1, 0)}, *const later[2] = {next_of(0, 1), next_of(1, 1)};
    size_t line = 0;
    const auto fetch_share = [&] {
      for (const size_t end = std::min(line + share, bytes); line < end; line += 64)
        for (int i = 0; i < 2; i++) {
          __builtin_prefetch(soon[i] + line);
          __builtin_prefetch(later[i] + line, 0, 2);
        }
    };
    for (int m = 0; m < n; m += 16) {
      const uint8_t* block = (const uint8_t*)activations(rows, first / 2, m0 + m);
      for (int j = 0; j < count; j += 2, block += stride)  // an even number
        each_step<0, 2>([&](auto h) {
          for (int k = PARTS * (j + h); k < PARTS * (j + h + 1); k++) {
            fetch_share();
            sum_by_tiles<h.value>(block + 32 * h, rows.unit, tile[0].code[k], tile[1].code[k], sum[0][k][0],
                                  sum[1][k][0], k % PARTS > 0);
          }
        });
      block -= count / 2 * stride;
      for (int half = 0; half < 16; half += 8) {  // as many sums as there are registers for
        float* to = out + (m + half) * PANEL;
        const uint8_t* from = block + half * rows.unit;
        Floats f[8][2];
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++)
          for (int i = 0; i < 2; i++) f[r][i] = first ? load_floats(to + r * PANEL + 16 * i) : floats(0);
        for (int j = 0; j < count; j += 2, from += stride)
          each_step<0, 2 * PARTS>([&](auto part) {
            constexpr int h = part.value / PARTS;
            const int k = PARTS * j + part.value;
            fetch_share();
#pragma GCC unroll 8
            for (int r = 0; r < 8; r++) {
              const Activations& a = *(const Activations*)(from + r * rows.unit);
#pragma GCC unroll 2
              for (int i = 0; i < 2; i++) {
                const Floats whole = to_floats(Ints{_mm512_load_si512(sum[i][k][half + r])});
                f[r][i] = fma_floats(whole, times(tile[i].scale[k], floats(a.scale[h])), f[r][i]);
                if constexpr (Coding<t>::minimum)
                  f[r][i] = fma_floats(tile[i].minimum[k], floats(a.scaled_sum[h]), f[r][i]);
              }
            }
          });
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++)
          for (int i = 0; i < 2; i++) store_floats(to + r * PANEL + 16 * i, f[r][i]);
      }
    }
  }
}
#endif

// out (n, 32) = rows m0.. times a panel, n <= MOST_TOGETHER; tiles: the thread's tile unit is set up
template <Type t>
static void multiply_codes(const uint8_t* panel, const Rows& rows, int m0, int n, bool tiles, float* out) {
  using B = Coding<t>;
  int whole = 0;  // rows that were taken by sixteen
#if LIKELY_AMX
  if (B::codes && tiles && n >= 16 * B::scales) whole = n / 16 * 16;
  if constexpr (B::codes && !B::merged)
    if (whole) multiply_by_tiles<t>(panel, rows, m0, whole, out);
#else
  (void)tiles;
#endif
  for (int tile = 0; tile < 2; tile++, panel += B::tile_bytes(rows.groups), out += 16) {
#if LIKELY_AMX
    if constexpr (B::merged)
      for (int m = 0; m < whole; m += 16) multiply_merged_by_tiles<t>(panel, rows, m0 + m, out + m * PANEL);
#endif
    const auto block = [&](int m, auto size) {
      if constexpr (B::merged)
        multiply_merged<t, size.value>(panel, rows, m0 + m, out + m * PANEL);
      else if constexpr (B::codes)
        multiply_tile<t, size.value>(panel, rows, m0 + m, out + m * PANEL);
      else
        multiply_exact<t, size.value>(panel, rows, m0 + m, out + m * PANEL);
    };
    for (int m = whole, left = n - m; left; m = n - left) left -= a_block(left, [&](auto size) { block(m, size); });
  }
}

// The same of any type: see native.cpp.
__attribute__((visibility("hidden"))) void multiply_codes_of(Type type, const uint8_t* panel, const Rows& rows, int m0,
                                                              int n, bool tiles, float* out);

// done(row, tile 0, tile 1) for every one of the n rows times one panel of a file's codes.
template <class Done>
static void multiply_panel_of(Type type, const uint8_t* panel, const Rows& rows, int n, const Tiles& tiles,
                              const Done& done) {
  alignas(64) float out[MOST_TOGETHER * PANEL];
  for (int first = 0; first < n; first += MOST_TOGETHER) {
    const int some = std::min(MOST_TOGETHER, n - first);
    multiply_codes_of(type, panel, rows, first, some, tiles.ready, out);
    for (int m = 0; m < some; m++) done(first + m, load16(out + m * PANEL), load16(out + m * PANEL + 16));
  }
}
