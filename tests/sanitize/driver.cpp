// Runs every CPU operator, forward and backward, over sizes, layouts, values, thread counts and instruction sets at
// which memory errors and races would show. Built with sanitizers, which do the checking; beyond them, the results of a
// case must be the same bytes for every number of threads, for every layout, and whatever fresh memory holds.
#include <cstdio>
#include <cstring>
#include <functional>
#include <optional>
#include <random>
#include <stdexcept>

#include "../../csrc/cpu/isa.h"
#include "torch_stand_in.h"

extern "C" int vs_kernels_cpu_set_isa(const char* name);

namespace {

using stand_in::call;
using stand_in::Tensor;
using Tensors = std::vector<Tensor>;
using Ints = std::vector<int64_t>;

constexpr double kTemperature = 0.5;

enum class Values { kNormal, kTied, kEqual, kSpecial };
constexpr Values kAllValues[] = {Values::kNormal, Values::kTied, Values::kEqual, Values::kSpecial};

enum class Layout { kPacked, kApart, kOverlapping, kRepeated, kTransposed };
constexpr Layout kAllLayouts[] = {Layout::kPacked, Layout::kApart, Layout::kOverlapping, Layout::kRepeated,
                                  Layout::kTransposed};

struct Case {
  Ints lengths, ks;
  int64_t width, hidden;
  int32_t dtype;
  Values values;
};

// The bits of a number of one format.
uint32_t random_bits(int32_t dtype, Values values, std::mt19937& random) {
  const bool is_float = dtype == aoti_torch_dtype_float32();
  const int mantissa = is_float ? 23 : dtype == aoti_torch_dtype_bfloat16() ? 7 : 10;
  const int exponent = is_float || dtype == aoti_torch_dtype_bfloat16() ? 8 : 5;
  const uint32_t infinity = ((1u << exponent) - 1) << mantissa;
  const uint32_t one = ((1u << (exponent - 1)) - 1) << mantissa;
  const uint32_t sign = (random() & 1) << (mantissa + exponent);
  const uint32_t pick = random();
  if (values == Values::kEqual) return one;
  if (values == Values::kTied) return sign | (one + (pick % 3 << mantissa));
  const uint32_t largest_subnormal = (1u << mantissa) - 1, nan = infinity | 1u << (mantissa - 1);
  const uint32_t specials[] = {0, 1, largest_subnormal, one, infinity - 1, infinity, nan};
  if (values == Values::kSpecial && pick % 2) return sign | specials[pick / 2 % 7];
  return sign | (one + (random() % (2u << mantissa)) - (1u << mantissa));
}

void fill_random(const Tensor& tensor, int32_t dtype, Values values, unsigned seed) {
  std::mt19937 random(seed);
  char* to = static_cast<char*>(tensor.mutable_data_ptr());
  int64_t last = tensor.numel() ? 1 : 0;
  for (int64_t axis = 0; last && axis < tensor.dim(); ++axis) last += (tensor.size(axis) - 1) * tensor.stride(axis);
  const size_t size = aoti_torch_dtype_element_size(dtype);
  for (int64_t i = 0; i < last; ++i) {
    const uint32_t bits = random_bits(dtype, values, random);
    std::memcpy(to + i * size, &bits, size);
  }
}

Tensor matrix(int64_t rows, int64_t columns, const Case& c, Layout layout, Values values, unsigned seed) {
  Ints strides;
  switch (layout) {
    case Layout::kPacked:
      strides = {columns, 1};
      break;
    case Layout::kApart:
      strides = {columns + 3, 1};
      break;
    case Layout::kOverlapping:
      strides = {(columns + 1) / 2, 1};
      break;
    case Layout::kRepeated:
      strides = {0, 1};
      break;
    case Layout::kTransposed:
      strides = {1, rows};
      break;
  }
  const Tensor tensor = stand_in::empty({rows, columns}, strides, c.dtype);
  fill_random(tensor, c.dtype, values, seed);
  return tensor;
}

Tensor vector(int64_t size, int32_t dtype, Values values, unsigned seed) {
  const Tensor tensor = stand_in::empty({size}, {1}, dtype);
  fill_random(tensor, dtype, values, seed);
  return tensor;
}

Tensor integers(const Ints& values) {
  const Tensor tensor = stand_in::empty({static_cast<int64_t>(values.size())}, {1}, aoti_torch_dtype_int64());
  if (!values.empty()) std::memcpy(tensor.mutable_data_ptr(), values.data(), stand_in::bytes(tensor));
  return tensor;
}

Tensor exclusive_sums(const Ints& values) {
  Ints sums = {0};
  for (const int64_t value : values) sums.push_back(sums.back() + value);
  return integers(sums);
}

int64_t sum(const Ints& values) {
  int64_t total = 0;
  for (const int64_t value : values) total += value;
  return total;
}

struct Inputs {
  int64_t total, kept, longest, pools;
  Tensor tokens, grad_kept, grad_rows, q_weight, k_weight;  // in the layout
  Tensor q_bias, k_bias, scores, ranking, grad_scores, grad_pools, cu_lengths, cu_ks;

