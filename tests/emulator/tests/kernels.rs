//! The emulator's own kernels: correct ones give correct results, and the checker finds nothing in
//! them.
#![cfg(emulated)]

mod common;

use common::{SEEDS, TestParams, address, launch, ramp};
use emulator::{Emulator, Options};
use half::{bf16, f16};
use warpnorm::Scalar;
use warpnorm::cuda::Launcher;

/// Breaks if threads, blocks or packs do not cover every element once.
#[test]
fn adds_vectors() {
    for (kernel, len) in
        [("test_vector_add", 1000), ("test_vector_add_packs", 1000), ("test_plain_add", 1000)]
    {
        for seed in SEEDS {
            let device = Emulator::with_seed(seed);
            let (a, b) = (device.upload(&ramp(len)).unwrap(), device.upload(&ramp(len)).unwrap());
            let sum = device.uninitialised::<f32>(len).unwrap();
            let params = TestParams {
                input: address(&device, &a, 0),
                workspace: address(&device, &b, 0),
                output: address(&device, &sum, 0),
                count: len as u64,
                ..TestParams::default()
            };
            launch(&device, kernel, 4, 256, params).unwrap();
            let expected: Vec<f32> = ramp(len).iter().map(|value| 2.0 * value).collect();
            assert_eq!(device.download(&sum).unwrap(), expected, "{kernel} seed {seed}");
        }
    }
}

/// Breaks if a shuffle takes a wrong lane, or a barrier lets a thread through too early: twice,
/// since the shared array is used again.
#[test]
fn sums_a_block() {
    for seed in SEEDS {
        let device = Emulator::with_seed(seed);
        let input = device.upload(&ramp(1000)).unwrap();
        let output = device.uninitialised::<f32>(3).unwrap();
        let params = TestParams {
            input: address(&device, &input, 0),
            output: address(&device, &output, 0),
            count: 1000,
            argument: 3,
            ..TestParams::default()
        };
        for block in [32, 64, 256] {
            launch(&device, "test_block_sum", 1, block, params).unwrap();
            assert_eq!(device.download(&output).unwrap(), [499_500.0, 999_000.0, 1_498_500.0]);
        }
    }
}

/// Breaks if the rule for fences and atomics rejects either of its two usual forms, or if the last
/// block does not see what the others wrote. Twice, with the counter as the first launch left it.
#[test]
fn sums_a_grid() {
    for kernel in ["test_grid_sum", "test_grid_sum_one_fence"] {
        for seed in SEEDS {
            let device = Emulator::with_seed(seed);
            let (grid, block) = (7, 64);
            let input = device.upload(&ramp(grid * block)).unwrap();
            let workspace = device.uninitialised::<f32>(grid * block).unwrap();
            let counter = device.zeros::<u8>(4).unwrap();
            let output = device.uninitialised::<f32>(1).unwrap();
            let params = TestParams {
                input: address(&device, &input, 0),
                output: address(&device, &output, 0),
                workspace: address(&device, &workspace, 0),
                counter: address(&device, &counter, 0),
                count: (grid * block) as u64,
                ..TestParams::default()
            };
            for _ in 0..2 {
                launch(&device, kernel, grid as u32, block as u32, params).unwrap();
                assert_eq!(device.download(&output).unwrap(), [100_128.0], "{kernel} seed {seed}");
                assert_eq!(device.download(&counter).unwrap(), [0; 4]);
            }
        }
    }
}

/// Breaks if a thread that has returned is waited for: on a GPU it is not.
#[test]
fn exited_threads_are_not_waited_for() {
    for seed in SEEDS {
        let device = Emulator::with_seed(seed);
        let input = device.upload(&ramp(64)).unwrap();
        let output = device.uninitialised::<f32>(2).unwrap();
        let params = TestParams {
            input: address(&device, &input, 0),
            output: address(&device, &output, 0),
            count: 64,
            argument: 2,
            ..TestParams::default()
        };
        launch(&device, "test_block_sum_lost_lane", 1, 64, params).unwrap();
        assert_eq!(device.download(&output).unwrap(), [0.0, 0.0]);
    }
}

/// Breaks if bytes of one word are taken for the same memory.
#[test]
fn neighbouring_bytes_do_not_race() {
    for seed in SEEDS {
        let device = Emulator::with_seed(seed);
        let output = device.uninitialised::<u8>(64).unwrap();
        let params = TestParams { output: address(&device, &output, 0), ..TestParams::default() };
        launch(&device, "test_neighbouring_bytes", 1, 64, params).unwrap();
        let expected: Vec<u8> = (0..64).map(|i| (63 - i) % 2).collect();
        assert_eq!(device.download(&output).unwrap(), expected);
    }
}

