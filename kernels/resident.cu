// Training passes that keep their tensors on chip, in packs: tensors that do not share their
// boundaries take the streaming passes.
#include "entries.h"
#include "resident_backward.cuh"
#include "resident_forward.cuh"

// Registers for two blocks a multiprocessor: one works while the other waits for its team.
#define RESIDENT_ENTRY(name, ...) KERNEL_BLOCKS(name, THREADS, 2, Params, __VA_ARGS__)

// BATCH: the packs that are worked on together, where PACKS<V> would spill registers.
#define RESIDENT_ENTRIES(walk, Walk, type, T, V, BATCH)                                           \
    RESIDENT_ENTRY(forward_##walk##_##type##x##V, forward<T, V, BATCH, Walk>)                     \
    RESIDENT_ENTRY(backward_##walk##_##type##x##V, backward<T, V, BATCH, Walk>)

RESIDENT_ENTRIES(planes, Planes, f32, float, 4, 4)
RESIDENT_ENTRIES(planes, Planes, f16, half_t, 8, 2)
RESIDENT_ENTRIES(planes, Planes, bf16, bf16_t, 8, 2)
RESIDENT_ENTRIES(columns, Columns, f32, float, 4, 2)
RESIDENT_ENTRIES(columns, Columns, f16, half_t, 8, 1)
RESIDENT_ENTRIES(columns, Columns, bf16, bf16_t, 8, 1)
