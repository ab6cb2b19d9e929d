// One call of a decoder-only language model on a CPU: many new tokens of many sequences in, rows of logits out.
//
// The caller (engine_runtime.py) owns tokens, positions, slots and trees; here are weights, keys and values, and
// arithmetic.  Every pointer that is passed in stays the caller's.  No function throws; memory that cannot be had is
// reported by a null pointer or a status other than 0.
#include <cstdlib>
#ifdef __linux__
#include <sys/mman.h>
#endif
#include <exception>
#include <new>

#include "attention.h"
#include "linear.h"
#include "simd.h"
#include "threads.h"

extern "C" {

struct LayerWeights {
  const uint8_t *qkv, *out, *gate_up, *down;  // panels
  const float *qkv_bias;                      // null where there is none
  const float *attention_norm, *mlp_norm;     // factors, Gemma's 1 added
  const float *query_norm, *key_norm;         // (dim,) or null
  const float *attention_after, *mlp_after;   // norms of what is added to the stream, or null
  const float *frequencies;                   // (dim / 2,) of the rotation
  int32_t window;                             // 0: sees everything
};

struct ModelShape {
  int32_t kind, layers, hidden, heads, kv_heads, dim, mlp, vocabulary, activation;  // activation 0: silu, 1: gelu
  float epsilon, attention_scale, attention_softcap, embedding_scale, logit_softcap;
};

struct Model {
  ModelShape shape;
  const LayerWeights* layers;
  const float* final_norm;
  const uint8_t* embedding;  // panels of (vocabulary, hidden); null: the head's are read
  const uint8_t* head;
};

struct Call {
  int32_t tokens;
  const int32_t *token, *position, *slot;
  Queries queries;
  int32_t wanted;               // rows that go on to the head
  const int32_t* wanted_rows;   // (wanted,)
  float* hidden;                // (wanted, hidden) after the last norm, or null
  const uint8_t *skip_attention, *skip_mlp;  // (layers,) or null
};

}  // extern "C"

