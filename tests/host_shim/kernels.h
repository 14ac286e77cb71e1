// The two launches of the straight-through backward on the host, chosen by numbers as a test has them.
#pragma once

#include "cuda_on_host.h"
// after it
#include "straight_through.cuh"

namespace on_host {

using namespace vs_kernels::cuda;

template <class Format, Form kForm>
void run_rows(const RowsTask& task, unsigned chunks, bool scores, bool tokens) {
  const auto run = [&](auto* kernel) { launch(chunks, 1, kRowsThreads, [&] { kernel(task); }); };
  if (scores && tokens) {
    run(straight_through_rows<Format, kForm, true, true>);
  } else if (scores) {
    run(straight_through_rows<Format, kForm, true, false>);
  } else {
    run(straight_through_rows<Format, kForm, false, true>);
  }
}

template <class Format>
void run_rows(const RowsTask& task, unsigned chunks, bool mask, bool scores, bool tokens) {
  if (mask) {
    run_rows<Format, Form::kMask>(task, chunks, scores, tokens);
  } else {
    run_rows<Format, Form::kGather>(task, chunks, scores, tokens);
  }
}

inline void run_pools(const PoolsTask& task, unsigned slices) {
  launch(static_cast<unsigned>(task.pools.count), slices, kPoolThreads, [&] { straight_through_pools(task); });
}

}  // namespace on_host
