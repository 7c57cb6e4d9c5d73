//! Sums along runs of neighbouring values: of a, and of a * b, for the pairs that a body makes.

use super::convert::Real;
use super::simd::{self, Isa};

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
    pub fn add<P: Pairs>(&mut self, isa: impl Isa, pairs: &P, len: usize) {
        // In f32 a vector holds more values, and more sums hide the latency of an addition.
        let mut at = 0;
        if P::Real::SINGLE {
            at = self.add_chunks::<P, 32>(isa, pairs, at, len);
        }
        at = self.add_chunks::<P, 16>(isa, pairs, at, len);
        at = self.add_chunks::<P, 8>(isa, pairs, at, len);
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
        isa: impl Isa,
        pairs: &P,
        mut at: usize,
        end: usize,
    ) -> usize {
        while at + N <= end {
            let stop = end.min(at.saturating_add(P::Real::TOGETHER.saturating_mul(N)));
            let mut sums = [[P::Real::default(); N]; 2];
            while at + N <= stop {
                let [a, b] = pairs.pairs::<N>(at);
                isa.add(&mut sums, &a, &b);
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
                lanes[lane] += match N > LANES {
                    true => sums[lane].extend() + sums[lane + LANES].extend(),
                    false => sums[lane].extend(),
                };
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
    use crate::cpu::simd::{Vectorized, on_every_isa};

    /// Whole numbers, whose sums are exact in any order.
    struct Whole<R>(Vec<R>);

    impl<R: Real> Pairs for Whole<R> {
        type Real = R;

        fn pairs<const N: usize>(&self, at: usize) -> [[R; N]; 2] {
            let a = *self.0[at..].first_chunk().expect("inside the run");
            [a, std::array::from_fn(|index| a[index] + a[index])]
        }
    }

    /// Adds up two runs, as a tile of short ones has.
    #[derive(Clone, Copy)]
    struct AddTwice<'a, R>(&'a Whole<R>);

    impl<R: Real> Vectorized for AddTwice<'_, R> {
        type Output = [f64; 2];

        fn call(self, isa: impl Isa) -> [f64; 2] {
            let mut sums = PairSums::new();
            sums.add(isa, self.0, self.0.0.len());
            sums.add(isa, self.0, self.0.0.len());
            sums.totals()
        }
    }

    fn every_value_counts_once<R: Real>(whole: impl Fn(i32) -> R) {
        for len in (0..70).chain([127, 128, 1000]) {
            let values = Whole((1..=len).map(&whole).collect());
            let n = f64::from(len);
            let squares = n * (n + 1.0) * (2.0 * n + 1.0) / 6.0;
            for totals in on_every_isa(AddTwice(&values)) {
                assert_eq!(totals, [n * (n + 1.0), 4.0 * squares], "{len}");
            }
        }
    }

    #[test]
    fn sums_along_runs_hold_every_value_once() {
        every_value_counts_once(f64::from);
        every_value_counts_once(|value| value as f32);
    }

    /// Adds a chunk to sums.
    #[derive(Clone, Copy)]
    struct AddChunk<R, const N: usize> {
        sums: [[R; N]; 2],
        a: [R; N],
        b: [R; N],
    }

    impl<R: Real, const N: usize> Vectorized for AddChunk<R, N> {
        type Output = [[R; N]; 2];

        fn call(mut self, isa: impl Isa) -> [[R; N]; 2] {
            isa.add(&mut self.sums, &self.a, &self.b);
            self.sums
        }
    }

    fn additions_agree<R: Real, const N: usize>(value: impl Fn(f64) -> R) {
        let chunk =
            |seed: f64| std::array::from_fn(|i| value((seed + i as f64 * 0.37).sin() / 3.0));
        let sums = [chunk(3.0), chunk(4.0)];
        let call = AddChunk::<R, N> { sums, a: chunk(1.0), b: chunk(2.0) };
        let bits = |sums: [[R; N]; 2]| sums.map(|it| it.map(|it| it.extend().to_bits()));
        let results: Vec<_> = on_every_isa(call).into_iter().map(bits).collect();
        assert!(results.iter().all(|it| *it == results[0] && *it != bits(sums)));
    }

    #[test]
    fn additions_agree_to_the_bit() {
        additions_agree::<_, 1>(|value| value);
        additions_agree::<_, 4>(|value| value);
        additions_agree::<_, 16>(|value| value);
        additions_agree::<_, 1>(|value| value as f32);
        additions_agree::<_, 4>(|value| value as f32);
        additions_agree::<_, 16>(|value| value as f32);
        additions_agree::<_, 32>(|value| value as f32);
    }
}
