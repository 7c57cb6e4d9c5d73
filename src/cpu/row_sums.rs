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

/// Rows that go by together, and are added up in f32 where that is what pairs come in: of so few, its
/// digits are enough.
const TOGETHER: usize = 8;

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
        let mut row = rows.start;
        while row + TOGETHER <= rows.end {
            self.add_together::<TOGETHER>(row);
            row += TOGETHER;
        }
        while row < rows.end {
            self.add_together::<1>(row);
            row += 1;
        }
    }

    /// `R` rows.
    #[inline(always)]
    fn add_together<const R: usize>(&mut self, row: usize) {
        let (mut lane, end) = (self.columns.start, self.columns.end);
        while lane + 16 <= end {
            self.add_chunk::<R, 16>(row, lane);
            lane += 16;
        }
        while lane + 4 <= end {
            self.add_chunk::<R, 4>(row, lane);
            lane += 4;
        }
        while lane < end {
            self.add_chunk::<R, 1>(row, lane);
            lane += 1;
        }
    }

    #[inline(always)]
    fn add_chunk<const R: usize, const N: usize>(&mut self, row: usize, lane: usize) {
        let lanes = self.pairs.lanes::<N>(lane);
        let mut sums = [[P::Real::default(); N]; 2];
        // What the hardware does not foresee, because reads jump from row to row: the chunks of these
        // rows bring the next ones into the cache, in the order of memory.
        let ahead = (row + R) * self.stride + lane * R;
        for index in 0..R {
            let at = (row + index) * self.stride + lane;
            self.pairs.prefetch(ahead + index * N);
            let [a, b] = self.pairs.pairs::<N>(at, lanes);
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
