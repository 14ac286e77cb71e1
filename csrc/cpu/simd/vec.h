// One vector register of floats, loaded from and stored to float32, bfloat16 or float16.
#pragma once

#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>  // forced-inline functions only: nothing that the linker could merge into other code
#endif

namespace vs_kernels {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#elif defined(__AVX2__)
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t UintVec __attribute__((vector_size(kLanes * 4)));
typedef uint16_t HalfVec __attribute__((vector_size(kLanes * 2)));

#define VS_INLINE [[gnu::always_inline]] inline

VS_INLINE Vec broadcast(float x) { return Vec{} + x; }

VS_INLINE float sum_of_lanes(Vec x) {
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) x[lane] += x[lane + half];
  }
  return x[0];
}

// GCC 12 compiles these two conversions of vectors into several shuffles where one instruction does it.
VS_INLINE UintVec widen(HalfVec bits) {
#if defined(__AVX512F__)
  return (UintVec)_mm512_cvtepu16_epi32((__m256i)bits);
#elif defined(__AVX2__)
  return (UintVec)_mm256_cvtepu16_epi32((__m128i)bits);
#else
  return __builtin_convertvector(bits, UintVec);
#endif
}

VS_INLINE HalfVec narrow(UintVec bits) {
#if defined(__AVX512F__)
  return (HalfVec)_mm512_cvtepi32_epi16((__m512i)bits);
#elif defined(__AVX2__)
  const __m256i halves = _mm256_packus_epi32((__m256i)bits, (__m256i)bits);
  return (HalfVec)_mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 0x08));
#else
  return __builtin_convertvector(bits, HalfVec);
#endif
}

VS_INLINE Vec decode(Vec x, const float*) { return x; }

VS_INLINE Vec decode(HalfVec bits, const BFloat16*) { return (Vec)(widen(bits) << 16); }

VS_INLINE Vec decode(HalfVec half, const Float16*) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps((__m256i)half);
#elif defined(__AVX2__)
  return _mm256_cvtph_ps((__m128i)half);
#else
  const UintVec bits = widen(half);
  // The bits as those of a float32 are the number times 2^-112, also where it is subnormal.
  const UintVec number = (UintVec)((Vec)((bits & 0x7fff) << 13) * 0x1p112f);
  const UintVec special = (UintVec)((bits & 0x7c00) == 0x7c00) & 0x7f800000;
  return (Vec)(number | special | (bits & 0x8000) << 16);
#endif
}

VS_INLINE Vec encode(Vec x, float*) { return x; }

VS_INLINE HalfVec encode(Vec x, BFloat16*) {
  const UintVec bits = (UintVec)x;
  const UintVec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const UintVec nan = (UintVec)(x != x);
  return narrow((rounded & ~nan) | (0x7fc0 & nan));
}

VS_INLINE HalfVec encode(Vec x, Float16*) {
#if defined(__AVX512F__)
  return (HalfVec)_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__AVX2__)
  return (HalfVec)_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
#else
  const UintVec sign = (UintVec)x & 0x80000000;
  const UintVec magnitude = (UintVec)x ^ sign;
  // Where float16 is subnormal its spacing is 2^-24: adding 0.5, whose own spacing that is, rounds to it.
  const UintVec subnormal = (UintVec)((Vec)magnitude + 0.5f) - 0x3f000000;
  const UintVec normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const UintVec is_subnormal = (UintVec)(magnitude < 0x38800000);
  const UintVec is_large = (UintVec)(magnitude >= 0x47800000);
  const UintVec is_nan = (UintVec)(magnitude > 0x7f800000);
  const UintVec number = (subnormal & is_subnormal) | (normal & ~is_subnormal);
  const UintVec bits = (number & ~is_large) | (0x7c00 & is_large) | (0x200 & is_nan);
  return narrow(bits | sign >> 16);
#endif
}

template <class T>
VS_INLINE Vec load(const T* from) {
  decltype(encode(Vec{}, static_cast<T*>(nullptr))) bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return decode(bits, from);
}

template <class T>
VS_INLINE void store(T* to, Vec x) {
  const auto bits = encode(x, to);
  __builtin_memcpy(to, &bits, sizeof bits);
}

// Past the caches, to an aligned address: for results so large that they would only push out what is still needed,
// and which memory then need not read before it writes them.
template <class T>
VS_INLINE void stream(T* to, Vec x) {
#if defined(__x86_64__)
  const auto bits = encode(x, to);
  if constexpr (sizeof bits == 8) {
    _mm_stream_si64(reinterpret_cast<long long*>(to), (long long)bits);
  } else if constexpr (sizeof bits == 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)bits);
#if defined(__AVX2__)
  } else if constexpr (sizeof bits == 32) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)bits);
#endif
#if defined(__AVX512F__)
  } else {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)bits);
#endif
  }
#else
  store(to, x);
#endif
}

// Lines written into the caches are asked for so far ahead: stores alone wait for theirs to arrive.
constexpr int64_t kAheadBytes = 512;

// Entries of a long result.
template <bool kPastCaches, class T>
VS_INLINE void write(T* to, Vec x) {
  if constexpr (kPastCaches) {
    stream(to, x);
  } else {
    __builtin_prefetch(reinterpret_cast<const char*>(to) + kAheadBytes, 1);
    store(to, x);
  }
}

// The first n < kLanes entries, then zeros.
template <class T>
VS_INLINE Vec load_part(const T* from, int64_t n) {
  T entries[kLanes] = {};
  __builtin_memcpy(entries, from, n * sizeof(T));
  return load(entries);
}

template <class T>
VS_INLINE void store_part(T* to, Vec x, int64_t n) {
  T entries[kLanes];
  store(entries, x);
  __builtin_memcpy(to, entries, n * sizeof(T));
}

}  // namespace
}  // namespace vs_kernels
