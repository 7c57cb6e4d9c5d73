//! Moments of a set of values (count, mean as hi + lo, M2) and their merging.

use crate::element::{DType, Element};

/// Count, mean and M2 (the sum of squared deviations from the mean) of a set of values.
///
/// The mean is `mean_hi + mean_lo`: its rounding error would cost a tensor of f64 digits that the
/// data has.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Moments {
    pub count: f64,
    pub mean_hi: f64,
    pub mean_lo: f64,
    pub m2: f64,
}

impl Moments {
    /// From sums of deviations and of their squares around a `pivot` that is not
    /// [far](is_far) from the mean; `inverse` is 1 / count.
    #[inline(always)]
    pub fn around(count: f64, inverse: f64, pivot: f64, sum: f64, sum_of_squares: f64) -> Self {
        let correction = sum * inverse;
        let (mean_hi, mean_lo) = two_sum(pivot, correction);
        let m2 = non_negative(sum_of_squares - sum * correction);
        Moments { count, mean_hi, mean_lo, m2 }
    }

    /// Both sets as one (Chan, Golub & LeVeque 1979). An empty set changes nothing.
    #[inline(always)]
    pub fn merge(self, other: Moments) -> Moments {
        if self.count == 0.0 {
            return other;
        }
        if other.count == 0.0 {
            return self;
        }
        self.merge_share(other, other.count / (self.count + other.count))
    }

    /// [`merge`](Self::merge) of sets that are not empty; `share` is the other's part of the
    /// values.
    #[inline(always)]
    fn merge_share(self, other: Moments, share: f64) -> Moments {
        let delta = (other.mean_hi - self.mean_hi) + (other.mean_lo - self.mean_lo);
        let (mean_hi, rounding) = two_sum(self.mean_hi, delta * share);
        let (mean_hi, mean_lo) = two_sum(mean_hi, rounding + self.mean_lo);
        Moments {
            count: self.count + other.count,
            mean_hi,
            mean_lo,
            m2: (self.m2 + other.m2) + delta * delta * (self.count * share),
        }
    }
}

/// Whether sums of deviations were taken around a pivot so far from the mean that too much of the
/// variance is lost in their cancellation: they must be taken again, around the mean. A pivot is
/// the mean of what came before, so this happens where data jump.
///
/// An offset of k standard deviations costs the variance k^2 ulp of f64: a thousand leave it right
/// to 1e-10, far below an ulp of f32; tensors of f64 have no digits to give away.
#[inline(always)]
pub fn is_far<E: Element>(inverse: f64, sum: f64, sum_of_squares: f64) -> bool {
    let tolerated = match E::DTYPE {
        DType::F64 => 16.0,
        _ => (1 << 20) as f64,
    };
    let offset = sum * sum * inverse;
    offset > tolerated * (sum_of_squares - offset)
}

/// Rounding may leave a hair below 0. NaN passes.
#[inline(always)]
fn non_negative(value: f64) -> f64 {
    if value < 0.0 { 0.0 } else { value }
}

/// `a + b` as its rounded value and the rounding error, exactly (Knuth).
#[inline(always)]
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let b_part = sum - a;
    (sum, (a - (sum - b_part)) + (b - b_part))
}

/// Moments of many channels that share a count: rows mean hi, mean lo, M2, borrowed from
/// `[3, lanes]`.
pub struct Lanes<'a> {
    pub mean_hi: &'a mut [f64],
    pub mean_lo: &'a mut [f64],
    pub m2: &'a mut [f64],
}

impl<'a> Lanes<'a> {
    /// Rows of a lane's moments.
    pub const ROWS: usize = 3;

    /// Views `[3, lanes]`.
    pub fn new(rows: &'a mut [f64]) -> Self {
        let lanes = rows.len() / Self::ROWS;
        let (mean_hi, rest) = rows.split_at_mut(lanes);
        let (mean_lo, m2) = rest.split_at_mut(lanes);
        Lanes { mean_hi, mean_lo, m2 }
    }

