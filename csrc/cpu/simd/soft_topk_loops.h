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

// Odds of a logit, and whether they are for p: all ones, or 0.
struct Odds {
  float size;
  int32_t is_for;
};

[[gnu::always_inline]] inline Odds odds_of(float x) { return {exp_of_minus_abs(x), bits_of(x) >> 31}; }

[[gnu::always_inline]] inline Odds moved(float odds, SoftMove move) {
  const int32_t is_for = bits_of(odds) >> 31;
  return {odds * (is_for ? -move.rise : move.fall), is_for};
}

// Many scores are equal, and roundings of a float32 sum of equal terms go one way: eight at a time.
[[gnu::always_inline]] inline double sum_of_block(float* block, int64_t n) {
  constexpr int64_t kColumns = kSumBlock / 8;
  for (int64_t i = n; i < kSumBlock; ++i) block[i] = 0.0f;
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < kColumns; ++i) {
    const auto pair = [&](int64_t row) { return block[row * kColumns + i] + block[(row + 1) * kColumns + i]; };
    sum += (pair(0) + pair(2)) + (pair(4) + pair(6));
  }
  return sum;
}

template <bool kAnchor>
[[gnu::always_inline]] inline SoftAnchor soft_sums_of(const float* scores, int64_t n, SoftScale scale, SoftMove move,
                                                      float* written, const float* odds) {
  SoftAnchor total = {};
  SoftSums& sums = total.sums;
  for (int64_t begin = 0; begin < n; begin += kSumBlock) {
    const int64_t end = begin + kSumBlock < n ? begin + kSumBlock : n;
    float all = 0.0f, slope_below = 0.0f, slope_all = 0.0f, bend = 0.0f, square = 0.0f, apart = 0.0f;
    int32_t count_below = 0;
    float block[kSumBlock];
#pragma omp simd reduction(+ : all, slope_below, slope_all, bend, square, apart) reduction(- : count_below)
    for (int64_t i = begin; i < end; ++i) {
      // Where the score and the pivot are zero, -0 would count as below 0.
      const float z = kAnchor ? (finite_score(scores[i]) - scale.pivot) * scale.inverse_temperature + 0.0f : 0.0f;
      const float x = z + scale.shift;
      const Odds w = kAnchor ? odds_of(x) : moved(odds[i], move);
      if constexpr (kAnchor) {
        written[i] = flipped(w.size, w.is_for);
        count_below -= w.is_for;
        apart += flipped(masked(z, (bits_of(z) ^ bits_of(x)) >> 31), w.is_for);
      }
      const Parts p = parts_of(w.size);
      all += p.part;
      block[i - begin] = flipped(p.part, ~w.is_for);
      slope_all += p.slope;
      slope_below += masked(p.slope, w.is_for);
      bend += flipped(p.slope * (p.part - p.rest), w.is_for);
      square += p.slope * p.slope;
    }
    sums.excess += sum_of_block(block, end - begin);
    sums.all += all;
    sums.slope_below += slope_below;
    sums.slope_all += slope_all;
    sums.bend += bend;
    sums.square += square;
    total.apart += apart;
    total.count_above += static_cast<double>(end - begin) - count_below;
  }
  return total;
}

SoftAnchor anchor_odds(const float* __restrict scores, int64_t n, SoftScale scale, float* __restrict odds) {
  return soft_sums_of<true>(scores, n, scale, {}, odds, nullptr);
}

SoftSums soft_sums(const float* odds, int64_t n, SoftMove move) {
  return soft_sums_of<false>(nullptr, n, {}, move, nullptr, odds).sums;
}

void soft_probs(float* odds, int64_t n, SoftMove move) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const Odds w = moved(odds[i], move);
    const Parts p = parts_of(w.size);
    odds[i] = chosen(w.is_for, p.part, p.rest);
  }
}

SlopeSums soft_slopes(const float* __restrict scores, const float* __restrict grad_probs, int64_t n, SoftScale scale,
                      float* __restrict slopes) {
  SlopeSums sums = {};
  for (int64_t begin = 0; begin < n; begin += kSumBlock) {
    const int64_t end = begin + kSumBlock < n ? begin + kSumBlock : n;
    float slope = 0.0f, product = 0.0f;
#pragma omp simd reduction(+ : slope, product)
    for (int64_t i = begin; i < end; ++i) {
      const float x = (finite_score(scores[i]) - scale.pivot) * scale.inverse_temperature + scale.shift;
      slopes[i] = parts_of(exp_of_minus_abs(x)).slope;
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
[[gnu::always_inline]] inline double consistency_loss_of(const float* scores, const float* odds, int64_t n,
                                                         uint32_t bound, SoftMove move, float factor, float* probs,
                                                         float* grad) {
  // One logarithm of the product of eight.
  constexpr int64_t kColumns = kSumBlock / 8;
  double total = 0.0;
  for (int64_t begin = 0; begin < n; begin += kSumBlock) {
    const int64_t end = begin + kSumBlock < n ? begin + kSumBlock : n;
    float block[kSumBlock];
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const Odds w = moved(odds[i], move);
      const Parts p = parts_of(w.size);
      const float value = chosen(w.is_for, p.part, p.rest);
      const float complement = chosen(w.is_for, p.rest, p.part);
      const float excess = score_key(scores[i]) >= bound ? -complement : value;
      block[i - begin] = w.size;
      if (kWithProbs) probs[i] = value;
      grad[i] = is_finite(scores[i]) ? factor * excess : 0.0f;
    }
    for (int64_t i = end - begin; i < kSumBlock; ++i) block[i] = 0.0f;
    // All but a few terms of the loss are small and alike, so that roundings of a float32 sum would go one way.
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < kColumns; ++i) {
      const auto pair = [&](int64_t row) {
        return product_of_one_plus(block[row * kColumns + i], block[(row + 1) * kColumns + i]);
      };
      const float first = product_of_one_plus(pair(0), pair(2)), second = product_of_one_plus(pair(4), pair(6));
      sum += log_of_one_plus(product_of_one_plus(first, second));
    }
    total += sum;
  }
  return total;
}

double consistency_loss(const float* scores, const float* odds, int64_t n, uint32_t bound, SoftMove move, float factor,
                        float* probs, float* grad) {
  return probs ? consistency_loss_of<true>(scores, odds, n, bound, move, factor, probs, grad)
               : consistency_loss_of<false>(scores, odds, n, bound, move, factor, nullptr, grad);
}

}  // namespace
}  // namespace vs_kernels
