// Thread block clusters: their barrier, and the shared memory of their other blocks.
#pragma once

namespace emulator {

struct Block;
struct Cluster;

// A thread has returned: those at the cluster's barrier no longer wait for it, as on a GPU.
void cluster_thread_left(Cluster &cluster);

// The other block of the current thread's cluster in whose shared memory an address lies. Null: in
// none.
Block *peer_that_holds(const void *address);
// Fails where a thread of the cluster may not read it.
void require_alive(const Block &peer);
// Fails where a block has returned that others have read since the cluster last met: they might as
// well have come too late.
void require_no_late_reader(const Block &block);

}  // namespace emulator
