// The entry points of one walk, element type and pack width: a name each, `PASS_WALK_TYPExV_KIND`.
//
// With packs, identity and ReLU, which are everywhere, have entry points of their own; the other
// activations share one, and single elements (tensors off the pack boundaries) share one for all.
#pragma once
#include "backward.cuh"
#include "device.cuh"
#include "forward.cuh"
#include "params.h"

// Packs in flight per thread in all passes but statistics: enough bytes to keep memory busy, few
// enough registers for four blocks a multiprocessor. Where any activation may follow, its code
// would be repeated for each.
template <int V>
constexpr int PACKS = V == 8 ? 2 : 4;
constexpr int PACKS_ANY = 1;

#define ENTRY(name, ...) KERNEL(name, THREADS, Params, __VA_ARGS__)

#define PACK_ENTRIES(walk, Walk, type, T, V, STATISTICS)                                           \
    ENTRY(statistics_##walk##_##type##x##V, statistics<T, V, STATISTICS, Walk>)                    \
    ENTRY(apply_##walk##_##type##x##V##_identity, apply<IDENTITY, T, V, PACKS<V>, Walk>)              \
    ENTRY(apply_##walk##_##type##x##V##_relu, apply<RELU, T, V, PACKS<V>, Walk>)                      \
    ENTRY(apply_##walk##_##type##x##V##_any, apply<ANY, T, V, PACKS_ANY, Walk>)                        \
    ENTRY(reduce_##walk##_##type##x##V##_identity, reduce<OPEN, T, V, PACKS<V>, Walk>)                \
    ENTRY(reduce_##walk##_##type##x##V##_relu, reduce<RELU_FROM_X, T, V, PACKS<V>, Walk>)             \
    ENTRY(reduce_##walk##_##type##x##V##_mask, reduce<FROM_MASK, T, V, PACKS<V>, Walk>)               \
    ENTRY(reduce_##walk##_##type##x##V##_any, reduce<ANY_FROM_X, T, V, PACKS_ANY, Walk>)               \
    ENTRY(gradient_##walk##_##type##x##V##_identity, gradient<OPEN, T, V, PACKS<V>, Walk>)            \
    ENTRY(gradient_##walk##_##type##x##V##_relu, gradient<RELU_FROM_X, T, V, PACKS<V>, Walk>)         \
    ENTRY(gradient_##walk##_##type##x##V##_mask, gradient<FROM_MASK, T, V, PACKS<V>, Walk>)           \
    ENTRY(gradient_##walk##_##type##x##V##_any, gradient<ANY_FROM_X, T, V, PACKS_ANY, Walk>)

#define SINGLE_ENTRIES(walk, Walk, type, T)                                                        \
    ENTRY(apply_##walk##_##type##x1_any, apply<ANY, T, 1, PACKS_ANY, Walk>)                            \
    ENTRY(reduce_##walk##_##type##x1_any, reduce<ANY_FROM_X, T, 1, PACKS_ANY, Walk>)                   \
    ENTRY(gradient_##walk##_##type##x1_any, gradient<ANY_FROM_X, T, 1, PACKS_ANY, Walk>)
