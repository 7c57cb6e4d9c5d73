//! Mistakes that kernels have: each is found, under every seed, and leaves the emulator usable.
#![cfg(emulated)]

mod common;

use common::{SEEDS, TestParams, address, assert_fails, impatient, launch, launch_shared, ramp};
use emulator::{Buffer, Emulator, Options};
use warpnorm::cuda::{DeviceFacts, Launcher};
use warpnorm::{Result, Scalar};

/// Buffers that suit every test kernel.
struct Memory {
    input: Buffer<f32>,
    output: Buffer<f32>,
    workspace: Buffer<f32>,
    counter: Buffer<u8>,
}

impl Memory {
    fn new(device: &Emulator, len: usize) -> Self {
        Memory {
            input: device.upload(&ramp(len)).unwrap(),
            output: device.uninitialised(len).unwrap(),
            workspace: device.uninitialised(len).unwrap(),
            counter: device.zeros(4).unwrap(),
        }
    }

    fn params(&self, device: &Emulator, count: usize, argument: u64) -> TestParams {
        TestParams {
            input: address(device, &self.input, 0),
            output: address(device, &self.output, 0),
            workspace: address(device, &self.workspace, 0),
            counter: address(device, &self.counter, 0),
            count: count as u64,
            argument,
        }
    }
}

/// Runs a kernel with a mistake under every seed, and its correct twin after it on the same device.
fn finds(kernel: &str, twin: &str, grid: u32, block: u32, part: &str) {
    for seed in SEEDS {
        let device = Emulator::with_seed(seed);
        let len = (grid * block) as usize;
        let memory = Memory::new(&device, len);
        let params = memory.params(&device, len, 2);
        assert_fails(launch(&device, kernel, grid, block, params), kernel, part);
        let memory = Memory::new(&device, len);
        let params = memory.params(&device, len, 2);
        launch(&device, twin, grid, block, params)
            .unwrap_or_else(|error| panic!("{twin} seed {seed}: {error}"));
    }
}

/// Breaks if a write is taken as ordered before another warp's read without a barrier, or if the
/// reader runs first and finds nothing written: then it reads uninitialised memory.
#[test]
fn missing_barrier() {
    for seed in SEEDS {
        let device = Emulator::with_seed(seed);
        let memory = Memory::new(&device, 256);
        let params = memory.params(&device, 256, 2);
        let kernel = "test_block_sum_no_barrier";
        let text = launch(&device, kernel, 1, 256, params).unwrap_err().to_string();
        assert!(text.contains("race") || text.contains("uninitialised"), "{text}");
    }
}

/// Breaks if readers are forgotten: the next sum's write may overtake them.
#[test]
fn missing_barrier_before_reuse() {
    finds("test_block_sum_no_barrier_before_reuse", "test_block_sum", 1, 256, "race");
}

/// Breaks if a lane may call a collective whose mask leaves it out.
#[test]
fn wrong_shuffle_mask() {
    finds("test_block_sum_half_mask", "test_block_sum", 1, 64, "leaves itself out");
}

/// Breaks if lanes wait for ever, or complete with less than their mask.
#[test]
fn divergent_shuffle() {
    finds("test_block_sum_divergent_shuffle", "test_block_sum", 1, 64, "deadlock");
    finds("test_deadlock", "test_block_sum", 1, 64, "deadlock");
}

/// Breaks if bounds are rounded up to anything.
#[test]
fn one_element_too_far() {
    let part = "read of 4 bytes outside an allocation of 256 bytes, at offset 256";
    finds("test_block_sum_one_too_far", "test_block_sum", 1, 64, part);
}

/// Breaks if shared memory counts as written before a block has written it.
#[test]
fn uninitialised_shared_memory() {
    let part = "read of uninitialised shared memory";
    finds("test_block_sum_uninitialised", "test_block_sum", 3, 64, part);
}

/// Breaks if global memory that only the allocator has touched counts as written.
#[test]
fn uninitialised_global_memory() {
    for seed in SEEDS {
        let device = Emulator::with_seed(seed);
        let memory = Memory::new(&device, 64);
        let params = TestParams {
            input: address(&device, &memory.workspace, 0),
            ..memory.params(&device, 64, 1)
        };
        let part = "read of uninitialised global memory";
        assert_fails(launch(&device, "test_block_sum", 1, 64, params), "test_block_sum", part);
    }
}