namespace {

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

constexpr size_t HUGE_PAGE = 2 << 20;

// Memory that starts on a cache line and only ever grows.
struct Buffer {
  uint8_t* data = nullptr;
  size_t size = 0;
  ~Buffer() { free(data); }
  bool fit(size_t bytes) {
    if (bytes <= size) return true;
    const size_t align = bytes < HUGE_PAGE ? 64 : HUGE_PAGE, all = round_up(bytes, align);
    uint8_t* grown = (uint8_t*)std::aligned_alloc(align, all);
    if (!grown) return false;
#ifdef MADV_HUGEPAGE
    if (align == HUGE_PAGE) madvise(grown, all, MADV_HUGEPAGE);  // fewer address lookups
#endif
    memset(grown, 0, all);
    free(data);
    data = grown;
    size = bytes;
    return true;
  }
  float* floats() const { return (float*)data; }
};

struct RowBuffers {
  Buffer data, scale, bias;
  bool fit(int rows, int width, size_t row_group, Rows& view) {
    int groups = (width + GROUP - 1) / GROUP;
    size_t all = (size_t)std::max(rows, 1) * groups;
    if (!data.fit(all * row_group) || !scale.fit(all * 4) || !bias.fit(all * 4)) return false;
    view = Rows{data.data, scale.floats(), (int32_t*)bias.data, groups};
    return true;
  }
};

struct Engine {
  Model model;
  Team team;
  std::vector<Scratch> scratch;
  std::vector<Buffer> gated;         // of each thread: 64 gated values of every row
  std::vector<Buffer> keys, values;  // of each layer, see attention.h
  int64_t capacity = 0;
  Buffer stream, projected, attended, added, cosine, sine;
  RowBuffers narrow, wide, final_rows;
  Rows narrow_view, wide_view, final_view;
  explicit Engine(const Model& m, int threads)
      : model(m), team(threads), scratch(threads), gated(threads), keys(m.shape.layers), values(m.shape.layers) {}
};

INLINE float root_mean(const float* x, int n, float epsilon) {
  f32x16 sum[4] = {};  // in parts, so that additions need not wait for one another
  int i = 0;
  for (; i + 64 <= n; i += 64)
    for (int part = 0; part < 4; part++) {
      const f32x16 v = load16(x + i + 16 * part);
      sum[part] += v * v;
    }
  for (; i + 16 <= n; i += 16) {
    const f32x16 v = load16(x + i);
    sum[0] += v * v;
  }
  float rest = 0;
  for (; i < n; i++) rest += x[i] * x[i];
  return 1.0f / std::sqrt((sum_of((sum[0] + sum[1]) + (sum[2] + sum[3])) + rest) / n + epsilon);
}

// A row in the form of a kind, times `factor` and `weight` (null: as it is); beyond n it is zero.
template <Kind kind>
INLINE void prepare_row(const Rows& rows, int m, const float* x, int n, float factor, const float* weight) {
  for (int g = 0; g < rows.groups; g++) {
    f32x16 part[4];
    for (int i = 0; i < 4; i++) {
      int at = g * GROUP + 16 * i;
      if (at + 16 <= n) {
        part[i] = load16(x + at);
        if (weight) part[i] = part[i] * factor * load16(weight + at);
      } else {
        part[i] = f32x16{};
        for (int j = 0; at + j < n; j++) part[i][j] = weight ? x[at + j] * factor * weight[at + j] : x[at + j];
      }
    }
    prepare_group<kind>(rows, m, g, part[0], part[1], part[2], part[3]);
  }
}

void rotate_group(float* x) {
  f32x16 v[4];
  for (int i = 0; i < 4; i++) v[i] = load16(x + 16 * i);
  hadamard64(v);
  for (int i = 0; i < 4; i++) store16(x + 16 * i, v[i]);
}

void scale_row(float* x, int n, float factor, const float* weight) {
  for (int i = 0; i < n; i++) x[i] = x[i] * factor * weight[i];
}

void add_row(float* to, const float* x, int n) {
  for (int i = 0; i < n; i++) to[i] += x[i];
}

// One row of a packed matrix, as floats.
template <Kind kind>
void unpack_row(const uint8_t* panels, int groups, int row, float* to, int n, float factor) {
  const uint8_t* from = panels + (size_t)(row / PANEL) * groups * Format<kind>::panel_group;
  const int tile = row % PANEL / 16, lane = row % 16;
  for (int start = 0; start < n; start += GROUP, from += Format<kind>::panel_group) {
    float value[GROUP];
    for (int k = 0; k < GROUP; k++) {
      if constexpr (kind == INT8) {
        value[k] = (int)from[128 * (k / 4) + 64 * tile + 4 * lane + k % 4] - 128;
      } else if constexpr (kind == BF16) {
        uint32_t bits = (uint32_t)((const uint16_t*)(from + 128 * (k / 2) + 64 * tile))[2 * lane + k % 2] << 16;
        memcpy(&value[k], &bits, 4);
      } else {
        value[k] = ((const float*)(from + 128 * k + 64 * tile))[lane];
      }
    }
    float scale = factor;
    if constexpr (kind == INT8) {
      uint32_t bits = (uint32_t)((const uint16_t*)(from + 2048))[16 * tile + lane] << 16;
      memcpy(&scale, &bits, 4);
      scale *= factor / 8;
      rotate_group(value);
    }
    for (int k = 0; k < GROUP && start + k < n; k++) to[start + k] = value[k] * scale;
  }
}

// Rows of the stream that are computed: the first `count`, or those that are named.
struct Live {
  int count;
  const int32_t* rows;
  int at(int i) const { return rows ? rows[i] : i; }
};

// Rows first .. last of those.
struct Span {
  int first, last;
  int size() const { return last - first; }
};
constexpr int SPAN = 64, MANY = 64;  // rows that a thread takes together; rows per thread from which it does

template <Kind kind>
Rows rows_from(const Rows& rows, int first) {
  return Rows{rows.row<kind>(first), rows.scale + (size_t)first * rows.groups, rows.bias + (size_t)first * rows.groups,
              rows.groups};
}

template <Kind kind>
struct Forward {
  Engine& e;
  const Call& call;
  const ModelShape& s = e.model.shape;
  const int n = call.tokens, dim = s.dim, wide = (int)round_up(s.dim, 32);
  const int q_width = s.heads * s.dim, kv_width = s.kv_heads * s.dim;
  const size_t qkv_stride = round_up(q_width + 2 * kv_width, PANEL), hidden_stride = round_up(s.hidden, PANEL);
  const int hidden_groups = (s.hidden + GROUP - 1) / GROUP;
  static constexpr bool half = kind != FP32;

