#include "memory.h"

#include <stdlib.h>
#include <sys/mman.h>

#include <algorithm>

namespace emulator {

constexpr size_t page = 4096;
constexpr size_t most_on_heap = 4 << 20;
// On both sides of an allocation: an index that is off by less than this meets no neighbour.
constexpr size_t gap = 1 << 20;

// Memory that costs nothing until it is touched, and is zero then.
static char *reserve(size_t bytes, int protection) {
    void *memory = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                        -1, 0);
    return memory == MAP_FAILED ? nullptr : static_cast<char *>(memory);
}

static size_t cell_bytes(const Region &region) {
    return ((region.bytes >> region.granule_log2) + 1) * sizeof(Cell);
}

// The heap keeps small ones: page faults would take longer than the checks. Of large ones only what
// is touched takes memory.
static Cell *zeroed_cells(const Region &region) {
    const size_t bytes = cell_bytes(region);
    if (bytes <= most_on_heap) return static_cast<Cell *>(calloc(1, bytes));
    char *cells = reserve(bytes, PROT_READ | PROT_WRITE);
    if (cells) madvise(cells, bytes, MADV_HUGEPAGE);
    return reinterpret_cast<Cell *>(cells);
}

static void free_cells(const Region &region) {
    const size_t bytes = cell_bytes(region);
    if (bytes <= most_on_heap) free(region.cells);
    else if (region.cells) munmap(region.cells, bytes);
}

static void unmap(const Allocation &allocation) {
    munmap(allocation.reserved, allocation.reserved_bytes);
    free_cells(allocation.region);
}

Memory::~Memory() {
    for (auto &entry : by_mapping_) unmap(*entry.second);
}

Allocation *Memory::allocate(size_t bytes, unsigned granule_bytes, bool initially_written) {
    const size_t pages = (bytes + page - 1) / page * page;
    auto allocation = std::make_unique<Allocation>();
    allocation->reserved_bytes = pages + 2 * gap;
    allocation->reserved = reserve(allocation->reserved_bytes, PROT_NONE);
    if (!allocation->reserved) return nullptr;
    allocation->id = next_id_++;
    allocation->region = Region{allocation->reserved + gap, bytes, nullptr,
                                granule_log2(granule_bytes), initially_written, 0};
    if (pages != 0 && mprotect(allocation->region.base, pages, PROT_READ | PROT_WRITE) != 0) {
        unmap(*allocation);
        return nullptr;
    }
    Allocation *result = allocation.get();
    by_mapping_.emplace(allocation->reserved, std::move(allocation));
    return result;
}

void Memory::free(Allocation *allocation) {
    unmap(*allocation);
    by_mapping_.erase(allocation->reserved);
}

void Memory::wrote(Allocation *allocation, size_t offset, size_t bytes) {
    const Region &region = allocation->region;
    if (region.initially_written || bytes == 0 || !shadow(*allocation)) return;
    Cell *cell = region.cell(region.base + offset);
    Cell *last = region.cell(region.base + offset + bytes - 1);
    for (; cell <= last; ++cell) cell->writer = Stamp{0, 1, 0};
}

Allocation *Memory::near(const void *address) const {
    auto after = by_mapping_.upper_bound(static_cast<const char *>(address));
    if (after == by_mapping_.begin()) return nullptr;
    Allocation *allocation = std::prev(after)->second.get();
    const char *end = allocation->reserved + allocation->reserved_bytes;
    return static_cast<const char *>(address) < end ? allocation : nullptr;
}

bool Memory::shadow(Allocation &allocation) {
    Region &region = allocation.region;
    if (region.cells) return true;
    region.cells = zeroed_cells(region);
    return region.cells != nullptr;
}

}  // namespace emulator
