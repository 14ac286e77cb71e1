// importance_scores: s_i = mean_j (q_i . k_j) / sqrt(h) over the tokens of a pool, with the mean moved inside the
// product: k = Wk mean(x) + bk, u = Wq^T k, s_i = (x_i . u + bq . k) / sqrt(h). And its backward.
#include <torch/csrc/stable/library.h>

#include <atomic>
#include <cmath>
#include <tuple>
#include <vector>

#include "importance.h"
#include "parallel.h"
#include "row_sums.h"

namespace vs_kernels {
namespace {

constexpr int64_t kPartWeightRows = 128;
constexpr int64_t kPartTokens = 128;
// Of the sum of absolute values: a few units in the last place of float32.
constexpr double kSumRounding = 0x1p-22;

// A float vector on the CPU, in float32.
std::vector<float> float_values(const Tensor& vector, const char* name, int64_t length) {
  STD_TORCH_CHECK(vector.is_cpu() && vector.dim() == 1 && vector.size(0) == length, name, ": expected ", length,
                  " entries on the CPU");
  const Tensor entries = packed(vector);
  std::vector<float> values(length);
  row_kernels(vector, name).weighted_sums(entries.const_data_ptr(), 0, 1, length, nullptr, 0, 1, values.data());
  return values;
}

double dot(const float* a, const float* b, int64_t n) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

float inverse_sqrt(int64_t hidden) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(hidden))); }

// The sum, or zero where it is within the rounding of its float32 terms: a Top-K passes back gradients that sum to
// zero; what is left of the sum is noise, and would be the whole gradient of the query bias, which a Top-K cannot move.
float sum_beyond_rounding(const float* terms, int64_t n) {
  double total = 0.0, size = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    total += terms[i];
    size += std::fabs(terms[i]);
  }
  return std::fabs(total) <= kSumRounding * size ? 0.0f : static_cast<float>(total);
}

// out[p] = matrix vectors[p] + factors[p] bias, for each of the packed vectors; every matrix row is read once.
void matrix_times(const Rows& matrix, const float* vectors, int64_t count, const float* factors, const float* bias,
                  float* out) {
  for_each_part(matrix.count, kPartWeightRows, [&](int64_t, int64_t begin, int64_t end) {
    matrix.kernels->row_dots(matrix.row(begin), matrix.stride, end - begin, matrix.columns, vectors, count, out + begin,
                             matrix.count);
    for (int64_t p = 0; p < count; ++p) {
      for (int64_t row = begin; row < end; ++row) out[p * matrix.count + row] += factors[p] * bias[row];
    }
  });
}

struct Part {
  int64_t pool, begin, end;
};

std::vector<Part> parts_of(const PoolSums& lengths) {
  std::vector<Part> parts;
  for (int64_t pool = 0; pool < lengths.count(); ++pool) {
    const int64_t end = lengths.begin(pool) + lengths.length(pool);
    for (int64_t row = lengths.begin(pool); row < end; row += kPartTokens) {
      parts.push_back({pool, row, std::min(end, row + kPartTokens)});
    }
  }
  return parts;
}

// sum over p of factors[p] x vectors[p], a matrix like `like`; factors [count, h], vectors [count, D]
Tensor outer_sum(const Rows& like, const float* factors, const float* vectors, int64_t count) {
  const RowResults out(like, like.count);
  for_row_parts(like, like.count, [&](int64_t begin, int64_t end) {
    like.kernels->outer_sum(factors + begin, like.count, vectors, count, end - begin, like.columns, out.row(begin),
                            out.past_caches);
  });
  return out.tensor;
}

