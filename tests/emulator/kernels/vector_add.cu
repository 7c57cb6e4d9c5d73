// output[i] = input[i] + workspace[i], and a few kernels that touch each element once.
#include "test.h"

template <int N> __device__ void vector_add(const TestParams &params) {
    const float *a = static_cast<const float *>(params.input);
    const float *b = static_cast<const float *>(params.workspace);
    float *sum = static_cast<float *>(params.output);
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x * N;
    uint64_t i = (static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
    for (; i < params.count; i += step) {
        const Pack<float, N> x = load_pack_if<N>(true, a + i), y = load_pack<N>(b + i);
        Pack<float, N> z;
        for (int k = 0; k < N; ++k) z.values[k] = x.values[k] + y.values[k];
        store_pack_global(sum + i, z, true);
    }
}

KERNEL(test_vector_add, 256, TestParams, vector_add<1>)
KERNEL(test_vector_add_packs, 256, TestParams, vector_add<4>)

// Without packs: plain loads and stores.
__device__ void plain_add(const TestParams &params) {
    const float *a = static_cast<const float *>(params.input);
    const float *b = static_cast<const float *>(params.workspace);
    float *sum = static_cast<float *>(params.output);
    const uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < params.count) sum[i] = a[i] + b[i];
}

KERNEL(test_plain_add, 1024, TestParams, plain_add)

// Through a 16-bit type and back.
template <class T> __device__ void convert(const TestParams &params) {
    const float *input = static_cast<const float *>(params.input);
    T *narrow = static_cast<T *>(params.workspace);
    float *output = static_cast<float *>(params.output);
    const uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= params.count) return;
    narrow[i] = from_float<T>(input[i]);
    output[i] = to_float(narrow[i]);
}

KERNEL(test_convert_half, 256, TestParams, convert<half_t>)
KERNEL(test_convert_bf16, 256, TestParams, convert<bf16_t>)

// What thread 0 reads at `count` and at 0 it adds up at `count`: rows that lie far apart.
__device__ void far_apart(const TestParams &params) {
    const unsigned char *input = static_cast<const unsigned char *>(params.input);
    unsigned char *output = static_cast<unsigned char *>(params.output);
    if (threadIdx.x == 0) output[params.count] = input[0] + input[params.count];
}

KERNEL(test_far_apart, 32, TestParams, far_apart)
