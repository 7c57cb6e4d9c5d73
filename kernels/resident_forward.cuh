// A training forward that reads x once: it stays on chip from its moments to its normalization.
#pragma once
#include "channel.cuh"
#include "device.cuh"
#include "epilogue.cuh"
#include "forward.cuh"
#include "leave.cuh"
#include "moments.cuh"
#include "params.h"
#include "reduce.cuh"
#include "team.cuh"
#include "tile.cuh"
#include "walk.cuh"

// Starts bringing one round of x on chip; returns how many packs are there as a whole. A walk without
// ends has a slot for each window, zeros for those that are not there. Else whole packs come from the
// first slot on and the ends of planes from the last slot down, each of which goes to
// `at_end(window, pack)` too.
template <class T, int V, class Walk, class AtEnd>
__device__ inline unsigned bring_x(const Params &params, Walk walk, unsigned packs,
                                   const Tile<T, V> &tile, bool is_last_read, const AtEnd &at_end) {
    const CopyTarget<Pack<T, V>> target = tile.target(params, is_last_read);
    unsigned whole = 0, ends = 0;
    const auto bring = [&](const Window &window, unsigned slot) {
        const bool is_full = window.template is_full<V>();
        const T *from = reinterpret_cast<const T *>(params.x) + window.offset(params.x_stride);
        if (!Walk::HAS_ENDS) {
            async_copy_pack(target, slot * THREADS, from, is_full);
        } else if (is_full) {
            async_copy_pack(target, whole * THREADS, from);
        } else if (!window.is_empty()) {
            const Pack<T, V> pack = load_some<T, V>(from, window.first, window.last);
            tile.put(params.slots - ++ends, pack);
            at_end(window, pack);
        }
        whole += is_full;
    };
    if (walk.is_even()) {
        bring_stages(packs, [&](unsigned first, unsigned last) {
            walk_slots<Walk, BROUGHT>(first, last, walk, [&](unsigned slot) {
#pragma unroll
                for (int u = 0; u < BROUGHT; ++u) bring(walk.template next<true>(u), slot + u);
            });
        });
    } else if constexpr (Walk::HAS_ENDS) {
        walk_round<Walk, 1>(packs, walk, [&](unsigned slot) { bring(walk.next(0), slot); });
        // A stage's whole packs are not its slots: all of them come together.
        async_copy_commit();
        async_copy_wait(0);
    }
    return whole;
}

// What a tile holds of a channel: the sum of the values to twice the digits of fp32, and the largest
// of them.
struct TileSum {
    CompensatedSum sum;
    float largest;

    template <class T>
    __device__ int gear() const {
        return HAS_GEARS<T> ? gear_of_values(largest) : GEAR_MIDDLE;
    }
};

// Of the packs from `begin` to before `end`.
template <int CHANNELS, class T, int V>
__device__ inline void sum_packs(const Tile<T, V> &tile, unsigned begin, unsigned end,
                                 TileSum (&sums)[CHANNELS]) {
    // One channel's values are a pack's, several channels' are taken from several packs.
    constexpr int TOGETHER = CHANNELS == 1 ? 1 : 4;
    constexpr int VALUES = TOGETHER * V / CHANNELS;
#pragma unroll 1
    for (unsigned first = begin; first < end; first += TOGETHER) {
        Pack<T, V> of_batch[TOGETHER] = {};
#pragma unroll
        for (int u = 0; u < TOGETHER; ++u) {
            if (first + u < end) of_batch[u] = tile.get(first + u);
        }
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) {
            float values[VALUES];
#pragma unroll
            for (int i = 0; i < VALUES; ++i) {
                values[i] = to_float(CHANNELS == 1 ? of_batch[0].get(i) : of_batch[i].get(c));
            }
            add_elements<T>(values, sums[c].sum);
            if constexpr (HAS_GEARS<T>) {
#pragma unroll
                for (int i = 0; i < VALUES; ++i) sums[c].largest = fmaxf(sums[c].largest, fabsf(values[i]));
            }
        }
    }
}

