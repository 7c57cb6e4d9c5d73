// A training backward that reads x and dy once: they stay on chip from their sums to dx.
#pragma once
#include "backward.cuh"
#include "channel.cuh"
#include "device.cuh"
#include "epilogue.cuh"
#include "leave.cuh"
#include "params.h"
#include "reduce.cuh"
#include "team.cuh"
#include "tile.cuh"
#include "walk.cuh"

// The tiles of a backward's inputs. Where a pack is not whole, what is not there holds zeros.
template <class T, int V>
struct InputTiles {
    Tile<T, V> x, dy, residual;
    uint16_t *bits;
    bool has_residual, has_mask;

    __device__ explicit InputTiles(const Params &params)
        : x(params, 0), dy(params, 1), residual(params, 2) {
        has_mask = params.mask != 0;
        has_residual = params.residual && !has_mask;
        bits = mask_tile(params, has_residual ? 3 : 2);
    }

    template <Gate GATE>
    __device__ Inputs<T, V> get(unsigned slot) const {
        Inputs<T, V> inputs = {};
        inputs.x = x.get(slot);
        inputs.dy = dy.get(slot);
        if (GATE == ANY_FROM_X && has_residual) inputs.residual = residual.get(slot);
        if (GATE == FROM_MASK) inputs.bits = bits[slot * THREADS];
        return inputs;
    }
};

template <class T, int V, class Walk>
__device__ inline void bring_pack(const Tile<T, V> &tile, unsigned slot, Address tensor,
                                  Extent stride, const Walk &walk, const Window &window) {
    if (window.template is_full<V>()) {
        async_copy_pack<V>(tile.at(slot), reinterpret_cast<const T *>(tensor) + window.offset(stride));
    } else {
        Pack<T, V> pack = {};
        load_end(walk, tensor, stride, window, pack);
        tile.put(slot, pack);
    }
}

template <class T, int V, int BATCH, class Walk>
__device__ inline void bring_bits(const Params &params, Walk walk, unsigned packs,
                                  const InputTiles<T, V> &tiles) {
    walk_round<Walk, BATCH>(packs, walk, [&](unsigned slot) {
        unsigned bits[BATCH];
#pragma unroll
        for (int u = 0; u < BATCH; ++u) bits[u] = load_bits(params, walk, walk.next(u));
#pragma unroll
        for (int u = 0; u < BATCH; ++u) tiles.bits[(slot + u) * THREADS] = (uint16_t)bits[u];
    });
}

// Brings one round of the inputs on chip.
template <class T, int V, int BATCH, class Walk>
__device__ inline void bring_inputs(const Params &params, Walk walk, unsigned packs,
                                    const InputTiles<T, V> &tiles) {
    const Walk masks = walk;
    walk_round<Walk, BATCH>(packs, walk, [&](unsigned slot) {
        // Nothing waits for a copy: unrolled, the loop would only be longer.
#pragma unroll 1
        for (int u = 0; u < BATCH; ++u) {
            const Window window = walk.next(u);
            bring_pack(tiles.x, slot + u, params.x, params.x_stride, walk, window);
            bring_pack(tiles.dy, slot + u, params.dy, params.dy_stride, walk, window);
            if (tiles.has_residual) {
                bring_pack(tiles.residual, slot + u, params.residual, params.residual_stride, walk,
                           window);
            }
        }
    });
    // After all copies are under way, which a load in their midst would hold up.
    if (tiles.has_mask) bring_bits<T, V, BATCH>(params, masks, packs, tiles);
    async_copy_wait();
}

template <Gate GATE, class T, int V, int BATCH, class Walk>
__device__ inline void sum_round(const Params &params, Walk walk, unsigned packs,
                                 const InputTiles<T, V> &tiles, const float *shelf,
                                 ThreadSums<Walk::CHANNELS> &sums) {
    walk_round<Walk, BATCH>(packs, walk, [&](unsigned slot) {
        Window windows[BATCH];
        Inputs<T, V> inputs[BATCH];
#pragma unroll
        for (int u = 0; u < BATCH; ++u) {
            windows[u] = walk.presence(u);
            inputs[u] = tiles.template get<GATE>(slot + u);
        }
        sum_batch<GATE, T, V, BATCH, Walk, Centre>(params, walk, shelf, windows, inputs, sums);
    });
}

