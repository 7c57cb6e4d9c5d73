//! How fast the emulator is, for whoever works on it: `cargo test -p emulator --test speed --
//! --ignored --nocapture --test-threads 1`.
#![cfg(emulated)]

mod common;

use common::{TestParams, address, launch, ramp};
use emulator::{Emulator, Options};
use warpnorm::cuda::Launcher;

/// What is looked at, and the seed that decides the order.
const SETTINGS: [(&str, bool, bool, u64); 5] = [
    ("nothing, in order", false, false, 0),
    ("nothing, random", false, false, 2),
    ("counters, random", false, true, 2),
    ("checks, random", true, false, 2),
    ("both, random", true, true, 2),
];

/// Seconds that this thread has been on a processor: other load does not count.
fn busy_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

fn measure(what: &str, kernel: &str, grid: u32, params: impl Fn(&Emulator) -> (TestParams, f64)) {
    for (setting, checks, counters, seed) in SETTINGS {
        let options = Options { checks, counters, seed, ..Options::default() };
        let device = Emulator::new(options);
        let (params, units) = params(&device);
        let start = busy_seconds();
        launch(&device, kernel, grid, 256, params).unwrap();
        let rate = units / (busy_seconds() - start) / 1e6;
        println!("{what}, {setting}: {rate:.1} M/s");
    }
}

/// Breaks nothing: it prints.
#[test]
#[ignore = "prints speeds"]
fn speeds() {
    let grid = 1000;
    measure("threads", "test_nothing", grid, |_| (TestParams::default(), f64::from(grid) * 256.0));

    let blocks = 20;
    let len = blocks * 256;
    let output = std::cell::RefCell::new(Vec::new());
    measure("shuffles of a lane", "test_shuffles", blocks, |device| {
        let buffer = device.zeros::<f32>(len as usize).unwrap();
        let params =
            TestParams { output: address(device, &buffer, 0), count: 200, ..TestParams::default() };
        output.borrow_mut().push(buffer);
        (params, f64::from(len) * 200.0)
    });

    for (what, kernel) in
        [("a + b", "test_vector_add"), ("a + b in packs", "test_vector_add_packs")]
    {
        let len = 1 << 20;
        let kept = std::cell::RefCell::new(Vec::new());
        measure(what, kernel, 64, |device| {
            let (a, b) = (device.upload(&ramp(len)).unwrap(), device.upload(&ramp(len)).unwrap());
            let sum = device.uninitialised::<f32>(len).unwrap();
            let params = TestParams {
                input: address(device, &a, 0),
                workspace: address(device, &b, 0),
                output: address(device, &sum, 0),
                count: len as u64,
                ..TestParams::default()
            };
            kept.borrow_mut().push((a, b, sum));
            (params, len as f64)
        });
    }
}
