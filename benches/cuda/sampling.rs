//! How often something is called to be timed, and on how many copies of its tensors. Knows no GPU.

use crate::id::{Config, Id, Pass};
use std::time::Duration;
use warpnorm::Result;

/// As Criterion is told to.
pub const SAMPLES: usize = 10;
pub const WARM_UP: Duration = Duration::from_millis(20);
pub const MEASUREMENT: Duration = Duration::from_millis(50);

/// The L2's size is to pass so many times between two turns of a tensor. Once would do if it held
/// exactly what came last.
const L2_TURNS: u64 = 3;
const MOST_SETS: u64 = 2048;
/// Of the memory that is free.
const MEMORY_SHARE: f64 = 0.6;

/// How many copies of a call's tensors take turns, so that each has left the L2 when it is due.
pub fn sets(call_bytes: u64, set_bytes: u64, l2_bytes: u64, free_bytes: u64) -> usize {
    let others = (L2_TURNS * l2_bytes).div_ceil(call_bytes.max(1));
    let fit = (free_bytes as f64 * MEMORY_SHARE) as u64 / set_bytes.max(1);
    (others + 1).min(MOST_SETS).min(fit).max(1) as usize
}

/// Whether a call's tensors stay in the L2 from one call to the next. Of an L2 in two partitions each may
/// hold a copy of what comes from the other.
pub fn stays_in_cache(call_bytes: u64, l2_bytes: u64) -> bool {
    call_bytes <= l2_bytes / 4
}

/// Whether it is of interest what a call takes on the host: where it may be more than on the device.
pub fn is_host_timed(id: &Id) -> Result<bool> {
    const SMALL: usize = 4 << 20;
    Ok(id.config == Config::Gpu && id.pass != Pass::Copy && id.floor_bytes()? <= SMALL)
}

/// The median of samples, each of so many calls that it lasts its share of [`MEASUREMENT`],
/// nanoseconds a call. `time` takes a number of calls.
pub fn median_ns(mut time: impl FnMut(u64) -> Result<Duration>) -> Result<f64> {
    let mut calls = 1;
    let mut warm = Duration::ZERO;
    let once = loop {
        let elapsed = time(calls)?;
        warm += elapsed;
        if warm >= WARM_UP || calls >= 1 << 24 {
            break elapsed.as_secs_f64() / calls as f64;
        }
        calls *= 2;
    };
    let share = MEASUREMENT.as_secs_f64() / SAMPLES as f64;
    let calls = (share / once.max(1e-9)).round().max(1.0) as u64;
    let mut samples = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        samples.push(time(calls)?.as_secs_f64() * 1e9 / calls as f64);
    }
    Ok(median(&mut samples))
}

pub fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    let middle = samples.len() / 2;
    match samples.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => samples[middle],
        _ => (samples[middle - 1] + samples[middle]) / 2.0,
    }
}
