//! Sums along runs of neighbouring values: of a, and of a * b, for the pairs that a body makes.

use super::convert::Real;
use super::simd::{self, Adder};

/// What makes pairs (a, b) of values.
pub trait Pairs {
    type Real: Real;

    /// Those of `N` values from `at` on: every a, and every b.
    fn pairs<const N: usize>(&self, at: usize) -> [[Self::Real; N]; 2];
}

/// Sums that are kept apart, each of every so many-th value. Fixed, so that results do not depend on
/// the instruction set's width.
const LANES: usize = 16;

/// Sums of a and of a * b over runs.
pub struct PairSums {
    lanes: [[f64; LANES]; 2],
    /// Of what is left at the runs' ends.
    rest: [f64; 2],
}

impl PairSums {
    #[inline(always)]
    pub fn new() -> Self {
        PairSums { lanes: [[0.0; LANES]; 2], rest: [0.0; 2] }
    }

    /// Adds the pairs of a run of `len` values.
    #[inline(always)]
    pub fn add<P: Pairs>(&mut self, adder: impl Adder, pairs: &P, len: usize) {
        // In f32 a vector holds more values, and more sums hide the latency of an addition.
        let mut at = 0;
        if P::Real::SINGLE {
            at = self.add_chunks::<P, 32>(adder, pairs, at, len);
        }
        at = self.add_chunks::<P, 16>(adder, pairs, at, len);
        at = self.add_chunks::<P, 8>(adder, pairs, at, len);
        while at < len {
            let [[a], [b]] = pairs.pairs::<1>(at);
            let (a, b) = (a.extend(), b.extend());
            self.rest[0] += a;
            self.rest[1] += a * b;
            simd::keep_chunk();
            at += 1;
        }
    }

    /// Adds whole chunks from `at` on; returns where they end.
    #[inline(always)]
    fn add_chunks<P: Pairs, const N: usize>(
        &mut self,
        adder: impl Adder,
        pairs: &P,
        mut at: usize,
        end: usize,
    ) -> usize {
        while at + N <= end {
            let stop = end.min(at.saturating_add(P::Real::TOGETHER.saturating_mul(N)));
            let mut sums = [[P::Real::default(); N]; 2];
            while at + N <= stop {
                let [a, b] = pairs.pairs::<N>(at);
                adder.add(&mut sums, &a, &b);
                simd::keep_chunk();
                at += N;
            }
            self.collect(&sums);
        }
        at
    }

    #[inline(always)]
    fn collect<R: Real, const N: usize>(&mut self, sums: &[[R; N]; 2]) {
        for (lanes, sums) in self.lanes.iter_mut().zip(sums) {
            for lane in 0..N.min(LANES) {
                let folded = if N > LANES { sums[lane] + sums[lane + LANES] } else { sums[lane] };
                lanes[lane] += folded.extend();
            }
        }
    }

    /// The two sums.
    #[inline(always)]
    pub fn totals(&self) -> [f64; 2] {
        let [first, second] = self.lanes.map(total);
        [first + self.rest[0], second + self.rest[1]]
    }
}

/// Adds up in a fixed tree.
#[inline(always)]
fn total(mut lanes: [f64; LANES]) -> f64 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{PlainAdder, Summable, with_adder};

    /// Whole numbers, whose sums are exact in any order.
    struct Whole<R>(Vec<R>);

    impl<R: Real> Pairs for Whole<R> {
        type Real = R;

        fn pairs<const N: usize>(&self, at: usize) -> [[R; N]; 2] {
            let a = *self.0[at..].first_chunk().expect("inside the run");
            [a, std::array::from_fn(|index| a[index] + a[index])]
        }
    }

    fn every_value_counts_once<R: Real>(whole: impl Fn(i32) -> R) {
        for len in (0..70).chain([127, 128, 1000]) {
            let values = Whole((1..=len).map(&whole).collect());
            let mut sums = PairSums::new();
            // Two runs, as a tile of short ones has.
            for _ in 0..2 {
                with_adder!(|adder| sums.add(adder, &values, len as usize));
            }
            let n = f64::from(len);
            let squares = n * (n + 1.0) * (2.0 * n + 1.0) / 6.0;
            assert_eq!(sums.totals(), [n * (n + 1.0), 4.0 * squares], "{len}");
        }
    }

    #[test]
    fn sums_along_runs_hold_every_value_once() {
        every_value_counts_once(f64::from);
        every_value_counts_once(|value| value as f32);
    }

    fn adders_agree<R: Real + Summable, const N: usize>(value: impl Fn(f64) -> R) {
        let chunk =
            |seed: f64| std::array::from_fn(|i| value((seed + i as f64 * 0.37).sin() / 3.0));
        let (a, b, start) = (chunk(1.0), chunk(2.0), [chunk(3.0), chunk(4.0)]);
        let (mut plain, mut best): ([[R; N]; 2], [[R; N]; 2]) = (start, start);
        PlainAdder.add(&mut plain, &a, &b);
        with_adder!(|adder| adder.add(&mut best, &a, &b));
        assert_eq!(plain.map(|it| it.map(R::extend)), best.map(|it| it.map(R::extend)));
    }

    #[test]
    fn adders_agree_to_the_bit() {
        adders_agree::<_, 1>(|value| value);
        adders_agree::<_, 4>(|value| value);
        adders_agree::<_, 16>(|value| value);
        adders_agree::<_, 1>(|value| value as f32);
        adders_agree::<_, 4>(|value| value as f32);
        adders_agree::<_, 16>(|value| value as f32);
        adders_agree::<_, 32>(|value| value as f32);
    }
}
