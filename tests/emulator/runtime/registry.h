// Kernels by name. Every KERNEL registers itself before main.
#pragma once

#include <stddef.h>

#include <string>
#include <vector>

namespace emulator {

struct Kernel {
    const char *name;
    void (*run)(const void *params);
    size_t params_bytes;
    unsigned threads;  // at most, in a block
};

// In order of their names.
const std::vector<Kernel> &kernels();
const Kernel *find_kernel(const std::string &name);

}  // namespace emulator
