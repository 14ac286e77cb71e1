// Inner loops of the soft Top-K and its Jacobian. Sums are float32 within a block and float64 across blocks.
#pragma once

#include "kernels.h"
#include "score_key.h"
#include "sigmoid.h"

namespace vs_kernels {
namespace {

constexpr int64_t kSumBlock = 128;

[[gnu::always_inline]] inline Sigmoid soft_prob(float score, SoftScale scale) {
  return sigmoid((finite_score(score) - scale.pivot) * scale.inverse_temperature + scale.shift);
}

template <bool kStore>
SoftSums soft_probs_loop(const float* __restrict scores, int64_t n, SoftScale scale, float* __restrict probs) {
  SoftSums sums = {0.0, 0.0};
  for (int64_t begin = 0; begin < n; begin += kSumBlock) {
    const int64_t end = begin + kSumBlock < n ? begin + kSumBlock : n;
    float value = 0.0f, slope = 0.0f;
#pragma omp simd reduction(+ : value, slope)
    for (int64_t i = begin; i < end; ++i) {
      const Sigmoid p = soft_prob(scores[i], scale);
      if (kStore) probs[i] = p.value;
      value += p.value;
      slope += p.slope;
    }
    sums.value += value;
    sums.slope += slope;
  }
  return sums;
}

SoftSums soft_probs(const float* scores, int64_t n, SoftScale scale, float* probs) {
  return probs ? soft_probs_loop<true>(scores, n, scale, probs) : soft_probs_loop<false>(scores, n, scale, probs);
}

SoftSums soft_backward_sums(const float* __restrict scores, const float* __restrict grad_probs, int64_t n,
                            SoftScale scale, float centre) {
  SoftSums sums = {0.0, 0.0};
  for (int64_t begin = 0; begin < n; begin += kSumBlock) {
    const int64_t end = begin + kSumBlock < n ? begin + kSumBlock : n;
    float value = 0.0f, slope = 0.0f;
#pragma omp simd reduction(+ : value, slope)
    for (int64_t i = begin; i < end; ++i) {
      const float v = soft_prob(scores[i], scale).slope;
      value += v * (grad_probs[i] - centre);
      slope += v;
    }
    sums.value += value;
    sums.slope += slope;
  }
  return sums;
}

void soft_backward(const float* __restrict scores, const float* __restrict grad_probs, int64_t n, SoftScale scale,
                   SoftGradient gradient, float* __restrict grad_scores) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float v = soft_prob(scores[i], scale).slope;
    // v comes first in each product: where it is 0, so is the result, however large the other factors are.
    const float grad = v * scale.inverse_temperature * (grad_probs[i] - gradient.mean - gradient.mean_rest) -
                       v * gradient.inverse_slope * gradient.grad_threshold;
    grad_scores[i] = is_finite(scores[i]) ? grad : 0.0f;
  }
}

}  // namespace
}  // namespace vs_kernels
