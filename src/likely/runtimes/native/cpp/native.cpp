// One call of a decoder-only language model on a CPU: many new tokens of many sequences in, rows of logits out.
//
// The caller (runtime.py) owns tokens, positions, slots and trees; here are weights, keys and values, and
// arithmetic.  Every pointer that is passed in stays the caller's.  No function throws; memory that cannot be had is
// reported by a null pointer or a status other than 0.
//
// Compiled in two parts at one time: LIKELY_PART 1 is products of codes, which take a compiler longest, 2 the rest.
#include <exception>
#include <new>

#include "forward.h"
#include "reduce.h"

#if LIKELY_PART != 2
void multiply_codes_of(Type type, const uint8_t* panel, const Rows& rows, int m0, int n, float* out) {
  with_type(type, [&](auto t) { multiply_codes<decltype(t)::value>(panel, rows, m0, n, out); });
}
#endif

#if LIKELY_PART != 1

extern "C" {

// Bits: the instructions it was compiled for.
int likely_features() {
  return LIKELY_AVX512 | LIKELY_VNNI << 1 | LIKELY_BF16 << 2 | LIKELY_AMX << 3 | LIKELY_AVX2 << 4;
}

Session* likely_open(const Model* model, int threads) {
  try {
    return new Session(*model, threads);
  } catch (const std::exception&) {  // no memory, or no more threads
    return nullptr;
  }
}
void likely_close(Session* session) { delete session; }

// Room for keys and values of `slots` slots; what is there is kept.  Where memory ends, some layers have more than
// others: each knows its own.
int likely_reserve(Session* session, int64_t slots) {
  const size_t capacity = round_up(slots, LANES);
  const ModelShape& s = session->model.shape;
  const size_t slot = round_up(s.dim, 32) * (s.kind == FP32 ? 4 : 2);
  for (auto& layer : session->cache) {
    if (layer.capacity >= capacity) continue;
    Buffer keys, values;
    if (!keys.fit(s.kv_heads * capacity * slot) || !values.fit(s.kv_heads * capacity * slot)) return 1;
    for (int h = 0; h < s.kv_heads && layer.capacity; h++) {
      const size_t to = h * capacity * slot, from = h * layer.capacity * slot, size = layer.capacity * slot;
      memcpy(keys.data + to, layer.keys.data + from, size);
      memcpy(values.data + to, layer.values.data + from, size);
    }
    layer.keys.swap(keys);
    layer.values.swap(values);
    layer.capacity = capacity;
  }
  return 0;
}

// Evaluate the tokens; the wanted rows then wait for likely_head.
int likely_forward(Session* session, const Call* call) {
  switch (session->model.shape.kind) {
    case INT8: return run_forward<INT8>(*session, *call);
    case BF16: return run_forward<BF16>(*session, *call);
    case CODES: return run_forward<CODES>(*session, *call);
    default: return run_forward<FP32>(*session, *call);
  }
}

// Logits (count, stride) of the wanted rows first .. first + count of the last call; stride >= vocabulary up to 32s.
void likely_head(Session* session, int first, int count, float* logits, int64_t stride) {
  switch (session->model.shape.kind) {
    case INT8: return run_head<INT8>(*session, first, count, logits, stride);
    case BF16: return run_head<BF16>(*session, first, count, logits, stride);
    case CODES: return run_head<CODES>(*session, first, count, logits, stride);
    default: return run_head<FP32>(*session, first, count, logits, stride);
  }
}

// Of each row of logits: the log of its normaliser, its entropy in nats (or null), and its `top` largest (top 0: none).
void likely_reduce(Session* session, const float* logits, int rows, int64_t stride, double* log_norm, double* entropy,
                   int top, int64_t* ids, float* best) {
  const int n = session->model.shape.vocabulary;
  session->team.run([&](int) {
    int from, to;
    while (session->team.take(rows, 1, from, to))
      for (int r = from; r < to; r++) {
        const float* row = logits + r * stride;
        reduce_row(row, n, log_norm + r, entropy ? entropy + r : nullptr);
        if (top) top_of_row(row, n, top, ids + (size_t)r * top, best + (size_t)r * top);
      }
  });
}

// Weights (rows, width) fp32 -> panels.
void likely_pack(int kind, const float* weights, int rows, int width, uint8_t* panels) {
  pack((Kind)kind, weights, rows, width, panels);
}

// Rows of a file (width values each, see codes.h) -> panels.  1: a scale or float is not finite.
int likely_pack_rows(int type, const uint8_t* file, int rows, int width, uint8_t* panels) {
  return with_type((Type)type, [&](auto t) { return !pack_rows<decltype(t)::value>(file, rows, width, panels); });
}

int64_t likely_panel_bytes(int type, int width) { return panel_bytes_of((Type)type, (width + GROUP - 1) / GROUP); }

// Weights (rows, width) fp32 -> rows of a file in Q4_0 or Q8_0, of groups of 64 that are rotated; width: a multiple of 64.
void likely_round_rotated(int bits, const float* weights, int rows, int width, uint8_t* file) {
  for (int64_t g = 0; g < (int64_t)rows * width / GROUP; g++)
    round_rotated(bits, weights + g * GROUP, file + g * 2 * (bits == 4 ? 18 : 34));
}

// One row of panels as floats.
void likely_unpack_row(int type, const uint8_t* panels, int width, int row, int rotated, float* to) {
  with_type((Type)type, [&](auto t) {
    unpack_code_row<decltype(t)::value>(panels, (width + GROUP - 1) / GROUP, row, to, width, 1, rotated);
  });
}

// rows (n, width) fp32 times panels -> out (n, stride): for the check at load and for tests.  type, rotated: of CODES
int likely_multiply(Session* session, int kind, int type, int rotated, const float* x, int n, int width,
                    const uint8_t* panels, int outputs, float* out, int64_t stride) {
  RowBuffers buffers;
  Rows rows;
  auto work = [&](auto format) {
    constexpr Kind k = decltype(format)::value;
    if (!buffers.fit(n, width, Format<k>::row_group, rows)) return 1;
    form_rows(rows, n, {CODES_UNIT_WITH_FLOATS, rotated != 0});
    for (int m = 0; m < n; m++) prepare_row<k>(rows, m, x + (size_t)m * width, width, 1, nullptr);
    const Matrix matrix[1] = {{panels, type, outputs}};
    session->team.run([&](int) {
      const Tiles tiles;
      int from, to;
      while (session->team.take(panels_of(matrix), 1, from, to))
        for (int p = from; p < to; p++)
          multiply_slice<k>(slice_of<k>(matrix, p, rows.groups), nullptr, rows, n, tiles, [&](int m, f32x16 a, f32x16 b) {
            store16(out + m * stride + (size_t)p * PANEL, a);
            store16(out + m * stride + (size_t)p * PANEL + 16, b);
          }, [](int) {});
    });
    return 0;
  };
  switch (kind) {
    case INT8: return work(std::integral_constant<Kind, INT8>{});
    case BF16: return work(std::integral_constant<Kind, BF16>{});
    case CODES: return work(std::integral_constant<Kind, CODES>{});
    default: return work(std::integral_constant<Kind, FP32>{});
  }
}

}  // extern "C"
#endif
