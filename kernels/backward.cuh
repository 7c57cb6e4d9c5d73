// The passes of a backward: reduce (the sums over each channel), then gradient (dx). Frozen, the
// backward of inference, does both at once: there dx does not wait for the sums.
#pragma once
#include "channel.cuh"
#include "device.cuh"
#include "epilogue.cuh"
#include "leave.cuh"
#include "moments.cuh"
#include "params.h"
#include "reduce.cuh"
#include "walk.cuh"

// ---- sums

// A sum with what rounding took off it.
struct CompensatedSum {
    float hi, lo;

    __device__ void add(float value) {
        float rest;
        hi = two_sum(hi, value, rest);
        lo += rest;
    }
};

// Sums over a channel in f64: of g, the gradient of z, and of g * deviation.
struct WideSums {
    double g, gd;

    __device__ static WideSums empty() { return {0.0, 0.0}; }
    __device__ static WideSums from(const WideSums &sums) { return sums; }

    __device__ void merge(const WideSums &other) {
        g += other.g;
        gd += other.gd;
    }
};

// What a reduction must know of a channel: forward's coefficients, and the mean's rest.
struct Centre {
    static constexpr int WORDS = Coefficients::WORDS + 1;
    Coefficients forward;
    float mean_lo;

    // In units of 1 / power.
    __device__ float deviation(float x) const {
        return ((x - forward.mean_hi) - mean_lo) * forward.power;
    }
};

__device__ inline Centre channel_centre(const Params &params, Extent channel) {
    const bool is_saved = params.invstd != 0;
    return {channel_coefficients(params, channel),
            is_saved ? channel_value(params.mean_lo, channel, 0.0f) : 0.0f};
}

// ---- dx

// dx = ((g - mean_g) - deviation * slope) * scale * power, with a deviation in units of 1 / centre's
// power.
struct Gradient {
    static constexpr int WORDS = Centre::WORDS + 6;
    Centre centre;
    float mean_g_hi, mean_g_lo;
    float slope;
    float scale_hi, scale_lo, power;

    __device__ float dx(float g, float x) const {
        const float centred = (g - mean_g_hi) - mean_g_lo;
        const float u = fmaf(-centre.deviation(x), slope, centred);
        return fmaf(u, scale_hi, u * scale_lo) * power;
    }
};

// weight * invstd as scale * power.
__device__ inline void set_scale(const Params &params, Extent channel, double invstd,
                                 Gradient &result) {
    const double scale = channel_value(params.weight, channel, 1.0f) * invstd;
    result.power = power_below(fabs(scale));
    const double rest = scale * inverse_power(result.power);
    result.scale_hi = (float)rest;
    result.scale_lo = (float)(rest - result.scale_hi);
}

// From the means of g and of g * deviation over the channel.
__device__ inline Gradient channel_gradient(const Params &params, Extent channel, double mean_g,
                                            double mean_gd) {
    Gradient result;
    result.centre = channel_centre(params, channel);
    const double invstd = channel_value(params.invstd, channel, 0.0f);
    result.mean_g_hi = (float)mean_g;
    result.mean_g_lo = (float)(mean_g - result.mean_g_hi);
    result.slope = (float)(invstd * mean_gd * invstd * inverse_power(result.centre.forward.power));
    set_scale(params, channel, invstd, result);
    return result;
}

// From the sums merged over all ranks.
__device__ inline Gradient channel_gradient(const Params &params, Extent channel) {
    const double share = 1.0 / rank_row(params, params.sums, 0, channel);
    return channel_gradient(params, channel, rank_row(params, params.sums, 1, channel) * share,
                            rank_row(params, params.sums, 2, channel) * share);
}

// With fixed statistics: dx = g * scale.
__device__ inline Gradient frozen_gradient(const Params &params, Extent channel) {
    Gradient result = {};
    result.centre = channel_centre(params, channel);
    const double var = channel_value(params.running_var, channel, 0.0f);
    set_scale(params, channel, invstd_of(var, params.eps), result);
    return result;
}

// ---- the gradient of z

// Where the activation's derivative comes from.
enum Gate {
    OPEN,          // identity: g is dy
    RELU_FROM_X,   // ReLU, its input recomputed from x
    FROM_MASK,     // a piecewise linear activation over a residual
    ANY_FROM_X,    // any activation, its input recomputed from x and, if there is one, residual
};

