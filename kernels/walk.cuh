// How a block walks over its share of a tensor: window by window, a pack of neighbouring elements
// each. Two walks, one interface:
//
// - `Planes`: a block sees one channel of a channels-first tensor; its samples are contiguous
//   planes, which may begin and end off the pack boundaries.
// - `Columns`: the tensor is a matrix of rows, and a thread stays at its columns: channels-last
//   ([N * spatial, C]), and channels-first with small planes ([N, C * spatial]), whose neighbouring
//   columns fold into channels.
//
//     Walk<V> walk(params, place_of_block(params));
//     for (; walk.has_batch(); walk.end_batch(BATCH))
//         for (int u = 0; u < BATCH; ++u) { Window window = walk.next(u); ... }
//
// V is the pack's width; a thread's loads of the BATCH windows are in flight together. Every
// thread of a block goes through the same number of batches; windows beyond the end are empty.
#pragma once
#include "device.cuh"
#include "params.h"

constexpr int THREADS = 256;
// Columns that a block covers at most.
constexpr int MAX_COLUMNS = 416;

// Elements of a pack that are fp32 at the same time: more would take more registers.
template <int V>
constexpr int AT_ONCE = V < 4 ? V : 4;

struct Quotient {
    Extent whole, rest;
};

// Apart from its callers, who mostly have nothing to divide: 64-bit division is long.
__device__ __noinline__ Quotient divide(Extent dividend, Extent divisor) {
    if (divisor == 1) return {dividend, 0};
    if (dividend < divisor) return {0, dividend};
    const Extent whole = dividend / divisor;
    return {whole, dividend - whole * divisor};
}

// What a block has to do: a part of a group of channels, from one of its windows on.
struct Place {
    Extent group;
    unsigned part;
    unsigned from;  // windows of each thread that are left out
};

// Of the same group, for this block. Made anew where it is asked for, which is seldom: registers are
// scarce in between.
__device__ inline Place place_in_group(const Params &params, Extent group, unsigned from = 0) {
    return {group, blockIdx.x % anew(params.parts), from};
}

__device__ inline Place place_of_block(const Params &params) {
    return place_in_group(params, blockIdx.x / params.parts);
}

struct Window {
    Extent sample, inner;  // an element's offset is sample * stride + inner
    unsigned first, last;  // elements from the first to before the last are there
    Extent mask_row;
    Extent mask_bit;

    template <int V>
    __device__ bool is_full() const {
        return first == 0 && last == V;
    }
    __device__ bool is_empty() const { return first >= last; }
    __device__ bool has(unsigned v) const { return v >= first && v < last; }
    __device__ Extent offset(Extent stride) const { return sample * stride + inner; }
};

// Only the ends of planes off the pack boundaries come here: apart, so that they do not swell every
// load and store.
template <class T, int V>
__device__ __noinline__ Pack<T, V> load_some(const T *from, unsigned first, unsigned last) {
    Pack<T, V> pack = {};
#pragma unroll
    for (unsigned v = 0; v < V; ++v) {
        if (v >= first && v < last) pack.set(v, from[v]);
    }
    return pack;
}

template <class T, int V>
__device__ __noinline__ void store_some(T *to, unsigned first, unsigned last, Pack<T, V> pack) {
#pragma unroll
    for (unsigned v = 0; v < V; ++v) {
        if (v >= first && v < last) to[v] = pack.get(v);
    }
}

// A pack that is there as a whole, or zeros. A thread's loads are under way together only if it needs
// none of them in between: first come the windows of a batch, then by load_packs all of its packs,
// and then by load_ends what is there in part.
template <class T, int V>
__device__ inline Pack<T, V> load_pack_of(Address tensor, Extent stride, const Window &window) {
    const T *from = reinterpret_cast<const T *>(tensor) + window.offset(stride);
    return load_pack_if<V>(window.is_full<V>(), from);
}

template <class T, int V, class Walk>
__device__ inline void load_end(const Walk &, Address tensor, Extent stride, const Window &window,
                                Pack<T, V> &pack) {
    if (!Walk::HAS_ENDS || window.is_full<V>() || window.is_empty()) return;
    const T *from = reinterpret_cast<const T *>(tensor) + window.offset(stride);
    pack = load_some<T, V>(from, window.first, window.last);
}

