// Rows of activations: room for them, norms, and their form for a product.
#pragma once
#include <cstdlib>
#include <utility>

#include "code_tiles.h"
#if defined(__linux__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

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
constexpr int SPAN = 128, MANY = 64;  // rows that a thread takes together; rows per thread from which it does

// Memory that starts on a cache line and only ever grows.
inline size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

constexpr size_t HUGE_PAGE = 2 << 20;

struct Buffer {
  uint8_t* data = nullptr;
  size_t size = 0;
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
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

// Zeros that take memory only where they are written, in small pages: room for all that may ever come costs nothing
// now, and no step pays for growth.
struct LazyBuffer {
  uint8_t* data = nullptr;
  size_t size = 0;
  LazyBuffer() = default;
  LazyBuffer(const LazyBuffer&) = delete;
  LazyBuffer& operator=(const LazyBuffer&) = delete;
#ifdef MAP_ANONYMOUS
  ~LazyBuffer() {
    if (data) munmap(data, size);
  }
  bool map(size_t bytes) {
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return false;
#ifdef MADV_NOHUGEPAGE
    madvise(at, bytes, MADV_NOHUGEPAGE);  // a short text would take one of 2 MiB per head and layer
#endif
    data = (uint8_t*)at;
    size = bytes;
    return true;
  }
#else
  ~LazyBuffer() { free(start); }
  bool map(size_t bytes) {
    start = calloc(bytes + 64, 1);
    data = (uint8_t*)round_up((size_t)start, 64);
    size = bytes;
    return start;
  }
  void* start = nullptr;
#endif
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

// What rows of CODES are, beside their number.
struct RowForm {
  int unit;
  bool rotated;
};
INLINE void form_rows(Rows& rows, int count, RowForm form) {
  rows.count = count;
  rows.unit = form.unit;
  rows.rotated = form.rotated;
}

// The same rows, counted from `first`.
template <Kind kind>
static Rows rows_from(const Rows& rows, int first) {
  if constexpr (kind == CODES) {
    Rows own = rows;
    own.data += (size_t)first * rows.unit;
    own.scale += first;  // of MergeQuant's rows
    own.bias += first;
    return own;
  } else {
    const size_t at = (size_t)first * rows.groups;
    return Rows{rows.row<kind>(first), rows.scale + at, rows.bias + at, rows.groups};
  }
}

// Rows of a span, counted from its first.  Those of CODES lie together, group by group, so that they stay in the cache.
template <Kind kind>
static Rows rows_of_span(const Rows& rows, Span span) {
  Rows own = rows_from<kind>(rows, span.first);
  if constexpr (kind == CODES) {
    own.data = rows.data + (size_t)span.first * rows.groups * rows.unit;
    own.count = span.size();
  }
  return own;
}

INLINE float root_mean(const float* x, int n, float epsilon) {
  f32x16 sum[4] = {};  // in parts, so that additions need not wait for one another
  int i = 0;
  for (; i + 64 <= n; i += 64)
    for (int part = 0; part < 4; part++) {
      const f32x16 v = load16(x + i + 16 * part);
      sum[part] = fma16(v, v, sum[part]);
    }
  for (; i + 16 <= n; i += 16) {
    const f32x16 v = load16(x + i);
    sum[0] = fma16(v, v, sum[0]);
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

inline void scale_row(float* x, int n, float factor, const float* weight) {
  for (int i = 0; i < n; i++) x[i] = x[i] * factor * weight[i];
}

inline void add_row(float* to, const float* x, int n) {
  for (int i = 0; i < n; i++) to[i] += x[i];
}

// The two halves of a head (dim,) as pairs, turned.
inline void rotate_head(float* x, int dim, const float* cosine, const float* sine) {
  const int middle = dim / 2;
  int d = 0;
  for (; d + 16 <= middle; d += 16) {
    f32x16 a = load16(x + d), b = load16(x + middle + d), c = load16(cosine + d), t = load16(sine + d);
    store16(x + d, fma16(a, c, -b * t));
    store16(x + middle + d, fma16(b, c, a * t));
  }
  for (; d < middle; d++) {
    float a = x[d], b = x[middle + d];
    x[d] = a * cosine[d] - b * sine[d];
    x[middle + d] = b * cosine[d] + a * sine[d];
  }
}
