// From x to y and back, element by element: scale and shift, residual, activation, and their
// derivatives.
//
// Arithmetic is fp32. A power of two brings deviations of any size to the size of z.
#pragma once
#include "device.cuh"
#include "moments.cuh"
#include "params.h"

// ---- scale and shift

// 2^exponent, if it and its inverse are normal fp32, else the nearest of which that is true.
__device__ inline float power_of_two(int exponent) {
    return __int_as_float((min(max(exponent, -126), 126) + 127) << 23);
}

// The exponent of the power of two at or below `value` > 0.
__device__ inline int exponent_of(double value) {
    return (int)(__double_as_longlong(value) >> 52) - 1023;
}

// The power of two at or below `value` > 0, as power_of_two has it; 1 for 0.
__device__ inline float power_below(double value) {
    return value > 0.0 ? power_of_two(exponent_of(value)) : 1.0f;
}

// What deviations are taken in units of the inverse of: near invstd, as far as the mean does not
// overflow.
__device__ inline float deviation_power(double invstd, float mean) {
    if (!(invstd > 0.0)) return 1.0f;
    const int exponent = exponent_of(invstd), limit = 126 - exponent_of(fabs((double)mean));
    return power_of_two(min(exponent, limit));
}

__device__ inline float inverse_power(float power) {
    return __int_as_float((254 << 23) - __float_as_int(power));
}

// z = (x * power - mean) * scale + shift, for elements of type T: what is left of its arithmetic is
// about one rounding of fp32, for which fp32 itself needs a scale of two numbers.
template <class T>
struct Coefficients {
    static constexpr bool IS_FINE = sizeof(T) == 4;
    static constexpr int WORDS = IS_FINE ? 5 : 4;
    float power, mean;  // the mean times the power, which is exact
    float scale;        // weight * invstd / power
    float shift;        // bias, less what the mean's rest contributes
    float scale_rest;

    template <class Use>
    __device__ void each_word(const Use &use) {
        use(power), use(mean), use(scale), use(shift);
        if (IS_FINE) use(scale_rest);
    }

    // Of x from the mean, in units of 1 / power: fma rounds as a difference does.
    __device__ float deviation(float x) const { return fmaf(x, power, -mean); }
    // What is added to the scaled deviation.
    __device__ float addend(float deviation) const {
        return IS_FINE ? fmaf(deviation, scale_rest, shift) : shift;
    }
    __device__ float z(float deviation, float addend) const { return fmaf(deviation, scale, addend); }
};

template <class T>
__device__ inline Coefficients<T> coefficients(float mean_hi, float mean_lo, double invstd,
                                               float weight, float bias) {
    Coefficients<T> result;
    result.power = deviation_power(invstd, mean_hi);
    result.mean = mean_hi * result.power;
    const double scale = invstd * inverse_power(result.power) * weight;
    result.scale = (float)scale;
    result.scale_rest = (float)(scale - result.scale);
    result.shift = (float)(bias - mean_lo * (double)result.power * scale);
    return result;
}

// A sum that a 16-bit type can be rounded from as if it had not been rounded before: to odd.
__device__ inline float add_to_odd(float a, float b) {
    float rest;
    const float sum = two_sum(a, b, rest);
    const bool is_even = !(__float_as_int(sum) & 1);
    if (!is_even || !(rest > 0.0f || rest < 0.0f)) return sum;
    return __int_as_float(__float_as_int(sum) + ((rest > 0.0f) == (sum > 0.0f) ? 1 : -1));
}

// What bias and residual add, rounded so that a constant channel's y is rounded once.
template <class T>
__device__ inline float add_residual(float addend, float residual) {
    return sizeof(T) == 4 ? addend + residual : add_to_odd(addend, residual);
}

// The one expression for z, to the bit: forward and backward agree on what an activation cuts off.
template <class T>
__device__ inline float preactivation(const Coefficients<T> &of, float x, bool has_residual,
                                      float residual) {
    const float deviation = of.deviation(x), addend = of.addend(deviation);
    return of.z(deviation, has_residual ? add_residual<T>(addend, residual) : addend);
}

// ---- activations

// Which activations an entry point knows: the two that are everywhere have their own.
enum Kind { IDENTITY, RELU, ANY };

constexpr float SQRT_HALF = 0.70710678f;
constexpr float INV_SQRT_2PI = 0.39894228f;
constexpr float SQRT_2_OVER_PI = 0.79788456f;
constexpr float GELU_CUBIC = 0.044715f;

