// What the emulator's own test kernels take, all of them. tests/common/mod.rs has its twin.
#pragma once

#include "device.cuh"

struct TestParams {
    const void *input;
    void *output;
    void *workspace;
    unsigned *counter;
    uint64_t count;
    uint64_t argument;
};