// Which of them an entry point knows; it branches to one of them, once.
enum Gates { COMMON_GATES, ANY_GATE, ALL_GATES };

template <Gate GATE_>
struct Gated {
    static constexpr Gate GATE = GATE_;
};

// Calls `use(gate)`: `gate.GATE` is this launch's, a constant.
template <Gates GATES, class Use>
__device__ inline void with_gate(const Params &params, const Use &use) {
    if constexpr (GATES == ANY_GATE) {
        use(Gated<ANY_FROM_X>());
    } else {
        const unsigned activation = anew(params.activation);
        if (activation == ACTIVATION_IDENTITY) use(Gated<OPEN>());
        else if (params.mask) use(Gated<FROM_MASK>());
        else if (GATES == COMMON_GATES || activation == ACTIVATION_RELU) use(Gated<RELU_FROM_X>());
        else if constexpr (GATES == ALL_GATES) use(Gated<ANY_FROM_X>());
    }
}

template <class T, int V>
struct Inputs {
    Pack<T, V> x, dy, residual;
    unsigned bits;
};

// The mask's bits of a pack, from the lowest on.
template <class Walk>
__device__ inline unsigned load_bits(const Params &params, const Walk &walk, const Window &window) {
    if (window.is_empty()) return 0;
    const uint8_t *mask = reinterpret_cast<const uint8_t *>(params.mask);
    const uint8_t *row = mask + window.mask_row * walk.mask_row_bytes();
    return row[window.mask_bit / 8] >> window.mask_bit % 8;
}

// The inputs of a batch.
template <Gate GATE, class T, int V, int BATCH, class Walk>
__device__ inline void load_inputs(const Params &params, const Walk &walk,
                                   const Window (&windows)[BATCH],
                                   Inputs<T, V> (&inputs)[BATCH]) {
    const bool has_residual = GATE == ANY_FROM_X && params.residual;
    const bool has_mask = (GATE == FROM_MASK || GATE == ANY_FROM_X) && params.mask;
#pragma unroll
    for (int u = 0; u < BATCH; ++u) {
        Inputs<T, V> &of = inputs[u] = {};
        of.x = load_pack_of<T, V>(params.x, params.x_stride, windows[u]);
        of.dy = load_pack_of<T, V>(params.dy, params.dy_stride, windows[u]);
        if (has_residual) {
            of.residual = load_pack_of<T, V>(params.residual, params.residual_stride, windows[u]);
        }
    }
#pragma unroll
    for (int u = 0; u < BATCH; ++u) {
        if (has_mask) inputs[u].bits = load_bits(params, walk, windows[u]);
    }
#pragma unroll
    for (int u = 0; u < BATCH; ++u) {
        Inputs<T, V> &of = inputs[u];
        load_end(walk, params.x, params.x_stride, windows[u], of.x);
        load_end(walk, params.dy, params.dy_stride, windows[u], of.dy);
        if (has_residual) {
            load_end(walk, params.residual, params.residual_stride, windows[u], of.residual);
        }
    }
}

// N of a pack's elements as fp32.
template <int N>
struct Floats {
    float x[N], dy[N], residual[N];
    unsigned bits;
};

template <int N, Gate GATE, class T, int V>
__device__ inline Floats<N> floats_of(const Params &params, const Inputs<T, V> &inputs, int first) {
    Floats<N> floats = {};
    to_floats<N>(params.is_bf16, inputs.x, first, floats.x);
    to_floats<N>(params.is_bf16, inputs.dy, first, floats.dy);
    if (GATE == ANY_FROM_X && params.residual) {
        to_floats<N>(params.is_bf16, inputs.residual, first, floats.residual);
    }
    floats.bits = inputs.bits >> first;
    return floats;
}

template <Gate GATE, class T, int N>
__device__ inline float gradient_of_z(const Params &params, const Coefficients &of,
                                      const Floats<N> &inputs, int i) {
    const float dy = inputs.dy[i];
    if (GATE == OPEN) return dy;
    if (GATE == FROM_MASK || (GATE == ANY_FROM_X && params.mask)) {
        return differentiate_by_mask(params, inputs.bits >> i & 1u, dy);
    }
    const bool has_residual = GATE == ANY_FROM_X && params.residual;
    const float z = preactivation<T>(of, inputs.x[i], has_residual, inputs.residual[i]);
    return differentiate<GATE == RELU_FROM_X ? RELU : ANY>(params, z, dy);
}

// ---- reduce