  bool fit() {
    const size_t row_group = Format<kind>::row_group;
    const size_t rotations = (size_t)n * (dim / 2 + 16);
    bool ok = e.stream.fit(n * hidden_stride * 4) && e.projected.fit(n * qkv_stride * 4) &&
              e.attended.fit((size_t)n * q_width * 4 + 64) && e.added.fit(n * hidden_stride * 4) &&
              e.cosine.fit(2 * rotations * 4) && e.sine.fit(2 * rotations * 4) &&
              e.narrow.fit(n, std::max(s.hidden, q_width), row_group, e.narrow_view) &&
              e.wide.fit(n, (int)round_up(s.mlp, GROUP), row_group, e.wide_view) &&
              e.final_rows.fit(call.wanted, s.hidden, row_group, e.final_view);
    for (auto& own : e.gated) ok = ok && own.fit((size_t)n * GROUP * 4);
    if (ok)
      for (auto& own : e.scratch) own.fit(attention_shape());
    return ok;
  }
  Shape attention_shape() const {
    return Shape{s.heads, s.kv_heads, dim, wide, s.attention_scale, s.attention_softcap, half, (size_t)e.capacity};
  }
  // Prepared rows of a span, counted from its first.
  Rows rows_of(int width, Span span) const {
    return Rows{e.narrow_view.template row<kind>(span.first), e.narrow_view.scale + (size_t)span.first * e.narrow_view.groups,
                e.narrow_view.bias + (size_t)span.first * e.narrow_view.groups, (width + GROUP - 1) / GROUP};
  }
  Rows wide_rows(Span span) const { return rows_from<kind>(e.wide_view, span.first); }

  template <class Work>
  void each(int count, int grain, const Work& work) {  // then all threads meet
    int first, last;
    while (e.team.take(count, grain, first, last))
      for (int i = first; i < last; i++) work(i);
    e.team.meet();
  }
  int row_grain() const { return std::max(1, n / (e.team.size() * 4)); }

  // Two ways to divide a call.  Few rows: each product is divided by outputs and all threads meet after it.  Many rows:
  // a thread takes some of them from product to product, so that they stay in its own cache.
  struct Together {
    Forward& forward;
    template <class Work>
    void operator()(int count, int grain, const Work& work) const {
      forward.each(count, grain, work);
    }
  };
  struct Alone {
    template <class Work>
    void operator()(int count, int, const Work& work) const {
      for (int i = 0; i < count; i++) work(i);
    }
  };
  // Spans of nearly equal size, as many for each thread.
  struct Spans {
    int rows, count;
    Spans(int rows, int threads)
        : rows(rows), count((int)round_up(std::max(1, (rows + SPAN - 1) / SPAN), rows < SPAN ? 1 : threads)) {}
    Span operator[](int i) const { return {(int)((int64_t)rows * i / count), (int)((int64_t)rows * (i + 1) / count)}; }
  };

  void embed(int i) {
    const uint8_t* from = e.model.embedding ? e.model.embedding : e.model.head;
    unpack_row<kind>(from, hidden_groups, call.token[i], e.stream.floats() + i * hidden_stride, s.hidden,
                     s.embedding_scale);
    // one table of rotations for each kind of layer: those with a window, and the others
    for (int kind_of_layer = 0; kind_of_layer < 2; kind_of_layer++) {
      const float* f = frequencies(kind_of_layer);
      for (int d = 0; f && d < dim / 2; d++) {
        const float angle = (float)call.position[i] * f[d];  // in fp32, as the models were trained
        rotation(e.cosine, kind_of_layer, i)[d] = (float)std::cos((double)angle);
        rotation(e.sine, kind_of_layer, i)[d] = (float)std::sin((double)angle);
      }
    }
  }
  const float* frequencies(int kind_of_layer) const {
    for (int l = 0; l < s.layers; l++)
      if ((e.model.layers[l].window > 0) == (kind_of_layer == 1)) return e.model.layers[l].frequencies;
    return nullptr;
  }
  float* rotation(const Buffer& table, int kind_of_layer, int i) const {
    return table.floats() + ((size_t)kind_of_layer * n + i) * (dim / 2 + 16);
  }

  void norm_and_prepare(const Rows& to, int m, int row, const float* weight) {
    const float* x = e.stream.floats() + row * hidden_stride;
    prepare_row<kind>(to, m, x, s.hidden, root_mean(x, s.hidden, s.epsilon), weight);
  }

