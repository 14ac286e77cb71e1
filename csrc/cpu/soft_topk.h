// The backward of the soft Top-K, also where its consistency loss has a gradient.
#pragma once

#include <optional>

#include "soft_topk_pool.h"

namespace vs_kernels {

// -> float32 [T]
Tensor soft_topk_gradients(Tensor grad_probs,                      // float32 [T]
                           std::optional<Tensor> grad_thresholds,  // float32 [S]; none: zero
                           Tensor scores,                          // float32 [T]
                           Tensor pivots,                          // float32 [S]
                           Tensor shifts,                          // float32 [S]
                           const Tensor& cu_lengths,               // int64 [S + 1]
                           double temperature,
                           LossGradient loss);  // [T] or null

}  // namespace vs_kernels
