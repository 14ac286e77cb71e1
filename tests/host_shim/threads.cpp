// Both launches on threads of the system, for ThreadSanitizer; it also looks at the results.
#include <cstdio>
#include <cstdlib>

#include "kernels.h"

namespace {

constexpr int64_t kRows = 21, kColumns = 20, kKept = 5, kPools = 2;

void check(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "wrong: %s\n", what);
  std::exit(2);
}

void run(bool mask, int chunk_rows, int warps_per_row) {
  std::vector<float> tokens(kRows * kColumns), grads((mask ? kRows : kKept) * kColumns);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<float>(std::sin(0.7 * i));
  for (size_t i = 0; i < grads.size(); ++i) grads[i] = static_cast<float>(std::cos(0.3 * i));
  std::vector<float> scores(kRows), pivots(kPools), shifts = {0.3f, INFINITY};
  for (size_t i = 0; i < scores.size(); ++i) scores[i] = static_cast<float>(std::sin(1.1 * i));
  const std::vector<int64_t> cu_lengths = {0, 17, kRows};
  std::vector<int64_t> indices(kKept);
  std::vector<uint8_t> kept(kRows);
  for (int64_t i = 0; i < kKept; ++i) kept[indices[i] = 4 * i + 1] = 1;

  const int64_t chunks = (kRows + chunk_rows - 1) / chunk_rows;
  std::vector<float> grad_tokens(tokens.size(), NAN), grad_scores(kRows, NAN), credits(kRows, NAN);
  std::vector<vs_kernels::cuda::Moments> moments(chunks);
  const vs_kernels::cuda::SoftPools pools = {scores.data(),     pivots.data(), shifts.data(),
                                             cu_lengths.data(), kPools,        2.0f};
  vs_kernels::cuda::RowsTask task = {};
  task.grads = grads.data();
  task.tokens = tokens.data();
  task.kept = mask ? static_cast<const void*>(kept.data()) : indices.data();
  task.grad_tokens = grad_tokens.data();
  task.credits = credits.data();
  task.moments = moments.data();
  task.grads_stride = task.tokens_stride = kColumns;
  task.num_rows = kRows;
  task.num_kept = mask ? kRows : kKept;
  task.columns = kColumns;
  task.vectors = kColumns / 4;
  task.chunk_rows = chunk_rows;
  task.warps_per_row = warps_per_row;
  task.factor = 0.5f;
  task.pools = pools;
  on_host::run_rows<vs_kernels::cuda::Float32>(task, static_cast<unsigned>(chunks), mask, true, true);
  on_host::run_pools({credits.data(), moments.data(), grad_scores.data(), chunk_rows, pools}, 1);

  for (int64_t row = 0, slot = 0; row < kRows; ++row) {
    const float factor = kept[row] == mask ? 1.0f : 0.5f;
    for (int64_t column = 0; column < kColumns; ++column) {
      const float grad = mask || kept[row] ? grads[(mask ? row : slot) * kColumns + column] : 0.0f;
      check(grad_tokens[row * kColumns + column] == (mask ? factor : 0.5f) * grad, "gradient of the tokens");
    }
    slot += kept[row];
  }
  for (int64_t pool = 0; pool < kPools; ++pool) {
    double sum = 0.0, size = 0.0;
    for (int64_t row = cu_lengths[pool]; row < cu_lengths[pool + 1]; ++row) {
      sum += grad_scores[row];
      size += std::fabs(grad_scores[row]);
    }
    check(std::fabs(sum) <= 1e-6 * size && (size > 0.0) == (pool != 1), "gradient of the scores");
  }
}

}  // namespace

int main() {
  run(false, 11, 1);
  run(true, 11, 4);
  std::puts("no wrong result");
}