/// Breaks if an atomic alone publishes what was written before it.
#[test]
fn missing_fence_before_the_counter() {
    finds("test_grid_sum_no_fence", "test_grid_sum", 7, 64, "race");
    finds("test_grid_sum_one_fence_no_fence", "test_grid_sum_one_fence", 7, 64, "race");
}

/// Breaks if an atomic alone lets a block rely on what others have published.
#[test]
fn missing_fence_after_the_counter() {
    finds("test_grid_sum_no_fence_by_reader", "test_grid_sum", 7, 64, "race");
    let kernel = "test_grid_sum_one_fence_no_fence_by_reader";
    finds(kernel, "test_grid_sum_one_fence", 7, 64, "race");
}

/// Breaks if one thread's atomic is taken to publish what its block's other threads wrote, though
/// no barrier tells it that they have. Under a seed that runs the counting thread last the writes
/// happen to be done, and still nothing orders them.
#[test]
fn missing_barrier_before_the_counter() {
    for seed in SEEDS {
        let device = Emulator::with_seed(seed);
        let memory = Memory::new(&device, 7 * 64);
        let params = memory.params(&device, 7 * 64, 1);
        let kernel = "test_grid_sum_no_barrier_before_counter";
        let text = launch(&device, kernel, 7, 64, params).unwrap_err().to_string();
        assert!(text.contains("race") || text.contains("uninitialised"), "seed {seed}: {text}");
    }
}

/// Breaks if blocks count as ordered by the order in which they happen to run.
#[test]
fn missing_counter() {
    for seed in SEEDS {
        let device = Emulator::with_seed(seed);
        let memory = Memory::new(&device, 7 * 64);
        let params = memory.params(&device, 7 * 64, 1);
        let text = launch(&device, "test_grid_sum_no_counter", 7, 64, params).unwrap_err();
        let text = text.to_string();
        assert!(text.contains("race") || text.contains("uninitialised"), "seed {seed}: {text}");
    }
}

/// Breaks if lanes of a warp count as running in step.
#[test]
fn missing_syncwarp() {
    for seed in SEEDS {
        let device = Emulator::with_seed(seed);
        let memory = Memory::new(&device, 32);
        let params = memory.params(&device, 32, 0);
        let kernel = "test_warp_exchange_unsynchronised";
        let text = launch(&device, kernel, 1, 32, params).unwrap_err().to_string();
        assert!(text.contains("race") || text.contains("uninitialised"), "{text}");
        launch(&device, "test_warp_exchange", 1, 32, params).unwrap();
    }
}

/// Breaks if a collective of some lanes is taken to synchronise the whole warp.
#[test]
fn too_narrow_syncwarp() {
    for seed in SEEDS {
        let device = Emulator::with_seed(seed);
        let memory = Memory::new(&device, 32);
        let params = memory.params(&device, 32, 0);
        let kernel = "test_half_warp_exchange_too_wide";
        let text = launch(&device, kernel, 1, 32, params).unwrap_err().to_string();
        assert!(text.contains("race") || text.contains("uninitialised"), "{text}");
        launch(&device, "test_half_warp_exchange", 1, 32, params).unwrap();
    }
}

/// Breaks if a write is not held against earlier reads.
#[test]
fn write_after_read() {
    finds("test_replace_unsynchronised", "test_replace", 2, 128, "race");
}

/// Breaks if writes of the same element by several threads, or blocks, pass.
#[test]
fn write_after_write() {
    finds("test_same_element", "test_replace", 1, 64, "race");
    finds("test_same_element", "test_replace", 3, 32, "race");
}

/// Breaks if a plain flag passes for a synchronisation.
#[test]
fn plain_flag() {
    for seed in SEEDS {
        let device = Emulator::with_seed(seed);
        let memory = Memory::new(&device, 64);
        let params = memory.params(&device, 0, 0);
        assert_fails(launch(&device, "test_plain_flag", 2, 32, params), "test_plain_flag", "race");
    }
}

/// Breaks if an allocation is larger than what was asked for.
#[test]
fn undersized_workspace() {
    for seed in SEEDS {
        let device = Emulator::with_seed(seed);
        let mut memory = Memory::new(&device, 64);
        memory.workspace = device.uninitialised(63).unwrap();
        let params = memory.params(&device, 0, 0);
        let part = "write of 4 bytes outside an allocation of 252 bytes, at offset 252";
        assert_fails(
            launch(&device, "test_fill_workspace", 1, 64, params),
            "test_fill_workspace",
            part,
        );
    }
}

