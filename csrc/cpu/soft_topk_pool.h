// Soft Top-K of one pool: p = sigmoid((score - pivot) / temperature + shift) with sum(p) = k.
//
// The pivot is the k-th largest score. Centred on it, the shift is a small number whatever the scores are, where the
// uncentred threshold would lose its digits.
#pragma once

#include <cstdint>

#include "simd/kernels.h"

namespace vs_kernels {

// A temperature with a normal float32 reciprocal, or an error.
float inverse_temperature(double temperature);

// scores: [n], 0 < k < n, kth and range: keys of the k-th largest, the smallest and the largest score; probs: [n] or null.
SoftScale solve_soft_topk(const float* scores, int64_t n, int64_t k, uint32_t kth_key, KeyRange range,
                          float inverse_temperature, float* probs);

// The part of the Jacobian that the whole pool shares; inverse_slope is 0 where no probability can move.
SoftGradient soft_gradient(const float* scores, const float* grad_probs, int64_t n, SoftScale scale,
                           float grad_threshold);

}  // namespace vs_kernels
