// The passes of a backward: reduce (the sums over each channel), then gradient (dx). Frozen, the
// backward of inference, does both at once: there dx does not wait for the sums.
#pragma once
#include "device.cuh"
#include "gradient.cuh"
#include "leave.cuh"
#include "moments.cuh"
#include "params.h"
#include "reduce.cuh"
#include "walk.cuh"

// ---- sums

// Sums over a channel in f64: of g, the gradient of z, and of g * deviation.
struct WideSums {
    double g, gd;

    __device__ static WideSums empty() { return {0.0, 0.0}; }
    __device__ bool is_empty() const { return false; }
    __device__ static WideSums from(const WideSums &sums) { return sums; }

    // As moments are added up, but about nothing.
    static constexpr bool HAS_PIVOT = false;
    __device__ double pivot() const { return 0.0; }
    __device__ static Sums sums_of(const WideSums &sums, float) { return {sums.g, sums.gd}; }
    __device__ static WideSums from(const Sums &sums, double, double, float) {
        return {sums.first, sums.second};
    }
    __device__ void merge(const WideSums &other) {
        g += other.g;
        gd += other.gd;
    }
    typedef PlainTotal<WideSums> Total;
};

// ---- load

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

template <int N, Gate GATE, class T, int V>
__device__ inline Floats<N> floats_of(const Params &params, const Inputs<T, V> &inputs, int first) {
    Floats<N> floats = {};
    to_floats<N>(params.is_bf16, inputs.x, first, floats.x);
    to_floats<N>(params.is_bf16, inputs.dy, first, floats.dy.values);
    if (GATE == ANY_FROM_X && params.residual) {
        to_floats<N>(params.is_bf16, inputs.residual, first, floats.residual);
    }
    floats.bits = inputs.bits >> first;
    return floats;
}

// ---- reduce

template <int CHANNELS>
struct ThreadSums {
    CompensatedSum g[CHANNELS], gd[CHANNELS];
};

__device__ inline WideSums widen(const CompensatedSum &g, const CompensatedSum &gd) {
    return {(double)g.hi + g.lo, (double)gd.hi + gd.lo};
}

// Adds the values of a batch that belong to one channel: so few together in fp32 that one which
// outweighs all others is rounded three times at most.
template <int N>
__device__ inline void add_batch(const float (&g)[N], const float (&gd)[N], CompensatedSum &sum_g,
                                 CompensatedSum &sum_gd) {
    constexpr int TOGETHER = N < 8 ? N : 8;
    static_assert(N % TOGETHER == 0, "batches are whole");
#pragma unroll
    for (int first = 0; first < N; first += TOGETHER) {
        sum_g.add(sum_of<TOGETHER>(g + first));
        sum_gd.add(sum_of<TOGETHER>(gd + first));
    }
}

