// Products of a file's codes (codes.h) with rows of activations.
//
// Activations are int8 codes with a scale per 32 inputs.  Within a group sums are whole numbers, exact on every
// instruction set; a group's sum times its two scales is added by one fused operation (rounded once), groups in the order
// of the inputs.  So a row's bits depend neither on the rows beside it nor on the instructions.
//
// MergeQuant's matrices have one scale per output, and their rows one scale or none: a product is one whole sum.
#pragma once
#include "codes.h"
#include "simd/bytes.h"

// 64 inputs of a row: codes, then of each 32 the scale, the sum of codes and scale x sum, and sums of codes per 16.
struct Activations {
  int8_t code[64];
  float scale[2], scaled_sum[2];
  int32_t sum[2], unused[2], sum16[4];
  float exact[64];  // only where a model has matrices of floats
};
static_assert(offsetof(Activations, exact) == CODES_UNIT && sizeof(Activations) == CODES_UNIT_WITH_FLOATS);

// Rows lie group by group: all rows of 64 inputs together.
INLINE const Activations* activations(const Rows& rows, int group, int m) {
  return (const Activations*)(rows.data + ((size_t)group * rows.count + m) * rows.unit);
}

template <>
inline __attribute__((always_inline)) void prepare_group<CODES>(const Rows& rows, int m, int g, f32x16 a, f32x16 b, f32x16 c, f32x16 d) {
  f32x16 part[4] = {a, b, c, d};
  Activations& to = *(Activations*)activations(rows, g, m);
  if (rows.unit == CODES_UNIT_WITH_FLOATS)
    for (int i = 0; i < 4; i++) store16(to.exact + 16 * i, part[i]);
  if (rows.rotated) hadamard64(part);
  for (int h = 0; h < 2; h++) {
    const f32x16 low = part[2 * h], high = part[2 * h + 1];
    const float most = max_of(max16(abs16(low), abs16(high)));
    const float finite = sum_of(low * 0.0f + high * 0.0f);  // NaN if one is not a number, which codes would hide
    const float scale = most / (rows.rotated ? 8 * 127.0f : 127.0f) + finite, inverse = most > 0 ? 127.0f / most : 0.0f;
    int32_t sum = 0;
    for (int i = 0; i < 2; i++) {
      const i32x16 code = __builtin_convertvector(round16(part[2 * h + i] * inverse), i32x16);
      const i8x16 narrow = __builtin_convertvector(code, i8x16);
      memcpy(to.code + 32 * h + 16 * i, &narrow, 16);
      sum += to.sum16[2 * h + i] = sum_of(code);
    }
    to.sum[h] = sum;
    to.scale[h] = scale;
    to.scaled_sum[h] = scale * (float)sum;
  }
}

// Rows for MergeQuant's matrices: codes alone, group by group as above; Rows::scale and Rows::bias hold, of each row, its
// scale and the sum of its codes.
constexpr int MERGED_UNIT = 64;

// Which codes of a row stand a second time, in columns after the others: channels whose steps were split.
struct ExtraColumns {
  const int32_t* channel = nullptr;
  int32_t count = 0;
};
// bits of the codes; per_token: with the scale of the row's largest number, else 1 (steps are folded into the model)
struct CodeForm {
  int bits;
  bool per_token;
};

// Row m: x (n,) times factor and weight (null: as it is), each number to its nearest code, ties to even.
INLINE void emit_codes(const Rows& rows, int m, const float* x, int n, float factor, const float* weight,
                       const ExtraColumns& extra, CodeForm form) {
  const float most = (float)((1 << (form.bits - 1)) - 1);
  const auto codes_at = [&](int c) {
    return (int8_t*)rows.data + ((size_t)(c / GROUP) * rows.count + m) * MERGED_UNIT + c % GROUP;
  };
  const auto sixteen = [&](int c) {
    f32x16 v = {};
    if (c + 16 <= n)
      v = load16(x + c);
    else
      for (int j = 0; c + j < n; j++) v[j] = x[c + j];
    if (!weight) return v;
    v = v * factor;
    if (c + 16 <= n) return v * load16(weight + c);
    for (int j = 0; c + j < n; j++) v[j] *= weight[c + j];
    return v;
  };
  float scale = 1;
  if (form.per_token) {
    f32x16 peak = {};
    for (int c = 0; c < n; c += 16) peak = max16(peak, abs16(sixteen(c)));
    scale = std::max(max_of(peak) / most, 1e-12f);
  }
  f32x16 finite = {};  // NaN if one is not a number, which codes would hide
  i32x16 sum = {};
  for (int c = 0; c < rows.groups * GROUP; c += 16) {
    f32x16 v = sixteen(c);
    finite += v * 0.0f;
    if (form.per_token) v = v / scale;
    v = v > all16(most) ? all16(most) : v < all16(-most - 1) ? all16(-most - 1) : v;
    const i32x16 code = __builtin_convertvector(round16(v), i32x16);
    sum += code;
    const i8x16 narrow = __builtin_convertvector(code, i8x16);
    memcpy(codes_at(c), &narrow, 16);
  }
  int32_t all = sum_of(sum);
  for (int i = 0; i < extra.count; i++) all += *codes_at(n + i) = *codes_at(extra.channel[i]);
  rows.scale[m] = scale + sum_of(finite);
  rows.bias[m] = all;
}

