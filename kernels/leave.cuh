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
                             Item (&items)[1], Words<Item> *) {
    block_reduce<THREADS>(items[0]);
    if (threadIdx.x != 0) return;
    partials<Wide>(params, walk.channel)[walk.part] = Wide::from(items[0]);
}

// `columns` is shared memory for MAX_COLUMNS.
template <class Wide, class Item, int V, int BATCH>
__device__ inline void leave(const Params &params, const Columns<V, BATCH> &walk,
                             Item (&items)[V], Words<Item> *columns) {
    rows_reduce<THREADS>(items, walk.width);
    Wide *channels = partials<Wide>(params, walk.first_channel()) + walk.part;
    const bool is_first_row = walk.y == 0 && walk.column < params.columns;
    const unsigned fold = params.columns_per_channel;
#pragma unroll
    for (int v = 0; v < V; ++v) {
        if (!is_first_row) continue;
        if (fold == 1) {
            channels[(walk.x * V + v) * params.parts] = Wide::from(items[v]);
        } else {
            columns[walk.x * V + v].item = items[v];
        }
    }
    __syncthreads();
    if (fold == 1) return;
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
    SHARED_ARRAY(Words<Item>, columns, Walk::MAX_PLACES);
    leave<Wide>(params, walk, items, columns);
    if (!arrives_last(params.counters, walk.group(), params.parts)) return;
    const Extent first = walk.first_channel();
    merge_parts<THREADS>(partials<Wide>(params, first), walk.channels(), params.parts,
                         [&](unsigned channel, const Wide &total) { finish(first + channel, total); });
}

// Partial results that every block of a team merges for itself: so few take less time than another
// meeting.
constexpr unsigned MERGED_ALONE = 512;

// The same in every block of the group, whose blocks are resident together: `use(channel, result)`
// gets the channel's number within the group, and whatever it writes may be read at once.
template <class Wide, class Walk, class Item, int COUNT, class Use>
__device__ inline void share_group(const Params &params, const Walk &walk, Item (&items)[COUNT],
                                   Words<Item> *columns, const Use &use) {
    leave<Wide>(params, walk, items, columns);
    Wide *results = partials<Wide>(params, walk.first_channel());
    const unsigned parts = params.parts, channels = walk.channels();
    if (parts > 1) {
        team_barrier(params.counters, walk.group(), parts);
    } else {
        __syncthreads();
    }
    if (parts == 1 || parts * channels <= MERGED_ALONE) {
        merge_parts<THREADS>(results, channels, parts, use);
    } else {
        // Each block merges its share of the channels, and all meet again.
        const auto keep = [&](unsigned channel, const Wide &total) {
            results[(size_t)channel * parts] = total;
        };
        merge_parts<THREADS>(results, channels, parts, keep, Every{walk.part, parts});
        team_barrier(params.counters, params.groups + 1 + walk.group(), parts);
        for (unsigned channel = threadIdx.x; channel < channels; channel += THREADS) {
            use(channel, results[(size_t)channel * parts]);
        }
    }
    __syncthreads();
}
