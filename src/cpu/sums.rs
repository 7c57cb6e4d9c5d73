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
        /// Values that f32 adds up at most: of so few, its digits are enough.
        const TOGETHER: usize = 8;
        while at + N <= end {
            let stop = if P::Real::SINGLE { end.min(at + TOGETHER * N) } else { end };
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
