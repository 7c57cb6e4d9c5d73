// CUDA C++ for g++: what a kernel may use of the language and its intrinsics. kernels/device.cuh
// includes this file in place of what NVRTC has built in. Only kernels see it: its macros are too
// bold for the emulator's own files.
#pragma once

#include <math.h>
#include <string.h>

#include <type_traits>

#include "interface.h"

// ---- keywords ---------------------------------------------------------------------------------

#define __global__
#define __device__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)
#define __grid_constant__

// A function that reports its access itself, as one: the compiler would split it. Never inlined,
// so that its caller's address tells one place in a kernel from another.
#define EMULATOR_ONE_ACCESS __attribute__((noinline, no_sanitize("thread")))
#define EMULATOR_CALLER __builtin_return_address(0)

// ---- where a thread is ------------------------------------------------------------------------

#define threadIdx (::emulator::thread_index())
#define blockIdx (::emulator::block_index())
#define blockDim (::emulator::block_size())
#define gridDim (::emulator::grid_size())

// ---- barriers, fences, warp collectives -------------------------------------------------------

static inline void __syncthreads() { emulator::block_barrier(); }
static inline void __threadfence() { emulator::fence(); }

static inline void __syncwarp(unsigned mask = 0xffffffffu) {
    emulator::warp_collective(emulator::Collective::sync, mask, 0, 0, 0, 32);
}

namespace emulator {

template <class T>
T shuffle_value(Collective operation, unsigned mask, T value, unsigned argument, unsigned width) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 32 or 64 bits");
    static_assert(std::is_arithmetic<T>::value, "shuffles move numbers");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    bits = warp_collective(operation, mask, bits, sizeof(T), argument, width);
    memcpy(&value, &bits, sizeof(T));
    return value;
}

}  // namespace emulator

template <class T> T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
    return emulator::shuffle_value(emulator::Collective::shuffle, mask, value, lane, width);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    return emulator::shuffle_value(emulator::Collective::shuffle_xor, mask, value, lanes, width);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    return emulator::shuffle_value(emulator::Collective::shuffle_down, mask, value, by, width);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    return emulator::shuffle_value(emulator::Collective::shuffle_up, mask, value, by, width);
}

static inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return static_cast<unsigned>(emulator::warp_collective(emulator::Collective::ballot, mask,
                                                           predicate != 0, 0, 0, 32));
}
static inline int __any_sync(unsigned mask, int predicate) {
    return __ballot_sync(mask, predicate) != 0;
}
static inline int __all_sync(unsigned mask, int predicate) {
    return __ballot_sync(mask, !predicate) == 0;
}

// ---- atomics ----------------------------------------------------------------------------------

// Inline in all circumstances: the address of the call is what tells atomics apart in counters.
#define EMULATOR_ATOMIC static inline __attribute__((always_inline))

EMULATOR_ATOMIC unsigned atomicAdd(unsigned *address, unsigned value) {
    return emulator::atomic(emulator::Atomic::add, address, value, 0);
}
EMULATOR_ATOMIC unsigned atomicInc(unsigned *address, unsigned limit) {
    return emulator::atomic(emulator::Atomic::increment, address, limit, 0);
}
EMULATOR_ATOMIC unsigned atomicExch(unsigned *address, unsigned value) {
    return emulator::atomic(emulator::Atomic::exchange, address, value, 0);
}
EMULATOR_ATOMIC unsigned atomicCAS(unsigned *address, unsigned compared, unsigned value) {
    return emulator::atomic(emulator::Atomic::compare_exchange, address, value, compared);
}
EMULATOR_ATOMIC unsigned atomicMax(unsigned *address, unsigned value) {
    return emulator::atomic(emulator::Atomic::maximum, address, value, 0);
}

// ---- numbers ----------------------------------------------------------------------------------

static inline unsigned __float_as_uint(float value) { return emulator::same_bits<unsigned>(value); }
static inline float __uint_as_float(unsigned bits) { return emulator::same_bits<float>(bits); }
static inline int __float_as_int(float value) { return emulator::same_bits<int>(value); }
static inline float __int_as_float(int bits) { return emulator::same_bits<float>(bits); }
static inline long long __double_as_longlong(double value) {
    return emulator::same_bits<long long>(value);
}

// As CUDA's: of two unlike types the common one, and a NaN loses against a number.
template <class A, class B> typename std::common_type<A, B>::type min(A a, B b) {
    typedef typename std::common_type<A, B>::type T;
    const T x = a, y = b;
    if constexpr (std::is_floating_point<T>::value) return fmin(x, y);
    return y < x ? y : x;
}
template <class A, class B> typename std::common_type<A, B>::type max(A a, B b) {
    typedef typename std::common_type<A, B>::type T;
    const T x = a, y = b;
    if constexpr (std::is_floating_point<T>::value) return fmax(x, y);
    return x < y ? y : x;
}

static inline float __fadd_rd(float a, float b) { return emulator::add_down(a, b); }
static inline float __fadd_ru(float a, float b) { return -emulator::add_down(-a, -b); }

static inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
static inline int __ffs(int bits) { return __builtin_ffs(bits); }
static inline int __clz(int bits) { return bits ? __builtin_clz(bits) : 32; }

// ---- what no kernel may use -------------------------------------------------------------------

// Approximate functions: invstd is correctly rounded. Where an approximation will do, device.cuh has it,
// and the emulator shows its error.
#pragma GCC poison rsqrtf __frsqrt_rn __fdividef __expf __exp10f __logf __powf __sinf __cosf
// It means nothing where lanes run independently, as they do on a GPU too.
#pragma GCC poison __activemask
// g++ cannot give each block its own: SHARED_ARRAY and block_shared can.
#pragma GCC poison __shared__
