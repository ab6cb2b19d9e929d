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

// Eight groups of a tile as they are multiplied: codes less their offset, one byte each.  Inputs with a scale of their own
// have codes of their own, zero for the other inputs of the group.
template <Type t>
struct Unpacked {
  static constexpr int GROUPS = 8, PARTS = Coding<t>::scales;
  alignas(64) uint8_t code[GROUPS * PARTS][8 * 64];
  Floats scale[GROUPS * PARTS], minimum[GROUPS];
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
    fetch_lines(walk.at, GROUPS * Coding<t>::group);  // what comes next, while these are multiplied
    asm volatile("" ::: "memory");                    // tiles are read behind the compiler's back
  }
};

// out (n, 32) = rows m0.. times a panel, n a multiple of 16: sixteen rows at once, codes unpacked once for all of them.
// Sums are whole, and so all bits are those of multiply_tile.
template <Type t>
static void multiply_by_tiles(const uint8_t* panel, const Rows& rows, int m0, int n, float* out) {
  constexpr int GROUPS = Unpacked<t>::GROUPS, PARTS = Unpacked<t>::PARTS;
  alignas(64) int32_t sum[GROUPS * PARTS][16][16];
  Unpacked<t> tile[2];
  Groups<t> walk[2] = {Groups<t>(panel), Groups<t>(panel + Coding<t>::tile_bytes(rows.groups))};
  for (int first = 0; first < 2 * rows.groups; first += GROUPS) {
    const int count = std::min(GROUPS, 2 * rows.groups - first);
    for (int i = 0; i < 2; i++) tile[i].read(walk[i], count);
    for (int m = 0; m < n; m += 16)
      for (int i = 0; i < 2; i++) {
        const auto block = [&](int j) { return (const uint8_t*)activations(rows, (first + j) / 2, m0 + m); };
        for (int j = 0; j < count; j++) {
          _tile_loadd(5, block(j) + 32 * (j % 2), rows.unit);
          for (int k = PARTS * j; k < PARTS * (j + 1); k++) {
            _tile_zero(0);
            _tile_loadd(6, tile[i].code[k], 64);
            _tile_dpbssd(0, 5, 6);
            _tile_stored(0, sum[k], 64);
          }
        }
        float* to = out + m * PANEL + 16 * i;
        Floats f[16];
#pragma GCC unroll 16
        for (int r = 0; r < 16; r++) f[r] = first ? load_floats(to + r * PANEL) : floats(0);
        for (int k = 0; k < PARTS * count; k++) {
          const uint8_t* from = block(k / PARTS);
          const int h = k / PARTS % 2;
#pragma GCC unroll 16
          for (int r = 0; r < 16; r++) {
            const Activations& a = *(const Activations*)(from + r * rows.unit);
            const Floats whole = to_floats(Ints{_mm512_load_si512(sum[k][r])});
            f[r] = fma_floats(whole, times(tile[i].scale[k], floats(a.scale[h])), f[r]);
            if constexpr (Coding<t>::minimum) f[r] = fma_floats(tile[i].minimum[k], floats(a.scaled_sum[h]), f[r]);
          }
        }
#pragma GCC unroll 16
        for (int r = 0; r < 16; r++) store_floats(to + r * PANEL, f[r]);
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
