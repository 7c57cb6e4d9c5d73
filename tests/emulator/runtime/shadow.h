// What the checker remembers of memory.
#pragma once

#include "ordering.h"

namespace emulator {

// The latest accesses to one granule of memory. Two readers, of different warps, are enough: a
// later writer belongs to at most one of the two. Where several blocks read it, a reader of another
// block may be forgotten for two of the writer's own: then another seed finds what is wrong.
struct Cell {
    Stamp writer;
    Stamp readers[2];
};

// A stretch of memory and its cells. Accesses smaller than a granule count as the whole of it.
struct Region {
    char *base;
    size_t bytes;
    Cell *cells;
    unsigned granule_log2;   // of the granule's bytes: 0, 1 or 2
    bool initially_written;  // cells without a writer hold what the host wrote
    Time born;               // what is stamped earlier was another block's

    Cell *cell(const char *address) const { return cells + ((address - base) >> granule_log2); }
};

inline unsigned granule_log2(unsigned bytes) { return bytes >= 4 ? 2 : bytes >= 2 ? 1 : 0; }

}  // namespace emulator