/// Breaks if a pack may begin anywhere: on a GPU the launch would fail.
#[test]
fn misaligned_pack() {
    let device = Emulator::with_seed(0);
    let memory = Memory::new(&device, 256);
    for argument in 0..8 {
        let result = launch(&device, "test_packs_from", 1, 32, memory.params(&device, 0, argument));
        if argument % 4 == 0 {
            result.unwrap();
        } else {
            assert_fails(result, "test_packs_from", "not a multiple of 16");
        }
    }
}

/// Breaks if a slice's offset is lost on the way.
#[test]
fn misaligned_slice() {
    let device = Emulator::with_seed(0);
    let memory = Memory::new(&device, 256);
    let params =
        TestParams { input: address(&device, &memory.input, 3), ..memory.params(&device, 0, 0) };
    assert_fails(launch(&device, "test_packs_from", 1, 32, params), "test_packs_from", "multiple");
}

/// Breaks if shared arrays may run into each other, or dynamic shared memory beyond its end.
#[test]
fn shared_memory_out_of_bounds() {
    for seed in SEEDS {
        let device = Emulator::with_seed(seed);
        let memory = Memory::new(&device, 64);
        let part = "outside every shared array";
        let kernel = "test_past_static_array";
        launch(&device, kernel, 1, 32, memory.params(&device, 0, 0)).unwrap();
        for argument in [32, 96, 5000] {
            let params = memory.params(&device, 0, argument);
            assert_fails(launch(&device, kernel, 1, 32, params), kernel, part);
        }
        let kernel = "test_dynamic_shared_at";
        launch_shared(&device, kernel, 1, 32, 128, memory.params(&device, 0, 0)).unwrap();
        for (bytes, argument) in [(128, 1), (124, 0), (0, 0), (64, 100)] {
            let params = memory.params(&device, 0, argument);
            assert_fails(launch_shared(&device, kernel, 1, 32, bytes, params), kernel, part);
        }
    }
}

/// Breaks if a streaming access passes where a GPU would take the address for another one.
#[test]
fn streaming_access_to_shared_memory() {
    let device = Emulator::with_seed(0);
    let memory = Memory::new(&device, 64);
    let result = launch(&device, "test_streaming_shared", 1, 32, memory.params(&device, 0, 0));
    assert_fails(result, "test_streaming_shared", "a streaming access to shared memory");
}

/// Breaks if a pointer that was never the device's passes.
#[test]
fn foreign_pointers() {
    let device = Emulator::with_seed(0);
    let other = Emulator::with_seed(0);
    let memory = Memory::new(&device, 64);
    let foreign = other.upload(&ramp(64)).unwrap();
    let host = ramp(64);
    for input in [0, 64, host.as_ptr().addr() as u64, address(&other, &foreign, 0)] {
        let params = TestParams { input, ..memory.params(&device, 64, 1) };
        let part = "which is no memory of this device";
        assert_fails(launch(&device, "test_block_sum", 1, 64, params), "test_block_sum", part);
    }
}

/// Breaks if memory that was freed can still be used.
#[test]
fn freed_memory() {
    let device = Emulator::with_seed(0);
    let memory = Memory::new(&device, 64);
    let params = memory.params(&device, 64, 1);
    launch(&device, "test_block_sum", 1, 64, params).unwrap();
    let Memory { input, output: _output, .. } = memory;
    drop(input);
    let result = launch(&device, "test_block_sum", 1, 64, params);
    assert_fails(result, "test_block_sum", "read of 4 bytes");
}

/// Breaks if a kernel may write to its parameters: on a GPU they are constant.
#[test]
fn writes_to_parameters() {
    let device = Emulator::with_seed(0);
    let memory = Memory::new(&device, 64);
    let result = launch(&device, "test_write_params", 1, 32, memory.params(&device, 0, 0));
    assert_fails(result, "test_write_params", "write of 8 bytes");
}

