// The backward of inference (frozen batch norm): dx, dresidual, dweight and dbias in one read of x
// and dy. Inference itself is `apply` with running statistics.
#include "entries.h"

// Without an activation two packs of each tensor are in flight, on two blocks a multiprocessor: more packs
// would spill there.
#define FROZEN(walk, Walk, type, T, V)                                                             \
    LARGE_ENTRY(frozen_##walk##_##type##x##V##_identity, frozen<OPEN, T, V, 2, Walk>)              \
    ENTRY(frozen_##walk##_##type##x##V##_any, frozen<ANY_FROM_X, T, V, PACKS_ANY, Walk>)           \
    ENTRY(frozen_##walk##_##type##x1_any, frozen<ANY_FROM_X, T, 1, PACKS_ANY, Walk>)

FROZEN(planes, Planes, f32, float, 4)
FROZEN(planes, Planes, b16, b16_t, 8)
FROZEN(columns, Columns, f32, float, 4)
FROZEN(columns, Columns, b16, b16_t, 8)
