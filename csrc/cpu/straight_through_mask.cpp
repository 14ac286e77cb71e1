// straight_through_mask: every row in its place, those that a hard Top-K drops times a small factor; the credits
// <grad_i, x_i> of all rows reach the scores through the Jacobian of the soft one.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <memory>

#include "rows.h"
#include "straight_through.h"

namespace vs_kernels {
namespace {

// -> rows [T, D], mask bool [T], pivots and shifts float32 [S]
std::tuple<Tensor, Tensor, Tensor, Tensor> straight_through_mask(Tensor tokens,                           // [T, D]
                                                                 Tensor scores,                           // float32 [T]
                                                                 std::optional<Tensor> selection_scores,  // [T]
                                                                 Tensor cu_lengths,  // int64 [S + 1]
                                                                 Tensor cu_ks,       // int64 [S + 1]
                                                                 int64_t,            // the longest pool
                                                                 double temperature, double dropped_scale) {
  const Rows rows = float_rows(tokens, "tokens");
  const PoolSums lengths = pool_lengths(cu_lengths, rows.count);
  const PoolSums ks = pool_ks(cu_ks, lengths);
  scores = float_vector(scores, "scores", rows.count);
  const Tensor ranking = ranking_scores(selection_scores, scores);
  const Tensor mask = new_bool({rows.count});
  const float* rank = const_data<float>(ranking);
  uint8_t* kept = data<uint8_t>(mask);
  std::fill_n(kept, rows.count, uint8_t{0});
  const auto choose = [&](int64_t pool, const HardTopK& topk) {
    const int64_t row = lengths.begin(pool);
    write_mask(rank + row, lengths.length(pool), topk, kept + row);
  };
  const auto [pivots, shifts] = choose_tokens(const_data<float>(scores), rank, lengths, ks, temperature, choose);
  const RowResults out(rows, rows.count);
  const float factor = static_cast<float>(dropped_scale);
  for_row_parts(rows, rows.count, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (kept[row]) {
        out.copy(row, rows.row(row));
      } else {
        rows.kernels->scale_row(rows.row(row), rows.columns, factor, out.row(row), out.past_caches);
      }
    }
  });
  return {out.tensor, mask, pivots, shifts};
}

// -> grad_tokens [T, D], grad_scores float32 [T]
std::tuple<Tensor, Tensor> straight_through_mask_backward(Tensor grad_out,    // [T, D]
                                                          Tensor tokens,      // [T, D]
                                                          Tensor scores,      // float32 [T]
                                                          Tensor mask,        // bool [T]
                                                          Tensor pivots,      // float32 [S]
                                                          Tensor shifts,      // float32 [S]
                                                          Tensor cu_lengths,  // int64 [S + 1]
                                                          double temperature, double dropped_scale,
                                                          std::vector<bool> output_mask) {  // tokens, scores
  const Rows rows = float_rows(tokens, "tokens");
  const Rows grads = float_rows_like(rows, grad_out, "grad_out");
  const PoolSums lengths = pool_lengths(cu_lengths, rows.count);
  scores = float_vector(scores, "scores", rows.count);
  STD_TORCH_CHECK(grads.count == rows.count, "grad_out: got ", grads.count, " rows, expected ", rows.count);
  STD_TORCH_CHECK(
      mask.is_cpu() && mask.scalar_type() == ScalarType::Bool && mask.dim() == 1 && mask.size(0) == rows.count,
      "mask: expected bool [", rows.count, "] on the CPU");
  mask = packed(mask);
  STD_TORCH_CHECK(output_mask.size() == 2, "output_mask: got ", output_mask.size(), " entries, expected 2");
  const bool wants_tokens = output_mask[0], wants_scores = output_mask[1];
  const RowResults grad_tokens(rows, wants_tokens ? rows.count : 0);
  const std::unique_ptr<float[]> credit(new float[wants_scores ? rows.count : 0]);
  const uint8_t* kept = const_data<uint8_t>(mask);
  for_row_parts(rows, rows.count, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      void* to = wants_tokens ? grad_tokens.row(row) : nullptr;
      const float factor = kept[row] ? 1.0f : static_cast<float>(dropped_scale);
      if (wants_scores) {
        credit[row] = rows.kernels->scale_and_dot(grads.row(row), rows.row(row), rows.columns, factor, to,
                                                  grad_tokens.past_caches);
      } else if (to) {
        rows.kernels->scale_row(grads.row(row), rows.columns, factor, to, grad_tokens.past_caches);
      }
    }
  });
  const Tensor grad = wants_tokens ? grad_tokens.tensor : new_tensor({0}, dtype_of(tokens));
  if (!wants_scores) return {grad, new_float({0})};
  return {grad, soft_jacobian(credit.get(), scores, pivots, shifts, lengths, temperature)};
}

STABLE_TORCH_LIBRARY_IMPL(vs_kernels, CPU, m) {
  m.impl("straight_through_mask", TORCH_BOX(&straight_through_mask));
  m.impl("straight_through_mask_backward", TORCH_BOX(&straight_through_mask_backward));
}

}  // namespace
}  // namespace vs_kernels
