// Its namesake in the other file does something else.
#include "test.h"

template <int N> __device__ void namesake(const TestParams &params) {
    static_cast<float *>(params.output)[threadIdx.x] = N * 1.0f;
}

KERNEL(test_namesake_a, 32, TestParams, namesake<10>)
