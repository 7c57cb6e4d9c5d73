//! What a launch did, as a profiler would say it.

use crate::buffer::Buffer;
use crate::runtime::{RawAllocationCounters, RawTotals, RawTraffic};
use std::collections::HashMap;
use warpnorm::Scalar;

/// What went one way between a kernel and global memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that threads asked for; the same byte counts as often as it is asked for.
    pub bytes: u64,
    /// Accesses of whole warps: those that its lanes make at one place in the code, together.
    pub requests: u64,
    /// 32-byte sectors that the requests touched, counted request by request.
    pub sectors: u64,
}

/// What a kernel did with one buffer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BufferTraffic {
    /// Loads.
    pub read: Traffic,
    /// Stores.
    pub written: Traffic,
    /// Atomics, which count as neither.
    pub atomics: u64,
}

/// What a kernel did with shared memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SharedTraffic {
    /// Bytes that threads loaded.
    pub read_bytes: u64,
    /// Bytes that threads stored.
    pub written_bytes: u64,
    /// Accesses of whole warps.
    pub requests: u64,
    /// Wavefronts beyond those that a request without bank conflicts takes: one up to 4 bytes a
    /// lane, two for 8, four for 16.
    pub extra_wavefronts: u64,
    /// Bytes that threads loaded from other blocks of their cluster, which no other number counts.
    pub peer_read_bytes: u64,
}

/// What one launch did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// The kernel's name.
    pub kernel: String,
    /// Loads from global memory.
    pub read: Traffic,
    /// Stores to global memory.
    pub written: Traffic,
    /// Shared memory.
    pub shared: SharedTraffic,
    /// Barriers of blocks and of their clusters, over all blocks.
    pub barriers: u64,
    /// Barriers of the block that had most.
    pub barriers_per_block: u64,
    /// Threads that ran.
    pub threads: u64,
    /// Switches between them: a measure of the emulator, not of the kernel.
    pub switches: u64,
    buffers: HashMap<u64, BufferTraffic>,
}

impl Counters {
    /// What the launch did with one buffer.
    pub fn of<T: Scalar>(&self, buffer: &Buffer<T>) -> BufferTraffic {
        self.buffers.get(&buffer.id()).copied().unwrap_or_default()
    }

    pub(crate) fn new(
        kernel: &str,
        totals: &RawTotals,
        allocations: &[RawAllocationCounters],
    ) -> Self {
        let mut counters = Counters {
            kernel: kernel.to_owned(),
            shared: SharedTraffic {
                read_bytes: totals.shared_read_bytes,
                written_bytes: totals.shared_written_bytes,
                requests: totals.shared_requests,
                extra_wavefronts: totals.shared_extra_wavefronts,
                peer_read_bytes: totals.peer_read_bytes,
            },
            barriers: totals.barriers,
            barriers_per_block: totals.most_barriers,
            threads: totals.threads,
            switches: totals.switches,
            ..Counters::default()
        };
        for raw in allocations {
            let traffic = BufferTraffic {
                read: raw.read.into(),
                written: raw.written.into(),
                atomics: raw.atomics,
            };
            counters.read.add(traffic.read);
            counters.written.add(traffic.written);
            counters.buffers.insert(raw.id, traffic);
        }
        counters
    }
}

impl Traffic {
    fn add(&mut self, other: Traffic) {
        self.bytes += other.bytes;
        self.requests += other.requests;
        self.sectors += other.sectors;
    }
}

impl From<RawTraffic> for Traffic {
    fn from(raw: RawTraffic) -> Self {
        Traffic { bytes: raw.bytes, requests: raw.requests, sectors: raw.sectors }
    }
}
