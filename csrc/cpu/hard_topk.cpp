#include "hard_topk.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>

#include "isa.h"
#include "parallel.h"
#include "scratch.h"

namespace vs_kernels {
namespace {

constexpr int kDigitBits = 9;
constexpr int64_t kBuckets = int64_t{1} << kDigitBits;
constexpr int64_t kPartRows = 65536;
constexpr int64_t kMaskRows = 1024;
// Keys that tell well enough where the k-th is among many times as many.
constexpr int64_t kSample = 512;
constexpr int64_t kSampledPool = 16 * kSample;
// In standard deviations of a rank in the sample: one pool in some ten thousand is read a second time.
constexpr double kSampleMargin = 4.0;

using Histogram = std::array<uint32_t, kBuckets>;

int bit_width(uint32_t x) { return x ? 32 - __builtin_clz(x) : 0; }

// Keys from base on, below base + 2^width.
struct Bucket {
  uint32_t base;
  int width;
};

Bucket bucket_of(KeyRange range) { return {range.min, bit_width(range.max - range.min)}; }

// One part of the pool: the keys that may still be the k-th.
struct Part {
  uint32_t* keys;
  int64_t count;
  KeyRange range;
  Histogram histogram;

  void count_digits(uint32_t base, int shift) {
    // Neighbours often share a bucket; two histograms keep their increments from waiting for each other.
    Histogram odd{};
    histogram.fill(0);
    int64_t i = 0;
    for (; i + 1 < count; i += 2) {
      ++histogram[(keys[i] - base) >> shift];
      ++odd[(keys[i + 1] - base) >> shift];
    }
    if (i < count) ++histogram[(keys[i] - base) >> shift];
    for (int64_t bucket = 0; bucket < kBuckets; ++bucket) histogram[bucket] += odd[bucket];
  }
};

// The bucket of the rank-th largest key; rank becomes that within the bucket.
int64_t find_bucket(const Histogram& counts, int64_t* rank) {
  int64_t end = kBuckets;
  for (const int64_t group : {int64_t{32}, int64_t{1}}) {
    for (;; end -= group) {
      int64_t count = 0;
      for (int64_t bucket = end - group; bucket < end; ++bucket) count += counts[bucket];
      if (count >= *rank) break;
      *rank -= count;
    }
  }
  return end - 1;
}

// Where the k-th largest of n keys very likely is, by evenly spaced ones of them.
Bucket likely_bucket(const uint32_t* keys, int64_t n, int64_t k, KeyRange range) {
  std::array<uint32_t, kSample> sample_keys;
  for (int64_t i = 0; i < kSample; ++i) sample_keys[i] = keys[i * n / kSample];
  Part sample = {sample_keys.data(), kSample, range, {}};
  const int shift = std::max(0, bit_width(range.max - range.min) - kDigitBits);
  sample.count_digits(range.min, shift);

  const auto start_of = [&](int64_t digit) { return range.min + (static_cast<uint64_t>(digit) << shift); };

  const double middle = kSample * static_cast<double>(k) / static_cast<double>(n);
  const double margin = 1.0 + kSampleMargin * std::sqrt(middle * (1.0 - middle / kSample));
  int64_t first = static_cast<int64_t>(middle - margin), last = static_cast<int64_t>(middle + margin);
  KeyRange likely = range;
  if (first > 0) {
    likely.max =
        static_cast<uint32_t>(std::min<uint64_t>(range.max, start_of(find_bucket(sample.histogram, &first) + 1) - 1));
  }
  if (last <= kSample) likely.min = static_cast<uint32_t>(start_of(find_bucket(sample.histogram, &last)));
  return bucket_of(likely);
}

// Most pools are one part.
using Parts = Scratch<Part, 1>;

// Keeps the keys of the bucket, and counts.
BucketCounts keep(Parts& parts, Bucket bucket) {
  Scratch<BucketCounts, 1> counts(parts.size());
  for_each_part(parts.size(), 1, [&](int64_t i, int64_t, int64_t) {
    counts[i] = simd().keep_bucket(parts[i].keys, parts[i].count, bucket.base, bucket.width);
    parts[i].count = counts[i].inside;
  });
  BucketCounts total = {};
  for (const BucketCounts& part : counts) {
    total.inside += part.inside;
    total.at_least += part.at_least;
  }
  return total;
}

// Row after the last of the first `kept` rows whose key is `key`.
int64_t end_of_ties(const float* scores, int64_t n, uint32_t key, int64_t kept) {
  const SimdKernels& kernels = simd();
  int64_t row = 0;
  for (; row + kMaskRows <= n; row += kMaskRows) {
    const int64_t equal = kernels.count_equal(scores + row, kMaskRows, key);
    if (equal >= kept) break;
    kept -= equal;
  }
  for (; kept > 0; ++row) kept -= kernels.count_equal(scores + row, 1, key);
  return row;
}

int64_t mark(const float* scores, int64_t begin, int64_t end, const HardTopK& topk, uint8_t* mask) {
  const int64_t split = std::clamp(topk.tie_end, begin, end);
  return simd().mark_at_least(scores + begin, split - begin, topk.kth_key, mask) +
         simd().mark_at_least(scores + split, end - split, topk.kth_key + 1, mask + (split - begin));
}

}  // namespace

HardTopK find_topk(const float* scores, int64_t n, int64_t k) {
  Scratch<uint32_t, kStackScores> keys(n);
  Parts parts(num_parts(n, kPartRows));
  const auto read_keys = [&] {
    for_each_part(n, kPartRows, [&](int64_t part, int64_t begin, int64_t end) {
      parts[part].keys = keys.begin() + begin;
      parts[part].count = end - begin;
      parts[part].range = simd().score_keys(scores + begin, end - begin, parts[part].keys);
    });
  };
  read_keys();
  KeyRange range = parts[0].range;
  for (const Part& part : parts) {
    range = {std::min(range.min, part.range.min), std::max(range.max, part.range.max)};
  }

  Bucket bucket = bucket_of(range);
  int64_t rank = k;
  const Bucket likely = n < kSampledPool ? bucket : likely_bucket(keys.begin(), n, k, range);
  if (likely.width < bucket.width) {
    const BucketCounts counts = keep(parts, likely);
    // Negative where the bucket reaches past the largest key, to the smallest ones: inside it those come first.
    const int64_t above = counts.at_least - counts.inside;
    if (above < k && k <= counts.at_least) {
      bucket = likely;
      rank = k - above;
    } else {
      read_keys();
    }
  }

  // Radix selection, most significant digit first, over the digits in which the keys differ at all.
  auto [base, width] = bucket;
  int shift = std::max(0, width - kDigitBits);
  Histogram& counts = parts[0].histogram;
  for (;;) {
    for_each_part(parts.size(), 1, [&](int64_t part, int64_t, int64_t) { parts[part].count_digits(base, shift); });
    for (int64_t part = 1; part < parts.size(); ++part) {
      for (int64_t digit = 0; digit < kBuckets; ++digit) counts[digit] += parts[part].histogram[digit];
    }
    const int64_t digit = find_bucket(counts, &rank);
    base += static_cast<uint32_t>(digit) << shift;
    if (shift == 0) return {base, rank == counts[digit] ? n : end_of_ties(scores, n, base, rank), range};
    keep(parts, {base, shift});
    shift = std::max(0, shift - kDigitBits);
  }
}

void write_mask(const float* scores, int64_t n, const HardTopK& topk, uint8_t* mask) {
  for_each_part(n, kPartRows,
                [&](int64_t, int64_t begin, int64_t end) { mark(scores, begin, end, topk, mask + begin); });
}

void write_indices(const float* scores, int64_t n, const HardTopK& topk, int64_t first_row, int64_t* indices) {
  Scratch<int64_t, 2> slots(num_parts(n, kPartRows) + 1);
  std::fill(slots.begin(), slots.end(), 0);
  if (slots.size() > 2) {
    for_each_part(n, kPartRows, [&](int64_t part, int64_t begin, int64_t end) {
      uint8_t mask[kMaskRows];
      for (int64_t row = begin; row < end; row += kMaskRows) {
        slots[part + 1] += mark(scores, row, std::min(end, row + kMaskRows), topk, mask);
      }
    });
    for (int64_t part = 1; part < slots.size(); ++part) slots[part] += slots[part - 1];
  }
  for_each_part(n, kPartRows, [&](int64_t part, int64_t begin, int64_t end) {
    uint8_t mask[kMaskRows];
    int64_t kept_rows[kMaskRows + 8];
    int64_t slot = slots[part];
    for (int64_t row = begin; row < end; row += kMaskRows) {
      const int64_t rows = std::min(kMaskRows, end - row);
      const int64_t marked = mark(scores, row, row + rows, topk, mask);
      simd().marked_rows(mask, rows, first_row + row, kept_rows);
      std::memcpy(indices + slot, kept_rows, marked * sizeof(int64_t));
      slot += marked;
    }
  });
}

void write_all_indices(const float* scores, const PoolSums& lengths, const PoolSums& ks, int64_t* indices) {
  for_each_pool(lengths, kLargePool, [&](int64_t pool) {
    const int64_t row = lengths.begin(pool), n = lengths.length(pool), k = ks.length(pool);
    if (k == n) {
      std::iota(indices + ks.begin(pool), indices + ks.begin(pool) + n, row);
    } else if (k > 0) {
      write_indices(scores + row, n, find_topk(scores + row, n, k), row, indices + ks.begin(pool));
    }
  });
}

}  // namespace vs_kernels
