// Blocks of a cluster that read each other's shared memory: right, and with one thing wrong.
#include "test.h"

enum Mistake {
    none,
    never_met,
    not_met_again,
    returns_early,
    rank_beyond,
    element_beyond,
    nothing_there,
    not_shared,
    writes,
    half_meets,
};

// Every block leaves a value for each thread, and takes that of the next block.
template <Mistake mistake> __device__ void pass_on(const TestParams &params) {
    SHARED_ARRAY(float, values, 64);
    const unsigned thread = threadIdx.x, size = cluster_size();
    const unsigned next = mistake == rank_beyond ? size : (cluster_rank() + 1) % size;
    if (mistake == not_met_again) cluster_sync();
    if (mistake != nothing_there) values[thread] = (float)blockIdx.x;
    if (mistake == half_meets && thread >= 32) __syncthreads();
    if (mistake != never_met && mistake != not_met_again) cluster_sync();
    const float *theirs;
    if (mistake == not_shared) {
        theirs = map_cluster_shared(static_cast<const float *>(params.input), next);
    } else {
        theirs = map_cluster_shared(values, next);
    }
    const unsigned element = mistake == element_beyond ? thread + 1 : thread;
    if (mistake == writes) const_cast<float *>(theirs)[element] = 1.0f;
    static_cast<float *>(params.output)[blockIdx.x * blockDim.x + thread] = theirs[element];
    if (mistake != returns_early) cluster_sync();
}

KERNEL(test_pass_on, 64, TestParams, pass_on<none>)
KERNEL(test_pass_on_never_met, 64, TestParams, pass_on<never_met>)
KERNEL(test_pass_on_not_met_again, 64, TestParams, pass_on<not_met_again>)
KERNEL(test_pass_on_returns_early, 64, TestParams, pass_on<returns_early>)
KERNEL(test_pass_on_rank_beyond, 64, TestParams, pass_on<rank_beyond>)
KERNEL(test_pass_on_element_beyond, 64, TestParams, pass_on<element_beyond>)
KERNEL(test_pass_on_nothing_there, 64, TestParams, pass_on<nothing_there>)
KERNEL(test_pass_on_not_shared, 64, TestParams, pass_on<not_shared>)
KERNEL(test_pass_on_writes, 64, TestParams, pass_on<writes>)
KERNEL(test_pass_on_half_meets, 64, TestParams, pass_on<half_meets>)

// In each of `argument` rounds a block leaves its value and all sum those of all. One meeting a round
// is enough where rounds use two areas in turn, or else a second one.
template <unsigned areas, bool meets_twice> __device__ void sum_rounds(const TestParams &params) {
    SHARED_ARRAY(float, values, areas);
    float sum = 0.0f;
    for (unsigned round = 0; round < params.argument; ++round) {
        float *value = &values[round % areas];
        if (threadIdx.x == 0) *value = (float)(round + cluster_rank());
        cluster_sync();
        for (unsigned rank = 0; rank < cluster_size(); ++rank) sum += *map_cluster_shared(value, rank);
        if (meets_twice) cluster_sync();
    }
    static_cast<float *>(params.output)[blockIdx.x * blockDim.x + threadIdx.x] = sum;
    cluster_sync();
}

KERNEL(test_sum_rounds, 64, TestParams, sum_rounds<2, false>)
KERNEL(test_sum_rounds_one_area, 64, TestParams, sum_rounds<1, true>)
KERNEL(test_sum_rounds_one_area_one_meeting, 64, TestParams, sum_rounds<1, false>)

// A value goes from each block to the next one of its cluster by way of global memory.
template <bool meets> __device__ void pass_on_in_memory(const TestParams &params) {
    float *workspace = static_cast<float *>(params.workspace);
    if (threadIdx.x == 1) workspace[blockIdx.x] = (float)blockIdx.x;
    if (meets) cluster_sync();
    const unsigned size = cluster_size(), first = blockIdx.x - cluster_rank();
    if (threadIdx.x == 2) {
        static_cast<float *>(params.output)[blockIdx.x] =
            workspace[first + (cluster_rank() + 1) % size];
    }
}

KERNEL(test_pass_on_in_memory, 64, TestParams, pass_on_in_memory<true>)
KERNEL(test_pass_on_in_memory_never_met, 64, TestParams, pass_on_in_memory<false>)
