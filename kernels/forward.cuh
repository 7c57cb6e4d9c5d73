// The passes of a forward: statistics, then apply. Inference is apply with running statistics.
#pragma once
#include "channel.cuh"
#include "device.cuh"
#include "epilogue.cuh"
#include "leave.cuh"
#include "moments.cuh"
#include "params.h"
#include "reduce.cuh"
#include "walk.cuh"

// ---- statistics

// The values of one channel among a batch of packs, as fp32, and which of them are there.
template <int CHANNELS, class T, int V, int BATCH>
__device__ inline void take_channel(const Params &params, const Pack<T, V> (&packs)[BATCH],
                                    int channel, float (&values)[BATCH * V / CHANNELS]) {
    constexpr int VALUES = BATCH * V / CHANNELS;
    const auto element = [&](int i) {
        return CHANNELS == 1 ? packs[i / V].get(i % V) : packs[i].get(channel);
    };
    to_floats<VALUES>(params.is_bf16, element, values);
}

template <int CHANNELS, int V, int BATCH>
__device__ inline unsigned valid_bits(const Window (&windows)[BATCH]) {
    unsigned bits = 0;
#pragma unroll
    for (int u = 0; u < BATCH; ++u) {
        const Window &window = windows[u];
        if (window.is_empty()) continue;
        if constexpr (CHANNELS == 1) {
            bits |= (((1u << window.last) - 1u) >> window.first << window.first) << (u * V);
        } else {
            bits |= 1u << u;
        }
    }
    return bits;
}

// Takes one batch of packs into the moments of the thread's channels.
template <int CHANNELS, class T, int V, int BATCH>
__device__ inline void take_batch(const Params &params, const Pack<T, V> (&packs)[BATCH],
                                  unsigned valid, float added,
                                  CountedMoments (&moments)[CHANNELS]) {
    constexpr int VALUES = BATCH * V / CHANNELS;
    const Share share = share_of(added, moments[0].count + added);
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        float values[VALUES];
        take_channel<CHANNELS>(params, packs, c, values);
        moments[c].take(moments_of<VALUES>(values, valid, added), added, share);
    }
}

// The next COUNT windows, some of which are not there, or in part.
template <int COUNT, class T, int V, class Walk>
__device__ inline void take_windows(const Params &params, Walk &walk, int first,
                                        CountedMoments (&moments)[Walk::CHANNELS]) {
    Window windows[COUNT];
    Pack<T, V> packs[COUNT];
#pragma unroll
    for (int u = 0; u < COUNT; ++u) windows[u] = walk.next(first + u);
    load_packs(params.x, params.x_stride, windows, packs);
    load_ends(walk, params.x, params.x_stride, windows, packs);
    const unsigned valid = valid_bits<Walk::CHANNELS, V>(windows);
    if (valid != 0) take_batch(params, packs, valid, (float)__popc(valid), moments);
}

// One batch, whatever there is of it and of whatever magnitude.
template <class T, int V, int BATCH, class Walk>
__device__ inline void take_any(const Params &params, Walk &walk,
                                CountedMoments (&moments)[Walk::CHANNELS]) {
    if constexpr (Walk::HAS_ENDS) {
        take_windows<BATCH, T, V>(params, walk, 0, moments);
    } else {
#pragma unroll 1
        for (int u = 0; u < BATCH; ++u) take_windows<1, T, V>(params, walk, u, moments);
    }
    walk.end_batch(BATCH);
}

// Sums over some batches: of the values, to twice the digits of fp32, and of the squares of what they
// differ from a pivot by.
struct FoldSums {
    CompensatedSum sum;
    float squares;
    unsigned differ;  // not 0 where any of them does

    template <int N>
    __device__ void add_squares(const float (&values)[N], float pivot) {
        float deviations[N];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            deviations[i] = values[i] - pivot;
            differ |= __float_as_uint(deviations[i]);
        }
        squares += sum_of_squares<N>(deviations);
    }

    // Whether the squares have stayed in fp32's range.
    __device__ bool is_good() const {
        return squares <= 0x1p100f && (squares >= 0x1p-60f || differ == 0);
    }
};