// Squares of the deviations of the packs from `begin` to before `end` from a pivot of their channel. In
// the gear's unit: `offset` is the pivot, negative, and `unit` brings a value there.
template <int CHANNELS, class T, int V>
__device__ inline void square_packs(const Tile<T, V> &tile, unsigned begin, unsigned end,
                                    const float (&offset)[CHANNELS], const float (&unit)[CHANNELS],
                                    float (&m2)[CHANNELS]) {
    constexpr int VALUES = V / CHANNELS;
    // One channel's packs depend on each other, several channels keep a thread busy by themselves.
    [[maybe_unused]] constexpr int UNROLLED = CHANNELS == 1 ? 2 : 1;
#pragma unroll UNROLLED
    for (unsigned i = begin; i < end; ++i) {
        const Pack<T, V> pack = tile.get(i);
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) {
            float deviations[VALUES];
#pragma unroll
            for (int v = 0; v < VALUES; ++v) {
                const float value = to_float(pack.get(c + v));
                deviations[v] = HAS_GEARS<T> ? fmaf(value, unit[c], offset[c]) : value + offset[c];
            }
            if (VALUES == 1) m2[c] = fmaf(deviations[0], deviations[0], m2[c]);
            else m2[c] += sum_of_squares<VALUES>(deviations);
        }
    }
}

// Takes the first `packs` packs of the tile, which are on their way to its `slots`, into the moments of
// the thread's channels, in two passes: the mean to twice the digits of fp32, then the deviations from
// it.
template <int CHANNELS, class T, int V>
__device__ inline void take_tile(const Tile<T, V> &tile, unsigned slots, unsigned packs,
                                 CountedMoments (&moments)[CHANNELS]) {
    TileSum sums[CHANNELS] = {};
    each_stage(slots, [&](unsigned first, unsigned last) {
        sum_packs(tile, first, min(last, packs), sums);
    });
    if (packs == 0) return;
    const float count = (float)(packs * (V / CHANNELS)), inverse = 1.0f / count;
    float offset[CHANNELS], unit[CHANNELS], m2[CHANNELS] = {};
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        unit[c] = unit_of(sums[c].template gear<T>());
        offset[c] = -divide_by(count, inverse, sums[c].sum.hi) * unit[c];
    }
    // Few together: a square that outweighs the others is rounded with each that is added to it.
    constexpr unsigned TOGETHER = 16;
#pragma unroll 1
    for (unsigned first = 0; first < packs; first += TOGETHER) {
        float of_these[CHANNELS] = {};
        square_packs(tile, first, min(first + TOGETHER, packs), offset, unit, of_these);
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) m2[c] += of_these[c];
    }
    const Share share = share_of(count, moments[0].count + count);
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        const int gear = sums[c].template gear<T>();
        const float pivot = -out_of_gear(offset[c], gear);
        const float deviations = fmaf(-pivot, count, sums[c].sum.hi) + sums[c].sum.lo;
        moments[c].take(moments_about(pivot, m2[c], gear, deviations, inverse), count, share);
    }
}

// The moments of a thread's share of x, whose last round stays on chip.
template <class T, int V, class Walk>
__device__ inline void take_rounds(const Params &params, Extent group, const Rounds &rounds,
                                   const Tile<T, V> &tile,
                                   CountedMoments (&moments)[Walk::CHANNELS]) {
#pragma unroll 1
    for (unsigned round = 0; round < rounds.count; ++round) {
        const Walk walk(params, place_in_group(params, group, rounds.begin(round)));
        const unsigned whole = bring_x<T, V>(
            params, walk, rounds.packs(round), tile, rounds.stays(round),
            [&](const Window &window, const Pack<T, V> &pack) {
                const Window windows[1] = {window};
                const Pack<T, V> packs[1] = {pack};
                const unsigned valid = valid_bits<Walk::CHANNELS, V>(windows);
                take_batch(params, packs, valid, (float)__popc(valid), moments);
            });
        take_tile(tile, rounds.packs(round), whole, moments);
    }
}

// Packs that y is made of together, as registers allow.
template <Kind KIND, class Walk, int V>
constexpr int APPLIED = KIND == ANY ? BATCH_ANY : 16 / V;

