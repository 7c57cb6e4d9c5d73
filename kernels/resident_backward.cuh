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

// Packs that are worked on together: for the sums, whose four rows of columns add up in fp32 before they
// go to a compensated sum, and for dx, as registers allow. Of dx, what stays on chip mostly has passed the
// gate; few packs have not.
template <Gate GATE, class Walk, int V>
constexpr int SUMMED = GATE == ANY_FROM_X ? BATCH_ANY : Walk::CHANNELS == 1 ? 16 / V : 4;
template <Gate GATE, class Walk, int V>
constexpr int CHANGED = GATE != OPEN ? 1 : Walk::CHANNELS == 1 ? 16 / V : 2;

// Whether g takes dy's place on chip as soon as it is known: where the element type loses nothing of it.
template <Gate GATE, class T>
constexpr bool KEEPS_G = GATE != OPEN && (GATE != ANY_FROM_X || sizeof(T) == 4);

// The same of the launch's gate.
template <class T>
__device__ inline bool keeps_g(const Params &params) {
    bool keeps = false;
    with_gate<ALL_GATES>(params, [&](auto gate) { keeps = KEEPS_G<gate.GATE, T>; });
    return keeps;
}

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
        if (GATE == FROM_MASK || (GATE == ANY_FROM_X && has_mask)) inputs.bits = bits[slot * THREADS];
        return inputs;
    }
};

template <bool IS_EVEN, class T, int V, class Walk>
__device__ inline void bring_pack(const Tile<T, V> &tile, const CopyTarget<Pack<T, V>> &target,
                                  unsigned slot, Address tensor, Extent stride, const Walk &walk,
                                  const Window &window) {
    if (IS_EVEN || window.is_full<V>() || window.is_empty()) {
        const T *from = reinterpret_cast<const T *>(tensor) + window.offset(stride);
        async_copy_pack(target, slot * THREADS, from, window.is_full<V>());
    } else {
        Pack<T, V> pack = {};
        load_end(walk, tensor, stride, window, pack);
        tile.put(slot, pack);
    }
}

// Of all inputs.
template <bool IS_EVEN, class T, int V, class Walk>
__device__ inline void bring_packs(const Params &params, const InputTiles<T, V> &tiles,
                                   const CopyTarget<Pack<T, V>> (&to)[3], unsigned slot,
                                   const Walk &walk, const Window &window) {
    bring_pack<IS_EVEN>(tiles.x, to[0], slot, params.x, params.x_stride, walk, window);
    bring_pack<IS_EVEN>(tiles.dy, to[1], slot, params.dy, params.dy_stride, walk, window);
    if (!tiles.has_residual) return;
    bring_pack<IS_EVEN>(tiles.residual, to[2], slot, params.residual, params.residual_stride, walk, window);
}

template <class T, int V, class Walk>
__device__ inline void bring_bits(const Params &params, Walk walk, unsigned packs,
                                  const InputTiles<T, V> &tiles) {
    walk_round<Walk, BROUGHT>(packs, walk, [&](unsigned slot) {
        unsigned bits[BROUGHT];
#pragma unroll
        for (int u = 0; u < BROUGHT; ++u) bits[u] = load_bits(params, walk, walk.next(u));
#pragma unroll
        for (int u = 0; u < BROUGHT; ++u) tiles.bits[(slot + u) * THREADS] = (uint16_t)bits[u];
    });
}

// Starts bringing one round of the inputs on chip. What is not there is zeros.
template <class T, int V, class Walk>
__device__ inline void bring_inputs(const Params &params, const Walk &start, unsigned packs,
                                    const InputTiles<T, V> &tiles, bool is_last_read) {
    const auto target = [&](const Tile<T, V> &tile) { return tile.target(params, is_last_read); };
    const CopyTarget<Pack<T, V>> to[3] = {target(tiles.x), target(tiles.dy), target(tiles.residual)};
    Walk walk = start;
    const bool is_even = walk.is_even();
    bring_stages(packs, [&](unsigned first, unsigned last) {
        walk_slots<Walk, BROUGHT>(first, last, walk, [&](unsigned slot) {
            if (is_even) {
#pragma unroll
                for (int u = 0; u < BROUGHT; ++u) {
                    bring_packs<true>(params, tiles, to, slot + u, walk, walk.template next<true>(u));
                }
            } else if constexpr (Walk::HAS_ENDS) {
#pragma unroll 1
                for (int u = 0; u < BROUGHT; ++u) {
                    bring_packs<false>(params, tiles, to, slot + u, walk, walk.next(u));
                }
            }
        });
    });
    // After all copies are under way, which a load in their midst would hold up.
    if (tiles.has_mask) bring_bits(params, start, packs, tiles);
}

