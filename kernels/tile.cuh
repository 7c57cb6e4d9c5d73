// What a block keeps of its tensors on chip: packs in dynamic shared memory, `params.slots` of each
// tensor for each thread. A thread reads what it has brought itself, so that no barrier is needed,
// and neighbouring threads' packs are neighbours, so that banks do not conflict.
#pragma once
#include "device.cuh"
#include "params.h"
#include "walk.cuh"

template <class T, int V>
struct Tile {
    Pack<T, V> *packs;

    // The tile of the call's first tensor, its second, ...
    __device__ Tile(const Params &params, unsigned tensor)
        : packs(block_shared<Pack<T, V>>() + (size_t)tensor * params.slots * THREADS + threadIdx.x) {}

    __device__ Pack<T, V> *at(unsigned slot) const { return packs + slot * THREADS; }
    __device__ Pack<T, V> get(unsigned slot) const { return load_pack<V>(at(slot)->values); }
    __device__ void put(unsigned slot, const Pack<T, V> &pack) const {
        store_pack<V>(at(slot)->values, pack);
    }
};

// The mask's bits for each pack, behind `tensors` tiles.
__device__ inline uint16_t *mask_tile(const Params &params, unsigned tensors) {
    return block_shared<uint16_t>() + (size_t)tensors * params.slots * THREADS * 8 + threadIdx.x;
}

// A part that does not fit the tile goes through it in rounds: the last stays.
template <class Walk>
__device__ inline unsigned rounds_of(const Params &params, const Walk &walk) {
    const unsigned rounds = (walk.steps() + params.slots - 1) / params.slots;
    return max(rounds, 1u);
}

// The batches of one round.
template <class Walk, int BATCH, class Each>
__device__ inline void walk_round(const Params &params, Walk &walk, const Each &each) {
    for (unsigned slot = 0; slot < params.slots && walk.has_batch(); slot += BATCH, walk.end_batch()) {
        each(slot);
    }
}

// The groups that this block's team works on, one after the other.
template <class Each>
__device__ inline void each_group(const Params &params, const Each &each) {
    const Place first = place_of_block(params);
    const unsigned teams = gridDim.x / params.parts;
    for (Extent group = first.group; group < params.groups; group += teams) each(group, first.part);
}
