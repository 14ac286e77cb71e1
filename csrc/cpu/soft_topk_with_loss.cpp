// soft_topk_with_loss: soft Top-K and its consistency loss from one solution; and their backward in one pass.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "hard_topk.h"
#include "parallel.h"
#include "soft_topk.h"
#include "soft_topk_pool.h"

namespace vs_kernels {
namespace {

// -> probs float32 [T]; thresholds float32 [S]; loss float32 []; pivots, shifts float32 [S]; loss_gradient float32 [T]
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> soft_topk_with_loss(Tensor scores,      // float32 [T]
                                                                               Tensor cu_lengths,  // int64 [S + 1]
                                                                               Tensor cu_ks,       // int64 [S + 1]
                                                                               int64_t,            // the longest pool
                                                                               double temperature) {
  scores = float_vector(scores, "scores");
  const PoolSums lengths = pool_lengths(cu_lengths, scores.numel());
  const PoolSums ks = pool_ks(cu_ks, lengths);
  const float inverse = inverse_temperature(temperature);
  const Tensor probs = new_float({scores.numel()});
  const Tensor loss = new_float({});
  const Tensor loss_gradient = new_float({scores.numel()});
  const SoftPools pools(lengths.count());
  const float* score = const_data<float>(scores);
  float* prob = data<float>(probs);
  float* grad = data<float>(loss_gradient);
  const double share = 1.0 / static_cast<double>(std::max<int64_t>(1, scores.numel()));
  std::vector<double> losses(lengths.count());
  for_each_pool(lengths, kLargePool, [&](int64_t pool) {
    const int64_t row = lengths.begin(pool), n = lengths.length(pool), k = ks.length(pool);
    const bool choice = 0 < k && k < n;
    const HardTopK topk = choice ? find_topk(score + row, n, k) : HardTopK{};
    float* odds = prob + row;
    const SoftSolution soft = solve_soft_topk(score + row, n, k, topk, inverse, odds);
    if (choice) {
      losses[pool] = consistency_loss(score + row, odds, n, k, topk, soft, share, prob + row, grad + row);
    } else {
      soft_probs(prob + row, n, soft);
      std::fill_n(grad + row, n, 0.0f);
    }
    pools.set(pool, soft.scale, temperature);
  });
  double total = 0.0;
  for (const double sum : losses) total += sum;
  *data<float>(loss) = static_cast<float>(total * share);
  return {probs, pools.thresholds, loss, pools.pivots, pools.shifts, loss_gradient};
}

// -> float32 [T]
Tensor soft_topk_with_loss_backward(Tensor grad_probs,                      // float32 [T]
                                    std::optional<Tensor> grad_thresholds,  // float32 [S]
                                    Tensor grad_loss,                       // float32 []
                                    Tensor scores,                          // float32 [T]
                                    Tensor pivots,                          // float32 [S]
                                    Tensor shifts,                          // float32 [S]
                                    Tensor loss_gradient,                   // float32 [T]
                                    Tensor cu_lengths,                      // int64 [S + 1]
                                    double temperature) {
  loss_gradient = float_vector(loss_gradient, "loss_gradient", scores.numel());
  STD_TORCH_CHECK(grad_loss.is_cpu() && grad_loss.scalar_type() == ScalarType::Float && grad_loss.numel() == 1,
                  "grad_loss: expected one float32 number on the CPU");
  const LossGradient loss = {const_data<float>(loss_gradient), *const_data<float>(grad_loss)};
  return soft_topk_gradients(grad_probs, grad_thresholds, scores, pivots, shifts, cu_lengths, temperature, loss);
}

STABLE_TORCH_LIBRARY_IMPL(vs_kernels, CPU, m) {
  m.impl("soft_topk_with_loss", TORCH_BOX(&soft_topk_with_loss));
  m.impl("soft_topk_with_loss_backward", TORCH_BOX(&soft_topk_with_loss_backward));
}

}  // namespace
}  // namespace vs_kernels
