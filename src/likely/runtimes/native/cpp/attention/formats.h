// Formats of stored keys and values, as runtimes/kv_format.py names them: a row of numbers to codes, and back.
#pragma once
#include "../simd/bytes.h"

enum class Form : int32_t { F32, BF16, F16, Q8_0, BFP12, BFP16 };  // in the order of model.py

constexpr int MOST_DIM = 1024;
constexpr int8_t NO_NUMBER = -128;  // an exponent: some number of the block is not finite, and so all become NaN

// What keys or values are stored as.  Of the last three forms, `block` neighbours along the head share a scale: one in
// half precision (Q8_0, as ggml has it) or an exponent of eight bits (block floating point).
struct Side {
  Form form;
  int32_t block;  // a multiple of 16 that divides the head
};
static constexpr int bits_of(Form form) {
  return form == Form::F32 ? 32 : form == Form::BF16 || form == Form::F16 ? 16 : form == Form::BFP12 ? 4 : 8;
}
static constexpr int scale_bytes_of(Form form) {
  return form == Form::Q8_0 ? 2 : form == Form::BFP12 || form == Form::BFP16 ? 1 : 0;
}

// work(form as a constant), for all that are not computed with as they are
template <class Work>
INLINE void with_form(Form form, const Work& work) {
  switch (form) {
    case Form::BF16: return work(std::integral_constant<Form, Form::BF16>{});
    case Form::F16: return work(std::integral_constant<Form, Form::F16>{});
    case Form::Q8_0: return work(std::integral_constant<Form, Form::Q8_0>{});
    case Form::BFP12: return work(std::integral_constant<Form, Form::BFP12>{});
    case Form::BFP16: return work(std::integral_constant<Form, Form::BFP16>{});
    case Form::F32: return;
  }
}

// One row: a code for each number, of one or two bytes, and a scale for each block.
struct Coded {
  alignas(64) uint8_t code[MOST_DIM * 2];
  uint8_t scale[MOST_DIM / 16 * 2];
};

// To half precision, ties to even.
inline uint16_t nearest_half(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return (uint16_t)(sign | 0x7e00);
  if (size >= 0x477ff000) return (uint16_t)(sign | 0x7c00);  // rounds to 2^16
  if (size < 0x38800000) return (uint16_t)(sign | (uint32_t)std::nearbyint(std::fabs(x) * 0x1p24f));
  return (uint16_t)(sign | ((size + 0xfff + (size >> 13 & 1) - 0x38000000) >> 13));
}