// The sum of g * (x - mean), of g * deviation.
__device__ inline double sum_gd(const Params &params, Extent channel, const WideSums &total) {
    const double invstd = channel_invstd(params, channel);
    const float power = deviation_power(invstd, channel_mean(params, channel));
    return total.gd * inverse_power(power) - channel_mean_rest(params, channel) * total.g;
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

// Channels that are worked on at a time, for all packs of a batch: what is known of them takes
// registers.
template <class T, int V>
constexpr int CHANNELS_AT_ONCE = IS_TOLD<T> || V < 2 ? AT_ONCE<V> : 2;

template <class T>
__device__ inline const Coefficients<T> &forward_of(const Coefficients<T> &of) { return of; }
template <class T>
__device__ inline const Coefficients<T> &forward_of(const Gradient<T> &of) { return of.forward; }

// Adds g of a batch of packs, and g * deviation, to the sums of the thread's channels. What is not there
// is zeros. `Known` is what the shelf holds. KEEPS_G: g takes dy's place.
template <Gate GATE, class Known, bool KEEPS_G = false, class T, int V, int BATCH, class Walk>
__device__ inline void sum_batch(const Params &params, const Walk &walk, const Shelf &shelf,
                                 Inputs<T, V> (&inputs)[BATCH],
                                 ThreadSums<Walk::CHANNELS> &sums) {
    constexpr bool IS_ONE = Walk::CHANNELS == 1;
    constexpr int N = IS_ONE ? AT_ONCE<V> : CHANNELS_AT_ONCE<T, V>;
    // Of each channel that N neighbours have.
    constexpr int SETS = IS_ONE ? 1 : N, VALUES = BATCH * N / SETS;
#pragma unroll
    for (int first = 0; first < V; first += N) {
        if (V > N && !IS_ONE) hold_loads();
        Coefficients<T> of[N];
#pragma unroll
        for (int k = 0; k < N; ++k) of[k] = forward_of(take_own<Known>(shelf, walk, first + k));
        Few<N> gradients[BATCH];
        float g[SETS][VALUES], gd[SETS][VALUES];
#pragma unroll
        for (int u = 0; u < BATCH; ++u) {
            const Floats<N> floats = floats_of<N, GATE>(params, inputs[u], first);
            gradients[u] = gradient_of_z<GATE>(params, of, floats);
#pragma unroll
            for (int k = 0; k < N; ++k) {
                const int set = IS_ONE ? 0 : k, i = IS_ONE ? u * N + k : u;
                g[set][i] = gradients[u].values[k];
                gd[set][i] = g[set][i] * of[k].deviation(floats.x[k]);
            }
        }
#pragma unroll
        for (int set = 0; set < SETS; ++set) {
            const int channel = IS_ONE ? 0 : first + set;
            add_batch(g[set], gd[set], sums.g[channel], sums.gd[channel]);
        }
        if constexpr (KEEPS_G) {
#pragma unroll
            for (int u = 0; u < BATCH; ++u) {
                from_floats<N>(params.is_bf16, gradients[u].values, first, inputs[u].dy);
            }
        }
    }
}

// dx and dresidual of a batch of packs, in place of x and dy.
template <Gate GATE, class T, int V, int BATCH, class Walk>
__device__ inline void find_gradients(const Params &params, const Walk &walk, const Shelf &shelf,
                                      Inputs<T, V> (&inputs)[BATCH]) {
    constexpr int N = CHANNELS_AT_ONCE<T, V>;
#pragma unroll
    for (int first = 0; first < V; first += N) {
        if (V > N && Walk::CHANNELS > 1) hold_loads();
        Gradient<T> of[N];
        Coefficients<T> forward[N];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            of[i] = take_own<Gradient<T>>(shelf, walk, first + i);
            forward[i] = of[i].forward;
        }
#pragma unroll
        for (int u = 0; u < BATCH; ++u) {
            const Floats<N> floats = floats_of<N, GATE>(params, inputs[u], first);
            const Few<N> of_residual = gradient_of_z<GATE>(params, forward, floats);
            float of_x[N];
#pragma unroll
            for (int i = 0; i < N; ++i) of_x[i] = of[i].dx(of_residual.values[i], floats.x[i]);
            from_floats<N>(params.is_bf16, of_x, first, inputs[u].x);
            if (GATE != OPEN) from_floats<N>(params.is_bf16, of_residual.values, first, inputs[u].dy);
        }
    }
}

template <class T, int V, class Walk>
__device__ inline void store_gradients(const Params &params, const Walk &walk, const Window &window,
                                       const Inputs<T, V> &gradients) {
    if (params.dx) store<T, V>(walk, params.dx, params.dx_stride, window, gradients.x);
    if (params.dresidual) {
        store<T, V>(walk, params.dresidual, params.dresidual_stride, window, gradients.dy);
    }
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

// What threads without columns have summed up is none of anyone's.
template <int CHANNELS, class Walk>
__device__ inline void widen_all(const Walk &walk, const ThreadSums<CHANNELS> &sums,
                                 WideSums (&wide)[CHANNELS]) {
    const bool has_columns = walk.has_columns();
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        wide[c] = has_columns ? widen(sums.g[c], sums.gd[c]) : WideSums::empty();
    }
}

