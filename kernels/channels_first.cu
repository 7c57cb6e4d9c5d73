// Channels-first: a block walks over planes of one channel. (Small planes go by columns: see
// channels_last.cu.)
#include "entries.h"

PACK_ENTRIES(planes, Planes, f32, float, 4)
PACK_ENTRIES(planes, Planes, b16, b16_t, 8)
// Statistics take packs always: x alone agrees with itself about their boundaries.
SINGLE_ENTRIES(planes, Planes, f32, float)
SINGLE_ENTRIES(planes, Planes, b16, b16_t)
