// A matrix of tokens or weights, and the inner loops of its number format.
#pragma once

#include <cstring>

#include "isa.h"
#include "parallel.h"

namespace vs_kernels {

struct Rows {
  Tensor tensor;  // keeps the memory alive
  const char* data;
  int64_t count;
  int64_t columns;
  int64_t stride;  // entries from row to row
  int64_t entry_bytes;
  const RowKernels* kernels;

  const void* row(int64_t i) const { return data + i * stride * entry_bytes; }
  int64_t row_bytes() const { return columns * entry_bytes; }
};

inline const RowKernels& row_kernels(const Tensor& tensor, const char* name) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half, name,
                  ": expected float32, bfloat16 or float16");
  return simd().rows[type == ScalarType::Float  ? kFloat32Rows
                     : type == ScalarType::Half ? kFloat16Rows
                                                : kBFloat16Rows];
}

// A float matrix on the CPU, of a given width unless that is negative. Rows may lie anywhere, entries in a line.
inline Rows float_rows(const Tensor& matrix, const char* name, int64_t columns = -1) {
  STD_TORCH_CHECK(matrix.is_cpu(), name, ": expected a tensor on the CPU");
  STD_TORCH_CHECK(matrix.dim() == 2, name, ": got ", matrix.dim(), " dimensions, expected 2");
  STD_TORCH_CHECK(columns < 0 || matrix.size(1) == columns, name, ": got ", matrix.size(1), " columns, expected ",
                  columns);
  const RowKernels& kernels = row_kernels(matrix, name);
  const Tensor rows = matrix.stride(1) == 1 ? matrix : packed(matrix);
  return {rows,           static_cast<const char*>(rows.const_data_ptr()), rows.size(0), rows.size(1),
          rows.stride(0), static_cast<int64_t>(rows.element_size()),       &kernels};
}

// Rows of the same number format, as written by the inner loops.
inline Rows float_rows_like(const Rows& like, const Tensor& matrix, const char* name) {
  Rows rows = float_rows(matrix, name, like.columns);
  STD_TORCH_CHECK(rows.kernels == like.kernels, name, ": expected the dtype of the tokens");
  return rows;
}

// A matrix to write, with room for `count` rows like others.
struct RowResults {
  Tensor tensor;
  char* data;
  int64_t row_bytes;
  bool whole_lines;
  // Written past the caches, where it would fill them; a smaller result is still there for whoever reads it next, and
  // of a fresh one the system has just brought every line there.
  bool past_caches;

  RowResults(const Rows& like, int64_t count)
      : tensor(new_tensor({count, like.columns}, dtype_of(like.tensor))),
        data(vs_kernels::data<char>(tensor)),
        row_bytes(like.row_bytes()),
        whole_lines(row_bytes % kLine == 0),
        past_caches(whole_lines && count * row_bytes >= kLargeResult &&
                    reinterpret_cast<uintptr_t>(data) % kLine == 0 && !is_fresh(data, count * row_bytes)) {}

  void* row(int64_t i) const { return data + i * row_bytes; }

  void zero(int64_t i) const {
    if (whole_lines) {
      (past_caches ? simd().stream_zero_row : simd().zero_row)(row_bytes, row(i));
    } else {
      std::memset(row(i), 0, row_bytes);
    }
  }

  void copy(int64_t i, const void* from) const {
    if (whole_lines) {
      constexpr int64_t kFirst = 0;
      (past_caches ? simd().stream_rows : simd().copy_rows)(from, 0, &kFirst, 1, row_bytes, row(i));
    } else {
      std::memcpy(row(i), from, row_bytes);
    }
  }

 private:
  static constexpr int64_t kLargeResult = int64_t{1} << 24;
  static constexpr int64_t kLine = 64;
};

// What went past the caches becomes visible to the threads that read it next.
inline void finish_writes() {
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}

// f(begin, end) for parts of `count` rows, on all threads. Each thread waits for its writes once: after every part,
// also those into the caches would be waited for.
template <class F>
void for_row_parts(const Rows& rows, int64_t count, const F& f) {
  const int64_t part_rows = std::max<int64_t>(1, 65536 / (rows.row_bytes() + 1));
  for_each_number(
      num_parts(count, part_rows), [&](int64_t i) { f(i * part_rows, std::min(count, (i + 1) * part_rows)); },
      finish_writes);
}

}  // namespace vs_kernels