template <int CHANNELS>
struct ThreadSums {
    CompensatedSum g[CHANNELS], gd[CHANNELS];
};

__device__ inline WideSums widen(const CompensatedSum &g, const CompensatedSum &gd) {
    return {(double)g.hi + g.lo, (double)gd.hi + gd.lo};
}

// Adds the values of a batch that belong to one channel.
template <int N>
__device__ inline void add_batch(const float (&g)[N], const float (&gd)[N], CompensatedSum &sum_g,
                                 CompensatedSum &sum_gd) {
    sum_g.add(sum_of<N>(g));
    sum_gd.add(sum_of<N>(gd));
}

// The sum of g * deviation, which was taken in units of 1 / power.
__device__ inline double sum_gd(const Params &params, Extent channel, const WideSums &total) {
    return total.gd * inverse_power(power_below(channel_invstd(params, channel)));
}

// Writes dweight and dbias of this rank.
__device__ inline void write_parameter_gradients(const Params &params, Extent channel,
                                                 double sum_g, double sum_gd) {
    set_channel_value(params.dweight, channel, sum_gd * channel_invstd(params, channel));
    set_channel_value(params.dbias, channel, sum_g);
}

// Writes dweight and dbias of this rank, and the sums that its dx, or all ranks, need.
__device__ inline void finish_sums(const Params &params, Extent channel, const WideSums &total) {
    const double gd = sum_gd(params, channel, total);
    write_parameter_gradients(params, channel, total.g, gd);
    if (!params.sums) return;
    rank_row(params, params.sums, 0, channel) = (double)(params.samples * params.spatial);
    rank_row(params, params.sums, 1, channel) = total.g;
    rank_row(params, params.sums, 2, channel) = gd;
}

// g of a batch of packs, and its sums over the thread's channels.
template <Gate GATE, class T, int V, int BATCH, class Walk, class Known>
__device__ inline void sum_batch(const Params &params, const Walk &walk, const float *shelf,
                                 const Window (&windows)[BATCH], const Inputs<T, V> (&inputs)[BATCH],
                                 ThreadSums<Walk::CHANNELS> &sums) {
    constexpr int CHANNELS = Walk::CHANNELS, VALUES = BATCH * V / CHANNELS;
    float g[CHANNELS][VALUES], gd[CHANNELS][VALUES];
    constexpr int N = AT_ONCE<V>;
#pragma unroll
    for (int first = 0; first < V; first += N) {
        Floats<N> floats[BATCH];
#pragma unroll
        for (int u = 0; u < BATCH; ++u) floats[u] = floats_of<N, GATE>(params, inputs[u], first);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            const int v = first + k;
            const Known known = take_own<Known>(shelf, walk, v);
            const Centre &centre = centre_of(known);
#pragma unroll
            for (int u = 0; u < BATCH; ++u) {
                const int c = CHANNELS == 1 ? 0 : v, i = CHANNELS == 1 ? u * V + v : u;
                const bool is_there = windows[u].has(v);
                const float of_z = gradient_of_z<GATE, T>(params, centre.forward, floats[u], k);
                g[c][i] = is_there ? of_z : 0.0f;
                gd[c][i] = is_there ? of_z * centre.deviation(floats[u].x[k]) : 0.0f;
            }
        }
    }
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) add_batch(g[c], gd[c], sums.g[c], sums.gd[c]);
}

__device__ inline const Centre &centre_of(const Centre &centre) { return centre; }
__device__ inline const Centre &centre_of(const Gradient &gradient) { return gradient.centre; }

// dx and dresidual of one pack.
template <Gate GATE, class T, int V, class Walk>
__device__ inline void store_gradients(const Params &params, const Walk &walk, const float *shelf,
                                       const Window &window, const Inputs<T, V> &inputs) {
    Pack<T, V> dx = {}, dresidual = inputs.dy;
    constexpr int N = AT_ONCE<V>;
#pragma unroll
    for (int first = 0; first < V; first += N) {
        if (V > N && Walk::CHANNELS > 1) hold_loads();
        const Floats<N> floats = floats_of<N, GATE>(params, inputs, first);
        float of_x[N], of_residual[N];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const Gradient of = take_own<Gradient>(shelf, walk, first + i);
            of_residual[i] = gradient_of_z<GATE, T>(params, of.centre.forward, floats, i);
            of_x[i] = of.dx(of_residual[i], floats.x[i]);
        }
        from_floats<N>(params.is_bf16, of_x, first, dx);
        if (GATE != OPEN) from_floats<N>(params.is_bf16, of_residual, first, dresidual);
    }
    if (params.dx) store<T, V>(walk, params.dx, params.dx_stride, window, dx);
    if (params.dresidual) store<T, V>(walk, params.dresidual, params.dresidual_stride, window, dresidual);
}

