// Built-in variables, shared memory and 16-bit floats, as kernels call them.

#include <math.h>

#include "interface.h"
#include "launch.h"

namespace emulator {

uint3 thread_index() { return uint3{current->index, 0, 0}; }
uint3 block_index() { return uint3{current->block->index, 0, 0}; }
uint3 block_size() { return uint3{active->spec.block, 1, 1}; }
uint3 grid_size() { return uint3{active->spec.grid, 1, 1}; }

void wait_for_launch_before() { current->has_waited = true; }

void *dynamic_shared() { return current->block->shared.base(); }

void *shared_array(const void *site, size_t bytes, size_t alignment) {
    SharedLayout &layout = active->layout;
    const SharedLayout::Array *array = layout.array(site, bytes, alignment);
    if (!array) fail("more than 48 KiB of shared arrays");
    const size_t total = layout.used_bytes() + active->spec.shared_bytes;
    if (total > active->device.options.shared_bytes_per_block)
        fail("%zu bytes of shared memory, static and dynamic together: the device has %u a block",
             total, active->device.options.shared_bytes_per_block);
    return current->block->shared.base() + array->offset;
}

float add_down(float a, float b) {
    if (a == -b && isfinite(a)) return signbit(a) || signbit(b) ? -0.0f : 0.0f;
    // What the sum in double loses says on which side of it the exact one is.
    const double sum = static_cast<double>(a) + b, b_part = sum - a;
    const double lost = (a - (sum - b_part)) + (b - b_part);
    const float nearest = static_cast<float>(sum);
    const bool is_above = nearest > sum || (nearest == sum && lost < 0.0);
    return is_above ? nextafterf(nearest, -INFINITY) : nearest;
}

// Off by so many of the last places, up or down as the last one has it. What is subnormal is lost.
static float off_by(int ulps, float exact) {
    if (!isfinite(exact)) return exact;
    if (!isnormal(exact)) return copysignf(0.0f, exact);
    const uint32_t bits = same_bits<uint32_t>(exact);
    return same_bits<float>(bits & 1 ? bits + ulps : bits - ulps);
}

float exp2_approx(float value) { return off_by(2, exp2f(value)); }
float reciprocal_approx(float value) { return off_by(1, 1.0f / value); }

float half_to_float(uint16_t bits) {
    const uint32_t sign = (bits & 0x8000u) << 16;
    const uint32_t exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31) return same_bits<float>(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) {
        const float magnitude = ldexpf(static_cast<float>(fraction), -24);
        return same_bits<float>(sign | same_bits<uint32_t>(magnitude));
    }
    return same_bits<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

uint16_t float_to_half(float value) {
    const uint32_t bits = same_bits<uint32_t>(value), magnitude = bits & 0x7fffffffu;
    const uint32_t sign = bits >> 16 & 0x8000u;
    const uint32_t infinity = 0x7f800000u, smallest_normal = 0x38800000u;
    if (magnitude > infinity) return 0x7fff;
    // 65520, half-way between the largest half and the next power of two.
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
    if (magnitude < smallest_normal) {
        // A multiple of 2^-24; nearbyint rounds to even.
        const float units = ldexpf(same_bits<float>(magnitude), 24);
        return static_cast<uint16_t>(sign | static_cast<uint32_t>(nearbyintf(units)));
    }
    const uint32_t rounding = 0xfffu + (magnitude >> 13 & 1);
    return static_cast<uint16_t>(sign | (magnitude - (112u << 23) + rounding) >> 13);
}

}  // namespace emulator
