// topk_consistency_loss: binary cross-entropy of the soft Top-K towards the hard one, and its gradient in the same
// pass.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "hard_topk.h"
#include "parallel.h"
#include "soft_topk_pool.h"

namespace vs_kernels {
namespace {

// -> loss float32 [], grad_scores float32 [T]
std::tuple<Tensor, Tensor> topk_consistency_loss(Tensor scores,      // float32 [T]
                                                 Tensor cu_lengths,  // int64 [S + 1]
                                                 Tensor cu_ks,       // int64 [S + 1]
                                                 int64_t,            // the longest pool
                                                 double temperature) {
  scores = float_vector(scores, "scores");
  const PoolSums lengths = pool_lengths(cu_lengths, scores.numel());
  const PoolSums ks = pool_ks(cu_ks, lengths);
  const float inverse = inverse_temperature(temperature);
  const Tensor loss = new_float({});
  const Tensor grad_scores = new_float({scores.numel()});
  const float* score = const_data<float>(scores);
  float* grad = data<float>(grad_scores);
  const double share = 1.0 / static_cast<double>(std::max<int64_t>(1, scores.numel()));
  std::vector<double> sums(lengths.count());
  for_each_pool(lengths, kLargePool, [&](int64_t pool) {
    const int64_t row = lengths.begin(pool), n = lengths.length(pool), k = ks.length(pool);
    if (k == 0 || k == n) {
      std::fill_n(grad + row, n, 0.0f);
      return;
    }
    const HardTopK topk = find_topk(score + row, n, k);
    float* odds = grad + row;
    const SoftSolution soft = solve_soft_topk(score + row, n, k, topk, inverse, odds);
    sums[pool] = consistency_loss(score + row, odds, n, k, topk, soft, share, nullptr, grad + row);
  });
  double total = 0.0;
  for (const double sum : sums) total += sum;
  *data<float>(loss) = static_cast<float>(total * share);
  return {loss, grad_scores};
}

STABLE_TORCH_LIBRARY_IMPL(vs_kernels, CPU, m) { m.impl("topk_consistency_loss", TORCH_BOX(&topk_consistency_loss)); }

}  // namespace
}  // namespace vs_kernels
