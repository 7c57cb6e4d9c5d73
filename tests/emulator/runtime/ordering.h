// Which accesses of other threads a thread may rely on: the happens-before relation.
//
// A logical clock ticks at every synchronisation. An access is stamped with the time it was made
// at; it is ordered before what a thread does now if the two threads have synchronised since.
//
// Threads synchronise by warp collectives, block barriers, cluster barriers, and, across blocks, by
// this pattern:
//   one block: write; __threadfence(); atomic on X         (a release)
//   another:   atomic on X; __threadfence(); read          (an acquire)
// with barriers spreading it to the other threads of either block. Chains through a third block
// are not followed.
#pragma once

#include <stdint.h>

#include <memory>
#include <vector>

namespace emulator {

struct Thread;
struct Warp;
struct Block;
struct Cluster;

using Time = uint32_t;

// A thread of a launch: the block in the upper 22 bits, the thread in the lower 10.
using ThreadId = uint32_t;
constexpr unsigned thread_bits = 10;
constexpr unsigned most_blocks = 1u << (32 - thread_bits);
inline ThreadId thread_id(unsigned block, unsigned thread) { return block << thread_bits | thread; }
inline unsigned block_of(ThreadId id) { return id >> thread_bits; }
inline unsigned thread_of(ThreadId id) { return id & ((1u << thread_bits) - 1); }
inline unsigned warp_of(ThreadId id) { return id >> 5; }  // unique in a launch

// Who made an access, and when. Time 0: nobody, ever.
struct Stamp {
    ThreadId thread;
    uint32_t time : 31, atomic : 1;
};
constexpr Time last_time = (1u << 31) - 1;

// A thread's latest fence, and what the thread was synchronised with by then.
struct FenceTimes {
    Time fence = 0;
    Time warp_sync = 0, block_sync = 0;
};

struct WarpTimes {
    Time sync = 0;  // latest collective of the whole warp
    // For collectives of some lanes only: seen[a][b] is up to when lane a has seen what b did.
    struct Pairs {
        Time seen[32][32] = {};
    };
    std::unique_ptr<Pairs> pairs;
};

// Every thread's latest fence before a block barrier.
using SettledFences = std::shared_ptr<const std::vector<Time>>;

// An atomic that publishes what was done before a fence.
struct Release {
    uintptr_t address;
    ThreadId thread;
    Time time;
    FenceTimes fences;      // of the thread that did the atomic
    SettledFences settled;  // of the whole block
};

// An atomic that may have taken note of others' releases.
struct Acquire {
    uintptr_t address;
    ThreadId thread;
    Time time;
    Time fence;  // the first fence of that thread since; 0: none yet
};

struct BlockTimes {
    Time start = 0;
    Time sync = 0;  // latest barrier
    bool fenced = false;  // since then
    SettledFences settled;
    std::vector<Acquire> acquires;
};

struct ClusterTimes {
    Time start = 0;
    Time sync = 0;  // latest barrier
};

// One launch's order of events.
class Ordering {
  public:
    // Accesses before `start` are the host's or an earlier launch's: ordered before everything.
    // A cluster has so many blocks.
    Ordering(Time start, unsigned cluster) : start_(start), now_(start), cluster_(cluster) {}

    Time now() const { return now_; }
    Time start() const { return start_; }

    void cluster_started(Cluster &cluster);
    void block_started(Block &block);
    void lanes_synchronised(Warp &warp, unsigned lanes);
    void block_synchronised(Block &block);
    void cluster_synchronised(Cluster &cluster);
    void fenced(Thread &thread);
    void did_atomic(Thread &thread, uintptr_t address);

    // Whether the access `before`, at `address`, is ordered before what `thread` does now.
    bool ordered(Stamp before, const Thread &thread, uintptr_t address) const {
        return before.time < start_ || ordered_in_launch(before, thread, address);
    }

  private:
    Time tick() { return ++now_; }
    bool in_cluster_of(ThreadId other, const Block &block) const;
    bool ordered_in_launch(Stamp before, const Thread &thread, uintptr_t address) const;
    bool published(Stamp access, const Thread &thread) const;

    Time start_, now_;
    unsigned cluster_;
    std::vector<std::vector<Release>> releases_;  // by block
};

}  // namespace emulator
