#include "fiber.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

// The caller saves every other register, since to it this is a function call like any other.
extern "C" void emulator_switch(void **from, void *to);

#if defined(__x86_64__)

// Leaves by a jump: a `ret` would be predicted to return to whoever called last.
asm(R"(
    .text
    .globl emulator_switch
    .type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    popq %rdx
    jmpq *%rdx
    .size emulator_switch, .-emulator_switch
)");

// Six registers and the address to go to; above them a zero, so that the entry finds the stack
// aligned as after a call.
static void *first_frame(char *top, void (*entry)()) {
    void **frame = reinterpret_cast<void **>(top) - 8;
    memset(frame, 0, 8 * sizeof(void *));
    frame[6] = reinterpret_cast<void *>(entry);
    return frame;
}

#elif defined(__aarch64__)

asm(R"(
    .text
    .globl emulator_switch
    .type emulator_switch, %function
emulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size emulator_switch, .-emulator_switch
)");

// Twenty registers, of which the twelfth (x30) is the address to go to.
static void *first_frame(char *top, void (*entry)()) {
    void **frame = reinterpret_cast<void **>(top) - 20;
    memset(frame, 0, 20 * sizeof(void *));
    frame[11] = reinterpret_cast<void *>(entry);
    return frame;
}

#else
#error "no way to switch stacks on this processor"
#endif

namespace emulator {

void switch_fiber(Fiber &from, const Fiber &to) {
    emulator_switch(&from.stack_pointer, to.stack_pointer);
}

void prepare_fiber(Fiber &fiber, char *stack, void (*entry)()) {
    // Tops at unlike distances from a page: else the hot lines of all stacks share a few cache sets.
    const uintptr_t colour = (reinterpret_cast<uintptr_t>(stack) / stack_bytes) % 32;
    fiber.stack = stack;
    fiber.stack_pointer = first_frame(stack + stack_bytes - 128 * colour, entry);
}

char *StackPool::take() {
    if (free_.empty()) {
        void *memory = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) return nullptr;
        // A kernel that needs more stack than this stops here, not in its neighbour.
        mprotect(memory, 4096, PROT_NONE);
        all_.push_back(static_cast<char *>(memory));
        return all_.back();
    }
    char *stack = free_.back();
    free_.pop_back();
    return stack;
}

StackPool::~StackPool() {
    for (char *stack : all_) munmap(stack, stack_bytes);
}

StackPool &stack_pool() {
    static thread_local StackPool pool;
    return pool;
}

}  // namespace emulator
