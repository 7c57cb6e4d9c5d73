//! Sums along the columns of rows: in every lane those of a and of a * b, for the pairs that a body
//! makes. A few rows at a time go by in the order of memory.

use super::convert::Real;
use super::simd::{self, Isa};
use std::ops::Range;

/// What makes pairs (a, b) of values.
pub trait LanePairs {
    type Real: Real;
    /// What there is to know of `N` lanes.
    type Lanes<const N: usize>: Copy;

    fn lanes<const N: usize>(&self, lane: usize) -> Self::Lanes<N>;

    /// Those of the `N` values from `at` on: every a, and every b.
    fn pairs<const N: usize>(&self, at: usize, lanes: Self::Lanes<N>) -> [[Self::Real; N]; 2];

    /// Brings what the `N` values from `at` on need into the cache.
    fn prefetch<const N: usize>(&self, at: usize);
}

/// Rows of `stride` values that go by together: as many as lie in the first-level cache, or a few.
#[inline(always)]
pub fn rows_together<R: Real>(stride: usize) -> usize {
    const FEW: usize = 4;
    const VALUES: usize = 4096;
    if R::SINGLE { 8 } else { (VALUES / stride).max(FEW) }
}

/// Adds the pairs of some rows of `stride` values to the sums of a and of a * b of some columns.
#[inline(always)]
pub fn add_rows<P: LanePairs>(
    isa: impl Isa,
    pairs: &P,
    rows: Range<usize>,
    stride: usize,
    columns: Range<usize>,
    sums: [&mut [f64]; 2],
) {
    Rows { isa, pairs, stride, columns, sums }.add(rows);
}

/// What is to be brought into the cache: of the rows that follow as many values as of these are read,
/// in the order of memory. The hardware does not foresee them, because reads jump from row to row.
struct Ahead {
    at: usize,
    row_end: usize,
    stride: usize,
    width: usize,
}

impl Ahead {
    /// From `at` on, where the columns of a row begin, of which there are `width`.
    #[inline(always)]
    fn new(at: usize, stride: usize, width: usize) -> Self {
        Ahead { at, row_end: at + width, stride, width }
    }

    /// Where the next `N` values lie.
    #[inline(always)]
    fn next<const N: usize>(&mut self) -> usize {
        let at = self.at;
        self.at += N;
        if self.at >= self.row_end {
            self.at += self.stride - self.width;
            self.row_end += self.stride;
        }
        at
    }
}

struct Rows<'a, I, P> {
    isa: I,
    pairs: &'a P,
    stride: usize,
    columns: Range<usize>,
    /// Of the columns.
    sums: [&'a mut [f64]; 2],
}

impl<I: Isa, P: LanePairs> Rows<'_, I, P> {
    #[inline(always)]
    fn add(&mut self, rows: Range<usize>) {
        let together = rows_together::<P::Real>(self.stride);
        for row in rows.clone().step_by(together) {
            self.add_together(row..rows.end.min(row + together));
        }
    }

    #[inline(always)]
    fn add_together(&mut self, rows: Range<usize>) {
        let Range { start: mut lane, end } = self.columns;
        let mut ahead = Ahead::new(rows.end * self.stride + lane, self.stride, end - lane);
        while lane + 16 <= end {
            self.add_chunk::<16>(rows.clone(), lane, &mut ahead);
            lane += 16;
        }
        while lane + 4 <= end {
            self.add_chunk::<4>(rows.clone(), lane, &mut ahead);
            lane += 4;
        }
        while lane < end {
            self.add_chunk::<1>(rows.clone(), lane, &mut ahead);
            lane += 1;
        }
    }

    #[inline(always)]
    fn add_chunk<const N: usize>(&mut self, rows: Range<usize>, lane: usize, ahead: &mut Ahead) {
        let lanes = self.pairs.lanes::<N>(lane);
        let (mut sums, mut totals) = ([[P::Real::default(); N]; 2], [[0.0; N]; 2]);
        let start = rows.start;
        for row in rows {
            if P::Real::SINGLE && row > start && (row - start).is_multiple_of(P::Real::TOGETHER) {
                extend_into(&mut totals, &sums);
                sums = [[P::Real::default(); N]; 2];
            }
            self.pairs.prefetch::<N>(ahead.next::<N>());
            let [a, b] = self.pairs.pairs::<N>(row * self.stride + lane, lanes);
            self.isa.add(&mut sums, &a, &b);
            simd::keep_chunk();
        }
        extend_into(&mut totals, &sums);
        let at = lane - self.columns.start;
        for (sum, total) in self.sums.iter_mut().zip(&totals) {
            let sum: &mut [f64; N] = sum[at..].first_chunk_mut().expect("a sum for each lane");
            for index in 0..N {
                sum[index] += total[index];
            }
        }
    }
}

