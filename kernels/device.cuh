// All that is hardware. Each thing has two bodies: CUDA and PTX for a GPU, and a call into
// tests/emulator for a CPU. Kernels use this file and plain CUDA, with no inline assembly, no
// architecture test and no raw __shared__ of their own.
//
// The GPU side includes nothing, so that NVRTC needs no header at all.
#pragma once

#ifdef WARPNORM_EMULATOR
#include "cuda_on_cpu.h"
#else
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
typedef long long int64_t;
typedef unsigned long size_t;
#endif

// ---- entry points -----------------------------------------------------------------------------

// KERNEL(name, threads, ParamsType, function): the entry point `name`, launched with one struct by
// value and at most `threads` threads a block. The function comes last so that it may be a template
// instance with commas in it. KERNEL_BLOCKS: the same, with registers for at least `blocks` blocks
// on a multiprocessor; one is enough elsewhere, since asked for more, ptxas spills.
#define KERNEL(name, threads, ParamsType, ...) KERNEL_BLOCKS(name, threads, 1, ParamsType, __VA_ARGS__)
#ifdef WARPNORM_EMULATOR
#define KERNEL_BLOCKS(name, threads, blocks, ParamsType, ...)                                      \
    static void name(const void *params) {                                                         \
        __VA_ARGS__(*static_cast<const ParamsType *>(params));                                     \
    }                                                                                              \
    static const emulator::Registration name##_registration(#name, name, sizeof(ParamsType),       \
                                                            threads);
#else
// __grid_constant__: read from the constant bank, never copied to local memory.
#define KERNEL_BLOCKS(name, threads, blocks, ParamsType, ...)                                      \
    extern "C" __global__ __launch_bounds__(threads, blocks) void name(                            \
        const __grid_constant__ ParamsType params) {                                               \
        __VA_ARGS__(params);                                                                       \
    }
#endif

// ---- shared memory ----------------------------------------------------------------------------

