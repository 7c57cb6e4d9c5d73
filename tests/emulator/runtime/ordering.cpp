#include "ordering.h"

#include <algorithm>

#include "threads.h"

namespace emulator {

static ThreadId id_of(const Thread &thread) { return thread_id(thread.block->index, thread.index); }

static bool same_warp(ThreadId a, ThreadId b) { return warp_of(a) == warp_of(b); }

// When `thread` and `other`, of the same block, last synchronised.
static Time synchronised(const Thread &thread, ThreadId other) {
    const Time block = thread.block->times.sync;
    if (!same_warp(id_of(thread), other)) return block;
    const WarpTimes &warp = thread.warp->times;
    const Time both = std::max(block, warp.sync);
    if (!warp.pairs) return both;
    return std::max(both, warp.pairs->seen[thread.lane][thread_of(other) % 32]);
}

void Ordering::cluster_started(Cluster &cluster) {
    cluster.times.start = cluster.times.sync = tick();
}

void Ordering::block_started(Block &block) {
    block.times = BlockTimes{};
    block.times.start = block.times.sync = tick();
    for (Warp &warp : block.warps) {
        warp.times.sync = block.times.start;
        warp.times.pairs.reset();
    }
    for (Thread &thread : block.threads) thread.fences = FenceTimes{};
}

void Ordering::lanes_synchronised(Warp &warp, unsigned lanes) {
    const Time time = tick();
    if (lanes == warp.members) {
        warp.times.sync = time;
        return;
    }
    if (!warp.times.pairs) warp.times.pairs = std::make_unique<WarpTimes::Pairs>();
    auto &seen = warp.times.pairs->seen;
    // What one of them has seen, all of them have seen from now on.
    Time together[32] = {};
    for (unsigned a = 0; a < 32; ++a) {
        if (!(lanes >> a & 1)) continue;
        for (unsigned b = 0; b < 32; ++b) together[b] = std::max(together[b], seen[a][b]);
    }
    for (unsigned a = 0; a < 32; ++a) {
        if (!(lanes >> a & 1)) continue;
        for (unsigned b = 0; b < 32; ++b) seen[a][b] = lanes >> b & 1 ? time : together[b];
    }
}

void Ordering::block_synchronised(Block &block) {
    BlockTimes &times = block.times;
    times.sync = tick();
    if (!times.fenced) return;
    std::vector<Time> fences;
    fences.reserve(block.threads.size());
    for (const Thread &thread : block.threads) fences.push_back(thread.fences.fence);
    times.settled = std::make_shared<const std::vector<Time>>(std::move(fences));
    times.fenced = false;
}

void Ordering::cluster_synchronised(Cluster &cluster) {
    for (unsigned rank = 0; rank < cluster_; ++rank) block_synchronised(cluster.blocks[rank]);
    cluster.times.sync = tick();
}

void Ordering::fenced(Thread &thread) {
    BlockTimes &times = thread.block->times;
    const Time time = tick();
    thread.fences.fence = time;
    thread.fences.block_sync = times.sync;
    thread.fences.warp_sync = std::max(times.sync, thread.warp->times.sync);
    times.fenced = true;
    for (Acquire &acquire : times.acquires)
        if (acquire.thread == id_of(thread) && acquire.fence == 0) acquire.fence = time;
}

void Ordering::did_atomic(Thread &thread, uintptr_t address) {
    const ThreadId id = id_of(thread);
    const Time time = tick();
    BlockTimes &times = thread.block->times;

    const auto unfenced = [&](const Acquire &acquire) {
        return acquire.thread == id && acquire.address == address && acquire.fence == 0;
    };
    auto known = std::find_if(times.acquires.begin(), times.acquires.end(), unfenced);
    if (known != times.acquires.end())
        known->time = time;
    else
        times.acquires.push_back(Acquire{address, id, time, 0});

    if (thread.fences.fence == 0 && !times.settled) return;
    if (releases_.size() <= thread.block->index) releases_.resize(thread.block->index + 1);
    std::vector<Release> &releases = releases_[thread.block->index];
    // The first of several equal releases serves wherever a later one would.
    for (const Release &release : releases)
        if (release.thread == id && release.address == address &&
            release.fences.fence == thread.fences.fence && release.settled == times.settled)
            return;
    releases.push_back(Release{address, id, time, thread.fences, times.settled});
}

bool Ordering::in_cluster_of(ThreadId other, const Block &block) const {
    return block_of(other) / cluster_ == block.index / cluster_;
}

bool Ordering::ordered_in_launch(Stamp before, const Thread &thread, uintptr_t address) const {
    const ThreadId me = id_of(thread);
    if (before.thread == me) return true;
    const bool same_block = block_of(before.thread) == thread.block->index;
    if (same_block && before.time < synchronised(thread, before.thread)) return true;
    // Whatever a thread of the cluster did before all met, wherever in memory.
    if (before.time < thread.block->cluster->times.sync &&
        in_cluster_of(before.thread, *thread.block))
        return true;
    if (before.atomic) {
        // Atomics on one address have an order of their own: whoever did a later one comes after.
        for (const Acquire &acquire : thread.block->times.acquires) {
            if (acquire.address != address || acquire.time <= before.time) continue;
            if (acquire.thread == me || acquire.time < synchronised(thread, acquire.thread))
                return true;
        }
    }
    return published(before, thread);
}

// Whether a release tells of an access.
static bool covers(const Release &release, Stamp access) {
    const FenceTimes &fences = release.fences;
    if (access.thread == release.thread) return access.time < fences.fence;
    // Access, barrier, fence, atomic.
    const Time seen = same_warp(access.thread, release.thread) ? fences.warp_sync
                                                               : fences.block_sync;
    if (access.time < seen) return true;
    // Access, fence, barrier, atomic.
    return release.settled && access.time < (*release.settled)[thread_of(access.thread)];
}

// Whether a thread may rely on what an atomic of its block has seen.
static bool relies_on(const Acquire &acquire, const Thread &thread) {
    const ThreadId me = id_of(thread);
    const FenceTimes &fences = thread.fences;
    if (acquire.thread == me) return fences.fence > acquire.time;
    // Atomic, barrier, fence.
    const Time seen = same_warp(acquire.thread, me) ? fences.warp_sync : fences.block_sync;
    if (seen > acquire.time) return true;
    // Atomic, fence, barrier.
    return acquire.fence != 0 && acquire.fence < synchronised(thread, acquire.thread);
}

bool Ordering::published(Stamp access, const Thread &thread) const {
    const unsigned block = block_of(access.thread);
    if (block >= releases_.size()) return false;
    for (const Release &release : releases_[block]) {
        if (!covers(release, access)) continue;
        for (const Acquire &acquire : thread.block->times.acquires)
            if (acquire.address == release.address && acquire.time > release.time &&
                relies_on(acquire, thread))
                return true;
    }
    return false;
}

}  // namespace emulator