  void rotate(float* x, const float* cosine, const float* sine) {
    const int middle = dim / 2;
    int d = 0;
    for (; d + 16 <= middle; d += 16) {
      f32x16 a = load16(x + d), b = load16(x + middle + d), c = load16(cosine + d), t = load16(sine + d);
      store16(x + d, a * c - b * t);
      store16(x + middle + d, b * c + a * t);
    }
    for (; d < middle; d++) {
      float a = x[d], b = x[middle + d];
      x[d] = a * cosine[d] - b * sine[d];
      x[middle + d] = b * cosine[d] + a * sine[d];
    }
  }

  // queries and keys are normed and rotated; keys and values go to their slot
  void place(int l, int i) {
    const LayerWeights& w = e.model.layers[l];
    float* qkv = e.projected.floats() + i * qkv_stride;
    const float *c = rotation(e.cosine, w.window > 0, i), *t = rotation(e.sine, w.window > 0, i);
    for (int h = 0; h < s.heads + s.kv_heads; h++) {
      float* x = qkv + (size_t)h * dim;
      const float* norm = h < s.heads ? w.query_norm : w.key_norm;
      if (norm) scale_row(x, dim, root_mean(x, dim, s.epsilon), norm);
      rotate(x, c, t);
    }
    for (int h = 0; h < s.kv_heads; h++)
      store_token<half>(attention_shape(), e.keys[l].data, e.values[l].data, h, call.slot[i],
                        qkv + q_width + (size_t)h * dim, qkv + q_width + kv_width + (size_t)h * dim);
  }

  // out[live row] = panels x row (+ bias), or out[live row] += it, for the rows of a span
  template <class Over>
  void project(const Over& over, const uint8_t* panels, const Rows& rows, const Live& live, Span span, int width,
               float* out, size_t stride, const float* bias, bool add, const Tiles& tiles) {
    const size_t panel_bytes = rows.groups * Format<kind>::panel_group;
    const int panels_count = (width + PANEL - 1) / PANEL;
    over(panels_count, e.team.grain(panels_count), [&](int p) {
      float* to = out + (size_t)p * PANEL;
      auto done = [&](int m, f32x16 a, f32x16 b) {
        float* row = to + live.at(span.first + m) * stride;
        if (bias) {
          a += load16(bias + p * PANEL);
          b += load16(bias + p * PANEL + 16);
        }
        if (add) {
          a += load16(row);
          b += load16(row + 16);
        }
        store16(row, a);
        store16(row + 16, b);
      };
      auto soon = [&](int m) {
        const float* row = to + live.at(span.first + m) * stride;
        __builtin_prefetch(row, 1);
        __builtin_prefetch(row + 16, 1);
      };
      multiply_panel<kind>(panels + p * panel_bytes, rows, span.size(), tiles, done, soon);
    });
  }

  // gate and up side by side in each panel: 16 gated values; four panels make a group, ready for the next product
  template <class Over>
  void gate(const Over& over, const uint8_t* panels, Span span, int id, const Tiles& tiles) {
    const Rows from = rows_of(s.hidden, span), to = wide_rows(span);
    const size_t panel_bytes = from.groups * Format<kind>::panel_group;
    float* own = e.gated[id].floats();
    const bool gelu = s.activation == 1;
    over(to.groups, e.team.grain(to.groups), [&](int g) {
      for (int p = 0; p < 4; p++) {
        auto done = [&](int m, f32x16 a, f32x16 b) {
          store16(own + m * GROUP + 16 * p, (gelu ? gelu16(a) : silu16(a)) * b);
        };
        auto soon = [&](int m) { __builtin_prefetch(own + m * GROUP + 16 * p, 1); };
        multiply_panel<kind>(panels + (size_t)(4 * g + p) * panel_bytes, from, span.size(), tiles, done, soon);
      }
      for (int m = 0; m < span.size(); m++) {
        const float* x = own + m * GROUP;
        prepare_group<kind>(to, m, g, load16(x), load16(x + 16), load16(x + 32), load16(x + 48));
      }
    });
  }

