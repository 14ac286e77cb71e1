// Memory that a kernel works in: on the stack where it is little, because for a small call the allocator is much.
#pragma once

#include <cstdint>
#include <memory>

namespace vs_kernels {

// `count` entries, not initialised.
template <class T, int64_t kOnStack>
class Scratch {
 public:
  explicit Scratch(int64_t count) : heap_(count > kOnStack ? new T[count] : nullptr), count_(count) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* begin() { return heap_ ? heap_.get() : stack_; }
  T* end() { return begin() + count_; }
  T& operator[](int64_t i) { return begin()[i]; }
  int64_t size() const { return count_; }

 private:
  T stack_[kOnStack];
  std::unique_ptr<T[]> heap_;
  int64_t count_;
};

// Entries, one a score: those of a small image.
constexpr int64_t kStackScores = 1024;

}  // namespace vs_kernels