// Takes so many whole batches, about the mean of at least as many values before them, and the very first
// one about its own: what is lost where they differ from it is no more than a few roundings of the moments
// of all. No count changes, and false is returned, where squares leave fp32's range.
template <class T, int V, int BATCH, class Walk>
__device__ inline bool take_fold(const Params &params, Walk &walk, unsigned batches,
                                 CountedMoments (&moments)[Walk::CHANNELS]) {
    constexpr int CHANNELS = Walk::CHANNELS, VALUES = BATCH * V / CHANNELS;
    FoldSums sums[CHANNELS] = {};
    const float before = moments[0].count;
#pragma unroll 1
    for (unsigned batch = 0; batch < batches; ++batch, walk.end_batch(BATCH)) {
        Pack<T, V> packs[BATCH];
#pragma unroll
        for (int u = 0; u < BATCH; ++u) {
            const Extent offset = walk.template next<true>(u).offset(params.x_stride);
            packs[u] = load_pack<V>(reinterpret_cast<const T *>(params.x) + offset);
        }
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) {
            float values[VALUES];
            take_channel<CHANNELS>(params, packs, c, values);
            add_elements<T>(values, sums[c].sum);
            if (before == 0.0f) moments[c].moments.mean_hi = sums[c].sum.hi * (1.0f / VALUES);
            sums[c].add_squares(values, moments[c].moments.mean_hi);
        }
    }
    bool are_good = true;
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) are_good = are_good && sums[c].is_good();
    if (!are_good) return false;

    const float added = (float)(batches * VALUES);
    const Share share = share_of(added, before + added);
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        const float pivot = moments[c].moments.mean_hi;
        moments[c].take(moments_from_sums(pivot, sums[c].squares, sums[c].sum, added), added, share);
    }
    return true;
}

// Every thread's moments of its share of x.
template <class T, int V, int BATCH, class Walk>
__device__ inline void take_moments(const Params &params, Walk &walk,
                                    CountedMoments (&moments)[Walk::CHANNELS]) {
    constexpr unsigned VALUES = BATCH * V / Walk::CHANNELS, MOST = 16;
    while (walk.has_batch()) {
        const unsigned before = (unsigned)fminf(moments[0].count, 4096.0f) / VALUES;
        const unsigned batches = min(min(max(before, 1u), MOST), walk.whole_batches(BATCH));
        if (batches > 0) {
            Walk ahead = walk;
            if (take_fold<T, V, BATCH>(params, ahead, batches, moments)) {
                walk.go_to(ahead);
                continue;
            }
        }
#pragma unroll 1
        for (unsigned batch = 0; batch < max(batches, 1u); ++batch) {
            take_any<T, V, BATCH>(params, walk, moments);
        }
    }
}

template <class T, int V, int BATCH, template <int> class WalkOf>
__device__ void statistics(const Params &params) {
    typedef WalkOf<V> Walk;
    let_next_launch_begin();
    Walk walk(params, place_of_block(params));
    CountedMoments moments[Walk::CHANNELS];
    for (CountedMoments &of : moments) of = CountedMoments::empty();
    take_moments<T, V, BATCH>(params, walk, moments);
    finish_group<WideMoments>(params, walk, moments, [&](Extent channel, const WideMoments &total) {
        if (params.moments) {
            write_moments(params, channel, total);
        } else {
            save_statistics(params, channel, total, saved_statistics(params, total));
        }
    });
}

// ---- apply

// The bits of a pack's mask, of which V == 4 has half a byte and V == 1 a bit: lanes with
// neighbouring packs put theirs together. All lanes of a warp take part.
template <int V>
__device__ inline void store_mask(const Params &params, Extent row_bytes, const Window &window,
                                  unsigned bits) {
    uint8_t *bytes = reinterpret_cast<uint8_t *>(params.mask) + window.mask_row * row_bytes;
    const unsigned lane = threadIdx.x % 32;
    bool is_there = !window.is_empty();
    if (V == 4) {
        const unsigned above = __shfl_down_sync(0xffffffffu, bits | is_there << 4, 1);
        bits |= above << 4;
        is_there |= above >> 4;
    } else if (V == 1) {
        bits = __ballot_sync(0xffffffffu, bits) >> lane;
        is_there = __ballot_sync(0xffffffffu, is_there) >> lane & 0xffu;
    }
    const bool is_first = window.mask_bit % 8 == 0;
    if (is_first && is_there) bytes[window.mask_bit / 8] = (uint8_t)bits;
}

