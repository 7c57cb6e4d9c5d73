//! Coefficients of every lane of a row, and the loops along rows that use them.

use super::block::{self, deviation, normalize};
use super::channel::{Channels, GradientCoefficients, Sums};
use super::direct;
use super::rows::{PACK, Pack, Partition, ahead, block_rows, loose_lanes, packs};
use super::simd::prefetch_line;
use crate::element::Element;
use std::ops::Range;

/// Coefficients of every lane, a row each, borrowed from `[ROWS, lanes]`.
#[derive(Debug, Clone, Copy)]
pub struct LaneCoefficients<'a> {
    pub mean_hi: &'a [f64],
    pub mean_lo: &'a [f64],
    pub scale: &'a [f64],
    pub bias: &'a [f64],
    pub mean_g: &'a [f64],
    pub slope: &'a [f64],
}

impl<'a> LaneCoefficients<'a> {
    /// Rows that a lane's coefficients take.
    pub const ROWS: usize = 6;

    /// Fills `rows` with the coefficients of every channel, repeated along a folded row; without
    /// sums those of dx are left as they are.
    pub fn fill<E: Element>(
        rows: &'a mut [f64],
        partition: &Partition,
        channels: &Channels<'_, E::Param>,
        sums: Option<&[Sums]>,
    ) -> Self {
        let (lanes, count) = (partition.lanes(), partition.channels);
        let mut parts = rows[..Self::ROWS * lanes].chunks_exact_mut(lanes);
        let mut next = || parts.next().expect("ROWS of them");
        let [mean_hi, mean_lo, scale, bias, mean_g, slope] =
            [next(), next(), next(), next(), next(), next()];
        channels.fill::<E>(
            &mut mean_hi[..count],
            &mut mean_lo[..count],
            &mut scale[..count],
            &mut bias[..count],
        );
        for (channel, &sums) in sums.unwrap_or_default().iter().enumerate() {
            let by = GradientCoefficients::new(&channels.coefficients::<E>(channel), sums);
            (mean_g[channel], slope[channel]) = (by.mean_g, by.slope);
        }
        for row in [&mut *mean_hi, mean_lo, scale, bias, mean_g, slope] {
            for copy in 1..partition.fold {
                row.copy_within(..count, copy * count);
            }
        }
        let mut parts = rows.chunks_exact(lanes);
        let mut next = || parts.next().expect("ROWS of them");
        LaneCoefficients {
            mean_hi: next(),
            mean_lo: next(),
            scale: next(),
            bias: next(),
            mean_g: next(),
            slope: next(),
        }
    }

    #[inline(always)]
    pub fn columns(&self, range: Range<usize>) -> Self {
        LaneCoefficients {
            mean_hi: &self.mean_hi[range.clone()],
            mean_lo: &self.mean_lo[range.clone()],
            scale: &self.scale[range.clone()],
            bias: &self.bias[range.clone()],
            mean_g: &self.mean_g[range.clone()],
            slope: &self.slope[range],
        }
    }

    /// `d = x - mean`, row by row.
    #[inline(always)]
    pub fn load_centered<E: Element>(&self, x: &[E], d: &mut [f64]) {
        let lanes = self.mean_hi.len();
        let (hi, lo) = (&self.mean_hi[..lanes], &self.mean_lo[..lanes]);
        for (d, x) in d.chunks_exact_mut(lanes).zip(x.chunks_exact(lanes)) {
            for lane in 0..lanes {
                d[lane] = deviation::<E>(x[lane].to_f64(), hi[lane], lo[lane]);
            }
        }
    }

    /// `z = d * scale + bias`, row by row.
    #[inline(always)]
    pub fn normalize(&self, d: &[f64], z: &mut [f64]) {
        let lanes = self.scale.len();
        for (z, d) in z.chunks_exact_mut(lanes).zip(d.chunks_exact(lanes)) {
            for (((z, &d), &scale), &bias) in z.iter_mut().zip(d).zip(self.scale).zip(self.bias) {
                *z = normalize(d, scale, bias);
            }
        }
    }

    #[inline(always)]
    pub fn lane(&self, lane: usize) -> [f64; 4] {
        [self.mean_hi[lane], self.mean_lo[lane], self.scale[lane], self.bias[lane]]
    }

    /// y, straight from x, row by row.
    #[inline(always)]
    pub fn forward<E: Element, const RELU: bool>(&self, x: &[E], y: &mut [E]) {
        let lanes = self.scale.len();
        let all = self.columns(0..lanes);
        for (x, y) in x.chunks_exact(lanes).zip(y.chunks_exact_mut(lanes)) {
            for lane in 0..lanes {
                y[lane] = direct::forward::<E, RELU>(x[lane], all.lane(lane));
            }
        }
    }

