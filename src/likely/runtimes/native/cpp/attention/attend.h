// Attention of one tile's queries on one key head.
#pragma once
#include "kernel.h"

// query (n, q_stride) fp32, out (n, out_stride); see tiles.h for parts
template <bool half>
static void attend_tile(const Shape& s, const Queries& q, const TilePart* parts, int count, int head,
                        const uint8_t* keys, const uint8_t* values, int window, const float* query, size_t q_stride,
                        float* out, size_t out_stride, Scratch& x) {
  const int share = s.share();
  Seen seen[MOST_QUERIES];
  int row_of[MOST_QUERIES], start[MOST_QUERIES + 1], high[MOST_QUERIES];  // of the queries' rows; of the parts
  int low = INT32_MAX, most = 0, queries = 0;
  for (int p = 0; p < count; p++) {
    start[p] = queries;
    high[p] = 0;
    for (int i = parts[p].first; i < parts[p].last; i++, queries++) {
      row_of[queries] = i;
      const Seen own = seen[queries] = seen_by(q, i, window);
      low = std::min(low, own.low);
      high[p] = std::max(high[p], q.own[i] ? std::min(own.high, q.shared[i] / BLOCK * BLOCK) : own.high);
    }
    most = std::max(most, high[p]);
  }
  start[count] = queries;
  const int rows = queries * share;
  const size_t own_bytes = (size_t)share * s.dim * 4;  // of a query, and of its result
  for (int i = 0; i < queries; i++) {
    const size_t at = (size_t)head * share * s.dim;
    fetch_lines(query + (size_t)row_of[i] * q_stride + at, own_bytes);
    fetch_lines<true>(out + (size_t)row_of[i] * out_stride + at, own_bytes);
  }
  float room[MOST_DIM + 16];
  for (int r = 0; r < rows; r++) {
    const float* from = query + (size_t)row_of[r / share] * q_stride + (size_t)(head * share + r % share) * s.dim;
    from = in_order(s.key_order, head, s.dim, from, room);
    uint8_t* to = &x.query[r * s.row()];
    if (s.direct())
      encode_query(to, from, s.dim, s.scale);
    else
      for (int d = 0; d < s.dim; d += 16) store_as<half>(to, d, load_some(from + d, s.dim - d) * s.scale);
    x.most[r] = -INFINITY;
    store16(&x.sum[(size_t)r * LANES], f32x16{});
  }
  std::fill_n(x.out.data(), (size_t)rows * s.wide, 0.0f);
  auto columns_of = [&](int p) { return q.slots + q.pieces[parts[p].piece].columns_at; };
  for (int column = low / BLOCK * BLOCK; column < most; column += BLOCK) {
    // whoever has columns of its own in this block meets them below
    auto meets = [&](int i) {
      return seen[i].low < column + BLOCK && seen[i].high > column &&
             (!q.own[row_of[i]] || column + BLOCK <= q.shared[row_of[i]]);
    };
    for (int p = 0, stop; p < count; p = stop) {  // parts whose columns are the same slots up to the end of this block
      int end = high[p];
      for (stop = p + 1; stop < count && parts[stop].common * BLOCK > column; stop++) end = std::max(end, high[stop]);
      int from = start[p], to = start[stop];
      while (from < to && !meets(from)) from++;
      while (to > from && !meets(to - 1)) to--;
      if (from == to || column >= end) continue;
      // sixteens that nobody here sees are left out; a part of one would have to be gathered
      const int seen_here = (end - column + LANES - 1) / LANES * LANES;
      const int found = std::min({BLOCK, q.pieces[parts[p].piece].columns - column, seen_here});
      const int32_t* columns = columns_of(p);
      const Block block = find_block<half>(s, keys, values, columns + column, found, head, x, s.direct());
      if (column + BLOCK < end)
        fetch(s, keys, values, columns + column + BLOCK, std::min(BLOCK, end - column - BLOCK), head);
      for (int i = from; i < to;) {  // runs of queries that meet the block
        int last = i;
        while (last < to && meets(last)) last++;
        if (last > i) meet_block<half>(s, seen, share, i * share, last * share, column, block, x);
        i = std::max(last, i + 1);
      }
    }
  }
  int32_t mixed[BLOCK];
  for (int p = 0; p < count; p++)
    for (int i = start[p]; i < start[p + 1]; i++) {
      const int row = row_of[i], shared = q.shared[row], all = shared + q.own[row];
      if (all == shared) continue;
      for (int column = std::max(shared, seen[i].low) / BLOCK * BLOCK; column < seen[i].high; column += BLOCK) {
        const int found = std::min(BLOCK, all - column);
        for (int c = 0; c < found; c++) {
          const int at = column + c;
          mixed[c] = at < shared ? columns_of(p)[at] : q.slots[q.own_at[row] + at - shared];
        }
        const Block block = find_block<half>(s, keys, values, mixed, found, head, x, s.direct());
        meet_block<half>(s, seen, share, i * share, (i + 1) * share, column, block, x);
      }
    }
  for (int r = 0; r < rows; r++) {
    float* to = out + (size_t)row_of[r / share] * out_stride + (size_t)(head * share + r % share) * s.dim;
    const float sum = sum_of(load16(&x.sum[(size_t)r * LANES]));
    const int32_t* order = s.value_order ? s.value_order + head * s.dim : nullptr;
    for (int d = 0; d < s.dim; d++) to[order ? order[d] : d] = x.out[(size_t)r * s.wide + d] / sum;
  }
}
