// The entry points of one walk, element type and pack width: a name each, `PASS_WALK_TYPExV_KIND`.
//
// With packs, identity and ReLU, which are everywhere, have code of their own: in entry points of
// their own, or on a branch that a launch takes once. The other activations share theirs, and single
// elements (tensors off the pack boundaries) share one for all.
#pragma once
#include "backward.cuh"
#include "device.cuh"
#include "forward.cuh"
#include "params.h"

// Packs in flight per thread: enough bytes to keep memory busy, few enough registers. Of x, and where y is
// made of it (a fourth would spill over columns of 16 bits); of each of a backward's tensors; and fewer where
// any activation may follow.
constexpr int PACKS_OF_X = 4;
template <template <int> class Walk, int V>
constexpr int PACKS_TO_Y = 4;
template <>
constexpr int PACKS_TO_Y<Columns, 8> = 3;
template <int V>
constexpr int PACKS = V == 8 ? 2 : 4;
constexpr int PACKS_TO_Y_ANY = 2;
constexpr int PACKS_ANY = 1;

#define ENTRY(name, ...) KERNEL(name, THREADS, Params, __VA_ARGS__)

// Registers for so many blocks on a multiprocessor, which hide memory's latency from each other: a
// function with loops for several activations would else take what the largest of them likes.
template <template <int> class Walk, int V>
constexpr int BLOCKS = 2;
template <>
constexpr int BLOCKS<Planes, 8> = 3;

#define PACK_ENTRY(name, Walk, V, ...)                                                             \
    KERNEL_BLOCKS(name, THREADS, (BLOCKS<Walk, V>), Params, __VA_ARGS__)

// Where more packs, or an activation's derivative, take registers.
#define LARGE_ENTRY(name, ...) KERNEL_BLOCKS(name, THREADS, 2, Params, __VA_ARGS__)

#define PACK_ENTRIES(walk, Walk, type, T, V)                                                       \
    LARGE_ENTRY(statistics_##walk##_##type##x##V, statistics<T, V, PACKS_OF_X, Walk>)              \
    LARGE_ENTRY(apply_##walk##_##type##x##V##_identity,                                            \
                apply<IDENTITY, T, V, (PACKS_TO_Y<Walk, V>), Walk>)                                \
    LARGE_ENTRY(apply_##walk##_##type##x##V##_relu,                                                \
                apply<RELU, T, V, (PACKS_TO_Y<Walk, V>), Walk>)                                    \
    LARGE_ENTRY(apply_##walk##_##type##x##V##_any, apply<ANY, T, V, PACKS_TO_Y_ANY, Walk>)         \
    PACK_ENTRY(reduce_##walk##_##type##x##V, Walk, V, reduce<COMMON_GATES, T, V, PACKS<V>, Walk>)  \
    LARGE_ENTRY(reduce_##walk##_##type##x##V##_any, reduce<ANY_GATE, T, V, PACKS_ANY, Walk>)       \
    PACK_ENTRY(gradient_##walk##_##type##x##V, Walk, V,                                            \
               gradient<COMMON_GATES, T, V, PACKS<V>, Walk>)                                       \
    LARGE_ENTRY(gradient_##walk##_##type##x##V##_any, gradient<ANY_GATE, T, V, PACKS_ANY, Walk>)

#define SINGLE_ENTRIES(walk, Walk, type, T)                                                        \
    ENTRY(apply_##walk##_##type##x1_any, apply<ANY, T, 1, PACKS_ANY, Walk>)                        \
    ENTRY(reduce_##walk##_##type##x1_any, reduce<ANY_GATE, T, 1, PACKS_ANY, Walk>)                 \
    ENTRY(gradient_##walk##_##type##x1_any, gradient<ANY_GATE, T, 1, PACKS_ANY, Walk>)

// Kernels that keep tensors on chip know all activations, but each one element type: their loops are
// as long as a multiprocessor can do beside its share of memory. Registers for two blocks a
// multiprocessor: one works while the other waits for its team.
#define RESIDENT_ENTRY(pass, walk, Walk, type, T, V)                                               \
    KERNEL_BLOCKS(pass##_##walk##_##type##x##V, THREADS, 2, Params, pass<T, V, Walk>)

#define RESIDENT_ENTRIES(pass)                                                                     \
    RESIDENT_ENTRY(pass, planes, Planes, f32, float, 4)                                            \
    RESIDENT_ENTRY(pass, planes, Planes, f16, half_t, 8)                                           \
    RESIDENT_ENTRY(pass, planes, Planes, bf16, bf16_t, 8)                                          \
    RESIDENT_ENTRY(pass, columns, Columns, f32, float, 4)                                          \
    RESIDENT_ENTRY(pass, columns, Columns, f16, half_t, 8)                                         \
    RESIDENT_ENTRY(pass, columns, Columns, bf16, bf16_t, 8)