template <class T, int V, int BATCH>
__device__ inline void load_packs(Address tensor, Extent stride, const Window (&windows)[BATCH],
                                  Pack<T, V> (&packs)[BATCH]) {
#pragma unroll
    for (int u = 0; u < BATCH; ++u) packs[u] = load_pack_of<T, V>(tensor, stride, windows[u]);
}

template <class T, int V, int BATCH, class Walk>
__device__ inline void load_ends(const Walk &walk, Address tensor, Extent stride,
                                 const Window (&windows)[BATCH], Pack<T, V> (&packs)[BATCH]) {
#pragma unroll
    for (int u = 0; u < BATCH; ++u) load_end(walk, tensor, stride, windows[u], packs[u]);
}

template <class T, int V, class Walk>
__device__ inline void store(const Walk &walk, Address tensor, Extent stride, const Window &window,
                             const Pack<T, V> &pack) {
    T *to = reinterpret_cast<T *>(tensor) + window.offset(stride);
    if (window.is_full<V>()) {
        if (walk.params.spares_cache) store_pack_streaming<V>(to, pack);
        else store_pack<V>(to, pack);
    } else if (Walk::HAS_ENDS && !window.is_empty()) {
        store_some<T, V>(to, window.first, window.last, pack);
    }
}

template <int V>
struct Planes {
    static constexpr int CHANNELS = 1;           // that a thread sees
    static constexpr int MAX_PLACES = 1;
    static constexpr bool HAS_ENDS = V > 1;      // windows that are there in part

    const Params &params;
    Extent channel;
    unsigned part;
    Extent base, end;         // windows of this block, counted over all planes of the channel
    Extent sample, window;   // the next of this thread
    unsigned step_samples, step_windows;

    __device__ Planes(const Params &params, const Place &place)
        : params(params), channel(place.group), part(place.part) {
        base = part * params.windows_per_part;
        end = min(base + params.windows_per_part, params.samples * params.windows);
        base += (Extent)place.from * THREADS;
        const Quotient start = divide(base + threadIdx.x, params.windows);
        const Quotient step = divide(THREADS, params.windows);
        sample = start.whole;
        window = start.rest;
        step_samples = (unsigned)step.whole;
        step_windows = (unsigned)step.rest;
    }

    __device__ bool has_batch() const { return base < end; }
    __device__ void end_batch(unsigned batch) { base += batch * THREADS; }
    // Windows of each thread.
    __device__ unsigned steps() const {
        return base < end ? (unsigned)((end - base + THREADS - 1) / THREADS) : 0;
    }
    // Whether all windows of this thread's batch are full.
    __device__ bool is_whole_batch(unsigned batch) const {
        return base + batch * THREADS <= end && params.windows * V == params.spatial;
    }

    // The next window of this thread; `u` counts them within the batch.
    __device__ Window next(int u) {
        Window result = {};
        if (base + u * THREADS + threadIdx.x < end) result = at(sample, window);
        sample += step_samples;
        window += step_windows;
        if (window >= params.windows) {
            window -= params.windows;
            ++sample;
        }
        return result;
    }

    // The same, for who asks only which of its elements are there.
    __device__ Window presence(int u) { return next(u); }

    // Windows lie on pack boundaries, planes need not.
    __device__ Window at(Extent sample, Extent window) const {
        const Extent plane = channel * params.spatial;
        const Extent shift = (params.misalignment + sample * params.x_stride + plane) % V;
        const Extent before = window * V;  // elements from the first window's start
        Window result;
        result.sample = sample;
        result.inner = plane + before - shift;
        result.first = before < shift ? (unsigned)(shift - before) : 0;
        const Extent rest = params.spatial + shift;
        result.last = before >= rest ? 0 : (unsigned)min((Extent)V, rest - before);
        result.mask_row = sample * params.channels + channel;
        result.mask_bit = before - shift;
        return result;
    }

    __device__ Extent mask_row_bytes() const { return (params.spatial + 7) / 8; }

    // On a block's shelf for what it knows of its channels.
    __device__ unsigned place(int) const { return 0; }
    __device__ unsigned place_of(unsigned) const { return 0; }
    // Whether the thread has any part of the tensor.
    __device__ bool has_columns() const { return true; }

    // Blocks of one group finish its channels together.
    __device__ Extent group() const { return channel; }
    __device__ Extent first_channel() const { return channel; }
    __device__ unsigned channels() const { return 1; }
    __device__ unsigned max_channels() const { return 1; }  // of any group
};

