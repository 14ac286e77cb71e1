// The importance scores of all tokens, and what the backward needs of the way there.
#pragma once

#include "pools.h"
#include "rows.h"

namespace vs_kernels {

struct ImportanceScores {
  Tensor scores;       // float32 [T]
  Tensor mean_tokens;  // float32 [S, D]
  Tensor mean_keys;    // float32 [S, h]
  Tensor directions;   // float32 [S, D]
};

ImportanceScores score_tokens(const Rows& tokens,      // [T, D]
                              const Tensor& q_weight,  // [h, D]
                              const Tensor& q_bias,    // [h]
                              const Tensor& k_weight,  // [h, D]
                              const Tensor& k_bias,    // [h]
                              const PoolSums& lengths);

}  // namespace vs_kernels