  void attend_tile_of(int l, int id, const Piece& piece, int first, int last, int head) {
    attend_tile<half>(attention_shape(), call.queries, piece, first, last, head, e.keys[l].data, e.values[l].data,
                      e.model.layers[l].window, e.projected.floats(), qkv_stride, e.attended.floats(), q_width,
                      e.scratch[id]);
  }
  // by the whole team: the queries that are wanted, if rows are named
  void attend(int l, const Live& live, int id) {
    const Queries& q = call.queries;
    // few queries are cut into small tiles, so that every thread has work; numbers do not depend on it
    const int enough = 4 * e.team.size() / s.kv_heads + 1, tile_size = std::clamp(n / enough, 4, QUERIES);
    auto tiles_of = [&](const Piece& piece) { return (piece.count + tile_size - 1) / tile_size; };
    int tiles = 0;
    for (int p = 0; p < q.pieces_count; p++) tiles += tiles_of(q.pieces[p]);
    each(tiles * s.kv_heads, 1, [&](int task) {
      int tile = tiles - 1 - task / s.kv_heads, p = 0;  // the last tiles see the most columns: they come first
      for (; tile >= tiles_of(q.pieces[p]); p++) tile -= tiles_of(q.pieces[p]);
      const Piece& piece = q.pieces[p];
      const int first = piece.first + tile * tile_size;
      const int last = std::min(first + tile_size, piece.first + piece.count);
      if (live.rows) {  // rows are named in ascending order
        const int32_t* next = std::lower_bound(live.rows, live.rows + live.count, first);
        if (next == live.rows + live.count || *next >= last) return;
      }
      attend_tile_of(l, id, piece, first, last, task % s.kv_heads);
    });
  }
  // by one thread: the queries of a span of the call's rows
  void attend_alone(int l, Span span, int id) {
    for (int p = 0; p < call.queries.pieces_count; p++) {
      const Piece& piece = call.queries.pieces[p];
      const int from = std::max(span.first, piece.first), to = std::min(span.last, piece.first + piece.count);
      for (int head = 0; head < s.kv_heads; head++)
        for (int first = from; first < to; first += QUERIES)
          attend_tile_of(l, id, piece, first, std::min(first + QUERIES, to), head);
    }
  }

  // a product is added to the stream, normed first where the model says so
  template <class Over>
  void add(const Over& over, const uint8_t* panels, const Rows& rows, const Live& live, Span span, const float* after,
           const Tiles& tiles) {
    float* stream = e.stream.floats();
    if (!after) return project(over, panels, rows, live, span, s.hidden, stream, hidden_stride, nullptr, true, tiles);
    const Live own{live.count, nullptr};
    project(over, panels, rows, own, span, s.hidden, e.added.floats(), hidden_stride, nullptr, false, tiles);
    over(span.size(), row_grain(), [&](int m) {
      float* x = e.added.floats() + (span.first + m) * hidden_stride;
      scale_row(x, s.hidden, root_mean(x, s.hidden, s.epsilon), after);
      add_row(stream + live.at(span.first + m) * hidden_stride, x, s.hidden);
    });
  }
  // a layer up to its attention: queries, keys and values
  template <class Over>
  void before_attention(const Over& over, int l, Span span, const Tiles& tiles) {
    const LayerWeights& w = e.model.layers[l];
    const Rows rows = rows_of(s.hidden, span);
    over(span.size(), row_grain(), [&](int m) { norm_and_prepare(rows, m, span.first + m, w.attention_norm); });
    project(over, w.qkv, rows, Live{n, nullptr}, span, q_width + 2 * kv_width, e.projected.floats(), qkv_stride,
            w.qkv_bias, false, tiles);
    over(span.size(), row_grain(), [&](int m) { place(l, span.first + m); });
  }
  // what its attention found, to the stream
  template <class Over>
  void after_attention(const Over& over, int l, const Live& live, Span span, const Tiles& tiles) {
    const LayerWeights& w = e.model.layers[l];
    const Rows rows = rows_of(q_width, span);
    over(span.size(), row_grain(), [&](int m) {
      const float* own = e.attended.floats() + (size_t)live.at(span.first + m) * q_width;
      prepare_row<kind>(rows, m, own, q_width, 1, nullptr);
    });
    add(over, w.out, rows, live, span, w.attention_after, tiles);
  }
  template <class Over>
  void feed_forward(const Over& over, int l, const Live& live, Span span, int id, const Tiles& tiles) {
    const LayerWeights& w = e.model.layers[l];
    const Rows rows = rows_of(s.hidden, span);
    over(span.size(), row_grain(),
         [&](int m) { norm_and_prepare(rows, m, live.at(span.first + m), w.mlp_norm); });
    gate(over, w.gate_up, span, id, tiles);
    add(over, w.down, wide_rows(span), live, span, w.mlp_after, tiles);
  }

