#include "soft_topk_pool.h"

#include <cmath>
#include <limits>
#include <vector>

#include "isa.h"
#include "parallel.h"
#include "simd/score_key.h"

namespace vs_kernels {
namespace {

constexpr int64_t kPartTokens = 16384;
// Beyond it, 1 - sigmoid is 0 in float32.
constexpr double kSaturated = 104.0;
// Of k: the sum is exact, or saturated and beyond a better shift.
constexpr double kTolerance = 1e-9;
// A Newton step leaves an error below half its square, since |sigmoid''| <= sigmoid': after one of this size the shift
// is exact to float32.
constexpr double kLastStep = 2e-4;
// The bracket at least halves in two steps, and float32 has no more distinct shifts in it than that can exhaust.
constexpr int kMaxSteps = 96;

template <class F>
SoftSums sum_parts(int64_t n, const F& part_sums) {
  std::vector<SoftSums> parts(num_parts(n, kPartTokens));
  for_each_part(n, kPartTokens,
                [&](int64_t part, int64_t begin, int64_t end) { parts[part] = part_sums(begin, end - begin); });
  SoftSums total = {0.0, 0.0};
  for (const SoftSums& part : parts) {
    total.value += part.value;
    total.slope += part.slope;
  }
  return total;
}

SoftSums soft_probs(const float* scores, int64_t n, SoftScale scale, float* probs) {
  return sum_parts(n, [&](int64_t begin, int64_t count) {
    return simd().soft_probs(scores + begin, count, scale, probs ? probs + begin : nullptr);
  });
}

}  // namespace

float inverse_temperature(double temperature) {
  const float inverse = static_cast<float>(1.0 / temperature);
  STD_TORCH_CHECK(temperature > 0.0 && std::isnormal(inverse), "temperature: got ", temperature,
                  ", expected a positive number with a float32 reciprocal");
  return inverse;
}

SoftScale solve_soft_topk(const float* scores, int64_t n, int64_t k, uint32_t kth_key, KeyRange range,
                          float inverse_temperature, float* probs) {
  const float pivot = finite_score(score_of_key(kth_key));
  const auto centred = [&](uint32_t key) -> double {
    return (finite_score(score_of_key(key)) - pivot) * inverse_temperature;
  };
  // If every token had the largest score, the shift of the lower bound would give sum(p) = k; so with the others it
  // gives less. And only k - 1 tokens are above the pivot: at -ln(n - k + 1) those below add up to less than one.
  const double logit = std::log(static_cast<double>(k) / static_cast<double>(n - k));
  double low = std::max(logit - centred(range.max), -std::log(static_cast<double>(n - k + 1)));
  double high = std::min(logit - centred(range.min), kSaturated);

  SoftScale scale = {pivot, inverse_temperature, 0.0f};
  double shift = std::clamp(0.0, low, high);
  for (int step = 0; step < kMaxSteps; ++step) {
    scale.shift = static_cast<float>(shift);
    const SoftSums sums = soft_probs(scores, n, scale, probs);
    const double excess = sums.value - static_cast<double>(k);
    if (std::fabs(excess) <= kTolerance * static_cast<double>(k)) break;
    (excess > 0 ? high : low) = scale.shift;
    const double newton = scale.shift - excess / sums.slope;
    const bool inside = low < newton && newton < high;
    shift = inside ? newton : 0.5 * (low + high);
    if (static_cast<float>(shift) == scale.shift) break;
    if (inside && std::fabs(shift - scale.shift) <= kLastStep) {
      scale.shift = static_cast<float>(shift);
      if (probs) soft_probs(scores, n, scale, probs);
      break;
    }
  }
  return scale;
}

SoftGradient soft_gradient(const float* scores, const float* grad_probs, int64_t n, SoftScale scale,
                           float grad_threshold) {
  if (!std::isfinite(scale.shift)) return {};
  const auto sums_around = [&](float centre) {
    return sum_parts(n, [&](int64_t begin, int64_t count) {
      return simd().soft_backward_sums(scores + begin, grad_probs + begin, count, scale, centre);
    });
  };
  const SoftSums sums = sums_around(0.0f);
  if (sums.slope == 0.0) return {};
  // The gradients of a pool add up to zero. Around the mean the terms are as small as the result, so that this holds
  // to the rounding of the result, also where g varies little.
  const float mean = static_cast<float>(sums.value / sums.slope);
  const float rest = static_cast<float>(sums_around(mean).value / sums.slope);
  return {mean, rest, static_cast<float>(1.0 / sums.slope), grad_threshold};
}

}  // namespace vs_kernels
