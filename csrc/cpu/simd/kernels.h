// The inner loops, compiled once per instruction set; which one runs is chosen at run time (isa.h).
#pragma once

#include <stdint.h>

namespace vs_kernels {

// Smallest and largest key (score_key.h) of some scores.
struct KeyRange {
  uint32_t min;
  uint32_t max;
};

// How many keys are in a bucket, and how many are not below its start.
struct BucketCounts {
  int64_t inside;
  int64_t at_least;
};

// Soft Top-K of one pool: x = (score - pivot) * inverse_temperature + shift, p = sigmoid(x).
struct SoftScale {
  float pivot;
  float inverse_temperature;
  float shift;
};

// The logits x at some shift, the anchor, as odds exp(-|x|): negative, and for p, where x < 0; else against p. Moved to
// another shift they need no exponential: all odds for p are multiplied by `rise`, all odds against it by `fall`.
struct SoftMove {
  float rise;
  float fall;
};

// Sums over some tokens, after a move, of the part that the odds speak of, p or 1 - p, which keeps its digits where p
// is saturated, and of its slope v = p (1 - p): over all, and over those whose odds are for p. And over all of
// v (1 - 2p) and v^2, of which the next two derivatives of sum(p) consist.
struct SoftSums {
  double all;
  double excess;  // the parts of those whose odds are for p, less those of the others
  double slope_below, slope_all;
  double bend, square;
};

// The same at an anchor. With z = x - anchor: how many z + anchor are not below 0; and the sum of those z, less that of
// the z not below 0.
struct SoftAnchor {
  SoftSums sums;
  double count_above;
  double apart;
};

// Sums over some tokens of v, and of v g with g the gradients of the probabilities.
struct SlopeSums {
  double slope;
  double product;
};

// What the gradients of a pool's scores need beside v and g.
struct SoftGradient {
  float inverse_temperature;
  float mean;            // sum(v g) / sum(v), rounded
  float mean_rest;       // what the rounding took from it
  float inverse_slope;   // 1 / sum(v)
  float grad_threshold;  // gradient of the pool's threshold
  float loss_factor;     // of the gradient that the consistency loss has sent already
};

// Loops over rows of one number format. Rows lie `stride` entries apart; vectors and sums are float32, packed.
// Results past the caches are whole lines of 64 bytes, aligned to them.
struct RowKernels {
  // sums[p] = sum over the rows of weights[p][row] * row, for p < count. Null weights are ones, for one sum.
  void (*weighted_sums)(const void* rows, int64_t stride, int64_t n, int64_t columns, const float* weights,
                        int64_t weights_stride, int64_t count, float* sums);
  // dots[p][row] = <rows[row], vectors[p]>, for p < count
  void (*row_dots)(const void* rows, int64_t stride, int64_t n, int64_t columns, const float* vectors, int64_t count,
                   float* dots, int64_t dots_stride);
  // out[row] = sum over p < count of factors[p][row] * vectors[p], packed rows
  void (*outer_sum)(const float* factors, int64_t factors_stride, const float* vectors, int64_t count, int64_t n,
                    int64_t columns, void* out, bool past_caches);
  // out = factor * direction + offset
  void (*affine_row)(const float* direction, float factor, const float* offset, int64_t columns, void* out,
                     bool past_caches);
  // out = factor * row
  void (*scale_row)(const void* row, int64_t columns, float factor, void* out, bool past_caches);
  // Returns <grad, token>; out = factor * grad where out is not null.
  float (*scale_and_dot)(const void* grad, const void* token, int64_t columns, float factor, void* out,
                         bool past_caches);
};

// Indices of SimdKernels::rows.
enum RowFormat { kFloat32Rows, kBFloat16Rows, kFloat16Rows };

struct SimdKernels {
  // Order-preserving keys of n scores, n >= 1.
  KeyRange (*score_keys)(const float* scores, int64_t n, uint32_t* keys);
  int64_t (*count_equal)(const float* scores, int64_t n, uint32_t key);
  // mask = key >= bound; returns how many are.
  int64_t (*mark_at_least)(const float* scores, int64_t n, uint32_t bound, uint8_t* mask);
  // Keeps, in place, the keys of the bucket that starts at base and is 2^shift wide, modulo 2^32.
  BucketCounts (*keep_bucket)(uint32_t* keys, int64_t n, uint32_t base, int shift);
  // rows = first_row + i for each i with mask[i]; returns how many. Writes up to 8 entries beyond those.
  int64_t (*marked_rows)(const uint8_t* mask, int64_t n, int64_t first_row, int64_t* rows);

  // Writes odds, the shift of the scale being the anchor.
  SoftAnchor (*anchor_odds)(const float* scores, int64_t n, SoftScale scale, float* odds);
  SoftSums (*soft_sums)(const float* odds, int64_t n, SoftMove move);
  // In place: odds become p.
  void (*soft_probs)(float* odds, int64_t n, SoftMove move);
  // Writes v; returns its sum and that of v g.
  SlopeSums (*soft_slopes)(const float* scores, const float* grad_probs, int64_t n, SoftScale scale, float* slopes);
  // Sum of v (g - centre).
  double (*centred_sum)(const float* slopes, const float* grad_probs, int64_t n, float centre);
  // In place: v becomes v (g - mean) / temperature - grad_threshold v / sum(v), 0 where the score is not finite; and
  // loss_factor * loss_gradient is added where that is not null.
  void (*soft_backward)(const float* scores, const float* grad_probs, const float* loss_gradient, int64_t n,
                        SoftGradient gradient, float* slopes);
  // Sum of log(1 + odds); writes factor (p - m), 0 where the score is not finite, with m whether the score's key is at
  // least `bound`, perhaps in place of the odds; and p where probs is not null, perhaps in place of the odds.
  double (*consistency_loss)(const float* scores, const float* odds, int64_t n, uint32_t bound, SoftMove move,
                             float factor, float* probs, float* grad);

  // out[i] = rows[indices[i]], all of them `bytes` long, whole lines of 64; stride in bytes.
  void (*copy_rows)(const void* rows, int64_t stride, const int64_t* indices, int64_t n, int64_t bytes, void* out);
  // The same past the caches, to aligned lines.
  void (*stream_rows)(const void* rows, int64_t stride, const int64_t* indices, int64_t n, int64_t bytes, void* out);
  // A row of zeros, whole lines of 64 bytes; and the same past the caches, to aligned lines.
  void (*zero_row)(int64_t bytes, void* out);
  void (*stream_zero_row)(int64_t bytes, void* out);

  RowKernels rows[3];
};

extern const SimdKernels baseline_kernels;
#if defined(__x86_64__)
extern const SimdKernels avx2_kernels;
extern const SimdKernels avx512_kernels;
#endif

}  // namespace vs_kernels
