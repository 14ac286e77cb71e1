#include "straight_through.h"

namespace vs_kernels {

Tensor soft_jacobian(const float* credit, const Tensor& scores, const Tensor& pivots, const Tensor& shifts,
                     const PoolSums& lengths, double temperature) {
  const float inverse = inverse_temperature(temperature);
  const Tensor pool_pivots = float_vector(pivots, "pivots", lengths.count());
  const Tensor pool_shifts = float_vector(shifts, "shifts", lengths.count());
  const Tensor grad_scores = new_float({scores.numel()});
  const float* score = const_data<float>(scores);
  const float* pivot = const_data<float>(pool_pivots);
  const float* shift = const_data<float>(pool_shifts);
  float* grad = data<float>(grad_scores);
  for_each_pool(lengths, kLargePool, [&](int64_t pool) {
    const int64_t row = lengths.begin(pool), n = lengths.length(pool);
    const SoftScale scale = {pivot[pool], inverse, shift[pool]};
    soft_topk_gradient(score + row, credit + row, n, scale, 0.0f, LossGradient{}, grad + row);
  });
  return grad_scores;
}

}  // namespace vs_kernels
