// Inner loops over rows of tokens and of weights. They are bound by memory, so what counts is how they walk through it:
// four rows side by side, each in its own quarter of all rows. That makes four long streams, which keep the
// prefetchers running across the ends of rows.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace vs_kernels {
namespace {

constexpr int64_t kStreams = 4;

// Sums are float32 over this many steps of the streams, and float64 beyond.
constexpr int64_t kSumSteps = 16;

template <int P>
constexpr int64_t kTileColumns = 4096 / P;

// block[p] += sum over R rows, `gap` entries apart, of weight[p][row] * row
template <class T, int P, int R>
VS_INLINE void add_rows(const T* rows, int64_t gap, int64_t columns, const Vec (&weight)[P][R],
                        float (&block)[P][kTileColumns<P>]) {
  const auto add = [&](int64_t c, const Vec(&x)[R]) {
    for (int p = 0; p < P; ++p) {
      Vec sum = weight[p][0] * x[0];
      for (int row = 1; row < R; ++row) sum += weight[p][row] * x[row];
      store(&block[p][c], load(&block[p][c]) + sum);
    }
  };
  Vec x[R];
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) {
    for (int row = 0; row < R; ++row) x[row] = load(rows + row * gap + c);
    add(c, x);
  }
  if (c < columns) {
    for (int row = 0; row < R; ++row) x[row] = load_part(rows + row * gap + c, columns - c);
    add(c, x);
  }
}

template <class T, int P>
void weighted_sums_of(const T* rows, int64_t stride, int64_t n, int64_t columns, const float* weights,
                      int64_t weights_stride, float* sums) {
  const int64_t quarter = n / kStreams;
  const auto weight_of = [&](int p, int64_t row) {
    return broadcast(weights ? weights[p * weights_stride + row] : 1.0f);
  };
  for (int64_t first = 0; first < columns; first += kTileColumns<P>) {
    const int64_t width = columns - first < kTileColumns<P> ? columns - first : kTileColumns<P>;
    float block[P][kTileColumns<P>];
    double total[P][kTileColumns<P>];
    for (int p = 0; p < P; ++p) {
      // Of a few columns these take longer than the sums: no more than whole registers of them.
      for (int64_t c = 0; c < width; c += kLanes) store(&block[p][c], Vec{});
      for (int64_t c = 0; c < width; ++c) total[p][c] = 0.0;
    }
    const auto flush = [&] {
      for (int p = 0; p < P; ++p) {
        for (int64_t c = 0; c < width; ++c) {
          total[p][c] += block[p][c];
          block[p][c] = 0.0f;
        }
      }
    };
    for (int64_t step = 0; step < quarter; ++step) {
      Vec weight[P][kStreams];
      for (int p = 0; p < P; ++p) {
        for (int64_t row = 0; row < kStreams; ++row) weight[p][row] = weight_of(p, row * quarter + step);
      }
      add_rows<T, P, kStreams>(rows + step * stride + first, quarter * stride, width, weight, block);
      if (step % kSumSteps == kSumSteps - 1) flush();
    }
    for (int64_t row = kStreams * quarter; row < n; ++row) {
      Vec weight[P][1];
      for (int p = 0; p < P; ++p) weight[p][0] = weight_of(p, row);
      add_rows<T, P, 1>(rows + row * stride + first, 0, width, weight, block);
    }
    flush();
    for (int p = 0; p < P; ++p) {
      for (int64_t c = 0; c < width; ++c) sums[p * columns + first + c] = static_cast<float>(total[p][c]);
    }
  }
}

template <class T>
void weighted_sums(const void* rows, int64_t stride, int64_t n, int64_t columns, const float* weights,
                   int64_t weights_stride, int64_t count, float* sums) {
  int64_t p = 0;
  for (; p + 2 <= count; p += 2) {
    weighted_sums_of<T, 2>(static_cast<const T*>(rows), stride, n, columns, weights + p * weights_stride,
                           weights_stride, sums + p * columns);
  }
  if (p < count) {
    weighted_sums_of<T, 1>(static_cast<const T*>(rows), stride, n, columns,
                           weights ? weights + p * weights_stride : nullptr, weights_stride, sums + p * columns);
  }
}