// SHARED_ARRAY(T, name, count): an array that the threads of a block share, aligned to 16 bytes. A
// T with a comma in it needs an alias.
#ifdef WARPNORM_EMULATOR
#define SHARED_ARRAY(T, name, count)                                                               \
    static const char name##_site = 0;                                                             \
    T(&name)[count] = *static_cast<T(*)[count]>(                                                   \
        emulator::shared_array(&name##_site, sizeof(T) * (count), alignof(T)))
#else
#define SHARED_ARRAY(T, name, count) __shared__ __align__(16) T name[count]
#endif

// The launch's dynamic shared memory, aligned to 16 bytes.
template <class T> __device__ __forceinline__ T *block_shared() {
#ifdef WARPNORM_EMULATOR
    return static_cast<T *>(emulator::dynamic_shared());
#else
    extern __shared__ __align__(16) unsigned char warpnorm_dynamic_shared[];
    return reinterpret_cast<T *>(warpnorm_dynamic_shared);
#endif
}

// ---- what the compiler is not to do -----------------------------------------------------------

// The value, of which the compiler no longer knows that it is the same in each round of a loop: what is
// made of it is made anew there, and takes no register from one round to the next.
__device__ __forceinline__ unsigned anew(unsigned value) {
#ifndef WARPNORM_EMULATOR
    asm volatile("" : "+r"(value));
#endif
    return value;
}

// The value, which is not to be made anew in a loop, though the compiler knows how.
__device__ __forceinline__ uint64_t kept(uint64_t value) {
#ifndef WARPNORM_EMULATOR
    asm volatile("" : "+l"(value));
#endif
    return value;
}

// Loads from shared memory stay on their side of it: the assembler would begin with all of a long
// stretch, and spill. All lanes of a warp come here.
__device__ __forceinline__ void hold_loads() {
#ifndef WARPNORM_EMULATOR
    __syncwarp();
#endif
}

// ---- 16-bit elements: storage only, arithmetic is in float ------------------------------------

struct half_t {
    uint16_t bits;
};

struct bf16_t {
    uint16_t bits;
};

__device__ __forceinline__ float to_float(float value) { return value; }

__device__ __forceinline__ float to_float(bf16_t value) {
    return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}

// Exact. What becomes of a NaN's payload is not promised.
__device__ __forceinline__ float to_float(half_t value) {
#ifdef WARPNORM_EMULATOR
    return emulator::half_to_float(value.bits);
#else
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
#endif
}

// The larger one; NaN if either is.
__device__ __forceinline__ float max_or_nan(float a, float b) {
#if !defined(WARPNORM_EMULATOR) && __CUDA_ARCH__ >= 800
    float result;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
    return result;
#else
    return a <= b || b != b ? b : a;
#endif
}

// 2^value, off by 2 of the last places at most. What would be subnormal is 0.
__device__ __forceinline__ float exp2_approx(float value) {
#ifdef WARPNORM_EMULATOR
    return emulator::exp2_approx(value);
#else
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
#endif
}

// 1 / value, off by 1 of the last places at most.
__device__ __forceinline__ float reciprocal_approx(float value) {
#ifdef WARPNORM_EMULATOR
    return emulator::reciprocal_approx(value);
#else
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
#endif
}

// Rounds to nearest even; every NaN becomes 0x7fff, as the hardware's does.
template <class T> __device__ T from_float(float value);

template <> __device__ __forceinline__ float from_float<float>(float value) { return value; }

template <> __device__ __forceinline__ half_t from_float<half_t>(float value) {
#ifdef WARPNORM_EMULATOR
    return half_t{emulator::float_to_half(value)};
#else
    half_t result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
#endif
}

template <> __device__ __forceinline__ bf16_t from_float<bf16_t>(float value) {
#if !defined(WARPNORM_EMULATOR) && __CUDA_ARCH__ >= 800
    bf16_t result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
#else
    const uint32_t bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16_t{0x7fff};
    // Just under half of the last place kept, and one more where that place is odd.
    const uint32_t rounding = 0x7fffu + ((bits >> 16) & 1u);
    return bf16_t{static_cast<uint16_t>((bits + rounding) >> 16)};
#endif
}

// A 16-bit element: f16 or bf16, as the launch says.
struct b16_t {
    uint16_t bits;
};

// ---- packs: N neighbouring elements in one access ---------------------------------------------

template <class T, int N, bool IN_WORDS = (sizeof(T) == 2 && N > 1)>
struct __align__(sizeof(T) * N) Pack {
    T values[N];

    __device__ T get(int i) const { return values[i]; }
    __device__ void set(int i, T value) { values[i] = value; }
};

// 16-bit elements stay in the words that they come in: taken apart, they would be a register each.
template <class T, int N> struct __align__(2 * N) Pack<T, N, true> {
    uint32_t words[N / 2];

    __device__ T get(int i) const { return T{(uint16_t)(words[i / 2] >> 16 * (i % 2))}; }
    __device__ void set(int i, T value) {
        const unsigned shift = 16 * (i % 2);
        words[i / 2] = (words[i / 2] & ~(0xffffu << shift)) | (uint32_t)value.bits << shift;
    }
};

// One instruction moves a pack: `bytes` is 2, 4 or 16, and the address a multiple of it.
// `streaming` marks data in global memory that is not read again, so that it does not displace what
// is. `load_pack_if` gives zeros for what is not there, in global memory and without a branch:
// where branches meet, the compiler takes 16-bit elements apart, and so each load would be waited for
// before the next one begins.
#ifdef WARPNORM_EMULATOR

template <int N, class T>
EMULATOR_ONE_ACCESS Pack<T, N> load_pack(const T *address) {
    emulator::pack_read(address, sizeof(T) * N, EMULATOR_CALLER);
    return *reinterpret_cast<const Pack<T, N> *>(address);
}

template <int N, class T>
EMULATOR_ONE_ACCESS Pack<T, N> load_pack_if(bool is_there, const T *address) {
    emulator::require_global(address);
    if (!is_there) return {};
    emulator::pack_read(address, sizeof(T) * N, EMULATOR_CALLER);
    return *reinterpret_cast<const Pack<T, N> *>(address);
}

template <int N, class T>
EMULATOR_ONE_ACCESS void store_pack(T *address, const Pack<T, N> &pack) {
    emulator::pack_write(address, sizeof(T) * N, EMULATOR_CALLER);
    *reinterpret_cast<Pack<T, N> *>(address) = pack;
}

template <int N, class T>
EMULATOR_ONE_ACCESS void store_pack_global(T *address, const Pack<T, N> &pack, bool) {
    emulator::require_global(address);
    emulator::pack_write(address, sizeof(T) * N, EMULATOR_CALLER);
    *reinterpret_cast<Pack<T, N> *>(address) = pack;
}

#else

// The unsigned types that one load or store moves.
template <int bytes> struct PackBits;
template <> struct PackBits<2> { typedef uint16_t type; };
template <> struct PackBits<4> { typedef uint32_t type; };
template <> struct PackBits<16> { typedef uint4 type; };

// "memory", on loads too: the input of a call in place is overwritten by the same kernel.
__device__ __forceinline__ void load_if(bool is_there, uint16_t &bits, const uint16_t *address) {
    asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; @p ld.global.u16 %0, [%1];}"
                 : "+h"(bits)
                 : "l"(address), "r"((uint32_t)is_there)
                 : "memory");
}

