// Reductions: lanes -> warp -> block -> grid, each in a fixed order, so that the same input gives
// the same bits. Their loops are kept as loops: a merge is long, and done once in a while.
//
// An item is a small struct with `static Item empty()` and `void merge(const Item &)`.
#pragma once
#include "device.cuh"
#include "params.h"

// An item as words, to go through shuffles and shared memory.
template <class Item>
union Words {
    static constexpr int COUNT = sizeof(Item) / 4;
    unsigned words[COUNT];
    Item item;
};

// The item of the lane whose number differs in the one bit that is set in `across`.
template <class Item>
__device__ inline Item from_lane_across(const Item &item, unsigned across) {
    Words<Item> mine, theirs;
    mine.item = item;
#pragma unroll
    for (int i = 0; i < Words<Item>::COUNT; ++i) {
        theirs.words[i] = __shfl_xor_sync(0xffffffffu, mine.words[i], across);
    }
    return theirs.item;
}

// The item of the first of `width` neighbouring lanes.
template <class Item>
__device__ inline Item from_first_lane(const Item &item, int width) {
    Words<Item> mine, first;
    mine.item = item;
#pragma unroll
    for (int i = 0; i < Words<Item>::COUNT; ++i) {
        first.words[i] = __shfl_sync(0xffffffffu, mine.words[i], 0, width);
    }
    return first.item;
}

// Apart from its callers: a merge is long, and done once in a while.
template <class Item>
__device__ __noinline__ Item merged(Item item, Item other) {
    item.merge(other);
    return item;
}

// Merges the items of `width` neighbouring lanes (a power of two) into the first of them. All
// lanes of the warp take part.
template <class Item>
__device__ inline void warp_reduce(Item &item, int width = 32) {
#pragma unroll 1
    for (int offset = width / 2; offset > 0; offset /= 2) {
        item = merged(item, from_lane_across(item, offset));
    }
}

// Merges an item of every thread into that of thread 0.
template <int THREADS, class Item>
__device__ inline void block_reduce(Item &item) {
    constexpr int WARPS = THREADS / 32;
    SHARED_ARRAY(Words<Item>, of_warp, WARPS);
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    warp_reduce(item);
    if (lane == 0) of_warp[warp].item = item;
    __syncthreads();
    if (warp == 0) {
        item = of_warp[lane % WARPS].item;
        warp_reduce(item, WARPS);
    }
}

// Merges COUNT items of each thread down the rows of a block that is laid out as rows of `width`
// threads, into the threads of the first row. Threads beyond the last whole row hold empty items.
template <int THREADS, int COUNT, class Item>
__device__ inline void rows_reduce(Item (&items)[COUNT], unsigned width) {
    // So many at a time: shared memory is scarce.
    constexpr int CHUNK = COUNT < 2 ? COUNT : 2;
    constexpr int WORDS = Words<Item>::COUNT, HALF = THREADS / 2;
    // Word by word, so that neighbouring threads use neighbouring banks.
    SHARED_ARRAY(unsigned, shelf, CHUNK *WORDS *HALF);
    const unsigned thread = threadIdx.x, row = thread / width;
#pragma unroll
    for (int first = 0; first < COUNT; first += CHUNK) {
#pragma unroll 1
        for (unsigned rows = (THREADS + width - 1) / width; rows > 1; rows = (rows + 1) / 2) {
            const unsigned kept = (rows + 1) / 2, moved = kept * width;
            if (row >= kept && row < rows) {
#pragma unroll
                for (int i = 0; i < CHUNK * WORDS; ++i) {
                    Words<Item> mine;
                    mine.item = items[first + i / WORDS];
                    shelf[i * HALF + thread - moved] = mine.words[i % WORDS];
                }
            }
            __syncthreads();
            if (row < rows - kept && thread + moved < THREADS) {
#pragma unroll
                for (int i = 0; i < CHUNK; ++i) {
                    Words<Item> theirs;
#pragma unroll
                    for (int w = 0; w < WORDS; ++w) theirs.words[w] = shelf[(i * WORDS + w) * HALF + thread];
                    items[first + i] = merged(items[first + i], theirs.item);
                }
            }
            __syncthreads();
        }
    }
}

