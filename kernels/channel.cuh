// What is done once per channel, in f64: a forward's statistics, and what a block must know of its
// channels before it walks.
#pragma once
#include "device.cuh"
#include "epilogue.cuh"
#include "moments.cuh"
#include "params.h"
#include "walk.cuh"

// A channel's value in an fp32 buffer that may be absent.
__device__ inline float channel_value(Address buffer, Extent channel, float absent) {
    return buffer ? reinterpret_cast<const float *>(buffer)[channel] : absent;
}

__device__ inline void set_channel_value(Address buffer, Extent channel, double value) {
    if (buffer) reinterpret_cast<float *>(buffer)[channel] = (float)value;
}

// 1 / sqrt(var + eps), and 0 where both are 0. Apart from its callers: it is long, and used all over.
__device__ __noinline__ double invstd_of(double var, double eps) {
    return var + eps == 0.0 ? 0.0 : 1.0 / sqrt(var + eps);
}

// The weight of this batch in the running statistics.
__device__ inline double running_factor(const Params &params) {
    if (params.momentum >= 0.0) return params.momentum;
    return 1.0 / ((double)*reinterpret_cast<const int64_t *>(params.num_batches_tracked) + 1.0);
}

// A running statistic on its way towards the batch's.
__device__ inline double advanced(float old, double factor, double value) {
    return (1.0 - factor) * old + factor * value;
}

__device__ inline void count_batch(const Params &params) {
    if (params.num_batches_tracked) ++*reinterpret_cast<int64_t *>(params.num_batches_tracked);
}

constexpr float LARGEST_FLOAT = 3.40282347e38f;

// What backward needs of a channel's statistics.
struct SavedStatistics {
    float mean_hi, mean_lo, invstd;
};

__device__ inline SavedStatistics saved_statistics(const Params &params,
                                                   const WideMoments &moments) {
    const float mean_hi = (float)moments.mean;
    const double invstd = invstd_of(moments.m2 / moments.count, params.eps);
    // Not infinite where fp32 holds no number so large: a constant channel's y is the bias still.
    return {mean_hi, (float)(moments.mean - mean_hi),
            invstd > LARGEST_FLOAT ? LARGEST_FLOAT : (float)invstd};
}

// One value has no unbiased variance. Where ranks are merged, nobody has refused it.
__device__ inline bool has_variance(const WideMoments &moments) { return moments.count > 1.0; }

// Saves what backward needs and advances the running statistics. Batches are counted apart, when
// every channel has read their number.
__device__ inline void save_statistics(const Params &params, Extent channel, const WideMoments &moments,
                                       const SavedStatistics &saved) {
    // Loads come first: they would wait for stores.
    const bool advances = params.running_mean && has_variance(moments);
    double mean = 0.0, var = 0.0;
    if (advances) {
        const float old_mean = channel_value(params.running_mean, channel, 0.0f);
        const float old_var = channel_value(params.running_var, channel, 0.0f);
        const double factor = running_factor(params);
        mean = advanced(old_mean, factor, moments.mean);
        var = advanced(old_var, factor, moments.m2 / (moments.count - 1.0));
    }
    set_channel_value(params.mean_hi, channel, saved.mean_hi);
    set_channel_value(params.mean_lo, channel, saved.mean_lo);
    set_channel_value(params.invstd, channel, saved.invstd);
    if (!advances) return;
    set_channel_value(params.running_mean, channel, mean);
    set_channel_value(params.running_var, channel, var);
}

// Row `row` of the [rows, C] f64 rows of one rank.
__device__ inline double &rank_row(const Params &params, Address rows, unsigned row,
                                   Extent channel) {
    return reinterpret_cast<double *>(rows)[row * params.channels + channel];
}

// Leaves a rank's moments for the others: count, mean hi, mean lo, M2.
__device__ inline void write_moments(const Params &params, Extent channel,
                                     const WideMoments &moments) {
    rank_row(params, params.moments, 0, channel) = moments.count;
    rank_row(params, params.moments, 1, channel) = moments.mean;
    rank_row(params, params.moments, 2, channel) = 0.0;
    rank_row(params, params.moments, 3, channel) = moments.m2;
}

