// Sums over the scores of one pool: in parts on all threads, the parts added in order.
#pragma once

#include "parallel.h"
#include "scratch.h"
#include "simd/kernels.h"

namespace vs_kernels {

// Scores that make a thread's share worth its start.
constexpr int64_t kPartScores = 65536;

inline void add(SoftSums& total, const SoftSums& part) {
  total.all += part.all;
  total.excess += part.excess;
  total.slope_below += part.slope_below;
  total.slope_all += part.slope_all;
  total.bend += part.bend;
  total.square += part.square;
}

inline void add(SoftAnchor& total, const SoftAnchor& part) {
  add(total.sums, part.sums);
  total.count_above += part.count_above;
  total.apart += part.apart;
}

inline void add(double& total, double part) { total += part; }

inline void add(SlopeSums& total, const SlopeSums& part) {
  total.slope += part.slope;
  total.product += part.product;
}

// sums_of(begin, count) for the parts of n scores, added up.
template <class F>
auto sum_parts(int64_t n, const F& sums_of) {
  using Sums = decltype(sums_of(n, n));
  Scratch<Sums, 1> parts(num_parts(n, kPartScores));
  for_each_part(n, kPartScores,
                [&](int64_t part, int64_t begin, int64_t end) { parts[part] = sums_of(begin, end - begin); });
  Sums total = {};
  for (const Sums& part : parts) add(total, part);
  return total;
}

}  // namespace vs_kernels
