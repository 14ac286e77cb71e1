// The exact hard Top-K. Ties go to the smaller index, NaN is kept last, -0 equals +0.
#pragma once

#include <cstdint>

#include "pools.h"
#include "simd/kernels.h"

namespace vs_kernels {

// Kept are the rows before tie_end whose key is at least kth_key, and the later ones whose key is above it.
struct HardTopK {
  uint32_t kth_key;  // key of the k-th largest score
  int64_t tie_end;
  KeyRange range;  // of all keys of the pool
};

// scores: [n], 0 < k <= n; cost independent of k.
HardTopK find_topk(const float* scores, int64_t n, int64_t k);

// mask[i] = whether row i is kept.
void write_mask(const float* scores, int64_t n, const HardTopK& topk, uint8_t* mask);

// The k kept rows, ascending, plus first_row.
void write_indices(const float* scores, int64_t n, const HardTopK& topk, int64_t first_row, int64_t* indices);

// The kept rows of all pools; indices: [K].
void write_all_indices(const float* scores, const PoolSums& lengths, const PoolSums& ks, int64_t* indices);

}  // namespace vs_kernels
