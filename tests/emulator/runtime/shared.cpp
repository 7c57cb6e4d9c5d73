#include "shared.h"

#include <string.h>
#include <sys/mman.h>

#include <algorithm>

namespace emulator {

// CUDA's limit for arrays that are declared in a kernel.
constexpr size_t most_static_bytes = 48 << 10;
// Arrays begin at bank 0.
constexpr size_t unit = 128;
// Lies unused behind each, so that an overrun is seen.
constexpr size_t gap = 4 * unit;
constexpr size_t most_arrays = 200;

SharedLayout::SharedLayout(size_t dynamic_bytes)
    : capacity_(dynamic_bytes + most_static_bytes + (gap + unit) * most_arrays) {
    owners_.resize(capacity_ / unit + 1);
    // Made of parts of several types: 2 bytes suit all but single bytes.
    place(nullptr, dynamic_bytes, 2);
}

void SharedLayout::place(const void *site, size_t bytes, unsigned granule_bytes) {
    const size_t units = (bytes + unit - 1) / unit;
    arrays_.push_back(Array{site, end_, bytes, granule_log2(granule_bytes)});
    std::fill_n(owners_.begin() + end_ / unit, units, static_cast<uint8_t>(arrays_.size()));
    end_ += units * unit + gap;
    if (site) used_ += bytes;
}

const SharedLayout::Array *SharedLayout::array(const void *site, size_t bytes, size_t alignment) {
    for (const Array &array : arrays_)
        if (array.site == site) return &array;
    if (used_ + bytes > most_static_bytes || arrays_.size() == most_arrays) return nullptr;
    place(site, bytes, static_cast<unsigned>(alignment));
    return &arrays_.back();
}

const SharedLayout::Array *SharedLayout::owner(size_t offset) const {
    const uint8_t index = owners_[offset / unit];
    return index == 0 ? nullptr : &arrays_[index - 1];
}

static void *map(size_t bytes) {
    void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? nullptr : memory;
}

static void unmap(const SharedMapping &mapping) {
    if (mapping.base) munmap(mapping.base, mapping.bytes);
    if (mapping.cells) munmap(mapping.cells, mapping.bytes * sizeof(Cell));
}

// What blocks that have ended leave for those of later launches, whose page faults would take longer
// than their checks.
class SharedPool {
  public:
    ~SharedPool() {
        for (const SharedMapping &mapping : free_) unmap(mapping);
    }

    // Of at least so many bytes; without memory the pointers are null.
    SharedMapping take(size_t bytes) {
        const auto found = std::find_if(free_.rbegin(), free_.rend(), [bytes](const auto &mapping) {
            return mapping.bytes >= bytes;
        });
        if (found == free_.rend())
            return {static_cast<char *>(map(bytes)),
                    static_cast<Cell *>(map(bytes * sizeof(Cell))), bytes};
        const SharedMapping mapping = *found;
        *found = free_.back();
        free_.pop_back();
        return mapping;
    }

    // Takes back what has only been used where these arrays lie, and beside them.
    void give(const SharedMapping &mapping, const SharedLayout &layout, bool checked) {
        memset(mapping.base, 0, std::min(layout.end(), mapping.bytes));
        if (checked)
            for (const SharedLayout::Array &array : layout.arrays())
                memset(mapping.cells + array.offset, 0, cell_count(array) * sizeof(Cell));
        free_.push_back(mapping);
    }

  private:
    static size_t cell_count(const SharedLayout::Array &array) {
        return (array.bytes + (size_t{1} << array.granule_log2) - 1) >> array.granule_log2;
    }

    std::vector<SharedMapping> free_;
};

static SharedPool &shared_pool() {
    static thread_local SharedPool pool;
    return pool;
}

bool SharedMemory::allocate(const SharedLayout &layout, bool checked) {
    mapping_ = shared_pool().take(layout.capacity());
    layout_ = &layout;
    checked_ = checked;
    bytes_ = layout.capacity();
    if (!mapping_.base || !mapping_.cells) return false;
    clear(layout);
    return true;
}

SharedMemory::~SharedMemory() {
    if (mapping_.base && mapping_.cells) shared_pool().give(mapping_, *layout_, checked_);
    else unmap(mapping_);
}

void SharedMemory::clear(const SharedLayout &layout) {
    for (const SharedLayout::Array &array : layout.arrays())
        memset(mapping_.base + array.offset, 0xff, array.bytes);
}

Region SharedMemory::region(const SharedLayout::Array &array, Time born) const {
    // As many cells as bytes, of which a coarser granule leaves some unused.
    return Region{mapping_.base + array.offset, array.bytes, mapping_.cells + array.offset, array.granule_log2,
                  false, born};
}

}  // namespace emulator
