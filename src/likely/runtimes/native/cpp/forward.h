// One call, from tokens to the rows that the head reads, and the head.
#pragma once
#include "model.h"
#include "pack.h"

template <Kind kind>
struct Forward {
  Session& e;
  const Call& call;
  const ModelShape& s = e.model.shape;
  const int n = call.tokens, dim = s.dim;
  const int q_width = s.heads * s.dim, kv_width = s.kv_heads * s.dim;
  const size_t qkv_stride = round_up(q_width + 2 * kv_width, PANEL) + PANEL, hidden_stride = round_up(s.hidden, PANEL);
  const size_t wide_stride = round_up(s.mlp, GROUP);
  const int hidden_groups = (s.hidden + GROUP - 1) / GROUP;
  AttentionTiles whole[2];               // of the call's rows, for layers without and with a window
  std::vector<AttentionTiles> spans[2];  // of each span's

  bool fit() {
    const RowForm form = form_of(s), inner = s.merged ? RowForm{MERGED_UNIT, false} : form;  // of the head, of layers
    const size_t row_group = kind == CODES ? form.unit : Format<kind>::row_group;
    const size_t rotations = (size_t)n * (dim / 2 + 16);
    bool ok = e.stream.fit(n * hidden_stride * 4) && e.projected.fit(n * qkv_stride * 4) &&
              e.attended.fit((size_t)n * q_width * 4 + 64) && e.added.fit(n * hidden_stride * 4) &&
              e.cosine.fit(2 * rotations * 4) && e.sine.fit(2 * rotations * 4) &&
              e.narrow.fit(n, std::max(most_columns(), q_width), row_group, e.narrow_view) &&
              (!s.merged || e.wide_floats.fit((size_t)n * wide_stride * 4)) &&
              e.wide.fit(n, (int)round_up(s.mlp, GROUP), row_group, e.wide_view) &&
              e.final_rows.fit(call.wanted, s.hidden, row_group, e.final_view);
    for (Rows* view : {&e.narrow_view, &e.wide_view}) form_rows(*view, n, inner);
    form_rows(e.final_view, call.wanted, form);
    for (auto& own : e.gated) ok = ok && own.fit((size_t)n * GROUP * 4);
    if (ok)
      for (auto& own : e.scratch) own.fit(attention_shape(0));
    if (ok) make_tiles();
    return ok;
  }
  int most_columns() const {
    int extra = 0;
    for (int l = 0; l < s.layers; l++)
      extra = std::max({extra, e.model.layers[l].attention_extra.count, e.model.layers[l].mlp_extra.count});
    return s.hidden + extra;
  }
  void make_tiles() {
    const Shape shape = attention_shape(0);
    const int threads = e.team.size(), enough = 4 * threads / s.kv_heads + 1;
    // few queries are cut into small tiles, so that every thread has work; numbers do not depend on it
    const int alone = std::clamp(n / enough, 4, QUERIES);
    const Spans own(n, threads);
    for (int windowed = 0; windowed < 2; windowed++) {
      const int window = window_of(windowed);
      if (window < 0) continue;
      whole[windowed].make(call.queries, 0, n, alone, window, threads, shape, call.apart);
      spans[windowed].resize(are_many(n) ? own.count : 0);
      for (int i = 0; i < (int)spans[windowed].size(); i++)
        spans[windowed][i].make(call.queries, own[i].first, own[i].last, QUERIES, window, 1, shape, call.apart);
    }
  }
  int window_of(int windowed) const {  // -1: no such layer
    for (int l = 0; l < s.layers; l++)
      if ((e.model.layers[l].window > 0) == (windowed == 1)) return e.model.layers[l].window;
    return -1;
  }
  static RowForm form_of(const ModelShape& s) {
    return {s.floats ? CODES_UNIT_WITH_FLOATS : CODES_UNIT, s.rotated != 0};
  }
  Shape attention_shape(int l) const {
    Shape shape = shape_of_attention(s, e.cache[l].capacity);
    shape.key_order = e.model.layers[l].key_order;
    shape.value_order = e.model.layers[l].value_order;
    return shape;
  }
  // Prepared rows of a span, counted from its first.
  Rows rows_of(int width, Span span) const {
    Rows rows = rows_of_span<kind>(e.narrow_view, span);
    rows.groups = (width + GROUP - 1) / GROUP;
    return rows;
  }
  Rows wide_rows(Span span) const { return rows_of_span<kind>(e.wide_view, span); }

