// What the network computes on a GPU beside matrix products and batch normalization. Nothing here
// is clever: a thread for each element, or for each row or column.
#include "device.cuh"

// accelerated.rs has its twin.
struct TrainParams {
    unsigned long long input, output;  // addresses
    unsigned long long rows, columns;
    float rate;
    unsigned nonlinearity;
};

enum { SIGMOID, RELU, TANH };

template <class T> __device__ T *memory(unsigned long long address) {
    return reinterpret_cast<T *>(address);
}

static __device__ uint64_t thread() {
    return static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// output += input, the bias, in every row.
static __device__ void add_bias(const TrainParams &params) {
    const uint64_t i = thread();
    if (i >= params.rows * params.columns) return;
    memory<float>(params.output)[i] += memory<const float>(params.input)[i % params.columns];
}

// output = f(input)
static __device__ void activate(const TrainParams &params) {
    const uint64_t i = thread();
    if (i >= params.rows * params.columns) return;
    const float z = memory<const float>(params.input)[i];
    float y;
    if (params.nonlinearity == SIGMOID) {
        y = 1.0f / (1.0f + expf(-z));
    } else if (params.nonlinearity == RELU) {
        y = z < 0.0f ? 0.0f : z;
    } else {
        y = tanhf(z);
    }
    memory<float>(params.output)[i] = y;
}

// output, dy, becomes dz; input is y.
static __device__ void activation_gradient(const TrainParams &params) {
    const uint64_t i = thread();
    if (i >= params.rows * params.columns) return;
    const float y = memory<const float>(params.input)[i];
    float slope;
    if (params.nonlinearity == SIGMOID) {
        slope = y * (1.0f - y);
    } else if (params.nonlinearity == RELU) {
        slope = y > 0.0f ? 1.0f : 0.0f;
    } else {
        slope = 1.0f - y * y;
    }
    memory<float>(params.output)[i] *= slope;
}

// output, the logits, becomes softmax less 1 at the label; input is labels. A thread for each row.
static __device__ void cross_entropy_gradient(const TrainParams &params) {
    const uint64_t row = thread();
    if (row >= params.rows) return;
    float *values = memory<float>(params.output) + row * params.columns;
    float largest = values[0];
    for (uint64_t c = 1; c < params.columns; ++c) largest = fmaxf(largest, values[c]);
    float sum = 0.0f;
    for (uint64_t c = 0; c < params.columns; ++c) {
        const float power = expf(values[c] - largest);
        values[c] = power;
        sum += power;
    }
    const uint64_t label = memory<const uint8_t>(params.input)[row];
    for (uint64_t c = 0; c < params.columns; ++c) {
        values[c] = values[c] / sum - (c == label ? 1.0f : 0.0f);
    }
}

// output -= rate * input
static __device__ void descend(const TrainParams &params) {
    const uint64_t i = thread();
    if (i >= params.rows * params.columns) return;
    memory<float>(params.output)[i] -= params.rate * memory<const float>(params.input)[i];
}

// output -= rate * the sum of input's rows. A thread for each column.
static __device__ void descend_by_rows(const TrainParams &params) {
    const uint64_t column = thread();
    if (column >= params.columns) return;
    const float *input = memory<const float>(params.input) + column;
    float sum = 0.0f;
    for (uint64_t row = 0; row < params.rows; ++row) sum += input[row * params.columns];
    memory<float>(params.output)[column] -= params.rate * sum;
}

// output = input as another type.
template <class From, class To> __device__ void convert(const TrainParams &params) {
    const uint64_t i = thread();
    if (i >= params.rows * params.columns) return;
    memory<To>(params.output)[i] = from_float<To>(to_float(memory<const From>(params.input)[i]));
}

KERNEL(train_add_bias, 256, TrainParams, add_bias)
KERNEL(train_activate, 256, TrainParams, activate)
KERNEL(train_activation_gradient, 256, TrainParams, activation_gradient)
KERNEL(train_cross_entropy_gradient, 256, TrainParams, cross_entropy_gradient)
KERNEL(train_descend, 256, TrainParams, descend)
KERNEL(train_descend_by_rows, 256, TrainParams, descend_by_rows)
KERNEL(train_narrow_f32, 256, TrainParams, convert<float, float>)
KERNEL(train_narrow_f16, 256, TrainParams, convert<float, half_t>)
KERNEL(train_narrow_bf16, 256, TrainParams, convert<float, bf16_t>)
KERNEL(train_widen_f32, 256, TrainParams, convert<float, float>)
KERNEL(train_widen_f16, 256, TrainParams, convert<half_t, float>)
KERNEL(train_widen_bf16, 256, TrainParams, convert<bf16_t, float>)