// sum over p of factors[p] * vectors[p], a vector like `like`
Tensor combine(const Tensor& like, const float* factors, const float* vectors, int64_t count) {
  const Tensor out = new_tensor({like.numel()}, dtype_of(like));
  row_kernels(like, "q_bias").outer_sum(factors, 1, vectors, count, 1, like.numel(), out.mutable_data_ptr(), false);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> importance_scores(Tensor tokens,        // [T, D]
                                                             Tensor q_weight,      // [h, D]
                                                             Tensor q_bias,        // [h]
                                                             Tensor k_weight,      // [h, D]
                                                             Tensor k_bias,        // [h]
                                                             Tensor cu_lengths) {  // int64 [S + 1]
  const Rows rows = float_rows(tokens, "tokens");
  const PoolSums lengths = pool_lengths(cu_lengths, rows.count);
  const Scorer scorer(q_weight, q_bias, k_weight, k_bias, rows.columns);
  const Tensor scores = new_float({rows.count});
  const Tensor mean_tokens = new_float({lengths.count(), rows.columns});
  const Tensor mean_keys = new_float({lengths.count(), scorer.hidden()});
  const Tensor directions = new_float({lengths.count(), rows.columns});
  score_tokens(rows, scorer, lengths, data<float>(scores),
               {data<float>(mean_tokens), data<float>(mean_keys), data<float>(directions)});
  return {scores, mean_tokens, mean_keys, directions};
}

// With g the incoming gradient, y = sum g_i x_i and G = sum g_i of a pool:
// dWq = k y^T / sqrt(h), dbq = G k / sqrt(h), dk = (Wq y + G bq) / sqrt(h),
// dWk = dk mean(x)^T, dbk = dk, dx_i = g_i u / sqrt(h) + Wk^T dk / N.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> importance_scores_backward(
    Tensor grad_scores,               // float32 [T]
    Tensor tokens,                    // [T, D]
    Tensor q_weight,                  // [h, D]
    Tensor q_bias,                    // [h]
    Tensor k_weight,                  // [h, D]
    Tensor mean_tokens,               // float32 [S, D]
    Tensor mean_keys,                 // float32 [S, h]
    Tensor directions,                // float32 [S, D]
    Tensor cu_lengths,                // int64 [S + 1]
    std::vector<bool> output_mask) {  // tokens, q_weight, q_bias, k_weight, k_bias
  const Rows rows = float_rows(tokens, "tokens");
  const PoolSums lengths = pool_lengths(cu_lengths, rows.count);
  const Rows queries = float_rows(q_weight, "q_weight", rows.columns);
  const Rows keys = float_rows(k_weight, "k_weight", rows.columns);
  const int64_t pools = lengths.count(), width = rows.columns, hidden = queries.count;
  STD_TORCH_CHECK(keys.count == hidden, "k_weight: got ", keys.count, " rows, expected ", hidden);
  const std::vector<float> bias = float_values(q_bias, "q_bias", hidden);
  grad_scores = float_vector(grad_scores, "grad_scores", rows.count);
  mean_tokens = float_matrix(mean_tokens, "mean_tokens", pools, width);
  mean_keys = float_matrix(mean_keys, "mean_keys", pools, hidden);
  directions = float_matrix(directions, "directions", pools, width);
  STD_TORCH_CHECK(output_mask.size() == 5, "output_mask: got ", output_mask.size(), " entries, expected 5");
  const bool wants_tokens = output_mask[0], wants_q_weight = output_mask[1], wants_q_bias = output_mask[2],
             wants_k_weight = output_mask[3], wants_k_bias = output_mask[4];
  const bool wants_keys = wants_tokens || wants_k_weight || wants_k_bias;
  const bool wants_weighted = wants_q_weight || wants_keys;
  const float* grad = const_data<float>(grad_scores);
  const float scale = inverse_sqrt(hidden);

  std::vector<float> totals(pools);                                 // G / sqrt(h)
  std::vector<float> weighted(wants_weighted ? pools * width : 0);  // y / sqrt(h)
  for_each_pool(lengths, kManyRows, [&](int64_t pool) {
    const int64_t first = lengths.begin(pool), n = lengths.length(pool);
    totals[pool] = sum_beyond_rounding(grad + first, n) * scale;
    if (!wants_weighted) return;
    float* y = weighted.data() + pool * width;
    sum_rows(rows, first, n, grad + first, 0, 1, y);
    for (int64_t c = 0; c < width; ++c) y[c] *= scale;
  });

  Tensor grad_tokens = new_tensor({0}, dtype_of(tokens)), grad_q_weight = new_tensor({0}, dtype_of(q_weight)),
         grad_q_bias = new_tensor({0}, dtype_of(q_bias)), grad_k_weight = new_tensor({0}, dtype_of(k_weight)),
         grad_k_bias = new_tensor({0}, dtype_of(q_bias));
  if (wants_q_weight) grad_q_weight = outer_sum(queries, const_data<float>(mean_keys), weighted.data(), pools);
  if (wants_q_bias) grad_q_bias = combine(q_bias, totals.data(), const_data<float>(mean_keys), pools);
  if (!wants_keys) return {grad_tokens, grad_q_weight, grad_q_bias, grad_k_weight, grad_k_bias};

  std::vector<float> grad_keys(pools * hidden);
  matrix_times(queries, weighted.data(), pools, totals.data(), bias.data(), grad_keys.data());
  if (wants_k_weight) grad_k_weight = outer_sum(keys, grad_keys.data(), const_data<float>(mean_tokens), pools);
  if (wants_k_bias) {
    grad_k_bias = combine(q_bias, std::vector<float>(pools, 1.0f).data(), grad_keys.data(), pools);
  }
  if (wants_tokens) {
    std::vector<float> shared(pools * width);  // Wk^T dk / N
    sum_rows(keys, 0, hidden, grad_keys.data(), hidden, pools, shared.data());
    for (int64_t pool = 0; pool < pools; ++pool) {
      const float share = 1.0f / static_cast<float>(std::max<int64_t>(1, lengths.length(pool)));
      for (int64_t c = 0; c < width; ++c) shared[pool * width + c] *= share;
    }
    const RowResults out(rows, rows.count);
    const float* direction = const_data<float>(directions);
    const std::vector<Part> parts = parts_of(lengths);
    for_each_part(static_cast<int64_t>(parts.size()), 1, [&](int64_t i, int64_t, int64_t) {
      const auto [pool, begin, end] = parts[i];
      for (int64_t row = begin; row < end; ++row) {
        rows.kernels->affine_row(direction + pool * width, grad[row] * scale, shared.data() + pool * width, width,
                                 out.row(row), out.past_caches);
      }
      finish_writes();
    });
    grad_tokens = out.tensor;
  }
  return {grad_tokens, grad_q_weight, grad_q_bias, grad_k_weight, grad_k_bias};
}

