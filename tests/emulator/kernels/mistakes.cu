// Mistakes that need no reduction around them, each beside what would have been right.
#include "test.h"

__device__ unsigned global_thread() { return blockIdx.x * blockDim.x + threadIdx.x; }

// Neighbours of a warp exchange values through shared memory.
template <bool synchronised> __device__ void warp_exchange(const TestParams &params) {
    SHARED_ARRAY(float, values, 32);
    const unsigned lane = threadIdx.x;
    values[lane] = static_cast<const float *>(params.input)[lane];
    if (synchronised) __syncwarp();
    static_cast<float *>(params.output)[lane] = values[lane ^ 1];
}

KERNEL(test_warp_exchange, 32, TestParams, warp_exchange<true>)
KERNEL(test_warp_exchange_unsynchronised, 32, TestParams, warp_exchange<false>)

// Half of a warp synchronises and exchanges; with `too_wide` it reads what the other half wrote.
template <bool too_wide> __device__ void half_warp_exchange(const TestParams &params) {
    SHARED_ARRAY(float, values, 32);
    const unsigned lane = threadIdx.x;
    values[lane] = static_cast<const float *>(params.input)[lane];
    __syncwarp(lane < 16 ? 0x0000ffffu : 0xffff0000u);
    static_cast<float *>(params.output)[lane] = values[lane ^ (too_wide ? 16 : 15)];
}

KERNEL(test_half_warp_exchange, 32, TestParams, half_warp_exchange<false>)
KERNEL(test_half_warp_exchange_too_wide, 32, TestParams, half_warp_exchange<true>)

// A value that thread 0 replaces while others may still read it.
template <bool synchronised> __device__ void replace(const TestParams &params) {
    SHARED_ARRAY(float, value, 1);
    if (threadIdx.x == 0) value[0] = 1.0f;
    __syncthreads();
    const float seen = value[0];
    if (synchronised) __syncthreads();
    if (threadIdx.x == 0) value[0] = 2.0f;
    static_cast<float *>(params.output)[global_thread()] = seen;
}

KERNEL(test_replace, 128, TestParams, replace<true>)
KERNEL(test_replace_unsynchronised, 128, TestParams, replace<false>)

// Packs of four floats from element `argument` on.
__device__ void packs_from(const TestParams &params) {
    const float *input = static_cast<const float *>(params.input) + params.argument;
    float *output = static_cast<float *>(params.output) + params.argument;
    store_pack(output + 4 * threadIdx.x, load_pack<4>(input + 4 * threadIdx.x));
}

KERNEL(test_packs_from, 32, TestParams, packs_from)

// A workspace of one float a thread.
__device__ void fill_workspace(const TestParams &params) {
    static_cast<float *>(params.workspace)[global_thread()] = 1.0f;
}

KERNEL(test_fill_workspace, 64, TestParams, fill_workspace)

// Every thread writes the same element.
__device__ void same_element(const TestParams &params) {
    static_cast<float *>(params.output)[0] = static_cast<float>(global_thread());
}

KERNEL(test_same_element, 64, TestParams, same_element)

// Single bytes, a different one for every thread: no race.
__device__ void neighbouring_bytes(const TestParams &params) {
    SHARED_ARRAY(unsigned char, flags, 64);
    flags[threadIdx.x] = threadIdx.x % 2;
    __syncthreads();
    static_cast<unsigned char *>(params.output)[threadIdx.x] = flags[63 - threadIdx.x];
}

KERNEL(test_neighbouring_bytes, 64, TestParams, neighbouring_bytes)

// The dynamic shared array, `argument` floats from its start on.
__device__ void dynamic_shared_at(const TestParams &params) {
    float *values = block_shared<float>();
    values[params.argument + threadIdx.x] = 1.0f;
    static_cast<float *>(params.output)[threadIdx.x] = values[params.argument + threadIdx.x];
}

KERNEL(test_dynamic_shared_at, 32, TestParams, dynamic_shared_at)

// A streaming access takes global memory only.
__device__ void streaming_shared(const TestParams &params) {
    SHARED_ARRAY(float, values, 32);
    store_pack_global(values + threadIdx.x, Pack<float, 1>{{1.0f}}, true);
    static_cast<float *>(params.output)[threadIdx.x] = values[threadIdx.x];
}

KERNEL(test_streaming_shared, 32, TestParams, streaming_shared)

// `argument` elements on from a thread's own in a static array; another array follows.
__device__ void past_static_array(const TestParams &params) {
    SHARED_ARRAY(float, first, 32);
    SHARED_ARRAY(float, second, 32);
    first[threadIdx.x] = 1.0f;
    second[threadIdx.x] = 2.0f;
    const float *element = &first[0] + threadIdx.x + params.argument;
    static_cast<float *>(params.output)[threadIdx.x] = *element + second[threadIdx.x];
}

KERNEL(test_past_static_array, 32, TestParams, past_static_array)

// With `argument` 1 warp 0 alone comes to the barrier, and warp 1 waits for it in a loop.
__device__ void spin_for_ever(const TestParams &params) {
    if (threadIdx.x >= 32)
        while (atomicAdd(params.counter, 0) == 0) {
        }
    __syncthreads();
    if (threadIdx.x == 0) atomicExch(params.counter, 1);
}

KERNEL(test_spin_for_ever, 64, TestParams, spin_for_ever)

// A loop that touches no memory.
__device__ void loop_for_ever(const TestParams &params) {
    uint64_t number = params.count;
    while (number != 1) number = number % 2 ? 3 * number + 1 : number / 2 + number % 4;
    static_cast<uint64_t *>(params.output)[0] = number;
}

KERNEL(test_loop_for_ever, 32, TestParams, loop_for_ever)

// A barrier in one warp, a shuffle in the other that names a lane which is at the barrier.
__device__ void deadlock(const TestParams &params) {
    float value = 1.0f;
    if (threadIdx.x < 8)
        __syncthreads();
    else
        value = __shfl_xor_sync(0xffffffffu, value, 1);
    static_cast<float *>(params.output)[threadIdx.x] = value;
}

KERNEL(test_deadlock, 64, TestParams, deadlock)

// One float a thread is copied.
template <bool waits> __device__ void copy_early(const TestParams &params) {
    if (waits) wait_for_launch_before();
    static_cast<float *>(params.output)[global_thread()] =
        static_cast<const float *>(params.input)[global_thread()];
}

KERNEL(test_copy_early, 64, TestParams, copy_early<true>)
KERNEL(test_copy_early_without_waiting, 64, TestParams, copy_early<false>)

// The parameters are the launch's, not the kernel's.
__device__ void write_params(const TestParams &params) {
    const_cast<TestParams &>(params).count = 0;
    static_cast<uint64_t *>(params.output)[threadIdx.x] = params.count;
}

KERNEL(test_write_params, 32, TestParams, write_params)

// A flag that one block sets and the other reads, without atomics.
__device__ void plain_flag(const TestParams &params) {
    volatile unsigned *flag = params.counter;
    if (blockIdx.x == 0)
        *flag = 1;
    else
        static_cast<unsigned *>(params.output)[threadIdx.x] = *flag;
}

KERNEL(test_plain_flag, 32, TestParams, plain_flag)
