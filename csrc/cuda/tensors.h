// What the CUDA kernels need of tensors: where they lie, on which stream work goes, and checks that name the argument.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <climits>
#include <cstdint>

// Weak, so that this library also loads beside a torch without CUDA, where its registrations can be looked at.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace vs_kernels {
namespace cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline cudaStream_t current_stream(int32_t device) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this torch was built without CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch() {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "vs_kernels: a CUDA kernel could not be launched: ", cudaGetErrorString(error),
                  " (_cuda.so is built for CUDA ", CUDART_VERSION / 1000, ".", CUDART_VERSION % 1000 / 10, ")");
}

template <class T>
const T* const_data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

// A vector on a CUDA device, of a given length unless that is negative; packed.
inline Tensor cuda_vector(const Tensor& tensor, const char* name, ScalarType type, const char* type_name,
                          int32_t device, int64_t length) {
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == device, name,
                  ": expected a tensor on cuda:", device);
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, ": expected ", type_name);
  STD_TORCH_CHECK(tensor.dim() == 1, name, ": got ", tensor.dim(), " dimensions, expected 1");
  STD_TORCH_CHECK(length < 0 || tensor.size(0) == length, name, ": got ", tensor.size(0), " entries, expected ",
                  length);
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// A matrix of tokens: rows may lie anywhere, entries in a line.
inline Tensor cuda_rows(const Tensor& matrix, const char* name, int32_t device) {
  STD_TORCH_CHECK(matrix.is_cuda() && matrix.get_device_index() == device, name,
                  ": expected a tensor on cuda:", device);
  STD_TORCH_CHECK(matrix.dim() == 2, name, ": got ", matrix.dim(), " dimensions, expected 2");
  STD_TORCH_CHECK(matrix.size(1) <= INT_MAX, name, ": got ", matrix.size(1), " columns, expected fewer than 2^31");
  const ScalarType type = matrix.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half, name,
                  ": expected float32, bfloat16 or float16");
  return matrix.stride(1) == 1 || matrix.size(1) == 1 ? matrix : torch::stable::contiguous(matrix);
}

}  // namespace cuda
}  // namespace vs_kernels
