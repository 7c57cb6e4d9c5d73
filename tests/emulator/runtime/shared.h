// Shared memory: where a kernel's arrays lie, and each block's copy of them.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "shadow.h"

namespace emulator {

// Arrays and their offsets, the same in all blocks. The dynamic array comes first; the static ones
// follow in the order in which threads reach them, with gaps so that an overrun is seen.
class SharedLayout {
  public:
    struct Array {
        const void *site;  // null: the dynamic array
        size_t offset, bytes;
        unsigned granule_log2;
    };

    explicit SharedLayout(size_t dynamic_bytes);

    // The array that is declared at `site`; null when it does not fit static shared memory.
    const Array *array(const void *site, size_t bytes, size_t alignment);
    // The array that the byte at an offset belongs to, null for a gap.
    const Array *owner(size_t offset) const;

    const std::vector<Array> &arrays() const { return arrays_; }
    size_t capacity() const { return capacity_; }
    size_t end() const { return end_; }  // of the last array, with the gap behind it
    size_t used_bytes() const { return used_; }  // by arrays, without the gaps

  private:
    void place(const void *site, size_t bytes, unsigned granule_bytes);

    std::vector<Array> arrays_;
    std::vector<uint8_t> owners_;  // for every 128 bytes, the array's index plus one
    size_t capacity_, used_ = 0, end_ = 0;
};

// Memory for one block's arrays, with as many cells as bytes.
struct SharedMapping {
    char *base = nullptr;
    Cell *cells = nullptr;
    size_t bytes = 0;
};

// One block's shared memory. What was never written holds NaN.
class SharedMemory {
  public:
    SharedMemory() = default;
    SharedMemory(const SharedMemory &) = delete;
    ~SharedMemory();
    // The layout outlives it. Where nothing is checked no cell is touched.
    bool allocate(const SharedLayout &layout, bool checked);
    // Forgets the contents, for the next block.
    void clear(const SharedLayout &layout);

    bool holds(const void *address) const {
        return static_cast<size_t>(static_cast<const char *>(address) - base()) < bytes_;
    }
    char *base() const { return mapping_.base; }
    Region region(const SharedLayout::Array &array, Time born) const;

  private:
    SharedMapping mapping_;
    const SharedLayout *layout_ = nullptr;
    bool checked_ = false;
    size_t bytes_ = 0;  // of the layout; the mapping may be larger
};

}  // namespace emulator
