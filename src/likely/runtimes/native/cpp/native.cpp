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
#include "recurrent.h"
#include "reduce.h"

#if LIKELY_PART != 2
void multiply_codes_of(Type type, const uint8_t* panel, const Rows& rows, int m0, int n, bool tiles, float* out) {
  with_type(type, [&](auto t) { multiply_codes<decltype(t)::value>(panel, rows, m0, n, tiles, out); });
}
#endif

#if LIKELY_PART != 1

extern "C" {

// Bits: the instructions it was compiled for.
int likely_features() {
  return LIKELY_AVX512 | LIKELY_VNNI << 1 | LIKELY_BF16 << 2 | LIKELY_AMX << 3 | LIKELY_AVX2 << 4 |
         LIKELY_AVX_VNNI << 5;
}

Session* likely_open(const Model* model, int threads) {
  try {
    return new Session(*model, threads);
  } catch (const std::exception&) {  // no memory, or no more threads
    return nullptr;
  }
}
void likely_close(Session* session) { delete session; }

// Room for keys and values of `slots` slots, once; a slot takes memory when it is first written.
int likely_reserve(Session* session, int64_t slots) {
  const size_t capacity = round_up(slots, LANES);
  const Shape shape = shape_of_attention(session->model.shape, capacity);
  const size_t key = shape.sixteen_bytes(shape.keys) / LANES, value = shape.sixteen_bytes(shape.values) / LANES;
  for (auto& layer : session->cache) {
    if (layer.capacity || !layer.keys.map(shape.kv_heads * capacity * key)) return 1;
    if (!layer.values.map(shape.kv_heads * capacity * value)) return 1;
    layer.capacity = capacity;
  }
  return 0;
}

// Bytes of keys and values that one token takes, over all layers.
int64_t likely_kv_bytes(const ModelShape* model) {
  const Shape s = shape_of_attention(*model, 0);
  return (int64_t)model->layers * s.kv_heads * (s.sixteen_bytes(s.keys) + s.sixteen_bytes(s.values)) / LANES;
}

// From now on each thread stays on a processor of its own, see threads.h.
void likely_keep_processors(Session* session) { session->team.keep_processors(); }

// How many columns of one key head attention has read so far, over all layers.
int64_t likely_columns_read(const Session* session) {
  int64_t all = 0;
  for (const Scratch& own : session->scratch) all += own.columns_read;
  return all;
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

// Rows x (n, dim) fp32 as keys (or values) in slots of their own, and read again -> out (n, dim): for tests.
void likely_store_rows(int form, int block, int half, int as_keys, const float* x, int n, int dim,
                       const int32_t* slots, float* out) {
  const size_t capacity = round_up(*std::max_element(slots, slots + n) + 1, LANES);
  const Side side{(Form)form, block};
  const Shape s{1, 1, dim, (int)round_up(dim, 32), 1, 0, half != 0, capacity, side, side, nullptr, nullptr};
  auto work = [&](auto computed) {
    constexpr bool h = decltype(computed)::value;
    Scratch scratch;
    scratch.fit(s);
    std::vector<uint8_t> keys(s.at(side, 0, (int)capacity) + 64), values(keys.size());
    for (int i = 0; i < n; i++) store_token<h>(s, keys.data(), values.data(), 0, slots[i], x + i * dim, x + i * dim);
    for (int at = 0; at < n; at += BLOCK) {
      const Block block = find_block<h>(s, keys.data(), values.data(), slots + at, std::min(BLOCK, n - at), 0, scratch,
                                          false);
      for (int c = 0; c < block.count; c++)
        for (int d = 0; d < dim; d++) {
          const int lane = c % LANES, items = h ? 2 : 1;  // numbers of one step of four bytes
          const uint8_t* sixteen = (as_keys ? block.key : block.value)[c / LANES];
          const int step = as_keys ? d / items * LANES + lane : lane / items * s.wide + d;
          const int item = as_keys ? d % items : lane % items;
          uint32_t bits;
          memcpy(&bits, sixteen + 4 * (size_t)step, 4);
          if (h) bits = item ? bits & 0xffff0000u : bits << 16;
          memcpy(out + (size_t)(at + c) * dim + d, &bits, 4);
        }
    }
  };
  half ? work(std::true_type{}) : work(std::false_type{});
}

// rows (n, width) fp32 times panels -> out (n, stride): for the check at load and for tests.  type, rotated: of CODES; with
// MergeQuant's types `rotated` is the bits of the rows' codes, negative: with a scale for each row
int likely_multiply(Session* session, int kind, int type, int rotated, const float* x, int n, int width,
                    const uint8_t* panels, int outputs, float* out, int64_t stride) {
  RowBuffers buffers;
  Rows rows;
  auto work = [&](auto format) {
    constexpr Kind k = decltype(format)::value;
    if (!buffers.fit(n, width, Format<k>::row_group, rows)) return 1;
    const bool merged = k == CODES && is_merged((Type)type);
    form_rows(rows, n, {merged ? MERGED_UNIT : CODES_UNIT_WITH_FLOATS, !merged && rotated});
    for (int m = 0; m < n; m++)
      if (merged)
        emit_codes(rows, m, x + (size_t)m * width, width, 1, nullptr, {}, {std::abs(rotated), rotated < 0});
      else
        prepare_row<k>(rows, m, x + (size_t)m * width, width, 1, nullptr);
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

// Steps of a state-space model, see recurrent.h: of up to `rows` tokens at a time, no vector wider than `widest`.
recurrent::Stepper* likely_stepper_open(int threads, int rows, int widest) {
  try {
    return new recurrent::Stepper(threads, rows, widest);
  } catch (const std::exception&) {  // no memory, or no more threads
    return nullptr;
  }
}
void likely_stepper_close(recurrent::Stepper* stepper) { delete stepper; }

// x (tokens, sequences, width) through `count` blocks, in place.  states (tokens, count); tokens * sequences <= rows
void likely_stepper_run(recurrent::Stepper* stepper, const RecurrentBlock* blocks, const RecurrentState* states,
                        int count, int tokens, int sequences, float* x, int width) {
  stepper->team.run([&](int) {
    for (int b = 0; b < count; b++) stepper->run(blocks[b], states + b, count, tokens, sequences, x, width);
  });
}

// out (rows, outputs) of x (rows, inputs) through one layer.
void likely_stepper_multiply(recurrent::Stepper* stepper, const DenseLayer* layer, int rows, const float* x,
                             float* out) {
  stepper->team.run([&](int) {
    stepper->multiply(*layer, x, layer->inputs, rows,
                      [=](int r, int o, float value) { out[(size_t)r * layer->outputs + o] = value; });
  });
}

void likely_selective_scan(recurrent::Stepper* stepper, const SelectiveScan* scan) {
  stepper->team.run([&](int) { stepper->scan(*scan); });
}

}  // extern "C"
#endif
