// A team: the blocks that hold a group of channels together, and how what each has found comes to
// the others. One block, a thread block cluster, or any blocks that are resident together.
//
//              leaves its results in     and meets by
//   block      its shared memory         __syncthreads
//   cluster    its shared memory         the cluster's barrier
//   grid       global memory             a counter there
//
// Which of them it is follows from the launch: only within a cluster do as many blocks as share a
// channel reach each other's shared memory.
#pragma once
#include "device.cuh"
#include "params.h"
#include "reduce.cuh"
#include "walk.cuh"

__device__ inline bool is_cluster_team(const Params &params) {
    return params.parts > 1 && params.parts == cluster_size();
}

// Where blocks leave results of one group, an item for each of its channels.
template <class Wide, class Walk>
struct Team {
    const Params &params;
    Extent group;
    unsigned part;  // this block
    bool is_near;   // within reach of each other's shared memory
    Wide *mine;     // near: of [channels] in shared memory; else of [channels, parts] in global memory
    unsigned step;  // from one channel to the next
    unsigned gap;   // bytes from the channels of one thread to those of the next

    __device__ Team(const Params &params, const Walk &walk)
        : params(params), group(walk.group()), part(walk.part) {
        is_near = params.parts == 1 || is_cluster_team(params);
        if (is_near) {
            uint8_t *area = block_shared<uint8_t>() + params.tile_bytes;
            step = 1;
            gap = GAP;
            // Two areas in turn: who meets for one group has read what was left for the last but
            // one, so that a single meeting keeps writers and readers apart.
            const Extent turn = divide(group, gridDim.x / params.parts).whole;
            if (turn % 2) area += bytes_of(walk.max_channels());
            mine = reinterpret_cast<Wide *>(area);
        } else {
            step = params.parts;
            gap = 0;
            mine = reinterpret_cast<Wide *>(params.partials) + walk.first_channel() * step + part;
        }
    }

    // Without it, threads that leave their packs of channels would do so in the same few banks.
    static constexpr unsigned GAP = 8;
    __device__ static unsigned bytes_of(unsigned channels) {
        return channels * sizeof(Wide) + (channels + Walk::CHANNELS - 1) / Walk::CHANNELS * GAP;
    }

    __device__ Wide *own(unsigned channel) const {
        uint8_t *place = reinterpret_cast<uint8_t *>(mine + (size_t)channel * step);
        return reinterpret_cast<Wide *>(place + channel / Walk::CHANNELS * gap);
    }
    __device__ const Wide *of(unsigned channel, unsigned block) const {
        if (!is_near) return own(channel) - part + block;
        return params.parts == 1 ? own(channel) : map_cluster_shared(own(channel), block);
    }

    // All blocks come here before any of them goes on; what each has left can then be read. Two
    // meetings of one group, the `first` and another.
    __device__ void meet(bool first) const {
        if (params.parts == 1) {
            __syncthreads();
        } else if (is_near) {
            cluster_sync();
        } else {
            team_barrier(params.counters, (first ? 0 : params.groups + 1) + group, params.parts);
        }
    }
};

// The groups that this block's team works on, one after the other.
template <class Each>
__device__ inline void each_group(const Params &params, const Each &each) {
    // Teams that share multiprocessors are to wait for their blocks at different times.
    if (params.late_by && blockIdx.x >= gridDim.x / 2) pause(params.late_by);
    for (Extent group = blockIdx.x / params.parts; group < params.groups;) {
        each(group);
        group += gridDim.x / anew(params.parts);
    }
    // The others may still read what this block has left for them.
    if (is_cluster_team(params)) leave_cluster();
}
