#include "table.h"

const vs_kernels::SimdKernels vs_kernels::avx512_kernels = kTable;