// The walk that all three share: loads a batch and hands it to `each(windows, inputs)`.
template <Gate GATE, class T, int V, int BATCH, class Walk, class Each>
__device__ inline void walk_inputs(const Params &params, Walk &walk, const Each &each) {
    for (; walk.has_batch(); walk.end_batch(BATCH)) {
        Window windows[BATCH];
        Inputs<T, V> inputs[BATCH];
#pragma unroll
        for (int u = 0; u < BATCH; ++u) windows[u] = walk.next(u);
        load_inputs<GATE>(params, walk, windows, inputs);
        each(windows, inputs);
    }
}

template <class Item, int CHANNELS>
__device__ inline void widen_all(const ThreadSums<CHANNELS> &sums, Item (&wide)[CHANNELS]) {
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) wide[c] = widen(sums.g[c], sums.gd[c]);
}

template <Gates GATES, class T, int V, int BATCH, template <int> class WalkOf>
__device__ void reduce(const Params &params) {
    typedef WalkOf<V> Walk;
    let_next_launch_begin();
    SHARED_ARRAY(float, shelf, Centre::WORDS *Walk::MAX_PLACES);
    Walk walk(params, place_of_block(params));
    fill_shelf<Centre>(shelf, walk, [&](Extent channel) { return channel_centre(params, channel); });
    constexpr int CHANNELS = Walk::CHANNELS;
    ThreadSums<CHANNELS> sums = {};
    with_gate<GATES>(params, [&](auto gate) {
        constexpr Gate GATE = gate.GATE;
        walk_inputs<GATE, T, V, BATCH>(params, walk, [&](const auto &windows, const auto &inputs) {
            sum_batch<GATE, T, V, BATCH, Walk, Centre>(params, walk, shelf, windows, inputs, sums);
        });
    });
    WideSums wide[CHANNELS];
    widen_all(sums, wide);
    finish_group<WideSums>(params, walk, wide, [&](Extent channel, const WideSums &total) {
        finish_sums(params, channel, total);
    });
}

template <Gates GATES, class T, int V, int BATCH, template <int> class WalkOf>
__device__ void gradient(const Params &params) {
    typedef WalkOf<V> Walk;
    wait_for_launch_before();
    SHARED_ARRAY(float, shelf, Gradient::WORDS *Walk::MAX_PLACES);
    Walk walk(params, place_of_block(params));
    fill_shelf<Gradient>(shelf, walk, [&](Extent channel) { return channel_gradient(params, channel); });
    with_gate<GATES>(params, [&](auto gate) {
        constexpr Gate GATE = gate.GATE;
        walk_inputs<GATE, T, V, BATCH>(params, walk, [&](const auto &windows, const auto &inputs) {
#pragma unroll
            for (int u = 0; u < BATCH; ++u) {
                store_gradients<GATE>(params, walk, shelf, windows[u], inputs[u]);
            }
        });
    });
}

template <Gate GATE, class T, int V, int BATCH, template <int> class WalkOf>
__device__ void frozen(const Params &params) {
    typedef WalkOf<V> Walk;
    SHARED_ARRAY(float, shelf, Gradient::WORDS *Walk::MAX_PLACES);
    Walk walk(params, place_of_block(params));
    fill_shelf<Gradient>(shelf, walk, [&](Extent channel) { return frozen_gradient(params, channel); });
    constexpr int CHANNELS = Walk::CHANNELS;
    ThreadSums<CHANNELS> sums = {};
    walk_inputs<GATE, T, V, BATCH>(params, walk, [&](const auto &windows, const auto &inputs) {
        sum_batch<GATE, T, V, BATCH, Walk, Gradient>(params, walk, shelf, windows, inputs, sums);
#pragma unroll
        for (int u = 0; u < BATCH; ++u) {
            store_gradients<GATE>(params, walk, shelf, windows[u], inputs[u]);
        }
    });
    WideSums wide[CHANNELS];
    widen_all(sums, wide);
    finish_group<WideSums>(params, walk, wide, [&](Extent channel, const WideSums &total) {
        finish_sums(params, channel, total);
    });
}
