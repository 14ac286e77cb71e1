// The few functions of torch's stable ABI that the CPU kernels call, without torch: tensors over allocations of their
// exact size, and a parallel_for on threads that ThreadSanitizer sees start and end.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace stand_in {

using torch::stable::Tensor;

// Settings of everything that runs afterwards.
void set_threads(int count);
void set_fill(uint8_t byte);  // what fresh tensors hold

Tensor empty(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, int32_t dtype);
Tensor packed_copy(const Tensor& tensor);
int64_t bytes(const Tensor& tensor);

using Kernel = void (*)(StableIValue*, uint64_t, uint64_t);
Kernel registered(const std::string& name);

template <class T>
StableIValue boxed(const T& value) {
  return torch::stable::detail::from(value);
}
StableIValue boxed(const std::vector<bool>& values);

// Calls an operator the way the dispatcher does.
template <class... Args>
std::vector<Tensor> call(const std::string& name, size_t results, const Args&... args) {
  std::vector<StableIValue> stack{boxed(args)...};
  stack.resize(std::max(stack.size(), results));
  registered(name)(stack.data(), sizeof...(args), results);
  std::vector<Tensor> outputs;
  for (size_t i = 0; i < results; ++i) outputs.push_back(torch::stable::detail::to<Tensor>(stack[i]));
  return outputs;
}

}  // namespace stand_in
