#include "scheduler.h"

#include <stdio.h>

#include <algorithm>
#include <numeric>

#include "barrier.h"
#include "cluster.h"
#include "collectives.h"
#include "launch.h"

namespace emulator {

__thread Thread *current;
__thread const char *current_stack;

uint32_t Random::below(uint32_t bound) {
    // xorshift64*
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<uint32_t>(((state_ * 0x2545f4914f6cdd1du) >> 32) % bound);
}

// ---- ready warps ------------------------------------------------------------------------------

void ReadyWarps::resize(unsigned warps) {
    bits_.assign((warps + 63) / 64, 0);
    rank_of_.resize(warps);
    slot_at_.resize(warps);
    std::iota(rank_of_.begin(), rank_of_.end(), 0);
    std::iota(slot_at_.begin(), slot_at_.end(), 0);
}

void ReadyWarps::insert(unsigned slot) {
    const unsigned rank = rank_of_[slot];
    bits_[rank / 64] |= uint64_t{1} << (rank % 64);
}

void ReadyWarps::remove(unsigned slot) {
    const unsigned rank = rank_of_[slot];
    bits_[rank / 64] &= ~(uint64_t{1} << (rank % 64));
}

int ReadyWarps::first(unsigned from) const {
    const size_t words = bits_.size();
    // The first word is looked at twice: its upper part to begin with, its lower part at the end.
    for (size_t i = 0; i <= words; ++i) {
        const size_t word = (from / 64 + i) % words;
        uint64_t bits = bits_[word];
        if (i == 0) bits &= ~uint64_t{0} << (from % 64);
        if (bits) return static_cast<int>(slot_at_[word * 64 + __builtin_ctzll(bits)]);
    }
    return -1;
}

void ReadyWarps::swap_ranks(unsigned a, unsigned b) {
    if (ready_at(a) != ready_at(b)) {
        bits_[a / 64] ^= uint64_t{1} << (a % 64);
        bits_[b / 64] ^= uint64_t{1} << (b % 64);
    }
    std::swap(slot_at_[a], slot_at_[b]);
    rank_of_[slot_at_[a]] = a;
    rank_of_[slot_at_[b]] = b;
}

// ---- blocks -----------------------------------------------------------------------------------

Scheduler::Scheduler(Launch &launch, uint64_t seed)
    : launch_(launch),
      policy_(seed == 0       ? Policy::forwards
              : seed == 1     ? Policy::backwards
              : seed % 2 == 0 ? Policy::precedence
                              : Policy::uniform),
      random_(seed) {}

static void lay_out(Block &block, unsigned threads) {
    block.threads = std::vector<Thread>(threads);
    block.warps = std::vector<Warp>((threads + 31) / 32);
    for (unsigned index = 0; index < threads; ++index) {
        Thread &thread = block.threads[index];
        Warp &warp = block.warps[index / 32];
        thread.block = &block;
        thread.warp = &warp;
        thread.index = index;
        thread.lane = index % 32;
        warp.lanes[thread.lane] = &thread;
        warp.members |= 1u << thread.lane;
    }
    block.live = 0;
}

bool Scheduler::run_all() {
    const unsigned size = launch_.spec.cluster, clusters = launch_.spec.grid / size;

    // Several at a time, so that they meet each other in all stages; alone, too.
    unsigned resident = launch_.device.options.resident_blocks / size;
    if (policy_ == Policy::forwards) resident = 1;
    resident = std::max(resident, 1u);
    if (policy_ >= Policy::precedence) resident = 1 + random_.below(resident);
    if (launch_.spec.cooperative) resident = clusters;

    order_clusters(clusters);
    if (!make_places(std::min(resident, clusters))) return false;
    for (Cluster &place : clusters_) start_cluster(place);
    char *stack = stack_pool().take();
    if (!stack) return false;
    stack_pool().give(stack);
    run_next();
    return true;
}

void Scheduler::order_clusters(unsigned clusters) {
    order_.resize(clusters);
    std::iota(order_.begin(), order_.end(), 0);
    if (policy_ == Policy::backwards) std::reverse(order_.begin(), order_.end());
    if (policy_ < Policy::precedence) return;
    for (unsigned i = clusters; i > 1; --i) std::swap(order_[i - 1], order_[random_.below(i)]);
}

// Room for so many resident clusters. False: no memory.
bool Scheduler::make_places(unsigned clusters) {
    const unsigned size = launch_.spec.cluster;
    places_ = std::vector<Block>(clusters * size);
    clusters_ = std::vector<Cluster>(clusters);
    for (unsigned i = 0; i < places_.size(); ++i) {
        Block &place = places_[i];
        lay_out(place, launch_.spec.block);
        place.rank = i % size;
        place.cluster = &clusters_[i / size];
        if (place.rank == 0) place.cluster->blocks = &place;
        if (!place.shared.allocate(launch_.layout, launch_.device.options.checks)) return false;
        for (Warp &warp : place.warps) {
            warp.slot = static_cast<unsigned>(warps_.size());
            warps_.push_back(&warp);
        }
    }
    const unsigned slots = static_cast<unsigned>(warps_.size());
    ready_.resize(slots);
    if (policy_ == Policy::backwards)
        for (unsigned i = 0; i < slots / 2; ++i) ready_.swap_ranks(i, slots - 1 - i);
    if (policy_ >= Policy::precedence)
        for (unsigned i = slots; i > 1; --i) ready_.swap_ranks(i - 1, random_.below(i));
    return true;
}

// Has the next cluster of the grid take a place, if there is one left.
void Scheduler::start_cluster(Cluster &place) {
    if (next_cluster_ == order_.size()) return;
    const unsigned size = launch_.spec.cluster, first = order_[next_cluster_++] * size;
    place.live = size * launch_.spec.block;
    place.at_barrier = 0;
    launch_.ordering.cluster_started(place);
    for (unsigned rank = 0; rank < size; ++rank) start_block(place.blocks[rank], first + rank);
}

void Scheduler::start_block(Block &place, unsigned index) {
    place.index = index;
    place.live = launch_.spec.block;
    place.at_barrier = 0;
    place.barriers = 0;
    place.read_by_peer = 0;
    place.shared.clear(launch_.layout);
    launch_.ordering.block_started(place);
    for (Warp &warp : place.warps) {
        warp.exited = warp.calling = 0;
        warp.ready = warp.members;
        ready_.insert(warp.slot);
    }
    for (Thread &thread : place.threads) {
        thread.fiber = Fiber{};
        thread.waiting = Waiting::nothing;
        thread.has_waited = !launch_.spec.early;
    }
    live_ += place.live;
}

static void count_block(LaunchCounters &counters, Block &block) {
    for (Warp &warp : block.warps) warp.requests.flush(counters);
    counters.barriers += block.barriers;
    counters.most_barriers = std::max(counters.most_barriers, block.barriers);
    counters.threads += block.threads.size();
}

// A thread has returned from the kernel: whoever waits need no longer wait for it.
void Scheduler::finish(Thread &thread) {
    Block &block = *thread.block;
    if (!thread.copies.empty()) fail("it returns with %zu copies under way", thread.copies.size());
    wait(thread, Waiting::finished);
    thread.warp->exited |= 1u << thread.lane;
    Cluster &cluster = *block.cluster;
    --block.live;
    --cluster.live;
    --live_;
    collective_lane_left(*thread.warp);
    barrier_thread_left(block);
    cluster_thread_left(cluster);
    if (block.live == 0) {
        require_no_late_reader(block);
        count_block(launch_.counters, block);
    }
    if (cluster.live == 0) start_cluster(cluster);
}

// ---- threads ----------------------------------------------------------------------------------

void Scheduler::wait(Thread &thread, Waiting reason) {
    thread.waiting = reason;
    Warp &warp = *thread.warp;
    warp.ready &= ~(1u << thread.lane);
    if (!warp.ready) ready_.remove(warp.slot);
}

void Scheduler::wake(Warp &warp, unsigned lanes) {
    for (unsigned left = lanes; left; left &= left - 1)
        warp.lanes[__builtin_ctz(left)]->waiting = Waiting::nothing;
    warp.ready |= lanes;
    ready_.insert(warp.slot);
}

void Scheduler::spin(Thread &thread) {
    wait(thread, Waiting::atomic);
    spinning_.push_back(&thread);
    run_next();
}

void Scheduler::wake_spinning() {
    for (Thread *thread : spinning_) wake(*thread->warp, 1u << thread->lane);
    spinning_.clear();
}

unsigned Scheduler::pick_lane(const Warp &warp) {
    const uint32_t ready = warp.ready;
    if (policy_ == Policy::forwards) return __builtin_ctz(ready);
    if (policy_ == Policy::backwards) return 31 - __builtin_clz(ready);
    // The first at or after a random lane.
    const unsigned from = random_.below(32);
    const uint32_t after = ready >> from << from;
    return __builtin_ctz(after ? after : ready);
}

// Null: all have finished.
Thread *Scheduler::pick() {
    const unsigned from = policy_ == Policy::uniform ? random_.below(ready_.size()) : 0;
    const int slot = ready_.first(from);
    if (slot < 0) {
        if (live_ != 0) report_deadlock();
        return nullptr;
    }
    Warp &warp = *warps_[slot];
    return warp.lanes[pick_lane(warp)];
}

void Scheduler::begin(Thread &thread, char *stack) {
    if (!stack) fail("no memory for the stacks of so many threads");
    prepare_fiber(thread.fiber, stack, thread_main);
}

void Scheduler::run_next() {
    spend();
    Thread *me = current;
    Thread *next = pick();
    if (next == me) return;
    ++switches_;
    if (next && !next->fiber.stack) begin(*next, stack_pool().take());
    set_current(next);
    switch_fiber(me ? me->fiber : host_, next ? next->fiber : host_);
}

// A stack runs one thread after the other: those that never wait need a single one.
void Scheduler::thread_main() {
    for (;;) {
        Scheduler &scheduler = active->scheduler;
        active->kernel.run(active->params.data());

        // `finish` may hand the thread's place to one of the next block: keep what is this one's.
        char *stack = current->fiber.stack;
        scheduler.finish(*current);
        Thread *next = scheduler.pick();
        ++scheduler.switches_;
        if (next && !next->fiber.stack) {
            next->fiber.stack = stack;
            set_current(next);
            continue;
        }
        set_current(next);
        stack_pool().give(stack);
        Fiber dead;
        switch_fiber(dead, next ? next->fiber : scheduler.host_);
    }
}

void Scheduler::maybe_yield() {
    if (policy_ >= Policy::precedence && random_.below(2) == 0) run_next();
}

void Scheduler::reshuffle() {
    if (policy_ != Policy::precedence) return;
    ready_.swap_ranks(random_.below(ready_.size()), random_.below(ready_.size()));
}

void Scheduler::abandon() {
    Fiber dead;
    set_current(nullptr);
    switch_fiber(dead, host_);
    __builtin_unreachable();
}

const char *waiting_for(Waiting waiting) {
    switch (waiting) {
    case Waiting::nothing: return "nothing";
    case Waiting::collective: return "a warp collective";
    case Waiting::block_barrier: return "__syncthreads";
    case Waiting::cluster_barrier: return "the cluster's barrier";
    case Waiting::atomic: return "an atomic of another thread";
    case Waiting::finished: return "the end of the launch";
    }
    return "?";
}

// Names a few threads of each kind that wait.
void Scheduler::report_deadlock() {
    char text[800];
    int length = 0;
    for (const Waiting reason : {Waiting::collective, Waiting::block_barrier,
                                 Waiting::cluster_barrier, Waiting::atomic}) {
        int named = 0;
        for (const Block &block : places_)
            for (const Thread &thread : block.threads) {
                if (thread.waiting != reason || block.live == 0 || named == 3) continue;
                ++named;
                length += snprintf(text + length, sizeof text - length,
                                   "; block %u thread %u waits at %s", block.index, thread.index,
                                   waiting_for(reason));
                if (reason == Waiting::collective)
                    length += snprintf(text + length, sizeof text - length, " with mask %08x",
                                       thread.call.mask);
            }
    }
    text[length] = 0;
    fail_launch("deadlock: no thread can run%s", text);
}

}  // namespace emulator