  Inputs(const Case& c, Layout layout)
      : total(sum(c.lengths)),
        kept(sum(c.ks)),
        longest(c.lengths.empty() ? 0 : *std::max_element(c.lengths.begin(), c.lengths.end())),
        pools(static_cast<int64_t>(c.lengths.size())),
        tokens(matrix(total, c.width, c, layout, c.values, 1)),
        grad_kept(matrix(kept, c.width, c, layout, Values::kNormal, 2)),
        grad_rows(matrix(total, c.width, c, layout, Values::kNormal, 3)),
        q_weight(matrix(c.hidden, c.width, c, layout, Values::kNormal, 4)),
        k_weight(matrix(c.hidden, c.width, c, layout, Values::kNormal, 5)),
        q_bias(vector(c.hidden, c.dtype, Values::kNormal, 6)),
        k_bias(vector(c.hidden, c.dtype, Values::kNormal, 7)),
        scores(vector(total, aoti_torch_dtype_float32(), c.values, 8)),
        ranking(vector(total, aoti_torch_dtype_float32(), c.values, 9)),
        grad_scores(vector(total, aoti_torch_dtype_float32(), Values::kNormal, 10)),
        grad_pools(vector(pools, aoti_torch_dtype_float32(), Values::kNormal, 11)),
        cu_lengths(exclusive_sums(c.lengths)),
        cu_ks(exclusive_sums(c.ks)) {}