// The block leaves its sums; the last of its group finishes the channels.
template <int CHANNELS, class Walk>
__device__ inline void leave_sums(const Params &params, const Walk &walk,
                                  const ThreadSums<CHANNELS> &sums) {
    WideSums wide[CHANNELS];
    widen_all(walk, sums, wide);
    finish_group<WideSums>(params, walk, wide, [&](Extent channel, const WideSums &total) {
        finish_sums(params, channel, total);
    });
}

template <Gates GATES, class T, int V, int BATCH, template <int> class WalkOf>
__device__ void reduce(const Params &params) {
    typedef WalkOf<V> Walk;
    typedef Coefficients<T> Known;
    let_next_launch_begin();
    SHARED_ARRAY(float, words, (SHELF_WORDS<Known, Walk>));
    const Shelf shelf = {words, Walk::MAX_PLACES};
    Walk walk(params, place_of_block(params));
    fill_shelf<Known>(shelf, walk, [&](Extent channel) { return channel_coefficients<T>(params, channel); });
    ThreadSums<Walk::CHANNELS> sums = {};
    with_gate<GATES>(params, [&](auto gate) {
        constexpr Gate GATE = gate.GATE;
        walk_inputs<GATE, T, V, BATCH>(params, walk, [&](const auto &, auto &inputs) {
            sum_batch<GATE, Known>(params, walk, shelf, inputs, sums);
        });
    });
    leave_sums(params, walk, sums);
}

// The gradients of a batch from memory, and back.
template <Gate GATE, class T, int V, int BATCH, class Walk>
__device__ inline void find_and_store(const Params &params, const Walk &walk, const Shelf &shelf,
                                      const Window (&windows)[BATCH], Inputs<T, V> (&inputs)[BATCH]) {
    find_gradients<GATE>(params, walk, shelf, inputs);
#pragma unroll
    for (int u = 0; u < BATCH; ++u) store_gradients(params, walk, windows[u], inputs[u]);
}

template <Gates GATES, class T, int V, int BATCH, template <int> class WalkOf>
__device__ void gradient(const Params &params) {
    typedef WalkOf<V> Walk;
    typedef Gradient<T> Known;
    wait_for_launch_before();
    SHARED_ARRAY(float, words, (SHELF_WORDS<Known, Walk>));
    const Shelf shelf = {words, Walk::MAX_PLACES};
    Walk walk(params, place_of_block_backwards(params));
    fill_shelf<Known>(shelf, walk, [&](Extent channel) { return channel_gradient<T>(params, channel); });
    with_gate<GATES>(params, [&](auto gate) {
        constexpr Gate GATE = gate.GATE;
        walk_inputs<GATE, T, V, BATCH>(params, walk, [&](const auto &windows, auto &inputs) {
            find_and_store<GATE>(params, walk, shelf, windows, inputs);
        });
    });
}

template <Gate GATE, class T, int V, int BATCH, template <int> class WalkOf>
__device__ void frozen(const Params &params) {
    typedef WalkOf<V> Walk;
    typedef Gradient<T> Known;
    SHARED_ARRAY(float, words, (SHELF_WORDS<Known, Walk>));
    const Shelf shelf = {words, Walk::MAX_PLACES};
    Walk walk(params, place_of_block(params));
    fill_shelf<Known>(shelf, walk, [&](Extent channel) { return frozen_gradient<T>(params, channel); });
    ThreadSums<Walk::CHANNELS> sums = {};
    walk_inputs<GATE, T, V, BATCH>(params, walk, [&](const auto &windows, auto &inputs) {
        sum_batch<GATE, Known>(params, walk, shelf, inputs, sums);
        find_and_store<GATE>(params, walk, shelf, windows, inputs);
    });
    leave_sums(params, walk, sums);
}