// dots[p][row * dots_gap] = <rows[row], vectors[p]> for R rows, `gap` entries apart, and P vectors
template <class T, int R, int P>
VS_INLINE void dots_of(const T* rows, int64_t gap, int64_t columns, const float* vectors, int64_t vectors_stride,
                       float* dots, int64_t dots_gap, int64_t dots_stride) {
  // Enough sums at a time to hide the latency of an addition.
  constexpr int kUnroll = 8 / (R * P) > 1 ? 8 / (R * P) : 1;
  Vec sum[R][P][kUnroll] = {};
  const auto add = [&](int u, int64_t c, auto load_at) {
    Vec y[P];
    for (int p = 0; p < P; ++p) y[p] = load_at(vectors + p * vectors_stride + c);
    for (int row = 0; row < R; ++row) {
      const Vec x = load_at(rows + row * gap + c);
      for (int p = 0; p < P; ++p) sum[row][p][u] += x * y[p];
    }
  };
  const auto load_full = [](const auto* from) { return load(from); };
  int64_t c = 0;
  for (; c + kUnroll * kLanes <= columns; c += kUnroll * kLanes) {
    for (int u = 0; u < kUnroll; ++u) add(u, c + u * kLanes, load_full);
  }
  for (; c + kLanes <= columns; c += kLanes) add(0, c, load_full);
  if (c < columns) add(0, c, [&](const auto* from) { return load_part(from, columns - c); });
  for (int row = 0; row < R; ++row) {
    for (int p = 0; p < P; ++p) {
      for (int u = 1; u < kUnroll; ++u) sum[row][p][0] += sum[row][p][u];
      dots[p * dots_stride + row * dots_gap] = sum_of_lanes(sum[row][p][0]);
    }
  }
}

template <class T, int R>
void dots_with_all(const T* rows, int64_t gap, int64_t columns, const float* vectors, int64_t count, float* dots,
                   int64_t dots_gap, int64_t dots_stride) {
  int64_t p = 0;
  for (; p + 2 <= count; p += 2) {
    dots_of<T, R, 2>(rows, gap, columns, vectors + p * columns, columns, dots + p * dots_stride, dots_gap, dots_stride);
  }
  if (p < count) {
    dots_of<T, R, 1>(rows, gap, columns, vectors + p * columns, columns, dots + p * dots_stride, dots_gap, dots_stride);
  }
}

template <class T>
void row_dots(const void* rows, int64_t stride, int64_t n, int64_t columns, const float* vectors, int64_t count,
              float* dots, int64_t dots_stride) {
  const T* row = static_cast<const T*>(rows);
  const int64_t quarter = n / kStreams;
  for (int64_t i = 0; i < quarter; ++i) {
    dots_with_all<T, kStreams>(row + i * stride, quarter * stride, columns, vectors, count, dots + i, quarter,
                               dots_stride);
  }
  for (int64_t i = kStreams * quarter; i < n; ++i) {
    dots_with_all<T, 1>(row + i * stride, 0, columns, vectors, count, dots + i, 0, dots_stride);
  }
}

// R rows of a sum of outer products: out[row] = sum over p of factors[p][row] * vectors[p]
template <class T, int R, bool kPastCaches>
VS_INLINE void outer_sum_of(const float* factors, int64_t factors_stride, const float* vectors, int64_t count,
                            int64_t columns, T* out) {
  const auto sum_at = [&](int64_t c, auto load_at, auto write_at) {
    Vec sum[R] = {};
    for (int64_t p = 0; p < count; ++p) {
      const Vec y = load_at(vectors + p * columns + c);
      for (int row = 0; row < R; ++row) sum[row] += factors[p * factors_stride + row] * y;
    }
    for (int row = 0; row < R; ++row) write_at(out + row * columns + c, sum[row]);
  };
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) {
    sum_at(c, [](const float* from) { return load(from); }, [](T* to, Vec x) { write<kPastCaches>(to, x); });
  }
  if (c < columns) {
    sum_at(
        c, [&](const float* from) { return load_part(from, columns - c); },
        [&](T* to, Vec x) { store_part(to, x, columns - c); });
  }
}