// The batches of some slots, from the tiles. `each(slot, inputs)` may change them.
template <Gate GATE, class T, int V, int BATCH, class Walk, class Each>
__device__ inline void walk_tiles(unsigned first, unsigned last, Walk &walk,
                                  const InputTiles<T, V> &tiles, const Each &each) {
    walk_slots<Walk, BATCH>(first, last, walk, [&](unsigned slot) {
        Inputs<T, V> inputs[BATCH];
#pragma unroll
        for (int u = 0; u < BATCH; ++u) inputs[u] = tiles.template get<GATE>(slot + u);
        each(slot, inputs);
    });
}

// Adds what the round's stages bring to the thread's sums. Where it can, g takes dy's place.
template <class T, int V, class Walk>
__device__ inline void sum_round(const Params &params, const Walk &start, unsigned packs,
                                 const InputTiles<T, V> &tiles, const Shelf &shelf,
                                 ThreadSums<Walk::CHANNELS> &sums) {
    with_gate<ALL_GATES>(params, [&](auto gate) {
        constexpr Gate GATE = gate.GATE;
        constexpr bool KEEPS = KEEPS_G<GATE, T>;
        constexpr int TOGETHER = SUMMED<GATE, Walk, V>;
        Walk walk = start;
        each_stage(packs, [&](unsigned first, unsigned last) {
            walk_tiles<GATE, T, V, TOGETHER>(first, last, walk, tiles, [&](unsigned slot, auto &inputs) {
                sum_batch<GATE, Coefficients<T>, KEEPS>(params, walk, shelf, inputs, sums);
                if constexpr (KEEPS) {
#pragma unroll
                    for (int u = 0; u < TOGETHER; ++u) tiles.dy.put(slot + u, inputs[u].dy);
                }
            });
        });
    });
}

// dx and dresidual of the round that is on chip, which holds dy or already g.
template <class T, int V, class Walk>
__device__ inline void gradients_of_round(const Params &params, const Walk &start, unsigned packs,
                                          const InputTiles<T, V> &tiles, const Shelf &shelf, bool holds_g) {
    const auto through = [&](auto gate) {
        constexpr Gate GATE = gate.GATE;
        constexpr int TOGETHER = CHANGED<GATE, Walk, V>;
        Walk walk = start;
        walk_tiles<GATE, T, V, TOGETHER>(0, packs, walk, tiles, [&](unsigned, auto &inputs) {
            find_gradients<GATE>(params, walk, shelf, inputs);
#pragma unroll
            for (int u = 0; u < TOGETHER; ++u) {
                store_gradients(params, walk, walk.next(u), inputs[u]);
            }
        });
    };
    with_gate<ALL_GATES>(params, through, holds_g);
}

// What dx of a channel is made of, from its sums. One block of a team also writes the gradients of
// its parameters.
template <class T>
__device__ inline Gradient<T> finish_channel(const Params &params, Extent channel,
                                                   WideSums total, bool writes) {
    const double gd = sum_gd(params, channel, total);
    if (writes) write_parameter_gradients(params, channel, total.g, gd);
    const double share = 1.0 / (double)(params.samples * params.spatial);
    return channel_gradient<T>(params, channel, total.g * share, gd * share);
}

template <class T, int V, template <int> class WalkOf>
__device__ void backward(const Params &params) {
    typedef WalkOf<V> Walk;
    constexpr int CHANNELS = Walk::CHANNELS;
    // For Coefficients while the sums are taken, and then a Gradient.
    const Shelf shelf = shelf_on_chip<Walk>(params);
    const InputTiles<T, V> tiles(params);
    each_group(params, [&](Extent group) {
        const Walk start(params, place_in_group(params, group));
        const Rounds rounds(params, start);
        ThreadSums<CHANNELS> sums = {};
#pragma unroll 1
        for (unsigned round = 0; round < rounds.count; ++round) {
            const Walk of_round(params, place_in_group(params, group, rounds.begin(round)));
            const unsigned packs = rounds.packs(round);
            bring_inputs<T, V>(params, of_round, packs, tiles, rounds.stays(round));
            // While the copies are under way.
            if (round == 0) {
                fill_shelf<Coefficients<T>>(shelf, start, [&](Extent channel) {
                    return channel_coefficients<T>(params, channel);
                });
            }
            sum_round(params, of_round, packs, tiles, shelf, sums);
        }

        const Walk walk(params, place_in_group(params, group));
        WideSums wide[CHANNELS];
        widen_all(walk, sums, wide);
        __syncthreads();
        share_on_shelf<WideSums>(
            params, walk, wide, shelf, [&](Extent channel, const WideSums &total) {
                return finish_channel<T>(params, channel, total, walk.part == 0);
            });
        rounds_backwards<Walk>(
            params, group,
            [&](const Walk &again, unsigned packs) {
                bring_inputs<T, V>(params, again, packs, tiles, true);
            },
            [&](const Walk &again, unsigned packs, bool has_stayed) {
                const bool holds_g = has_stayed && keeps_g<T>(params);
                gradients_of_round(params, again, packs, tiles, shelf, holds_g);
            });
        __syncthreads();
    });
}