  void run(int id) {
    const Tiles tiles;
    const Live all{n, nullptr}, wanted{call.wanted, call.wanted_rows};
    int mixing = s.layers - 1;  // the last layer where rows meet: from its attention on, the wanted ones are enough
    while (mixing >= 0 && call.skip_attention && call.skip_attention[mixing]) mixing--;
    each(n, row_grain(), [&](int i) { embed(i); });
    for (int l = 0; l < s.layers; l++) {
      const Live& live = l < mixing ? all : wanted;
      const bool attention = !call.skip_attention || !call.skip_attention[l];
      const bool mlp = !call.skip_mlp || !call.skip_mlp[l];
      auto after = [&](const auto& over, Span span) {
        if (attention) after_attention(over, l, live, span, tiles);
        if (mlp) feed_forward(over, l, live, span, id, tiles);
      };
      if (n < MANY * e.team.size()) {
        const Together team{*this};
        if (attention) {
          before_attention(team, l, {0, n}, tiles);
          attend(l, live, id);
        }
        after(team, {0, live.count});
        continue;
      }
      const Spans spans(n, e.team.size()), live_spans(live.count, e.team.size());
      if (attention) each(spans.count, 1, [&](int i) { before_attention(Alone{}, l, spans[i], tiles); });
      if (attention && live.rows) attend(l, live, id);
      each(live_spans.count, 1, [&](int i) {
        const Span span = live_spans[live_spans.count - 1 - i];  // the last rows see the most columns: they come first
        if (attention && !live.rows) attend_alone(l, span, id);
        after(Alone{}, span);
      });
    }
    each(call.wanted, std::max(1, call.wanted / (e.team.size() * 4)), [&](int i) {
      const float* x = e.stream.floats() + call.wanted_rows[i] * hidden_stride;
      const float factor = root_mean(x, s.hidden, s.epsilon);
      prepare_row<kind>(e.final_view, i, x, s.hidden, factor, e.model.final_norm);
      if (call.hidden)
        for (int d = 0; d < s.hidden; d++) call.hidden[(size_t)i * s.hidden + d] = x[d] * factor * e.model.final_norm[d];
    });
  }
};

template <Kind kind>
int run_forward(Engine& engine, const Call& call) {
  Forward<kind> forward{engine, call};
  try {
    if (!forward.fit()) return 1;
  } catch (const std::bad_alloc&) {
    return 1;
  }
  engine.team.run([&](int id) { forward.run(id); });
  return 0;
}

template <Kind kind>
void run_head(Engine& e, int first, int count, float* logits, size_t stride) {
  const ModelShape& s = e.model.shape;
  const Rows rows = rows_from<kind>(e.final_view, first);
  const size_t panel_bytes = rows.groups * Format<kind>::panel_group;
  const int panels = (s.vocabulary + PANEL - 1) / PANEL;
  const float cap = s.logit_softcap;
  e.team.run([&](int) {
    const Tiles tiles;
    int from, to;
    while (e.team.take(panels, e.team.grain(panels), from, to))
      for (int p = from; p < to; p++)
        multiply_panel<kind>(e.model.head + p * panel_bytes, rows, count, tiles, [&](int m, f32x16 a, f32x16 b) {
          if (cap > 0)
            for (int i = 0; i < 16; i++) {
              a[i] = cap * std::tanh(a[i] / cap);
              b[i] = cap * std::tanh(b[i] / cap);
            }
          store16(logits + m * stride + (size_t)p * PANEL, a);
          store16(logits + m * stride + (size_t)p * PANEL + 16, b);
        }, [&](int m) {
          __builtin_prefetch(logits + m * stride + (size_t)p * PANEL, 1);
          __builtin_prefetch(logits + m * stride + (size_t)p * PANEL + 16, 1);
        });
  });
}

// log of the sum of exponentials and entropy of a row; NaN if the row holds one
void reduce_row(const float* row, int n, double* log_norm, double* entropy) {
  f32x16 most = all16(-INFINITY), finite = {};
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    f32x16 v = load16(row + i);
    most = max16(most, v);
    finite += v != v ? all16(1.0f) : f32x16{};
  }
  float peak = max_of(most);
  bool bad = sum_of(finite) > 0;
  for (; i < n; i++) {
    peak = std::max(peak, row[i]);
    bad = bad || row[i] != row[i];
  }
  if (bad) {
    *log_norm = NAN;
    if (entropy) *entropy = NAN;
    return;
  }
  double sum = 0, weighted = 0;  // in pieces: fp32 within a piece, fp64 over pieces
  for (int start = 0; start < n; start += 2048) {
    const int stop = std::min(n, start + 2048);
    f32x16 part = {}, part_weighted = {};
    for (i = start; i + 16 <= stop; i += 16) {
      f32x16 v = load16(row + i) - peak, p = exp16(v);
      part += p;
      if (entropy) part_weighted += p > all16(0.0f) ? p * v : f32x16{};
    }
    float rest = 0, rest_weighted = 0;
    for (; i < stop; i++) {
      const float v = row[i] - peak, p = exp16(all16(v))[0];
      rest += p;
      if (p > 0) rest_weighted += p * v;
    }
    sum += (double)sum_of(part) + rest;
    weighted += (double)sum_of(part_weighted) + rest_weighted;
  }
  *log_norm = peak + std::log(sum);
  if (entropy) *entropy = std::log(sum) - weighted / sum;
}