// Of a training forward's saved statistics, or of running ones.
__device__ inline double channel_invstd(const Params &params, Extent channel) {
    if (params.invstd) return channel_value(params.invstd, channel, 0.0f);
    return invstd_of(channel_value(params.running_var, channel, 0.0f), params.eps);
}

// The mean of which `channel_invstd` is the inverse of the spread, and its rest.
__device__ inline float channel_mean(const Params &params, Extent channel) {
    return channel_value(params.invstd ? params.mean_hi : params.running_mean, channel, 0.0f);
}

__device__ inline float channel_mean_rest(const Params &params, Extent channel) {
    return channel_value(params.invstd ? params.mean_lo : 0, channel, 0.0f);
}

template <class T>
__device__ inline Coefficients<T> channel_coefficients(const Params &params, Extent channel,
                                                       float mean_hi, float mean_lo, double invstd) {
    return coefficients<T>(mean_hi, mean_lo, invstd, channel_value(params.weight, channel, 1.0f),
                           channel_value(params.bias, channel, 0.0f));
}

template <class T>
__device__ inline Coefficients<T> channel_coefficients(const Params &params, Extent channel) {
    return channel_coefficients<T>(params, channel, channel_mean(params, channel),
                                   channel_mean_rest(params, channel),
                                   channel_invstd(params, channel));
}

// A block's shelf for what it knows of its channels, in shared memory, an item at each of its places:
// four words at a time, and one left over by itself, so that neighbouring threads read neighbouring banks.
struct Shelf {
    float *words;
    unsigned places;
};

template <class Item>
struct OnShelf {
    static constexpr bool HAS_SINGLE = Item::WORDS % 4 == 1;
    static constexpr int QUADS = HAS_SINGLE ? Item::WORDS / 4 : (Item::WORDS + 3) / 4;
    static constexpr int WORDS = QUADS * 4 + HAS_SINGLE;

    typedef Pack<float, 4> Quad;
    Quad quads[QUADS];
    float single;

    // The item's words, each of which goes one way or the other.
    template <class Use>
    __device__ void each_word(Item &item, const Use &use) {
        int word = 0;
        item.each_word([&](float &of_item) {
            use(of_item, word < QUADS * 4 ? quads[word / 4].values[word % 4] : single);
            ++word;
        });
    }
};

// Of a shelf for any tile.
template <class Item, class Walk>
constexpr int SHELF_WORDS = OnShelf<Item>::WORDS *Walk::MAX_PLACES;

// Puts what is known of one of the group's channels where its elements look for it.
template <class Item, class Walk>
__device__ inline void put_on_shelf(const Shelf &shelf, const Walk &walk, unsigned channel, Item item) {
    typedef OnShelf<Item> Form;
    Form form = {};
    form.each_word(item, [](float &of_item, float &on_shelf) { on_shelf = of_item; });
    walk.each_place_of(channel, [&](unsigned place) {
#pragma unroll
        for (int q = 0; q < Form::QUADS; ++q) {
            store_pack<4>(shelf.words + (q * shelf.places + place) * 4, form.quads[q]);
        }
        if (Form::HAS_SINGLE) shelf.words[Form::QUADS * shelf.places * 4 + place] = form.single;
    });
}

// What the shelf holds for the thread's element `v`.
template <class Item, class Walk>
__device__ inline Item take_own(const Shelf &shelf, const Walk &walk, int v) {
    typedef OnShelf<Item> Form;
    const unsigned place = walk.place(v);
    Form form = {};
#pragma unroll
    for (int q = 0; q < Form::QUADS; ++q) {
        form.quads[q] = load_pack<4>(shelf.words + (q * shelf.places + place) * 4);
    }
    if (Form::HAS_SINGLE) form.single = shelf.words[Form::QUADS * shelf.places * 4 + place];
    Item item = {};
    form.each_word(item, [](float &of_item, float &on_shelf) { of_item = on_shelf; });
    return item;
}

// Fills the shelf of a block from `of_channel(channel)`. The walk may read it at once.
template <class Item, class Walk, class OfChannel>
__device__ inline void fill_shelf(const Shelf &shelf, const Walk &walk, const OfChannel &of_channel) {
    for (unsigned channel = threadIdx.x; channel < walk.channels(); channel += THREADS) {
        put_on_shelf(shelf, walk, channel, of_channel(walk.first_channel() + channel));
    }
    __syncthreads();
}
