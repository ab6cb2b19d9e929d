// A few more tokens of each of a few sequences through the blocks of a state-space model (Mamba, Mamba-2), in fp32, with
// the states after every token; and the recurrence of Mamba over whole texts.
//
// Weights lie as torch holds them: a matrix (outputs, inputs) row by row.  The 16 outputs of a task meet all rows of a
// call one after the other, so that a weight comes from memory once.  A row's numbers do not depend on the others.
// States are read from one place and written to another; the caller owns both.
#pragma once
#include <vector>

#include "simd/vectors.h"
#include "threads.h"

extern "C" {

struct DenseLayer {
  const float *weight, *bias;  // (outputs, inputs), null: there is none; (outputs,) or null
  int32_t outputs, inputs;
};

struct RecurrentBlock {
  DenseLayer in, out;           // of the mixer: width -> streams, inner -> width
  DenseLayer select, steps;     // Mamba: inner -> rank + 2 state;  rank -> inner (its bias is that of the steps)
  DenseLayer gate, up, down;    // of the feed-forward part, no weight: there is none
  const float *norm, *mlp_norm, *gate_norm;  // factors
  const float *conv, *conv_bias;             // (taps, channels), (channels,) or null
  const float *decay, *direct, *step_bias;   // A: (inner, state) or, Mamba-2, (heads,);  D;  Mamba-2: (heads,)
  int32_t selective, inner, heads, groups, state, taps, gating;  // selective: Mamba, else Mamba-2;  gating: see Gating
  float norm_epsilon, gate_epsilon, shortest_step, longest_step;
};

// Of one block and token: (sequences, channels or heads, ...) and (sequences, taps - 1, channels), before and after it.
struct RecurrentState {
  const float *memory, *window;
  float *next_memory, *next_window;
};

// Mamba's recurrence over `length` tokens: all (rows, length, inner or state), but A (inner, state) and the memories.
struct SelectiveScan {
  int32_t rows, length, inner, state;
  const float *u, *dt, *A, *B, *C, *memory;
  float *y, *next_memory;
};

}  // extern "C"

namespace recurrent {

enum Gating { GATE_THEN_NORM = 0, NORM_THEN_GATE = 1, GATE_ALONE = 2 };
constexpr int MOST_BESIDE = 4, TASK = 16;  // rows that are multiplied together; outputs of a task
constexpr int outputs_beside(int rows) { return rows == 1 ? 8 : rows == 2 || LIKELY_AVX512 ? 4 : 2; }  // sums in registers
constexpr int MOST_STATE = 64;  // of a scan

// The next k <= 16 of an array; zeros beyond them.
INLINE f32x16 load_up_to(const float* from, int k) {
  if (k == 16) return load16(from);
  f32x16 v = {};
  memcpy(&v, from, 4 * (size_t)k);
  return v;
}
INLINE void store_up_to(float* to, f32x16 v, int k) {
  if (k == 16) return store16(to, v);
  memcpy(to, &v, 4 * (size_t)k);
}
template <class Work>
INLINE void by_sixteen(int first, int last, const Work& work) {
  for (int i = first; i < last; i += 16) work(i, std::min(16, last - i));
}

// log(1 + e^x) = max(x, 0) + 2 artanh(t / (2 + t)), t = e^-|x|; the series ends below 1e-8
INLINE f32x16 softplus16(f32x16 x) {
  const f32x16 t = exp16(-abs16(x)), s = t / (t + 2.0f), q = s * s;
  f32x16 p = all16(2.0f / 13);
  for (float c : {2.0f / 11, 2.0f / 9, 2.0f / 7, 2.0f / 5, 2.0f / 3, 2.0f}) p = fma16(p, q, all16(c));
  return max16(x, all16(0.0f)) + s * p;
}

// One register of floats: wider vectors than the processor's would live in memory.
#if LIKELY_AVX512
typedef f32x16 Lanes;
#else
typedef f32x8 Lanes;
#endif
constexpr int LANES_OF = sizeof(Lanes) / 4;
INLINE Lanes fma_lanes(Lanes a, Lanes b, Lanes c) {
#if LIKELY_AVX512
  return fma16(a, b, c);
#elif LIKELY_AVX2 && defined(__FMA__)
  return (Lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
INLINE float sum_lanes(Lanes v) {
  float a[LANES_OF];
  memcpy(a, &v, sizeof v);
  for (int w = LANES_OF / 2; w; w /= 2)
    for (int i = 0; i < w; i++) a[i] += a[i + w];
  return a[0];
}

// sums[o * M + m] = weight row o times x row m.  Never inlined: the sums need all registers.
template <int O, int M>
__attribute__((noinline)) static void sum_products(const float* weight, const float* x, size_t stride, int inputs,
                                                   float* sums) {
  Lanes sum[O][M];
#pragma GCC unroll 8
  for (int o = 0; o < O; o++)
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) sum[o][m] = Lanes{};
  const int whole = inputs / LANES_OF * LANES_OF;
  for (int i = 0; i < whole; i += LANES_OF) {
    Lanes value[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) value[m] = load_as<Lanes>(x + m * stride + i);
#pragma GCC unroll 8
    for (int o = 0; o < O; o++) {
      const Lanes w = load_as<Lanes>(weight + (size_t)o * inputs + i);
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) sum[o][m] = fma_lanes(w, value[m], sum[o][m]);
    }
  }
#pragma GCC unroll 8
  for (int o = 0; o < O; o++)
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      float rest = sum_lanes(sum[o][m]);
      for (int i = whole; i < inputs; i++) rest += weight[(size_t)o * inputs + i] * x[m * stride + i];
      sums[o * M + m] = rest;
    }
}