__device__ __forceinline__ void load_if(bool is_there, uint32_t &bits, const uint32_t *address) {
    asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; @p ld.global.u32 %0, [%1];}"
                 : "+r"(bits)
                 : "l"(address), "r"((uint32_t)is_there)
                 : "memory");
}

__device__ __forceinline__ void load_if(bool is_there, uint4 &bits, const uint4 *address) {
    asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p ld.global.v4.u32 {%0, %1, %2, %3}, [%4];}"
                 : "+r"(bits.x), "+r"(bits.y), "+r"(bits.z), "+r"(bits.w)
                 : "l"(address), "r"((uint32_t)is_there)
                 : "memory");
}

// Spelled out with and without the hint: where branches meet, the compiler moves a word at a time.
#define STORES_OF_BITS(name, instruction)                                                          \
    __device__ __forceinline__ void name(uint16_t *address, uint16_t bits) {                       \
        asm volatile(instruction ".u16 [%0], %1;" ::"l"(address), "h"(bits) : "memory");           \
    }                                                                                              \
    __device__ __forceinline__ void name(uint32_t *address, uint32_t bits) {                       \
        asm volatile(instruction ".u32 [%0], %1;" ::"l"(address), "r"(bits) : "memory");           \
    }                                                                                              \
    __device__ __forceinline__ void name(uint4 *address, uint4 bits) {                             \
        asm volatile(instruction ".v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(bits.x),    \
                     "r"(bits.y), "r"(bits.z), "r"(bits.w)                                         \
                     : "memory");                                                                  \
    }
STORES_OF_BITS(store_bits, "st.global")
STORES_OF_BITS(store_bits_streaming, "st.global.cs")

// A pack and the bits that move it, without a detour through local memory.
template <class T, int N> union PackCast {
    typedef typename PackBits<sizeof(T) * N>::type Bits;
    Bits bits;
    Pack<T, N> pack;
};

template <int N, class T> __device__ __forceinline__ Pack<T, N> load_pack(const T *address) {
    typedef PackCast<T, N> Cast;
    Cast cast;
    cast.bits = *reinterpret_cast<const typename Cast::Bits *>(address);
    return cast.pack;
}

template <int N, class T>
__device__ __forceinline__ Pack<T, N> load_pack_if(bool is_there, const T *address) {
    typedef PackCast<T, N> Cast;
    Cast cast;
    cast.bits = {};
    load_if(is_there, cast.bits, reinterpret_cast<const typename Cast::Bits *>(address));
    return cast.pack;
}

template <int N, class T>
__device__ __forceinline__ void store_pack(T *address, const Pack<T, N> &pack) {
    typedef PackCast<T, N> Cast;
    Cast cast;
    cast.pack = pack;
    *reinterpret_cast<typename Cast::Bits *>(address) = cast.bits;
}

template <int N, class T>
__device__ __forceinline__ void store_pack_global(T *address, const Pack<T, N> &pack, bool streaming) {
    typedef PackCast<T, N> Cast;
    Cast cast;
    cast.pack = pack;
    auto *to = reinterpret_cast<typename Cast::Bits *>(address);
    if (streaming) store_bits_streaming(to, cast.bits);
    else store_bits(to, cast.bits);
}

#endif

// ---- packs as fp32 ----------------------------------------------------------------------------

// Whether only the launch knows what an element is.
template <class T> constexpr bool IS_TOLD = false;
template <> constexpr bool IS_TOLD<b16_t> = true;

// COUNT elements as fp32: `element(i)` is the i-th. Where the launch says what they are, they go
// together: one branch, the same for all threads.
template <int COUNT, class Element>
__device__ __forceinline__ void to_floats(unsigned is_bf16, const Element &element,
                                          float (&floats)[COUNT]) {
    if constexpr (!IS_TOLD<decltype(element(0))>) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) floats[i] = to_float(element(i));
    } else if (is_bf16) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) floats[i] = to_float(bf16_t{element(i).bits});
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) floats[i] = to_float(half_t{element(i).bits});
    }
}

