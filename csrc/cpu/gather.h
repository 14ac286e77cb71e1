#pragma once

#include "rows.h"

namespace vs_kernels {

// indices: int64 [K] on the CPU, strictly ascending rows of a matrix of `count` rows. So each row is met once.
Tensor ascending_rows(const Tensor& indices, int64_t count);

// [K, D]: factor * tokens[indices[i]]
Tensor gather_rows(const Rows& tokens, const int64_t* indices, int64_t kept, float factor);

}  // namespace vs_kernels
