#include "torch_stand_in.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <thread>

struct AtenTensorOpaque {
  std::shared_ptr<char[]> storage;  // null without entries, as in torch
  std::vector<int64_t> sizes, strides;
  int32_t dtype;

  int64_t numel() const {
    int64_t product = 1;
    for (const int64_t size : sizes) product *= size;
    return product;
  }

  // Calls f with the offset of every entry, in order.
  template <class F>
  void for_each_offset(const F& f, size_t axis = 0, int64_t offset = 0) const {
    if (axis == sizes.size()) return f(offset);
    for (int64_t i = 0; i < sizes[axis]; ++i) for_each_offset(f, axis + 1, offset + i * strides[axis]);
  }
};

struct StableListOpaque {
  std::vector<StableIValue> items;
};

namespace {

int num_threads = 1;
uint8_t fill = 0;
thread_local bool in_parallel = false;

std::map<std::string, stand_in::Kernel>& kernels() {
  static std::map<std::string, stand_in::Kernel> by_name;
  return by_name;
}

std::vector<int64_t> packed_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * sizes[i];
  return strides;
}

AtenTensorHandle new_tensor(std::vector<int64_t> sizes, std::vector<int64_t> strides, int32_t dtype) {
  auto* tensor = new AtenTensorOpaque{nullptr, std::move(sizes), std::move(strides), dtype};
  if (tensor->numel() == 0) return tensor;
  int64_t entries = 1;
  for (size_t i = 0; i < tensor->sizes.size(); ++i) entries += (tensor->sizes[i] - 1) * tensor->strides[i];
  const size_t size = entries * aoti_torch_dtype_element_size(dtype);
  tensor->storage.reset(new char[size]);
  std::memset(tensor->storage.get(), fill, size);
  return tensor;
}

AtenTensorHandle new_packed_copy(AtenTensorHandle from) {
  const AtenTensorHandle copy = new_tensor(from->sizes, packed_strides(from->sizes), from->dtype);
  const size_t size = aoti_torch_dtype_element_size(from->dtype);
  char* to = copy->storage.get();
  from->for_each_offset([&](int64_t offset) {
    std::memcpy(to, from->storage.get() + offset * size, size);
    to += size;
  });
  return copy;
}

}  // namespace

namespace stand_in {

void set_threads(int count) { num_threads = count; }
void set_fill(uint8_t byte) { fill = byte; }

Tensor empty(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, int32_t dtype) {
  return Tensor(new_tensor(sizes, strides, dtype));
}

Tensor packed_copy(const Tensor& tensor) { return Tensor(new_packed_copy(tensor.get())); }

int64_t bytes(const Tensor& tensor) {
  return tensor.numel() * static_cast<int64_t>(aoti_torch_dtype_element_size(tensor.get()->dtype));
}

StableIValue boxed(const std::vector<bool>& values) {
  auto* list = new StableListOpaque;
  for (const bool value : values) list->items.push_back(torch::stable::detail::from(value));
  return torch::stable::detail::from(list);
}

Kernel registered(const std::string& name) { return kernels().at(name); }

}  // namespace stand_in

int32_t aoti_torch_device_type_cpu() { return 0; }
int32_t aoti_torch_memory_format_contiguous_format() { return 0; }
uint64_t aoti_torch_abi_version() { return TORCH_ABI_VERSION; }

// As in torch, so that a mistaken mapping shows.
#define DTYPE(name, number) \
  int32_t aoti_torch_dtype_##name() { return number; }
DTYPE(uint8, 0)
DTYPE(int8, 1)
DTYPE(int16, 2)
DTYPE(int32, 3)
DTYPE(int64, 4)
DTYPE(float16, 5)
DTYPE(float32, 6)
DTYPE(float64, 7)
DTYPE(complex32, 8)
DTYPE(complex64, 9)
DTYPE(complex128, 10)
DTYPE(bool, 11)
DTYPE(bfloat16, 15)
DTYPE(float8_e5m2, 23)
DTYPE(float8_e4m3fn, 24)
DTYPE(float8_e5m2fnuz, 25)
DTYPE(float8_e4m3fnuz, 26)
DTYPE(uint16, 27)
DTYPE(uint32, 28)
DTYPE(uint64, 29)
#undef DTYPE

