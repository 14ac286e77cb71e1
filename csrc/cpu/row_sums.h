// Weighted sums of rows, the same for any number of threads.
#pragma once

#include "rows.h"

namespace vs_kernels {

// From so many rows on, one sum is the work of all threads.
constexpr int64_t kManyRows = 512;

// sums[p] = sum over rows first <= r < first + n of weights[p][r - first] * row r, for p < count; packed float32.
// Null weights are ones, for one sum.
void sum_rows(const Rows& rows, int64_t first, int64_t n, const float* weights, int64_t weights_stride, int64_t count,
              float* sums);

}  // namespace vs_kernels