// A pack's elements from `first` on.
template <int COUNT, class T, int N>
__device__ __forceinline__ void to_floats(unsigned is_bf16, const Pack<T, N> &pack, int first,
                                          float (&floats)[COUNT]) {
    to_floats(is_bf16, [&](int i) { return pack.get(first + i); }, floats);
}

// And back. Two neighbours become a word in one instruction if that is on their side of the branch.
template <class T, int COUNT>
__device__ __forceinline__ void round_to_words(const float (&floats)[COUNT],
                                               uint32_t (&words)[(COUNT + 1) / 2]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        const uint32_t bits = from_float<T>(floats[i]).bits;
        words[i / 2] = i % 2 ? words[i / 2] | bits << 16 : bits;
    }
}

template <int COUNT, class T, int N>
__device__ __forceinline__ void from_floats(unsigned is_bf16, const float (&floats)[COUNT],
                                            int first, Pack<T, N> &pack) {
    if constexpr (!IS_TOLD<T>) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) pack.set(first + i, from_float<T>(floats[i]));
    } else {
        uint32_t words[(COUNT + 1) / 2];
        if (is_bf16) round_to_words<bf16_t>(floats, words);
        else round_to_words<half_t>(floats, words);
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            pack.set(first + i, b16_t{(uint16_t)(words[i / 2] >> 16 * (i % 2))});
        }
    }
}

// ---- copies from global to shared memory that the thread does not wait for --------------------

// What the cache does with the lines of such copies: as usual, or they are the first to leave it.
__device__ __forceinline__ uint64_t cache_policy([[maybe_unused]] bool leaves_first) {
#if !defined(WARPNORM_EMULATOR) && __CUDA_ARCH__ >= 800
    uint64_t usual, first;
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(usual));
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(first));
    return leaves_first ? first : usual;
#else
    return 0;
#endif
}

// Packs in shared memory as the target of such copies.
template <class Item>
struct CopyTarget {
    uint64_t policy;
#ifdef WARPNORM_EMULATOR
    Item *items;
    __device__ CopyTarget(Item *items, bool leaves_first)
        : policy(cache_policy(leaves_first)), items(items) {}
    __device__ Item *at(unsigned i) const { return items + i; }
#else
    // Else the compiler makes it of the launch's shared memory for each copy.
    uint32_t address;
    __device__ CopyTarget(Item *items, bool leaves_first)
        : policy(cache_policy(leaves_first)), address(anew((uint32_t)__cvta_generic_to_shared(items))) {}
    __device__ uint32_t at(unsigned i) const { return address + i * sizeof(Item); }
#endif
};

// Starts copying a pack of 16 bytes, or zeros for what is not there, to the target's i-th place. It must
// not be touched before async_copy_wait has waited for its stage: then this thread may read it, and
// others after a barrier more.
#ifdef WARPNORM_EMULATOR
template <int N, class T>
EMULATOR_ONE_ACCESS void async_copy_pack(const CopyTarget<Pack<T, N>> &to, unsigned i, const T *from,
                                         bool is_there = true) {
    static_assert(sizeof(Pack<T, N>) == 16, "a pack is 16 bytes");
    emulator::async_copy(to.at(i), from, 16, is_there, EMULATOR_CALLER);
}
#else
template <int N, class T>
__device__ __forceinline__ void async_copy_pack(const CopyTarget<Pack<T, N>> &to, unsigned i,
                                                const T *from, bool is_there = true) {
    static_assert(sizeof(Pack<T, N>) == 16, "a pack is 16 bytes");
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(to.at(i)),
                 "l"(from), "r"(is_there ? 16 : 0), "l"(to.policy)
                 : "memory");
#else
    uint4 bits = {};
    load_if(is_there, bits, reinterpret_cast<const uint4 *>(from));
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to.at(i)), "r"(bits.x),
                 "r"(bits.y), "r"(bits.z), "r"(bits.w)
                 : "memory");
#endif
}
#endif

