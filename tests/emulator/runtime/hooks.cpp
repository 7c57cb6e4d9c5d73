// The functions that `g++ -fsanitize=thread` and `-fsanitize-coverage=trace-pc` have kernels call.
// libtsan is not linked: these take its place.

#include <stddef.h>

#include "checker.h"
#include "launch.h"

using emulator::Access;

// Kernels' static initialisers run outside any launch.
static inline bool inside_launch() { return emulator::current != nullptr; }

static inline void access(void *address, size_t bytes, Access what, const void *site) {
    if (!emulator::on_own_stack(address) && inside_launch())
        emulator::observe(address, bytes, what, site);
}

// Most accesses are to a thread's own variables: those take no call from here.
template <size_t bytes>
static inline void aligned_access(void *address, Access what, const void *site) {
    const bool aligned = reinterpret_cast<uintptr_t>(address) % bytes == 0;
    if (!(aligned && emulator::on_own_stack(address)) && inside_launch())
        emulator::observe_aligned(address, bytes, what, site);
}

#define SITE __builtin_return_address(0)

#define ACCESS_HOOKS(bytes)                                                                        \
    extern "C" void __tsan_read##bytes(void *address) {                                            \
        aligned_access<bytes>(address, Access::read, SITE);                                        \
    }                                                                                              \
    extern "C" void __tsan_write##bytes(void *address) {                                           \
        aligned_access<bytes>(address, Access::write, SITE);                                       \
    }                                                                                              \
    extern "C" void __tsan_volatile_read##bytes(void *address) {                                   \
        aligned_access<bytes>(address, Access::read, SITE);                                        \
    }                                                                                              \
    extern "C" void __tsan_volatile_write##bytes(void *address) {                                  \
        aligned_access<bytes>(address, Access::write, SITE);                                       \
    }                                                                                              \
    extern "C" void __tsan_unaligned_read##bytes(void *address) {                                  \
        access(address, bytes, Access::read, SITE);                                                \
    }                                                                                              \
    extern "C" void __tsan_unaligned_write##bytes(void *address) {                                 \
        access(address, bytes, Access::write, SITE);                                               \
    }

ACCESS_HOOKS(1)
ACCESS_HOOKS(2)
ACCESS_HOOKS(4)
ACCESS_HOOKS(8)
ACCESS_HOOKS(16)

extern "C" void __tsan_read_range(void *address, size_t bytes) {
    access(address, bytes, Access::read, SITE);
}

extern "C" void __tsan_write_range(void *address, size_t bytes) {
    access(address, bytes, Access::write, SITE);
}

extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void *) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void **, void *) {}
extern "C" void __tsan_vptr_read(void **) {}

// Once in every basic block: a loop that touches no memory ends here too.
extern "C" void __sanitizer_cov_trace_pc() {
    emulator::spend();
}
