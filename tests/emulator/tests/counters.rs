//! Counters are what a profiler shows, on patterns that can be counted by hand.
#![cfg(emulated)]

mod common;

use common::{SEEDS, TestParams, address, launch, launch_shared, ramp};
use emulator::{Counters, Emulator, Traffic};
use half::f16;
use warpnorm::cuda::Launcher;

fn traffic(bytes: u64, requests: u64, sectors: u64) -> Traffic {
    Traffic { bytes, requests, sectors }
}

/// A copy of 64 floats by two warps, `stride` apart, from element `start` on: what it reads.
fn copy(seed: u64, stride: usize, start: usize) -> Traffic {
    let device = Emulator::with_seed(seed);
    let len = 64 * stride + start;
    let input = device.upload(&ramp(len)).unwrap();
    let output = device.uninitialised::<f32>(len).unwrap();
    let params = TestParams {
        input: address(&device, &input, start),
        output: address(&device, &output, start),
        argument: stride as u64,
        ..TestParams::default()
    };
    launch(&device, "test_strided_copy", 1, 64, params).unwrap();
    let counters = device.counters();
    assert_eq!(counters.of(&input).written, Traffic::default());
    assert_eq!(counters.of(&output).read, Traffic::default());
    assert_eq!(counters.of(&input).read, counters.of(&output).written);
    assert_eq!(counters.read, counters.of(&input).read);
    counters.of(&input).read
}

/// Breaks if lanes are not brought together into requests, or sectors are counted lane by lane.
#[test]
fn coalesced_strided_misaligned() {
    for seed in SEEDS {
        // 128 bytes a warp: four sectors.
        assert_eq!(copy(seed, 1, 0), traffic(256, 2, 8));
        // Every second float: the same bytes in twice the sectors.
        assert_eq!(copy(seed, 2, 0), traffic(256, 2, 16));
        // A sector for each lane.
        assert_eq!(copy(seed, 8, 0), traffic(256, 2, 64));
        assert_eq!(copy(seed, 33, 0), traffic(256, 2, 64));
        // Off a sector's start each warp touches one more.
        assert_eq!(copy(seed, 1, 1), traffic(256, 2, 10));
        assert_eq!(copy(seed, 1, 8), traffic(256, 2, 8));
    }
}

/// Breaks if the accesses of a loop are not told apart, when lanes run one after the other.
#[test]
fn loops_are_counted_round_by_round() {
    for seed in SEEDS {
        let device = Emulator::with_seed(seed);
        let input = device.upload(&ramp(32 * 100)).unwrap();
        let output = device.uninitialised::<f32>(32).unwrap();
        let params = TestParams {
            input: address(&device, &input, 0),
            output: address(&device, &output, 0),
            count: 100,
            ..TestParams::default()
        };
        launch(&device, "test_column_sums", 1, 32, params).unwrap();
        let counters = device.counters();
        assert_eq!(counters.of(&input).read, traffic(32 * 100 * 4, 100, 400));
        assert_eq!(counters.of(&output).written, traffic(128, 1, 4));
    }
}

/// Breaks if the compiler's splitting of a pack shows: one access of 16 bytes for each thread.
#[test]
fn packs_are_one_access() {
    let device = Emulator::with_seed(3);
    let input = device.zeros::<f16>(2 * 64 * 8).unwrap();
    let output = device.uninitialised::<f16>(2 * 64 * 8).unwrap();
    let params = TestParams {
        input: address(&device, &input, 0),
        output: address(&device, &output, 0),
        ..TestParams::default()
    };
    launch(&device, "test_half_packs", 2, 64, params).unwrap();
    let counters = device.counters();
    assert_eq!(counters.of(&input).read, traffic(2048, 4, 64));
    assert_eq!(counters.of(&output).written, traffic(2048, 4, 64));
    assert_eq!(counters.threads, 128);
}

fn shared(kernel: &str, stride: u64, shared_bytes: u32) -> Counters {
    let device = Emulator::with_seed(5);
    let params = TestParams { argument: stride, count: 3, ..TestParams::default() };
    launch_shared(&device, kernel, 2, 32, shared_bytes, params).unwrap();
    device.counters()
}

/// Breaks if banks are not 32 words of 4 bytes, served 128 bytes at a time.
#[test]
fn bank_conflicts() {
    // Two blocks of one warp each: twice what one has.
    for (stride, extra) in [(1, 0), (2, 1), (3, 0), (4, 3), (32, 31), (33, 0)] {
        let counters = shared("test_shared_stride_float", stride, 33 * 128);
        assert_eq!(counters.shared.requests, 2, "stride {stride}");
        assert_eq!(counters.shared.extra_wavefronts, 2 * extra, "stride {stride}");
        assert_eq!(counters.shared.written_bytes, 256);
    }
    // Doubles: half a warp at a time.
    for (stride, extra) in [(1, 0), (2, 2), (16, 30)] {
        let counters = shared("test_shared_stride_double", stride, 16 * 256);
        assert_eq!(counters.shared.extra_wavefronts, 2 * extra, "stride {stride}");
    }
}

/// Breaks if lanes that share a word count as a conflict.
#[test]
fn broadcasts_conflict_with_nothing() {
    let device = Emulator::with_seed(4);
    let output = device.uninitialised::<f32>(32).unwrap();
    let params = TestParams { output: address(&device, &output, 0), ..TestParams::default() };
    launch(&device, "test_shared_broadcast", 1, 32, params).unwrap();
    let counters = device.counters();
    assert_eq!((counters.shared.requests, counters.shared.extra_wavefronts), (2, 0));
    assert_eq!((counters.shared.written_bytes, counters.shared.read_bytes), (4, 128));
}

/// Breaks if barriers are counted by thread.
#[test]
fn barriers_are_counted_by_block() {
    let counters = shared("test_shared_stride_float", 1, 128);
    assert_eq!((counters.barriers, counters.barriers_per_block), (6, 3));
}

/// Breaks if counters of several launches are mixed, or atomics count as traffic.
#[test]
fn launches_are_counted_one_by_one() {
    let device = Emulator::with_seed(0);
    let input = device.upload(&ramp(128)).unwrap();
    let output = device.uninitialised::<f32>(1).unwrap();
    let workspace = device.uninitialised::<f32>(128).unwrap();
    let counter = device.zeros::<u8>(4).unwrap();
    let params = TestParams {
        input: address(&device, &input, 0),
        output: address(&device, &output, 0),
        workspace: address(&device, &workspace, 0),
        counter: address(&device, &counter, 0),
        count: 128,
        ..TestParams::default()
    };
    for _ in 0..2 {
        launch(&device, "test_grid_sum", 2, 64, params).unwrap();
    }
    let counters = device.take_counters();
    assert_eq!(counters.len(), 2);
    assert_eq!(counters[0], counters[1]);
    assert_eq!(counters[0].kernel, "test_grid_sum");
    assert_eq!(counters[0].of(&counter).atomics, 2);
    assert_eq!(counters[0].of(&counter).read, Traffic::default());
    // One partial sum a warp, two warps a block; the last block reads all four at once.
    assert_eq!(counters[0].of(&workspace).written, traffic(16, 4, 4));
    assert_eq!(counters[0].of(&workspace).read, traffic(16, 1, 1));
    assert!(device.take_counters().is_empty());
}