INLINE float power_of_two(int e) {  // -126 <= e <= 127
  const uint32_t bits = (uint32_t)(e + 127) << 23;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// Up to sixteen numbers; zeros beyond.
INLINE f32x16 load_some(const float* from, int count) {
  if (count >= 16) return load16(from);
  f32x16 x = {};
  memcpy(&x, from, 4 * count);
  return x;
}

// The largest size of a block; NaN if a number is not finite.
INLINE float largest_of(const float* x, int count) {
  f32x16 most = {}, none = {};
  for (int i = 0; i < count; i += 16) {
    const f32x16 v = load16(x + i);
    most = max16(most, abs16(v));
    none += v - v;
  }
  return max_of(most) + sum_of(none);
}
INLINE void store_bytes_of(uint8_t* to, i32x16 codes) {
  const i8x16 bytes = __builtin_convertvector(codes, i8x16);
  memcpy(to, &bytes, 16);
}

// ggml's rule: scale = largest / 127, codes rounded with the scale as it is before half precision, ties away from zero.
inline void encode_q8_0(const float* x, int count, uint8_t* code, uint8_t* scale) {
  const float most = largest_of(x, count), step = most / 127.0f;
  float inverse = step > 0 ? 1.0f / step : 0.0f;
  if (!(inverse < INFINITY)) inverse = 0;
  const uint16_t half = nearest_half(step);
  memcpy(scale, &half, 2);
  for (int i = 0; i < count; i += 16) {
    const f32x16 v = std::isfinite(most) ? load16(x + i) * inverse : f32x16{}, size = abs16(v);
    const i32x16 whole = __builtin_convertvector(size, i32x16);
    const i32x16 up = whole - (size - to_float(whole) >= 0.5f);  // a comparison is 0 or -1
    store_bytes_of(code + i, v < 0.0f ? -up : up);
  }
}

// See BFPFormat in runtimes/kv_format.py.
template <int bits>
inline void encode_bfp(const float* x, int count, uint8_t* code, uint8_t* scale) {
  const float most = largest_of(x, count);
  int e = 0;
  std::frexp(std::isfinite(most) ? most : 0.0f, &e);
  const bool zero = !(most > 0) || e < -126 || !std::isfinite(most), none = !std::isfinite(most) || e > 127;
  *(int8_t*)scale = none ? NO_NUMBER : zero ? -126 : (int8_t)e;
  const int up = std::clamp(-e, -126, 126), rest = std::clamp(-e - up, -126, 126);
  const float first = power_of_two(up), second = power_of_two(rest), steps = 1 << (bits - 1);
  for (int i = 0; i < count; i += 16) {
    f32x16 v = f32x16{};
    if (!zero && !none) v = round16(load16(x + i) * first * second * steps);
    v = v > steps - 1 ? all16(steps - 1) : v;
    store_bytes_of(code + i, __builtin_convertvector(max16(v, all16(-steps)), i32x16));
  }
}

// Numbers (dim,) to a row of the form; beyond dim, up to a multiple of 16, they count as zero.
template <Form form>
inline void encode_row(const float* x, int dim, int block, Coded& to) {
  if constexpr (form == Form::BF16 || form == Form::F16) {
    for (int d = 0; d < dim; d += 16) {
      const f32x16 v = load_some(x + d, dim - d);
      if constexpr (form == Form::BF16)
        to_bf16((uint16_t*)to.code + d, v);
      else
        for (int i = 0; i < 16; i++) ((uint16_t*)to.code)[d + i] = nearest_half(v[i]);
    }
  } else {
    for (int d = 0; d < dim; d += block) {
      if constexpr (form == Form::Q8_0)
        encode_q8_0(x + d, block, to.code + d, to.scale + d / block * 2);
      else
        encode_bfp<form == Form::BFP12 ? 4 : 8>(x + d, block, to.code + d, to.scale + d / block);
    }
  }
}

static void encode(Side side, const float* x, int dim, Coded& to) {
  with_form(side.form, [&](auto form) { encode_row<form.value>(x, dim, side.block, to); });
}

// Sixteen numbers from codes side by side (of BFP12 one byte each), times sixteen scales.
template <Form form>
INLINE f32x16 decode16(const uint8_t* codes, f32x16 scale) {
  if constexpr (form == Form::BF16) return from_bf16((const uint16_t*)codes);
  if constexpr (form == Form::F16) {
    const Floats v = from_halves(codes);
    return load_as<f32x16>(&v);
  }
  const f32x16 whole = __builtin_convertvector(load_as<i8x16>(codes), f32x16);
  if constexpr (form == Form::Q8_0) return whole * scale;
  return whole * (form == Form::BFP12 ? 0.125f : 0.0078125f) * scale;
}
template <Form form>
INLINE f32x16 scales16(const uint8_t* at) {
  if constexpr (form == Form::Q8_0) {
    const Floats v = from_halves(at);
    return load_as<f32x16>(&v);
  }
  return (f32x16)(((__builtin_convertvector(load_as<i8x16>(at), i32x16)) + 127) << 23);
}
template <Form form>
INLINE float scale_at(const uint8_t* at) {
  if constexpr (form == Form::Q8_0) return half_at(at);
  const uint32_t bits = (uint32_t)((int)*(const int8_t*)at + 127) << 23;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
// Sixteen bytes of two codes of four bits each: the low ones, or the high ones.
INLINE i8x16 low_halves(i8x16 both) { return ((both & 15) ^ 8) - 8; }
INLINE i8x16 high_halves(i8x16 both) { return both >> 4; }
