// select_tokens: score, Top-K and gather in one call.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "gather.h"
#include "hard_topk.h"
#include "importance.h"

namespace vs_kernels {
namespace {

// -> kept [K, D], indices int64 [K], scores [T], mean tokens [S, D], mean keys [S, h], directions [S, D]
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> select_tokens(Tensor tokens,      // [T, D]
                                                                         Tensor q_weight,    // [h, D]
                                                                         Tensor q_bias,      // [h]
                                                                         Tensor k_weight,    // [h, D]
                                                                         Tensor k_bias,      // [h]
                                                                         Tensor cu_lengths,  // int64 [S + 1]
                                                                         Tensor cu_ks,       // int64 [S + 1]
                                                                         int64_t total_kept,
                                                                         int64_t) {  // the longest pool
  const Rows rows = float_rows(tokens, "tokens");
  const PoolSums lengths = pool_lengths(cu_lengths, rows.count);
  const PoolSums ks = pool_ks(cu_ks, lengths, total_kept);
  const ImportanceScores importance = score_tokens(rows, q_weight, q_bias, k_weight, k_bias, lengths);
  const Tensor indices = new_int64({total_kept});
  int64_t* index = data<int64_t>(indices);
  write_all_indices(const_data<float>(importance.scores), lengths, ks, index);
  const Tensor kept = gather_rows(rows, index, total_kept, 1.0f);
  return {kept, indices, importance.scores, importance.mean_tokens, importance.mean_keys, importance.directions};
}

STABLE_TORCH_LIBRARY_IMPL(vs_kernels, CPU, m) { m.impl("select_tokens", TORCH_BOX(&select_tokens)); }

}  // namespace
}  // namespace vs_kernels
