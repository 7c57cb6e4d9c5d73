// Training backwards that keep their inputs on chip, in packs: tensors that do not share their
// boundaries take the streaming passes.
#include "entries.h"
#include "resident_backward.cuh"

RESIDENT_ENTRIES(backward)