STABLE_TORCH_LIBRARY_IMPL(vs_kernels, CPU, m) {
  m.impl("importance_scores", TORCH_BOX(&importance_scores));
  m.impl("importance_scores_backward", TORCH_BOX(&importance_scores_backward));
}

}  // namespace

Scorer::Scorer(const Tensor& q_weight, const Tensor& q_bias, const Tensor& k_weight, const Tensor& k_bias,
               int64_t width)
    : queries(float_rows(q_weight, "q_weight", width)),
      keys(float_rows(k_weight, "k_weight", width)),
      query_bias(float_values(q_bias, "q_bias", queries.count)),
      key_bias(float_values(k_bias, "k_bias", queries.count)) {
  STD_TORCH_CHECK(keys.count == hidden(), "k_weight: got ", keys.count, " rows, expected ", hidden());
}

void score_tokens(const Rows& tokens, const Scorer& scorer, const PoolSums& lengths, float* scores, ScoreParts parts) {
  const int64_t pools = lengths.count(), width = tokens.columns, hidden = scorer.hidden();
  float* mean_keys = parts.mean_keys;
  for_each_pool(lengths, kManyRows, [&](int64_t pool) {
    const int64_t n = lengths.length(pool);
    float* mean = parts.mean_tokens + pool * width;
    sum_rows(tokens, lengths.begin(pool), n, nullptr, 0, 1, mean);
    const float share = static_cast<float>(std::max<int64_t>(1, n));
    for (int64_t c = 0; c < width; ++c) mean[c] /= share;
  });
  const std::vector<float> ones(pools, 1.0f);
  matrix_times(scorer.keys, parts.mean_tokens, pools, ones.data(), scorer.key_bias.data(), mean_keys);
  sum_rows(scorer.queries, 0, hidden, mean_keys, hidden, pools, parts.directions);

  // What the scores of a pool have in common.
  std::vector<float> common(pools);
  for (int64_t pool = 0; pool < pools; ++pool) {
    common[pool] = static_cast<float>(dot(scorer.query_bias.data(), mean_keys + pool * hidden, hidden));
  }
  const float scale = inverse_sqrt(hidden);
  // From the end, because that is what the caches still hold of the tokens.
  const std::vector<Part> row_parts = parts_of(lengths);
  std::atomic<int64_t> left{static_cast<int64_t>(row_parts.size())};
  on_threads(left, [&] {
    for (int64_t i; (i = left.fetch_sub(1, std::memory_order_relaxed) - 1) >= 0;) {
      const auto [pool, begin, end] = row_parts[i];
      tokens.kernels->row_dots(tokens.row(begin), tokens.stride, end - begin, width, parts.directions + pool * width, 1,
                               scores + begin, 0);
      for (int64_t row = begin; row < end; ++row) scores[row] = (scores[row] + common[pool]) * scale;
    }
  });
}

}  // namespace vs_kernels
