// Inner loops of the hard Top-K.
#pragma once

#include "kernels.h"
#include "score_key.h"

namespace vs_kernels {
namespace {

KeyRange score_keys(const float* __restrict scores, int64_t n, uint32_t* __restrict keys) {
  uint32_t min = ~0u, max = 0;
#pragma omp simd reduction(min : min) reduction(max : max)
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t key = score_key(scores[i]);
    keys[i] = key;
    min = key < min ? key : min;
    max = key > max ? key : max;
  }
  return {min, max};
}

// 32-bit counters keep the loops at full vector width; a block is far below their range.
constexpr int64_t kCountBlock = 1 << 20;

int64_t count_equal(const float* scores, int64_t n, uint32_t key) {
  int64_t total = 0;
  for (int64_t begin = 0; begin < n; begin += kCountBlock) {
    const int64_t end = begin + kCountBlock < n ? begin + kCountBlock : n;
    uint32_t count = 0;
#pragma omp simd reduction(+ : count)
    for (int64_t i = begin; i < end; ++i) count += score_key(scores[i]) == key;
    total += count;
  }
  return total;
}

int64_t mark_at_least(const float* __restrict scores, int64_t n, uint32_t bound, uint8_t* __restrict mask) {
  int64_t total = 0;
  for (int64_t begin = 0; begin < n; begin += kCountBlock) {
    const int64_t end = begin + kCountBlock < n ? begin + kCountBlock : n;
    uint32_t count = 0;
#pragma omp simd reduction(+ : count)
    for (int64_t i = begin; i < end; ++i) {
      const uint32_t keep = score_key(scores[i]) >= bound;
      mask[i] = static_cast<uint8_t>(keep);
      count += keep;
    }
    total += count;
  }
  return total;
}

}  // namespace
}  // namespace vs_kernels
