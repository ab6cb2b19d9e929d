// Matrices into panels (see linear.h), and single rows of them back to floats.
#pragma once
#include "linear.h"

// One row of a packed matrix, as floats.
template <Kind kind>
static void unpack_row(const uint8_t* panels, int groups, int row, float* to, int n, float factor) {
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

// Weights (rows, width) fp32 -> panels; rows that fill the last panel are zero.
inline void pack(Kind kind, const float* weights, int rows, int width, uint8_t* panels) {
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