// the k largest, largest first; ties go to the smaller index
void top_of_row(const float* row, int n, int k, int64_t* ids, float* best) {
  int held = 0;
  auto offer = [&](int i) {
    if (held == k && !(row[i] > best[k - 1])) return;
    int at = held < k ? held++ : k - 1;
    for (; at > 0 && row[i] > best[at - 1]; at--) {
      best[at] = best[at - 1];
      ids[at] = ids[at - 1];
    }
    best[at] = row[i];
    ids[at] = i;
  };
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    if (held == k && max_of(load16(row + i)) <= best[k - 1]) continue;
    for (int j = 0; j < 16; j++) offer(i + j);
  }
  for (; i < n; i++) offer(i);
}

}  // namespace

extern "C" {

// Bits: what the compiler was told this machine has.
int likely_features() {
  return LIKELY_AVX512 | LIKELY_VNNI << 1 | LIKELY_BF16 << 2 | LIKELY_AMX << 3 | LIKELY_AVX2 << 4;
}

Engine* likely_open(const Model* model, int threads) {
  try {
    return new Engine(*model, threads);
  } catch (const std::exception&) {  // no memory, or no more threads
    return nullptr;
  }
}
void likely_close(Engine* engine) { delete engine; }

// Room for keys and values of `slots` slots; what is there is kept.
int likely_reserve(Engine* e, int64_t slots) {
  const int64_t capacity = round_up(slots, LANES);
  const ModelShape& s = e->model.shape;
  const size_t slot = round_up(s.dim, 32) * (s.kind == FP32 ? 4 : 2);
  for (auto* all : {&e->keys, &e->values})
    for (auto& own : *all) {
      Buffer grown;
      if (!grown.fit(s.kv_heads * capacity * slot)) return 1;
      for (int h = 0; h < s.kv_heads && e->capacity; h++)
        memcpy(grown.data + h * capacity * slot, own.data + h * e->capacity * slot, e->capacity * slot);
      std::swap(grown.data, own.data);
      std::swap(grown.size, own.size);
    }
  e->capacity = capacity;
  return 0;
}

// Evaluate the tokens; the wanted rows then wait for likely_head.
int likely_forward(Engine* e, const Call* call) {
  switch (e->model.shape.kind) {
    case INT8: return run_forward<INT8>(*e, *call);
    case BF16: return run_forward<BF16>(*e, *call);
    default: return run_forward<FP32>(*e, *call);
  }
}

// Logits (count, stride) of the wanted rows first .. first + count of the last call; stride >= vocabulary up to 32s.
void likely_head(Engine* e, int first, int count, float* logits, int64_t stride) {
  switch (e->model.shape.kind) {
    case INT8: return run_head<INT8>(*e, first, count, logits, stride);
    case BF16: return run_head<BF16>(*e, first, count, logits, stride);
    default: return run_head<FP32>(*e, first, count, logits, stride);
  }
}

// Of each row of logits: the log of its normaliser, its entropy in nats (or null), and its `top` largest (top 0: none).
void likely_reduce(Engine* e, const float* logits, int rows, int64_t stride, double* log_norm, double* entropy,
                   int top, int64_t* ids, float* best) {
  const int n = e->model.shape.vocabulary;
  e->team.run([&](int) {
    int from, to;
    while (e->team.take(rows, 1, from, to))
      for (int r = from; r < to; r++) {
        const float* row = logits + r * stride;
        reduce_row(row, n, log_norm + r, entropy ? entropy + r : nullptr);
        if (top) top_of_row(row, n, top, ids + (size_t)r * top, best + (size_t)r * top);
      }
  });
}

// Weights (rows, width) fp32 -> panels; rows that fill the last panel are zero.
void likely_pack(int kind, const float* weights, int rows, int width, uint8_t* panels) {
  const int groups = (width + GROUP - 1) / GROUP;
  const size_t size = kind == INT8 ? Format<INT8>::panel_group : kind == BF16 ? Format<BF16>::panel_group
                                                                              : Format<FP32>::panel_group;
  for (int p = 0; p < (rows + PANEL - 1) / PANEL; p++)
    for (int g = 0; g < groups; g++) {
      uint8_t* to = panels + ((size_t)p * groups + g) * size;
      for (int o = 0; o < PANEL; o++) {
        const int row = p * PANEL + o, tile = o / 16, lane = o % 16;
        float w[GROUP] = {};
        for (int k = 0; row < rows && k < GROUP && g * GROUP + k < width; k++)
          w[k] = weights[(size_t)row * width + g * GROUP + k];
        if (kind == FP32) {
          for (int k = 0; k < GROUP; k++) memcpy(to + 128 * k + 64 * tile + 4 * lane, &w[k], 4);
        } else if (kind == BF16) {
          for (int k = 0; k < GROUP; k++)
            ((uint16_t*)(to + 128 * (k / 2) + 64 * tile))[2 * lane + k % 2] = to_bf16(w[k]);
        } else {
          rotate_group(w);
          float most = 0;
          for (float& v : w) v /= 8;
          for (float v : w) most = std::max(most, std::fabs(v));
          uint32_t bits;
          const float exact = most / 127.0f;
          memcpy(&bits, &exact, 4);
          bits = (bits + 0xffff) & 0xffff0000u;  // the scale in bf16, rounded up: no code leaves -127..127
          float scale;
          memcpy(&scale, &bits, 4);
          ((uint16_t*)(to + 2048))[16 * tile + lane] = (uint16_t)(bits >> 16);
          for (int k = 0; k < GROUP; k++) {
            const int code = scale > 0 ? (int)std::nearbyint(w[k] / scale) : 0;
            to[128 * (k / 4) + 64 * tile + 4 * lane + k % 4] = (uint8_t)(code + 128);
          }
        }
      }
    }
}

// rows (n, width) fp32 times panels -> out (n, stride): for the check at load and for tests
int likely_multiply(Engine* e, int kind, const float* x, int n, int width, const uint8_t* panels, int outputs,
                    float* out, int64_t stride) {
  RowBuffers buffers;
  Rows rows;
  auto work = [&](auto format) {
    constexpr Kind k = decltype(format)::value;
    if (!buffers.fit(n, width, Format<k>::row_group, rows)) return 1;
    for (int m = 0; m < n; m++) prepare_row<k>(rows, m, x + (size_t)m * width, width, 1, nullptr);
    const size_t bytes = rows.groups * Format<k>::panel_group;
    const int count = (outputs + PANEL - 1) / PANEL;
    e->team.run([&](int) {
      const Tiles tiles;
      int from, to;
      while (e->team.take(count, 1, from, to))
        for (int p = from; p < to; p++)
          multiply_panel<k>(panels + p * bytes, rows, n, tiles, [&](int m, f32x16 a, f32x16 b) {
            store16(out + m * stride + (size_t)p * PANEL, a);
            store16(out + m * stride + (size_t)p * PANEL + 16, b);
          }, [](int) {});
    });
    return 0;
  };
  switch (kind) {
    case INT8: return work(std::integral_constant<Kind, INT8>{});
    case BF16: return work(std::integral_constant<Kind, BF16>{});
    default: return work(std::integral_constant<Kind, FP32>{});
  }
}

}  // extern "C"
