// One launch, from its validation to its end.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "memory.h"
#include "ordering.h"
#include "registry.h"
#include "requests.h"
#include "scheduler.h"
#include "shared.h"
#include "threads.h"

namespace emulator {

// What the user chose for a device.
struct Options {
    uint64_t seed;
    uint64_t budget;  // memory accesses, basic blocks and switches, until a launch counts as hung
    uint32_t shared_bytes_per_block;
    uint32_t resident_blocks;  // of a launch whose blocks need not be
    // What limits a launch whose blocks must all be resident.
    uint32_t multiprocessors, threads_per_multiprocessor, shared_bytes_per_multiprocessor;
    uint32_t shared_bytes_reserved;  // by each block
    uint32_t largest_cluster;        // blocks of a cluster, at most; 0: it has none
    uint8_t checks, counters;
};

struct Device {
    Options options;
    Memory memory;
    Time clock = 1;  // after everything that earlier launches did
    LaunchCounters counters;
};

struct LaunchSpec {
    const char *kernel;
    const void *params;
    size_t params_bytes;
    uint32_t grid, block, shared_bytes;
    uint32_t cooperative;  // 1: all blocks are resident together
    uint32_t cluster;      // blocks of a cluster; 1: each is by itself
    uint32_t early;        // 1: it may begin before the launch before has ended
};

struct Launch {
    Device &device;
    const Kernel &kernel;
    const LaunchSpec &spec;
    std::vector<char> params;  // a copy, aligned
    Ordering ordering;
    SharedLayout layout;
    Scheduler scheduler;
    Sites sites;
    LaunchCounters counters;
    std::array<Allocation *, 256> latest_allocation = {};  // by a hash of the site
    bool observed;  // whether anything looks at accesses
    const void *latest_site = nullptr;  // of an access
    std::string failure;

    Launch(Device &device, const Kernel &kernel, const LaunchSpec &spec);
};

// The launch of this host thread, null outside one.
extern __thread Launch *active __attribute__((tls_model("initial-exec")));

// What is left of the budget.
extern __thread int64_t budget_left __attribute__((tls_model("initial-exec")));
void budget_spent();  // outside a launch, nothing
inline void spend() {
    if (--budget_left < 0) budget_spent();
}

// Ends the launch with an error that names the current thread. Hold nothing that needs a
// destructor: the thread's stack is dropped as it is.
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
// The same for what is no single thread's doing.
[[noreturn]] void fail_launch(const char *format, ...) __attribute__((format(printf, 1, 2)));

struct Outcome {
    std::string failure;  // empty when the launch went through
    bool too_large = false;  // the device was asked for more blocks together than it holds
    const void *site = nullptr;  // the latest access of the thread that failed
};
Outcome run(Device &device, const LaunchSpec &spec);

}  // namespace emulator
