// Fibers: call stacks that give way to each other within one host thread.
#pragma once

#include <stddef.h>

#include <vector>

namespace emulator {

struct Fiber {
    void *stack_pointer = nullptr;  // while it does not run
    char *stack = nullptr;          // lowest address; null before it first runs
};

constexpr size_t stack_bytes = 64 << 10;

// Stores the running fiber in `from` and goes on where `to` was stored.
void switch_fiber(Fiber &from, const Fiber &to);

// Has `fiber` begin at `entry`, which must never return.
void prepare_fiber(Fiber &fiber, char *stack, void (*entry)());

// Stacks of one host thread, kept from launch to launch.
class StackPool {
  public:
    ~StackPool();
    // Null when the system has no memory left.
    char *take();
    void give(char *stack) { free_.push_back(stack); }
    // Takes back what a failed launch left in use.
    void reclaim() { free_ = all_; }

  private:
    std::vector<char *> all_, free_;
};

StackPool &stack_pool();

}  // namespace emulator
