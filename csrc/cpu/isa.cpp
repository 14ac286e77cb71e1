#include "isa.h"

#include <atomic>
#include <cstring>

namespace vs_kernels {
namespace {

struct Isa {
  const char* name;
  const SimdKernels* kernels;
  bool supported;
};

// Narrowest first.
const Isa* isas(int* count) {
#if defined(__x86_64__)
  static const Isa table[] = {
      {"baseline", &baseline_kernels, true},
      {"avx2", &avx2_kernels, static_cast<bool>(__builtin_cpu_supports("x86-64-v3"))},
      {"avx512", &avx512_kernels, static_cast<bool>(__builtin_cpu_supports("x86-64-v4"))},
  };
#else
  static const Isa table[] = {{"baseline", &baseline_kernels, true}};
#endif
  *count = sizeof table / sizeof table[0];
  return table;
}

const Isa* widest() {
  int count;
  const Isa* table = isas(&count);
  while (!table[count - 1].supported) --count;
  return &table[count - 1];
}

std::atomic<const Isa*>& chosen() {
  static std::atomic<const Isa*> isa{widest()};
  return isa;
}

}  // namespace

const SimdKernels& simd() { return *chosen().load(std::memory_order_relaxed)->kernels; }

}  // namespace vs_kernels

#define VS_KERNELS_EXPORT extern "C" __attribute__((visibility("default")))

// Name of the instruction set in use: "baseline", "avx2" or "avx512".
VS_KERNELS_EXPORT const char* vs_kernels_cpu_isa() { return vs_kernels::chosen().load()->name; }

// Chooses an instruction set by name, so that tests can run each; 0 on success, 1 where it is unknown or unsupported.
VS_KERNELS_EXPORT int vs_kernels_cpu_set_isa(const char* name) {
  int count;
  const vs_kernels::Isa* table = vs_kernels::isas(&count);
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(table[i].name, name) == 0 && table[i].supported) {
      vs_kernels::chosen().store(&table[i]);
      return 0;
    }
  }
  return 1;
}
