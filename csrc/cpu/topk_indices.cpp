// topk_indices and topk_mask: the k largest scores of each pool.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "hard_topk.h"
#include "parallel.h"

namespace vs_kernels {
namespace {

// -> int64 [K], rows of the packed tokens, ascending
Tensor topk_indices(Tensor scores,      // float32 [T]
                    Tensor cu_lengths,  // int64 [S + 1]
                    Tensor cu_ks,       // int64 [S + 1]
                    int64_t total_kept,
                    int64_t) {  // the longest pool: a choice of kernel on other devices
  scores = float_vector(scores, "scores");
  const PoolSums lengths = pool_lengths(cu_lengths, scores.numel());
  const PoolSums ks = pool_ks(cu_ks, lengths, total_kept);
  const Tensor indices = new_int64({total_kept});
  write_all_indices(const_data<float>(scores), lengths, ks, data<int64_t>(indices));
  return indices;
}

// -> bool [T]
Tensor topk_mask(Tensor scores,      // float32 [T]
                 Tensor cu_lengths,  // int64 [S + 1]
                 Tensor cu_ks,       // int64 [S + 1]
                 int64_t) {          // the longest pool
  scores = float_vector(scores, "scores");
  const PoolSums lengths = pool_lengths(cu_lengths, scores.numel());
  const PoolSums ks = pool_ks(cu_ks, lengths);
  Tensor mask = new_bool({scores.numel()});
  const float* score = const_data<float>(scores);
  uint8_t* kept = data<uint8_t>(mask);
  for_each_pool(lengths, kLargePool, [&](int64_t pool) {
    const int64_t row = lengths.begin(pool), n = lengths.length(pool), k = ks.length(pool);
    if (k == 0 || k == n) {
      std::fill_n(kept + row, n, uint8_t{k > 0});
    } else {
      write_mask(score + row, n, find_topk(score + row, n, k), kept + row);
    }
  });
  return mask;
}

STABLE_TORCH_LIBRARY_IMPL(vs_kernels, CPU, m) {
  m.impl("topk_indices", TORCH_BOX(&topk_indices));
  m.impl("topk_mask", TORCH_BOX(&topk_mask));
}

}  // namespace
}  // namespace vs_kernels
