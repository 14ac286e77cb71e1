// What the threads of a warp or a block do together. Sums are trees of fixed shape: the same result in every run.
#pragma once

#include <cstdint>

namespace vs_kernels {
namespace cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

__device__ inline uint32_t warp_or(uint32_t bits) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) bits |= __shfl_xor_sync(kAllLanes, bits, distance);
  return bits;
}

// Sum over the block, for each thread. partial: shared memory [warps], not in use by another sum since the last
// barrier.
template <int kWarps>
__device__ float block_sum(float value, float* partial) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  value = warp_sum(value);
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  return warp_sum(lane < kWarps ? partial[lane] : 0.0f);
}

// How many of `count` ascending numbers are less than `bound`, asked by a whole warp: 32 probes at a time, so that a
// million numbers take four loads in a row.
__device__ inline int64_t warp_count_less(const int64_t* numbers, int64_t count, int64_t bound) {
  const int lane = threadIdx.x % kWarp;
  int64_t low = 0, high = count;  // numbers before low are less, those from high on are not
  while (low < high) {
    const int64_t step = (high - low + kWarp - 1) / kWarp;
    const int64_t probe = low + (lane + 1) * step - 1;
    const bool less = probe < high && numbers[probe] < bound;
    const int steps = __popc(__ballot_sync(kAllLanes, less));
    low += steps * step;
    const int64_t first_not_less = low + step - 1;
    high = first_not_less < high ? first_not_less : high;
  }
  return low;
}

}  // namespace cuda
}  // namespace vs_kernels
