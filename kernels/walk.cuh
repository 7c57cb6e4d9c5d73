// How a block walks over its share of a tensor: window by window, a pack of neighbouring elements
// each. Two walks, one interface:
//
// - `Planes`: a block sees one channel of a channels-first tensor; its samples are contiguous
//   planes, which may begin and end off the pack boundaries.
// - `Columns`: the tensor is a matrix of rows, and a thread stays at its columns: channels-last
//   ([N * spatial, C]), and channels-first with small planes ([N, C * spatial]), whose neighbouring
//   columns fold into channels. Where C makes no whole packs, several rows abreast do
//   ([N * spatial / 2, 2 * C]): then columns a row apart fold into a channel.
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

// The blocks of a second sweep begin with what the first has read last: the cache may still have it.
__device__ inline Place place_of_block_backwards(const Params &params) {
    const unsigned block = gridDim.x - 1 - blockIdx.x;
    return {block / params.parts, block % params.parts, 0};
}

struct Window {
    Extent sample, inner;  // an element's offset is sample * stride + inner
    unsigned first, last;  // elements from the first to before the last are there
    Extent mask_row;
    Extent mask_bit;

    template <int V>
    __device__ bool is_full() const {
        return last - first == V;
    }
    __device__ bool is_empty() const { return first >= last; }
    __device__ Extent offset(Extent stride) const { return sample * stride + inner; }
};

// Goes through samples of so many `places` each in equal steps, which may pass over whole samples. A
// place is `size` elements. Places are counted in 32 bits: of a longer sample only as far as any block
// goes in all (the plan sees to that).
struct Course {
    static constexpr Extent FAR = 1u << 31;

    Extent sample, inner;      // where it is: the sample, and the element within it
    unsigned left, each;       // places up to the sample's end, and of each sample
    unsigned samples, places;  // a step
    Extent elements, back;     // what it adds to `inner`, and takes off where it comes to the next sample

    __device__ Course(Extent start, unsigned by, Extent places_each, Extent size) {
        const Quotient at = divide(start, places_each), step = divide(by, places_each);
        sample = at.whole;
        inner = at.rest * size;
        left = (unsigned)min(places_each - at.rest, FAR);
        each = (unsigned)min(places_each, FAR);
        samples = (unsigned)step.whole;
        places = (unsigned)step.rest;
        elements = kept(step.rest * size);
        back = kept(places_each * size);
    }

    __device__ void advance() {
        const bool is_over = left <= places;
        left -= places;
        inner += elements;
        sample += samples;
        if (is_over) {
            left += each;
            inner -= back;
            ++sample;
        }
    }
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
        store_pack_global<V>(to, pack, walk.params.spares_cache);
    } else if (Walk::HAS_ENDS && !window.is_empty()) {
        store_some<T, V>(to, window.first, window.last, pack);
    }
}

// Of a block that may have none.
__device__ inline unsigned places_between(Extent begin, Extent end) {
    return begin < end ? (unsigned)(end - begin) : 0;
}

template <int V>
struct Planes {
    static constexpr int CHANNELS = 1;           // that a thread sees
    static constexpr int MAX_PLACES = 1;
    static constexpr bool HAS_ENDS = V > 1;      // windows that are there in part

    const Params &params;
    Extent channel;
    unsigned part;
    Course course;        // windows of the channel's planes: the next of this thread
    unsigned gone, rest;  // the block's windows: gone by, and all

    __device__ Planes(const Params &params, const Place &place)
        : Planes(params, place, place.part * params.windows_per_part) {}

    __device__ Planes(const Params &params, const Place &place, Extent begin)
        : params(params),
          channel(place.group),
          part(place.part),
          course(begin + place.from * THREADS + threadIdx.x, THREADS, params.windows, V) {
        gone = place.from * THREADS;
        rest = places_between(begin, min(begin + params.windows_per_part, params.samples * params.windows));
    }

    __device__ bool has_batch() const { return gone < rest; }
    __device__ void end_batch(unsigned batch) { gone += batch * THREADS; }
    __device__ void go_to(const Planes &other) { course = other.course, gone = other.gone; }
    // Windows of each thread.
    __device__ unsigned steps() const {
        return gone < rest ? (rest - gone + THREADS - 1) / THREADS : 0;
    }
    // Whether planes begin and end on pack boundaries.
    __device__ bool is_even() const { return params.windows * V == params.spatial; }
    // Batches to come of which this thread's windows are all full.
    __device__ unsigned whole_batches(unsigned batch) const {
        return is_even() && gone < rest ? (rest - gone) / (batch * THREADS) : 0;
    }

    // The next window of this thread; `u` counts them within the batch. IS_EVEN: who knows that planes
    // begin and end on pack boundaries need not ask each time.
    template <bool IS_EVEN = false>
    __device__ Window next(int u) {
        const Extent plane = channel * params.spatial;
        Window result;
        result.sample = course.sample;
        result.inner = plane + course.inner;
        result.first = 0;
        result.last = V;
        result.mask_row = course.sample * params.channels + channel;
        result.mask_bit = course.inner;
        if (!IS_EVEN && !is_even()) cut(result, plane);
        if (gone + u * THREADS + threadIdx.x >= rest) result.first = result.last = 0;
        course.advance();
        return result;
    }

