// straight_through_gather: the rows that a hard Top-K keeps; their credits <grad_i, x_i> reach the scores through the
// Jacobian of the soft one.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <memory>

#include "gather.h"
#include "straight_through.h"

namespace vs_kernels {
namespace {

// -> kept [K, D], indices int64 [K], pivots and shifts float32 [S]
std::tuple<Tensor, Tensor, Tensor, Tensor> straight_through_gather(Tensor tokens,  // [T, D]
                                                                   Tensor scores,  // float32 [T]
                                                                   std::optional<Tensor> selection_scores,  // [T]
                                                                   Tensor cu_lengths,  // int64 [S + 1]
                                                                   Tensor cu_ks,       // int64 [S + 1]
                                                                   int64_t total_kept,
                                                                   int64_t,  // the longest pool
                                                                   double temperature, double scale) {
  const Rows rows = float_rows(tokens, "tokens");
  const PoolSums lengths = pool_lengths(cu_lengths, rows.count);
  const PoolSums ks = pool_ks(cu_ks, lengths, total_kept);
  scores = float_vector(scores, "scores", rows.count);
  const Tensor ranking = ranking_scores(selection_scores, scores);
  const Tensor indices = new_int64({total_kept});
  const float* rank = const_data<float>(ranking);
  int64_t* index = data<int64_t>(indices);
  const auto choose = [&](int64_t pool, const HardTopK& topk) {
    const int64_t row = lengths.begin(pool);
    write_indices(rank + row, lengths.length(pool), topk, row, index + ks.begin(pool));
  };
  const auto [pivots, shifts] = choose_tokens(const_data<float>(scores), rank, lengths, ks, temperature, choose);
  const Tensor kept = gather_rows(rows, index, total_kept, static_cast<float>(scale));
  return {kept, indices, pivots, shifts};
}

// -> grad_tokens [T, D], grad_scores float32 [T]
std::tuple<Tensor, Tensor> straight_through_gather_backward(Tensor grad_kept,   // [K, D]
                                                            Tensor tokens,      // [T, D]
                                                            Tensor scores,      // float32 [T]
                                                            Tensor indices,     // int64 [K]
                                                            Tensor pivots,      // float32 [S]
                                                            Tensor shifts,      // float32 [S]
                                                            Tensor cu_lengths,  // int64 [S + 1]
                                                            double temperature, double scale,
                                                            std::vector<bool> output_mask) {  // tokens, scores
  const Rows rows = float_rows(tokens, "tokens");
  const Rows grads = float_rows_like(rows, grad_kept, "grad_kept");
  const PoolSums lengths = pool_lengths(cu_lengths, rows.count);
  scores = float_vector(scores, "scores", rows.count);
  indices = ascending_rows(indices, rows.count);
  STD_TORCH_CHECK(grads.count == indices.numel(), "grad_kept: got ", grads.count, " rows, expected ", indices.numel());
  STD_TORCH_CHECK(output_mask.size() == 2, "output_mask: got ", output_mask.size(), " entries, expected 2");
  const bool wants_tokens = output_mask[0], wants_scores = output_mask[1];
  const RowResults grad_tokens(rows, wants_tokens ? rows.count : 0);
  const std::unique_ptr<float[]> credit(new float[wants_scores ? rows.count : 0]);
  const int64_t* index = const_data<int64_t>(indices);
  const int64_t* indices_end = index + indices.numel();
  const float factor = static_cast<float>(scale);
  // Every row is written once: from its gradient if it was kept, else zero.
  for_row_parts(rows, rows.count, [&](int64_t begin, int64_t end) {
    const int64_t* next = std::lower_bound(index, indices_end, begin);
    for (int64_t row = begin; row < end; ++row) {
      void* to = wants_tokens ? grad_tokens.row(row) : nullptr;
      const bool kept = next != indices_end && *next == row;
      float dot = 0.0f;
      if (kept) {
        const void* grad = grads.row(next++ - index);
        if (wants_scores) {
          dot = rows.kernels->scale_and_dot(grad, rows.row(row), rows.columns, factor, to, grad_tokens.past_caches);
        } else if (to) {
          rows.kernels->scale_row(grad, rows.columns, factor, to, grad_tokens.past_caches);
        }
      } else if (to) {
        grad_tokens.zero(row);
      }
      if (wants_scores) credit[row] = dot;
    }
  });
  const Tensor grad = wants_tokens ? grad_tokens.tensor : new_tensor({0}, dtype_of(tokens));
  if (!wants_scores) return {grad, new_float({0})};
  return {grad, soft_jacobian(credit.get(), scores, pivots, shifts, lengths, temperature)};
}

STABLE_TORCH_LIBRARY_IMPL(vs_kernels, CPU, m) {
  m.impl("straight_through_gather", TORCH_BOX(&straight_through_gather));
  m.impl("straight_through_gather_backward", TORCH_BOX(&straight_through_gather_backward));
}

}  // namespace
}  // namespace vs_kernels
