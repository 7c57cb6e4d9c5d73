//! The example `train` as it runs on a GPU, but for cuBLAS: its kernels, its parameters and the
//! order of its calls, in the emulator.
#![cfg(emulated)]
#![allow(dead_code, reason = "the example's, of which the tests use a part")]

#[path = "../../../examples/train/accelerated.rs"]
mod accelerated;
#[path = "../../../examples/train/cpu.rs"]
mod cpu;
#[path = "../../../examples/train/network.rs"]
mod network;
#[path = "../../../examples/train/norm.rs"]
mod norm;
#[path = "../../train/operations.rs"]
mod operations;
#[path = "../../../examples/train/ops.rs"]
mod ops;

use accelerated::{Accelerator, BLOCK, Gemm, Gpu, KERNELS, KernelParams};
use emulator::{Buffer, Emulator};
use warpnorm::Result;

/// The emulator, and products as BLAS defines them.
#[derive(Clone)]
struct Emulated(Emulator);

impl Accelerator for Emulated {
    type Launcher = Emulator;

    fn launcher(&self) -> &Emulator {
        &self.0
    }

    fn launch(&self, kernel: &str, threads: usize, params: &KernelParams) -> Result<()> {
        let params = bytemuck::bytes_of(params);
        let grid = threads.div_ceil(BLOCK) as u32;
        self.0.run(kernel, [grid, BLOCK as u32, 0], params)
    }

    fn multiply(
        &self,
        gemm: &Gemm,
        a: &Buffer<f32>,
        b: &Buffer<f32>,
        c: &mut Buffer<f32>,
    ) -> Result<()> {
        let (a, b, mut product) = (a.read(..), b.read(..), c.read(..));
        gemm.check(a.len(), b.len(), product.len())?;
        let at = |transposed: bool, stride: usize, row: usize, column: usize| match transposed {
            false => row + column * stride,
            true => column + row * stride,
        };
        for (m, n) in (0..gemm.m).flat_map(|m| (0..gemm.n).map(move |n| (m, n))) {
            let terms = (0..gemm.k).map(|k| {
                a[at(gemm.a_transposed, gemm.lda, m, k)] * b[at(gemm.b_transposed, gemm.ldb, k, n)]
            });
            let value = &mut product[at(false, gemm.ldc, m, n)];
            *value = gemm.alpha * terms.sum::<f32>() + gemm.beta * *value;
        }
        c.write(0, &product);
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }
}

fn gpu(seed: u64) -> Gpu<Emulated> {
    Gpu::new(Emulated(Emulator::with_seed(seed)))
}

#[test]
fn the_kernels_are_those_that_are_asked_for() {
    let known = emulator::kernels();
    let of_train: Vec<_> = known.iter().filter(|it| it.name.starts_with("train_")).collect();
    assert_eq!(of_train.len(), KERNELS.len());
    for kernel in of_train {
        assert!(KERNELS.contains(&kernel.name.as_str()), "{}", kernel.name);
        assert_eq!(kernel.threads as usize, BLOCK);
        assert_eq!(kernel.params_bytes, size_of::<KernelParams>());
    }
}

#[test]
fn each_operation_is_the_cpus() {
    for seed in [0, 1, 2, 3] {
        operations::each_is_the_cpus(&gpu(seed));
    }
}

#[test]
fn training_is_the_cpus() {
    operations::training_is_the_cpus(&gpu(2));
}

#[test]
fn what_does_not_fit_is_refused() {
    operations::refusals(&gpu(0));
}
