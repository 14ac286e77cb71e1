// CUDA device code as code of the host: include this first, then the kernels, then call on_host::launch.
//
// One block at a time. A thread of the block is a fiber, switched at each barrier and each warp instruction; or, with
// ON_HOST_THREADS, a thread of the system, for ThreadSanitizer. With ON_HOST_PLANT_RACE barriers do nothing.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef ON_HOST_THREADS
#include <barrier>
#include <thread>
#else
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static

struct float2 {
  float x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};
struct Index3 {
  unsigned x, y, z;
};

namespace on_host {

constexpr unsigned kWarp = 32;
enum class Wait { kNone, kBlock, kWarp, kDone };

inline Index3 block_index, grid_size;
inline std::vector<uint64_t> slots;  // what the lanes of each warp show each other

#ifdef ON_HOST_THREADS

inline thread_local Index3 thread_index;
inline std::unique_ptr<std::barrier<>> block_barrier;
inline std::vector<std::unique_ptr<std::barrier<>>> warp_barriers;

inline void wait_for(Wait what) {
  (what == Wait::kBlock ? *block_barrier : *warp_barriers[thread_index.x / kWarp]).arrive_and_wait();
}

template <class F>
void run_block(unsigned threads, const F& kernel) {
  block_barrier = std::make_unique<std::barrier<>>(threads);
  warp_barriers.clear();
  for (unsigned warp = 0; warp < threads / kWarp; ++warp) {
    warp_barriers.push_back(std::make_unique<std::barrier<>>(kWarp));
  }
  std::vector<std::thread> running;
  for (unsigned i = 0; i < threads; ++i) {
    running.emplace_back([&, i] {
      thread_index = {i, 0, 0};
      kernel();
    });
  }
  for (std::thread& thread : running) thread.join();
}

#else

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(1 << 16);
  Wait wait;
};

inline Index3 thread_index;
inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline void (*run_kernel)(const void*);
inline const void* kernel_of_block;

inline void wait_for(Wait what) {
  const Index3 self = thread_index;
  fibers[self.x].wait = what;
  swapcontext(&fibers[self.x].context, &scheduler);
  thread_index = self;
}

inline void fiber_main() {
  run_kernel(kernel_of_block);
  fibers[thread_index.x].wait = Wait::kDone;
}

// Lets threads [begin, end) go on if all of them wait for each other.
inline bool release(unsigned begin, unsigned end, Wait what) {
  for (unsigned i = begin; i < end; ++i) {
    if (fibers[i].wait != what) return false;
  }
  for (unsigned i = begin; i < end; ++i) fibers[i].wait = Wait::kNone;
  return true;
}

template <class F>
void run_block(unsigned threads, const F& kernel) {
  fibers.resize(threads);
  run_kernel = [](const void* f) { (*static_cast<const F*>(f))(); };
  kernel_of_block = &kernel;
  for (Fiber& fiber : fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = &scheduler;
    fiber.wait = Wait::kNone;
    makecontext(&fiber.context, fiber_main, 0);
  }
  for (bool progress = true; progress;) {
    progress = false;
    // Backwards and forwards, so that nothing holds only because the first lanes go first.
    static bool backwards = false;
    backwards = !backwards;
    for (unsigned at = 0; at < threads; ++at) {
      const unsigned i = backwards ? threads - 1 - at : at;
      if (fibers[i].wait != Wait::kNone) continue;
      thread_index = {i, 0, 0};
      swapcontext(&scheduler, &fibers[i].context);
      progress = true;
    }
    for (unsigned i = 0; i < threads; i += kWarp) progress |= release(i, i + kWarp, Wait::kWarp);
    progress |= release(0, threads, Wait::kBlock);
  }
  for (unsigned i = 0; i < threads; ++i) {
    if (fibers[i].wait != Wait::kDone) {
      throw std::runtime_error("deadlock: thread " + std::to_string(i) + " of block " + std::to_string(block_index.x) +
                               " waits for others that do not come");
    }
  }
}

#endif

template <class F>
void launch(unsigned blocks_x, unsigned blocks_y, unsigned threads, const F& kernel) {
  grid_size = {blocks_x, blocks_y, 1};
  slots.assign(threads, 0);
  for (unsigned y = 0; y < blocks_y; ++y) {
    for (unsigned x = 0; x < blocks_x; ++x) {
      block_index = {x, y, 0};
      run_block(threads, kernel);
    }
  }
}

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) >= sizeof(From));
  To to{};
  std::memcpy(&to, &from, sizeof from);
  return to;
}

// f(values) on the values of all lanes of this warp.
template <class T, class F>
auto with_warp(T value, const F& f) {
  const unsigned self = thread_index.x;
  slots[self] = bits_as<uint64_t>(value);
  wait_for(Wait::kWarp);
  T values[kWarp];
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    std::memcpy(&values[lane], &slots[self / kWarp * kWarp + lane], sizeof(T));
  }
  wait_for(Wait::kWarp);
  return f(values);
}

}  // namespace on_host

#define threadIdx (::on_host::thread_index)
#define blockIdx (::on_host::block_index)
#define gridDim (::on_host::grid_size)

#ifdef ON_HOST_PLANT_RACE
inline void __syncthreads() {}
#else
inline void __syncthreads() { on_host::wait_for(on_host::Wait::kBlock); }
#endif

template <class T>
T __shfl_xor_sync(unsigned, T value, int distance) {
  return on_host::with_warp(value, [&](const T* values) { return values[threadIdx.x % on_host::kWarp ^ distance]; });
}

inline unsigned __ballot_sync(unsigned, bool vote) {
  return on_host::with_warp(vote, [](const bool* votes) {
    unsigned ballot = 0;
    for (unsigned lane = 0; lane < on_host::kWarp; ++lane) ballot |= static_cast<unsigned>(votes[lane]) << lane;
    return ballot;
  });
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline float __uint_as_float(uint32_t bits) { return on_host::bits_as<float>(bits); }
inline uint32_t __float_as_uint(float value) { return on_host::bits_as<uint32_t>(value); }

template <class T>
T __ldcs(const T* address) {
  return *address;
}

// Two numbers of 16 bits, as bits.
struct __nv_bfloat162 {
  uint32_t bits;
};
struct __half2 {
  uint32_t bits;
};

inline uint32_t bfloat16_of(float value) {
  const uint32_t bits = __float_as_uint(value);
  return value != value ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
inline __nv_bfloat162 __floats2bfloat162_rn(float low, float high) {
  return {bfloat16_of(low) | bfloat16_of(high) << 16};
}
inline __half2 __floats2half2_rn(float low, float high) {
  const auto bits = [](float value) -> uint32_t { return on_host::bits_as<uint16_t>(static_cast<_Float16>(value)); };
  return {bits(low) | bits(high) << 16};
}
inline float2 __half22float2(__half2 pair) {
  const auto value = [](uint32_t bits) {
    return static_cast<float>(on_host::bits_as<_Float16>(static_cast<uint16_t>(bits)));
  };
  return {value(pair.bits & 0xffffu), value(pair.bits >> 16)};
}
