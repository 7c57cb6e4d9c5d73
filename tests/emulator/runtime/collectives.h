// Warp collectives: shuffles, votes, __syncwarp.
#pragma once

namespace emulator {

struct Warp;

// A lane has returned: those that wait in a collective no longer wait for it.
void collective_lane_left(Warp &warp);

}  // namespace emulator
