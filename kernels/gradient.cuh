// What backward computes of an element: the gradient of z through the activation, and dx from that.
#pragma once
#include "channel.cuh"
#include "device.cuh"
#include "epilogue.cuh"
#include "params.h"

// ---- the gradient of z

// Where the activation's derivative comes from.
enum Gate {
    OPEN,          // identity: g is dy
    RELU_FROM_X,   // ReLU, its input recomputed from x
    FROM_MASK,     // ReLU or ReLU6 over a residual
    ANY_FROM_X,    // any activation: from a mask, or its input recomputed from x and residual
};

// Which of them an entry point knows; it branches to one of them, once. The common ones are no good for
// leaky ReLU over a residual: the plan names another entry point.
enum Gates { COMMON_GATES, ANY_GATE, ALL_GATES };

template <Gate GATE_>
struct Gated {
    static constexpr Gate GATE = GATE_;
};

// Calls `use(gate)`: `gate.GATE` is this launch's, a constant. `is_open`: dy has been through it and is g.
template <Gates GATES, class Use>
__device__ inline void with_gate(const Params &params, const Use &use, bool is_open = false) {
    if constexpr (GATES == ANY_GATE) {
        use(Gated<ANY_FROM_X>());
    } else {
        const unsigned activation = anew(params.activation);
        const bool has_slope = GATES == ALL_GATES && activation == ACTIVATION_LEAKY_RELU;
        if (is_open || activation == ACTIVATION_IDENTITY) use(Gated<OPEN>());
        else if (params.mask && !has_slope) use(Gated<FROM_MASK>());
        else if (GATES == COMMON_GATES || activation == ACTIVATION_RELU) use(Gated<RELU_FROM_X>());
        else if constexpr (GATES == ALL_GATES) use(Gated<ANY_FROM_X>());
    }
}

// N of a pack's elements as fp32.
template <int N>
struct Floats {
    float x[N], residual[N];
    Few<N> dy;
    unsigned bits;
};

// g, the gradient of z; `of` is what is known of each element's channel.
template <Gate GATE, class T, int N>
__device__ inline Few<N> gradient_of_z(const Params &params, const Coefficients<T> (&of)[N],
                                       const Floats<N> &inputs) {
    Few<N> g = inputs.dy;
    const auto passes = [&](int i) { return inputs.bits >> i & 1u; };
    if (GATE == FROM_MASK) {
#pragma unroll
        for (int i = 0; i < N; ++i) g.values[i] = passes(i) ? g.values[i] : 0.0f;
    } else if (GATE == ANY_FROM_X && params.mask) {
#pragma unroll
        for (int i = 0; i < N; ++i) g.values[i] = passes(i) ? g.values[i] : held_back(params, g.values[i]);
    } else if (GATE != OPEN) {
        const bool has_residual = GATE == ANY_FROM_X && params.residual;
        Few<N> z;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            z.values[i] = preactivation(of[i], inputs.x[i], has_residual, inputs.residual[i]);
        }
        g = differentiate<GATE == RELU_FROM_X ? RELU : ANY>(params, z, g);
    }
    return g;
}

// ---- dx

// dx = ((g - mean_g) - deviation * slope) * scale * power. Without the power for 16 bits, which have so
// few digits that a scale may lose some at the end of fp32's range.
template <class T>
struct Gradient {
    static constexpr bool IS_FINE = Coefficients<T>::IS_FINE;
    static constexpr int WORDS = Coefficients<T>::WORDS + (IS_FINE ? 6 : 3);
    Coefficients<T> forward;
    float mean_g, slope;  // mean_g less what the rest of x's mean contributes
    float scale;
    float mean_g_rest, scale_rest, power;

    template <class Use>
    __device__ void each_word(const Use &use) {
        forward.each_word(use);
        use(mean_g), use(slope), use(scale);
        if (IS_FINE) use(mean_g_rest), use(scale_rest), use(power);
    }

    __device__ float dx(float g, float x) const {
        float centred = g - mean_g;
        if (IS_FINE) centred -= mean_g_rest;
        const float u = fmaf(-forward.deviation(x), slope, centred);
        return IS_FINE ? fmaf(u, scale, u * scale_rest) * power : u * scale;
    }
};

// weight * invstd as scale * power. Where that is beyond fp32, so is dx.
template <class T>
__device__ inline void set_scale(const Params &params, Extent channel, double invstd,
                                 Gradient<T> &result) {
    const double scale = channel_value(params.weight, channel, 1.0f) * invstd;
    result.power = Gradient<T>::IS_FINE ? power_below(fabs(scale)) : 1.0f;
    const double rest = scale * inverse_power(result.power);
    result.scale = (float)rest;
    result.scale_rest = (float)(rest - result.scale);
}

// From the means of g and of g * (x - mean) over the channel.
template <class T>
__device__ inline Gradient<T> channel_gradient(const Params &params, Extent channel, double mean_g,
                                               double mean_gd) {
    Gradient<T> result;
    result.forward = channel_coefficients<T>(params, channel);
    const double invstd = channel_invstd(params, channel), slope = invstd * mean_gd * invstd;
    const double offset = mean_g - channel_mean_rest(params, channel) * slope;
    result.mean_g = (float)offset;
    result.mean_g_rest = (float)(offset - result.mean_g);
    result.slope = (float)(slope * inverse_power(result.forward.power));
    set_scale(params, channel, invstd, result);
    return result;
}

// From the sums merged over all ranks.
template <class T>
__device__ inline Gradient<T> channel_gradient(const Params &params, Extent channel) {
    const double share = 1.0 / rank_row(params, params.sums, 0, channel);
    return channel_gradient<T>(params, channel, rank_row(params, params.sums, 1, channel) * share,
                               rank_row(params, params.sums, 2, channel) * share);
}

// With fixed statistics: dx = g * scale.
template <class T>
__device__ inline Gradient<T> frozen_gradient(const Params &params, Extent channel) {
    Gradient<T> result = {};
    result.forward = channel_coefficients<T>(params, channel);
    set_scale(params, channel, channel_invstd(params, channel), result);
    return result;
}
