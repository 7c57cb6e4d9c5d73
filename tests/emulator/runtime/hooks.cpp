// The functions that `g++ -fsanitize=thread` and `-fsanitize-coverage=trace-pc` have kernels call.
// libtsan is not linked: these take its place.

#include <stddef.h>

#include "checker.h"
#include "launch.h"

using emulator::Access;

// Kernels' static initialisers run outside any launch.
static inline bool inside_launch() { return emulator::current != nullptr; }

#define SITE __builtin_return_address(0)

#define ACCESS_HOOKS(bytes)                                                                        \
    extern "C" void __tsan_read##bytes(void *address) {                                            \
        if (inside_launch()) emulator::observe_aligned(address, bytes, Access::read, SITE);        \
    }                                                                                              \
    extern "C" void __tsan_write##bytes(void *address) {                                           \
        if (inside_launch()) emulator::observe_aligned(address, bytes, Access::write, SITE);       \
    }                                                                                              \
    extern "C" void __tsan_volatile_read##bytes(void *address) {                                   \
        if (inside_launch()) emulator::observe_aligned(address, bytes, Access::read, SITE);        \
    }                                                                                              \
    extern "C" void __tsan_volatile_write##bytes(void *address) {                                  \
        if (inside_launch()) emulator::observe_aligned(address, bytes, Access::write, SITE);       \
    }                                                                                              \
    extern "C" void __tsan_unaligned_read##bytes(void *address) {                                  \
        if (inside_launch()) emulator::observe(address, bytes, Access::read, SITE);                \
    }                                                                                              \
    extern "C" void __tsan_unaligned_write##bytes(void *address) {                                 \
        if (inside_launch()) emulator::observe(address, bytes, Access::write, SITE);               \
    }

ACCESS_HOOKS(1)
ACCESS_HOOKS(2)
ACCESS_HOOKS(4)
ACCESS_HOOKS(8)
ACCESS_HOOKS(16)

extern "C" void __tsan_read_range(void *address, size_t bytes) {
    if (inside_launch()) emulator::observe(address, bytes, Access::read, SITE);
}

extern "C" void __tsan_write_range(void *address, size_t bytes) {
    if (inside_launch()) emulator::observe(address, bytes, Access::write, SITE);
}

extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void *) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void **, void *) {}
extern "C" void __tsan_vptr_read(void **) {}

// Once in every basic block: a loop that touches no memory ends here too.
extern "C" void __sanitizer_cov_trace_pc() {
    if (inside_launch()) emulator::spend();
}