    // Windows lie on boundaries of packs, planes need not. Where there is a mask, a plane's first window
    // begins with a byte of it, counted from the sample's first element wherever that lies: so forward and
    // backward agree whatever their strides and packs.
    __device__ void cut(Window &window, Extent plane) const {
        const Extent sample = params.misalignment + course.sample * params.x_stride;
        const Extent offset = params.boundary > V ? plane : sample + plane;
        const unsigned shift = (unsigned)offset & (params.boundary - 1);
        const Extent end = params.spatial + shift, begin = course.inner;
        window.inner -= shift;
        window.first = begin < shift ? (unsigned)min(shift - begin, (Extent)V) : 0;
        window.last = begin < end ? (unsigned)min(end - begin, (Extent)V) : 0;
    }

    __device__ Extent mask_row_bytes() const { return (params.spatial + 7) / 8; }

    // On a block's shelf for what it knows of its channels.
    __device__ static unsigned places(const Params &) { return 1; }
    __device__ unsigned place(int) const { return 0; }
    template <class Use>
    __device__ void each_place_of(unsigned, const Use &use) const {
        use(0);
    }
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
    unsigned width, height, x, y;  // the block as rows of threads, and this thread's place
    Extent column;                 // its first
    Extent channel;                // that the tile begins with,
    unsigned before;               // and how many of its columns are in another tile
    unsigned first_place;          // on the shelf: of the thread's first column,
    unsigned places_on;            // and how many places its others are further on, 4 bits each
    Course course;                 // rows of the samples: the next of this thread
    unsigned gone, rest;           // the block's rows: gone by, and all

    __device__ Columns(const Params &params, const Place &place)
        : Columns(params, place, place.part * params.rows_per_part, params.packs_per_tile) {}

    __device__ Columns(const Params &params, const Place &place, Extent begin, unsigned width)
        : params(params),
          tile(place.group),
          part(place.part),
          width(width),
          height(THREADS / width),
          x(threadIdx.x % width),
          y(threadIdx.x / width),
          course(begin + place.from * height + y, height, max(params.rows_per_sample, (Extent)1),
                 params.columns) {
        gone = place.from * height;
        rest = places_between(begin, min(begin + params.rows_per_part, params.rows));
        column = (tile * width + x) * V;
        const Quotient first = divide(tile * width * V, params.columns_per_channel);
        channel = first.whole;
        before = (unsigned)first.rest;
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

    __device__ bool has_batch() const { return gone < rest; }
    __device__ void end_batch(unsigned batch) { gone += batch * height; }
    __device__ void go_to(const Columns &other) { course = other.course, gone = other.gone; }
    // Windows of each thread.
    __device__ unsigned steps() const {
        return gone < rest ? (rest - gone + height - 1) / height : 0;
    }
    __device__ bool is_even() const { return true; }
    // Batches to come of which this thread's windows are all full.
    __device__ unsigned whole_batches(unsigned batch) const {
        return has_columns() && gone < rest ? (rest - gone) / (batch * height) : 0;
    }

    // The next window of this thread; `u` counts them within the batch. All are even.
    template <bool = true>
    __device__ Window next(int u) {
        const unsigned place = gone + u * height + y;
        Window result;
        result.sample = course.sample;
        result.inner = course.inner + column;
        result.first = 0;
        result.last = has_columns() && place < rest ? V : 0;
        result.mask_row = part * params.rows_per_part + place;
        result.mask_bit = column;
        course.advance();
        return result;
    }

    __device__ Extent mask_row_bytes() const { return (params.columns + 7) / 8; }

    // One for each column at most.
    __device__ static unsigned places(const Params &params) { return params.packs_per_tile * V; }
    // Columns that are channels are turned, so that neighbouring threads find their own in
    // neighbouring banks.
    __device__ unsigned place(int v) const {
        const unsigned step = params.columns_per_channel == 1 ? params.packs_per_tile : 0;
        return first_place + v * anew(step) + (anew(places_on) >> 4 * v & 15u);
    }
    template <class Use>
    __device__ void each_place_of(unsigned channel, const Use &use) const {
        if (params.columns_per_channel > 1) return use(channel);
        for (unsigned i = 0; i < fold(); ++i) use(turned(column_of(channel, i)));
    }
    __device__ unsigned turned(unsigned column) const { return column % V * width + column / V; }
    __device__ bool has_columns() const { return y < height && column < params.columns; }

    // Columns of a channel: neighbours, or a row of the tensor apart; one, mostly.
    __device__ unsigned fold() const {
        return params.columns_per_channel * params.rows_abreast;
    }
    __device__ bool is_abreast() const { return params.rows_abreast > 1; }
    __device__ unsigned column_of(unsigned channel, unsigned i) const {
        return is_abreast() ? i * (unsigned)params.channels + channel : channel * fold() + i;
    }
    __device__ unsigned channel_of(unsigned column) const {
        return is_abreast() ? column % (unsigned)params.channels : column / fold();
    }

    // Of the tile that the tensor has.
    __device__ unsigned columns() const {
        return (unsigned)min((Extent)width * V, params.columns - tile * width * V);
    }
    __device__ Extent group() const { return tile; }
    __device__ Extent first_channel() const { return channel; }
    __device__ unsigned channels() const {
        if (is_abreast()) return (unsigned)params.channels;
        const Extent end = min((tile + 1) * width * V, params.columns);
        return (unsigned)(divide(end - 1, params.columns_per_channel).whole - channel + 1);
    }
    __device__ unsigned max_channels() const {
        return width * V / fold();
    }
};
