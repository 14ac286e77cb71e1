// Floats as their bits. Integer minima, masks and comparisons become one vector instruction each, where selections of
// floats that might be NaN become several.
#pragma once

#include <stdint.h>

namespace vs_kernels {

[[gnu::always_inline]] static inline int32_t bits_of(float x) {
  int32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

[[gnu::always_inline]] static inline float float_of(int32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

// x where the mask is all ones, +0 where it is zero.
[[gnu::always_inline]] static inline float masked(float x, int32_t mask) { return float_of(bits_of(x) & mask); }

// x where the mask is all ones, y where it is zero. By its bits: of `mask ? x : y` compilers make two computations of
// all that x and y have in common.
[[gnu::always_inline]] static inline float chosen(int32_t mask, float x, float y) {
  return float_of((bits_of(x) & mask) | (bits_of(y) & ~mask));
}

// -x where the mask is all ones, x where it is zero.
[[gnu::always_inline]] static inline float flipped(float x, int32_t mask) {
  return float_of(bits_of(x) ^ (mask & static_cast<int32_t>(0x80000000u)));
}

}  // namespace vs_kernels
