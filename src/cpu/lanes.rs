//! Coefficients of every lane of a row, and the loops along rows that use them.

use super::block::{self, deviation, normalize};
use super::channel::{Channels, GradientCoefficients, Sums};
use super::direct::{BackwardRun, ChunkCoefficients, RunCoefficients, ValueCoefficients, backward};
use super::rows::{PACK, Pack, Partition, ahead, block_rows, loose_lanes, packs};
use super::run::{MAX_CHUNK, read, read_bits};
use super::simd::{Table, prefetch_line};
use crate::element::Element;
use std::ops::Range;

/// Coefficients of every lane, a row each: mean hi, mean lo, scale, bias, mean g, slope. A row goes
/// on with its own beginning, so that a chunk may reach into the next row of the tensor.
#[derive(Debug, Clone, Copy)]
pub struct LaneCoefficients<'a> {
    pub lanes: usize,
    table: Table<'a, ROWS>,
}

const ROWS: usize = 6;

/// Values of f64 in a cache line: rows begin with one, so that few loads reach over two.
const LINE: usize = 8;

impl<'a> LaneCoefficients<'a> {
    /// Values that the coefficients of `lanes` lanes take.
    pub fn len(lanes: usize) -> usize {
        LINE - 1 + ROWS * Self::stride(lanes)
    }

    fn stride(lanes: usize) -> usize {
        (lanes + MAX_CHUNK).next_multiple_of(LINE)
    }