  // work(i) or work(i, the task that this thread does afterwards, or -1)
  template <class Work>
  static void do_task(const Work& work, int i, int next) {
    if constexpr (std::is_invocable_v<Work, int, int>)
      work(i, next);
    else
      work(i);
  }
  template <class Work>
  void each(int count, int grain, const Work& work) {  // then all threads meet
    int first, last;
    while (e.team.take(count, grain, first, last))
      for (int i = first; i < last; i++) do_task(work, i, e.team.after(i, last, grain, count));
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
      for (int i = 0; i < count; i++) do_task(work, i, i + 1 < count ? i + 1 : -1);
    }
  };
  bool are_many(int rows) const { return rows >= MANY * e.team.size(); }
  // Spans of nearly equal size, as many for each thread.
  struct Spans {
    int rows, count;
    Spans(int rows, int threads) : rows(rows), count((int)round_up((rows + SPAN - 1) / SPAN, threads)) {}
    Span operator[](int i) const { return {(int)((int64_t)rows * i / count), (int)((int64_t)rows * (i + 1) / count)}; }
  };

  void embed(int i) {
    const Matrix& from = e.model.embedding.panels ? e.model.embedding : e.model.head;
    float* to = e.stream.floats() + i * hidden_stride;
    if constexpr (kind == CODES)
      with_type((Type)from.type, [&](auto t) {
        unpack_code_row<decltype(t)::value>(from.panels, hidden_groups, call.token[i], to, s.hidden, s.embedding_scale,
                                            s.rotated);
      });
    else
      unpack_row<kind>(from.panels, hidden_groups, call.token[i], to, s.hidden, s.embedding_scale);
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

  void norm_and_prepare(const Rows& to, int m, int row, const float* weight, const ExtraColumns& extra) {
    const float* x = e.stream.floats() + row * hidden_stride;
    if constexpr (kind == CODES)
      if (s.merged) return emit_codes(to, m, x, s.hidden, root_mean(x, s.hidden, s.epsilon), weight, extra,
                                      {s.merged, s.per_token > 1});
    prepare_row<kind>(to, m, x, s.hidden, root_mean(x, s.hidden, s.epsilon), weight);
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
      rotate_head(x, dim, c, t);
    }
    const Shape shape = attention_shape(l);
    const KeysValues& cache = e.cache[l];
    for (int h = 0; h < s.kv_heads; h++) {
      const float *key = qkv + q_width + (size_t)h * dim, *value = key + kv_width;
      (s.half ? store_token<true> : store_token<false>)(shape, cache.keys.data, cache.values.data, h, call.slot[i], key,
                                                        value);
    }
  }

  // out[live row] = matrices x row (+ bias), or out[live row] += it, for the rows of a span
  template <class Over, int MATRICES>
  void project(const Over& over, const Matrix (&matrices)[MATRICES], const Rows& rows, const Live& live, Span span,
               float* out, size_t stride, const float* bias, bool add, const Tiles& tiles) {
    const int panels_count = panels_of(matrices);
    over(panels_count, e.team.grain(panels_count), [&](int p, int next) {
      const Slice own = slice_of<kind>(matrices, p, rows.groups);
      float* to = out + own.at;
      auto done = [&](int m, f32x16 a, f32x16 b) {
        float* row = to + live.at(span.first + m) * stride;
        if (bias) {
          a += load16(bias + own.at);
          b += load16(bias + own.at + 16);
        }
        if (add) {
          a += load16(row);
          b += load16(row + 16);
        }
        if (kind == CODES && own.count < PANEL && !own.last) {  // what follows is another matrix's
          float both[PANEL];
          store16(both, a);
          store16(both + 16, b);
          memcpy(row, both, 4 * own.count);
          return;
        }
        store16(row, a);
        store16(row + 16, b);
      };
      auto soon = [&](int m) { fetch_lines<true>(to + live.at(span.first + m) * stride, PANEL * 4); };
      const uint8_t* after = next < 0 ? nullptr : slice_of<kind>(matrices, next, rows.groups).panel;
      multiply_slice<kind>(own, after, rows, span.size(), tiles, done, soon);
    });
  }

  // Gate and up: 64 gated values, ready for the next product.  Side by side in each panel, or (CODES) two matrices.
  template <class Over>
  void gate(const Over& over, const Rows& from, const Matrix (&matrices)[2], Span span, int id, const Tiles& tiles) {
    const Rows to = wide_rows(span);
    float* own = e.gated[id].floats();
    const bool gelu = s.activation == 1;
    const auto activated = [&](f32x16 v) { return gelu ? gelu16(v) : silu16(v); };
    over(to.groups, e.team.grain(to.groups), [&](int g, int next) {
      if constexpr (kind == CODES) {
        for (int p = 0; p < 4; p++) {
          const Matrix(&one)[1] = *(const Matrix(*)[1])(matrices + p % 2);
          const Slice slice = slice_of<kind>(one, 2 * g + p / 2, from.groups);
          multiply_slice<kind>(slice, nullptr, from, span.size(), tiles, [&](int m, f32x16 a, f32x16 b) {
            float* x = own + m * GROUP + 32 * (p / 2);
            store16(x, p % 2 ? load16(x) * a : activated(a));
            store16(x + 16, p % 2 ? load16(x + 16) * b : activated(b));
          }, [](int) {});
        }
      } else {
        const size_t panel_bytes = from.groups * Format<kind>::panel_group;
        for (int p = 0; p < 4; p++) {
          auto done = [&](int m, f32x16 a, f32x16 b) { store16(own + m * GROUP + 16 * p, activated(a) * b); };
          auto soon = [&](int m) { fetch_lines<true>(own + m * GROUP + 16 * p, 64); };
          const uint8_t* panel = matrices[0].panels + (size_t)(4 * g + p) * panel_bytes;
          const uint8_t* after = panel + panel_bytes;
          if (p == 3) after = next < 0 ? nullptr : matrices[0].panels + (size_t)(4 * next) * panel_bytes;
          multiply_panel<kind>(panel, after, from, span.size(), tiles, done, soon);
        }
      }
      for (int m = 0; m < span.size(); m++) {
        const float* x = own + m * GROUP;
        if (s.merged) {
          memcpy(e.wide_floats.floats() + (span.first + m) * wide_stride + g * GROUP, x, GROUP * 4);
          continue;
        }
        prepare_group<kind>(to, m, g, load16(x), load16(x + 16), load16(x + 32), load16(x + 48));
      }
    });
    if constexpr (kind == CODES)
      if (s.merged)
        over(span.size(), row_grain(), [&](int m) {
          const float* x = e.wide_floats.floats() + (span.first + m) * wide_stride;
          emit_codes(to, m, x, (int)wide_stride, 1, nullptr, {}, {s.merged, s.per_token != 0});
        });
  }

  void attend_tile_of(int l, int id, const AttentionTiles& tiles, int tile, int head) {
    const int window = e.model.layers[l].window;
    (s.half ? attend_tile<true> : attend_tile<false>)(
        attention_shape(l), call.queries, tiles.parts_of(tile), tiles.tiles[tile].count, head, e.cache[l].keys.data,
        e.cache[l].values.data, window, e.projected.floats(), qkv_stride, e.attended.floats(), q_width, e.scratch[id]);
  }
  // by the whole team: the queries that are wanted, if rows are named
  void attend(int l, const Live& live, int id) {
    const AttentionTiles& tiles = whole[e.model.layers[l].window > 0];
    const int count = (int)tiles.tiles.size();
    auto wanted = [&](int tile) {
      for (int i = 0; i < tiles.tiles[tile].count; i++) {  // rows are named in ascending order
        const TilePart& part = tiles.parts_of(tile)[i];
        const int32_t* next = std::lower_bound(live.rows, live.rows + live.count, part.first);
        if (next < live.rows + live.count && *next < part.last) return true;
      }
      return false;
    };
    each(count * s.kv_heads, 1, [&](int task) {
      const int tile = count - 1 - task / s.kv_heads;  // the last tiles see the most columns: they come first
      if (!live.rows || wanted(tile)) attend_tile_of(l, id, tiles, tile, task % s.kv_heads);
    });
  }
  // by one thread: the queries of a span of the call's rows
  void attend_alone(int l, int span, int id) {
    const AttentionTiles& tiles = spans[e.model.layers[l].window > 0][span];
    for (int head = 0; head < s.kv_heads; head++)
      for (int tile = 0; tile < (int)tiles.tiles.size(); tile++) attend_tile_of(l, id, tiles, tile, head);
  }

  // a product is added to the stream, normed first where the model says so
  template <class Over>
  void add(const Over& over, const Matrix& matrix, const Rows& rows, const Live& live, Span span, const float* after,
           const Tiles& tiles) {
    float* stream = e.stream.floats();
    const Matrix one[1] = {matrix};
    if (!after) return project(over, one, rows, live, span, stream, hidden_stride, nullptr, true, tiles);
    const Live own{live.count, nullptr};
    project(over, one, rows, own, span, e.added.floats(), hidden_stride, nullptr, false, tiles);
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
    const Rows rows = rows_of(s.hidden + w.attention_extra.count, span);
    over(span.size(), row_grain(),
         [&](int m) { norm_and_prepare(rows, m, span.first + m, w.attention_norm, w.attention_extra); });
    project(over, w.qkv, rows, Live{n, nullptr}, span, e.projected.floats(), qkv_stride, w.qkv_bias, false, tiles);
    over(span.size(), row_grain(), [&](int m) { place(l, span.first + m); });
  }
  // what its attention found, to the stream
  template <class Over>
  void after_attention(const Over& over, int l, const Live& live, Span span, const Tiles& tiles) {
    const LayerWeights& w = e.model.layers[l];
    const Rows rows = rows_of(q_width, span);
    over(span.size(), row_grain(), [&](int m) {
      const float* own = e.attended.floats() + (size_t)live.at(span.first + m) * q_width;
      if constexpr (kind == CODES)
        if (s.merged) return emit_codes(rows, m, own, q_width, 1, nullptr, {}, {s.merged, s.per_token != 0});
      prepare_row<kind>(rows, m, own, q_width, 1, nullptr);
    });
    add(over, w.out, rows, live, span, w.attention_after, tiles);
  }
  template <class Over>
  void feed_forward(const Over& over, int l, const Live& live, Span span, int id, const Tiles& tiles) {
    const LayerWeights& w = e.model.layers[l];
    const Rows rows = rows_of(s.hidden + w.mlp_extra.count, span);
    over(span.size(), row_grain(),
         [&](int m) { norm_and_prepare(rows, m, live.at(span.first + m), w.mlp_norm, w.mlp_extra); });
    gate(over, rows, w.gate_up, span, id, tiles);
    add(over, w.down, wide_rows(span), live, span, w.mlp_after, tiles);
  }

  bool attends(int l) const { return !call.skip_attention || !call.skip_attention[l]; }
  bool has_mlp(int l) const { return !call.skip_mlp || !call.skip_mlp[l]; }

  template <class Over>
  void after(const Over& over, int l, const Live& live, Span span, int id, const Tiles& tiles) {
    if (attends(l)) after_attention(over, l, live, span, tiles);
    if (has_mlp(l)) feed_forward(over, l, live, span, id, tiles);
  }

  // `mixing`: the last layer where rows meet; from its attention on, the wanted ones are enough
  void layers_by_outputs(int mixing, const Live& all, const Live& wanted, int id, const Tiles& tiles) {
    for (int l = 0; l < s.layers; l++) {
      const Live& live = l < mixing ? all : wanted;
      if (attends(l)) {
        before_attention(Together{*this}, l, {0, n}, tiles);
        attend(l, live, id);
      }
      after(Together{*this}, l, live, {0, live.count}, id, tiles);
    }
  }
  void layers_by_rows(int mixing, const Live& all, const Live& wanted, int id, const Tiles& tiles) {
    const Spans all_spans(n, e.team.size());
    auto before = [&](int l, Span span) {
      if (l < s.layers && attends(l)) before_attention(Alone{}, l, span, tiles);
    };
    each(all_spans.count, 1, [&](int i) { before(0, all_spans[i]); });
    for (int l = 0; l < mixing; l++)
      each(all_spans.count, 1, [&](int i) {
        const int number = all_spans.count - 1 - i;  // the last rows see the most columns: they come first
        const Span span = all_spans[number];
        if (attends(l)) attend_alone(l, number, id);
        after(Alone{}, l, all, span, id, tiles);
        before(l + 1, span);
      });
    if (mixing >= 0) attend(mixing, wanted, id);
    auto finish = [&](const auto& over, Span span) {
      for (int l = std::max(mixing, 0); l < s.layers; l++) after(over, l, wanted, span, id, tiles);
    };
    if (!are_many(wanted.count)) return finish(Together{*this}, {0, wanted.count});
    const Spans rest(wanted.count, e.team.size());
    each(rest.count, 1, [&](int i) { finish(Alone{}, rest[i]); });
  }

  void run(int id) {
    const Tiles tiles;
    e.scratch[id].tiles = tiles.ready;
    const Live all{n, nullptr}, wanted{call.wanted, call.wanted_rows};
    int mixing = s.layers - 1;
    while (mixing >= 0 && !attends(mixing)) mixing--;
    each(n, row_grain(), [&](int i) { embed(i); });
    if (are_many(n))
      layers_by_rows(mixing, all, wanted, id, tiles);
    else
      layers_by_outputs(mixing, all, wanted, id, tiles);
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
static int run_forward(Session& session, const Call& call) {
  Forward<kind> forward{session, call};
  try {
    if (!forward.fit()) return 1;
  } catch (const std::bad_alloc&) {
    return 1;
  }
  session.team.run([&](int id) { forward.run(id); });
  return 0;
}

template <Kind kind>
static void run_head(Session& e, int first, int count, float* logits, size_t stride) {
  const ModelShape& s = e.model.shape;
  const Rows rows = rows_from<kind>(e.final_view, first);
  const Matrix head[1] = {e.model.head};
  const int panels = panels_of(head), grain = e.team.grain(panels);
  const float cap = s.logit_softcap;
  e.team.run([&](int) {
    const Tiles tiles;
    int from, to;
    while (e.team.take(panels, grain, from, to))
      for (int p = from; p < to; p++) {
        float* own = logits + (size_t)p * PANEL;
        auto done = [&](int m, f32x16 a, f32x16 b) {
          if (cap > 0)
            for (int i = 0; i < 16; i++) {
              a[i] = cap * std::tanh(a[i] / cap);
              b[i] = cap * std::tanh(b[i] / cap);
            }
          store16(own + m * stride, a);
          store16(own + m * stride + 16, b);
        };
        auto soon = [&](int m) { fetch_lines<true>(own + m * stride, PANEL * 4); };
        const int next = e.team.after(p, to, grain, panels);
        const uint8_t* after = next < 0 ? nullptr : slice_of<kind>(head, next, rows.groups).panel;
        multiply_slice<kind>(slice_of<kind>(head, p, rows.groups), after, rows, count, tiles, done, soon);
      }
  });
}