struct Stepper {
  Team team;
  const int rows;        // at most
  const size_t stride;   // of the buffers' rows
  std::vector<float> buffers[6];
  Stepper(int threads, int most_rows, int widest) : team(threads), rows(most_rows), stride((widest + 31) / 16 * 16) {
    for (auto& buffer : buffers) buffer.resize(stride * rows);
  }
  float* row(int buffer, int r) { return buffers[buffer].data() + r * stride; }

  template <class Work>
  void each(int count, const Work& work) {  // on all threads, which then meet
    int first, last;
    while (team.take(count, team.grain(count), first, last))
      for (int i = first; i < last; i++) work(i);
    team.meet();
  }

  // use(row, output, value) for all products of x (n, stride_of_x) with a layer's weight, bias added
  template <class Use>
  void multiply(const DenseLayer& l, const float* x, size_t stride_of_x, int n, const Use& use) {
    each((l.outputs + TASK - 1) / TASK, [&](int task) {
      const int begin = task * TASK, end = std::min(l.outputs, begin + TASK);
      for (int first = 0; first < n; first += MOST_BESIDE)
        as_constant<MOST_BESIDE>(std::min(MOST_BESIDE, n - first), [&](auto m) {
          constexpr int M = decltype(m)::value, O = outputs_beside(M);
          float sums[O * M];
          const float* rows = x + first * stride_of_x;
          for (int o = begin, some; o < end; o += some) {
            some = o + O <= end ? O : 1;
            const float* weight = l.weight + (size_t)o * l.inputs;
            if (some == O)
              sum_products<O, M>(weight, rows, stride_of_x, l.inputs, sums);
            else
              sum_products<1, M>(weight, rows, stride_of_x, l.inputs, sums);
            for (int i = 0; i < some; i++)
              for (int j = 0; j < M; j++) use(first + j, o + i, sums[i * M + j] + (l.bias ? l.bias[o + i] : 0.0f));
          }
        });
    });
  }
  template <class Use>
  void multiply(const DenseLayer& l, int buffer, int n, const Use& use) {
    multiply(l, row(buffer, 0), stride, n, use);
  }
  auto into(int buffer) {
    return [=](int r, int o, float value) { row(buffer, r)[o] = value; };
  }

  static float inverse_rms(const float* x, int n, float epsilon) {
    f32x16 sum = {};
    by_sixteen(0, n, [&](int i, int k) {
      const f32x16 v = load_up_to(x + i, k);
      sum = fma16(v, v, sum);
    });
    return 1.0f / std::sqrt(sum_of(sum) / (float)n + epsilon);
  }
  static void scale(const float* x, int n, float by, const float* factors, float* to) {
    by_sixteen(0, n, [&](int i, int k) {
      store_up_to(to + i, load_up_to(x + i, k) * by * load_up_to(factors + i, k), k);
    });
  }

  // silu of a causal convolution of channels first .. last, and the window of the next token
  static void convolve(const RecurrentBlock& b, const float* x, const float* window, float* next, int channels,
                       int first, int last, float* to) {
    by_sixteen(first, last, [&](int i, int k) {
      f32x16 sum = b.conv_bias ? load_up_to(b.conv_bias + i, k) : f32x16{};
      for (int tap = 0; tap < b.taps; tap++) {
        const f32x16 seen = load_up_to((tap + 1 < b.taps ? window + (size_t)tap * channels : x) + i, k);
        sum = fma16(seen, load_up_to(b.conv + (size_t)tap * channels + i, k), sum);
        if (tap) store_up_to(next + (size_t)(tap - 1) * channels + i, seen, k);
      }
      store_up_to(to + i, silu16(sum), k);
    });
  }