// --- whole numbers ----------------------------------------------------------------------------------------------------

// Whether codes of 6 and 8 bits are multiplied as signed numbers, their offset taken out before.
template <Type t>
constexpr bool SIGNED = LIKELY_AVX2 && !LIKELY_DOTS && Coding<t>::bits >= 6;

template <int FROM, int TO, class Work>
INLINE void each_step(const Work& work) {
  if constexpr (FROM < TO) {
    work(std::integral_constant<int, FROM>{});
    each_step<FROM + 1, TO>(work);
  }
}

// Step s of a group's codes, one byte each.
template <Type t, int s>
INLINE Bytes unpack_step(const uint8_t* codes) {
  constexpr int bits = Coding<t>::bits;
  Bytes step;
  if constexpr (bits == 8) {
    step = load_bytes(codes + 64 * s);
  } else {
    step = both(shifted<s % 2 ? -4 : 0>(load_bytes(codes + 64 * (s / 2))), 15);
    if constexpr (bits == 5) step = either(step, both(shifted<4 - s>(load_bytes(codes + 256)), 16));
    if constexpr (bits == 6)
      step = either(step, both(shifted<4 - 2 * (s % 4)>(load_bytes(codes + 256 + 64 * (s / 4))), 48));
  }
#if LIKELY_AVX2 && !LIKELY_VNNI
  if constexpr (SIGNED<t>)
    for (__m256i& half : step.v)
      half = bits == 8 ? _mm256_xor_si256(half, _mm256_set1_epi8((char)0x80))
                       : _mm256_sub_epi8(half, _mm256_set1_epi8((char)Coding<t>::offset));
#endif
  return step;
}

// done(m, sum): steps FROM..TO of a group times the codes of row m, which lie `stride` apart.
template <Type t, int M, int FROM, int TO, class Get, class Done>
INLINE void sum_steps(const Get& get, const int8_t* row, size_t stride, const Done& done) {
#if LIKELY_DOTS
  Ints sum[M];
  for (int m = 0; m < M; m++) sum[m] = ints(0);
  each_step<FROM, TO>([&](auto s) {
    const Bytes w = get(s);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) sum[m] = dots(sum[m], w, load_as<int32_t>(row + m * stride + 4 * s));
  });
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) done(m, sum[m]);
#elif LIKELY_AVX2
  // so many products of pairs fit into 16 bits: 8 x 2 x 15 x 127, 4 x 2 x 31 x 127, 4 x 2 x 32 x 127, 2 x 128 x 127
  constexpr int RUN = Coding<t>::bits == 4 ? 8 : Coding<t>::bits == 8 ? 1 : 4;
  const __m256i one = _mm256_set1_epi16(1);
  __m256i run[M][2];
  Ints sum[M];
  each_step<FROM, TO>([&](auto s) {
    constexpr int at = s.value - FROM;
    Bytes w = get(s);
    asm volatile("" : "+x"(w.v[0]), "+x"(w.v[1]));  // read once for all rows
    Bytes size = w;
    constexpr bool turned = Coding<t>::merged && SIGNED<t>;  // these rows have the code -128, which has no negative
    if constexpr (SIGNED<t> && !turned)
      for (int i = 0; i < 2; i++) size.v[i] = _mm256_abs_epi8(w.v[i]);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const __m256i quad = _mm256_set1_epi32(load_as<int32_t>(row + m * stride + 4 * s));
#pragma GCC unroll 2
      for (int i = 0; i < 2; i++) {
        const __m256i factor = turned ? _mm256_sign_epi8(w.v[i], quad) : SIGNED<t> ? _mm256_sign_epi8(quad, w.v[i]) : quad;
        const __m256i pairs = _mm256_maddubs_epi16(turned ? _mm256_abs_epi8(quad) : size.v[i], factor);
        run[m][i] = at % RUN == 0 ? pairs : _mm256_add_epi16(run[m][i], pairs);
        if constexpr (at % RUN == RUN - 1 && s.value + 1 < TO) {
          const __m256i whole = _mm256_madd_epi16(run[m][i], one);
          sum[m].v[i] = at < RUN ? whole : _mm256_add_epi32(sum[m].v[i], whole);
        }
      }
      // in this order: a compiler that makes all products first has no registers left for them
      if constexpr (RUN > 1) asm volatile("" : "+x"(run[m][0]), "+x"(run[m][1]));
    }
  });
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
    Ints whole;
    for (int i = 0; i < 2; i++) {
      whole.v[i] = _mm256_madd_epi16(run[m][i], one);
      if constexpr (TO - FROM > RUN) whole.v[i] = _mm256_add_epi32(whole.v[i], sum[m].v[i]);
    }
    done(m, whole);
  }
