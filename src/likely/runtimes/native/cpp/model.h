// What the caller passes in, as library.py spells it too, and what is kept between calls.
#pragma once
#include "attention/attend.h"
#include "rows.h"
#include "threads.h"

extern "C" {

struct Matrix {
  const uint8_t* panels;
  int32_t type, outputs;  // type: see codes.h; of CODES alone
};

struct LayerWeights {
  Matrix qkv[3], out, gate_up[2], down;       // in one matrix each, but for CODES
  const float *qkv_bias;                      // null where there is none
  const float *attention_norm, *mlp_norm;     // factors, Gemma's 1 added
  const float *query_norm, *key_norm;         // (dim,) or null
  const float *attention_after, *mlp_after;   // norms of what is added to the stream, or null
  const float *frequencies;                   // (dim / 2,) of the rotation
  const int32_t *key_order, *value_order;     // of channels in memory, see attention/storage.h; or null
  ExtraColumns attention_extra, mlp_extra;    // of MergeQuant's inputs of qkv and gate_up
  int32_t window;                             // 0: sees everything
};

struct ModelShape {
  int32_t kind, layers, hidden, heads, kv_heads, dim, mlp, vocabulary, activation;  // activation 0: silu, 1: gelu
  int32_t rotated, floats;  // of CODES: groups of 64 inputs are rotated; some matrix is one of floats
  int32_t half;             // attention computes in bf16
  int32_t merged, per_token;  // MergeQuant: bits of the codes of activations; which of them have a scale per token: 0:
                              // none, 1: inputs of out and down, which come from no norm, 2: all
  Side keys, values;        // see attention/formats.h
  float epsilon, attention_scale, embedding_scale, logit_softcap, attention_softcap;  // soft caps: 0 is none
};

struct Model {
  ModelShape shape;
  const LayerWeights* layers;
  const float* final_norm;
  Matrix embedding;  // (vocabulary, hidden); null: the head's rows are read
  Matrix head;
};

struct Call {
  int32_t tokens;
  const int32_t *token, *position, *slot;
  Queries queries;
  int32_t wanted;               // rows that go on to the head
  const int32_t* wanted_rows;   // (wanted,)
  float* hidden;                // (wanted, hidden) after the last norm, or null
  const uint8_t *skip_attention, *skip_mlp;  // (layers,) or null
  int32_t apart;                // every piece of work is attended for itself
};

}  // extern "C"

// A panel of matrices whose outputs follow each other: where it is, its first output and how many it has.
struct Slice {
  const uint8_t* panel;
  Type type;
  int at, count;
  bool last;  // of the matrices: room for a whole panel follows
};
template <Kind kind>
INLINE size_t bytes_of_panel(const Matrix& m, int groups) {
  if constexpr (kind == CODES)
    return panel_bytes_of((Type)m.type, groups);
  else
    return groups * Format<kind>::panel_group;
}
template <Kind kind, int MATRICES>
INLINE Slice slice_of(const Matrix (&m)[MATRICES], int p, int groups) {
  int at = 0, i = 0;
  for (; i + 1 < MATRICES && p >= (m[i].outputs + PANEL - 1) / PANEL; i++) {
    p -= (m[i].outputs + PANEL - 1) / PANEL;
    at += m[i].outputs;
  }
  return {m[i].panels + p * bytes_of_panel<kind>(m[i], groups), (Type)m[i].type, at + p * PANEL,
          std::min(PANEL, m[i].outputs - p * PANEL), i + 1 == MATRICES};
}
template <int MATRICES>
INLINE int panels_of(const Matrix (&m)[MATRICES]) {
  int count = 0;
  for (const Matrix& one : m) count += (one.outputs + PANEL - 1) / PANEL;
  return count;
}
// done(row, tile 0, tile 1) for all n rows; see multiply_panel
template <Kind kind, class Done, class Soon>
INLINE void multiply_slice(const Slice& own, const uint8_t* next, const Rows& rows, int n, const Tiles& tiles,
                           const Done& done, const Soon& soon) {
  if constexpr (kind == CODES)
    multiply_panel_of(own.type, own.panel, rows, n, tiles, done);
  else
    multiply_panel<kind>(own.panel, next, rows, n, tiles, done, soon);
}

// Keys and values of one layer, see attention/storage.h.
struct KeysValues {
  LazyBuffer keys, values;
  size_t capacity = 0;  // slots
};

inline Shape shape_of_attention(const ModelShape& s, size_t capacity) {
  const int wide = (int)round_up(s.dim, 32);
  return {s.heads,  s.kv_heads, s.dim,  wide,     s.attention_scale, s.attention_softcap,
          s.half != 0, capacity, s.keys, s.values, nullptr,           nullptr};
}

struct Session {
  Model model;
  Team team;
  std::vector<Scratch> scratch;
  std::vector<Buffer> gated;         // of each thread: 64 gated values of every row
  std::vector<KeysValues> cache;     // of each layer
  Buffer stream, projected, attended, added, cosine, sine, wide_floats;
  RowBuffers narrow, wide, final_rows;
  Rows narrow_view, wide_view, final_view;
  explicit Session(const Model& m, int threads)
      : model(m), team(threads), scratch(threads), gated(threads), cache(m.shape.layers) {}
};
