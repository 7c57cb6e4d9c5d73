// Sums, each with the bugs that such kernels have. A bug is a template parameter, so that the
// kernel with it differs in nothing else.
#include "test.h"

enum Bug {
    none,
    no_barrier,             // between the warps' sums and their reader
    no_barrier_before_reuse,  // of the shared array, for the next sum
    half_mask,              // a shuffle that names half of the lanes, called by all
    divergent_shuffle,      // a shuffle in a branch that half of the lanes take
    no_fence,               // between the partial result and the counter
    no_fence_by_reader,     // between the counter and the partial results
    no_barrier_before_counter,
    no_counter,             // the first block takes itself for the last
    one_too_far,            // reads one element behind the input
    uninitialised,          // one warp's sum is never written
    lost_lane,              // a lane returns while the others wait for it in a barrier: no bug
};

template <Bug bug> __device__ float warp_sum(float value) {
    for (int step = 16; step > 0; step /= 2) {
        if (bug == half_mask) {
            value += __shfl_xor_sync(0x0000ffffu, value, step);
        } else if (bug == divergent_shuffle) {
            // The upper half waits for the lower, which never comes.
            if (threadIdx.x % 32 < 16)
                value += __shfl_xor_sync(0x0000ffffu, value, step & 15);
            else
                value += __shfl_xor_sync(0xffffffffu, value, step);
        } else {
            value += __shfl_xor_sync(0xffffffffu, value, step);
        }
    }
    return value;
}

// The sum over the block, in every thread.
template <Bug bug> __device__ float block_sum(float value) {
    SHARED_ARRAY(float, sums, 32);
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    value = warp_sum<bug>(value);
    const bool writes = bug == uninitialised ? warp + 1 < warps : true;
    if (lane == 0 && writes) sums[warp] = value;
    if (bug != no_barrier) __syncthreads();
    value = warp_sum<none>(lane < warps ? sums[lane] : 0.0f);
    if (bug != no_barrier_before_reuse) __syncthreads();
    return value;
}

// In each block `argument` sums, one after the other: of the input, of twice the input, ...
template <Bug bug> __device__ void block_sums(const TestParams &params) {
    const float *input = static_cast<const float *>(params.input);
    float *output = static_cast<float *>(params.output) + blockIdx.x * params.argument;
    if (bug == lost_lane && threadIdx.x == 5) return;
    for (uint64_t round = 0; round < params.argument; ++round) {
        float value = 0.0f;
        const uint64_t end = params.count + (bug == one_too_far);
        for (uint64_t i = threadIdx.x; i < end; i += blockDim.x) value += (round + 1) * input[i];
        if (bug == lost_lane) {
            __syncthreads();
            if (threadIdx.x == 0) output[round] = value;
            continue;
        }
        value = block_sum<bug>(value);
        if (threadIdx.x == 0) output[round] = value;
    }
}

KERNEL(test_block_sum, 256, TestParams, block_sums<none>)
KERNEL(test_block_sum_no_barrier, 256, TestParams, block_sums<no_barrier>)
KERNEL(test_block_sum_no_barrier_before_reuse, 256, TestParams, block_sums<no_barrier_before_reuse>)
KERNEL(test_block_sum_half_mask, 256, TestParams, block_sums<half_mask>)
KERNEL(test_block_sum_divergent_shuffle, 256, TestParams, block_sums<divergent_shuffle>)
KERNEL(test_block_sum_one_too_far, 256, TestParams, block_sums<one_too_far>)
KERNEL(test_block_sum_uninitialised, 256, TestParams, block_sums<uninitialised>)
KERNEL(test_block_sum_lost_lane, 256, TestParams, block_sums<lost_lane>)

// Each block leaves a partial sum; the last to arrive at the counter adds them up.
template <Bug bug> __device__ void grid_sum(const TestParams &params) {
    SHARED_ARRAY(bool, last, 1);
    const float *input = static_cast<const float *>(params.input);
    float *output = static_cast<float *>(params.output);
    float *partial = static_cast<float *>(params.workspace);
    float value = 0.0f;
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    for (; i < params.count; i += step) value += input[i];
    value = block_sum<none>(value);

    // One partial sum a warp, so that threads other than the counting one have something to fence.
    const unsigned warps = blockDim.x / 32;
    if (threadIdx.x % 32 == 0) partial[blockIdx.x * warps + threadIdx.x / 32] = value / warps;
    if (bug != no_fence) __threadfence();
    if (bug != no_barrier_before_counter) __syncthreads();
    if (threadIdx.x == 0) {
        const unsigned arrived = bug == no_counter ? gridDim.x - 1 - blockIdx.x
                                                   : atomicInc(params.counter, gridDim.x - 1);
        last[0] = arrived == gridDim.x - 1;
    }
    __syncthreads();
    if (!last[0]) return;
    if (bug != no_fence_by_reader) __threadfence();
    value = 0.0f;
    for (unsigned k = threadIdx.x; k < gridDim.x * warps; k += blockDim.x) value += partial[k];
    value = block_sum<none>(value);
    if (threadIdx.x == 0) output[0] = value;
}

KERNEL(test_grid_sum, 128, TestParams, grid_sum<none>)
KERNEL(test_grid_sum_no_fence, 128, TestParams, grid_sum<no_fence>)
KERNEL(test_grid_sum_no_fence_by_reader, 128, TestParams, grid_sum<no_fence_by_reader>)
KERNEL(test_grid_sum_no_barrier_before_counter, 128, TestParams,
       grid_sum<no_barrier_before_counter>)
KERNEL(test_grid_sum_no_counter, 128, TestParams, grid_sum<no_counter>)

// The other order: all write, a barrier, and the counting thread alone fences.
template <Bug bug> __device__ void grid_sum_one_fence(const TestParams &params) {
    SHARED_ARRAY(bool, last, 1);
    const float *input = static_cast<const float *>(params.input);
    float *partial = static_cast<float *>(params.workspace);
    const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    partial[at] = input[at];
    __syncthreads();
    if (threadIdx.x == 0) {
        if (bug != no_fence) __threadfence();
        last[0] = atomicAdd(params.counter, 1) == gridDim.x - 1;
        if (bug != no_fence_by_reader) __threadfence();
    }
    __syncthreads();
    if (!last[0]) return;
    float value = 0.0f;
    for (unsigned k = threadIdx.x; k < gridDim.x * blockDim.x; k += blockDim.x) value += partial[k];
    value = block_sum<none>(value);
    if (threadIdx.x != 0) return;
    static_cast<float *>(params.output)[0] = value;
    *params.counter = 0;
}

KERNEL(test_grid_sum_one_fence, 128, TestParams, grid_sum_one_fence<none>)
KERNEL(test_grid_sum_one_fence_no_fence, 128, TestParams, grid_sum_one_fence<no_fence>)
KERNEL(test_grid_sum_one_fence_no_fence_by_reader, 128, TestParams,
       grid_sum_one_fence<no_fence_by_reader>)