__device__ inline float sigmoid(float z) {
    const float e = expf(-fabsf(z));
    return (z < 0.0f ? e : 1.0f) / (1.0f + e);
}

// The normal distribution function.
__device__ inline float normal_cdf(float z) { return 0.5f * erfcf(-SQRT_HALF * z); }

// The argument of the logistic function in GELU by tanh.
__device__ inline float gelu_inner(float z) {
    return 2.0f * SQRT_2_OVER_PI * (z * fmaf(GELU_CUBIC * z, z, 1.0f));
}

// Comparisons are such that NaN passes.
__device__ inline float relu(float z) { return max_or_nan(z, 0.0f); }

__device__ inline bool is_cut_by_relu6(float z) { return z <= 0.0f || z >= 6.0f; }

// Apart from its callers, who would else repeat all of it for every element of a pack.
__device__ __noinline__ float activate_any(unsigned activation, float negative_slope, float z) {
    switch (activation) {
        case ACTIVATION_RELU: return relu(z);
        case ACTIVATION_LEAKY_RELU: return z <= 0.0f ? negative_slope * z : z;
        case ACTIVATION_RELU6: return z >= 6.0f ? 6.0f : relu(z);
        case ACTIVATION_SIGMOID: return sigmoid(z);
        case ACTIVATION_TANH: return tanhf(z);
        case ACTIVATION_SILU: return z * sigmoid(z);
        case ACTIVATION_GELU: return z * normal_cdf(z);
        case ACTIVATION_GELU_TANH: return z * sigmoid(gelu_inner(z));
        default: return z;
    }
}

template <Kind KIND>
__device__ inline float activate(const Params &params, float z) {
    if (KIND == IDENTITY) return z;
    if (KIND == RELU) return relu(z);
    return activate_any(params.activation, params.negative_slope, z);
}

// Far out, where z may be infinite, a slope's bell is 0.
__device__ inline float silu_derivative(float z) {
    const float s = sigmoid(z), bell = s * (1.0f - s);
    return bell == 0.0f ? s : fmaf(z, bell, s);
}

__device__ inline float gelu_derivative(float z) {
    const float bell = INV_SQRT_2PI * expf(-0.5f * z * z);
    return bell == 0.0f ? normal_cdf(z) : fmaf(z, bell, normal_cdf(z));
}

__device__ inline float gelu_tanh_derivative(float z) {
    const float s = sigmoid(gelu_inner(z));
    const float slope = 2.0f * SQRT_2_OVER_PI * fmaf(3.0f * GELU_CUBIC * z, z, 1.0f);
    const float bell = s * (1.0f - s);
    return bell == 0.0f ? s : fmaf(z * slope, bell, s);
}

// dy * activation'(z). The piecewise linear ones select, as in PyTorch: an infinite gradient of a
// value that was cut off stays out.
__device__ __noinline__ float differentiate_any(unsigned activation, float negative_slope, float z,
                                                float dy) {
    switch (activation) {
        case ACTIVATION_RELU: return z <= 0.0f ? 0.0f : dy;
        case ACTIVATION_LEAKY_RELU: return z <= 0.0f ? negative_slope * dy : dy;
        case ACTIVATION_RELU6: return is_cut_by_relu6(z) ? 0.0f : dy;
        case ACTIVATION_SIGMOID: {
            const float s = sigmoid(z);
            return dy * (s * (1.0f - s));
        }
        case ACTIVATION_TANH: {
            const float t = tanhf(z);
            return dy * fmaf(-t, t, 1.0f);
        }
        case ACTIVATION_SILU: return dy * silu_derivative(z);
        case ACTIVATION_GELU: return dy * gelu_derivative(z);
        case ACTIVATION_GELU_TANH: return dy * gelu_tanh_derivative(z);
        default: return dy;
    }
}

template <Kind KIND>
__device__ inline float differentiate(const Params &params, float z, float dy) {
    if (KIND == IDENTITY) return dy;
    if (KIND == RELU) return z <= 0.0f ? 0.0f : dy;
    return differentiate_any(params.activation, params.negative_slope, z, dy);
}

// ---- the mask: a bit per element, set where a piecewise linear activation lets the gradient by

__device__ inline bool passes(const Params &params, float z) {
    if (params.activation == ACTIVATION_RELU6) return !is_cut_by_relu6(z);
    return !(z <= 0.0f);
}

__device__ inline float differentiate_by_mask(const Params &params, bool passes, float dy) {
    if (passes) return dy;
    return params.activation == ACTIVATION_LEAKY_RELU ? params.negative_slope * dy : 0.0f;
}