size_t aoti_torch_dtype_element_size(int32_t dtype) {
  if (dtype == aoti_torch_dtype_int64()) return 8;
  if (dtype == aoti_torch_dtype_float32()) return 4;
  if (dtype == aoti_torch_dtype_bfloat16() || dtype == aoti_torch_dtype_float16()) return 2;
  if (dtype == aoti_torch_dtype_bool()) return 1;
  std::fprintf(stderr, "stand-in: no dtype %d\n", dtype);
  std::abort();
}

AOTITorchError aoti_torch_empty_strided(int64_t dims, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                        int32_t, int32_t, AtenTensorHandle* tensor) {
  *tensor = new_tensor({sizes, sizes + dims}, {strides, strides + dims}, dtype);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle tensor, AtenTensorHandle* copy) {
  *copy = new AtenTensorOpaque(*tensor);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor) {
  delete tensor;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, int64_t* dims) {
  *dims = static_cast<int64_t>(tensor->sizes.size());
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_numel(AtenTensorHandle tensor, int64_t* numel) {
  *numel = tensor->numel();
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_size(AtenTensorHandle tensor, int64_t axis, int64_t* size) {
  *size = tensor->sizes.at(axis);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_stride(AtenTensorHandle tensor, int64_t axis, int64_t* stride) {
  *stride = tensor->strides.at(axis);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_dtype(AtenTensorHandle tensor, int32_t* dtype) {
  *dtype = tensor->dtype;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_device_type(AtenTensorHandle, int32_t* type) {
  *type = aoti_torch_device_type_cpu();
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_is_contiguous(AtenTensorHandle tensor, bool* contiguous) {
  const std::vector<int64_t> packed = packed_strides(tensor->sizes);
  *contiguous = true;
  for (size_t i = 0; i < packed.size(); ++i) {
    if (tensor->sizes[i] != 1 && tensor->strides[i] != packed[i]) *contiguous = tensor->numel() == 0;
  }
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_get_mutable_data_ptr(AtenTensorHandle tensor, void** data) {
  *data = tensor->storage.get();
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_get_const_data_ptr(AtenTensorHandle tensor, const void** data) {
  *data = tensor->storage.get();
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_library_init_impl(const char*, const char*, const char*, uint32_t, TorchLibraryHandle* lib) {
  *lib = nullptr;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_delete_library_object(TorchLibraryHandle) { return AOTI_TORCH_SUCCESS; }

AOTITorchError torch_library_impl(TorchLibraryHandle, const char* name, stand_in::Kernel kernel, uint64_t) {
  kernels()[name] = kernel;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_call_dispatcher(const char* op, const char*, StableIValue* stack, uint64_t) {
  if (std::strcmp(op, "aten::contiguous") != 0) return AOTI_TORCH_FAILURE;
  const auto tensor = torch::stable::detail::to<stand_in::Tensor>(stack[0]);
  stack[0] = torch::stable::detail::from(stand_in::packed_copy(tensor));
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_list_size(StableListHandle list, size_t* size) {
  *size = list->items.size();
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_list_get_item(StableListHandle list, size_t i, StableIValue* item) {
  *item = list->items.at(i);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_delete_list(StableListHandle list) {
  delete list;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_get_num_threads(uint32_t* count) {
  *count = num_threads;
  return AOTI_TORCH_SUCCESS;
}

// The division of the work is that of torch; a call within a call runs on the thread that makes it.
AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t grain, ParallelFunc f, void* context) {
  if (begin >= end) return AOTI_TORCH_SUCCESS;
  const int64_t most = grain > 0 ? (end - begin + grain - 1) / grain : end - begin;
  const int64_t threads = in_parallel ? 1 : std::min<int64_t>(num_threads, most);
  if (threads == 1) {
    f(begin, end, context);
    return AOTI_TORCH_SUCCESS;
  }
  const int64_t share = (end - begin + threads - 1) / threads;
  const auto run = [&](int64_t first) {
    in_parallel = true;
    f(first, std::min(end, first + share), context);
    in_parallel = false;
  };
  std::vector<std::thread> workers;
  for (int64_t first = begin + share; first < end; first += share) workers.emplace_back(run, first);
  run(begin);
  for (std::thread& worker : workers) worker.join();
  return AOTI_TORCH_SUCCESS;
}
