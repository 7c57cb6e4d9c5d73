// What becomes of every access that a kernel makes: found legal or not, and counted.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace emulator {

enum class Access : uint8_t { read, write, atomic };

// `site` is the place in the kernel, an address of code.
void observe(const void *address, size_t bytes, Access access, const void *site);

// The same for an access whose address must be a multiple of its size.
void observe_aligned(const void *address, size_t bytes, Access access, const void *site);

// Fills shared memory with what reads as uninitialised, as a copy that is under way does.
void forget_shared(void *address, size_t bytes);

}  // namespace emulator