// y of the round that is on chip, for the activations of one kind.
template <Kind KIND, class T, int V, class Walk>
__device__ inline void apply_kind(const Params &params, Walk walk, unsigned count,
                                  const Tile<T, V> &tile, const Shelf &shelf) {
    constexpr int BATCH = APPLIED<KIND, Walk, V>;
    Coefficients<T> of[Walk::CHANNELS];
#pragma unroll
    for (int c = 0; c < Walk::CHANNELS; ++c) of[c] = take_own<Coefficients<T>>(shelf, walk, c);
    const auto coefficients_of = [&](int v) {
        // Other activations need the registers for themselves.
        if constexpr (KIND == ANY) return take_own<Coefficients<T>>(shelf, walk, v);
        else return of[Walk::CHANNELS == 1 ? 0 : v];
    };
    unsigned whole = 0, ends = 0;
    walk_round<Walk, BATCH>(count, walk, [&](unsigned slot) {
        Window windows[BATCH];
        Pack<T, V> packs[BATCH] = {}, residuals[BATCH] = {};
#pragma unroll
        for (int u = 0; u < BATCH; ++u) {
            windows[u] = walk.next(u);
            if (!Walk::HAS_ENDS) {
                packs[u] = tile.get(slot + u);
            } else if (windows[u].template is_full<V>()) {
                packs[u] = tile.get(whole++);
            } else if (!windows[u].is_empty()) {
                packs[u] = tile.get(params.slots - ++ends);
            }
        }
        if (params.residual) {
            load_packs(params.residual, params.residual_stride, windows, residuals);
            load_ends(walk, params.residual, params.residual_stride, windows, residuals);
        }
        apply_and_store<KIND>(params, walk, coefficients_of, windows, packs, residuals);
    });
}

// y of the round that is on chip.
template <class T, int V, class Walk>
__device__ inline void apply_round(const Params &params, const Walk &walk, unsigned packs,
                                   const Tile<T, V> &tile, const Shelf &shelf) {
    switch (anew(params.activation)) {
        case ACTIVATION_IDENTITY:
            return apply_kind<IDENTITY>(params, walk, packs, tile, shelf);
        case ACTIVATION_RELU:
            return apply_kind<RELU>(params, walk, packs, tile, shelf);
        default: return apply_kind<ANY>(params, walk, packs, tile, shelf);
    }
}

// What normalizes a channel, from its moments: the bits that backward makes of what is saved. One
// block of a team also saves them.
template <class T>
__device__ inline Coefficients<T> finish_channel(const Params &params, Extent channel,
                                                 const WideMoments &moments, bool saves) {
    const SavedStatistics saved = saved_statistics(params, moments);
    // Loads would wait for stores that come before them.
    const Coefficients<T> result =
        channel_coefficients<T>(params, channel, saved.mean_hi, saved.mean_lo, saved.invstd);
    if (saves) save_statistics(params, channel, moments, saved);
    return result;
}

template <class T, int V, template <int> class WalkOf>
__device__ void forward(const Params &params) {
    typedef WalkOf<V> Walk;
    constexpr int CHANNELS = Walk::CHANNELS;
    const Shelf shelf = shelf_on_chip<Walk>(params);  // for Coefficients
    const Tile<T, V> tile(params, 0);
    each_group(params, [&](Extent group) {
        const Rounds rounds(params, Walk(params, place_in_group(params, group)));
        CountedMoments moments[CHANNELS];
        for (CountedMoments &of : moments) of = CountedMoments::empty();
        take_rounds<T, V, Walk>(params, group, rounds, tile, moments);

        const Walk walk(params, place_in_group(params, group));
        share_on_shelf<WideMoments>(
            params, walk, moments, shelf, [&](Extent channel, const WideMoments &total) {
                return finish_channel<T>(params, channel, total, walk.part == 0);
            });
        rounds_backwards<Walk>(
            params, group,
            [&](const Walk &again, unsigned packs) {
                bring_x(params, again, packs, tile, true, [](const Window &, const Pack<T, V> &) {});
            },
            [&](const Walk &again, unsigned packs, bool) {
                apply_round(params, again, packs, tile, shelf);
            });
        __syncthreads();
    });
    if (!params.num_batches_tracked) return;
    // Other blocks may yet need the number.
    const bool is_last = params.momentum < 0.0 ? arrives_last(params.counters, params.groups, gridDim.x)
                                               : blockIdx.x == 0;
    if (is_last && threadIdx.x == 0) count_batch(params);
}
