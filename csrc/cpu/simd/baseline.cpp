#include "table.h"

const vs_kernels::SimdKernels vs_kernels::baseline_kernels = kTable;
