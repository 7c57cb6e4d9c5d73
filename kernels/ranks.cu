// The split form's merging of what the ranks of a synchronized batch norm have gathered.
#include "channel.cuh"
#include "device.cuh"
#include "moments.cuh"
#include "params.h"

// Row `row` of rank `rank` in [R, rows, C].
__device__ inline double gathered(const Params &params, Address from, unsigned rows, Extent rank,
                                  unsigned row, Extent channel) {
    return rank_row(params, from + rank * rows * params.channels * sizeof(double), row, channel);
}

__device__ inline WideMoments moments_of_ranks(const Params &params, Extent channel) {
    const auto of = [&](Extent rank) -> WideMoments {
        const auto row = [&](unsigned row) {
            return gathered(params, params.moments, 4, rank, row, channel);
        };
        return {row(0), row(1) + row(2), row(3)};
    };
    // An empty rank has no mean.
    Extent first = 0;
    while (first + 1 < params.ranks && of(first).count == 0.0) ++first;
    const double pivot = of(first).pivot();
    WideMoments::Total total = {};
#pragma unroll 4
    for (Extent rank = first; rank < params.ranks; ++rank) total.add(of(rank), pivot);
    return total.result(pivot);
}

// One block, so that the batch is counted when every channel has read the count.
__device__ void merge_statistics(const Params &params) {
    for (Extent channel = threadIdx.x; channel < params.channels; channel += THREADS) {
        const WideMoments moments = moments_of_ranks(params, channel);
        save_statistics(params, channel, moments, saved_statistics(params, moments));
    }
    __syncthreads();
    if (threadIdx.x == 0 && has_variance(moments_of_ranks(params, 0))) count_batch(params);
}

// `moments` holds the gathered [R, 3, C], `sums` takes [3, C].
__device__ void merge_sums(const Params &params) {
    const Extent channel = (Extent)blockIdx.x * THREADS + threadIdx.x;
    if (channel >= params.channels) return;
    for (unsigned row = 0; row < 3; ++row) {
        double sum = 0.0;
#pragma unroll 4
        for (Extent rank = 0; rank < params.ranks; ++rank) {
            sum += gathered(params, params.moments, 3, rank, row, channel);
        }
        rank_row(params, params.sums, row, channel) = sum;
    }
}

KERNEL(merge_statistics_of_ranks, THREADS, Params, merge_statistics)
KERNEL(merge_sums_of_ranks, THREADS, Params, merge_sums)