#else
  Ints sum[M];
  for (int m = 0; m < M; m++) sum[m] = ints(0);
  each_step<FROM, TO>([&](auto s) {
    const Bytes w = get(s);
    for (int m = 0; m < M; m++)
      for (int i = 0; i < 64; i++) sum[m].v[i / 4] += w.v[i] * row[m * stride + 4 * s + i % 4];
  });
  for (int m = 0; m < M; m++) done(m, sum[m]);
#endif
}

// --- one group of a tile ----------------------------------------------------------------------------------------------

template <Type t>
struct Scales {
  Floats scale[Coding<t>::scales], minimum;
};
template <Type t>
INLINE Scales<t> scales_of(const uint8_t* head, const uint8_t* group) {
  using B = Coding<t>;
  Scales<t> s;
  if constexpr (!B::super) {
    s.scale[0] = from_halves(group);
    if constexpr (B::minimum) s.minimum = from_halves(group + 32);
  } else if constexpr (t == Type::Q6_K) {
    const Floats own = from_halves(head);
    for (int k = 0; k < 2; k++) s.scale[k] = times(own, from_signed(group + 16 * k));
  } else {  // of so few bits that products are exact
    s.scale[0] = times(from_halves(head), from_bytes(group));
    s.minimum = times(times(from_halves(head + 32), from_bytes(group + 16)), floats(-1.0f));
  }
  return s;
}

// f[m] += a group (of 32 inputs, half h of the rows' 64) times row m; get(s): its step s
template <Type t, int M, class Get>
INLINE void add_group(const Scales<t>& s, const Get& get, const uint8_t* block, size_t unit, int h, Floats (&f)[M]) {
  using B = Coding<t>;
  each_step<0, B::scales>([&](auto k) {
    constexpr int FROM = 8 / B::scales * k.value, TO = FROM + 8 / B::scales;
    sum_steps<t, M, FROM, TO>(get, (const int8_t*)block + 32 * h, unit, [&](int m, Ints sum) {
      const Activations& a = *(const Activations*)(block + m * unit);
      if constexpr (B::offset > 0 && !SIGNED<t>)
        sum = less<B::bits - 1>(sum, B::scales == 2 ? a.sum16[2 * h + k] : a.sum[h]);
      f[m] = fma_floats(to_floats(sum), times(s.scale[k], floats(a.scale[h])), f[m]);
    });
  });
  if constexpr (B::minimum)
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
      f[m] = fma_floats(s.minimum, floats(((const Activations*)(block + m * unit))->scaled_sum[h]), f[m]);
}

// Rows whose sums stay in registers together; more are taken block by block, and codes unpacked again for each: unpacked
// to memory once for all of them, they cost more than that.
constexpr int AT_ONCE = LIKELY_VNNI ? 8 : 4, MOST_TOGETHER = 128;

