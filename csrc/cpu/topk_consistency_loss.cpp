// topk_consistency_loss: binary cross-entropy of the soft Top-K towards the hard one, and its gradient in the same
// pass.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <memory>
#include <tuple>
#include <vector>

#include "hard_topk.h"
#include "isa.h"
#include "part_sums.h"
#include "soft_topk_pool.h"

namespace vs_kernels {
namespace {

// Sum over a pool, 0 < k < n, of softplus(x_i) - m_i x_i; grad = its gradient on the scores times `share`.
double pool_loss(const float* scores, int64_t n, int64_t k, double temperature, double share, float* grad) {
  const HardTopK topk = find_topk(scores, n, k);
  const std::unique_ptr<uint8_t[]> mask(new uint8_t[n]);
  write_mask(scores, n, topk, mask.get());
  float* centred = grad;
  const SoftScale scale = solve_soft_topk(scores, n, k, topk, inverse_temperature(temperature), centred);
  const LossSums total = sum_parts(n, [&](int64_t begin, int64_t count) {
    return simd().consistency_loss(centred + begin, mask.get() + begin, count, scale.shift, grad + begin);
  });
  // Where all probabilities are saturated none can move.
  const float mean = total.slope > 0.0 ? static_cast<float>(total.excess / total.slope) : 0.0f;
  const float factor = total.slope > 0.0 ? static_cast<float>(share / temperature) : 0.0f;
  for_each_part(n, kPartScores, [&](int64_t, int64_t begin, int64_t end) {
    simd().consistency_gradient(scores + begin, end - begin, mean, factor, grad + begin);
  });
  return total.loss;
}

// -> loss float32 [], grad_scores float32 [T]
std::tuple<Tensor, Tensor> topk_consistency_loss(Tensor scores,      // float32 [T]
                                                 Tensor cu_lengths,  // int64 [S + 1]
                                                 Tensor cu_ks,       // int64 [S + 1]
                                                 int64_t,            // the longest pool
                                                 double temperature) {
  scores = float_vector(scores, "scores");
  const PoolSums lengths = pool_lengths(cu_lengths, scores.numel());
  const PoolSums ks = pool_ks(cu_ks, lengths);
  inverse_temperature(temperature);
  const Tensor loss = new_float({});
  const Tensor grad_scores = new_float({scores.numel()});
  const float* score = const_data<float>(scores);
  float* grad = data<float>(grad_scores);
  const double share = 1.0 / static_cast<double>(std::max<int64_t>(1, scores.numel()));
  std::vector<double> sums(lengths.count());
  for_each_pool(lengths, kLargePool, [&](int64_t pool) {
    const int64_t row = lengths.begin(pool), n = lengths.length(pool), k = ks.length(pool);
    if (0 < k && k < n) {
      sums[pool] = pool_loss(score + row, n, k, temperature, share, grad + row);
    } else {
      std::fill_n(grad + row, n, 0.0f);
    }
  });
  double total = 0.0;
  for (const double sum : sums) total += sum;
  *data<float>(loss) = static_cast<float>(total * share);
  return {loss, grad_scores};
}

STABLE_TORCH_LIBRARY_IMPL(vs_kernels, CPU, m) { m.impl("topk_consistency_loss", TORCH_BOX(&topk_consistency_loss)); }

}  // namespace
}  // namespace vs_kernels
