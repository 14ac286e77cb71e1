// The backward of straight_through_gather and straight_through_mask on CUDA: checks, two launches, registration.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "straight_through.cuh"
#include "tensors.h"

#define VS_KERNELS_TEXT(x) #x
#define VS_KERNELS_VALUE(x) VS_KERNELS_TEXT(x)

// Read from the file by whoever decides whether to load it.
extern "C" __attribute__((visibility("default"), used)) const char vs_kernels_cuda_version[] =
    "vs_kernels CUDART_VERSION " VS_KERNELS_VALUE(CUDART_VERSION);

namespace vs_kernels {
namespace cuda {
namespace {

struct Backward {
  const char* grads_name;
  Tensor grads, tokens, scores, kept, pivots, shifts, cu_lengths;
  double temperature, factor;
  std::vector<bool> output_mask;  // tokens, scores
};

bool in_vectors(const Tensor& matrix, int64_t stride, int64_t entries) {
  return reinterpret_cast<uintptr_t>(matrix.const_data_ptr()) % sizeof(uint4) == 0 && stride % entries == 0;
}

template <class Format, Form kForm>
void launch_rows(const RowsTask& task, const Geometry& cut, bool scores, bool tokens, cudaStream_t stream) {
  const auto launch = [&](auto* kernel) { kernel<<<cut.chunks, kRowsThreads, 0, stream>>>(task); };
  if (scores && tokens) {
    launch(straight_through_rows<Format, kForm, true, true>);
  } else if (scores) {
    launch(straight_through_rows<Format, kForm, true, false>);
  } else {
    launch(straight_through_rows<Format, kForm, false, true>);
  }
  check_launch();
}

// -> grad_tokens [T, D], grad_scores float32 [T]; empty where not wanted
template <Form kForm>
std::tuple<Tensor, Tensor> straight_through_backward(const Backward& given) {
  STD_TORCH_CHECK(given.output_mask.size() == 2, "output_mask: got ", given.output_mask.size(), " entries, expected 2");
  const bool wants_tokens = given.output_mask[0], wants_scores = given.output_mask[1];
  const int32_t device = given.tokens.get_device_index();
  const Tensor tokens = cuda_rows(given.tokens, "tokens", device);
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor grads = cuda_rows(given.grads, given.grads_name, device);
  const int64_t num_rows = tokens.size(0), columns = tokens.size(1);
  const Tensor kept = kForm == Form::kGather
                          ? cuda_vector(given.kept, "indices", ScalarType::Long, "int64", device, -1)
                          : cuda_vector(given.kept, "mask", ScalarType::Bool, "bool", device, num_rows);
  const int64_t num_kept = kept.numel();
  STD_TORCH_CHECK(grads.scalar_type() == tokens.scalar_type(), given.grads_name, ": expected the dtype of the tokens");
  STD_TORCH_CHECK(grads.size(0) == num_kept && grads.size(1) == columns, given.grads_name, ": got shape [",
                  grads.size(0), ", ", grads.size(1), "], expected [", num_kept, ", ", columns, "]");
  const Tensor scores = cuda_vector(given.scores, "scores", ScalarType::Float, "float32", device, num_rows);
  const Tensor cu_lengths = cuda_vector(given.cu_lengths, "cu_lengths", ScalarType::Long, "int64", device, -1);
  const int64_t pools = cu_lengths.numel() - 1;
  STD_TORCH_CHECK(pools >= 0 && (pools > 0 || num_rows == 0), "cu_lengths: got ", cu_lengths.numel(), " entries for ",
                  num_rows, " tokens, expected one more than pools");
  const Tensor pivots = cuda_vector(given.pivots, "pivots", ScalarType::Float, "float32", device, pools);
  const Tensor shifts = cuda_vector(given.shifts, "shifts", ScalarType::Float, "float32", device, pools);
  const float inverse = static_cast<float>(1.0 / given.temperature);
  STD_TORCH_CHECK(given.temperature > 0.0 && std::isnormal(inverse), "temperature: got ", given.temperature,
                  ", expected a positive number with a float32 reciprocal");

  const Tensor grad_tokens =
      wants_tokens ? torch::stable::new_empty(tokens, {num_rows, columns}) : torch::stable::new_empty(tokens, {0});
  const Tensor grad_scores = torch::stable::new_empty(scores, {wants_scores ? num_rows : 0});
  if (num_rows == 0 || !(wants_tokens || wants_scores)) return {grad_tokens, grad_scores};

  const int64_t entry_bytes = tokens.element_size(), entries = sizeof(uint4) / entry_bytes;
  const Geometry cut = geometry(num_rows, pools, columns * entry_bytes);
  const Tensor credits = torch::stable::new_empty(scores, {wants_scores ? num_rows : 0});
  const Tensor moments = torch::stable::new_empty(scores, {wants_scores ? cut.chunks : 0, 3});
  static_assert(sizeof(Moments) == 3 * sizeof(float));
  const bool vectors = in_vectors(grads, grads.stride(0), entries) && in_vectors(tokens, tokens.stride(0), entries) &&
                       (!wants_tokens || in_vectors(grad_tokens, columns, entries));
  const SoftPools soft_pools = {const_data<float>(scores),
                                const_data<float>(pivots),
                                const_data<float>(shifts),
                                const_data<int64_t>(cu_lengths),
                                pools,
                                inverse};
  RowsTask task = {};
  task.grads = grads.const_data_ptr();
  task.tokens = tokens.const_data_ptr();
  task.kept = kept.const_data_ptr();
  task.grad_tokens = grad_tokens.mutable_data_ptr();
  task.credits = static_cast<float*>(credits.mutable_data_ptr());
  task.moments = static_cast<Moments*>(moments.mutable_data_ptr());
  task.grads_stride = grads.stride(0);
  task.tokens_stride = tokens.stride(0);
  task.num_rows = num_rows;
  task.num_kept = num_kept;
  task.columns = static_cast<int32_t>(columns);
  task.vectors = vectors ? static_cast<int32_t>(columns / entries) : 0;
  task.chunk_rows = cut.chunk_rows;
  task.warps_per_row = cut.warps_per_row;
  task.factor = static_cast<float>(given.factor);
  task.pools = soft_pools;

  const cudaStream_t stream = current_stream(device);
  switch (tokens.scalar_type()) {
    case ScalarType::Float:
      launch_rows<Float32, kForm>(task, cut, wants_scores, wants_tokens, stream);
      break;
    case ScalarType::BFloat16:
      launch_rows<BFloat16, kForm>(task, cut, wants_scores, wants_tokens, stream);
      break;
    default:
      launch_rows<Float16, kForm>(task, cut, wants_scores, wants_tokens, stream);
  }
  if (wants_scores) {
    const PoolsTask pools_task = {task.credits, task.moments, static_cast<float*>(grad_scores.mutable_data_ptr()),
                                  task.chunk_rows, soft_pools};
    const dim3 grid(static_cast<unsigned>(pools), static_cast<unsigned>(cut.slices));
    straight_through_pools<<<grid, kPoolThreads, 0, stream>>>(pools_task);
    check_launch();
  }
  return {grad_tokens, grad_scores};
}

std::tuple<Tensor, Tensor> straight_through_gather_backward(Tensor grad_kept,   // [K, D]
                                                            Tensor tokens,      // [T, D]
                                                            Tensor scores,      // float32 [T]
                                                            Tensor indices,     // int64 [K], ascending
                                                            Tensor pivots,      // float32 [S]
                                                            Tensor shifts,      // float32 [S]
                                                            Tensor cu_lengths,  // int64 [S + 1]
                                                            double temperature, double scale,
                                                            std::vector<bool> output_mask) {  // tokens, scores
  return straight_through_backward<Form::kGather>(
      {"grad_kept", grad_kept, tokens, scores, indices, pivots, shifts, cu_lengths, temperature, scale, output_mask});
}

std::tuple<Tensor, Tensor> straight_through_mask_backward(Tensor grad_out,    // [T, D]
                                                          Tensor tokens,      // [T, D]
                                                          Tensor scores,      // float32 [T]
                                                          Tensor mask,        // bool [T]
                                                          Tensor pivots,      // float32 [S]
                                                          Tensor shifts,      // float32 [S]
                                                          Tensor cu_lengths,  // int64 [S + 1]
                                                          double temperature, double dropped_scale,
                                                          std::vector<bool> output_mask) {  // tokens, scores
  return straight_through_backward<Form::kMask>({"grad_out", grad_out, tokens, scores, mask, pivots, shifts, cu_lengths,
                                                 temperature, dropped_scale, output_mask});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vs_kernels, CUDA, m) {
  m.impl("straight_through_gather_backward", TORCH_BOX(&straight_through_gather_backward));
  m.impl("straight_through_mask_backward", TORCH_BOX(&straight_through_mask_backward));
}

}  // namespace cuda
}  // namespace vs_kernels
