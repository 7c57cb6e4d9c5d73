#include "cluster.h"

#include "interface.h"
#include "launch.h"

namespace emulator {

unsigned cluster_rank() { return current->block->rank; }
unsigned cluster_size() { return active->spec.cluster; }

// ---- the barrier ------------------------------------------------------------------------------

static void complete_if_all_wait(Cluster &cluster) {
    if (cluster.at_barrier == 0 || cluster.at_barrier < cluster.live) return;
    cluster.at_barrier = 0;
    active->ordering.cluster_synchronised(cluster);
    for (unsigned rank = 0; rank < active->spec.cluster; ++rank) {
        Block &block = cluster.blocks[rank];
        if (block.live == 0) continue;
        ++block.barriers;
        for (Warp &warp : block.warps) {
            warp.requests.flush(active->counters);
            const unsigned lanes = warp.members & ~warp.exited;
            if (lanes) active->scheduler.wake(warp, lanes);
        }
    }
    active->scheduler.reshuffle();
}

void cluster_barrier() {
    Thread &thread = *current;
    active->scheduler.wait(thread, Waiting::cluster_barrier);
    ++thread.block->cluster->at_barrier;
    complete_if_all_wait(*thread.block->cluster);
    active->scheduler.run_next();
}

void cluster_thread_left(Cluster &cluster) { complete_if_all_wait(cluster); }

// ---- distributed shared memory ----------------------------------------------------------------

const void *peer_shared(const void *own, unsigned rank) {
    Block &block = *current->block;
    if (!block.shared.holds(own)) fail("it maps %p, which is not its shared memory", own);
    if (rank >= active->spec.cluster)
        fail("it maps shared memory of block %u of a cluster of %u", rank, active->spec.cluster);
    const ptrdiff_t offset = static_cast<const char *>(own) - block.shared.base();
    return block.cluster->blocks[rank].shared.base() + offset;
}

Block *peer_that_holds(const void *address) {
    const Cluster &cluster = *current->block->cluster;
    for (unsigned rank = 0; rank < active->spec.cluster; ++rank)
        if (cluster.blocks[rank].shared.holds(address)) return &cluster.blocks[rank];
    return nullptr;
}

// A block has its shared memory from its start to its end.
void require_alive(const Block &peer) {
    const ClusterTimes &times = peer.cluster->times;
    if (times.sync == times.start)
        fail("shared memory of block %u, which need not have started: the cluster has not met yet",
             peer.index);
    if (peer.live == 0) fail("shared memory of block %u, which has returned", peer.index);
}

void require_no_late_reader(const Block &block) {
    if (block.read_by_peer >= block.cluster->times.sync)
        fail("it returns though others have read its shared memory since the cluster last met");
}

}  // namespace emulator
