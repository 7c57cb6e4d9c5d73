#include "checker.h"

#include <string.h>

#include <algorithm>

#include "cluster.h"
#include "interface.h"
#include "launch.h"

// The linker's names for where the program lies.
extern "C" const char __executable_start, _end;

namespace emulator {

static const char *verb(Access access) {
    return access == Access::read ? "read" : access == Access::write ? "write" : "atomic";
}

// ---- races and uninitialised reads ------------------------------------------------------------

[[noreturn]] static void race(Access access, const char *space, const void *address, Stamp other,
                              const char *what_other_did) {
    fail("race: %s of %s memory at %p, which block %u thread %u has %s; nothing orders the two",
         verb(access), space, address, block_of(other.thread), thread_of(other.thread),
         what_other_did);
}

// `now` is what `me` leaves there.
static void check_cell(Cell &cell, const Region &region, Access access, const char *address,
                       const char *space, const Thread &me, Stamp now) {
    const Ordering &ordering = active->ordering;
    const uintptr_t number = reinterpret_cast<uintptr_t>(address);
    // What a former block did in the same shared memory is nothing to this one.
    const bool written = cell.writer.time > region.born;
    if (access != Access::write && !written && !region.initially_written)
        fail("read of uninitialised %s memory at %p", space, address);

    const bool both_atomic = access == Access::atomic && cell.writer.atomic;
    if (written && !both_atomic && !ordering.ordered(cell.writer, me, number))
        race(access, space, address, cell.writer, "written");

    if (access == Access::read) {
        if (warp_of(cell.readers[0].thread) != warp_of(now.thread)) cell.readers[1] = cell.readers[0];
        cell.readers[0] = now;
        return;
    }
    for (const Stamp &reader : cell.readers)
        if (reader.time > region.born && !ordering.ordered(reader, me, number))
            race(access, space, address, reader, "read");
    cell.writer = now;
    // Who comes after this write comes after those readers too; atomics order nobody.
    if (access == Access::write) cell.readers[0] = cell.readers[1] = Stamp{0, 0, 0};
}

static void check_cells(const Region &region, const char *address, size_t bytes, Access access,
                        const char *space) {
    const Thread &me = *current;
    const ThreadId id = thread_id(me.block->index, me.index);
    const Stamp now{id, active->ordering.now(), access == Access::atomic};
    const unsigned granule = 1u << region.granule_log2;
    const Cell *last = region.cell(address + bytes - 1);
    for (Cell *cell = region.cell(address); cell <= last; ++cell, address += granule)
        check_cell(*cell, region, access, address, space, me, now);
}

// ---- shared memory ----------------------------------------------------------------------------

// Of this block or of another one of its cluster.
static void check_shared(const Block &block, const char *address, size_t bytes, Access access) {
    const size_t offset = address - block.shared.base();
    const SharedLayout::Array *array = active->layout.owner(offset);
    if (!array || offset + bytes > array->offset + array->bytes)
        fail("%s of %zu bytes outside every shared array", verb(access), bytes);
    const Region region = block.shared.region(*array, block.times.start - 1);
    check_cells(region, address, bytes, access, "shared");
}

static void observe_peer(Block &peer, const char *address, size_t bytes, Access access) {
    const Options &options = active->device.options;
    if (access != Access::read)
        fail("%s of shared memory of block %u: other blocks may read it", verb(access), peer.index);
    if (options.checks) {
        require_alive(peer);
        check_shared(peer, address, bytes, access);
        peer.read_by_peer = active->ordering.now();
    }
    if (options.counters) active->counters.shared.peer_read_bytes += bytes;
}

static void observe_shared(const char *address, size_t bytes, Access access, const void *site) {
    const Options &options = active->device.options;
    const Block &block = *current->block;
    const size_t offset = address - block.shared.base();
    if (options.checks) check_shared(block, address, bytes, access);
    if (options.counters && access != Access::atomic) {
        SharedCounters &counters = active->counters.shared;
        (access == Access::read ? counters.read_bytes : counters.written_bytes) += bytes;
        current->warp->requests.add(active->sites.index(site), current->lane, 0,
                                    access == Access::write, offset,
                                    static_cast<unsigned>(bytes));
    }
}

void forget_shared(void *pointer, size_t bytes) {
    char *address = static_cast<char *>(pointer);
    Block &block = *current->block;
    if (!block.shared.holds(address)) fail("an asynchronous copy to what is not shared memory");
    const SharedLayout::Array *array = active->layout.owner(address - block.shared.base());
    if (!array || address + bytes > block.shared.base() + array->offset + array->bytes)
        fail("an asynchronous copy of %zu bytes outside every shared array", bytes);
    memset(address, 0xff, bytes);
    if (!active->device.options.checks) return;
    const Region region = block.shared.region(*array, block.times.start - 1);
    const Cell *last = region.cell(address + bytes - 1);
    for (Cell *cell = region.cell(address); cell <= last; ++cell) cell->writer.time = 0;
}

// ---- global memory ----------------------------------------------------------------------------

[[noreturn]] static void out_of_bounds(const char *address, size_t bytes, Access access,
                                       const Allocation *allocation) {
    if (!allocation)
        fail("%s of %zu bytes at %p, which is no memory of this device", verb(access), bytes,
             static_cast<const void *>(address));
    fail("%s of %zu bytes outside an allocation of %zu bytes, at offset %lld", verb(access), bytes,
         allocation->region.bytes, static_cast<long long>(address - allocation->region.base));
}

// Constants that the compiler has put beside the code.
static bool constant(const char *address) {
    return address >= &__executable_start && address < &_end;
}

static void count_global(Allocation &allocation, const char *address, size_t bytes, Access access,
                         const void *site) {
    AllocationCounters &counters = active->counters.allocation(allocation.id);
    if (access == Access::atomic) {
        ++counters.atomics;
        return;
    }
    const bool write = access == Access::write;
    (write ? counters.written : counters.read).bytes += bytes;
    current->warp->requests.add(active->sites.index(site), current->lane, allocation.id, write,
                                reinterpret_cast<uintptr_t>(address),
                                static_cast<unsigned>(bytes));
}

static void observe_global(const char *address, size_t bytes, Access access, const void *site) {
    const Options &options = active->device.options;
    if (!current->has_waited && options.checks)
        fail("%s of global memory before it has waited for the launch before", verb(access));
    // A place in the code mostly stays with one allocation.
    const size_t hash = reinterpret_cast<uintptr_t>(site) % active->latest_allocation.size();
    Allocation *&allocation = active->latest_allocation[hash];
    if (!allocation || !allocation->holds(address)) {
        Allocation *found = active->device.memory.near(address);
        if (!found || !found->holds(address)) {
            if (access == Access::read && constant(address)) return;
            if (options.checks) out_of_bounds(address, bytes, access, found);
            return;
        }
        allocation = found;
    }
    const Region &region = allocation->region;
    if (options.checks) {
        if (address + bytes > region.base + region.bytes)
            out_of_bounds(address, bytes, access, allocation);
        if (!region.cells && !Memory::shadow(*allocation)) fail("no memory for the checker's cells");
        check_cells(region, address, bytes, access, "global");
    }
    if (options.counters) count_global(*allocation, address, bytes, access, site);
}

// ---- any memory -------------------------------------------------------------------------------

void observe(const void *pointer, size_t bytes, Access access, const void *site) {
    spend();
    active->latest_site = site;
    if (!active->observed) return;
    const char *address = static_cast<const char *>(pointer);
    if (on_own_stack(address)) return;
    const std::vector<char> &params = active->params;
    if (access == Access::read && static_cast<size_t>(address - params.data()) < params.size())
        return;
    if (current->block->shared.holds(address))
        observe_shared(address, bytes, access, site);
    else if (Block *peer = peer_that_holds(address))
        observe_peer(*peer, address, bytes, access);
    else
        observe_global(address, bytes, access, site);
}

void observe_aligned(const void *address, size_t bytes, Access access, const void *site) {
    active->latest_site = site;
    // A power of two: a division would take longer than all the rest.
    const bool aligned = (reinterpret_cast<uintptr_t>(address) & (bytes - 1)) == 0;
    if (!aligned && active->device.options.checks)
        fail("%s of %zu bytes at %p, which is not a multiple of %zu", verb(access), bytes, address,
             bytes);
    observe(address, bytes, access, site);
}

void pack_read(const void *address, size_t bytes, const void *site) {
    observe_aligned(address, bytes, Access::read, site);
}

void require_global(const void *address) {
    if (current->block->shared.holds(address)) fail("a streaming access to shared memory");
}

void pack_write(void *address, size_t bytes, const void *site) {
    observe_aligned(address, bytes, Access::write, site);
}

}  // namespace emulator
