// soft_topk: the differentiable Top-K, probabilities that add up to k in each pool; and its backward.
#include "soft_topk.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "hard_topk.h"
#include "parallel.h"
#include "soft_topk_pool.h"

namespace vs_kernels {
namespace {

// -> probs float32 [T]; thresholds, pivots, shifts float32 [S]: p = sigmoid((score + threshold) / temperature)
std::tuple<Tensor, Tensor, Tensor, Tensor> soft_topk(Tensor scores,      // float32 [T]
                                                     Tensor cu_lengths,  // int64 [S + 1]
                                                     Tensor cu_ks,       // int64 [S + 1]
                                                     int64_t,            // the longest pool
                                                     double temperature) {
  scores = float_vector(scores, "scores");
  const PoolSums lengths = pool_lengths(cu_lengths, scores.numel());
  const PoolSums ks = pool_ks(cu_ks, lengths);
  const float inverse = inverse_temperature(temperature);
  const Tensor probs = new_float({scores.numel()});
  const SoftPools pools(lengths.count());
  const float* score = const_data<float>(scores);
  float* prob = data<float>(probs);
  for_each_pool(lengths, kLargePool, [&](int64_t pool) {
    const int64_t row = lengths.begin(pool), n = lengths.length(pool), k = ks.length(pool);
    const HardTopK topk = 0 < k && k < n ? find_topk(score + row, n, k) : HardTopK{};
    const SoftSolution soft = solve_soft_topk(score + row, n, k, topk, inverse, prob + row);
    soft_probs(prob + row, n, soft);
    pools.set(pool, soft.scale, temperature);
  });
  return {probs, pools.thresholds, pools.pivots, pools.shifts};
}

// -> float32 [T]
Tensor soft_topk_backward(Tensor grad_probs,                      // float32 [T]
                          std::optional<Tensor> grad_thresholds,  // float32 [S]
                          Tensor scores,                          // float32 [T]
                          Tensor pivots,                          // float32 [S]
                          Tensor shifts,                          // float32 [S]
                          Tensor cu_lengths,                      // int64 [S + 1]
                          double temperature) {
  return soft_topk_gradients(grad_probs, grad_thresholds, scores, pivots, shifts, cu_lengths, temperature, {});
}

}  // namespace

Tensor soft_topk_gradients(Tensor grad_probs, std::optional<Tensor> grad_thresholds, Tensor scores, Tensor pivots,
                           Tensor shifts, const Tensor& cu_lengths, double temperature, LossGradient loss) {
  scores = float_vector(scores, "scores");
  const PoolSums lengths = pool_lengths(cu_lengths, scores.numel());
  grad_probs = float_vector(grad_probs, "grad_probs", scores.numel());
  if (grad_thresholds) grad_thresholds = float_vector(*grad_thresholds, "grad_thresholds", lengths.count());
  pivots = float_vector(pivots, "pivots", lengths.count());
  shifts = float_vector(shifts, "shifts", lengths.count());
  const float inverse = inverse_temperature(temperature);
  Tensor grad_scores = new_float({scores.numel()});
  const float* score = const_data<float>(scores);
  const float* grad_prob = const_data<float>(grad_probs);
  const float* grad_threshold = grad_thresholds ? const_data<float>(*grad_thresholds) : nullptr;
  const float* pivot = const_data<float>(pivots);
  const float* shift = const_data<float>(shifts);
  float* grad = data<float>(grad_scores);
  for_each_pool(lengths, kLargePool, [&](int64_t pool) {
    const int64_t row = lengths.begin(pool), n = lengths.length(pool);
    const SoftScale scale = {pivot[pool], inverse, shift[pool]};
    const LossGradient of_pool = {loss.gradient ? loss.gradient + row : nullptr, loss.factor};
    soft_topk_gradient(score + row, grad_prob + row, n, scale, grad_threshold ? grad_threshold[pool] : 0.0f, of_pool,
                       grad + row);
  });
  return grad_scores;
}

STABLE_TORCH_LIBRARY_IMPL(vs_kernels, CPU, m) {
  m.impl("soft_topk", TORCH_BOX(&soft_topk));
  m.impl("soft_topk_backward", TORCH_BOX(&soft_topk_backward));
}

}  // namespace vs_kernels