  Inputs packed() const {
    Inputs copy = *this;
    for (Tensor* tensor : {&copy.tokens, &copy.grad_kept, &copy.grad_rows, &copy.q_weight, &copy.k_weight}) {
      *tensor = stand_in::packed_copy(*tensor);
    }
    return copy;
  }
};

// The results of all operators.
Tensors run_all(const Inputs& x) {
  Tensors all;
  const auto keep = [&](Tensors results) {
    all.insert(all.end(), results.begin(), results.end());
    return results;
  };
  const Tensors scored =
      keep(call("importance_scores", 4, x.tokens, x.q_weight, x.q_bias, x.k_weight, x.k_bias, x.cu_lengths));
  for (int wanted : {0, 1, 2, 4, 8, 16, 31}) {  // none, one, all
    std::vector<bool> mask;
    for (int i = 0; i < 5; ++i) mask.push_back(wanted >> i & 1);
    keep(call("importance_scores_backward", 5, x.grad_scores, x.tokens, x.q_weight, x.q_bias, x.k_weight, scored[1],
              scored[2], scored[3], x.cu_lengths, mask));
  }
  keep(call("select_tokens", 3, x.tokens, x.q_weight, x.q_bias, x.k_weight, x.k_bias, x.cu_lengths, x.cu_ks, x.kept,
            x.longest));

  const Tensor indices = keep(call("topk_indices", 1, x.scores, x.cu_lengths, x.cu_ks, x.kept, x.longest))[0];
  keep(call("topk_mask", 1, x.scores, x.cu_lengths, x.cu_ks, x.longest));
  const Tensors soft = keep(call("soft_topk", 4, x.scores, x.cu_lengths, x.cu_ks, x.longest, kTemperature));
  keep(call("soft_topk_backward", 1, x.grad_scores, std::optional<Tensor>(), x.scores, soft[2], soft[3], x.cu_lengths,
            kTemperature));
  const Tensors both = keep(call("soft_topk_with_loss", 6, x.scores, x.cu_lengths, x.cu_ks, x.longest, kTemperature));
  keep(call("soft_topk_with_loss_backward", 1, x.grad_scores, std::optional<Tensor>(x.grad_pools), both[2], x.scores,
            both[3], both[4], both[5], x.cu_lengths, kTemperature));
  keep(call("topk_consistency_loss", 2, x.scores, x.cu_lengths, x.cu_ks, x.longest, kTemperature));

  keep(call("gather_tokens", 1, x.tokens, indices));
  keep(call("gather_tokens_backward", 1, x.grad_kept, indices, x.total));
  const std::pair<std::optional<Tensor>, double> variants[] = {{std::nullopt, 1.0}, {x.ranking, 0.25}};
  for (const auto& [ranking, scale] : variants) {
    const Tensors gathered = keep(call("straight_through_gather", 4, x.tokens, x.scores, ranking, x.cu_lengths, x.cu_ks,
                                       x.kept, x.longest, kTemperature, scale));
    const Tensors masked = keep(call("straight_through_mask", 4, x.tokens, x.scores, ranking, x.cu_lengths, x.cu_ks,
                                     x.longest, kTemperature, scale));
    for (int wanted = 0; wanted < 4; ++wanted) {
      const std::vector<bool> mask = {(wanted & 1) != 0, (wanted & 2) != 0};
      keep(call("straight_through_gather_backward", 2, x.grad_kept, x.tokens, x.scores, gathered[1], gathered[2],
                gathered[3], x.cu_lengths, kTemperature, scale, mask));
      keep(call("straight_through_mask_backward", 2, x.grad_rows, x.tokens, x.scores, masked[1], masked[2], masked[3],
                x.cu_lengths, kTemperature, scale, mask));
    }
  }
  return all;
}

void run_case(const Case& c, const std::vector<Layout>& layouts, int threads) {
  for (const Layout layout : layouts) {
    const Inputs inputs(c, layout);
    stand_in::set_threads(1);
    stand_in::set_fill(0);
    const Tensors expected = run_all(inputs.packed());
    stand_in::set_threads(threads);
    stand_in::set_fill(0xff);
    const Tensors actual = run_all(inputs);
    for (size_t i = 0; i < expected.size(); ++i) {
      const int64_t size = stand_in::bytes(expected[i]);
      if (stand_in::bytes(actual[i]) != size ||
          (size && std::memcmp(actual[i].const_data_ptr(), expected[i].const_data_ptr(), size) != 0)) {
        throw std::logic_error("result " + std::to_string(i) + " depends on threads, layout or unwritten memory");
      }
    }
  }
}

int run_cases() {
  const int32_t dtypes[] = {aoti_torch_dtype_float32(), aoti_torch_dtype_bfloat16(), aoti_torch_dtype_float16()};
  const std::vector<Layout> packed = {Layout::kPacked}, layouts(std::begin(kAllLayouts), std::end(kAllLayouts));
  const Ints many = {1, 2, 0, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65};
  const Ints some_of_many = {0, 1, 0, 3, 1, 8, 4, 7, 0, 16, 1, 31, 11, 62, 64, 1};
  int count = 0;
  const auto run = [&](const Case& c, const std::vector<Layout>& in) { run_case(c, in, 2 + count++ % 4); };
  for (const int32_t dtype : dtypes) {
    for (const int64_t width : {1, 3, 17, 72}) {
      const Values values = kAllValues[(width + dtype) % 4];
      run({{129, 1, 0, 64, 33}, {26, 1, 0, 0, 33}, width, 5, dtype, values}, layouts);
    }
    for (const Values values : kAllValues) {
      run({many, some_of_many, 24, 70, dtype, values}, packed);
      run({{2500, 600, 511}, {500, 1, 510}, 5, 9, dtype, values}, packed);
    }
    run({{}, {}, 8, 4, dtype, Values::kNormal}, layouts);
    run({{0, 0}, {0, 0}, 8, 4, dtype, Values::kNormal}, layouts);
    run({{6, 5}, {0, 5}, 4 * 1024 + 5, 3, dtype, Values::kNormal}, layouts);  // wider than one tile
    run({many, some_of_many, 3, 600, dtype, Values::kNormal}, layouts);       // weights as long as large pools
  }
  // All threads in one pool: more parts than one for each loop.
  for (const Values values : kAllValues) {
    run({{20000, 17, 0, 70001}, {19999, 17, 0, 30000}, 2, 2, dtypes[1], values}, packed);
  }
  return count;
}

// Arguments that lie about sizes are refused before anything is read or written.
int run_refused() {
  const Case c = {{10, 20}, {3, 4}, 6, 4, aoti_torch_dtype_float32(), Values::kNormal};
  const Inputs x(c, Layout::kPacked);
  const Tensor indices = integers({0, 5, 30}), bits = stand_in::empty({29}, {1}, aoti_torch_dtype_bool());
  const Tensor short_scores = vector(29, aoti_torch_dtype_float32(), Values::kNormal, 1);
  const Tensor wide = matrix(c.hidden, c.width + 1, c, Layout::kPacked, Values::kNormal, 1);
  const std::vector<bool> both = {true, true};
  const std::vector<std::function<void()>> calls = {
      [&] { call("topk_indices", 1, x.scores, x.cu_lengths, x.cu_ks, int64_t{8}, x.longest); },
      [&] { call("topk_indices", 1, x.scores, integers({0, 40, 30}), x.cu_ks, x.kept, x.longest); },
      [&] { call("topk_indices", 1, x.scores, integers({-1, 10, 30}), x.cu_ks, x.kept, x.longest); },
      [&] { call("topk_indices", 1, x.scores, integers({}), x.cu_ks, x.kept, x.longest); },
      [&] { call("topk_mask", 1, short_scores, x.cu_lengths, x.cu_ks, x.longest); },
      [&] { call("topk_mask", 1, x.scores, x.cu_lengths, integers({0, 11, 12}), x.longest); },
      [&] { call("soft_topk", 4, x.scores, x.cu_lengths, integers({0, 3}), x.longest, kTemperature); },
      [&] { call("soft_topk", 4, x.scores, x.cu_lengths, x.cu_ks, x.longest, 0.0); },
      [&] { call("soft_topk_with_loss", 6, short_scores, x.cu_lengths, x.cu_ks, x.longest, kTemperature); },
      [&] { call("topk_consistency_loss", 2, x.tokens, x.cu_lengths, x.cu_ks, x.longest, kTemperature); },
      [&] { call("gather_tokens", 1, x.tokens, indices); },
      [&] { call("gather_tokens", 1, x.tokens, integers({5, 5})); },
      [&] { call("gather_tokens", 1, x.tokens, integers({-1})); },
      [&] { call("gather_tokens_backward", 1, x.grad_kept, integers({0, 1}), x.total); },
      [&] { call("importance_scores", 4, x.tokens, wide, x.q_bias, x.k_weight, x.k_bias, x.cu_lengths); },
      [&] { call("importance_scores", 4, x.tokens, x.q_weight, x.scores, x.k_weight, x.k_bias, x.cu_lengths); },
      [&] {
        call("straight_through_gather", 4, x.tokens, x.scores, std::optional<Tensor>(short_scores), x.cu_lengths,
             x.cu_ks, x.kept, x.longest, kTemperature, 1.0);
      },
      [&] {
        call("straight_through_mask_backward", 2, x.grad_rows, x.tokens, x.scores, bits, x.grad_pools, x.grad_pools,
             x.cu_lengths, kTemperature, 1.0, both);
      },
      [&] {
        call("straight_through_gather_backward", 2, x.grad_rows, x.tokens, x.scores, indices, x.grad_pools,
             x.grad_pools, x.cu_lengths, kTemperature, 1.0, both);
      },
  };
  for (size_t i = 0; i < calls.size(); ++i) {
    try {
      calls[i]();
    } catch (const std::runtime_error&) {
      continue;
    }
    throw std::logic_error("a false argument was accepted: " + std::to_string(i));
  }
  return static_cast<int>(calls.size());
}

// Mistakes inside the kernels' own code, for which each sanitizer must stop the program.
void plant(const std::string& fault) {
  const vs_kernels::SimdKernels& kernels = vs_kernels::simd();
  std::vector<float> scores(64);
  std::vector<uint32_t> keys(64);
  if (fault == "overflow") kernels.count_equal(scores.data(), 65, 0);
  if (fault == "undefined") kernels.keep_bucket(keys.data(), 1, 0, 40);
  if (fault == "race") {
    stand_in::set_threads(2);
    const auto write = [&](int64_t, int64_t) { kernels.score_keys(scores.data(), 64, keys.data()); };
    torch_parallel_for(
        0, 2, 1, [](int64_t i, int64_t, void* f) { (*static_cast<decltype(write)*>(f))(i, i); },
        const_cast<void*>(static_cast<const void*>(&write)));
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) {
    plant(argv[1]);
    return 0;
  }
  try {
    for (const char* isa : {"baseline", "avx2", "avx512"}) {
      if (vs_kernels_cpu_set_isa(isa) != 0) {
        std::printf("%s: not on this machine\n", isa);
        continue;
      }
      const int cases = run_cases();
      std::printf("%s: %d cases, %d refused calls\n", isa, cases, run_refused());
    }
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
}
