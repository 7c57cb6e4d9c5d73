// Training forwards that keep x on chip, in packs: tensors that do not share their boundaries take the
// streaming passes.
#include "entries.h"
#include "resident_forward.cuh"

RESIDENT_ENTRIES(forward)
