// Memory that starts on a cache line and only ever grows.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>
#ifdef __linux__
#include <sys/mman.h>
#endif

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
  void swap(Buffer& other) {
    std::swap(data, other.data);
    std::swap(size, other.size);
  }
  float* floats() const { return (float*)data; }
};
