//! What the tests of the emulator share.
#![allow(dead_code, reason = "no test file uses all of it")]

use emulator::{Buffer, Emulator, Options};
use warpnorm::cuda::Launcher;
use warpnorm::{Result, Scalar};

/// The seeds that a test runs with: both plain orders, and both kinds of random ones.
pub const SEEDS: [u64; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

/// The struct of `kernels/test.h`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct TestParams {
    pub input: u64,
    pub output: u64,
    pub workspace: u64,
    pub counter: u64,
    pub count: u64,
    pub argument: u64,
}

impl TestParams {
    pub fn bytes(self) -> Vec<u8> {
        [self.input, self.output, self.workspace, self.counter, self.count, self.argument]
            .iter()
            .flat_map(|field| field.to_ne_bytes())
            .collect()
    }
}

/// The address of element `start` of a buffer.
pub fn address<T: Scalar>(emulator: &Emulator, buffer: &Buffer<T>, start: usize) -> u64 {
    emulator.memory(&buffer.slice_range(start..)).unwrap().address
}

/// A launch without dynamic shared memory.
pub fn launch(
    emulator: &Emulator,
    kernel: &str,
    grid: u32,
    block: u32,
    params: TestParams,
) -> Result<()> {
    launch_shared(emulator, kernel, grid, block, 0, params)
}

pub fn launch_shared(
    emulator: &Emulator,
    kernel: &str,
    grid: u32,
    block: u32,
    shared_bytes: u32,
    params: TestParams,
) -> Result<()> {
    emulator.run(kernel, [grid, block, shared_bytes], &params.bytes())
}

/// The text of an error that names the kernel, and holds `part`.
pub fn assert_fails(result: Result<()>, kernel: &str, part: &str) {
    let text = result.expect_err("the launch should fail").to_string();
    assert!(text.starts_with(&format!("emulating {kernel}: ")), "{text}");
    assert!(text.contains(part), "no '{part}' in: {text}");
}

/// An emulator that gives up early.
pub fn impatient(seed: u64) -> Emulator {
    Emulator::new(Options { seed, budget: 1_000_000, ..Options::default() })
}

/// 0, 1, 2, ...
pub fn ramp(len: usize) -> Vec<f32> {
    (0..len).map(|value| value as f32).collect()
}