// Whether this block is the last of `blocks` to come here with its results written; the results
// of the others can then be read. Leaves the counter at zero.
__device__ inline bool arrives_last(Address counters, Extent group, unsigned blocks) {
    SHARED_ARRAY(unsigned, is_last, 1);
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned *counter = reinterpret_cast<unsigned *>(counters) + group;
        // The fences speak for the whole block: barriers stand on either side of them.
        __threadfence();
        is_last[0] = blocks == 1 || atomicInc(counter, blocks - 1) == blocks - 1;
        __threadfence();
    }
    __syncthreads();
    return is_last[0];
}

// All of a team's `blocks` come here before any of them goes on; what they have written can then be
// read. They must be resident together. Leaves the counter at zero.
__device__ inline void team_barrier(Address counters, Extent team, unsigned blocks) {
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned *counter = reinterpret_cast<unsigned *>(counters) + team;
        // The fences speak for the whole block: barriers stand on either side of them.
        __threadfence();
        // Everyone counts twice, coming and going, and the last to go wraps round.
        atomicInc(counter, 2 * blocks - 1);
        while (load_flag(counter) < blocks) spin_pause();
        __threadfence();
        atomicInc(counter, 2 * blocks - 1);
    }
    __syncthreads();
}

// What a block has left, of f64 only: each word is loaded once, whatever is made of it.
template <class Item>
__device__ inline Item load_item(const Item *place) {
    constexpr int COUNT = sizeof(Item) / sizeof(double);
    union {
        double words[COUNT];
        Item item;
    } loaded;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) loaded.words[i] = reinterpret_cast<const double *>(place)[i];
    return loaded.item;
}

// How many lanes share the merging of `parts` partial results: a power of two.
__device__ inline unsigned lanes_for(unsigned parts) {
    unsigned lanes = 1;
    while (lanes < 32 && lanes < parts) lanes *= 2;
    return lanes;
}

// The total of one channel's partial results in each of the lanes that share it; of none where it is not
// `there`. `partial(part)` points at one, of which a few are on their way to each lane at a time.
template <class Item, class Partial>
__device__ inline Item total_of(unsigned parts, unsigned lanes, bool there, const Partial &partial) {
    constexpr int AT_ONCE = 4;
    if (parts == 1) return there ? load_item(partial(0)) : Item::empty();
    typename Item::Total total = {};
    double pivot = 0.0;
#pragma unroll 1
    for (unsigned begin = 0; begin < parts; begin += AT_ONCE * lanes) {
        Item items[AT_ONCE];
#pragma unroll
        for (int u = 0; u < AT_ONCE; ++u) {
            const unsigned part = begin + u * lanes + threadIdx.x % lanes;
            items[u] = there && part < parts ? load_item(partial(part)) : Item::empty();
        }
        if (begin == 0) pivot = from_first_lane(items[0].pivot(), lanes);
#pragma unroll
        for (const Item &item : items) total.add(item, pivot);
    }
#pragma unroll 1
    for (unsigned across = lanes / 2; across > 0; across /= 2) {
        total.add(from_lane_across(total, across));
    }
    return total.result(pivot);
}

// Which of a block's channels are meant: from the first on, every `step`-th.
struct Every {
    unsigned first, step;
};

// Hands the merged partial results of each of `channels` channels, or of `some` of them, to
// `finish(channel, item)`. `partial(channel, part)` points at one. Lanes that share channels merge as
// many as they are, and each finishes one of them: that takes as long as merging.
template <int THREADS, class Item, class Partial, class Finish>
__device__ inline void merge_parts(unsigned channels, unsigned parts, const Partial &partial,
                                   const Finish &finish, const Every &some = {0, 1}) {
    const unsigned lanes = lanes_for(parts), lane = threadIdx.x % lanes;
    const unsigned step = THREADS / lanes * some.step;
#pragma unroll 1
    for (unsigned first = some.first; first < channels; first += lanes * step) {
        const unsigned begin = first + threadIdx.x / lanes * some.step;
        Item mine = Item::empty();
#pragma unroll 1
        for (unsigned turn = 0; turn < lanes && first + turn * step < channels; ++turn) {
            const unsigned channel = begin + turn * step;
            const auto part_of = [&](unsigned part) { return partial(channel, part); };
            const Item total = total_of<Item>(parts, lanes, channel < channels, part_of);
            if (lane == turn) mine = total;
        }
        const unsigned channel = begin + lane * step;
        if (channel < channels) finish(channel, mine);
    }
}
