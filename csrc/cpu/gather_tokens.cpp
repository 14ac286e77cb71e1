// gather_tokens: the kept rows; and its backward, which writes each row once, gathered or zero.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "gather.h"

namespace vs_kernels {
namespace {

Tensor gather_tokens(Tensor tokens,     // [T, D]
                     Tensor indices) {  // int64 [K]
  const Rows rows = float_rows(tokens, "tokens");
  indices = ascending_rows(indices, rows.count);
  return gather_rows(rows, const_data<int64_t>(indices), indices.numel(), 1.0f);
}

// -> [T, D]
Tensor gather_tokens_backward(Tensor grad_kept,  // [K, D]
                              Tensor indices,    // int64 [K]
                              int64_t total_tokens) {
  const Rows grads = float_rows(grad_kept, "grad_kept");
  STD_TORCH_CHECK(total_tokens >= 0, "total_tokens: got ", total_tokens, ", expected at least 0");
  indices = ascending_rows(indices, total_tokens);
  STD_TORCH_CHECK(grads.count == indices.numel(), "grad_kept: got ", grads.count, " rows, expected ", indices.numel());
  const RowResults grad_tokens(grads, total_tokens);
  const int64_t* index = const_data<int64_t>(indices);
  const int64_t* indices_end = index + indices.numel();
  for_row_parts(grads, total_tokens, [&](int64_t begin, int64_t end) {
    const int64_t* next = std::lower_bound(index, indices_end, begin);
    for (int64_t row = begin; row < end; ++row) {
      if (next != indices_end && *next == row) {
        grad_tokens.copy(row, grads.row(next++ - index));
      } else {
        grad_tokens.zero(row);
      }
    }
  });
  return grad_tokens.tensor;
}

STABLE_TORCH_LIBRARY_IMPL(vs_kernels, CPU, m) {
  m.impl("gather_tokens", TORCH_BOX(&gather_tokens));
  m.impl("gather_tokens_backward", TORCH_BOX(&gather_tokens_backward));
}

}  // namespace

Tensor ascending_rows(const Tensor& indices, int64_t count) {
  STD_TORCH_CHECK(indices.is_cpu() && indices.scalar_type() == ScalarType::Long && indices.dim() == 1,
                  "indices: expected int64 [K] on the CPU");
  const Tensor rows = packed(indices);
  const int64_t* row = const_data<int64_t>(rows);
  int64_t previous = -1;
  for (int64_t i = 0; i < rows.numel(); ++i) {
    STD_TORCH_CHECK(row[i] > previous && row[i] < count, "indices: got ", row[i], " after ", previous,
                    ", expected strictly ascending rows below ", count);
    previous = row[i];
  }
  return rows;
}

Tensor gather_rows(const Rows& tokens, const int64_t* indices, int64_t kept, float factor) {
  const RowResults out(tokens, kept);
  for_row_parts(tokens, kept, [&](int64_t begin, int64_t end) {
    if (factor == 1.0f && out.whole_lines) {
      const auto copy = out.past_caches ? simd().stream_rows : simd().copy_rows;
      copy(tokens.data, tokens.stride * tokens.entry_bytes, indices + begin, end - begin, out.row_bytes,
           out.row(begin));
      return;
    }
    for (int64_t i = begin; i < end; ++i) {
      if (factor == 1.0f) {
        out.copy(i, tokens.row(indices[i]));
      } else {
        tokens.kernels->scale_row(tokens.row(indices[i]), tokens.columns, factor, out.row(i), out.past_caches);
      }
    }
  });
  return out.tensor;
}

}  // namespace vs_kernels