fn converted<T: Scalar>(kernel: &str, values: &[f32]) -> (Vec<T>, Vec<f32>) {
    let device = Emulator::with_seed(0);
    let input = device.upload(values).unwrap();
    let narrow = device.uninitialised::<T>(values.len()).unwrap();
    let output = device.uninitialised::<f32>(values.len()).unwrap();
    let params = TestParams {
        input: address(&device, &input, 0),
        output: address(&device, &output, 0),
        workspace: address(&device, &narrow, 0),
        count: values.len() as u64,
        ..TestParams::default()
    };
    launch(&device, kernel, values.len().div_ceil(256) as u32, 256, params).unwrap();
    (device.download(&narrow).unwrap(), device.download(&output).unwrap())
}

/// Every 16-bit number, the ties between neighbours, and what is a hair off them.
fn interesting(numbers: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut values = vec![f32::MAX, f32::MIN_POSITIVE, f32::from_bits(1), 65519.996, 65520.0];
    let mut latest = 0.0f32;
    for number in numbers {
        let tie = 0.5 * (number + latest);
        values.extend([number, tie, tie.next_up(), tie.next_down()]);
        latest = number;
    }
    values
}

/// Breaks if rounding is not to nearest even, subnormal numbers are flushed, or a NaN becomes
/// something else than the 0x7fff that the hardware makes of it.
#[test]
fn converts_halves() {
    let values = interesting((0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f32()));
    let (narrow, wide) = converted::<f16>("test_convert_half", &values);
    for ((value, narrow), wide) in values.iter().zip(narrow).zip(wide) {
        let expected = if value.is_nan() { 0x7fff } else { f16::from_f32(*value).to_bits() };
        assert_eq!(narrow.to_bits(), expected, "{value:e}");
        assert!(wide == narrow.to_f32() || wide.is_nan() && narrow.is_nan(), "{value:e}");
    }
}

/// As for halves.
#[test]
fn converts_bf16() {
    let values = interesting((0..=u16::MAX).map(|bits| bf16::from_bits(bits).to_f32()));
    let (narrow, wide) = converted::<bf16>("test_convert_bf16", &values);
    for ((value, narrow), wide) in values.iter().zip(narrow).zip(wide) {
        let expected = if value.is_nan() { 0x7fff } else { bf16::from_f32(*value).to_bits() };
        assert_eq!(narrow.to_bits(), expected, "{value:e}");
        assert!(wide == narrow.to_f32() || wide.is_nan() && narrow.is_nan(), "{value:e}");
    }
}

/// Breaks if memory or the checker's share of it is paid for before it is touched, or an index is
/// cut to 32 bits on the way.
#[test]
fn rows_lie_two_to_the_31_elements_apart() {
    let far = 1usize << 31;
    let device = Emulator::with_seed(2);
    let mut input = device.zeros::<u8>(far + 1).unwrap();
    let output = device.uninitialised::<u8>(far + 1).unwrap();
    input.write(0, &[3]);
    input.write(far, &[4]);
    let params = TestParams {
        input: address(&device, &input, 0),
        output: address(&device, &output, 0),
        count: far as u64,
        ..TestParams::default()
    };
    launch(&device, "test_far_apart", 1, 32, params).unwrap();
    assert_eq!(output.read(far..), [7]);
}

/// Breaks if launches of several emulators share anything.
#[test]
fn emulators_run_side_by_side() {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(sums_a_grid);
        }
    });
}

/// Breaks if results depend on the checker or the counters.
#[test]
fn runs_without_checks_and_counters() {
    let device = Emulator::new(Options { checks: false, counters: false, ..Options::default() });
    let input = device.upload(&ramp(100)).unwrap();
    let output = device.zeros::<f32>(1).unwrap();
    let params = TestParams {
        input: address(&device, &input, 0),
        output: address(&device, &output, 0),
        count: 100,
        argument: 1,
        ..TestParams::default()
    };
    launch(&device, "test_block_sum", 1, 64, params).unwrap();
    assert_eq!(device.download(&output).unwrap(), [4950.0]);
    assert_eq!(device.counters().read.bytes, 0);
}

/// Breaks if functions of one name in two kernel files are taken for the same.
#[test]
fn kernel_files_do_not_mix() {
    for (kernel, expected) in [("test_namesake_a", 10.0), ("test_namesake_b", 20.0)] {
        let device = Emulator::with_seed(0);
        let output = device.uninitialised::<f32>(32).unwrap();
        let params = TestParams { output: address(&device, &output, 0), ..TestParams::default() };
        launch(&device, kernel, 1, 32, params).unwrap();
        assert_eq!(device.download(&output).unwrap(), [expected; 32]);
    }
}

/// Breaks if a kernel file is left out of the build, or its registration out of the program.
#[test]
fn kernels_are_known_by_name() {
    let kernels = emulator::kernels();
    let sum = kernels.iter().find(|kernel| kernel.name == "test_grid_sum").unwrap();
    assert_eq!((sum.threads, sum.params_bytes), (128, size_of::<TestParams>()));
    assert!(kernels.is_sorted_by(|a, b| a.name < b.name), "a name is there twice");
}