    /// The same lanes but for those outside `range`.
    pub fn columns(&mut self, range: std::ops::Range<usize>) -> Lanes<'_> {
        Lanes {
            mean_hi: &mut self.mean_hi[range.clone()],
            mean_lo: &mut self.mean_lo[range.clone()],
            m2: &mut self.m2[range],
        }
    }

    /// Merges the moments of `count` further values, given by sums of deviations and of their
    /// squares around pivots, into moments of `before` values.
    #[inline(always)]
    pub fn merge(&mut self, before: f64, count: f64, pivot: &[f64], first: &[f64], second: &[f64]) {
        let lanes = pivot.len();
        let (first, second) = (&first[..lanes], &second[..lanes]);
        // A division per lane would cost more than all the rest.
        let (inverse, share) = (1.0 / count, count / (before + count));
        let mut into = self.columns(0..lanes);
        for lane in 0..lanes {
            let new = Moments::around(count, inverse, pivot[lane], first[lane], second[lane]);
            into.merge_lane(lane, before, share, new);
        }
    }
}

impl Lanes<'_> {
    /// Merges moments of `count` further values of every lane into those of `before` values.
    #[inline(always)]
    pub fn merge_moments(&mut self, before: f64, count: f64, hi: &[f64], lo: &[f64], m2: &[f64]) {
        let lanes = self.m2.len();
        let (hi, lo, m2) = (&hi[..lanes], &lo[..lanes], &m2[..lanes]);
        let share = count / (before + count);
        for lane in 0..lanes {
            let new = Moments { count, mean_hi: hi[lane], mean_lo: lo[lane], m2: m2[lane] };
            self.merge_lane(lane, before, share, new);
        }
    }

    /// The same of channels that have several neighbouring lanes each, which count one after the other.
    #[inline(always)]
    pub fn merge_positions(
        &mut self,
        positions: usize,
        before: f64,
        count: f64,
        hi: &[f64],
        lo: &[f64],
        m2: &[f64],
    ) {
        let lanes = self.m2.len() * positions;
        let (hi, lo, m2) = (&hi[..lanes], &lo[..lanes], &m2[..lanes]);
        for position in 0..positions {
            let before = before + position as f64 * count;
            let share = count / (before + count);
            for channel in 0..self.m2.len() {
                let at = channel * positions + position;
                let new = Moments { count, mean_hi: hi[at], mean_lo: lo[at], m2: m2[at] };
                self.merge_lane(channel, before, share, new);
            }
        }
    }

    #[inline(always)]
    fn merge_lane(&mut self, lane: usize, before: f64, share: f64, new: Moments) {
        let old = Moments {
            count: before,
            mean_hi: self.mean_hi[lane],
            mean_lo: self.mean_lo[lane],
            m2: self.m2[lane],
        };
        let merged = if before == 0.0 { new } else { old.merge_share(new, share) };
        self.mean_hi[lane] = merged.mean_hi;
        self.mean_lo[lane] = merged.mean_lo;
        self.m2[lane] = merged.m2;
    }
}

/// Moments of neighbouring channels that share a count, a slice each.
#[derive(Debug, Clone, Copy)]
pub struct ChannelMoments<'a> {
    pub first: usize,
    pub count: f64,
    pub mean_hi: &'a [f64],
    pub mean_lo: &'a [f64],
    pub m2: &'a [f64],
}

impl<'a> ChannelMoments<'a> {
    /// One channel's.
    pub fn of_one(channel: usize, moments: &'a Moments) -> Self {
        let Moments { count, mean_hi, mean_lo, m2 } = moments;
        let [mean_hi, mean_lo, m2] = [mean_hi, mean_lo, m2].map(std::slice::from_ref);
        ChannelMoments { first: channel, count: *count, mean_hi, mean_lo, m2 }
    }

    /// Those of `[3, channels]`, of `count` values each.
    pub fn of_rows(rows: &'a [f64], count: f64) -> Self {
        let channels = rows.len() / Lanes::ROWS;
        let (mean_hi, rest) = rows.split_at(channels);
        let (mean_lo, m2) = rest.split_at(channels);
        ChannelMoments { first: 0, count, mean_hi, mean_lo, m2 }
    }

    /// Each channel's.
    #[inline(always)]
    pub fn each(self) -> impl Iterator<Item = Moments> {
        let ChannelMoments { count, mean_hi, mean_lo, m2, .. } = self;
        let rows = mean_hi.iter().zip(mean_lo).zip(m2);
        rows.map(move |((&mean_hi, &mean_lo), &m2)| Moments { count, mean_hi, mean_lo, m2 })
    }

    /// The channels.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.first..self.first + self.mean_hi.len()
    }
}

/// Reads channel `channel` of one rank's `[4, channels]` moments.
pub fn read(rows: &[f64], channels: usize, channel: usize) -> Moments {
    Moments {
        count: rows[channel],
        mean_hi: rows[channels + channel],
        mean_lo: rows[2 * channels + channel],
        m2: rows[3 * channels + channel],
    }
}
