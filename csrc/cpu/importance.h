// The importance scores of all tokens.
#pragma once

#include <vector>

#include "pools.h"
#include "rows.h"

namespace vs_kernels {

struct Scorer {
  Rows queries, keys;                       // weights [h, D]
  std::vector<float> query_bias, key_bias;  // [h]

  Scorer(const Tensor& q_weight, const Tensor& q_bias, const Tensor& k_weight, const Tensor& k_bias, int64_t width);

  int64_t hidden() const { return queries.count; }
};

// What the backward needs of the way to the scores.
struct ScoreParts {
  float* mean_tokens;  // [S, D]
  float* mean_keys;    // [S, h]
  float* directions;   // [S, D]
};

// Writes scores, float32 [T], and the parts.
void score_tokens(const Rows& tokens, const Scorer& scorer, const PoolSums& lengths, float* scores, ScoreParts parts);

}  // namespace vs_kernels
