//! Blocks that wait for each other, and copies that are waited for: the emulator runs them, and
//! finds what is missing.
#![cfg(emulated)]

mod common;

use common::{SEEDS, TestParams, address, assert_fails, ramp};
use emulator::{Buffer, Emulator, Options, default_facts};
use warpnorm::Result;
use warpnorm::cuda::{DeviceFacts, Launcher};

const THREADS: u32 = 64;
const BLOCKS: u32 = 6;

/// Runs a kernel of copies on one block.
fn copy(kernel: &str, seed: u64) -> (Result<()>, Vec<f32>) {
    let device = Emulator::with_seed(seed);
    let len = 4 * THREADS as usize;
    let input = device.upload(&ramp(len)).unwrap();
    let output: Buffer<f32> = device.uninitialised(len).unwrap();
    let params = TestParams {
        input: address(&device, &input, 0),
        output: address(&device, &output, 0),
        ..TestParams::default()
    };
    let shape = [1, THREADS, THREADS * 16];
    let outcome = device.run(kernel, shape, &params.bytes());
    (outcome, output.read(..))
}

/// Runs a kernel whose blocks meet.
fn meet(kernel: &str, device: &Emulator, is_cooperative: bool) -> (Result<()>, Vec<f32>) {
    let output: Buffer<f32> = device.uninitialised(BLOCKS as usize).unwrap();
    let workspace: Buffer<f32> = device.uninitialised(BLOCKS as usize).unwrap();
    let counter = device.zeros::<f32>(1).unwrap();
    let params = TestParams {
        output: address(device, &output, 0),
        workspace: address(device, &workspace, 0),
        counter: address(device, &counter, 0),
        ..TestParams::default()
    };
    let (shape, params) = ([BLOCKS, THREADS, 0], params.bytes());
    let outcome = match is_cooperative {
        true => device.run_cooperative(kernel, shape, &params),
        false => device.run(kernel, shape, &params),
    };
    (outcome, output.read(..))
}

#[test]
fn copies_land_where_they_should() {
    for seed in SEEDS {
        let (outcome, output) = copy("test_copies", seed);
        outcome.unwrap();
        assert_eq!(output, ramp(4 * THREADS as usize));
        let (outcome, output) = copy("test_copies_shifted", seed);
        outcome.unwrap();
        assert_eq!(output[..4], [4.0, 5.0, 6.0, 7.0]);
    }
}

/// Breaks if a copy lands before its stage is waited for, a thread may leave one behind, or one
/// thread's wait is taken for another's.
#[test]
fn a_missing_wait() {
    for seed in SEEDS {
        let fails = |kernel, part| assert_fails(copy(kernel, seed).0, kernel, part);
        for kernel in
            ["test_copies_no_wait", "test_copies_not_committed", "test_copies_too_few_stages"]
        {
            fails(kernel, "uninitialised shared memory");
        }
        fails("test_copies_never_waited", "1 copies under way");
        let kernel = "test_copies_shifted_no_barrier";
        let error = copy(kernel, seed).0.unwrap_err().to_string();
        assert!(error.contains("race") || error.contains("uninitialised"), "{error}");
    }
}

#[test]
fn blocks_that_are_resident_together_meet() {
    for seed in SEEDS {
        let (outcome, output) = meet("test_meet", &Emulator::with_seed(seed), true);
        outcome.unwrap();
        assert_eq!(output, [1.0, 2.0, 3.0, 4.0, 5.0, 0.0]);
    }
}

/// Breaks if a counter alone is taken to order what blocks write and read.
#[test]
fn a_missing_fence() {
    for seed in SEEDS {
        for kernel in ["test_meet_no_fence", "test_meet_no_fence_after"] {
            assert_fails(meet(kernel, &Emulator::with_seed(seed), true).0, kernel, "race");
        }
    }
}

/// Breaks if a wait that nobody ends goes on for ever, or if blocks that need not be resident
/// together are.
#[test]
fn a_wait_without_end() {
    for seed in SEEDS {
        let device = Emulator::with_seed(seed);
        let outcome = meet("test_meet_uncounted", &device, true).0;
        assert_fails(outcome, "test_meet_uncounted", "waits at an atomic of another thread");
    }
    let one_block = Emulator::with_seed(0);
    assert_fails(meet("test_meet", &one_block, false).0, "test_meet", "deadlock");
}

/// Breaks if a grid is taken to be resident together that is more than the device holds.
#[test]
fn more_blocks_than_the_device_holds() {
    let facts = DeviceFacts {
        multiprocessors: 1,
        threads_per_multiprocessor: 5 * THREADS,
        ..default_facts()
    };
    let device = Emulator::new(Options { facts, ..Options::default() });
    assert_fails(meet("test_meet", &device, true).0, "test_meet", "the device holds 5");
}