template <int V>
struct Columns {
    static constexpr int CHANNELS = V;
    static constexpr int MAX_PLACES = MAX_COLUMNS;
    static constexpr bool HAS_ENDS = false;

    const Params &params;
    Extent tile;
    unsigned part;
    unsigned width, x, y, height;  // the block as rows of threads, and this thread's place
    Extent column;                 // its first
    Extent channel;                // that the tile begins with,
    unsigned before;               // and how many of its columns are in another tile
    unsigned first_place;          // on the shelf: of the thread's first column,
    unsigned places_on;            // and how many places its others are further on, 4 bits each
    Extent base, end;              // rows of this block
    Extent sample, row;            // the next of this thread, counted within the sample
    unsigned step_samples, step_rows;

    __device__ Columns(const Params &params, const Place &place)
        : params(params), tile(place.group), part(place.part) {
        width = params.packs_per_tile;
        height = THREADS / width;
        x = threadIdx.x % width;
        y = threadIdx.x / width;
        column = (tile * width + x) * V;
        const Quotient first = divide(tile * width * V, params.columns_per_channel);
        channel = first.whole;
        before = (unsigned)first.rest;
        base = part * params.rows_per_part;
        end = min(base + params.rows_per_part, params.rows);
        base += (Extent)place.from * height;
        const Extent per_sample = max(params.rows_per_sample, (Extent)1);
        const Quotient start = divide(base + y, per_sample);
        const Quotient step = divide(height, per_sample);
        sample = start.whole;
        row = start.rest;
        step_samples = (unsigned)step.whole;
        step_rows = (unsigned)step.rest;
        find_places();
    }

    // The places on the shelf of columns that fold into channels.
    __device__ void find_places() {
        const unsigned fold = anew(params.columns_per_channel), first = before + x * V;
        first_place = x;
        places_on = 0;
        if (fold > 1) {
            first_place = first / fold;
            unsigned rest = first % fold, on = 0;
#pragma unroll
            for (int v = 0; v < V; ++v, ++rest) {
                if (rest == fold) rest = 0, ++on;
                places_on |= on << 4 * v;
            }
        }
        // Beyond the tensor there is nothing on the shelf.
        if (!has_columns()) first_place = places_on = 0;
    }

    __device__ bool has_batch() const { return base < end; }
    __device__ void end_batch(unsigned batch) { base += batch * height; }
    // Windows of each thread.
    __device__ unsigned steps() const {
        return base < end ? (unsigned)((end - base + height - 1) / height) : 0;
    }
    // Whether all windows of this thread's batch are full.
    __device__ bool is_whole_batch(unsigned batch) const {
        return base + batch * height <= end && has_columns();
    }

    // The next window of this thread; `u` counts them within the batch.
    __device__ Window next(int u) {
        Window result = {};
        const Extent of_all = base + u * height + y;
        if (has_columns() && of_all < end) {
            result.sample = sample;
            result.inner = row * params.columns + column;
            result.last = V;
            result.mask_row = of_all;
            result.mask_bit = column;
        }
        sample += step_samples;
        row += step_rows;
        if (row >= params.rows_per_sample) {
            row -= params.rows_per_sample;
            ++sample;
        }
        return result;
    }

    // The same, for who asks only which of its elements are there.
    __device__ Window presence(int u) const {
        Window result = {};
        if (has_columns() && base + u * height + y < end) result.last = V;
        return result;
    }

    __device__ Extent mask_row_bytes() const { return (params.columns + 7) / 8; }

    // Columns that are channels are turned, so that neighbouring threads find their own in
    // neighbouring banks.
    __device__ unsigned place(int v) const {
        const unsigned step = params.columns_per_channel == 1 ? params.packs_per_tile : 0;
        return first_place + v * anew(step) + (anew(places_on) >> 4 * v & 15u);
    }
    __device__ unsigned place_of(unsigned channel) const {
        return params.columns_per_channel == 1 ? channel % V * width + channel / V : channel;
    }
    __device__ bool has_columns() const { return y < height && column < params.columns; }

    __device__ Extent group() const { return tile; }
    __device__ Extent first_channel() const { return channel; }
    __device__ unsigned channels() const {
        const Extent end = min((tile + 1) * width * V, params.columns);
        return (unsigned)(divide(end - 1, params.columns_per_channel).whole - channel + 1);
    }
    __device__ unsigned max_channels() const { return width * V / params.columns_per_channel; }
};
