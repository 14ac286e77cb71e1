#pragma once

#include "simd/kernels.h"

namespace vs_kernels {

// The inner loops for this CPU: its widest instruction set, or the one chosen by vs_kernels_cpu_set_isa.
const SimdKernels& simd();

}  // namespace vs_kernels
