// What kernels call in the emulator, by way of cuda_on_cpu.h and device.cuh.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct uint3 {
    unsigned x, y, z;
};
typedef uint3 dim3;

namespace emulator {

// Constant for a thread as long as it lives, so the compiler may keep what these return.
__attribute__((const)) uint3 thread_index();
__attribute__((const)) uint3 block_index();
__attribute__((const)) uint3 block_size();
__attribute__((const)) uint3 grid_size();

void *dynamic_shared();
void *shared_array(const void *site, size_t bytes, size_t alignment);

void block_barrier();
void fence();
void wait_for_launch_before();

// Of a launch without clusters each block is one by itself.
__attribute__((const)) unsigned cluster_rank();
__attribute__((const)) unsigned cluster_size();
void cluster_barrier();
// Where in the shared memory of the cluster's block `rank` this block has `own`. To be read only.
const void *peer_shared(const void *own, unsigned rank);

enum class Collective : uint8_t { shuffle, shuffle_xor, shuffle_down, shuffle_up, ballot, sync };
uint64_t warp_collective(Collective operation, unsigned mask, uint64_t value, unsigned bytes,
                         unsigned argument, unsigned width);

enum class Atomic : uint8_t { add, increment, exchange, compare_exchange, maximum };
unsigned atomic(Atomic operation, unsigned *address, unsigned operand, unsigned compared);

void pack_read(const void *address, size_t bytes, const void *site);
void pack_write(void *address, size_t bytes, const void *site);

// Starts a copy to shared memory; ends a stage of such copies; waits for those of all but so many of
// the latest stages.
void async_copy(void *to, const void *from, size_t bytes, bool is_there, const void *site);
void async_copy_commit();
void async_copy_wait(unsigned stages);

// Reads what others change by atomics.
unsigned atomic_load(const unsigned *address);
// In a loop that waits for another thread: lets the others run.
void spin_pause();

// Fails for shared memory: the instruction that this stands for has no access to it.
void require_global(const void *address);

// Never a function of its own: the linker could take the kernels' copy, which reports its accesses,
// for the emulator's.
template <class To, class From> __attribute__((always_inline)) inline To same_bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "the sizes must agree");
    To result;
    memcpy(&result, &value, sizeof(To));
    return result;
}

// The sum, rounded down.
float add_down(float a, float b);

// Approximations, as far off as they may be on a GPU.
float exp2_approx(float value);
float reciprocal_approx(float value);

float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);

// Makes a kernel known by name, before main.
struct Registration {
    Registration(const char *name, void (*run)(const void *), size_t params_bytes,
                 unsigned threads);
};

}  // namespace emulator
