#include "soft_topk_pool.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "isa.h"
#include "part_sums.h"
#include "simd/score_key.h"

namespace vs_kernels {
namespace {

// Beyond it, 1 - sigmoid is 0 in float32.
constexpr double kSaturated = 104.0;
// A Newton step leaves an error of about its square: after one of this size the shift is exact to float32.
constexpr double kLastStep = 2e-4;
// The bracket at least halves in two steps, and float32 has no more distinct shifts in it than that can exhaust.
constexpr int kMaxSteps = 96;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace

float inverse_temperature(double temperature) {
  const float inverse = static_cast<float>(1.0 / temperature);
  STD_TORCH_CHECK(temperature > 0.0 && std::isnormal(inverse), "temperature: got ", temperature,
                  ", expected a positive number with a float32 reciprocal");
  return inverse;
}

SoftScale solve_soft_topk(const float* scores, int64_t n, int64_t k, const HardTopK& topk, float inverse_temperature,
                          float* centred) {
  if (k == 0 || k == n) return {0.0f, inverse_temperature, k == 0 ? -kInfinity : kInfinity};
  const float pivot = finite_score(score_of_key(topk.kth_key));
  const auto centre = [&](uint32_t key) -> double {
    return (finite_score(score_of_key(key)) - pivot) * inverse_temperature;
  };
  // If every token had the largest score, the shift of the lower bound would give sum(p) = k; so with the others it
  // gives less. And only k - 1 tokens are above the pivot: at -ln(n - k + 1) those below add up to less than one.
  const double logit = std::log(static_cast<double>(k) / static_cast<double>(n - k));
  double low = std::max(logit - centre(topk.range.max), -std::log(static_cast<double>(n - k + 1)));
  double high = std::min(logit - centre(topk.range.min), kSaturated);

  for_each_part(n, kPartScores, [&](int64_t, int64_t begin, int64_t end) {
    simd().centre_scores(scores + begin, end - begin, pivot, inverse_temperature, centred + begin);
  });

  double shift = std::clamp(0.0, low, high);
  for (int step = 0; step < kMaxSteps; ++step) {
    // sum(p) = k where what the tokens with p < 1/2 have above 0 makes up for what the others have below 1, and for
    // how many more or fewer than k those are. The logarithms of the two sides are nearly linear in the shift, also
    // where all probabilities are small or saturated, so that Newton's method takes few steps.
    const float at = static_cast<float>(shift);
    const SoftBalance sums =
        sum_parts(n, [&](int64_t begin, int64_t count) { return simd().soft_balance(centred + begin, count, at); });
    const double ahead = static_cast<double>(n) - sums.count_below - static_cast<double>(k);
    const double surplus = sums.below + std::max(ahead, 0.0);
    const double lack = sums.all - sums.below + std::max(-ahead, 0.0);
    if (surplus == lack) break;
    (surplus > lack ? high : low) = at;
    const double slope = sums.slope_below / surplus + (sums.slope_all - sums.slope_below) / lack;
    const double newton = at - std::log(surplus / lack) / slope;
    const bool inside = low < newton && newton < high;
    shift = inside ? newton : 0.5 * (low + high);
    if (static_cast<float>(shift) == at || (inside && std::fabs(shift - at) <= kLastStep)) break;
  }
  return {pivot, inverse_temperature, static_cast<float>(shift)};
}

void soft_probs(float* centred, int64_t n, float shift) {
  if (!std::isfinite(shift)) {
    std::fill_n(centred, n, shift < 0.0f ? 0.0f : 1.0f);
    return;
  }
  for_each_part(n, kPartScores,
                [&](int64_t, int64_t begin, int64_t end) { simd().soft_probs(centred + begin, end - begin, shift); });
}

double consistency_loss(const float* scores, const float* centred, int64_t n, const HardTopK& topk, SoftScale scale,
                        double share, float* probs, float* grad) {
  const LossSums total = sum_parts(n, [&](int64_t begin, int64_t count) {
    const auto sums_of = [&](int64_t from, int64_t to, uint32_t bound) {
      return simd().consistency_loss(scores + from, centred + from, to - from, bound, scale.shift,
                                     probs ? probs + from : nullptr, grad + from);
    };
    const int64_t end = begin + count, split = std::clamp(topk.tie_end, begin, end);
    LossSums sums = sums_of(begin, split, topk.kth_key);
    add(sums, sums_of(split, end, topk.kth_key + 1));
    return sums;
  });
  // Where all probabilities are saturated none can move.
  const float mean = total.slope > 0.0 ? static_cast<float>(total.excess / total.slope) : 0.0f;
  const float factor = total.slope > 0.0 ? static_cast<float>(share * scale.inverse_temperature) : 0.0f;
  for_each_part(n, kPartScores, [&](int64_t, int64_t begin, int64_t end) {
    simd().consistency_gradient(scores + begin, end - begin, mean, factor, grad + begin);
  });
  return total.loss;
}

void soft_topk_gradient(const float* scores, const float* grad_probs, int64_t n, SoftScale scale, float grad_threshold,
                        LossGradient loss, float* grad_scores) {
  float* slopes = grad_scores;
  const SlopeSums sums = !std::isfinite(scale.shift) ? SlopeSums{} : sum_parts(n, [&](int64_t begin, int64_t count) {
    return simd().soft_slopes(scores + begin, grad_probs + begin, count, scale, slopes + begin);
  });
  // Then no probability can move.
  if (sums.slope == 0.0) {
    for (int64_t i = 0; i < n; ++i) grad_scores[i] = loss.gradient ? loss.factor * loss.gradient[i] : 0.0f;
    return;
  }
  // The gradients of a pool add up to zero. Around the mean the terms are as small as the result, so that this holds
  // to the rounding of the result, also where g varies little.
  const float mean = static_cast<float>(sums.product / sums.slope);
  const double rest = sum_parts(n, [&](int64_t begin, int64_t count) {
    return simd().centred_sum(slopes + begin, grad_probs + begin, count, mean);
  });
  const SoftGradient gradient = {scale.inverse_temperature,
                                 mean,
                                 static_cast<float>(rest / sums.slope),
                                 static_cast<float>(1.0 / sums.slope),
                                 grad_threshold,
                                 loss.factor};
  for_each_part(n, kPartScores, [&](int64_t, int64_t begin, int64_t end) {
    simd().soft_backward(scores + begin, grad_probs + begin, loss.gradient ? loss.gradient + begin : nullptr,
                         end - begin, gradient, grad_scores + begin);
  });
}

}  // namespace vs_kernels
