// The number formats of tokens: 16 bytes at a time become float32, and float32 becomes 16 bytes, rounded to nearest.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace vs_kernels {
namespace cuda {

struct Float32 {
  using Entry = float;
  static constexpr int kVector = 4;  // entries in 16 bytes

  __device__ static float widen(float entry) { return entry; }
  __device__ static float narrow(float value) { return value; }
  __device__ static void widen(uint4 vector, float (&values)[kVector]) {
    values[0] = __uint_as_float(vector.x);
    values[1] = __uint_as_float(vector.y);
    values[2] = __uint_as_float(vector.z);
    values[3] = __uint_as_float(vector.w);
  }
  __device__ static uint4 narrow(const float (&values)[kVector]) {
    return {__float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]),
            __float_as_uint(values[3])};
  }
};

// Two entries in 32 bits, the first in the lower half; Pairs says what they mean.
template <class Pairs>
struct HalfFormat {
  using Entry = uint16_t;
  static constexpr int kVector = 8;

  __device__ static float widen(uint16_t entry) { return Pairs::widen_pair(entry).x; }
  __device__ static uint16_t narrow(float value) { return static_cast<uint16_t>(Pairs::narrow_pair({value, 0.0f})); }
  __device__ static void widen(uint4 vector, float (&values)[kVector]) {
    const uint32_t pairs[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = Pairs::widen_pair(pairs[i]);
      values[2 * i] = pair.x;
      values[2 * i + 1] = pair.y;
    }
  }
  __device__ static uint4 narrow(const float (&values)[kVector]) {
    return {Pairs::narrow_pair({values[0], values[1]}), Pairs::narrow_pair({values[2], values[3]}),
            Pairs::narrow_pair({values[4], values[5]}), Pairs::narrow_pair({values[6], values[7]})};
  }
};

struct BFloat16 : HalfFormat<BFloat16> {
  __device__ static float2 widen_pair(uint32_t pair) {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
  }
  __device__ static uint32_t narrow_pair(float2 pair) {
    const __nv_bfloat162 rounded = __floats2bfloat162_rn(pair.x, pair.y);
    return reinterpret_cast<const uint32_t&>(rounded);
  }
};

struct Float16 : HalfFormat<Float16> {
  __device__ static float2 widen_pair(uint32_t pair) { return __half22float2(reinterpret_cast<const __half2&>(pair)); }
  __device__ static uint32_t narrow_pair(float2 pair) {
    const __half2 rounded = __floats2half2_rn(pair.x, pair.y);
    return reinterpret_cast<const uint32_t&>(rounded);
  }
};

}  // namespace cuda
}  // namespace vs_kernels