/// Breaks if a launch can hang the test run: in a loop that others are to end, and in one that
/// touches no memory.
#[test]
fn endless_loops() {
    for seed in SEEDS {
        let device = impatient(seed);
        let memory = Memory::new(&device, 64);
        for (kernel, block) in [("test_spin_for_ever", 64), ("test_loop_for_ever", 32)] {
            let result = launch(&device, kernel, 1, block, memory.params(&device, 6, 0));
            assert_fails(result, kernel, "budget");
        }
    }
}

struct AnyLaunch<'a> {
    kernel: &'a str,
    grid: u32,
    block: u32,
    shared_bytes: u32,
    params: &'a [u8],
}

impl AnyLaunch<'_> {
    fn run(&self, device: &Emulator) -> Result<()> {
        device.run(self.kernel, [self.grid, self.block, self.shared_bytes], self.params)
    }
}

fn refused<T: Scalar>(
    device: &Emulator,
    buffer: &Buffer<T>,
    edit: impl Fn(&mut AnyLaunch<'_>),
) -> String {
    let params = TestParams { output: address(device, buffer, 0), ..TestParams::default() }.bytes();
    let mut launch = AnyLaunch {
        kernel: "test_neighbouring_bytes",
        grid: 1,
        block: 64,
        shared_bytes: 0,
        params: &params,
    };
    launch.run(device).unwrap();
    edit(&mut launch);
    launch.run(device).unwrap_err().to_string()
}

/// Breaks if a launch that a GPU refuses goes through.
#[test]
fn launches_that_a_device_refuses() {
    let facts = DeviceFacts { shared_bytes_per_block: 1000, ..emulator::default_facts() };
    let device = Emulator::new(Options { facts, ..Options::default() });
    let buffer = device.uninitialised::<u8>(64).unwrap();
    let refused = |edit: &dyn Fn(&mut AnyLaunch<'_>)| refused(&device, &buffer, edit);
    assert!(refused(&|launch| launch.kernel = "test_none").contains("no such kernel"));
    assert!(refused(&|launch| launch.kernel = "test\0").contains("nul byte"));
    assert!(refused(&|launch| launch.params = &[0; 47]).contains("48 bytes, not 47"));
    assert!(refused(&|launch| launch.block = 0).contains("a block of 0 threads"));
    assert!(refused(&|launch| launch.block = 33).contains("a block of 33 threads"));
    assert!(refused(&|launch| launch.block = 96).contains("multiple of 32 up to 64"));
    assert!(refused(&|launch| launch.grid = 0).contains("a grid of no blocks"));
    assert!(refused(&|launch| launch.grid = u32::MAX).contains("a grid of 4294967295 blocks"));
    assert!(refused(&|launch| launch.shared_bytes = 1001).contains("1001 bytes of shared memory"));
    // Each within its limit, but together they are too much.
    assert!(refused(&|launch| launch.shared_bytes = 990).contains("static and dynamic together"));
}

/// Breaks if a failure says nothing of where it was.
#[test]
fn failures_name_block_and_thread() {
    let device = Emulator::with_seed(0);
    let mut memory = Memory::new(&device, 256);
    memory.workspace = device.uninitialised(64 + 5).unwrap();
    let result = launch(&device, "test_fill_workspace", 3, 64, memory.params(&device, 0, 0));
    assert_fails(result, "test_fill_workspace", "block 1 thread 5: ");
    let result = launch(&device, "test_fill_workspace", 3, 64, memory.params(&device, 0, 0));
    if std::process::Command::new("addr2line").arg("--version").output().is_ok() {
        assert_fails(result, "test_fill_workspace", "mistakes.cu line");
    }
}

/// Breaks if a launch that may begin early is taken to begin after the one before.
#[test]
fn memory_of_the_launch_before() {
    for seed in SEEDS {
        let device = Emulator::with_seed(seed);
        let input = device.upload(&ramp(64)).unwrap();
        let output: Buffer<f32> = device.uninitialised(64).unwrap();
        let params = TestParams {
            input: address(&device, &input, 0),
            output: address(&device, &output, 0),
            ..TestParams::default()
        }
        .bytes();
        device.run_early("test_copy_early", [1, 64, 0], &params).unwrap();
        assert_eq!(output.read(..), ramp(64));
        let kernel = "test_copy_early_without_waiting";
        device.run(kernel, [1, 64, 0], &params).unwrap();
        assert_fails(
            device.run_early(kernel, [1, 64, 0], &params),
            kernel,
            "before it has waited for the launch before",
        );
    }
}
