// What a row of logits comes to.
#pragma once
#include <cmath>

#include "simd/vectors.h"

// log of the sum of exponentials and entropy of a row; NaN if the row holds one
inline void reduce_row(const float* row, int n, double* log_norm, double* entropy) {
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
inline void top_of_row(const float* row, int n, int k, int64_t* ids, float* best) {
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
