// Pools: which rows of the packed tokens compete with each other, and how many of them stay.
#pragma once

#include "tensors.h"

namespace vs_kernels {

// Exclusive sums over the pools, ending with the total: int64 [S + 1] on the CPU. Checked to start at 0 and never to
// decrease, so that a slice taken from them lies within what they index.
class PoolSums {
 public:
  PoolSums(const Tensor& sums, const char* name)
      : tensor_(checked(sums, name)), values_(const_data<int64_t>(tensor_)), count_(tensor_.numel() - 1) {
    STD_TORCH_CHECK(values_[0] == 0, name, ": got ", values_[0], " as first entry, expected 0");
    for (int64_t pool = 0; pool < count_; ++pool) {
      STD_TORCH_CHECK(values_[pool] <= values_[pool + 1], name, ": entry ", pool + 1, " is less than the one before");
    }
  }

  int64_t count() const { return count_; }
  int64_t begin(int64_t pool) const { return values_[pool]; }
  int64_t length(int64_t pool) const { return values_[pool + 1] - values_[pool]; }
  int64_t total() const { return values_[count_]; }

 private:
  static Tensor checked(const Tensor& sums, const char* name) {
    STD_TORCH_CHECK(sums.is_cpu() && sums.scalar_type() == ScalarType::Long && sums.dim() == 1 && sums.numel() >= 1,
                    name, ": expected int64 [pools + 1] on the CPU");
    return packed(sums);
  }

  Tensor tensor_;
  const int64_t* values_;
  int64_t count_;
};

// Tokens per pool, which must add up to all tokens.
inline PoolSums pool_lengths(const Tensor& cu_lengths, int64_t total_tokens) {
  PoolSums lengths(cu_lengths, "cu_lengths");
  STD_TORCH_CHECK(lengths.total() == total_tokens, "cu_lengths: got ", lengths.total(), " as last entry, expected ",
                  total_tokens, ", the number of tokens");
  return lengths;
}

// Tokens kept per pool, at most as many as there are.
inline PoolSums pool_ks(const Tensor& cu_ks, const PoolSums& lengths) {
  PoolSums ks(cu_ks, "cu_ks");
  STD_TORCH_CHECK(ks.count() == lengths.count(), "cu_ks: got ", ks.count(), " pools, expected ", lengths.count());
  for (int64_t pool = 0; pool < ks.count(); ++pool) {
    STD_TORCH_CHECK(ks.length(pool) <= lengths.length(pool), "cu_ks: pool ", pool, " keeps ", ks.length(pool), " of ",
                    lengths.length(pool), " tokens");
  }
  return ks;
}

// The same where the caller says the total.
inline PoolSums pool_ks(const Tensor& cu_ks, const PoolSums& lengths, int64_t total_kept) {
  PoolSums ks = pool_ks(cu_ks, lengths);
  STD_TORCH_CHECK(ks.total() == total_kept, "total_kept: got ", total_kept, ", expected ", ks.total(),
                  ", the last entry of cu_ks");
  return ks;
}

}  // namespace vs_kernels
