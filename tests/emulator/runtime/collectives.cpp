#include "collectives.h"

#include "interface.h"
#include "launch.h"

namespace emulator {

// A NaN, as a double and as two floats: what a shuffle gives that reads from a lane which takes no
// part.
constexpr uint64_t undefined_value = 0x7ff4beef7ff4beefu;

template <class Function> static void each(unsigned lanes, Function function) {
    for (; lanes; lanes &= lanes - 1) function(static_cast<unsigned>(__builtin_ctz(lanes)));
}

// The lane whose value a lane asks for: its own, where the one it names is outside its group.
static unsigned source(const LaneCall &call, unsigned lane) {
    const unsigned first = lane & ~(call.width - 1u), end = first + call.width;
    switch (static_cast<Collective>(call.operation)) {
    case Collective::shuffle: return first + (call.argument & (call.width - 1u));
    case Collective::shuffle_xor: {
        const unsigned other = lane ^ call.argument;
        return other < end ? other : lane;
    }
    case Collective::shuffle_down:
        return call.argument < end - lane ? lane + call.argument : lane;
    case Collective::shuffle_up:
        return call.argument <= lane - first ? lane - call.argument : lane;
    default: return lane;
    }
}

static void exchange(Warp &warp, unsigned lanes) {
    uint64_t votes = 0, results[32];
    each(lanes, [&](unsigned lane) { votes |= (warp.lanes[lane]->call.value & 1) << lane; });
    each(lanes, [&](unsigned lane) {
        const LaneCall &call = warp.lanes[lane]->call;
        const unsigned from = source(call, lane);
        if (static_cast<Collective>(call.operation) == Collective::ballot)
            results[lane] = votes;
        else
            results[lane] = lanes >> from & 1 ? warp.lanes[from]->call.value : undefined_value;
    });
    each(lanes, [&](unsigned lane) { warp.lanes[lane]->call.value = results[lane]; });
}

// Completes the collective of the lanes in `mask` if all of them wait in it. A lane that waits with
// another mask may still come here later.
static void complete_if_all_wait(Warp &warp, unsigned mask) {
    const unsigned lanes = mask & ~warp.exited;
    if (!lanes || (lanes & ~warp.calling)) return;
    const Thread &first = *warp.lanes[__builtin_ctz(lanes)];
    bool same_mask = true;
    each(lanes, [&](unsigned lane) { same_mask &= warp.lanes[lane]->call.mask == mask; });
    if (!same_mask) return;
    each(lanes, [&](unsigned lane) {
        const LaneCall &call = warp.lanes[lane]->call;
        if (call.operation != first.call.operation || call.bytes != first.call.bytes)
            fail("lanes %u and %u are in different collectives of the same mask %08x", first.lane,
                 lane, mask);
    });
    exchange(warp, lanes);
    active->ordering.lanes_synchronised(warp, lanes);
    if (lanes == (warp.members & ~warp.exited)) warp.requests.flush(active->counters);
    warp.calling &= ~lanes;
    active->scheduler.wake(warp, lanes);
}

uint64_t warp_collective(Collective operation, unsigned mask, uint64_t value, unsigned bytes,
                         unsigned argument, unsigned width) {
    Thread &thread = *current;
    Warp &warp = *thread.warp;
    if (!(mask >> thread.lane & 1))
        fail("lane %u calls a warp collective with mask %08x, which leaves itself out",
             thread.lane, mask);
    if (width == 0 || width > 32 || (width & (width - 1)))
        fail("a shuffle of width %u: it must be a power of two up to 32", width);
    thread.call = LaneCall{value, mask, argument, static_cast<uint8_t>(operation),
                           static_cast<uint8_t>(bytes), static_cast<uint8_t>(width)};
    active->scheduler.wait(thread, Waiting::collective);
    warp.calling |= 1u << thread.lane;
    complete_if_all_wait(warp, mask);
    active->scheduler.run_next();
    return thread.call.value;
}

void collective_lane_left(Warp &warp) {
    each(warp.calling, [&](unsigned lane) {
        // Unless it has just been woken, with one of the lanes before.
        if (warp.calling >> lane & 1) complete_if_all_wait(warp, warp.lanes[lane]->call.mask);
    });
}

}  // namespace emulator
