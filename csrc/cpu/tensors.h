// What the kernels need of tensors beyond torch/csrc/stable: cheap allocation and checks that name the argument.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <initializer_list>
#include <vector>

namespace vs_kernels {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr uintptr_t kLargePage = uintptr_t{1} << 21;

// Fresh memory costs more by its page faults than by its bytes: large results ask for large pages.
inline void advise_large_pages(const void* begin, int64_t bytes) {
#if defined(__linux__)
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + kLargePage - 1) / kLargePage * kLargePage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + bytes) / kLargePage * kLargePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// Whether the system has yet to hand out this memory, judged by one page of it. It clears what it hands out, which is
// in the caches after that. For blocks of several large pages.
inline bool is_fresh(const void* begin, int64_t bytes) {
#if defined(__linux__)
  const uintptr_t middle = (reinterpret_cast<uintptr_t>(begin) + bytes / 2) / kLargePage * kLargePage;
  unsigned char resident = 1;
  return mincore(reinterpret_cast<void*>(middle), 1, &resident) == 0 && (resident & 1) == 0;
#else
  return false;
#endif
}

// Fewer fill no large page.
constexpr int64_t kManyEntries = int64_t{1} << 18;

// Of at most two dimensions.
inline Tensor new_tensor(std::initializer_list<int64_t> sizes, int32_t dtype) {
  const int64_t* size = sizes.begin();
  const int64_t strides[] = {sizes.size() == 2 ? size[1] : 1, 1};
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), size, strides, dtype,
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  const Tensor tensor(handle);
  const int64_t entries = sizes.size() == 0 ? 1 : sizes.size() == 1 ? size[0] : size[0] * size[1];
  if (entries >= kManyEntries) {
    advise_large_pages(tensor.const_data_ptr(), entries * static_cast<int64_t>(tensor.element_size()));
  }
  return tensor;
}

inline Tensor new_float(std::initializer_list<int64_t> sizes) { return new_tensor(sizes, aoti_torch_dtype_float32()); }
inline Tensor new_int64(std::initializer_list<int64_t> sizes) { return new_tensor(sizes, aoti_torch_dtype_int64()); }
inline Tensor new_bool(std::initializer_list<int64_t> sizes) { return new_tensor(sizes, aoti_torch_dtype_bool()); }

inline int32_t dtype_of(const Tensor& tensor) {
  int32_t dtype;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <class T>
const T* const_data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

inline Tensor packed(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// A float32 vector on the CPU, of a given length unless that is negative.
inline Tensor float_vector(const Tensor& tensor, const char* name, int64_t length = -1) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, ": expected a tensor on the CPU");
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float, name, ": expected float32");
  STD_TORCH_CHECK(tensor.dim() == 1, name, ": got ", tensor.dim(), " dimensions, expected 1");
  STD_TORCH_CHECK(length < 0 || tensor.size(0) == length, name, ": got ", tensor.size(0), " entries, expected ",
                  length);
  return packed(tensor);
}

// A float32 matrix on the CPU.
inline Tensor float_matrix(const Tensor& tensor, const char* name, int64_t rows, int64_t columns) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == ScalarType::Float && tensor.dim() == 2 &&
                      tensor.size(0) == rows && tensor.size(1) == columns,
                  name, ": expected float32 [", rows, ", ", columns, "] on the CPU");
  return packed(tensor);
}

}  // namespace vs_kernels
