// Threads over pools, and over the parts of one large pool. What is computed never depends on their number: work is
// cut into parts of fixed size, and sums over parts are added in order.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "pools.h"

namespace vs_kernels {

// Up to this many scores a pool is one thread's work: to wake another one for each pass takes longer than the passes.
constexpr int64_t kLargePool = 65536;
// This many scores of several pools are worth a thread that is woken once.
constexpr int64_t kThreadScores = 16384;

inline int64_t num_parts(int64_t n, int64_t part) { return (n + part - 1) / part; }

// f(part) for each of `parts`, and done() on each thread after its last one. Of seven eighths of the parts each thread
// has a run of its own, so that it walks through memory in one line; whoever is through takes from the rest: where
// another program sits on a core, the others need not wait for its thread.
template <class F, class G>
void for_each_number(int64_t parts, const F& f, const G& done) {
  const int64_t threads = std::min<int64_t>(parts, torch::stable::get_num_threads());
  const int64_t own = threads > 1 ? parts * 7 / 8 / threads : parts;
  std::atomic<int64_t> next{own * threads};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first * own; i < last * own; ++i) f(i);
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < parts;) f(i);
    done();
  });
}

// f(part, begin, end) for each part of [0, n).
template <class F>
void for_each_part(int64_t n, int64_t part, const F& f) {
  for_each_number(
      num_parts(n, part), [&](int64_t i) { f(i, i * part, std::min(n, (i + 1) * part)); }, [] {});
}

// work() on at most `workers` threads at a time, until each has returned.
template <class F>
void on_threads(int64_t workers, const F& work) {
  const int64_t threads = torch::stable::get_num_threads();
  torch::stable::parallel_for(0, std::min(workers, threads), 1, [&](int64_t first, int64_t last) {
    for (; first < last; ++first) work();
  });
}

// f(pool) for each pool: those below `large` tokens side by side, the others one by one with all threads inside.
template <class F>
void for_each_pool(const PoolSums& lengths, int64_t large, const F& f) {
  std::atomic<int64_t> next{0};
  const int64_t worth = std::max<int64_t>(1, num_parts(lengths.total(), std::min(large, kThreadScores)));
  on_threads(std::min(lengths.count(), worth), [&] {
    for (int64_t pool; (pool = next.fetch_add(1, std::memory_order_relaxed)) < lengths.count();) {
      if (lengths.length(pool) < large) f(pool);
    }
  });
  for (int64_t pool = 0; pool < lengths.count(); ++pool) {
    if (lengths.length(pool) >= large) f(pool);
  }
}

}  // namespace vs_kernels
