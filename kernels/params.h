// The one struct that every kernel takes by value: the ABI between host and device.
//
// Rust sees it as src/cuda/params.rs, made from this file by bindgen: docs/kernels.md says how, under
// "Changing them". Addresses are in the device's address space, 0 where a call has no such buffer.
// Extents and strides count elements.
#pragma once

typedef unsigned long long Address;
typedef unsigned long long Extent;

// What follows the normalization, in the order of Rust's `Activation`.
enum ActivationKind {
    ACTIVATION_IDENTITY,
    ACTIVATION_RELU,
    ACTIVATION_LEAKY_RELU,
    ACTIVATION_RELU6,
    ACTIVATION_SIGMOID,
    ACTIVATION_TANH,
    ACTIVATION_SILU,
    ACTIVATION_GELU,
    ACTIVATION_GELU_TANH,
};

struct Params {
    // The problem.
    Extent samples;   // N
    Extent channels;  // C
    Extent spatial;   // positions of a channel in one sample

    // From one sample to the next.
    Extent x_stride, residual_stride, y_stride, dy_stride, dx_stride, dresidual_stride;

    // Tensors, of the element type; the mask is bytes.
    Address x, residual, y, dy, dx, dresidual, mask;

    // Of a channel, [C] fp32.
    Address weight, bias;                // absent: 1 and 0
    Address mean_hi, mean_lo, invstd;    // saved by forward: written by statistics, else read
    Address running_mean, running_var;   // advanced by statistics, read by inference
    Address dweight, dbias;              // written if present
    Address num_batches_tracked;         // [1] int64, advanced if present

    // Of the split form, f64: [4, C] moments and [3, C] sums of one rank, or [R, ...] of all.
    Address moments, sums;
    Extent ranks;

    // Scratch: [C, parts] partial results; a counter per group of blocks, one of all blocks, and
    // another per group, zero between calls.
    Address partials, counters;

    double eps;
    double momentum;  // below 0: the cumulative average
    float negative_slope;
    unsigned activation;  // ActivationKind

    // How the tensor is walked: see walk.cuh.
    unsigned parts;          // blocks that share a channel
    unsigned slots;          // packs of each tensor that a thread keeps on chip
    unsigned tile_bytes;     // of dynamic shared memory, before what blocks leave for each other there
    unsigned shelf_at;       // bytes of it before the block's shelf
    unsigned late_by;        // nanoseconds by which the second half of the blocks begins later
    unsigned is_bf16;        // elements of 16 bits: whether they are bf16, else f16
    Extent groups;           // of channels that are finished together
    unsigned misalignment;   // planes: elements from the last pack boundary to the first element
    unsigned boundary;       // planes: the first window begins at its multiple: a pack, or a byte of mask
    Extent windows;          // planes: windows of one plane
    Extent windows_per_part; // planes: a multiple of 32
    Extent rows, columns;    // columns: extents of the matrix
    Extent rows_per_sample;  // columns: after so many rows a sample's stride is due
    Extent rows_per_part;    // columns
    unsigned columns_per_channel;  // columns: neighbours that fold into one channel
    unsigned packs_per_tile;       // columns: packs of a row that a block covers
    unsigned rows_abreast;         // columns: rows of the tensor that one of the matrix holds, side by side
    unsigned spares_cache;   // whether what is not read again leaves the cache to what is
};
