//! How often something is called to be timed.

use crate::sampling::{
    MEASUREMENT, SAMPLES, WARM_UP, is_host_timed, median, median_ns, sets, stays_in_cache,
};
use std::time::Duration;

const MIB: u64 = 1 << 20;

#[test]
fn a_tensor_has_left_the_cache_when_its_turn_comes() {
    let l2 = 50 * MIB;
    for call in [MIB / 10, MIB, 7 * MIB, 60 * MIB, 400 * MIB] {
        let sets = sets(call, 2 * call, l2, 80 << 30) as u64;
        assert!(sets == 2048 || (sets - 1) * call >= 3 * l2, "{call}: {sets}");
    }
}

#[test]
fn sets_fit_in_memory_and_there_is_always_one() {
    assert_eq!(sets(MIB, 100 * MIB, 50 * MIB, 1000 * MIB), 6);
    assert_eq!(sets(MIB, 100 * MIB, 50 * MIB, MIB), 1);
    assert_eq!(sets(0, 0, 0, 0), 1);
}

#[test]
fn a_sample_is_of_as_many_calls_as_fill_its_share() {
    let mut asked = Vec::new();
    let ns = median_ns(|calls| {
        asked.push(calls);
        Ok(Duration::from_micros(10) * calls as u32)
    });
    assert!((ns.unwrap() - 10_000.0).abs() < 1e-6);
    let (warm, samples) = asked.split_at(asked.len() - SAMPLES);
    assert!(Duration::from_micros(10) * warm.iter().sum::<u64>() as u32 >= WARM_UP);
    let share = (MEASUREMENT / SAMPLES as u32).as_micros() as u64 / 10;
    assert!(samples.iter().all(|&calls| calls == share), "{samples:?}");
}

#[test]
fn a_call_longer_than_a_sample_is_made_once() {
    let mut asked = Vec::new();
    let ns = median_ns(|calls| {
        asked.push(calls);
        Ok(Duration::from_millis(80) * calls as u32)
    });
    assert!((ns.unwrap() - 80e6).abs() < 1.0);
    assert_eq!(asked, [1; 1 + SAMPLES]);
}

#[test]
fn the_median_is_in_the_middle() {
    assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
    assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
}

#[test]
fn the_host_is_timed_on_small_calls_that_it_makes_itself() {
    let timed = |id: &str| is_host_timed(&id.parse().unwrap()).unwrap();
    assert!(timed("train_forward/channels-last/f16/128x100/none/gpu"));
    assert!(!timed("train_forward/channels-last/f16/128x100/none/gpu-graph"));
    assert!(!timed("train_forward/channels-last/f16/64x256x56x56/none/gpu"));
    assert!(!timed("copy/channels-last/f16/128x100/none/gpu"));
}

#[test]
fn what_stays_in_the_cache_fits_either_half_of_it_twice() {
    assert!(stays_in_cache(15 * MIB, 60 * MIB));
    assert!(!stays_in_cache(16 * MIB, 60 * MIB));
}
