// Sigmoid and its slope from one exponential of a non-positive number: no overflow, no cancellation.
#pragma once

#include "float_bits.h"

namespace vs_kernels {

struct Sigmoid {
  float value;       // 1 / (1 + exp(-x))
  float complement;  // 1 - value
  float small;       // the smaller of the two, with all its digits
  float slope;       // value * (1 - value)
  float exp;         // exp(-|x|)
};

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

[[gnu::always_inline]] static inline Sigmoid sigmoid(float x) {
  const float e = exp_of_minus_abs(x);
  const float large = 1.0f / (1.0f + e);
  const float small = e * large;
  return {x < 0.0f ? small : large, x < 0.0f ? large : small, small, small * large, e};
}

// log(1 + exp(x)) from exp(-|x|), relative error below 3e-7.
[[gnu::always_inline]] static inline float softplus(float x, float exp) {
  // log(1 + e) = 2 atanh(w), a polynomial in w^2 on [0, 1/9].
  const float w = exp / (2.0f + exp);
  const float y = w * w;
  float q = 2.815777957e-1f;
  q = q * y + 2.796515822e-1f;
  q = q * y + 4.002459645e-1f;
  q = q * y + 6.666632295e-1f;
  q = q * y + 2.0f;
  return w * q + (x > 0.0f ? x : 0.0f);
}

}  // namespace vs_kernels
