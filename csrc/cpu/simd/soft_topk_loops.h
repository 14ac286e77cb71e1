// Inner loops of the soft Top-K and its Jacobian. Sums are float32 within a block and float64 across blocks.
#pragma once

#include "kernels.h"
#include "score_key.h"
#include "sigmoid.h"
#include "vec.h"

namespace vs_kernels {
namespace {

// As many terms for every lane of a register: to add up its lanes takes as long as several of them.
constexpr int64_t kSumBlock = 32 * kLanes;

[[gnu::always_inline]] inline Sigmoid soft_prob(float score, SoftScale scale) {
  return sigmoid((finite_score(score) - scale.pivot) * scale.inverse_temperature + scale.shift);
}

void centre_scores(const float* __restrict scores, int64_t n, float pivot, float inverse_temperature,
                   float* __restrict centred) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) centred[i] = (finite_score(scores[i]) - pivot) * inverse_temperature;
}

SoftBalance soft_balance(const float* centred, int64_t n, float shift) {
  SoftBalance sums = {};
  for (int64_t begin = 0; begin < n; begin += kSumBlock) {
    const int64_t end = begin + kSumBlock < n ? begin + kSumBlock : n;
    float below = 0.0f, all = 0.0f, slope_below = 0.0f, slope_all = 0.0f;
    int32_t count_below = 0;
#pragma omp simd reduction(+ : below, all, slope_below, slope_all) reduction(- : count_below)
    for (int64_t i = begin; i < end; ++i) {
      const float x = centred[i] + shift;
      const Sigmoid p = sigmoid(x);
      const int32_t is_below = bits_of(x) >> 31;
      all += p.small;
      below += masked(p.small, is_below);
      slope_all += p.slope;
      slope_below += masked(p.slope, is_below);
      count_below -= is_below;
    }
    sums.below += below;
    sums.all += all;
    sums.slope_below += slope_below;
    sums.slope_all += slope_all;
    sums.count_below += count_below;
  }
  return sums;
}

void soft_probs(float* centred, int64_t n, float shift) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) centred[i] = sigmoid(centred[i] + shift).value;
}

SlopeSums soft_slopes(const float* __restrict scores, const float* __restrict grad_probs, int64_t n, SoftScale scale,
                      float* __restrict slopes) {
  SlopeSums sums = {};
  for (int64_t begin = 0; begin < n; begin += kSumBlock) {
    const int64_t end = begin + kSumBlock < n ? begin + kSumBlock : n;
    float slope = 0.0f, product = 0.0f;
#pragma omp simd reduction(+ : slope, product)
    for (int64_t i = begin; i < end; ++i) {
      slopes[i] = soft_prob(scores[i], scale).slope;
      slope += slopes[i];
      product += slopes[i] * grad_probs[i];
    }
    sums.slope += slope;
    sums.product += product;
  }
  return sums;
}

double centred_sum(const float* slopes, const float* grad_probs, int64_t n, float centre) {
  double sum = 0.0;
  for (int64_t begin = 0; begin < n; begin += kSumBlock) {
    const int64_t end = begin + kSumBlock < n ? begin + kSumBlock : n;
    float block = 0.0f;
#pragma omp simd reduction(+ : block)
    for (int64_t i = begin; i < end; ++i) block += slopes[i] * (grad_probs[i] - centre);
    sum += block;
  }
  return sum;
}

template <bool kWithLoss>
[[gnu::always_inline]] inline void soft_backward_of(const float* __restrict scores, const float* __restrict grad_probs,
                                                    const float* __restrict loss_gradient, int64_t n,
                                                    SoftGradient gradient, float* __restrict slopes) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float v = slopes[i];
    // v comes first in each product: where it is 0, so is the result, however large the other factors are.
    const float grad = v * gradient.inverse_temperature * (grad_probs[i] - gradient.mean - gradient.mean_rest) -
                       v * gradient.inverse_slope * gradient.grad_threshold;
    const float finite = is_finite(scores[i]) ? grad : 0.0f;
    slopes[i] = kWithLoss ? finite + gradient.loss_factor * loss_gradient[i] : finite;
  }
}

void soft_backward(const float* scores, const float* grad_probs, const float* loss_gradient, int64_t n,
                   SoftGradient gradient, float* slopes) {
  if (loss_gradient) {
    soft_backward_of<true>(scores, grad_probs, loss_gradient, n, gradient, slopes);
  } else {
    soft_backward_of<false>(scores, grad_probs, nullptr, n, gradient, slopes);
  }
}

template <bool kWithProbs>
[[gnu::always_inline]] inline LossSums consistency_loss_of(const float* scores, const float* centred, int64_t n,
                                                           uint32_t bound, float shift, float* probs,
                                                           float* grad_logits) {
  LossSums sums = {};
  for (int64_t begin = 0; begin < n; begin += kSumBlock) {
    const int64_t end = begin + kSumBlock < n ? begin + kSumBlock : n;
    // All but a few terms of the loss are small and alike, so that roundings of a float32 sum would go one way.
    double loss = 0.0;
    float excess = 0.0f, slope = 0.0f;
#pragma omp simd reduction(+ : loss, excess, slope)
    for (int64_t i = begin; i < end; ++i) {
      const float x = centred[i] + shift;
      const Sigmoid p = sigmoid(x);
      const bool kept = score_key(scores[i]) >= bound;
      const float grad = kept ? -p.complement : p.value;
      // softplus(x) - m x without the difference of two large numbers.
      loss += softplus(kept ? -x : x, p.exp);
      excess += grad;
      slope += p.slope;
      if (kWithProbs) probs[i] = p.value;
      grad_logits[i] = grad;
    }
    sums.loss += loss;
    sums.excess += excess;
    sums.slope += slope;
  }
  return sums;
}

LossSums consistency_loss(const float* scores, const float* centred, int64_t n, uint32_t bound, float shift,
                          float* probs, float* grad_logits) {
  return probs ? consistency_loss_of<true>(scores, centred, n, bound, shift, probs, grad_logits)
               : consistency_loss_of<false>(scores, centred, n, bound, shift, nullptr, grad_logits);
}

void consistency_gradient(const float* __restrict scores, int64_t n, float mean, float factor, float* __restrict grad) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    // |p - m| is p or 1 - p, so that v follows from it.
    const float distance = float_of(bits_of(grad[i]) & 0x7fffffff);
    const float centred = grad[i] - distance * (1.0f - distance) * mean;
    grad[i] = is_finite(scores[i]) ? factor * centred : 0.0f;
  }
}

}  // namespace
}  // namespace vs_kernels
