// __syncthreads.
#pragma once

namespace emulator {

struct Block;

// A thread has returned: those at the barrier no longer wait for it, as on a GPU.
void barrier_thread_left(Block &block);

}  // namespace emulator