// Ends a stage: the copies that this thread has started since the last one.
__device__ __forceinline__ void async_copy_commit() {
#ifdef WARPNORM_EMULATOR
    emulator::async_copy_commit();
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for all of this thread's stages but the latest ones, of which there may be 3.
__device__ inline void async_copy_wait(unsigned stages) {
#ifdef WARPNORM_EMULATOR
    emulator::async_copy_wait(stages);
#elif __CUDA_ARCH__ >= 800
    switch (stages) {
        case 3: asm volatile("cp.async.wait_group 3;" ::: "memory"); break;
        case 2: asm volatile("cp.async.wait_group 2;" ::: "memory"); break;
        case 1: asm volatile("cp.async.wait_group 1;" ::: "memory"); break;
        default: asm volatile("cp.async.wait_group 0;" ::: "memory");
    }
#endif
}

// ---- thread block clusters --------------------------------------------------------------------

// Blocks of this block's cluster: 1 where the launch asked for none, or the device knows none. Those
// of one cluster are neighbours, and `rank` counts them.
__device__ __forceinline__ unsigned cluster_size() {
#ifdef WARPNORM_EMULATOR
    return emulator::cluster_size();
#elif __CUDA_ARCH__ >= 900
    unsigned size;
    asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(size));
    return size;
#else
    return 1;
#endif
}

__device__ __forceinline__ unsigned cluster_rank() {
#ifdef WARPNORM_EMULATOR
    return emulator::cluster_rank();
#elif __CUDA_ARCH__ >= 900
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
#else
    return 0;
#endif
}

// All threads of the cluster come here before any of them goes on, and then see what the others have
// written, in shared and in global memory. Before the first time other blocks need not have started;
// a block whose shared memory others read must not return before they have come here once more, or
// `leave_cluster`.
__device__ inline void cluster_sync() {
#ifdef WARPNORM_EMULATOR
    emulator::cluster_barrier();
#elif __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#else
    __syncthreads();
#endif
}

// The same at a block's end, where what has been written is nobody's business.
__device__ inline void leave_cluster() {
#ifdef WARPNORM_EMULATOR
    emulator::cluster_barrier();
#elif __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
    asm volatile("barrier.cluster.wait;" ::: "memory");
#endif
}

// Where the cluster's block `rank` has in its shared memory what this block has at `own`: a generic
// address, to be read.
template <class T>
__device__ __forceinline__ const T *map_cluster_shared(const T *own, unsigned rank) {
#ifdef WARPNORM_EMULATOR
    return static_cast<const T *>(emulator::peer_shared(own, rank));
#elif __CUDA_ARCH__ >= 900
    const T *theirs;
    asm("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(own), "r"(rank));
    return theirs;
#else
    return own;
#endif
}

// ---- launches that overlap --------------------------------------------------------------------

// Where the next launch of the stream is one that may begin early, it does when all blocks have come
// here or returned.
__device__ inline void let_next_launch_begin() {
#if !defined(WARPNORM_EMULATOR) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// In a launch that may begin early, before any memory is touched: waits for the end of the one before.
__device__ inline void wait_for_launch_before() {
#ifdef WARPNORM_EMULATOR
    emulator::wait_for_launch_before();
#elif __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ---- waiting for other blocks -----------------------------------------------------------------

// Counts one on, from `last` to 0. Who finds the count by load_and_acquire then sees what this thread has
// written, or seen, before.
__device__ inline void count_and_release(unsigned *counter, unsigned last) {
#ifdef WARPNORM_EMULATOR
    __threadfence();
    atomicInc(counter, last);
#else
    [[maybe_unused]] unsigned before;
    asm volatile("atom.release.gpu.global.inc.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(counter), "r"(last)
                 : "memory");
#endif
}

__device__ inline unsigned load_and_acquire(const unsigned *counter) {
#ifdef WARPNORM_EMULATOR
    const unsigned count = emulator::atomic_load(counter);
    __threadfence();
    return count;
#else
    unsigned count;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
    return count;
#endif
}

// In every loop that waits for another block.
__device__ inline void spin_pause() {
#ifdef WARPNORM_EMULATOR
    emulator::spin_pause();
#else
    __nanosleep(20);
#endif
}

// About so long.
__device__ inline void pause([[maybe_unused]] unsigned nanoseconds) {
#ifndef WARPNORM_EMULATOR
    __nanosleep(nanoseconds);
#endif
}
