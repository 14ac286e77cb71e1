// Soft Top-K of one pool: p = sigmoid((score - pivot) / temperature + shift) with sum(p) = k.
//
// The pivot is the k-th largest score. Centred on it, the shift is a small number whatever the scores are, where the
// uncentred threshold would lose its digits.
#pragma once

#include <cstdint>

#include "hard_topk.h"
#include "simd/kernels.h"

namespace vs_kernels {

// A temperature with a normal float32 reciprocal, or an error.
float inverse_temperature(double temperature);

// The soft Top-K of one pool, from which soft_probs and consistency_loss make what they return. The shift is -inf where
// k is 0, with p = 0, and +inf where k is n > 0, with p = 1; the pivot is then 0.
struct SoftSolution {
  SoftScale scale;
  double shift;               // of the scale, before rounding
  SoftMove move;              // of the odds, from their anchor to the shift
  double count_above, apart;  // of the anchor
};

// scores: [n], topk: their k largest (unused where k is 0 or n), odds: room for n numbers.
SoftSolution solve_soft_topk(const float* scores, int64_t n, int64_t k, const HardTopK& topk, float inverse_temperature,
                             float* odds);

// p, in place of the odds.
void soft_probs(float* odds, int64_t n, const SoftSolution& soft);

// What is returned of the soft Top-K of each pool; float32 [S].
struct SoftPools {
  Tensor thresholds, pivots, shifts;

  explicit SoftPools(int64_t count)
      : thresholds(new_float({count})), pivots(new_float({count})), shifts(new_float({count})) {}

  void set(int64_t pool, const SoftScale& scale, double temperature) const {
    data<float>(thresholds)[pool] = static_cast<float>(scale.shift * temperature - scale.pivot);
    data<float>(pivots)[pool] = scale.pivot;
    data<float>(shifts)[pool] = scale.shift;
  }
};

// Sum over a pool of softplus(x_i) - m_i x_i, with m the hard Top-K; grad = its gradient on the scores times `share`;
// where probs is not null, p. All [n]; grad or probs may be the odds. 0 < k < n.
double consistency_loss(const float* scores, const float* odds, int64_t n, int64_t k, const HardTopK& topk,
                        const SoftSolution& soft, double share, float* probs, float* grad);

// What a consistency loss adds to the gradient of the scores of one pool: factor * gradient, [n] or null.
struct LossGradient {
  const float* gradient;
  float factor;
};

// Gradient of the scores of one pool from those of its probabilities, of its threshold and of its loss; all [n].
void soft_topk_gradient(const float* scores, const float* grad_probs, int64_t n, SoftScale scale, float grad_threshold,
                        LossGradient loss, float* grad_scores);

}  // namespace vs_kernels