// work(rows as a constant) for the next block of `n` rows; how many they are.  Of nearly equal size, or powers of two:
// each size is compiled for every type.
template <class Work>
INLINE int a_block(int n, const Work& work) {
  if constexpr (AT_ONCE == 8) {
    const int some = n >= 8 ? 8 : n >= 4 ? 4 : n >= 2 ? 2 : 1;
    if (some == 8) work(std::integral_constant<int, 8>{});
    if (some == 4) work(std::integral_constant<int, 4>{});
    if (some == 2) work(std::integral_constant<int, 2>{});
    if (some == 1) work(std::integral_constant<int, 1>{});
    return some;
  } else {
    const int blocks = (n + AT_ONCE - 1) / AT_ONCE, some = (n + blocks - 1) / blocks;
    as_constant<AT_ONCE>(some, work);
    return some;
  }
}

// What comes after the `bytes` that are read now: soon, to the first cache; later, to the second.
INLINE void fetch_ahead(const uint8_t* at, size_t bytes) {
  constexpr size_t SOON = 768, LATER = 6144;
  for (size_t line = 0; line < bytes; line += 64) {
    __builtin_prefetch(at + SOON + line);
    __builtin_prefetch(at + LATER + line, 0, 2);
  }
}

// Codes are unpacked in registers, as they come from memory.
template <Type t, int M>
__attribute__((noinline)) static void multiply_tile(const uint8_t* tile, const Rows& rows, int m0, float* out) {
  Floats f[M];
  for (int m = 0; m < M; m++) f[m] = floats(0);
  Groups<t> walk(tile);
  for (int g = 0; g < rows.groups; g++) {
    const uint8_t* block = (const uint8_t*)activations(rows, g, m0);
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
      const uint8_t* group = walk.next();
      fetch_ahead(group, Coding<t>::group);
      const uint8_t* codes = group + Coding<t>::scale_bytes;
      add_group<t, M>(scales_of<t>(walk.head, group), [&](auto s) { return unpack_step<t, s.value>(codes); }, block,
                      rows.unit, h, f);
    }
  }
  for (int m = 0; m < M; m++) store_floats(out + m * PANEL, f[m]);
}

// One scale per output and row: whole sums over all inputs, at most 2^17 of them.
template <Type t, int M>
__attribute__((noinline)) static void multiply_merged(const uint8_t* tile, const Rows& rows, int m0, float* out) {
  Ints sum[M];
  for (int m = 0; m < M; m++) sum[m] = ints(0);
  Groups<t> walk(tile);
  for (int g = 0; g < rows.groups; g++) {
    const int8_t* block = (const int8_t*)rows.data + ((size_t)g * rows.count + m0) * MERGED_UNIT;
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
      const uint8_t* codes = walk.next();
      fetch_ahead(codes, Coding<t>::group);
      sum_steps<t, M, 0, 8>([&](auto s) { return unpack_step<t, s.value>(codes); }, block + 32 * h, MERGED_UNIT,
                            [&](int m, Ints own) { sum[m] = plus(sum[m], own); });
    }
  }
  const Floats scale = load_floats((const float*)tile);
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
    if constexpr (!SIGNED<t>) sum[m] = less<Coding<t>::bits - 1>(sum[m], rows.bias[m0 + m]);
    store_floats(out + m * PANEL, times(times(to_floats(sum[m]), scale), floats(rows.scale[m0 + m])));
  }
}

// Matrices of floats: each input's 16 outputs times it, summed within 64 inputs first.
template <Type t, int M>
__attribute__((noinline)) static void multiply_exact(const uint8_t* tile, const Rows& rows, int m0, float* out) {
  constexpr int item = Coding<t>::item;
  Floats f[M];
  for (int m = 0; m < M; m++) f[m] = floats(0);
  for (int g = 0; g < rows.groups; g++) {
    Floats part[M];
    for (int m = 0; m < M; m++) part[m] = floats(0);
    for (int i = 0; i < GROUP; i++, tile += 16 * item) {
      Floats w;
      if constexpr (t == Type::F32) w = load_floats((const float*)tile);
      if constexpr (t == Type::F16) w = from_halves(tile);
      if constexpr (t == Type::BF16) {
        const f32x16 wide = from_bf16((const uint16_t*)tile);
        memcpy(&w, &wide, 64);
      }
#pragma GCC unroll 4
      for (int m = 0; m < M; m++) part[m] = fma_floats(w, floats(activations(rows, g, m0 + m)->exact[i]), part[m]);
    }
    for (int m = 0; m < M; m++) f[m] = plus(f[m], part[m]);
  }
  for (int m = 0; m < M; m++) store_floats(out + m * PANEL, f[m]);
}
