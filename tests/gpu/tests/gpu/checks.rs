//! What the emulator passes too.

use crate::{PASSED, Test, open, test};
use conformance::{Check, Subject, checks};
use warpnorm::Scalar;
use warpnorm::cuda::{Cuda, CudaLauncher, GpuBuffer, GpuSlice, GpuSliceMut};

struct Gpu(Cuda);

impl Subject for Gpu {
    type Launcher = CudaLauncher;

    fn device(&self, _seed: u64) -> Cuda {
        self.0.clone()
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
    let of_check = |check: Check<Gpu>| {
        test(check.name, move || {
            (check.run)(&Gpu(open()?));
            PASSED
        })
    };
    checks().into_iter().map(of_check).collect()
}
