// What a profiler counts: requests of warps, 32-byte sectors, shared-memory wavefronts.
//
// Lanes run one after the other, so the accesses that a GPU would make together have to be brought
// together: the n-th access that each lane of a warp makes at one place in the code is one request.
// The count starts anew whenever the whole warp synchronises.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <unordered_map>
#include <vector>

namespace emulator {

struct Traffic {
    uint64_t bytes = 0;
    uint64_t requests = 0;
    uint64_t sectors = 0;
};

struct AllocationCounters {
    uint64_t id = 0;
    Traffic read, written;
    uint64_t atomics = 0;
};

struct SharedCounters {
    uint64_t read_bytes = 0, written_bytes = 0;
    uint64_t requests = 0;
    uint64_t extra_wavefronts = 0;  // beyond those that a request of its width needs anyway
    uint64_t peer_read_bytes = 0;   // of other blocks of the cluster; not in any of the above
};

struct LaunchCounters {
    std::vector<AllocationCounters> allocations;
    SharedCounters shared;
    uint64_t barriers = 0;
    uint64_t most_barriers = 0;  // in one block
    uint64_t threads = 0;
    uint64_t switches = 0;  // from one thread to another

    AllocationCounters &allocation(uint64_t id);

  private:
    std::unordered_map<uint64_t, size_t> index_;
    uint64_t latest_id_ = 0;
    size_t latest_ = 0;
};

// A place in a kernel that accesses memory, numbered.
class Sites {
  public:
    Sites() : slots_(1024) {}
    unsigned index(const void *address);

  private:
    struct Slot {
        const void *address = nullptr;
        unsigned index = 0;
    };
    void grow();

    std::vector<Slot> slots_;  // open addressing
    unsigned count_ = 0;
};

struct Request {
    uint64_t allocation;  // 0: shared memory
    uint32_t lanes = 0;
    bool write;
    uint64_t addresses[32];
};

// The accesses of one warp that are not counted yet.
class RequestLog {
  public:
    void add(unsigned site, unsigned lane, uint64_t allocation, bool write, uint64_t address,
             unsigned bytes);
    // Counts what there is and begins anew.
    void flush(LaunchCounters &counters);

  private:
    struct Place {
        unsigned bytes = 0;
        uint32_t accesses[32] = {};
        std::vector<Request> requests;
    };
    std::vector<Place> places_;  // by site
    std::vector<unsigned> touched_;
};

}  // namespace emulator
