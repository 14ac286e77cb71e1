// Stands in for the CUDA runtime and for what torch knows of devices, so that the host code of the CUDA library runs on
// tensors of a CPU: a kernel that it launches runs at once on the host, by the name under which nvcc registered it.
#include <map>

// The library's object has functions of the same names, which launch.
#define vs_kernels kernels_on_host
#include "kernels.h"

struct dim3 {
  unsigned x, y, z;
};

namespace {

struct Configuration {
  dim3 grid, block;
  size_t shared_bytes;
  void* stream;
};

Configuration next;
int launches = 0;
int stream_of_torch;

// Of kernels, by their host function. Filled before the variables of this file come to life.
std::map<const void*, std::string>& names() {
  static std::map<const void*, std::string> all;
  return all;
}

bool contains(const std::string& name, const char* part) { return name.find(part) != std::string::npos; }

void run(const std::string& name, dim3 grid, dim3 block, void* task) {
  const bool rows = contains(name, "straight_through_rows");
  const unsigned threads = rows ? vs_kernels::cuda::kRowsThreads : vs_kernels::cuda::kPoolThreads;
  if (block.x != threads || block.y != 1 || block.z != 1 || grid.z != 1) throw std::runtime_error(name + ": blocks");
  if (!rows) return on_host::run_pools(*static_cast<vs_kernels::cuda::PoolsTask*>(task), grid.y);
  const auto& rows_task = *static_cast<vs_kernels::cuda::RowsTask*>(task);
  const bool mask = contains(name, "FormE1"), scores = contains(name, "Lb1ELb"), tokens = contains(name, "ELb1EEE");
  // A GPU refuses vectors elsewhere; the host moves them from anywhere.
  const auto aligned = [](const void* rows) { return reinterpret_cast<uintptr_t>(rows) % sizeof(uint4) == 0; };
  const auto rows_aligned =
      aligned(rows_task.grads) && (!scores || aligned(rows_task.tokens)) && (!tokens || aligned(rows_task.grad_tokens));
  if (rows_task.vectors > 0 && !rows_aligned) throw std::runtime_error(name + ": vectors that are not aligned");
  if (contains(name, "7Float32")) {
    on_host::run_rows<vs_kernels::cuda::Float32>(rows_task, grid.x, mask, scores, tokens);
  } else if (contains(name, "8BFloat16")) {
    on_host::run_rows<vs_kernels::cuda::BFloat16>(rows_task, grid.x, mask, scores, tokens);
  } else {
    on_host::run_rows<vs_kernels::cuda::Float16>(rows_task, grid.x, mask, scores, tokens);
  }
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int launches_so_far() { return launches; }

// The CUDA runtime, as nvcc's own code calls it.
EXPORT void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
EXPORT void __cudaUnregisterFatBinary(void**) {}
EXPORT void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
EXPORT void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, void*, void*, void*,
                                   void*, int*) {
  names()[function] = name;
}
EXPORT int __cudaGetKernel(const void** kernel, const void* function) {
  *kernel = function;
  return 0;
}
EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, void* stream) {
  next = {grid, block, shared_bytes, stream};
  return 0;
}
EXPORT int __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, void* stream) {
  *grid = next.grid;
  *block = next.block;
  *shared_bytes = next.shared_bytes;
  std::memcpy(stream, &next.stream, sizeof next.stream);
  return 0;
}
EXPORT int __cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t, void* stream) {
  if (stream != &stream_of_torch) throw std::runtime_error("not on the current stream of torch");
  ++launches;
  run(names().at(kernel), grid, block, arguments[0]);
  return 0;
}
EXPORT int cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t bytes, void* stream) {
  return __cudaLaunchKernel(function, grid, block, arguments, bytes, stream);
}
EXPORT int cudaGetLastError() { return 0; }
EXPORT const char* cudaGetErrorString(int) { return "no error"; }

// Torch: every tensor is on the first GPU.
EXPORT int32_t aoti_torch_get_device_type(void*, int32_t* type) {
  *type = 1;
  return 0;
}
EXPORT int32_t aoti_torch_get_device_index(void*, int32_t* index) {
  *index = 0;
  return 0;
}
EXPORT int32_t aoti_torch_create_device_guard(int32_t, void** guard) {
  *guard = nullptr;
  return 0;
}
EXPORT int32_t aoti_torch_delete_device_guard(void*) { return 0; }
EXPORT int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = &stream_of_torch;
  return 0;
}
