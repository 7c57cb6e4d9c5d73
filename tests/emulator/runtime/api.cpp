// The emulator's C interface, for src/runtime.rs. No call may overlap another on the same device.

#include <stdlib.h>
#include <string.h>

#include "launch.h"

// The linker's name for where the program begins.
extern "C" const char __executable_start;

using namespace emulator;

extern "C" {

Device *emulator_device(const Options *options) {
    Device *device = new Device;
    device->options = *options;
    return device;
}

void emulator_device_free(Device *device) { delete device; }

Allocation *emulator_allocate(Device *device, size_t bytes, uint32_t granule, bool written) {
    return device->memory.allocate(bytes, granule, written);
}

void emulator_free(Device *device, Allocation *allocation) { device->memory.free(allocation); }

char *emulator_address(const Allocation *allocation) { return allocation->region.base; }

uint64_t emulator_id(const Allocation *allocation) { return allocation->id; }

void emulator_wrote(Device *device, Allocation *allocation, size_t offset, size_t bytes) {
    device->memory.wrote(allocation, offset, bytes);
}

// The failure's text, for `emulator_free_text`; null: the launch went through. `site` becomes the
// place in the program of the failing access, counted from the program's start; 0: unknown.
// `too_large` becomes whether the device holds too few blocks together.
char *emulator_launch(Device *device, const LaunchSpec *spec, uint64_t *site, bool *too_large) {
    const Outcome outcome = run(*device, *spec);
    *site = 0;
    *too_large = outcome.too_large;
    if (outcome.failure.empty()) return nullptr;
    if (outcome.site) *site = static_cast<const char *>(outcome.site) - &__executable_start;
    return strdup(outcome.failure.c_str());
}

void emulator_free_text(char *text) { free(text); }

// What src/counters.rs reads, of the latest launch.
struct Totals {
    SharedCounters shared;
    uint64_t barriers, most_barriers, threads, switches;
    uint64_t allocations;
};

void emulator_totals(const Device *device, Totals *totals) {
    const LaunchCounters &counters = device->counters;
    *totals = Totals{counters.shared,  counters.barriers, counters.most_barriers,
                     counters.threads, counters.switches, counters.allocations.size()};
}

void emulator_allocation_counters(const Device *device, AllocationCounters *allocations) {
    const auto &counted = device->counters.allocations;
    for (size_t i = 0; i < counted.size(); ++i) allocations[i] = counted[i];
}

size_t emulator_kernel_count() { return kernels().size(); }
const char *emulator_kernel_name(size_t index) { return kernels()[index].name; }
uint32_t emulator_kernel_threads(size_t index) { return kernels()[index].threads; }
size_t emulator_kernel_params_bytes(size_t index) { return kernels()[index].params_bytes; }

}  // extern "C"
