#include "table.h"

const vs_kernels::SimdKernels vs_kernels::avx2_kernels = kTable;
