// select_tokens: score, Top-K and gather in one call.
#include <torch/csrc/stable/library.h>

#include <memory>
#include <tuple>

#include "gather.h"
#include "hard_topk.h"
#include "importance.h"

namespace vs_kernels {
namespace {

// -> kept [K, D], indices int64 [K], scores float32 [T]
std::tuple<Tensor, Tensor, Tensor> select_tokens(Tensor tokens,      // [T, D]
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
  const Scorer scorer(q_weight, q_bias, k_weight, k_bias, rows.columns);
  const int64_t wide = lengths.count() * rows.columns, hidden = lengths.count() * scorer.hidden();
  const std::unique_ptr<float[]> parts(new float[2 * wide + hidden]);
  const Tensor scores = new_float({rows.count});
  score_tokens(rows, scorer, lengths, data<float>(scores),
               {parts.get(), parts.get() + wide, parts.get() + wide + hidden});
  const Tensor indices = new_int64({total_kept});
  int64_t* index = data<int64_t>(indices);
  write_all_indices(const_data<float>(scores), lengths, ks, index);
  return {gather_rows(rows, index, total_kept, 1.0f), indices, scores};
}

STABLE_TORCH_LIBRARY_IMPL(vs_kernels, CPU, m) { m.impl("select_tokens", TORCH_BOX(&select_tokens)); }

}  // namespace
}  // namespace vs_kernels
