#include "launch.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>

namespace emulator {

thread_local Launch *active;
thread_local int64_t budget_left;

Launch::Launch(Device &device, const Kernel &kernel, const LaunchSpec &spec)
    : device(device),
      kernel(kernel),
      spec(spec),
      params(spec.params_bytes),
      ordering(device.clock + 1, spec.cluster),
      layout(spec.shared_bytes),
      scheduler(*this, device.options.seed),
      observed(device.options.checks || device.options.counters) {
    memcpy(params.data(), spec.params, spec.params_bytes);
}

// ---- failures ---------------------------------------------------------------------------------

[[noreturn]] static void fail_with(const char *text) {
    active->failure = text;
    active->scheduler.abandon();
}

void fail(const char *format, ...) {
    char text[1200];
    const int length = snprintf(text, sizeof text, "block %u thread %u: ", current->block->index,
                                current->index);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + length, sizeof text - length, format, arguments);
    va_end(arguments);
    fail_with(text);
}

void fail_launch(const char *format, ...) {
    char text[1200];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    active->latest_site = nullptr;  // some thread's, which need not be the one at fault
    fail_with(text);
}

void budget_spent() {
    if (!current) return;
    fail("the launch took more than its budget of %llu steps: does a loop not end?",
         static_cast<unsigned long long>(active->device.options.budget));
}

// ---- validation -------------------------------------------------------------------------------

__attribute__((format(printf, 1, 2))) static std::string text(const char *format, ...) {
    char buffer[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(buffer, sizeof buffer, format, arguments);
    va_end(arguments);
    return buffer;
}

// Blocks that are resident together.
static uint64_t capacity(const Options &options, const LaunchSpec &spec) {
    const uint32_t shared = std::max(spec.shared_bytes + options.shared_bytes_reserved, 1u);
    return uint64_t{options.multiprocessors} *
           std::min(options.threads_per_multiprocessor / spec.block,
                    options.shared_bytes_per_multiprocessor / shared);
}

// What a GPU would refuse, and what the emulator has no room for. Empty: nothing.
static std::string refusal(const Device &device, const Kernel *kernel, const LaunchSpec &spec) {
    if (!kernel) return "there is no such kernel";
    if (spec.params_bytes != kernel->params_bytes)
        return text("its parameters are %zu bytes, not %zu", kernel->params_bytes,
                    spec.params_bytes);
    if (spec.block == 0 || spec.block % 32 != 0 || spec.block > kernel->threads)
        return text("a block of %u threads: it takes a multiple of 32 up to %u", spec.block,
                    kernel->threads);
    if (kernel->threads > 1u << thread_bits)
        return text("it declares blocks of %u threads", kernel->threads);
    if (spec.grid == 0) return "a grid of no blocks";
    if (spec.grid > most_blocks)
        return text("a grid of %u blocks: the emulator runs %u at most", spec.grid, most_blocks);
    if (spec.shared_bytes > device.options.shared_bytes_per_block)
        return text("%u bytes of shared memory: the device has %u a block", spec.shared_bytes,
                    device.options.shared_bytes_per_block);
    if (spec.cluster == 0) return "clusters of no blocks";
    if (spec.grid % spec.cluster != 0)
        return text("a grid of %u blocks is no whole number of clusters of %u", spec.grid,
                    spec.cluster);
    // The clock may tick as often as the budget allows, at most.
    if (device.clock > last_time / 2)
        return "the emulator's clock is about to run out: make a new emulator";
    return "";
}

// The same of blocks that must be resident together.
static std::string too_large(const Options &options, const LaunchSpec &spec) {
    if (spec.cluster > 1 && spec.cluster > options.largest_cluster)
        return text("clusters of %u blocks: the device has them up to %u", spec.cluster,
                    options.largest_cluster);
    if (spec.cooperative && spec.grid > capacity(options, spec))
        return text("a cooperative grid of %u blocks: the device holds %llu", spec.grid,
                    static_cast<unsigned long long>(capacity(options, spec)));
    return "";
}

// ---- running ----------------------------------------------------------------------------------

Outcome run(Device &device, const LaunchSpec &spec) {
    const Kernel *kernel = find_kernel(spec.kernel);
    device.counters = LaunchCounters{};
    const std::string refused = refusal(device, kernel, spec);
    if (!refused.empty()) return Outcome{refused};
    const std::string larger = too_large(device.options, spec);
    if (!larger.empty()) return Outcome{larger, true};

    Launch launch(device, *kernel, spec);
    active = &launch;
    budget_left = static_cast<int64_t>(device.options.budget);
    if (!launch.scheduler.run_all()) launch.failure = "no memory for its blocks";
    active = nullptr;
    set_current(nullptr);
    stack_pool().reclaim();

    device.clock = launch.ordering.now() + 1;
    launch.counters.switches = launch.scheduler.switches();
    device.counters = std::move(launch.counters);
    return Outcome{launch.failure, false, launch.latest_site};
}

}  // namespace emulator
