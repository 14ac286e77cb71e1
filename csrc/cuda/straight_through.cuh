// The backward of both straight-through operators, in two launches and without torch.
//
// Rows: each row's credit a = <grad, token>, and its token gradient, in one pass over both; and the moments of each
// chunk of rows. Pools: the sums of each pool from the moments of its chunks, and the gradients of its scores,
//   v * (a - sum(v a) / sum(v)) / temperature,  v = p (1 - p),  p = sigmoid((score - pivot) / temperature + shift).
#pragma once

#include "formats.cuh"
#include "warp.cuh"

namespace vs_kernels {
namespace cuda {

constexpr int kRowsThreads = 128;
constexpr int kPoolThreads = 512;
constexpr int64_t kSliceRows = 8192;  // of a pool, to one block
constexpr int kUnroll = 4;            // loads of 16 bytes that a thread has under way per matrix
// Planned per multiprocessor: 24 warps with 4 KB of loads under way each, several times what memory needs to stay busy.
constexpr int kRowsBlocks = 6;

// Packed pools and the soft Top-K of their scores.
struct SoftPools {
  const float* scores;        // [T]
  const float* pivots;        // [S]
  const float* shifts;        // [S], infinite where the pool keeps all tokens or none
  const int64_t* cu_lengths;  // [S + 1]
  int64_t count;              // S
  float inverse_temperature;
};

// Of some rows of one pool: sum of v, and mean of the credits weighted by v, in two parts so that it keeps its digits
// where the credits vary less than a float32 of their size can tell.
struct Moments {
  float weight;
  float mean;
  float mean_rest;
};

struct RowsTask {
  const void* grads;      // [K, D] of the kept rows, or [T, D]
  const void* tokens;     // [T, D]
  const void* kept;       // int64 [K], ascending; or bool [T]
  void* grad_tokens;      // [T, D], packed
  float* credits;         // [T]
  Moments* moments;       // [chunks]
  int64_t grads_stride;   // entries from row to row
  int64_t tokens_stride;  // the same
  int64_t num_rows;       // T
  int64_t num_kept;       // K
  int32_t columns;        // D
  int32_t vectors;        // how many 16-byte vectors of a row to move as such; the rest goes entry by entry
  int32_t chunk_rows;     // rows per block, at most 32
  int32_t warps_per_row;  // 1 or 4
  float factor;           // of kept rows in the gathered form, of dropped ones in the masked form
  SoftPools pools;
};

struct PoolsTask {
  const float* credits;    // [T]
  const Moments* moments;  // [chunks]
  float* grad_scores;      // [T]
  int64_t chunk_rows;
  SoftPools pools;
};

enum class Form { kGather, kMask };

// NaN and -Inf count as the smallest number, +Inf as the largest.
__device__ inline float finite_score(float score) {
  constexpr float kLargest = 3.402823466e38f;
  return score == score ? fminf(fmaxf(score, -kLargest), kLargest) : -kLargest;
}

__device__ inline bool is_finite(float value) { return (__float_as_uint(value) & 0x7fffffffu) < 0x7f800000u; }

// p (1 - p) from one exponential of a non-positive number: no overflow, no cancellation.
__device__ inline float soft_slope(const SoftPools& pools, int64_t row, float pivot, float shift) {
  const float x = (finite_score(pools.scores[row]) - pivot) * pools.inverse_temperature + shift;
  const float e = expf(-fabsf(x));
  const float large = 1.0f / (1.0f + e);
  return e * large * large;
}

// One row by `threads` threads: factor * grad to `to`, and this thread's part of <grad, token>.
template <class Format, bool kScores, bool kTokens>
__device__ float scale_and_dot(const typename Format::Entry* grad, const typename Format::Entry* token,
                               typename Format::Entry* to, const RowsTask& task, float factor, int thread,
                               int threads) {
  constexpr int kVector = Format::kVector;
  const uint4* grad_vectors = reinterpret_cast<const uint4*>(grad);
  const uint4* token_vectors = reinterpret_cast<const uint4*>(token);
  uint4* to_vectors = reinterpret_cast<uint4*>(to);
  float sums[kUnroll] = {};
  for (int first = thread; first < task.vectors; first += kUnroll * threads) {
    uint4 grad_bits[kUnroll], token_bits[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int at = first + i * threads;
      if (at >= task.vectors) continue;
      grad_bits[i] = __ldcs(grad_vectors + at);
      if constexpr (kScores) token_bits[i] = __ldcs(token_vectors + at);
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int at = first + i * threads;
      if (at >= task.vectors) continue;
      float values[kVector];
      Format::widen(grad_bits[i], values);
      if constexpr (kScores) {
        float others[kVector];
        Format::widen(token_bits[i], others);
#pragma unroll
        for (int entry = 0; entry < kVector; ++entry) sums[i] += values[entry] * others[entry];
      }
      if constexpr (kTokens) {
#pragma unroll
        for (int entry = 0; entry < kVector; ++entry) values[entry] *= factor;
        to_vectors[at] = Format::narrow(values);
      }
    }
  }
  for (int at = task.vectors * kVector + thread; at < task.columns; at += threads) {
    const float value = Format::widen(grad[at]);
    if constexpr (kScores) sums[0] += value * Format::widen(token[at]);
    if constexpr (kTokens) to[at] = Format::narrow(value * factor);
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <class Format>
__device__ void zero_row(typename Format::Entry* to, const RowsTask& task, int thread, int threads) {
  uint4* to_vectors = reinterpret_cast<uint4*>(to);
  for (int at = thread; at < task.vectors; at += threads) to_vectors[at] = uint4{0u, 0u, 0u, 0u};
  for (int at = task.vectors * Format::kVector + thread; at < task.columns; at += threads) {
    to[at] = typename Format::Entry{};
  }
}

// Which of at most 32 rows from `begin` on are kept, one bit each; and, in the gathered form, the place of the first
// of them among the kept.
struct KeptRows {
  uint32_t bits;
  int64_t first_slot;
};

template <Form kForm>
__device__ KeptRows kept_rows(const RowsTask& task, int64_t begin, int num_rows) {
  const int lane = threadIdx.x % kWarp;
  if constexpr (kForm == Form::kMask) {
    const bool kept = lane < num_rows && static_cast<const uint8_t*>(task.kept)[begin + lane];
    return {__ballot_sync(kAllLanes, kept), 0};
  } else {
    const int64_t* indices = static_cast<const int64_t*>(task.kept);
    const int64_t first_slot = warp_count_less(indices, task.num_kept, begin);
    const int64_t slot = first_slot + lane;
    const uint64_t offset = slot < task.num_kept ? static_cast<uint64_t>(indices[slot] - begin) : kWarp;
    return {warp_or(offset < static_cast<uint64_t>(num_rows) ? 1u << offset : 0u), first_slot};
  }
}

// The credits of a chunk of rows, one per lane of a warp; and its moments, if it lies within one pool.
__device__ inline void finish_chunk(const RowsTask& task, int64_t begin, int num_rows, float credit) {
  const int lane = threadIdx.x % kWarp;
  const SoftPools& pools = task.pools;
  if (lane < num_rows) task.credits[begin + lane] = credit;
  const int64_t pool = warp_count_less(pools.cu_lengths, pools.count, begin + 1) - 1;
  if (begin + num_rows > pools.cu_lengths[pool + 1]) return;
  const float v = lane < num_rows ? soft_slope(pools, begin + lane, pools.pivots[pool], pools.shifts[pool]) : 0.0f;
  const float weight = warp_sum(v);
  float mean = 0.0f, mean_rest = 0.0f;
  if (weight > 0.0f) {
    mean = warp_sum(v * credit) / weight;
    mean_rest = warp_sum(v * (credit - mean)) / weight;
  }
  if (lane == 0) task.moments[blockIdx.x] = {weight, mean, mean_rest};
}

// Grid: one block per chunk of rows. kScores, kTokens: which gradients are wanted; credits and moments are for the
// scores.
template <class Format, Form kForm, bool kScores, bool kTokens>
__global__ void __launch_bounds__(kRowsThreads, kRowsBlocks) straight_through_rows(const RowsTask task) {
  using Entry = typename Format::Entry;
  constexpr int kWarps = kRowsThreads / kWarp;
  __shared__ float dots[kWarps][kWarp];  // [part of a row][row of the chunk]
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int part = warp % task.warps_per_row, threads = task.warps_per_row * kWarp;
  const int thread = part * kWarp + lane;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * task.chunk_rows;
  const int64_t rest = task.num_rows - begin;
  const int num_rows = rest < task.chunk_rows ? static_cast<int>(rest) : task.chunk_rows;
  const Entry* grads = static_cast<const Entry*>(task.grads);
  const Entry* tokens = static_cast<const Entry*>(task.tokens);
  Entry* grad_tokens = static_cast<Entry*>(task.grad_tokens);
  const KeptRows kept = kept_rows<kForm>(task, begin, num_rows);
  for (int i = warp / task.warps_per_row; i < num_rows; i += kWarps / task.warps_per_row) {
    const int64_t row = begin + i;
    const bool is_kept = kept.bits >> i & 1u;
    Entry* to = grad_tokens + row * task.columns;
    float dot = 0.0f;
    if (kForm == Form::kMask || is_kept) {
      const int64_t slot = kForm == Form::kMask ? row : kept.first_slot + __popc(kept.bits & ((1u << i) - 1u));
      const float factor = kForm == Form::kMask && is_kept ? 1.0f : task.factor;
      dot = scale_and_dot<Format, kScores, kTokens>(grads + slot * task.grads_stride, tokens + row * task.tokens_stride,
                                                    to, task, factor, thread, threads);
    } else if constexpr (kTokens) {
      zero_row<Format>(to, task, thread, threads);
    }
    if constexpr (kScores) {
      dot = warp_sum(dot);
      if (lane == 0) dots[part][i] = dot;
    }
  }
  if constexpr (kScores) {
    __syncthreads();
    if (warp == 0) {
      float credit = 0.0f;
      for (int i = 0; i < task.warps_per_row; ++i) credit += lane < num_rows ? dots[i][lane] : 0.0f;
      finish_chunk(task, begin, num_rows, credit);
    }
  }
}

// The moments of one pool, as terms to add up: its whole chunks, and the rows before and after them.
struct PoolTerms {
  int64_t begin, first_chunk, num_chunks, rows_before, num_terms;

  __device__ PoolTerms(int64_t begin, int64_t end, int64_t chunk_rows) : begin(begin) {
    first_chunk = (begin + chunk_rows - 1) / chunk_rows;
    const int64_t chunks_end = end / chunk_rows;
    const bool any = first_chunk < chunks_end;
    num_chunks = any ? chunks_end - first_chunk : 0;
    rows_before = any ? first_chunk * chunk_rows - begin : end - begin;
    num_terms = num_chunks + (end - begin) - num_chunks * chunk_rows;
  }

  __device__ Moments operator()(int64_t term, const PoolsTask& task, float pivot, float shift) const {
    if (term < num_chunks) return task.moments[first_chunk + term];
    const int64_t edge = term - num_chunks;
    const int64_t row = begin + edge + (edge < rows_before ? 0 : num_chunks * task.chunk_rows);
    return {soft_slope(task.pools, row, pivot, shift), task.credits[row], 0.0f};
  }
};

// Grid: (pools, slices). Each block adds up its whole pool, which is little work on the moments, and then writes its
// slices of the gradient.
__global__ void __launch_bounds__(kPoolThreads) straight_through_pools(const PoolsTask task) {
  constexpr int kWarps = kPoolThreads / kWarp;
  __shared__ float partials[3][kWarps];
  const SoftPools& pools = task.pools;
  const int64_t pool = blockIdx.x;
  const int64_t begin = pools.cu_lengths[pool], end = pools.cu_lengths[pool + 1];
  if (begin + blockIdx.y * kSliceRows >= end) return;
  const float pivot = pools.pivots[pool], shift = pools.shifts[pool];

  float weight = 0.0f, mean = 0.0f, mean_rest = 0.0f;
  if (is_finite(shift)) {
    const PoolTerms terms(begin, end, task.chunk_rows);
    float product = 0.0f, product_rest = 0.0f;
    for (int64_t term = threadIdx.x; term < terms.num_terms; term += kPoolThreads) {
      const Moments moments = terms(term, task, pivot, shift);
      weight += moments.weight;
      product += moments.weight * moments.mean;
    }
    weight = block_sum<kWarps>(weight, partials[0]);
    mean = block_sum<kWarps>(product, partials[1]) / weight;
    // The gradients of a pool add up to zero. Around the mean the terms are as small as the result, so that this holds
    // to the rounding of the result, also where the credits vary little.
    for (int64_t term = threadIdx.x; term < terms.num_terms; term += kPoolThreads) {
      const Moments moments = terms(term, task, pivot, shift);
      product_rest += moments.weight * (moments.mean - mean + moments.mean_rest);
    }
    mean_rest = block_sum<kWarps>(product_rest, partials[2]) / weight;
  }

  for (int64_t slice = begin + blockIdx.y * kSliceRows; slice < end; slice += gridDim.y * kSliceRows) {
    const int64_t slice_end = slice + kSliceRows < end ? slice + kSliceRows : end;
    for (int64_t row = slice + threadIdx.x; row < slice_end; row += kPoolThreads) {
      float grad = 0.0f;
      // Without weight no probability can move; and a score that is no number has no gradient.
      if (weight > 0.0f && is_finite(pools.scores[row])) {
        const float v = soft_slope(pools, row, pivot, shift);
        grad = v * pools.inverse_temperature * (task.credits[row] - mean - mean_rest);
      }
      task.grad_scores[row] = grad;
    }
  }
}

// How both launches are cut, from sizes that the host knows.
struct Geometry {
  int32_t chunk_rows;
  int32_t warps_per_row;
  int64_t chunks;
  int64_t slices;
};

inline Geometry geometry(int64_t num_rows, int64_t num_pools, int64_t row_bytes) {
  constexpr int64_t kManyChunks = 1024;  // enough to give work to each multiprocessor
  constexpr int64_t kWideRow = 1024;     // bytes that keep a warp busy
  constexpr int64_t kMostSlices = 128;   // about one per multiprocessor
  const int32_t warps_per_row = row_bytes > kWideRow ? kRowsThreads / kWarp : 1;
  int32_t chunk_rows = kRowsThreads / kWarp / warps_per_row;
  while (chunk_rows < kWarp && num_rows >= 2 * kManyChunks * chunk_rows) chunk_rows *= 2;
  const int64_t chunks = (num_rows + chunk_rows - 1) / chunk_rows;
  const int64_t slices = num_rows / (num_pools * kSliceRows) + 1;
  return {chunk_rows, warps_per_row, chunks, slices < kMostSlices ? slices : kMostSlices};
}

}  // namespace cuda
}  // namespace vs_kernels
