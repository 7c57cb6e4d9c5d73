//! Sums along the columns of rows: in every lane those of a and of a * b, for the pairs that a body
//! makes. A few rows at a time go by in the order of memory.

use super::convert::Real;
use super::simd::{self, Adder, with_adder};
use std::ops::Range;

/// What makes pairs (a, b) of values.
pub trait LanePairs {
    type Real: Real;
    /// What there is to know of `N` lanes.
    type Lanes<const N: usize>: Copy;

    fn lanes<const N: usize>(&self, lane: usize) -> Self::Lanes<N>;

    /// Those of the `N` values from `at` on: every a, and every b.
    fn pairs<const N: usize>(&self, at: usize, lanes: Self::Lanes<N>) -> [[Self::Real; N]; 2];

    /// Brings what the values at `at` need into the cache.
    fn prefetch(&self, at: usize);
}

/// Rows of `stride` values that go by together: in f32, which adds up what they come to, so few that
/// its digits are enough; else as many as lie in the first-level cache.
#[inline(always)]
fn rows_together<R: Real>(stride: usize) -> usize {
    const FEW: usize = 8;
    const VALUES: usize = 4096;
    if R::SINGLE { FEW } else { (VALUES / stride).max(FEW) }
}

/// Adds the pairs of some rows of `stride` values to the sums of a and of a * b of some columns.
#[inline(always)]
pub fn add_rows<P: LanePairs>(
    pairs: &P,
    rows: Range<usize>,
    stride: usize,
    columns: Range<usize>,
    sums: [&mut [f64]; 2],
) {
    with_adder!(|adder| Rows { adder, pairs, stride, columns, sums }.add(rows));
}

struct Rows<'a, A, P> {
    adder: A,
    pairs: &'a P,
    stride: usize,
    columns: Range<usize>,
    /// Of the columns.
    sums: [&'a mut [f64]; 2],
}

impl<A: Adder, P: LanePairs> Rows<'_, A, P> {
    #[inline(always)]
    fn add(&mut self, rows: Range<usize>) {
        let together = rows_together::<P::Real>(self.stride);
        for row in rows.clone().step_by(together) {
            self.add_together(row..rows.end.min(row + together));
        }
    }

    #[inline(always)]
    fn add_together(&mut self, rows: Range<usize>) {
        let (mut lane, end) = (self.columns.start, self.columns.end);
        while lane + 16 <= end {
            self.add_chunk::<16>(rows.clone(), lane);
            lane += 16;
        }
        while lane + 4 <= end {
            self.add_chunk::<4>(rows.clone(), lane);
            lane += 4;
        }
        while lane < end {
            self.add_chunk::<1>(rows.clone(), lane);
            lane += 1;
        }
    }

    #[inline(always)]
    fn add_chunk<const N: usize>(&mut self, rows: Range<usize>, lane: usize) {
        let lanes = self.pairs.lanes::<N>(lane);
        let mut sums = [[P::Real::default(); N]; 2];
        // What the hardware does not foresee, because reads jump from row to row: the chunks of these
        // rows bring the next ones into the cache, in the order of memory.
        let mut ahead = rows.end * self.stride + lane * rows.len();
        for row in rows {
            self.pairs.prefetch(ahead);
            ahead += N;
            let [a, b] = self.pairs.pairs::<N>(row * self.stride + lane, lanes);
            self.adder.add(&mut sums, &a, &b);
            simd::keep_chunk();
        }
        let at = lane - self.columns.start;
        for (total, sums) in self.sums.iter_mut().zip(&sums) {
            let total: &mut [f64; N] = total[at..].first_chunk_mut().expect("a sum for each lane");
            for index in 0..N {
                total[index] += sums[index].extend();
            }
        }
    }
}
