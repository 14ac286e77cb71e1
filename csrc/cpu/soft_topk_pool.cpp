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
// So far odds are moved from their anchor. Those that were 0 there are negligible still, and log(1 + odds) is of the
// size of the loss, not of the shift.
constexpr double kReach = 1.0;
// So close to the root, what the third derivative leaves of sum(p) - k is below the rounding of float32.
constexpr double kNear = 0.02;
// The bracket at least halves in two steps, and float32 has no more distinct shifts in it than that can exhaust.
constexpr int kMaxSteps = 96;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

SoftMove move_by(double shift) { return {static_cast<float>(std::exp(shift)), static_cast<float>(std::exp(-shift))}; }

// How far the root of sum(p) - k is from here: right to float32 where that is at most kNear, else a first guess.
double distance_to_root(double excess, const SoftSums& sums) {
  if (excess == 0.0) return 0.0;
  double distance = -excess / sums.slope_all;
  if (!(std::fabs(distance) <= 2.0 * kNear)) return distance;
  const double third = sums.slope_all - 6.0 * sums.square;
  for (int i = 0; i < 3; ++i) {
    distance = -excess / (sums.slope_all + distance * (sums.bend / 2.0 + distance * third / 6.0));
  }
  return distance;
}

}  // namespace

float inverse_temperature(double temperature) {
  const float inverse = static_cast<float>(1.0 / temperature);
  STD_TORCH_CHECK(temperature > 0.0 && std::isnormal(inverse), "temperature: got ", temperature,
                  ", expected a positive number with a float32 reciprocal");
  return inverse;
}

SoftSolution solve_soft_topk(const float* scores, int64_t n, int64_t k, const HardTopK& topk, float inverse_temperature,
                             float* odds) {
  if (k == 0 || k == n) {
    const float shift = k == 0 ? -kInfinity : kInfinity;
    return {{0.0f, inverse_temperature, shift}, shift, {}, 0.0, 0.0};
  }
  const float pivot = finite_score(score_of_key(topk.kth_key));
  const auto centre = [&](uint32_t key) -> double {
    return (finite_score(score_of_key(key)) - pivot) * inverse_temperature;
  };
  // If every token had the largest score, the shift of the lower bound would give sum(p) = k; so with the others it
  // gives less. And only k - 1 tokens are above the pivot: at -ln(n - k + 1) those below add up to less than one.
  const double logit = std::log(static_cast<double>(k) / static_cast<double>(n - k));
  double low = std::max(logit - centre(topk.range.max), -std::log(static_cast<double>(n - k + 1)));
  double high = std::min(logit - centre(topk.range.min), kSaturated);

  double shift = std::clamp(0.0, low, high);
  SoftScale anchor = {};
  SoftAnchor at_anchor = {};
  for (int step = 0; step < kMaxSteps; ++step) {
    SoftSums sums;
    if (step == 0 || std::fabs(shift - anchor.shift) > kReach) {
      anchor = {pivot, inverse_temperature, static_cast<float>(shift)};
      shift = anchor.shift;
      at_anchor = sum_parts(n, [&](int64_t begin, int64_t count) {
        return simd().anchor_odds(scores + begin, count, anchor, odds + begin);
      });
      sums = at_anchor.sums;
    } else {
      const SoftMove move = move_by(shift - anchor.shift);
      sums = sum_parts(n, [&](int64_t begin, int64_t count) { return simd().soft_sums(odds + begin, count, move); });
    }
    // sum(p) = k where what the tokens below the anchor have above 0 makes up for what the others have below 1, and for
    // how many more or fewer than k those are. The logarithms of the two sides are nearly linear in the shift, also
    // where all probabilities are small or saturated, so that Newton's method takes few steps.
    const double ahead = at_anchor.count_above - static_cast<double>(k);
    const double distance = distance_to_root(sums.excess + ahead, sums);
    if (std::fabs(distance) <= kNear) {
      shift += distance;
      break;
    }
    const double surplus = 0.5 * (sums.all + sums.excess) + std::max(ahead, 0.0);
    const double lack = 0.5 * (sums.all - sums.excess) + std::max(-ahead, 0.0);
    (sums.excess + ahead > 0.0 ? high : low) = shift;
    const double slope = sums.slope_below / surplus + (sums.slope_all - sums.slope_below) / lack;
    const double newton = shift - std::log(surplus / lack) / slope;
    const double next = low < newton && newton < high ? newton : 0.5 * (low + high);
    if (static_cast<float>(next) == static_cast<float>(shift)) break;
    shift = next;
  }
  return {{pivot, inverse_temperature, static_cast<float>(shift)},
          shift,
          move_by(shift - anchor.shift),
          at_anchor.count_above,
          at_anchor.apart};
}

void soft_probs(float* odds, int64_t n, const SoftSolution& soft) {
  if (!std::isfinite(soft.shift)) {
    std::fill_n(odds, n, soft.shift < 0.0 ? 0.0f : 1.0f);
    return;
  }
  for_each_part(n, kPartScores,
                [&](int64_t, int64_t begin, int64_t end) { simd().soft_probs(odds + begin, end - begin, soft.move); });
}

double consistency_loss(const float* scores, const float* odds, int64_t n, int64_t k, const HardTopK& topk,
                        const SoftSolution& soft, double share, float* probs, float* grad) {
  const float factor = static_cast<float>(share * soft.scale.inverse_temperature);
  const double logs = sum_parts(n, [&](int64_t begin, int64_t count) {
    const auto log_sum = [&](int64_t from, int64_t to, uint32_t bound) {
      return simd().consistency_loss(scores + from, odds + from, to - from, bound, soft.move, factor,
                                     probs ? probs + from : nullptr, grad + from);
    };
    const int64_t end = begin + count, split = std::clamp(topk.tie_end, begin, end);
    return log_sum(begin, split, topk.kth_key) + log_sum(split, end, topk.kth_key + 1);
  });
  // log(1 + odds) is softplus(x) for the tokens below the anchor, softplus(x) - x for those above it. With z = x -
  // shift the sum of softplus(x) - m x lacks x of those above less x of the k kept: z of those above less z of those
  // with z >= 0, and the shift as many times as there are more of those above than k. Where z is 0 it does not matter
  // which are kept.
  return logs + soft.apart + soft.shift * (soft.count_above - static_cast<double>(k));
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
