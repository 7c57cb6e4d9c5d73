// Reductions: threads -> block -> grid, each in a fixed order, so that the same input gives the same
// bits. What is reduced is added up in f64, moments about a pivot: so nothing is divided on the way. An
// item is a small struct with `static Item empty()`, `pivot()` and a Total that items are added to.
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

// The item of another lane.
template <class Item>
__device__ inline Item from_lane(const Item &item, unsigned lane) {
    Words<Item> mine, theirs;
    mine.item = item;
#pragma unroll
    for (int i = 0; i < Words<Item>::COUNT; ++i) {
        theirs.words[i] = __shfl_sync(0xffffffffu, mine.words[i], lane);
    }
    return theirs.item;
}

// The total of items that are sums.
template <class Item>
struct PlainTotal {
    Item sums;

    __device__ void add(const Item &part, double) { sums.merge(part); }
    __device__ void add(const PlainTotal &other) { sums.merge(other.sums); }
    __device__ Item result(double) const { return sums; }
};

// What a block adds up of a channel.
struct Sums {
    double first, second;

    __device__ static Sums empty() { return {0.0, 0.0}; }
    __device__ double pivot() const { return 0.0; }
    __device__ void merge(const Sums &other) {
        first += other.first;
        second += other.second;
    }
    typedef PlainTotal<Sums> Total;
};

// COUNT of them in shared memory. Apart, so that neighbouring threads use neighbouring banks.
template <int COUNT>
struct SumsArray {
    double first[COUNT], second[COUNT];

    __device__ Sums get(unsigned i) const { return {first[i], second[i]}; }
    __device__ void put(unsigned i, const Sums &sums) { first[i] = sums.first, second[i] = sums.second; }
};

// The total of `width` neighbouring lanes (a power of two), in each of them.
template <class Total>
__device__ inline void add_lanes(Total &total, unsigned width) {
#pragma unroll 1
    for (unsigned across = width / 2; across > 0; across /= 2) {
        total.add(from_lane_across(total, across));
    }
}

// The same of items, about the first that is not empty. All lanes of the warp take part, and those
// beyond the width hold the same again.
template <class Item>
__device__ inline Item total_of_lanes(const Item &mine, unsigned width) {
    const unsigned full = __ballot_sync(0xffffffffu, !mine.is_empty());
    const double pivot = from_lane(mine.pivot(), full ? __ffs(full) - 1 : 0);
    typename Item::Total total = {};
    total.add(mine, pivot);
    add_lanes(total, width);
    return total.result(pivot);
}

// The total of every thread's item, in thread 0.
template <int THREADS, class Item>
__device__ inline Item block_total(const Item &mine) {
    constexpr int WARPS = THREADS / 32;
    SHARED_ARRAY(Words<Item>, of_warp, WARPS);
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Item of_mine = total_of_lanes(mine, 32);
    if (lane == 0) of_warp[warp].item = of_mine;
    __syncthreads();
    return warp == 0 ? total_of_lanes(of_warp[lane % WARPS].item, WARPS) : of_mine;
}

// So many of a thread's sums go through shared memory together: it is scarce.
template <int COUNT>
constexpr int TOGETHER = COUNT < 2 ? COUNT : 2;

// Adds up COUNT sums of each thread, `sums_of(i)`, down the rows of a block that is laid out as rows of
// `width` threads, and hands them to `give(column, i, total)`. Threads beyond the last whole row have
// none.
template <int THREADS, int COUNT, class SumsOf, class Give>
__device__ inline void rows_total(unsigned width, SumsArray<TOGETHER<COUNT> * THREADS> &shelf,
                                  const SumsOf &sums_of, const Give &give) {
    constexpr int ADDED = TOGETHER<COUNT>, ADDING = THREADS / ADDED;
    // Rows that are left when each thread has added up its part of them.
    constexpr unsigned LEFT = 8;
    const unsigned all = THREADS / width * width, left = min(ADDING / width, LEFT) * width;
    const unsigned i = threadIdx.x / ADDING, place = threadIdx.x % ADDING, own = i * THREADS;
    // A few rows at a time, whose loads do not wait for each other.
    const auto add_rows = [&](unsigned step, unsigned end) {
        constexpr int LOADED = 4;
        Sums total = shelf.get(own + place);
        for (unsigned at = place + step; at < end; at += LOADED * step) {
            Sums rows[LOADED];
#pragma unroll
            for (int row = 0; row < LOADED; ++row) {
                rows[row] = at + row * step < end ? shelf.get(own + at + row * step) : Sums::empty();
            }
#pragma unroll
            for (const Sums &of_row : rows) total.merge(of_row);
        }
        return total;
    };
#pragma unroll
    for (int first = 0; first < COUNT; first += ADDED) {
#pragma unroll
        for (int a = 0; a < ADDED; ++a) {
            if (threadIdx.x < all) shelf.put(a * THREADS + threadIdx.x, sums_of(first + a));
        }
        __syncthreads();
        // Nobody else reads the place that the part goes to.
        if (place < left) shelf.put(own + place, add_rows(left, all));
        __syncthreads();
        if (place < width) give(place, first + i, add_rows(width, left));
        __syncthreads();
    }
}