#[inline(always)]
fn extend_into<R: Real, const N: usize>(totals: &mut [[f64; N]; 2], sums: &[[R; N]; 2]) {
    for (totals, sums) in totals.iter_mut().zip(sums) {
        for index in 0..N {
            totals[index] += sums[index].extend();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{Vectorized, on_every_isa};
    use std::cell::RefCell;

    /// Whole numbers, whose sums are exact in any order; counts how often each is taken.
    struct Whole<R> {
        values: Vec<R>,
        taken: RefCell<Vec<usize>>,
    }

    impl<R: Real> LanePairs for Whole<R> {
        type Real = R;
        type Lanes<const N: usize> = ();

        fn lanes<const N: usize>(&self, _lane: usize) {}

        fn pairs<const N: usize>(&self, at: usize, (): ()) -> [[R; N]; 2] {
            self.taken.borrow_mut()[at..at + N].iter_mut().for_each(|it| *it += 1);
            [*self.values[at..].first_chunk().expect("inside the tensor"); 2]
        }

        fn prefetch<const N: usize>(&self, _at: usize) {}
    }

    /// Sums and sums of squares of every column, in two halves, begun with 1 and 2.
    #[derive(Clone, Copy)]
    struct AddHalves<'a, R> {
        whole: &'a Whole<R>,
        rows: usize,
        stride: usize,
    }

    impl<R: Real> Vectorized for AddHalves<'_, R> {
        type Output = [Vec<f64>; 2];

        fn call(self, isa: impl Isa) -> [Vec<f64>; 2] {
            let AddHalves { whole, rows, stride } = self;
            let (mut sums, mut squares) = (vec![1.0; stride], vec![2.0; stride]);
            let half = stride / 2;
            for columns in [0..half, half..stride] {
                let sums = [&mut sums[columns.clone()], &mut squares[columns.clone()]];
                add_rows(isa, whole, 0..rows, stride, columns, sums);
            }
            [sums, squares]
        }
    }

    fn every_value_counts_once<R: Real>(whole: impl Fn(usize) -> R) {
        for stride in [1, 3, 16, 21, 100, 600] {
            for rows in [1, 7, 8, 9, 41] {
                let values = (0..rows * stride).map(|at| whole(at % 31)).collect();
                let whole = Whole { values, taken: RefCell::new(vec![0; rows * stride]) };
                let results = on_every_isa(AddHalves { whole: &whole, rows, stride });
                let times = results.len();
                assert!(whole.taken.borrow().iter().all(|&it| it == times), "{rows}x{stride}");
                for (lane, [sums, squares]) in
                    results.iter().flat_map(|it| (0..stride).map(move |lane| (lane, it)))
                {
                    let lane_values = || (0..rows).map(|row| ((row * stride + lane) % 31) as f64);
                    assert_eq!(sums[lane], 1.0 + lane_values().sum::<f64>());
                    assert_eq!(squares[lane], 2.0 + lane_values().map(|it| it * it).sum::<f64>());
                }
            }
        }
    }

    /// What is announced lies in the rows that follow, each of their values once.
    #[test]
    fn announcements_go_along_the_next_rows() {
        let mut ahead = Ahead::new(1000, 100, 32);
        let announced: Vec<_> = (0..6).map(|_| ahead.next::<16>()).collect();
        assert_eq!(announced, [1000, 1016, 1100, 1116, 1200, 1216]);
    }

    #[test]
    fn sums_along_columns_hold_every_value_once() {
        every_value_counts_once(|value| value as f64);
        every_value_counts_once(|value| value as f32);
    }
}
