//! The CUDA kernels, run on the CPU.

use crate::buffers::Buffers;
use crate::report::{Options, Tier};
use emulator::{Emulator, clustered_facts, cramped_facts, default_facts};
use warpnorm::cuda::Device;

/// On an emulator of its own, so that cases run side by side. Where they are to be in a tier, it is a
/// device on which small cases have a plan of that tier.
pub(crate) fn subject(options: Options) -> Buffers<Device<Emulator>> {
    let facts = match options.tier {
        Some(Tier::Cluster) => clustered_facts(3),
        Some(Tier::Grid) => cramped_facts(),
        _ => default_facts(),
    };
    let emulator =
        Emulator::new(emulator::Options { counters: false, facts, ..Default::default() });
    let device = Device::new(emulator).with_tier(options.tier.map(Into::into));
    Buffers::new(device, options.layout)
}
