// The CUDA kernels on the host, for Python: tasks come as the bytes of their structs, with addresses of arrays in them.
#include <pybind11/pybind11.h>

#include <tuple>

#include "kernels.h"

namespace {

template <class Task>
Task task_of(const std::string& bytes) {
  if (bytes.size() != sizeof(Task)) {
    throw std::invalid_argument("task: got " + std::to_string(bytes.size()) + " bytes, expected " +
                                std::to_string(sizeof(Task)));
  }
  Task task;
  std::memcpy(&task, bytes.data(), sizeof task);
  return task;
}

void run_rows(const std::string& bytes, unsigned chunks, int format, bool mask, bool scores, bool tokens) {
  const auto task = task_of<vs_kernels::cuda::RowsTask>(bytes);
  switch (format) {
    case 0:
      return on_host::run_rows<vs_kernels::cuda::Float32>(task, chunks, mask, scores, tokens);
    case 1:
      return on_host::run_rows<vs_kernels::cuda::BFloat16>(task, chunks, mask, scores, tokens);
    default:
      return on_host::run_rows<vs_kernels::cuda::Float16>(task, chunks, mask, scores, tokens);
  }
}

void run_pools(const std::string& bytes, unsigned slices) {
  on_host::run_pools(task_of<vs_kernels::cuda::PoolsTask>(bytes), slices);
}

std::tuple<int, int, int64_t, int64_t> geometry(int64_t num_rows, int64_t num_pools, int64_t row_bytes) {
  const auto cut = vs_kernels::cuda::geometry(num_rows, num_pools, row_bytes);
  return {cut.chunk_rows, cut.warps_per_row, cut.chunks, cut.slices};
}

}  // namespace

PYBIND11_MODULE(straight_through_host, m) {
  m.def("run_rows", run_rows);
  m.def("run_pools", run_pools);
  m.def("geometry", geometry);
}
