#include "barrier.h"

#include "interface.h"
#include "launch.h"

namespace emulator {

static void complete_if_all_wait(Block &block) {
    if (block.at_barrier == 0 || block.at_barrier < block.live) return;
    block.at_barrier = 0;
    ++block.barriers;
    active->ordering.block_synchronised(block);
    for (Warp &warp : block.warps) {
        warp.requests.flush(active->counters);
        const unsigned lanes = warp.members & ~warp.exited;
        if (lanes) active->scheduler.wake(warp, lanes);
    }
    active->scheduler.reshuffle();
}

void block_barrier() {
    Thread &thread = *current;
    active->scheduler.wait(thread, Waiting::block_barrier);
    ++thread.block->at_barrier;
    complete_if_all_wait(*thread.block);
    active->scheduler.run_next();
}

void barrier_thread_left(Block &block) { complete_if_all_wait(block); }

}  // namespace emulator
