// Unsigned keys that order scores as the selection does: NaN below every number, -0 equal to +0.
#pragma once

#include "float_bits.h"

namespace vs_kernels {

[[gnu::always_inline]] static inline uint32_t score_key(float score) {
  const int32_t bits = bits_of(score + 0.0f);
  const uint32_t key = static_cast<uint32_t>(bits) ^ (static_cast<uint32_t>(bits >> 31) | 0x80000000u);
  return score == score ? key : 0u;
}

[[gnu::always_inline]] static inline float score_of_key(uint32_t key) {
  return float_of(static_cast<int32_t>(key & 0x80000000u ? key ^ 0x80000000u : ~key));
}

// Soft Top-K needs numbers: NaN and -Inf count as the smallest one, +Inf as the largest.
[[gnu::always_inline]] static inline float finite_score(float score) {
  constexpr int32_t kInfinity = 0x7f800000, kLargest = kInfinity - 1;
  constexpr uint32_t kSmallest = 0xff7fffffu;
  int32_t bits = bits_of(score);
  bits |= bits > kInfinity ? static_cast<int32_t>(0x80000000u) : 0;
  const uint32_t above = static_cast<uint32_t>(bits) < kSmallest ? static_cast<uint32_t>(bits) : kSmallest;
  const int32_t within = static_cast<int32_t>(above);
  return float_of(within < kLargest ? within : kLargest);
}

[[gnu::always_inline]] static inline bool is_finite(float score) { return (bits_of(score) & 0x7fffffff) < 0x7f800000; }

}  // namespace vs_kernels
