// What a block keeps of its tensors on chip: packs in dynamic shared memory, `params.slots` of each
// tensor for each thread. A thread reads what it has brought itself, so that no barrier is needed,
// and neighbouring threads' packs are neighbours, so that banks do not conflict.
#pragma once
#include "channel.cuh"
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
    // `is_last_read`: memory that is read for the last time leaves the cache first, where the launch says so.
    __device__ CopyTarget<Pack<T, V>> target(const Params &params, bool is_last_read) const {
        return CopyTarget<Pack<T, V>>(packs, is_last_read && params.spares_cache);
    }
    __device__ Pack<T, V> get(unsigned slot) const {
        return load_pack<V>(reinterpret_cast<const T *>(at(slot)));
    }
    __device__ void put(unsigned slot, const Pack<T, V> &pack) const {
        store_pack<V>(reinterpret_cast<T *>(at(slot)), pack);
    }
};

// The mask's bits for each pack, behind `tensors` tiles.
__device__ inline uint16_t *mask_tile(const Params &params, unsigned tensors) {
    return block_shared<uint16_t>() + (size_t)tensors * params.slots * THREADS * 8 + threadIdx.x;
}

// The block's shelf, behind all else. For the walk's tiles.
template <class Walk>
__device__ inline Shelf shelf_on_chip(const Params &params) {
    return {block_shared<float>() + params.shelf_at / sizeof(float), Walk::places(params)};
}

// Packs that are brought together: rounds are whole batches of them.
constexpr int BROUGHT = 4;

// Packs that are worked on together where any activation may follow: its code would be repeated for
// each.
constexpr int BATCH_ANY = 1;

// A part that does not fit the tile goes through it in rounds, of which the last stays: the first
// is the one that may be short.
struct Rounds {
    const Params &params;
    unsigned count;
    unsigned first;  // packs of each thread in the first

    template <class Walk>
    __device__ Rounds(const Params &params, const Walk &walk) : params(params) {
        // Batches stay whole.
        const unsigned batches = (walk.steps() + BROUGHT - 1) / BROUGHT;
        const unsigned steps = max(batches, 1u) * BROUGHT;
        count = (steps + params.slots - 1) / params.slots;
        first = steps - (count - 1) * params.slots;
    }

    __device__ unsigned begin(unsigned round) const {
        return round == 0 ? 0 : first + (round - 1) * params.slots;
    }
    __device__ unsigned packs(unsigned round) const { return round == 0 ? first : params.slots; }
    __device__ bool stays(unsigned round) const { return round + 1 == count; }
};

// The batches of a round's slots from the first to before the last.
template <class Walk, int BATCH, class Each>
__device__ inline void walk_slots(unsigned first, unsigned last, Walk &walk, const Each &each) {
    static_assert(BROUGHT % BATCH == 0, "rounds and stages are whole batches");
#pragma unroll 1
    for (unsigned slot = first; slot < last && walk.has_batch(); slot += BATCH) {
        each(slot);
        walk.end_batch(BATCH);
    }
}

// All of a round.
template <class Walk, int BATCH, class Each>
__device__ inline void walk_round(unsigned packs, Walk &walk, const Each &each) {
    walk_slots<Walk, BATCH>(0, packs, walk, each);
}

// A round comes in stages: its first slots are worked on while the last are under way.
constexpr unsigned STAGES = 4;

// Slots of each stage of a round of so many packs: whole batches.
__device__ inline unsigned slots_per_stage(unsigned packs) {
    return (packs + STAGES * BROUGHT - 1) / (STAGES * BROUGHT) * BROUGHT;
}

// Calls `each(first, last)` with the slots of each stage, as soon as they are on chip.
template <class Each>
__device__ inline void each_stage(unsigned packs, const Each &each) {
    const unsigned slots = slots_per_stage(packs);
#pragma unroll 1
    for (unsigned stage = 0; stage < STAGES; ++stage) {
        async_copy_wait(STAGES - 1 - stage);
        each(min(stage * slots, packs), min((stage + 1) * slots, packs));
    }
}

// Starts bringing a round's stages: `bring(first, last)` starts the copies of some slots.
template <class Bring>
__device__ inline void bring_stages(unsigned packs, const Bring &bring) {
    const unsigned slots = slots_per_stage(packs);
#pragma unroll 1
    for (unsigned stage = 0; stage < STAGES; ++stage) {
        bring(min(stage * slots, packs), min((stage + 1) * slots, packs));
        async_copy_commit();
    }
}

// Hands the rounds of a group to `use(walk, packs, has_stayed)`, the last one, which has stayed on chip,
// first: what was read last may still be in the cache. `bring(walk, packs)` starts to bring one of the
// others.
template <class Walk, class Bring, class Use>
__device__ inline void rounds_backwards(const Params &params, Extent group, const Bring &bring,
                                        const Use &use) {
    const Rounds rounds(params, Walk(params, place_in_group(params, group)));
#pragma unroll 1
    for (unsigned round = rounds.count; round-- > 0;) {
        const Walk walk(params, place_in_group(params, group, rounds.begin(round)));
        const unsigned packs = rounds.packs(round);
        const bool has_stayed = rounds.stays(round);
        if (!has_stayed) {
            bring(walk, packs);
            async_copy_wait(0);
        }
        use(walk, packs, has_stayed);
    }
}
