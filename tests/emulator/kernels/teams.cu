// Blocks that wait for each other, and copies that are waited for: right, and with one thing left
// out.
#include "test.h"

enum Mistake {
    none,
    no_wait,
    never_waited,
    not_committed,
    too_few_stages,
    no_barrier_after,
    no_fence,
    no_fence_after,
    uncounted
};

// Packs of four floats go through shared memory, each by its thread; with `shifted` each thread
// stores what its neighbour has brought.
template <Mistake mistake, bool shifted> __device__ void copies(const TestParams &params) {
    Pack<float, 4> *tile = block_shared<Pack<float, 4>>();
    const unsigned thread = threadIdx.x;
    const CopyTarget<Pack<float, 4>> target(tile, false);
    async_copy_pack(target, thread, static_cast<const float *>(params.input) + 4 * thread);
    if (mistake != not_committed) async_copy_commit();
    if (mistake != no_wait && mistake != never_waited) async_copy_wait(mistake == too_few_stages);
    if (shifted && mistake != no_barrier_after) __syncthreads();
    if (mistake == never_waited) return;
    const unsigned from = shifted ? (thread + 1) % blockDim.x : thread;
    store_pack(static_cast<float *>(params.output) + 4 * thread, load_pack<4>(tile[from].values));
    async_copy_wait(0);
}

KERNEL(test_copies, 64, TestParams, copies<none, false>)
KERNEL(test_copies_no_wait, 64, TestParams, copies<no_wait, false>)
KERNEL(test_copies_not_committed, 64, TestParams, copies<not_committed, false>)
KERNEL(test_copies_too_few_stages, 64, TestParams, copies<too_few_stages, false>)
KERNEL(test_copies_never_waited, 64, TestParams, copies<never_waited, false>)
KERNEL(test_copies_shifted, 64, TestParams, copies<none, true>)
KERNEL(test_copies_shifted_no_barrier, 64, TestParams, copies<no_barrier_after, true>)

// Every block leaves a value, and takes that of the next block when all have.
template <Mistake mistake> __device__ void meet(const TestParams &params) {
    float *workspace = static_cast<float *>(params.workspace);
    if (threadIdx.x == 1) workspace[blockIdx.x] = (float)blockIdx.x;
    __syncthreads();
    if (threadIdx.x == 0) {
        if (mistake != no_fence) __threadfence();
        if (mistake != uncounted || blockIdx.x != 0) atomicAdd(params.counter, 1);
        while (emulator::atomic_load(params.counter) < gridDim.x) spin_pause();
        if (mistake != no_fence_after) __threadfence();
    }
    __syncthreads();
    if (threadIdx.x == 2) {
        static_cast<float *>(params.output)[blockIdx.x] = workspace[(blockIdx.x + 1) % gridDim.x];
    }
}

KERNEL(test_meet, 64, TestParams, meet<none>)
KERNEL(test_meet_no_fence, 64, TestParams, meet<no_fence>)
KERNEL(test_meet_no_fence_after, 64, TestParams, meet<no_fence_after>)
KERNEL(test_meet_uncounted, 64, TestParams, meet<uncounted>)
