#include "row_sums.h"

#include <memory>

#include "parallel.h"

namespace vs_kernels {
namespace {

// Enough for many threads, few enough that the sums of the parts are little beside the rows.
constexpr int64_t kMaxParts = 32;
constexpr int64_t kPartAlignment = 128;
constexpr int64_t kBlockSums = 1024;
// Bounds the memory that the sums of the parts take.
constexpr int64_t kMaxSums = 8;

void sum_some(const Rows& rows, int64_t first, int64_t n, const float* weights, int64_t weights_stride, int64_t count,
              float* sums) {
  if (n < kManyRows) {
    rows.kernels->weighted_sums(rows.row(first), rows.stride, n, rows.columns, weights, weights_stride, count, sums);
    return;
  }
  const int64_t part_rows = num_parts(num_parts(n, kMaxParts), kPartAlignment) * kPartAlignment;
  const int64_t parts = num_parts(n, part_rows), size = count * rows.columns;
  const std::unique_ptr<float[]> part_sums(new float[parts * size]);
  for_each_part(n, part_rows, [&](int64_t part, int64_t begin, int64_t end) {
    rows.kernels->weighted_sums(rows.row(first + begin), rows.stride, end - begin, rows.columns,
                                weights ? weights + begin : nullptr, weights_stride, count,
                                part_sums.get() + part * size);
  });
  // Little work: not worth another start of all threads.
  for (int64_t begin = 0; begin < size; begin += kBlockSums) {
    const int64_t end = std::min(size, begin + kBlockSums);
    double totals[kBlockSums] = {};
    for (int64_t part = 0; part < parts; ++part) {
      const float* from = part_sums.get() + part * size;
      for (int64_t i = begin; i < end; ++i) totals[i - begin] += from[i];
    }
    for (int64_t i = begin; i < end; ++i) sums[i] = static_cast<float>(totals[i - begin]);
  }
}

}  // namespace

void sum_rows(const Rows& rows, int64_t first, int64_t n, const float* weights, int64_t weights_stride, int64_t count,
              float* sums) {
  for (int64_t p = 0; p < count; p += kMaxSums) {
    sum_some(rows, first, n, weights ? weights + p * weights_stride : nullptr, weights_stride,
             std::min(kMaxSums, count - p), sums + p * rows.columns);
  }
}

}  // namespace vs_kernels