template <class T, bool kPastCaches>
void outer_sum_to(const float* factors, int64_t factors_stride, const float* vectors, int64_t count, int64_t n,
                  int64_t columns, T* out) {
  int64_t row = 0;
  for (; row + kStreams <= n; row += kStreams) {
    outer_sum_of<T, kStreams, kPastCaches>(factors + row, factors_stride, vectors, count, columns, out + row * columns);
  }
  for (; row < n; ++row) {
    outer_sum_of<T, 1, kPastCaches>(factors + row, factors_stride, vectors, count, columns, out + row * columns);
  }
}

template <class T>
void outer_sum(const float* factors, int64_t factors_stride, const float* vectors, int64_t count, int64_t n,
               int64_t columns, void* out, bool past_caches) {
  (past_caches ? outer_sum_to<T, true> : outer_sum_to<T, false>)(factors, factors_stride, vectors, count, n, columns,
                                                                 static_cast<T*>(out));
}

template <class T, bool kPastCaches>
void affine_row_to(const float* direction, float factor, const float* offset, int64_t columns, T* out) {
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes)
    write<kPastCaches>(out + c, factor * load(direction + c) + load(offset + c));
  if (c < columns) {
    const int64_t rest = columns - c;
    store_part(out + c, factor * load_part(direction + c, rest) + load_part(offset + c, rest), rest);
  }
}

template <class T>
void affine_row(const float* direction, float factor, const float* offset, int64_t columns, void* out,
                bool past_caches) {
  (past_caches ? affine_row_to<T, true> : affine_row_to<T, false>)(direction, factor, offset, columns,
                                                                   static_cast<T*>(out));
}

template <class T, bool kPastCaches>
void scale_row_to(const T* row, int64_t columns, float factor, T* out) {
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) write<kPastCaches>(out + c, factor * load(row + c));
  if (c < columns) store_part(out + c, factor * load_part(row + c, columns - c), columns - c);
}

template <class T>
void scale_row(const void* row, int64_t columns, float factor, void* out, bool past_caches) {
  (past_caches ? scale_row_to<T, true> : scale_row_to<T, false>)(static_cast<const T*>(row), columns, factor,
                                                                 static_cast<T*>(out));
}

template <class T, bool kWrite, bool kPastCaches>
float scale_and_dot_of(const T* grad, const T* token, int64_t columns, float factor, T* out) {
  constexpr int kUnroll = 4;
  Vec sum[kUnroll] = {};
  int64_t c = 0;
  for (; c + kUnroll * kLanes <= columns; c += kUnroll * kLanes) {
    for (int u = 0; u < kUnroll; ++u) {
      const Vec g = load(grad + c + u * kLanes);
      sum[u] += g * load(token + c + u * kLanes);
      if (kWrite) write<kPastCaches>(out + c + u * kLanes, factor * g);
    }
  }
  for (; c < columns; c += kLanes) {
    const int64_t lanes = columns - c < kLanes ? columns - c : kLanes;
    const Vec g = load_part(grad + c, lanes);
    sum[0] += g * load_part(token + c, lanes);
    if (kWrite) store_part(out + c, factor * g, lanes);
  }
  return sum_of_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <class T>
float scale_and_dot(const void* grad, const void* token, int64_t columns, float factor, void* out, bool past_caches) {
  const auto run = !out          ? scale_and_dot_of<T, false, false>
                   : past_caches ? scale_and_dot_of<T, true, true>
                                 : scale_and_dot_of<T, true, false>;
  return run(static_cast<const T*>(grad), static_cast<const T*>(token), columns, factor, static_cast<T*>(out));
}

template <class T>
constexpr RowKernels kRowKernels = {
    weighted_sums<T>, row_dots<T>, outer_sum<T>, affine_row<T>, scale_row<T>, scale_and_dot<T>,
};

}  // namespace
}  // namespace vs_kernels
