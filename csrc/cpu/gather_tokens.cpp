// gather_tokens: the kept rows; and its backward, which writes each row once, gathered or zero.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>

#include "gather.h"
#include "parallel.h"

namespace vs_kernels {
namespace {

Tensor gather_tokens(Tensor tokens,     // [T, D]
                     Tensor indices) {  // int64 [K]
  const Rows rows = float_rows(tokens, "tokens");
  indices = ascending_rows(indices, rows.count);
  const Tensor kept = new_rows(rows, indices.numel());
  gather_rows(rows, const_data<int64_t>(indices), indices.numel(), 1.0f, kept.mutable_data_ptr());
  return kept;
}

// -> [T, D]
Tensor gather_tokens_backward(Tensor grad_kept,  // [K, D]
                              Tensor indices,    // int64 [K]
                              int64_t total_tokens) {
  const Rows grads = float_rows(grad_kept, "grad_kept");
  STD_TORCH_CHECK(total_tokens >= 0, "total_tokens: got ", total_tokens, ", expected at least 0");
  indices = ascending_rows(indices, total_tokens);
  STD_TORCH_CHECK(grads.count == indices.numel(), "grad_kept: got ", grads.count, " rows, expected ",
                  indices.numel());
  const Tensor grad_tokens = new_rows(grads, total_tokens);
  const int64_t* index = const_data<int64_t>(indices);
  const int64_t* indices_end = index + indices.numel();
  char* out = data<char>(grad_tokens);
  const int64_t bytes = grads.row_bytes();
  for_each_part(total_tokens, rows_per_part(grads), [&](int64_t, int64_t begin, int64_t end) {
    const int64_t* next = std::lower_bound(index, indices_end, begin);
    for (int64_t row = begin; row < end; ++row) {
      if (next != indices_end && *next == row) {
        std::memcpy(out + row * bytes, grads.row(next++ - index), bytes);
      } else {
        std::memset(out + row * bytes, 0, bytes);
      }
    }
  });
  return grad_tokens;
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

void gather_rows(const Rows& tokens, const int64_t* indices, int64_t kept, float factor, void* out) {
  const int64_t bytes = tokens.row_bytes();
  for_each_part(kept, rows_per_part(tokens), [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      char* to = static_cast<char*>(out) + i * bytes;
      if (factor == 1.0f) {
        std::memcpy(to, tokens.row(indices[i]), bytes);
      } else {
        tokens.kernels->scale_row(tokens.row(indices[i]), tokens.columns, factor, to);
      }
    }
  });
}

}  // namespace vs_kernels