    /// dx, straight from x and dy, row by row.
    #[inline(always)]
    pub fn gradient<E: Element, const RELU: bool>(&self, x: &[E], dy: &[E], dx: &mut [E]) {
        let lanes = self.scale.len();
        let all = self.columns(0..lanes);
        let rows = x.chunks_exact(lanes).zip(dy.chunks_exact(lanes));
        for ((x, dy), dx) in rows.zip(dx.chunks_exact_mut(lanes)) {
            for lane in 0..lanes {
                let (g, d) = direct::backward::<E, RELU>(x[lane], dy[lane], all.lane(lane));
                let gradient =
                    block::gradient(g, d, all.scale[lane], all.mean_g[lane], all.slope[lane]);
                dx[lane] = E::from_f64(gradient);
            }
        }
    }

    /// Adds the sums of g and of g * d of a pack's lanes, but for the first `skip`, over a block
    /// of rows.
    #[inline(always)]
    pub fn add_sums<E: Element, const RELU: bool, const W: usize>(
        &self,
        (x, dy): (&[E], &[E]),
        ahead: (&[E], &[E]),
        Pack { start, skip }: Pack,
        sum_g: &mut [f64],
        sum_gd: &mut [f64],
    ) {
        let lanes = self.scale.len();
        // Not `from_fn`: its closure would not be inlined.
        let mut coefficients = [[0.0; 4]; W];
        for (lane, coefficients) in coefficients.iter_mut().enumerate() {
            *coefficients = self.lane(start + lane);
        }
        let (mut g_sums, mut gd_sums) = ([0.0; W], [0.0; W]);
        for (index, (x, dy)) in x.chunks_exact(lanes).zip(dy.chunks_exact(lanes)).enumerate() {
            prefetch_line(ahead.0, index * W);
            prefetch_line(ahead.1, index * W);
            let (Some((x, _)), Some((dy, _))) =
                (x[start..].split_first_chunk::<W>(), dy[start..].split_first_chunk::<W>())
            else {
                continue;
            };
            for lane in 0..W {
                let (g, d) = direct::backward::<E, RELU>(x[lane], dy[lane], coefficients[lane]);
                g_sums[lane] += g;
                gd_sums[lane] += g * d;
            }
        }
        for lane in skip..W {
            sum_g[start + lane] += g_sums[lane];
            sum_gd[start + lane] += gd_sums[lane];
        }
    }

    /// The sums of g and of g * d of each lane over rows, straight from x and dy.
    #[inline(always)]
    pub fn sums<E: Element, const RELU: bool>(
        &self,
        x: &[E],
        dy: &[E],
        sum_g: &mut [f64],
        sum_gd: &mut [f64],
    ) {
        let lanes = self.scale.len();
        let block_rows = block_rows::<E>(lanes);
        let step = block_rows * lanes;
        for (index, inputs) in x.chunks(step).zip(dy.chunks(step)).enumerate() {
            let next = x.len().min((index + 1) * step);
            for (index, pack) in packs(lanes).enumerate() {
                let ahead =
                    (ahead(&x[next..], index, block_rows), ahead(&dy[next..], index, block_rows));
                self.add_sums::<E, RELU, PACK>(inputs, ahead, pack, sum_g, sum_gd);
            }
            for start in 0..loose_lanes(lanes) {
                let pack = Pack { start, skip: 0 };
                self.add_sums::<E, RELU, 1>(inputs, (&[], &[]), pack, sum_g, sum_gd);
            }
        }
    }

    /// `z = (x - mean) * scale + bias`, row by row.
    #[inline(always)]
    pub fn load_normalized<E: Element>(&self, x: &[E], z: &mut [f64]) {
        let lanes = self.scale.len();
        let (hi, lo) = (&self.mean_hi[..lanes], &self.mean_lo[..lanes]);
        let (scale, bias) = (&self.scale[..lanes], &self.bias[..lanes]);
        for (z, x) in z.chunks_exact_mut(lanes).zip(x.chunks_exact(lanes)) {
            for lane in 0..lanes {
                let d = deviation::<E>(x[lane].to_f64(), hi[lane], lo[lane]);
                z[lane] = normalize(d, scale[lane], bias[lane]);
            }
        }
    }

    /// `g = dx`, row by row.
    #[inline(always)]
    pub fn input_gradient(&self, g: &mut [f64], d: &[f64]) {
        let lanes = self.scale.len();
        let (scale, mean_g, slope) = (self.scale, &self.mean_g[..lanes], &self.slope[..lanes]);
        for (g, d) in g.chunks_exact_mut(lanes).zip(d.chunks_exact(lanes)) {
            for lane in 0..lanes {
                g[lane] = block::gradient(g[lane], d[lane], scale[lane], mean_g[lane], slope[lane]);
            }
        }
    }

    /// `g = scale * g`, row by row: dx where the statistics are constants.
    #[inline(always)]
    pub fn scale_rows(&self, g: &mut [f64]) {
        for row in g.chunks_exact_mut(self.scale.len()) {
            for (g, &scale) in row.iter_mut().zip(self.scale) {
                *g *= scale;
            }
        }
    }
}
