// The threads of a launch as the emulator sees them: thread, warp, block.
#pragma once

#include <stdint.h>

#include <memory>
#include <vector>

#include "fiber.h"
#include "ordering.h"
#include "requests.h"
#include "shared.h"

namespace emulator {

struct Warp;
struct Block;
struct Cluster;

// Where a thread waits. A new kind of barrier adds a word here and one in `waiting_for`.
enum class Waiting : uint8_t {
    nothing,
    collective,
    block_barrier,
    cluster_barrier,
    atomic,
    finished,
};
const char *waiting_for(Waiting waiting);

// What a lane brings to a warp collective, and takes from it.
struct LaneCall {
    uint64_t value;
    unsigned mask;
    unsigned argument;
    uint8_t operation;
    uint8_t bytes;
    uint8_t width;
};

// A copy to shared memory that has been started.
struct PendingCopy {
    void *to;
    const void *from;
    size_t bytes;
    const void *site;
    unsigned stage;  // of its thread
};

struct Thread {
    Fiber fiber;
    Block *block;
    Warp *warp;
    unsigned index;  // in its block
    uint8_t lane;
    Waiting waiting;
    bool has_waited;  // for the launch before
    LaneCall call;
    FenceTimes fences;
    std::vector<PendingCopy> copies;
    unsigned stages;  // of copies, that it has ended
};

struct Warp {
    Thread *lanes[32];
    unsigned members;  // a bit for each lane there is
    unsigned exited;   // and for each that has returned
    unsigned ready;    // and for each that can run
    unsigned calling;  // and for each that waits in a collective
    unsigned slot;     // its place in the scheduler
    WarpTimes times;
    RequestLog requests;
};

struct Block {
    unsigned index;  // blockIdx.x
    unsigned rank;   // in its cluster
    unsigned live;   // threads that have not returned
    unsigned at_barrier;
    uint64_t barriers;
    Time read_by_peer;  // when another block of the cluster last read its shared memory
    Cluster *cluster;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    SharedMemory shared;
    BlockTimes times;
};

// Blocks that live together, meet, and read each other's shared memory. One block, where the launch
// has no clusters.
struct Cluster {
    Block *blocks;  // as many as the launch says, in order of their ranks
    unsigned live;  // threads that have not returned
    unsigned at_barrier;
    ClusterTimes times;
};

// The thread that runs on this host thread, null outside a launch. Not `thread_local`: of that, other
// files ask at every use whether it has been initialised.
extern __thread Thread *current __attribute__((tls_model("initial-exec")));
extern __thread const char *current_stack __attribute__((tls_model("initial-exec")));

inline void set_current(Thread *thread) {
    current = thread;
    current_stack = thread ? thread->fiber.stack : nullptr;
}

// Whether an address is of the current thread's own variables.
inline bool on_own_stack(const void *address) {
    return static_cast<size_t>(static_cast<const char *>(address) - current_stack) < stack_bytes;
}

}  // namespace emulator