// Whether this block is the last of `blocks` to come here with its results written; the results
// of the others can then be read. Leaves the counter at zero.
__device__ inline bool arrives_last(Address counters, Extent group, unsigned blocks) {
    SHARED_ARRAY(unsigned, is_last, 1);
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned *counter = reinterpret_cast<unsigned *>(counters) + group;
        bool last = blocks == 1;
        if (!last) {
            // The fences speak for the whole block: barriers stand on either side of them.
            __threadfence();
            last = atomicInc(counter, blocks - 1) == blocks - 1;
            if (last) __threadfence();
        }
        is_last[0] = last;
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
        // This thread releases and acquires for the whole block: barriers stand on either side. Everyone
        // counts twice, coming and going, and the last to go wraps round.
        count_and_release(counter, 2 * blocks - 1);
        while (load_and_acquire(counter) < blocks) spin_pause();
        atomicInc(counter, 2 * blocks - 1);
    }
    __syncthreads();
}

// What a block leaves, of f64 only and aligned as they are: each word is moved once, whatever is made
// of it.
template <class Item>
union Doubles {
    static constexpr int COUNT = sizeof(Item) / sizeof(double);
    double words[COUNT];
    Item item;
};

template <class Item>
__device__ inline Item load_item(const Item *place) {
    Doubles<Item> loaded;
#pragma unroll
    for (int i = 0; i < loaded.COUNT; ++i) loaded.words[i] = reinterpret_cast<const double *>(place)[i];
    return loaded.item;
}

template <class Item>
__device__ inline void store_item(Item *place, const Item &item) {
    Doubles<Item> stored;
    stored.item = item;
#pragma unroll
    for (int i = 0; i < stored.COUNT; ++i) reinterpret_cast<double *>(place)[i] = stored.words[i];
}

// How many of a block's lanes share the merging of `parts` partial results of each of its channels: a
// power of two.
template <int THREADS>
__device__ inline unsigned lanes_for(unsigned channels, unsigned parts) {
    unsigned lanes = 1;
    while (lanes < 32 && lanes < parts && lanes * channels < THREADS) lanes *= 2;
    return lanes;
}

// The total of one channel's partial results in each of the lanes that share it; of none where it is not
// `there`. `partial(part)` loads one, and LOADED of them are on their way to each lane at a time.
template <class Item, int LOADED, class Partial>
__device__ inline Item total_of(unsigned parts, unsigned lanes, bool there, const Partial &partial) {
    if (parts == 1) return there ? partial(0) : Item::empty();
    typename Item::Total total = {};
    double pivot = 0.0;
#pragma unroll 1
    for (unsigned begin = 0; begin < parts; begin += LOADED * lanes) {
        Item items[LOADED];
#pragma unroll
        for (int u = 0; u < LOADED; ++u) {
            const unsigned part = begin + u * lanes + threadIdx.x % lanes;
            items[u] = there && part < parts ? partial(part) : Item::empty();
        }
        if (begin == 0) pivot = from_lane(items[0].pivot(), threadIdx.x % 32 / lanes * lanes);
#pragma unroll
        for (const Item &item : items) total.add(item, pivot);
    }
    add_lanes(total, lanes);
    return total.result(pivot);
}

// Which of a block's channels are meant: from the first on, every `step`-th.
struct Every {
    unsigned first, step;
};

// Hands the merged partial results of each of `channels` channels, or of `some` of them, to
// `finish(channel, item)`. `partial(channel, part)` loads one, LOADED at a time. Lanes that share
// channels merge as many as they are, and each finishes one of them: that takes as long as merging.
template <int THREADS, class Item, int LOADED = 4, class Partial, class Finish>
__device__ inline void merge_parts(unsigned channels, unsigned parts, const Partial &partial,
                                   const Finish &finish, const Every &some = {0, 1}) {
    const unsigned meant = (channels + some.step - 1) / some.step;
    const unsigned lanes = lanes_for<THREADS>(meant, parts), lane = threadIdx.x % lanes;
    const unsigned step = THREADS / lanes * some.step;
#pragma unroll 1
    for (unsigned first = some.first; first < channels; first += lanes * step) {
        const unsigned begin = first + threadIdx.x / lanes * some.step;
        Item mine = Item::empty();
#pragma unroll 1
        for (unsigned turn = 0; turn < lanes && first + turn * step < channels; ++turn) {
            const unsigned channel = begin + turn * step;
            const auto part_of = [&](unsigned part) { return partial(channel, part); };
            const Item total = total_of<Item, LOADED>(parts, lanes, channel < channels, part_of);
            if (lane == turn) mine = total;
        }
        // What is finished may lie where other lanes have just read.
        __syncwarp();
        const unsigned channel = begin + lane * step;
        if (channel < channels) finish(channel, mine);
    }
}
