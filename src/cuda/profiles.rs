//! Devices as NVIDIA's data sheets and programming guide have them: to plan for what is not there.

use super::launcher::{Clusters, DeviceFacts};

const fn profile(
    compute_capability: (u32, u32),
    multiprocessors: u32,
    threads_per_multiprocessor: u32,
    shared_kib: [u32; 3],
    clusters: Clusters,
    l2_mib: u64,
    gigabytes_per_second: u64,
) -> DeviceFacts {
    let [per_block, per_multiprocessor, reserved] = shared_kib;
    DeviceFacts {
        compute_capability,
        multiprocessors,
        threads_per_multiprocessor,
        shared_bytes_per_block: per_block << 10,
        shared_bytes_per_multiprocessor: per_multiprocessor << 10,
        shared_bytes_reserved: reserved << 10,
        cooperative_blocks: [multiprocessors, 2 * multiprocessors],
        clusters,
        l2_bytes: l2_mib << 20,
        memory_bandwidth: gigabytes_per_second * 1_000_000_000,
    }
}

/// A guess: how the multiprocessors of 8 GPCs that are not whole are spread differs from card to
/// card. A device that is there is asked.
const HOPPER: Clusters = Clusters::of_gpcs(&[16, 16, 16, 16, 16, 16, 18, 18]);
const BLACKWELL: Clusters = Clusters::of_gpcs(&[18, 18, 18, 18, 18, 18, 20, 20]);

/// Turing.
pub const T4: DeviceFacts = profile((7, 5), 40, 1024, [64, 64, 0], Clusters::NONE, 4, 320);
/// Ampere, 40 GB.
pub const A100: DeviceFacts = profile((8, 0), 108, 2048, [163, 164, 1], Clusters::NONE, 40, 1555);
/// Ada.
pub const RTX_4090: DeviceFacts =
    profile((8, 9), 128, 1536, [99, 100, 1], Clusters::NONE, 72, 1008);
/// Hopper, SXM.
pub const H100: DeviceFacts = profile((9, 0), 132, 2048, [227, 228, 1], HOPPER, 50, 3350);
/// Hopper with faster memory.
pub const H200: DeviceFacts = DeviceFacts { memory_bandwidth: 4_800_000_000_000, ..H100 };
/// Blackwell, SXM.
pub const B200: DeviceFacts = profile((10, 0), 148, 2048, [227, 228, 1], BLACKWELL, 126, 8000);

/// All of them, with their names.
pub const ALL: [(&str, DeviceFacts); 6] = [
    ("T4", T4),
    ("A100", A100),
    ("RTX 4090", RTX_4090),
    ("H100", H100),
    ("H200", H200),
    ("B200", B200),
];
