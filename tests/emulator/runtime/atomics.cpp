// Atomics, __threadfence, and loops that wait for another thread's atomic.

#include <algorithm>

#include "checker.h"
#include "interface.h"
#include "launch.h"

namespace emulator {

void fence() { active->ordering.fenced(*current); }

static unsigned result(Atomic operation, unsigned old, unsigned operand, unsigned compared) {
    switch (operation) {
    case Atomic::add: return old + operand;
    case Atomic::increment: return old >= operand ? 0 : old + 1;
    case Atomic::exchange: return operand;
    case Atomic::compare_exchange: return old == compared ? operand : old;
    case Atomic::maximum: return std::max(old, operand);
    }
    return old;
}

unsigned atomic(Atomic operation, unsigned *address, unsigned operand, unsigned compared) {
    const void *site = __builtin_return_address(0);
    // Which thread is the last to arrive at a counter is what the seed is to vary.
    active->scheduler.maybe_yield();
    observe_aligned(address, sizeof *address, Access::atomic, site);
    const unsigned old = *address;
    *address = result(operation, old, operand, compared);
    active->ordering.did_atomic(*current, reinterpret_cast<uintptr_t>(address));
    if (*address != old) active->scheduler.wake_spinning();
    return old;
}

unsigned atomic_load(const unsigned *address) {
    const void *site = __builtin_return_address(0);
    observe_aligned(address, sizeof *address, Access::atomic, site);
    active->ordering.did_atomic(*current, reinterpret_cast<uintptr_t>(address));
    return *address;
}

// Nothing that the thread waits for changes until an atomic changes something.
void spin_pause() { active->scheduler.spin(*current); }

}  // namespace emulator
