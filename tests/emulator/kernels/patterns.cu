// Access patterns whose counters are known by hand.
#include "test.h"

// One float a thread, `argument` floats apart.
__device__ void strided_copy(const TestParams &params) {
    const uint64_t at = (static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x) *
                        params.argument;
    static_cast<float *>(params.output)[at] = static_cast<const float *>(params.input)[at];
}

KERNEL(test_strided_copy, 64, TestParams, strided_copy)

// `count` floats a thread, one after the other, of rows of 32.
__device__ void column_sums(const TestParams &params) {
    const float *input = static_cast<const float *>(params.input);
    float sum = 0.0f;
    for (uint64_t row = 0; row < params.count; ++row) sum += input[row * 32 + threadIdx.x];
    static_cast<float *>(params.output)[threadIdx.x] = sum;
}

KERNEL(test_column_sums, 32, TestParams, column_sums)

// Packs of 16-bit elements, moved as they are.
__device__ void half_packs(const TestParams &params) {
    const half_t *input = static_cast<const half_t *>(params.input);
    half_t *output = static_cast<half_t *>(params.output);
    const uint64_t at = (static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    store_pack(output + at, load_pack<8>(input + at));
}

KERNEL(test_half_packs, 64, TestParams, half_packs)

// One store to shared memory, `argument` elements apart, and a barrier for every `count`.
template <class T> __device__ void shared_stride(const TestParams &params) {
    T *values = block_shared<T>();
    values[threadIdx.x * params.argument] = T(1);
    for (uint64_t i = 0; i < params.count; ++i) __syncthreads();
}

KERNEL(test_shared_stride_float, 32, TestParams, shared_stride<float>)
KERNEL(test_shared_stride_double, 32, TestParams, shared_stride<double>)

// All lanes load the same word: one wavefront.
__device__ void shared_broadcast(const TestParams &params) {
    SHARED_ARRAY(float, value, 1);
    if (threadIdx.x == 0) value[0] = 1.0f;
    __syncwarp();
    static_cast<float *>(params.output)[threadIdx.x] = value[0];
}

KERNEL(test_shared_broadcast, 32, TestParams, shared_broadcast)

// `count` shuffles a thread: what a switch costs.
__device__ void shuffles(const TestParams &params) {
    unsigned value = threadIdx.x;
    for (uint64_t i = 0; i < params.count; ++i) value += __shfl_xor_sync(0xffffffffu, value, 1);
    static_cast<unsigned *>(params.output)[blockIdx.x * blockDim.x + threadIdx.x] = value;
}

KERNEL(test_shuffles, 256, TestParams, shuffles)
KERNEL(test_nothing, 256, TestParams, [](const TestParams &) {})
