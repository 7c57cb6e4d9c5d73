// What a block leaves for others: for the last one of its group, which then finishes the group's
// channels, or for all of its team.
#pragma once
#include "channel.cuh"
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

// Shared memory for what a block adds up: a shelf's, if it is long enough.
template <class Walk>
struct Scratch {
    static constexpr int WORDS = 1;  // for any tile

    __device__ explicit Scratch(const Shelf &) {}
};

template <int V>
struct Scratch<Columns<V>> {
    typedef SumsArray<TOGETHER<V> * THREADS> Rows;
    static constexpr int WORDS = (sizeof(Rows) + MAX_COLUMNS * (sizeof(Sums) + sizeof(float))) / 4;
    static_assert(V == 1 || MAX_COLUMNS / V <= THREADS / TOGETHER<V>, "a row for those who add it");

    Rows &rows;
    double *first, *second;  // sums of each column,
    float *pivots;           // and what they are about

    __device__ explicit Scratch(const Shelf &shelf)
        : rows(*reinterpret_cast<Rows *>(shelf.words)),
          first(reinterpret_cast<double *>(&rows + 1)),
          second(first + shelf.places),
          pivots(reinterpret_cast<float *>(second + shelf.places)) {}

    __device__ Sums column(unsigned i) const { return {first[i], second[i]}; }
    __device__ void put_column(unsigned i, const Sums &sums) const {
        first[i] = sums.first, second[i] = sums.second;
    }
};

// Adds up the threads' items and puts those of each channel of the group at `place(channel)`.
template <class Wide, class Item, int V, class At>
__device__ inline void leave(const Planes<V> &, const Item (&items)[1], const Scratch<Planes<V>> &,
                             const At &place) {
    const Wide total = block_total<THREADS>(Wide::from(items[0]));
    if (threadIdx.x == 0) store_item(place(0), total);
}

template <class Wide, class Item, int V, class At>
__device__ inline void leave(const Columns<V> &walk, const Item (&items)[V],
                             const Scratch<Columns<V>> &scratch, const At &place) {
    const unsigned fold = walk.fold(), columns = walk.columns();
    // What a channel's sums are about: what the first row has found of its first column. The first row
    // has some of the values if any has.
    if constexpr (Wide::HAS_PIVOT) {
        if (walk.y == 0 && walk.has_columns()) {
#pragma unroll
            for (int v = 0; v < V; ++v) {
                scratch.pivots[walk.turned(walk.x * V + v)] = Wide::pivot_of(items[v]);
            }
        }
        __syncthreads();
    }
    const auto pivot_of = [&](unsigned channel) {
        return Wide::HAS_PIVOT ? scratch.pivots[walk.turned(walk.column_of(channel, 0))] : 0.0f;
    };
    const auto sums_of = [&](int v) {
        if (!walk.has_columns()) return Sums::empty();
        const unsigned column = walk.x * V + v;
        return Wide::sums_of(items[v], pivot_of(fold == 1 ? column : walk.channel_of(column)));
    };
    const double count = (double)((Extent)walk.rest * fold), inverse = 1.0 / count;
    const auto finish = [&](unsigned channel, const Sums &total) {
        store_item(place(channel), Wide::from(total, count, inverse, pivot_of(channel)));
    };
    const auto give = [&](unsigned x, unsigned v, const Sums &total) {
        const unsigned column = x * V + v;
        if (column >= columns) return;
        if (fold == 1) finish(column, total);
        else scratch.put_column(walk.turned(column), total);
    };
    rows_total<THREADS, V>(walk.width, scratch.rows, sums_of, give);
    if (fold == 1) return;
    const auto of = [&](unsigned channel, unsigned i) {
        return scratch.column(walk.turned(walk.column_of(channel, i)));
    };
    merge_parts<THREADS, Sums>(walk.channels(), fold, of, finish);
}

// Reduces the items of all blocks of this block's group and hands each channel's result to
// `finish(channel, result)`, in the block that comes last.
template <class Wide, class Walk, class Item, int COUNT, class Finish>
__device__ inline void finish_group(const Params &params, const Walk &walk, const Item (&items)[COUNT],
                                    const Finish &finish) {
    SHARED_ARRAY(float, words, Scratch<Walk>::WORDS);
    const Scratch<Walk> scratch(Shelf{words, Walk::MAX_PLACES});
    const Extent first = walk.first_channel();
    Wide *results = partials<Wide>(params, first);
    const auto of = [&](unsigned channel, unsigned part) {
        return results + (size_t)channel * params.parts + part;
    };
    leave<Wide>(walk, items, scratch, [&](unsigned channel) { return of(channel, walk.part); });
    if (!arrives_last(params.counters, walk.group(), params.parts)) return;
    // Nothing else is going on.
    constexpr int LOADED = 8;
    merge_parts<THREADS, Wide, LOADED>(
        walk.channels(), params.parts,
        [&](unsigned channel, unsigned part) { return load_item(of(channel, part)); },
        [&](unsigned channel, const Wide &total) { finish(first + channel, total); });
}

// Partial results that every block of a team merges for itself: so few take less time than another
// meeting, within a cluster and by way of memory.
constexpr unsigned MERGED_IN_CLUSTER = 512, MERGED_ALONE = 2048;

// The same in every block of a team: `use(channel, result)` gets the channel's number within the
// group, and whatever it writes may be read at once. The scratch may be of what it writes.
template <class Wide, class Walk, class Item, int COUNT, class Use>
__device__ inline void share_group(const Params &params, const Walk &walk, const Item (&items)[COUNT],
                                   const Scratch<Walk> &scratch, const Use &use) {
    const Team<Wide, Walk> team(params, walk);
    const auto of = [&](unsigned channel, unsigned part) { return load_item(team.of(channel, part)); };
    leave<Wide>(walk, items, scratch, [&](unsigned channel) { return team.own(channel); });
    const unsigned parts = params.parts, channels = walk.channels();
    team.meet(true);
    if (parts == 1 || parts * channels <= (team.is_near ? MERGED_IN_CLUSTER : MERGED_ALONE)) {
        merge_parts<THREADS, Wide>(channels, parts, of, use);
    } else {
        // Each block merges its share of the channels, and all meet again.
        const auto keep = [&](unsigned channel, const Wide &total) { store_item(team.own(channel), total); };
        merge_parts<THREADS, Wide>(channels, parts, of, keep, Every{walk.part, parts});
        team.meet(false);
        for (unsigned channel = threadIdx.x; channel < channels; channel += THREADS) {
            use(channel, of(channel, channel % parts));
        }
    }
    __syncthreads();
}

// The same, to put what `finish(channel, total)` makes of each of the group's channels on the shelf,
// where what totals are made of lies until then.
template <class Wide, class Walk, class Item, int COUNT, class Finish>
__device__ inline void share_on_shelf(const Params &params, const Walk &walk,
                                      const Item (&items)[COUNT], const Shelf &shelf,
                                      const Finish &finish) {
    const Extent first = walk.first_channel();
    share_group<Wide>(params, walk, items, Scratch<Walk>(shelf), [&](unsigned channel, const Wide &total) {
        put_on_shelf(shelf, walk, channel, finish(first + channel, total));
    });
}