  enum { NORMED, STREAMS, HEARD, MIXED, LOW, STEPS };  // buffers; the feed-forward part uses STREAMS and HEARD again

  // x (tokens, sequences, width) += the block's mixer and feed-forward part; called by all threads.
  // states: of the block before and after the first token; those of later tokens follow, `apart` places from each other.
  void run(const RecurrentBlock& b, const RecurrentState* states, int apart, int tokens, int sequences, float* x,
           int width) {
    const int n = tokens * sequences;
    const int channels = b.selective ? b.inner : b.inner + 2 * b.groups * b.state, memory = b.inner * b.state;
    const int parts = (channels + 63) / 64, heard_at = b.selective ? 0 : b.inner;  // where the convolution reads
    norm_rows(b.norm, b.norm_epsilon, n, x, width);
    multiply(b.in, NORMED, n, into(STREAMS));
    // work(row, state, offset of the sequence's part in tensors with `size` numbers of each) for one sequence's tokens
    auto in_turn = [&](int sequence, int size, const auto& work) {
      for (int t = 0; t < tokens; t++) work(t * sequences + sequence, states[t * apart], (size_t)sequence * size);
    };
    each(sequences * parts, [&](int task) {
      const int first = task % parts * 64, last = std::min(channels, first + 64);
      in_turn(task / parts, (b.taps - 1) * channels, [&](int r, const RecurrentState& s, size_t at) {
        convolve(b, row(STREAMS, r) + heard_at, s.window + at, s.next_window + at, channels, first, last,
                 row(HEARD, r));
      });
    });
    if (b.selective) {
      const int blocks = (b.inner + 15) / 16;
      multiply(b.select, HEARD, n, into(LOW));
      multiply(b.steps, LOW, n, into(STEPS));
      each(sequences * blocks, [&](int task) {
        const int first = task % blocks * 16, count = std::min(16, b.inner - first);
        in_turn(task / blocks, memory, [&](int r, const RecurrentState& s, size_t at) {
          select_channels(b, r, first, count, s.memory + at, s.next_memory + at);
        });
      });
    } else {
      each(sequences * b.heads, [&](int task) {
        in_turn(task / b.heads, memory, [&](int r, const RecurrentState& s, size_t at) {
          step_head(b, r, task % b.heads, s.memory + at, s.next_memory + at);
        });
      });
      if (b.gating != GATE_ALONE) each(n * b.groups, [&](int task) { norm_group(b, task / b.groups, task % b.groups); });
    }
    multiply(b.out, MIXED, n, [=](int r, int o, float value) { x[(size_t)r * width + o] += value; });
    if (!b.up.weight) return;
    norm_rows(b.mlp_norm, b.norm_epsilon, n, x, width);
    multiply(b.gate, NORMED, n, into(STREAMS));
    multiply(b.up, NORMED, n, into(HEARD));
    each(n * ((b.up.outputs + 63) / 64), [&](int task) {
      const int r = task % n, first = task / n * 64;
      by_sixteen(first, std::min(b.up.outputs, first + 64), [&](int i, int k) {
        float* to = row(HEARD, r) + i;
        store_up_to(to, silu16(load_up_to(row(STREAMS, r) + i, k)) * load_up_to(to, k), k);
      });
    });
    multiply(b.down, HEARD, n, [=](int r, int o, float value) { x[(size_t)r * width + o] += value; });
  }

  void norm_rows(const float* factors, float epsilon, int n, const float* x, int width) {
    each(n, [&](int r) {
      const float* from = x + (size_t)r * width;
      scale(from, width, inverse_rms(from, width, epsilon), factors, row(NORMED, r));
    });
  }

