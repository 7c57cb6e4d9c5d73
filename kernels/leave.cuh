// What a block leaves for others: for the last one of its group, which then finishes the group's
// channels, or for all of its team.
#pragma once
#include "device.cuh"
#include "params.h"
#include "reduce.cuh"
#include "team.cuh"
#include "walk.cuh"

// [C, parts]
template <class Wide>
__device__ inline Wide *partials(const Params &params, Extent first_channel) {
    return reinterpret_cast<Wide *>(params.partials) + first_channel * params.parts;
}

// Merges the threads' items and puts those of each channel of the group at `place(channel)`.
template <class Wide, class Item, int V, class At>
__device__ inline void leave(const Params &, const Planes<V> &, Item (&items)[1],
                             Words<Item> *, const At &place) {
    block_reduce<THREADS>(items[0]);
    if (threadIdx.x == 0) *place(0) = Wide::from(items[0]);
}

// `columns` is shared memory for MAX_COLUMNS.
template <class Wide, class Item, int V, class At>
__device__ inline void leave(const Params &params, const Columns<V> &walk,
                             Item (&items)[V], Words<Item> *columns, const At &place) {
    rows_reduce<THREADS>(items, walk.width);
    const bool is_first_row = walk.y == 0 && walk.column < params.columns;
    const unsigned fold = params.columns_per_channel;
#pragma unroll
    for (int v = 0; v < V; ++v) {
        if (!is_first_row) continue;
        if (fold == 1) {
            *place(walk.x * V + v) = Wide::from(items[v]);
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
            item = merged(item, columns[channel * fold + i].item);
        }
        warp_reduce(item);
        if (threadIdx.x % 32 == 0) *place(channel) = Wide::from(item);
    }
}

// Reduces the items of all blocks of this block's group and hands each channel's result to
// `finish(channel, result)`, in the block that comes last.
template <class Wide, class Walk, class Item, int COUNT, class Finish>
__device__ inline void finish_group(const Params &params, const Walk &walk, Item (&items)[COUNT],
                                    const Finish &finish) {
    SHARED_ARRAY(Words<Item>, columns, Walk::MAX_PLACES);
    const Extent first = walk.first_channel();
    Wide *results = partials<Wide>(params, first);
    const auto of = [&](unsigned channel, unsigned part) {
        return results + (size_t)channel * params.parts + part;
    };
    leave<Wide>(params, walk, items, columns, [&](unsigned channel) { return of(channel, walk.part); });
    if (!arrives_last(params.counters, walk.group(), params.parts)) return;
    merge_parts<THREADS, Wide>(
        walk.channels(), params.parts, of,
        [&](unsigned channel, const Wide &total) { finish(first + channel, total); });
}

// Partial results that every block of a team merges for itself: so few take less time than another
// meeting.
constexpr unsigned MERGED_ALONE = 512;

// The same in every block of a team: `use(channel, result)` gets the channel's number within the
// group, and whatever it writes may be read at once.
template <class Wide, class Walk, class Item, int COUNT, class Use>
__device__ inline void share_group(const Params &params, const Walk &walk, Item (&items)[COUNT],
                                   Words<Item> *columns, const Use &use) {
    const Team<Wide, Walk> team(params, walk);
    const auto of = [&](unsigned channel, unsigned part) { return team.of(channel, part); };
    leave<Wide>(params, walk, items, columns, [&](unsigned channel) { return team.own(channel); });
    const unsigned parts = params.parts, channels = walk.channels();
    team.meet(true);
    if (parts == 1 || parts * channels <= MERGED_ALONE) {
        merge_parts<THREADS, Wide>(channels, parts, of, use);
    } else {
        // Each block merges its share of the channels, and all meet again.
        const auto keep = [&](unsigned channel, const Wide &total) { *team.own(channel) = total; };
        merge_parts<THREADS, Wide>(channels, parts, of, keep, Every{walk.part, parts});
        team.meet(false);
        for (unsigned channel = threadIdx.x; channel < channels; channel += THREADS) {
            use(channel, *team.of(channel, channel % parts));
        }
    }
    __syncthreads();
}
