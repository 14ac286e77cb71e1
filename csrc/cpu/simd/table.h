// The table of one instruction set. The files that include this one are compiled with flags that other code must not
// inherit: they include no standard header with inline functions, because the linker could merge such a function,
// compiled for a newer CPU, into code that runs on every CPU.
#pragma once

#include "compress.h"
#include "copy_rows.h"
#include "rows_loops.h"
#include "soft_topk_loops.h"
#include "topk_loops.h"

namespace vs_kernels {
namespace {

constexpr SimdKernels kTable = {
    score_keys,
    count_equal,
    mark_at_least,
    keep_bucket,
    marked_rows,
    anchor_odds,
    soft_sums,
    soft_probs,
    soft_slopes,
    centred_sum,
    soft_backward,
    consistency_loss,
    copy_rows<false>,
    copy_rows<true>,
    zero_row<false>,
    zero_row<true>,
    {kRowKernels<float>, kRowKernels<BFloat16>, kRowKernels<Float16>},
};

}  // namespace
}  // namespace vs_kernels