    /// Fills `rows` with the coefficients of every channel, repeated along a folded row; without
    /// sums those of dx are left as they are.
    pub fn fill<E: Element>(
        rows: &'a mut [f64],
        partition: &Partition,
        channels: &Channels<'_, E::Param>,
        sums: Option<&[Sums]>,
    ) -> Self {
        let (lanes, count) = (partition.lanes(), partition.channels);
        let start = rows.as_ptr().align_offset(LINE * size_of::<f64>()).min(LINE - 1);
        let rows = &mut rows[start..][..ROWS * Self::stride(lanes)];
        let mut parts = rows.chunks_exact_mut(Self::stride(lanes));
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
            let (first, mut copies) = row.split_at_mut(count);
            while !copies.is_empty() {
                let (copy, rest) = copies.split_at_mut(count.min(copies.len()));
                copy.copy_from_slice(&first[..copy.len()]);
                copies = rest;
            }
        }
        LaneCoefficients { lanes, table: Table::new(rows) }
    }

    /// Those of the first `lanes` lanes.
    pub fn first(self, lanes: usize) -> Self {
        LaneCoefficients { lanes, ..self }
    }

    /// Those of some lanes.
    #[inline(always)]
    pub fn columns(self, range: Range<usize>) -> Self {
        LaneCoefficients { lanes: range.len(), table: self.table.columns(range) }
    }

    /// Six rows, cut to the lanes.
    #[inline(always)]
    fn rows(&self) -> [&'a [f64]; ROWS] {
        self.table.rows(self.lanes)
    }

    /// The coefficients of row after row.
    #[inline(always)]
    pub fn along_rows(self) -> AlongRows<'a> {
        AlongRows { coefficients: self, lane: 0 }
    }

    /// `d = x - mean`, row by row, in x's place.
    #[inline(always)]
    pub fn center<E: Element>(&self, d: &mut [f64]) {
        let lanes = self.lanes;
        let [hi, lo, ..] = self.rows();
        for d in d.chunks_exact_mut(lanes) {
            for lane in 0..lanes {
                d[lane] = deviation::<E>(d[lane], hi[lane], lo[lane]);
            }
        }
    }

    /// `z = d * scale + bias`, row by row.
    #[inline(always)]
    pub fn normalize(&self, d: &[f64], z: &mut [f64]) {
        let lanes = self.lanes;
        let [_, _, scale, bias, ..] = self.rows();
        for (z, d) in z.chunks_exact_mut(lanes).zip(d.chunks_exact(lanes)) {
            for lane in 0..lanes {
                z[lane] = normalize(d[lane], scale[lane], bias[lane]);
            }
        }
    }

    /// `z = (x - mean) * scale + bias`, row by row, in x's place.
    #[inline(always)]
    pub fn normalize_in_place<E: Element>(&self, z: &mut [f64]) {
        let lanes = self.lanes;
        let [hi, lo, scale, bias, ..] = self.rows();
        for z in z.chunks_exact_mut(lanes) {
            for lane in 0..lanes {
                let d = deviation::<E>(z[lane], hi[lane], lo[lane]);
                z[lane] = normalize(d, scale[lane], bias[lane]);
            }
        }
    }

    /// `g = dx`, row by row.
    #[inline(always)]
    pub fn input_gradient(&self, g: &mut [f64], d: &[f64]) {
        let lanes = self.lanes;
        let [_, _, scale, _, mean_g, slope] = self.rows();
        for (g, d) in g.chunks_exact_mut(lanes).zip(d.chunks_exact(lanes)) {
            for lane in 0..lanes {
                g[lane] = block::gradient(g[lane], d[lane], scale[lane], mean_g[lane], slope[lane]);
            }
        }
    }

    /// `g = scale * g`, row by row: dx where the statistics are constants.
    #[inline(always)]
    pub fn scale_rows(&self, g: &mut [f64]) {
        let [_, _, scale, ..] = self.rows();
        for row in g.chunks_exact_mut(self.lanes) {
            for (g, &scale) in row.iter_mut().zip(scale) {
                *g *= scale;
            }
        }
    }

    /// The sums of g and of g * d of each lane over rows, straight from x and dy.
    #[inline(always)]
    pub fn add_sums<E: Element, const RELU: bool, const ADD: bool>(
        &self,
        inputs: BackwardRun<'_, E>,
        sum_g: &mut [f64],
        sum_gd: &mut [f64],
    ) {
        let lanes = self.lanes;
        let block_rows = block_rows::<E>(lanes);
        let rows = inputs.x.len() / lanes;
        for first in (0..rows).step_by(block_rows) {
            let block = first..rows.min(first + block_rows);
            for (index, pack) in packs(lanes).enumerate() {
                let next = block.end * lanes;
                let ahead = [&inputs.x[next..], &inputs.dy[next..]]
                    .map(|next| ahead(next, index, block_rows));
                self.add_pack::<E, RELU, ADD, PACK>(
                    inputs,
                    block.clone(),
                    ahead,
                    pack,
                    sum_g,
                    sum_gd,
                );
            }
            for start in 0..loose_lanes(lanes) {
                let pack = Pack { start, skip: 0 };
                let block = block.clone();
                self.add_pack::<E, RELU, ADD, 1>(inputs, block, [&[]; 2], pack, sum_g, sum_gd);
            }
        }
    }

    /// Adds the sums of a pack's lanes, but for the first `skip`, over a block of rows.
    #[inline(always)]
    fn add_pack<E: Element, const RELU: bool, const ADD: bool, const W: usize>(
        &self,
        inputs: BackwardRun<'_, E>,
        rows: Range<usize>,
        ahead: [&[E]; 2],
        Pack { start, skip }: Pack,
        sum_g: &mut [f64],
        sum_gd: &mut [f64],
    ) {
        let coefficients = LaneChunk(self.table.chunk::<W>(start));
        let (mut g_sums, mut gd_sums) = ([0.0; W], [0.0; W]);
        for (index, row) in rows.enumerate() {
            prefetch_line(ahead[0], index * W);
            prefetch_line(ahead[1], index * W);
            let at = row * self.lanes + start;
            let (x, dy) = (read::<E, W>(inputs.x, at), read::<E, W>(inputs.dy, at));
            let positive = if RELU && ADD { read_bits::<W>(inputs.mask, at) } else { 0 };
            for lane in 0..W {
                let c = coefficients.of(lane);
                let positive = positive >> lane & 1 == 1;
                let (g, d) = backward::<E, RELU, ADD>(x[lane], dy[lane], positive, &c);
                g_sums[lane] += g;
                gd_sums[lane] += g * d;
            }
        }
        for lane in skip..W {
            sum_g[start + lane] += g_sums[lane];
            sum_gd[start + lane] += gd_sums[lane];
        }
    }
}

/// Coefficients of a chunk's lanes.
#[derive(Debug, Clone, Copy)]
pub struct LaneChunk<'a, const N: usize>([&'a [f64; N]; ROWS]);

impl<const N: usize> ChunkCoefficients for LaneChunk<'_, N> {
    #[inline(always)]
    fn of(self, lane: usize) -> ValueCoefficients {
        let [mean_hi, mean_lo, scale, bias, mean_g, slope] = self.0;
        ValueCoefficients {
            mean_hi: mean_hi[lane],
            mean_lo: mean_lo[lane],
            scale: scale[lane],
            bias: bias[lane],
            mean_g: mean_g[lane],
            slope: slope[lane],
        }
    }
}

/// Coefficients along dense rows.
pub struct AlongRows<'a> {
    coefficients: LaneCoefficients<'a>,
    lane: usize,
}

impl<'a> RunCoefficients for AlongRows<'a> {
    type Chunk<const N: usize> = LaneChunk<'a, N>;

    #[inline(always)]
    fn next<const N: usize>(&mut self) -> LaneChunk<'a, N> {
        let chunk = LaneChunk(self.coefficients.table.chunk(self.lane));
        self.lane += N;
        while self.lane >= self.coefficients.lanes {
            self.lane -= self.coefficients.lanes;
        }
        chunk
    }
}
