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
    // Of two neighbours one is odd; a sum that is exact is both of them, but for the sign of zero.
    const float down = __fadd_rd(a, b), up = __fadd_ru(a, b);
    return __float_as_int(down) & 1 ? down : up;
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
constexpr float LOG2_E = 0x1.715476p0f, LOG2_E_REST = 0x1.4ae0cp-26f;
constexpr float LN_2 = 0.69314718f;

// e^z for z <= 0, to a few of the last places far out too: what rounding takes off the exponent comes back
// as a factor.
__device__ inline float exp_below(float z) {
    // From there on it is 0; infinity less infinity would be none.
    const float at = max_or_nan(z, -104.0f);
    const float exponent = LOG2_E * at;
    const float rest = fmaf(LOG2_E_REST, at, fmaf(LOG2_E, at, -exponent));
    const float power = exp2_approx(exponent);
    return fmaf(power * LN_2, rest, power);
}

// The logistic function and its slope: neither is a difference, so that both are right far out too.
struct Sigmoid {
    float value, slope;

    __device__ explicit Sigmoid(float z) {
        const float e = exp_below(-fabsf(z)), upper = reciprocal_approx(1.0f + e), lower = e * upper;
        value = z < 0.0f ? lower : upper;
        slope = lower * upper;
    }
};

// The normal distribution function.
__device__ inline float normal_cdf(float z) { return 0.5f * erfcf(-SQRT_HALF * z); }

// The argument of the logistic function in GELU by tanh.
__device__ inline float gelu_inner(float z) {
    return 2.0f * SQRT_2_OVER_PI * (z * fmaf(GELU_CUBIC * z, z, 1.0f));
}

// Comparisons are such that NaN passes.
__device__ inline float relu(float z) { return max_or_nan(z, 0.0f); }

__device__ inline bool is_cut_by_relu6(float z) { return z <= 0.0f || z >= 6.0f; }

// Elements that go through an activation together: what depends on the launch is asked once for them.
template <int N>
struct Few {
    float values[N];

    template <class Of>
    __device__ Few map(const Of &of) const {
        Few result;
#pragma unroll
        for (int i = 0; i < N; ++i) result.values[i] = of(values[i]);
        return result;
    }
    template <class Of>
    __device__ Few zip(const Few &others, const Of &of) const {
        Few result;
#pragma unroll
        for (int i = 0; i < N; ++i) result.values[i] = of(values[i], others.values[i]);
        return result;
    }
};

// Apart from its callers, who would else repeat all of it.
template <int N>
__device__ __noinline__ Few<N> activate_any(unsigned activation, float negative_slope, Few<N> of) {
    switch (activation) {
        case ACTIVATION_RELU: return of.map([](float z) { return relu(z); });
        case ACTIVATION_LEAKY_RELU:
            return of.map([&](float z) { return z <= 0.0f ? negative_slope * z : z; });
        case ACTIVATION_RELU6: return of.map([](float z) { return z >= 6.0f ? 6.0f : relu(z); });
        case ACTIVATION_SIGMOID: return of.map([](float z) { return Sigmoid(z).value; });
        case ACTIVATION_TANH: return of.map([](float z) { return tanhf(z); });
        case ACTIVATION_SILU: return of.map([](float z) { return z * Sigmoid(z).value; });
        case ACTIVATION_GELU: return of.map([](float z) { return z * normal_cdf(z); });
        case ACTIVATION_GELU_TANH:
            return of.map([](float z) { return z * Sigmoid(gelu_inner(z)).value; });
        default: return of;
    }
}

// In place of z.
template <Kind KIND, int N>
__device__ inline void activate(const Params &params, Few<N> &z) {
    if (KIND == RELU) z = z.map([](float z) { return relu(z); });
    if (KIND == ANY) z = activate_any(params.activation, params.negative_slope, z);
}

// Far out, where z may be infinite, a slope's bell is 0.
__device__ inline float with_bell(float value, float z, float bell) {
    return bell == 0.0f ? value : fmaf(z, bell, value);
}

__device__ inline float silu_derivative(float z) {
    const Sigmoid s(z);
    return with_bell(s.value, z, s.slope);
}

__device__ inline float gelu_derivative(float z) {
    return with_bell(normal_cdf(z), z, INV_SQRT_2PI * exp_below(-0.5f * z * z));
}

__device__ inline float gelu_tanh_derivative(float z) {
    const Sigmoid s(gelu_inner(z));
    const float slope = 2.0f * SQRT_2_OVER_PI * fmaf(3.0f * GELU_CUBIC * z, z, 1.0f);
    return with_bell(s.value, z * slope, s.slope);
}

// dy * activation'(z). The piecewise linear ones select, as in PyTorch: an infinite gradient of a
// value that was cut off stays out.
template <int N>
__device__ inline Few<N> differentiate_relu(const Few<N> &at, const Few<N> &dy) {
    return at.zip(dy, [](float z, float dy) { return z <= 0.0f ? 0.0f : dy; });
}

template <int N>
__device__ __noinline__ Few<N> differentiate_any(unsigned activation, float negative_slope, Few<N> at,
                                                 Few<N> dy) {
    const auto times = [&](const auto &derivative) {
        return at.zip(dy, [&](float z, float dy) { return dy * derivative(z); });
    };
    switch (activation) {
        case ACTIVATION_RELU: return differentiate_relu(at, dy);
        case ACTIVATION_LEAKY_RELU:
            return at.zip(
                dy, [&](float z, float dy) { return z <= 0.0f ? negative_slope * dy : dy; });
        case ACTIVATION_RELU6:
            return at.zip(dy, [](float z, float dy) { return is_cut_by_relu6(z) ? 0.0f : dy; });
        case ACTIVATION_SIGMOID: return times([](float z) { return Sigmoid(z).slope; });
        case ACTIVATION_TANH:
            return times([](float z) {
                const float t = tanhf(z);
                return fmaf(-t, t, 1.0f);
            });
        case ACTIVATION_SILU: return times([](float z) { return silu_derivative(z); });
        case ACTIVATION_GELU: return times([](float z) { return gelu_derivative(z); });
        case ACTIVATION_GELU_TANH: return times([](float z) { return gelu_tanh_derivative(z); });
        default: return dy;
    }
}

template <Kind KIND, int N>
__device__ inline Few<N> differentiate(const Params &params, const Few<N> &at, const Few<N> &dy) {
    if (KIND == ANY) return differentiate_any(params.activation, params.negative_slope, at, dy);
    return differentiate_relu(at, dy);
}

// ---- the mask: a bit per element, set where a piecewise linear activation lets the gradient by

__device__ inline bool passes(const Params &params, float z) {
    if (params.activation == ACTIVATION_RELU6) return !is_cut_by_relu6(z);
    return !(z <= 0.0f);
}

// What becomes of a gradient that it does not let by.
__device__ inline float held_back(const Params &params, float dy) {
    return params.activation == ACTIVATION_LEAKY_RELU ? params.negative_slope * dy : 0.0f;
}
