// Moving the marked entries of an array together, in order, without a branch per entry.
#pragma once

#include "kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>  // forced-inline functions only: nothing that the linker could merge into other code
#endif

namespace vs_kernels {
namespace {

#if defined(__AVX2__)
// For each set of 8 lanes, their numbers in ascending order, one per byte.
struct LaneNumbers {
  uint64_t of[256];
  constexpr LaneNumbers() : of{} {
    for (int set = 0; set < 256; ++set) {
      int count = 0;
      for (uint64_t lane = 0; lane < 8; ++lane) {
        if (set >> lane & 1) of[set] |= lane << 8 * count++;
      }
    }
  }
};
constexpr LaneNumbers kLaneNumbers;
#endif

BucketCounts keep_bucket(uint32_t* keys, int64_t n, uint32_t base, int shift) {
  int64_t kept = 0, at_least = 0, i = 0;
#if defined(__AVX512F__)
  const __m512i starts = _mm512_set1_epi32(static_cast<int>(base));
  const __m128i digits = _mm_cvtsi32_si128(shift);
  for (; i + 16 <= n; i += 16) {
    const __m512i key = _mm512_loadu_si512(keys + i);
    const __m512i digit = _mm512_srl_epi32(_mm512_sub_epi32(key, starts), digits);
    const __mmask16 inside = _mm512_testn_epi32_mask(digit, digit);
    _mm512_storeu_si512(keys + kept, _mm512_maskz_compress_epi32(inside, key));
    kept += __builtin_popcount(inside);
    at_least += __builtin_popcount(_mm512_cmpge_epu32_mask(key, starts));
  }
#elif defined(__AVX2__)
  const __m256i bases = _mm256_set1_epi32(static_cast<int>(base));
  const __m128i shifts = _mm_cvtsi32_si128(shift);
  for (; i + 8 <= n; i += 8) {
    const __m256i key = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys + i));
    const __m256i digit = _mm256_srl_epi32(_mm256_sub_epi32(key, bases), shifts);
    const __m256i inside = _mm256_cmpeq_epi32(digit, _mm256_setzero_si256());
    const int set = _mm256_movemask_ps(_mm256_castsi256_ps(inside));
    const __m256i lanes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(kLaneNumbers.of[set])));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(keys + kept), _mm256_permutevar8x32_epi32(key, lanes));
    kept += __builtin_popcount(set);
    const __m256i reaches = _mm256_cmpeq_epi32(_mm256_max_epu32(key, bases), key);
    at_least += __builtin_popcount(_mm256_movemask_ps(_mm256_castsi256_ps(reaches)));
  }
#endif
  for (; i < n; ++i) {
    const uint32_t key = keys[i];
    keys[kept] = key;
    kept += (key - base) >> shift == 0;
    at_least += key >= base;
  }
  return {kept, at_least};
}

int64_t marked_rows(const uint8_t* mask, int64_t n, int64_t first_row, int64_t* rows) {
  int64_t marked = 0, i = 0;
#if defined(__AVX2__)
  for (; i + 8 <= n; i += 8) {
    uint64_t flags;
    __builtin_memcpy(&flags, mask + i, sizeof flags);
    const uint64_t set = flags * 0x0102040810204080u >> 56;
    const uint64_t lanes = kLaneNumbers.of[set];
    const __m256i row = _mm256_set1_epi64x(first_row + i);
    const __m256i low = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(static_cast<int>(lanes)));
    const __m256i high = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(static_cast<int>(lanes >> 32)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows + marked), _mm256_add_epi64(row, low));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows + marked + 4), _mm256_add_epi64(row, high));
    marked += __builtin_popcountll(flags);
  }
#endif
  for (; i < n; ++i) {
    rows[marked] = first_row + i;
    marked += mask[i];
  }
  return marked;
}

}  // namespace
}  // namespace vs_kernels