  // Mamba-2: S <- exp(dt A) S + dt u B', y = S C + D u, for one head of one row
  void step_head(const RecurrentBlock& b, int r, int h, const float* memory, float* next) {
    const int P = b.inner / b.heads, N = b.state, group = h / (b.heads / b.groups);
    const float *u = row(HEARD, r) + h * P, *B = row(HEARD, r) + b.inner + group * N, *C = B + b.groups * N;
    const float* z = row(STREAMS, r) + h * P;
    float* to = row(MIXED, r) + h * P;
    const float raw = row(STREAMS, r)[2 * b.inner + 2 * b.groups * N + h] + b.step_bias[h];
    const float dt = std::min(std::max(softplus16(all16(raw))[0], b.shortest_step), b.longest_step);
    const float keep = exp16(all16(dt * b.decay[h]))[0];
    memory += (size_t)h * P * N;
    next += (size_t)h * P * N;
    for (int p = 0; p < P; p++, memory += N, next += N) {
      const float write = u[p] * dt;
      Lanes read = {};
      int i = 0;
      for (; i + LANES_OF <= N; i += LANES_OF) {
        const Lanes S = fma_lanes(load_as<Lanes>(B + i), Lanes{} + write, load_as<Lanes>(memory + i) * keep);
        memcpy(next + i, &S, sizeof S);
        read = fma_lanes(S, load_as<Lanes>(C + i), read);
      }
      float y = sum_lanes(read);
      for (; i < N; i++) {
        next[i] = B[i] * write + memory[i] * keep;
        y += next[i] * C[i];
      }
      to[p] = y + b.direct[h] * u[p];
    }
    if (b.gating != NORM_THEN_GATE)
      by_sixteen(0, P, [&](int i, int k) {
        store_up_to(to + i, load_up_to(to + i, k) * silu16(load_up_to(z + i, k)), k);
      });
  }

  void norm_group(const RecurrentBlock& b, int r, int group) {
    const int n = b.inner / b.groups, at = group * n;
    float* x = row(MIXED, r) + at;
    scale(x, n, inverse_rms(x, n, b.gate_epsilon), b.gate_norm + at, x);
    if (b.gating == NORM_THEN_GATE)
      by_sixteen(0, n, [&](int i, int k) {
        store_up_to(x + i, load_up_to(x + i, k) * silu16(load_up_to(row(STREAMS, r) + at + i, k)), k);
      });
  }

  // Mamba: h <- exp(dt A) h + dt u B, y = (h C + D u) silu(z), for up to sixteen channels of one row
  void select_channels(const RecurrentBlock& b, int r, int first, int count, const float* memory, float* next) {
    const int N = b.state;
    const float *B = row(LOW, r) + b.steps.inputs, *C = B + N;
    const f32x16 u = load_up_to(row(HEARD, r) + first, count);
    const f32x16 dt = softplus16(load_up_to(row(STEPS, r) + first, count)), write = dt * u;
    f32x16 y = {};
    for (int e = 0; e < count; e++) {
      const size_t at = (size_t)(first + e) * N;
      f32x16 read = {};
      by_sixteen(0, N, [&](int i, int k) {
        const f32x16 keep = exp16(load_up_to(b.decay + at + i, k) * dt[e]);
        const f32x16 S = fma16(load_up_to(B + i, k), write[e], keep * load_up_to(memory + at + i, k));
        store_up_to(next + at + i, S, k);
        read = fma16(S, load_up_to(C + i, k), read);
      });
      y[e] = sum_of(read);
    }
    y = (y + load_up_to(b.direct + first, count) * u) * silu16(load_up_to(row(STREAMS, r) + b.inner + first, count));
    store_up_to(row(MIXED, r) + first, y, count);
  }

  // Sixteen channels of one row side by side, token after token; called by all threads.
  void scan(const SelectiveScan& s) {
    const int blocks = (s.inner + 15) / 16, N = s.state;
    each(s.rows * blocks, [&](int task) {
      const int r = task / blocks, first = task % blocks * 16, count = std::min(16, s.inner - first);
      alignas(64) float decay[MOST_STATE][16] = {}, memory[MOST_STATE][16] = {};
      const size_t held = ((size_t)r * s.inner + first) * N;
      for (int e = 0; e < count; e++)
        for (int n = 0; n < N; n++) {
          decay[n][e] = s.A[(size_t)(first + e) * N + n];
          memory[n][e] = s.memory[held + (size_t)e * N + n];
        }
      for (int t = 0; t < s.length; t++) {
        const size_t token = (size_t)r * s.length + t, at = token * s.inner + first;
        const float *B = s.B + token * N, *C = s.C + token * N;
        const f32x16 dt = load_up_to(s.dt + at, count), write = dt * load_up_to(s.u + at, count);
        f32x16 y = {};
        for (int n = 0; n < N; n++) {
          const f32x16 h = fma16(write, B[n], exp16(load16(decay[n]) * dt) * load16(memory[n]));
          store16(memory[n], h);
          y = fma16(h, C[n], y);
        }
        store_up_to(s.y + at, y, count);
      }
      for (int e = 0; e < count; e++)
        for (int n = 0; n < N; n++) s.next_memory[held + (size_t)e * N + n] = memory[n][e];
    });
  }
};

}  // namespace recurrent
