// The backward of the soft Top-K, which that of its loss extends.
#pragma once

#include "tensors.h"

namespace vs_kernels {

// -> float32 [T]
Tensor soft_topk_backward(Tensor grad_probs,       // float32 [T]
                          Tensor grad_thresholds,  // float32 [S]
                          Tensor scores,           // float32 [T]
                          Tensor pivots,           // float32 [S]
                          Tensor shifts,           // float32 [S]
                          Tensor cu_lengths,       // int64 [S + 1]
                          double temperature);

}  // namespace vs_kernels
