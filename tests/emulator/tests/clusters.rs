//! Thread block clusters: the emulator runs them, and finds what is wrong with how their blocks read
//! each other's shared memory.
#![cfg(emulated)]

mod common;

use common::{SEEDS, TestParams, address, assert_fails};
use emulator::{Buffer, Emulator, Options, default_facts};
use warpnorm::Result;
use warpnorm::cuda::{Clusters, DeviceFacts};

const THREADS: u32 = 64;
const CLUSTERS: u32 = 3;

/// A device that holds clusters of up to 16 blocks.
fn device(seed: u64) -> Emulator {
    let clusters = Clusters::of_gpcs(&[16]);
    let facts = DeviceFacts { multiprocessors: 16, clusters, ..default_facts() };
    Emulator::new(Options { seed, facts, ..Options::default() })
}

/// Runs a kernel on clusters of `size` blocks.
fn run(kernel: &str, seed: u64, size: u32, argument: u64) -> (Result<()>, Vec<f32>) {
    let device = device(seed);
    let blocks = CLUSTERS * size;
    let output: Buffer<f32> = device.uninitialised((blocks * THREADS) as usize).unwrap();
    let workspace: Buffer<f32> = device.uninitialised(blocks as usize).unwrap();
    let params = TestParams {
        input: address(&device, &workspace, 0),
        output: address(&device, &output, 0),
        workspace: address(&device, &workspace, 0),
        argument,
        ..TestParams::default()
    };
    let outcome = device.run_clusters(kernel, size, [blocks, THREADS, 0], &params.bytes());
    (outcome, output.read(..))
}

/// The block after each in its cluster.
fn next_blocks(size: u32) -> impl Iterator<Item = f32> {
    (0..CLUSTERS * size).map(move |block| (block / size * size + (block + 1) % size) as f32)
}

#[test]
fn blocks_read_each_other() {
    for seed in SEEDS {
        for size in [2, 3, 16] {
            let (outcome, output) = run("test_pass_on", seed, size, 0);
            outcome.unwrap();
            for (values, next) in output.chunks(THREADS as usize).zip(next_blocks(size)) {
                assert!(values.iter().all(|value| *value == next), "{values:?}");
            }
        }
    }
}

/// Breaks if blocks of different clusters, or a block outside any, are taken to be one cluster.
#[test]
fn a_block_without_a_cluster_is_one_by_itself() {
    for seed in SEEDS {
        let (outcome, output) = run("test_pass_on", seed, 1, 0);
        outcome.unwrap();
        assert!(output.chunks(THREADS as usize).zip(0u8..).all(|(it, i)| it[0] == f32::from(i)));
    }
}

/// Breaks if a cluster's barrier does not order what its blocks do in memory.
#[test]
fn a_meeting_orders_global_memory() {
    for seed in SEEDS {
        let (outcome, output) = run("test_pass_on_in_memory", seed, 4, 0);
        outcome.unwrap();
        assert!(output.into_iter().zip(next_blocks(4)).all(|(value, next)| value == next));
        let error = run("test_pass_on_in_memory_never_met", seed, 4, 0).0.unwrap_err().to_string();
        assert!(error.contains("race") || error.contains("uninitialised"), "{error}");
    }
}

#[test]
fn a_missing_meeting() {
    for seed in SEEDS {
        let fails = |kernel, part| assert_fails(run(kernel, seed, 4, 0).0, kernel, part);
        fails("test_pass_on_never_met", "the cluster has not met yet");
        fails("test_pass_on_half_meets", "deadlock");
        let error = run("test_pass_on_not_met_again", seed, 4, 0).0.unwrap_err().to_string();
        assert!(error.contains("race") || error.contains("uninitialised"), "{error}");
    }
}

/// Breaks if the memory of a block that has returned can be read, or if that shows by chance only.
#[test]
fn a_block_that_returns_too_early() {
    for seed in SEEDS {
        let kernel = "test_pass_on_returns_early";
        assert_fails(run(kernel, seed, 4, 0).0, kernel, "return");
    }
}

#[test]
fn addresses_that_are_wrong() {
    for seed in SEEDS {
        let fails = |kernel, part| assert_fails(run(kernel, seed, 4, 0).0, kernel, part);
        fails("test_pass_on_rank_beyond", "block 4 of a cluster of 4");
        fails("test_pass_on_element_beyond", "outside every shared array");
        fails("test_pass_on_nothing_there", "uninitialised shared memory");
        fails("test_pass_on_not_shared", "which is not its shared memory");
        fails("test_pass_on_writes", "other blocks may read it");
    }
}

/// Breaks if a block may leave a new value where others still read the last one.
#[test]
fn values_that_are_replaced() {
    for seed in SEEDS {
        for kernel in ["test_sum_rounds", "test_sum_rounds_one_area"] {
            let (outcome, output) = run(kernel, seed, 4, 5);
            outcome.unwrap();
            // 4 * (0 + 1 + 2 + 3 + 4) for the rounds, 5 * (0 + 1 + 2 + 3) for the ranks.
            assert!(output.iter().all(|sum| *sum == 70.0), "{output:?}");
        }
        let kernel = "test_sum_rounds_one_area_one_meeting";
        assert_fails(run(kernel, seed, 4, 5).0, kernel, "race");
    }
}

#[test]
fn clusters_that_no_device_launches() {
    let kernel = "test_pass_on";
    let refused = |size, grid, part| {
        let outcome = device(0).run_clusters(kernel, size, [grid, THREADS, 0], &[0; 48]);
        assert_fails(outcome, kernel, part);
    };
    refused(33, 33, "clusters of 33 blocks: the device has them up to 16");
    refused(4, 6, "no whole number of clusters of 4");
    let facts = DeviceFacts { clusters: Clusters::NONE, ..default_facts() };
    let none = Emulator::new(Options { facts, ..Options::default() });
    let outcome = none.run_clusters(kernel, 2, [2, THREADS, 0], &[0; 48]);
    assert_fails(outcome, kernel, "the device has them up to 0");
}

/// What is read of other blocks is counted apart.
#[test]
fn reads_of_other_blocks_are_counted() {
    let device = device(1);
    let output: Buffer<f32> = device.uninitialised((4 * THREADS) as usize).unwrap();
    let params =
        TestParams { output: address(&device, &output, 0), ..TestParams::default() }.bytes();
    device.run_clusters("test_pass_on", 4, [4, THREADS, 0], &params).unwrap();
    let shared = device.counters().shared;
    assert_eq!(shared.peer_read_bytes, 4 * 4 * u64::from(THREADS));
    assert_eq!((shared.read_bytes, shared.written_bytes), (0, 4 * 4 * u64::from(THREADS)));
}
