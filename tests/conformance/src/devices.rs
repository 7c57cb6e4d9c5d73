//! Small devices to check kernels on, where there is no real one. The emulator compiles this file
//! too, for its default.

use warpnorm::cuda::{Clusters, DeviceFacts, STATIC_SHARED_BYTES};

/// A small device with the limits of compute capability 9.0.
pub fn default_facts() -> DeviceFacts {
    DeviceFacts {
        compute_capability: (9, 0),
        multiprocessors: 4,
        threads_per_multiprocessor: 2048,
        shared_bytes_per_block: 227 << 10,
        shared_bytes_per_multiprocessor: 228 << 10,
        shared_bytes_reserved: 1 << 10,
        cooperative_blocks: [4, 8],
        clusters: Clusters::of_gpcs(&[4]),
        l2_bytes: 4 << 20,
        memory_bandwidth: 100_000_000_000,
    }
}

/// The same with so little shared memory that small tensors need several blocks to stay on chip,
/// and several rounds in each, and with a cache that does not hold them.
pub fn cramped_facts() -> DeviceFacts {
    // Four slots a thread, of two tensors and a mask, beside the longest shelf.
    let shared = STATIC_SHARED_BYTES + (20 << 10) + 4 * 256 * 34;
    let facts = default_facts();
    DeviceFacts {
        shared_bytes_per_block: shared,
        shared_bytes_per_multiprocessor: shared + facts.shared_bytes_reserved,
        l2_bytes: 16 << 10,
        ..facts
    }
}

/// One that holds clusters, of `size` blocks only, so that tensors of any shape are spread over so
/// many where the plan is to use clusters.
pub fn clustered_facts(size: u32) -> DeviceFacts {
    let multiprocessors = Clusters::LARGEST as u32;
    let clusters = Clusters::of_gpcs(&[multiprocessors]).only(size);
    let cooperative_blocks = [multiprocessors, 2 * multiprocessors];
    DeviceFacts { multiprocessors, cooperative_blocks, clusters, ..default_facts() }
}