template <Gate GATE, class T, int V, int BATCH, class Walk>
__device__ inline void gradient_round(const Params &params, Walk walk, unsigned packs,
                                      const InputTiles<T, V> &tiles, const float *shelf) {
    walk_round<Walk, BATCH>(packs, walk, [&](unsigned slot) {
#pragma unroll
        for (int u = 0; u < BATCH; ++u) {
            const Window window = walk.next(u);
            store_gradients<GATE>(params, walk, shelf, window, tiles.template get<GATE>(slot + u));
        }
    });
}

// What dx of a channel is made of, from its sums. One block of a team also writes the gradients of
// its parameters. Apart from its callers: it is long, and done once a channel.
__device__ __noinline__ Gradient finish_channel(const Params &params, Extent channel, WideSums total,
                                                bool writes) {
    const double gd = sum_gd(params, channel, total);
    if (writes) write_parameter_gradients(params, channel, total.g, gd);
    const double share = 1.0 / (double)(params.samples * params.spatial);
    return channel_gradient(params, channel, total.g * share, gd * share);
}

template <class T, int V, int BATCH, template <int> class WalkOf>
__device__ void backward(const Params &params) {
    typedef WalkOf<V> Walk;
    constexpr int CHANNELS = Walk::CHANNELS;
    // Of a channel's Gradient, its Centre comes first: the sums need no more.
    SHARED_ARRAY(float, shelf, Gradient::WORDS *Walk::MAX_PLACES);
    const InputTiles<T, V> tiles(params);
    each_group(params, [&](Extent group) {
        const Walk start(params, place_in_group(params, group));
        const Rounds rounds(params, start);
        fill_shelf<Centre>(shelf, start, [&](Extent channel) { return channel_centre(params, channel); });
        ThreadSums<CHANNELS> sums = {};
#pragma unroll 1
        for (unsigned round = 0; round < rounds.count; ++round) {
            const Walk of_round(params, place_in_group(params, group, rounds.begin(round)));
            const unsigned packs = rounds.packs(round);
            bring_inputs<T, V, BATCH>(params, of_round, packs, tiles);
            with_gate<ALL_GATES>(params, [&](auto gate) {
                constexpr int TOGETHER = gate.GATE == ANY_FROM_X ? BATCH_ANY : BATCH;
                sum_round<gate.GATE, T, V, TOGETHER>(params, of_round, packs, tiles, shelf, sums);
            });
        }

        WideSums wide[CHANNELS];
        widen_all(sums, wide);
        auto *columns = reinterpret_cast<Words<WideSums> *>(shelf);
        const Walk walk(params, place_in_group(params, group));
        const Extent first = walk.first_channel();
        __syncthreads();
        share_group<WideSums>(
            params, walk, wide, columns, [&](unsigned channel, const WideSums &total) {
                put_on_shelf<Walk::MAX_PLACES>(
                    shelf, walk.place_of(channel),
                    finish_channel(params, first + channel, total, walk.part == 0));
            });

        // Backwards: what was read last may still be in the cache.
#pragma unroll 1
        for (unsigned round = rounds.count; round-- > 0;) {
            const Walk again(params, place_in_group(params, group, rounds.begin(round)));
            const unsigned packs = rounds.packs(round);
            if (round + 1 < rounds.count) {
                bring_inputs<T, V, BATCH>(params, again, packs, tiles);
            }
            with_gate<ALL_GATES>(params, [&](auto gate) {
                constexpr int TOGETHER = gate.GATE == ANY_FROM_X ? BATCH_ANY : BATCH;
                gradient_round<gate.GATE, T, V, TOGETHER>(params, again, packs, tiles, shelf);
            });
        }
        __syncthreads();
    });
}
