//! What the emulator passes too.

use crate::{PASSED, Test, open, test};
use conformance::{Check, Subject, checks};
use warpnorm::Scalar;
use warpnorm::cuda::{Cuda, CudaLauncher, GpuBuffer, GpuSlice, GpuSliceMut, Tier};

struct Gpu {
    device: Cuda,
    tier: Tier,
}

impl Subject for Gpu {
    type Launcher = CudaLauncher;

    fn tier(&self) -> Tier {
        self.tier
    }

    fn device(&self, _seed: u64) -> Cuda {
        self.device.clone().with_tier(Some(self.tier))
    }

    fn part<T: Scalar>(buffer: &GpuBuffer<T>, start: usize) -> GpuSlice<'_, T> {
        buffer.part(start..buffer.view().len()).unwrap()
    }

    fn part_mut<T: Scalar>(buffer: &mut GpuBuffer<T>, start: usize) -> GpuSliceMut<'_, T> {
        let end = buffer.view().len();
        buffer.part_mut(start..end).unwrap()
    }
}

pub fn tests() -> Vec<Test> {
    let of_tier = |(name, tier)| {
        let wanted = move |check: &Check<Gpu>| check.concerns(tier);
        let of_check = move |check: Check<Gpu>| {
            test(format!("{name}::{}", check.name), move || {
                (check.run)(&Gpu { device: open()?, tier });
                PASSED
            })
        };
        checks().into_iter().filter(wanted).map(of_check)
    };
    let tiers = [
        ("streaming", Tier::Streaming),
        ("block", Tier::Block),
        ("cluster", Tier::Cluster),
        ("grid", Tier::Grid),
    ];
    tiers.into_iter().flat_map(of_tier).collect()
}