// y of one pack, in place of x; returns the mask's bits. `coefficients_of(v)` is for element v.
template <Kind KIND, class T, int V, class CoefficientsOf>
__device__ inline unsigned apply_pack(const Params &params, const CoefficientsOf &coefficients_of,
                                      Pack<T, V> &pack, const Pack<T, V> &residual) {
    unsigned bits = 0;
    constexpr int N = AT_ONCE<V>;
    Pack<T, V> out = {};
#pragma unroll
    for (int first = 0; first < V; first += N) {
        float x[N];
        Few<N> z;
        to_floats<N>(params.is_bf16, pack, first, x);
        // Branches that all threads take alike, around what most calls do without.
        if (params.residual) {
            float added[N];
            to_floats<N>(params.is_bf16, residual, first, added);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                z.values[i] = preactivation(coefficients_of(first + i), x[i], true, added[i]);
            }
        } else {
#pragma unroll
            for (int i = 0; i < N; ++i) {
                z.values[i] = preactivation(coefficients_of(first + i), x[i], false, 0.0f);
            }
        }
        if (KIND != IDENTITY && params.mask) {
#pragma unroll
            for (int i = 0; i < N; ++i) bits |= passes(params, z.values[i]) ? 1u << (first + i) : 0u;
        }
        activate<KIND>(params, z);
        from_floats<N>(params.is_bf16, z.values, first, out);
    }
    pack = out;
    return bits;
}

// y of a batch, in place of x, and its mask go out.
template <Kind KIND, class T, int V, int BATCH, class Walk, class CoefficientsOf>
__device__ inline void apply_and_store(const Params &params, const Walk &walk,
                                       const CoefficientsOf &coefficients_of,
                                       const Window (&windows)[BATCH], Pack<T, V> (&packs)[BATCH],
                                       const Pack<T, V> (&residuals)[BATCH]) {
#pragma unroll
    for (int u = 0; u < BATCH; ++u) {
        unsigned bits = apply_pack<KIND>(params, coefficients_of, packs[u], residuals[u]);
        if (windows[u].is_empty()) bits = 0;
        store<T, V>(walk, params.y, params.y_stride, windows[u], packs[u]);
        if (KIND != IDENTITY && params.mask) {
            store_mask<V>(params, walk.mask_row_bytes(), windows[u], bits);
        }
    }
}

template <Kind KIND, class T, int V, int BATCH, template <int> class WalkOf>
__device__ void apply(const Params &params) {
    typedef WalkOf<V> Walk;
    wait_for_launch_before();
    typedef Coefficients<T> Known;
    SHARED_ARRAY(float, words, (SHELF_WORDS<Known, Walk>));
    const Shelf shelf = {words, Walk::MAX_PLACES};
    Walk walk(params, place_of_block_backwards(params));
    fill_shelf<Known>(shelf, walk, [&](Extent channel) { return channel_coefficients<T>(params, channel); });
    const auto coefficients_of = [&](int v) { return take_own<Known>(shelf, walk, v); };
    if (blockIdx.x == 0 && threadIdx.x == 0) count_batch(params);
    for (; walk.has_batch(); walk.end_batch(BATCH)) {
        Window windows[BATCH];
        Pack<T, V> packs[BATCH], residuals[BATCH] = {};
#pragma unroll
        for (int u = 0; u < BATCH; ++u) windows[u] = walk.next(u);
        load_packs(params.x, params.x_stride, windows, packs);
        if (params.residual) {
            load_packs(params.residual, params.residual_stride, windows, residuals);
        }
        load_ends(walk, params.x, params.x_stride, windows, packs);
        if (params.residual) {
            load_ends(walk, params.residual, params.residual_stride, windows, residuals);
        }
        apply_and_store<KIND>(params, walk, coefficients_of, windows, packs, residuals);
    }
}
