// The device's global memory: allocations of exact size, far apart, and their cells.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <map>
#include <memory>

#include "shadow.h"

namespace emulator {

struct Allocation {
    uint64_t id;  // never used twice, unlike addresses
    Region region;
    char *reserved;  // the mapping, with the gaps on both sides
    size_t reserved_bytes;

    bool holds(const void *address) const {
        return static_cast<size_t>(static_cast<const char *>(address) - region.base) < region.bytes;
    }
};

class Memory {
  public:
    ~Memory();

    // Zeros; whether they count as written is the caller's word. Null: no memory.
    // Untouched pages cost nothing, however large the allocation.
    Allocation *allocate(size_t bytes, unsigned granule_bytes, bool initially_written);
    void free(Allocation *allocation);
    // The host has written these bytes.
    void wrote(Allocation *allocation, size_t offset, size_t bytes);

    // The allocation that an address lies in, or next to. Null: in none.
    Allocation *near(const void *address) const;
    // Cells, which come into being with the first access that is checked. False: no memory.
    static bool shadow(Allocation &allocation);

  private:
    std::map<const char *, std::unique_ptr<Allocation>> by_mapping_;
    uint64_t next_id_ = 1;
};

}  // namespace emulator
