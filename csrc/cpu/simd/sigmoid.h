// Sigmoids from exponentials of non-positive numbers: no overflow, no cancellation.
#pragma once

#include "float_bits.h"

namespace vs_kernels {

// exp(-|x|) within 1 ulp; 0 where the result would be subnormal. x is not NaN.
[[gnu::always_inline]] static inline float exp_of_minus_abs(float x) {
  constexpr int32_t kLargestBits = 0x42ae999a;    // 87.3
  constexpr float kRoundToInteger = 12582912.0f;  // 1.5 * 2^23
  const int32_t abs_bits = bits_of(x) & 0x7fffffff;
  const float abs = float_of(abs_bits < kLargestBits ? abs_bits : kLargestBits);
  const float shifted = kRoundToInteger - abs * 1.44269504f;
  const float power = shifted - kRoundToInteger;
  // ln 2 in two parts, the first with so few bits that its product with the power is exact.
  const float rest = power * 2.12194440e-4f - (abs + power * 0.693359375f);
  // Minimax polynomial of (exp(r) - 1 - r) / r^2 on [-ln(2)/2, ln(2)/2], relative error of exp 3e-9.
  float q = 1.381461276e-3f;
  q = q * rest + 8.368710056e-3f;
  q = q * rest + 4.166838899e-2f;
  q = q * rest + 1.666652113e-1f;
  q = q * rest + 4.999999404e-1f;
  const float mantissa = (q * rest * rest + rest) + 1.0f;
  const int32_t scale_bits = static_cast<int32_t>(static_cast<uint32_t>(bits_of(shifted) + 127) << 23);
  return mantissa * float_of(scale_bits & -static_cast<int32_t>(abs_bits < kLargestBits));
}

// A probability p and 1 - p by their odds, each with all its digits.
struct Parts {
  float part;   // odds / (1 + odds)
  float rest;   // 1 / (1 + odds)
  float slope;  // p (1 - p)
};

[[gnu::always_inline]] static inline Parts parts_of(float odds) {
  const float rest = 1.0f / (1.0f + odds);
  const float part = odds * rest;
  return {part, rest, part * rest};
}

// (1 + a) (1 + b) - 1, with its digits also where a and b are small.
[[gnu::always_inline]] static inline float product_of_one_plus(float a, float b) { return a * b + (a + b); }

// log(1 + x) for 0 <= x < 2^126, relative error below 3e-7.
[[gnu::always_inline]] static inline float log_of_one_plus(float x) {
  // 1 + x = 2^exponent (1 + rest), and log(1 + rest) = 2 atanh(w), a polynomial in w^2 on [0, 1/9].
  const int32_t exponent = bits_of(1.0f + x) & 0x7f800000;
  const float scale = float_of(0x7f000000 - exponent);
  const float rest = x * scale + (scale - 1.0f);
  const float w = rest / (2.0f + rest);
  const float y = w * w;
  float q = 2.815777957e-1f;
  q = q * y + 2.796515822e-1f;
  q = q * y + 4.002459645e-1f;
  q = q * y + 6.666632295e-1f;
  q = q * y + 2.0f;
  return w * q + static_cast<float>((exponent >> 23) - 127) * 0.693147181f;
}

}  // namespace vs_kernels
