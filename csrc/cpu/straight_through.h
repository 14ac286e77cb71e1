// What both straight-through operators do: a hard choice in the forward, the soft Top-K in the backward.
#pragma once

#include <optional>
#include <tuple>

#include "hard_topk.h"
#include "parallel.h"
#include "scratch.h"
#include "soft_topk_pool.h"

namespace vs_kernels {

// Pivots and shifts [S] of the soft Top-K of the scores; and choose(pool, topk) for each pool that keeps tokens, with
// the hard Top-K of the scores that rank them.
template <class F>
std::tuple<Tensor, Tensor> choose_tokens(const float* scores, const float* ranking, const PoolSums& lengths,
                                         const PoolSums& ks, double temperature, const F& choose) {
  const float inverse = inverse_temperature(temperature);
  const Tensor pivots = new_float({lengths.count()});
  const Tensor shifts = new_float({lengths.count()});
  float* pivot = data<float>(pivots);
  float* shift = data<float>(shifts);
  for_each_pool(lengths, kLargePool, [&](int64_t pool) {
    const int64_t row = lengths.begin(pool), n = lengths.length(pool), k = ks.length(pool);
    const bool some = 0 < k && k < n;
    HardTopK topk = some ? find_topk(ranking + row, n, k) : HardTopK{0, n, {}};  // or all rows
    if (k > 0) choose(pool, topk);
    if (some && ranking != scores) topk = find_topk(scores + row, n, k);
    Scratch<float, kStackScores> odds(n);
    const SoftScale scale = solve_soft_topk(scores + row, n, k, topk, inverse, odds.begin()).scale;
    pivot[pool] = scale.pivot;
    shift[pool] = scale.shift;
  });
  return {pivots, shifts};
}

// The scores that rank the tokens: selection_scores, or else the scores themselves.
inline Tensor ranking_scores(const std::optional<Tensor>& selection_scores, const Tensor& scores) {
  return selection_scores ? float_vector(*selection_scores, "selection_scores", scores.numel()) : scores;
}

// J credit, with J the Jacobian of the soft Top-K of each pool. -> float32 [T]
Tensor soft_jacobian(const float* credit,   // [T]
                     const Tensor& scores,  // float32 [T]
                     const Tensor& pivots,  // float32 [S]
                     const Tensor& shifts,  // float32 [S]
                     const PoolSums& lengths, double temperature);

}  // namespace vs_kernels
