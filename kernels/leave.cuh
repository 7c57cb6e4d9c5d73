// What a block leaves for the last one of its group, which then finishes the group's channels.
#pragma once
#include "device.cuh"
#include "params.h"
#include "reduce.cuh"
#include "walk.cuh"

// [C, parts]
template <class Wide>
__device__ inline Wide *partials(const Params &params, Extent first_channel) {
    return reinterpret_cast<Wide *>(params.partials) + first_channel * params.parts;
}

template <class Wide, class Item, int V, int BATCH>
__device__ inline void leave(const Params &params, const Planes<V, BATCH> &walk,
                             Item (&items)[1]) {
    block_reduce<THREADS>(items[0]);
    if (threadIdx.x != 0) return;
    partials<Wide>(params, walk.channel)[walk.part()] = Wide::from(items[0]);
}

template <class Wide, class Item, int V, int BATCH>
__device__ inline void leave(const Params &params, const Columns<V, BATCH> &walk,
                             Item (&items)[V]) {
    SHARED_ARRAY(Words<Item>, columns, MAX_SLOTS);
    rows_reduce<THREADS>(items, walk.width);
    const bool is_first_row = walk.y == 0 && walk.column < params.columns;
#pragma unroll
    for (int v = 0; v < V; ++v) {
        if (is_first_row) columns[walk.x * V + v].item = items[v];
    }
    __syncthreads();
    Wide *channels = partials<Wide>(params, walk.first_channel()) + walk.part();
    const unsigned fold = params.columns_per_channel;
    if (fold == 1) {
#pragma unroll 1
        for (unsigned channel = threadIdx.x; channel < walk.channels(); channel += THREADS) {
            channels[channel * params.parts] = Wide::from(columns[channel].item);
        }
        return;
    }
#pragma unroll 1
    for (unsigned channel = threadIdx.x / 32; channel < walk.channels(); channel += THREADS / 32) {
        Item item = Item::empty();
#pragma unroll 1
        for (unsigned i = threadIdx.x % 32; i < fold; i += 32) {
            item.merge(columns[channel * fold + i].item);
        }
        warp_reduce(item);
        if (threadIdx.x % 32 == 0) channels[channel * params.parts] = Wide::from(item);
    }
}

// Reduces the items of all blocks of this block's group and hands each channel's result to
// `finish(channel, result)`, in the block that comes last.
template <class Wide, class Walk, class Item, int COUNT, class Finish>
__device__ inline void finish_group(const Params &params, const Walk &walk, Item (&items)[COUNT],
                                    const Finish &finish) {
    leave<Wide>(params, walk, items);
    if (!arrives_last(params.counters, walk.group(), params.parts)) return;
    const Extent first = walk.first_channel();
    merge_parts<THREADS>(partials<Wide>(params, first), walk.channels(), params.parts,
                         [&](unsigned channel, const Wide &total) { finish(first + channel, total); });
}
