// Products of codes of every type: what takes a compiler longest, so it stands by itself.
#include "products.h"

void multiply_codes_of(Type type, const uint8_t* panel, const Rows& rows, int m0, int n, float* out) {
  with_type(type, [&](auto t) { multiply_codes<decltype(t)::value>(panel, rows, m0, n, out); });
}
