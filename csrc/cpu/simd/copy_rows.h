// Copies of rows in lines of 64 bytes. Rows are whole lines; results written past the caches are aligned to them.
#pragma once

#include <stdint.h>

#include "vec.h"

namespace vs_kernels {
namespace {

constexpr int64_t kLine = 16;  // floats in 64 bytes

template <bool PastCaches, int R>
void copy_rows_of(const char* rows, int64_t stride, const int64_t* indices, int64_t bytes, char* out) {
  for (int64_t at = 0; at < bytes; at += 64) {
    for (int row = 0; row < R; ++row) {
      const float* from = reinterpret_cast<const float*>(rows + indices[row] * stride + at);
      float* to = reinterpret_cast<float*>(out + row * bytes + at);
      for (int64_t i = 0; i < kLine; i += kLanes) write<PastCaches>(to + i, load(from + i));
    }
  }
}

// Four rows side by side, as in rows_loops.h.
template <bool PastCaches>
void copy_rows(const void* rows, int64_t stride, const int64_t* indices, int64_t n, int64_t bytes, void* out) {
  const char* from = static_cast<const char*>(rows);
  char* to = static_cast<char*>(out);
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) copy_rows_of<PastCaches, 4>(from, stride, indices + i, bytes, to + i * bytes);
  for (; i < n; ++i) copy_rows_of<PastCaches, 1>(from, stride, indices + i, bytes, to + i * bytes);
}

template <bool PastCaches>
void zero_row(int64_t bytes, void* out) {
  float* to = static_cast<float*>(out);
  for (int64_t i = 0; i < bytes / 4; i += kLanes) write<PastCaches>(to + i, Vec{});
}

}  // namespace
}  // namespace vs_kernels
