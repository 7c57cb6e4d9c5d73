//! Coefficients of every lane of a row, and the loops along rows that use them.

use super::block::{self, deviation, normalize};
use super::channel::{Channels, GradientCoefficients, Sums};
use super::convert::Real;
use super::direct::{
    BackwardRun, ChunkCoefficients, Precisions, RunCoefficients, ValueCoefficients, summands,
};
use super::row_sums::{LanePairs, add_rows};
use super::rows::{Part, Partition, Strips};
use super::run::{MAX_CHUNK, read_bits};
use super::simd::{Ring, Table, vectorized};
use super::tile::TILE;
use crate::element::Element;
use std::ops::Range;

/// Coefficients of every lane, a row each: mean hi, mean lo, scale, bias, unit (invstd in f64),
/// mean g, slope. A row goes on with its own beginning, so that a chunk may reach into the next row
/// of the tensor.
#[derive(Debug, Clone, Copy)]
pub struct LaneCoefficients<'a, R = f64> {
    pub lanes: usize,
    table: Table<'a, R, ROWS>,
}

const ROWS: usize = 7;

/// Coefficients of lanes, in one or both precisions.
pub type LanePrecisions<'a> = Precisions<LaneCoefficients<'a>, LaneCoefficients<'a, f32>>;

impl LanePrecisions<'_> {
    /// A channel's sums of g and of g * d, from what its lanes have added up.
    pub fn sums(&self, channel: usize, [g, gd]: [f64; 2]) -> [f64; 2] {
        match self.single {
            Some(single) => {
                let mean = self.double.table.chunk::<1>(channel)[0][0];
                LaneChunk(single.table.chunk::<1>(channel)).of(0).sums(g, gd, mean)
            }
            None => [g, gd],
        }
    }

    /// Those of the first `lanes` lanes.
    pub fn first(self, lanes: usize) -> Self {
        Precisions {
            double: LaneCoefficients { lanes, ..self.double },
            single: self.single.map(|single| LaneCoefficients { lanes, ..single }),
        }
    }
}

impl<'a, R: Real> LaneCoefficients<'a, R> {
    /// Values of a cache line: rows begin with one, so that few loads reach over two.
    const LINE: usize = 64 / size_of::<R>();

    /// Values that the coefficients of `lanes` lanes take.
    pub fn len(lanes: usize) -> usize {
        Self::LINE - 1 + ROWS * Self::stride(lanes)
    }

    fn stride(lanes: usize) -> usize {
        (lanes + MAX_CHUNK).next_multiple_of(Self::LINE)
    }

    /// The table's rows in memory.
    fn rows_in(values: &'a mut [R], lanes: usize) -> &'a mut [R] {
        let start = values.as_ptr().align_offset(64).min(Self::LINE - 1);
        &mut values[start..][..ROWS * Self::stride(lanes)]
    }

    /// The coefficients of row after row.
    #[inline(always)]
    pub fn along_rows(self) -> AlongRows<'a, R> {
        AlongRows(Ring::new(self.table, self.lanes))
    }

    /// The coefficients along a part of rows.
    #[inline(always)]
    pub fn along_part(self, part: &Part) -> AlongRows<'a, R> {
        let Range { start, end } = part.columns;
        AlongRows(Ring::new(self.table.columns(start..end + MAX_CHUNK), end - start))
    }

    /// How a forward call goes over rows of `len` values in all.
    #[inline(always)]
    pub fn strips(&self, len: usize) -> Strips {
        /// Of coefficients, beside the tensors in the first-level cache.
        const BYTES: usize = 12 << 10;
        /// Mean, scale and bias.
        const READ: usize = 3;
        Strips { len, lanes: self.lanes, width: BYTES / (READ * size_of::<R>()) }
    }
}

impl<'a> LaneCoefficients<'a> {
    /// Fills `rows` with the coefficients of every channel, repeated along a folded row; without
    /// sums those of dx are left as they are.
    pub fn fill<E: Element>(
        rows: &'a mut [f64],
        partition: &Partition,
        channels: &Channels<'_, E::Param>,
        sums: Option<&[Sums]>,
    ) -> Self {
        let (lanes, count) = (partition.lanes(), partition.channels);
        let rows = Self::rows_in(rows, lanes);
        let mut parts = rows.chunks_exact_mut(Self::stride(lanes));
        let mut next = || parts.next().expect("ROWS of them");
        let [mean_hi, mean_lo, scale, bias, invstd, mean_g, slope] = [(); ROWS].map(|()| next());
        channels.fill::<E>(
            &mut mean_hi[..count],
            &mut mean_lo[..count],
            &mut scale[..count],
            &mut bias[..count],
            &mut invstd[..count],
        );
        for (channel, &sums) in sums.unwrap_or_default().iter().enumerate() {
            let by = GradientCoefficients::new(&channels.coefficients::<E>(channel), sums);
            (mean_g[channel], slope[channel]) = (by.mean_g, by.slope);
        }
        for row in [&mut *mean_hi, mean_lo, scale, bias, invstd, mean_g, slope] {
            let (first, mut copies) = row.split_at_mut(count);
            while !copies.is_empty() {
                let (copy, rest) = copies.split_at_mut(count.min(copies.len()));
                copy.copy_from_slice(&first[..copy.len()]);
                copies = rest;
            }
        }
        LaneCoefficients { lanes, table: Table::new(rows) }
    }

    /// Beside these, the same in f32, if that is enough for every lane.
    pub fn with_single<E: Element>(self, singles: &'a mut [f32]) -> LanePrecisions<'a> {
        let mut single = None;
        if E::SINGLE {
            let rows = LaneCoefficients::<f32>::rows_in(singles, self.lanes);
            if round_rows::<E>(self, rows) {
                single = Some(LaneCoefficients { lanes: self.lanes, table: Table::new(rows) });
            }
        }
        Precisions { double: self, single }
    }

    /// In f64 only.
    pub fn alone(self) -> LanePrecisions<'a> {
        Precisions { double: self, single: None }
    }

    /// Those of some lanes.
    #[inline(always)]
    pub fn columns(self, range: Range<usize>) -> Self {
        LaneCoefficients { lanes: range.len(), table: self.table.columns(range) }
    }

    /// The rows, cut to the lanes.
    #[inline(always)]
    fn rows(&self) -> [&'a [f64]; ROWS] {
        self.table.rows(self.lanes)
    }

    /// `d = x - mean`, row by row, in x's place.
    #[inline(always)]
    pub fn center<E: Element>(&self, d: &mut [f64]) {
        let lanes = self.lanes;
        let [hi, lo, ..] = self.rows();
        for d in d.chunks_exact_mut(lanes) {
            for lane in 0..lanes {
                d[lane] = deviation::<E, _>(d[lane], hi[lane], lo[lane]);
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
                let d = deviation::<E, _>(z[lane], hi[lane], lo[lane]);
                z[lane] = normalize(d, scale[lane], bias[lane]);
            }
        }
    }

    /// `g = dx`, row by row.
    #[inline(always)]
    pub fn input_gradient(&self, g: &mut [f64], d: &[f64]) {
        let lanes = self.lanes;
        let [_, _, scale, _, _, mean_g, slope] = self.rows();
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
}

vectorized! {
    by_lane
    /// Fills the rows of f32; returns whether that is enough for every lane.
    fn round_rows<'a, 'b, E>(from: LaneCoefficients<'a>, rows: &'b mut [f32]) -> bool {
        let stride = rows.len() / ROWS;
        let [mean, mean_lo, scale, bias, invstd, mean_g, slope] =
            from.table.rows(from.table.width());
        let (to_mean, rows) = rows.split_at_mut(stride);
        let (_, rows) = rows.split_at_mut(stride);
        let (to_scale, rows) = rows.split_at_mut(stride);
        let (to_bias, rows) = rows.split_at_mut(stride);
        let (to_unit, rows) = rows.split_at_mut(stride);
        let (to_mean_g, to_slope) = rows.split_at_mut(stride);
        let mut fits = true;
        for lane in 0..from.lanes + MAX_CHUNK {
            let double = ValueCoefficients {
                mean_hi: mean[lane],
                mean_lo: mean_lo[lane],
                scale: scale[lane],
                bias: bias[lane],
                unit: 1.0,
                mean_g: mean_g[lane],
                slope: slope[lane],
            };
            let (single, this) = double.rounded(invstd[lane]);
            fits &= this;
            to_mean[lane] = single.mean_hi;
            to_scale[lane] = single.scale;
            to_bias[lane] = single.bias;
            to_unit[lane] = single.unit;
            to_mean_g[lane] = single.mean_g;
            to_slope[lane] = single.slope;
        }
        fits
    }
}

impl<R: Real> LaneCoefficients<'_, R> {
    /// The sums of g and of g * d (in units) of each lane over rows, straight from x and dy.
    #[inline(always)]
    pub fn add_sums<E: Element, const RELU: bool, const ADD: bool>(
        &self,
        inputs: BackwardRun<'_, E>,
        sum_g: &mut [f64],
        sum_gd: &mut [f64],
    ) {
        /// Rows that go by before the next columns: while their sums are in the first-level cache.
        const ROWS: usize = 256;
        let (lanes, rows) = (self.lanes, inputs.x.len() / self.lanes);
        let pairs = LaneGradients::<_, _, RELU, ADD> { inputs, coefficients: *self };
        for first in (0..rows).step_by(ROWS) {
            for start in (0..lanes).step_by(TILE) {
                let columns = start..lanes.min(start + TILE);
                let sums = [&mut sum_g[columns.clone()], &mut sum_gd[columns.clone()]];
                add_rows(&pairs, first..rows.min(first + ROWS), lanes, columns, sums);
            }
        }
    }
}

/// g and d (in units) of rows, to be added up.
struct LaneGradients<'a, E, R, const RELU: bool, const ADD: bool> {
    inputs: BackwardRun<'a, E>,
    coefficients: LaneCoefficients<'a, R>,
}

impl<'a, E, R, const RELU: bool, const ADD: bool> LanePairs for LaneGradients<'a, E, R, RELU, ADD>
where
    E: Element,
    R: Real,
{
    type Real = R;
    type Lanes<const N: usize> = LaneChunk<'a, R, N>;

    #[inline(always)]
    fn lanes<const N: usize>(&self, lane: usize) -> LaneChunk<'a, R, N> {
        LaneChunk(self.coefficients.table.chunk(lane))
    }

    #[inline(always)]
    fn pairs<const N: usize>(&self, at: usize, lanes: LaneChunk<'a, R, N>) -> [[R; N]; 2] {
        let (x, dy) = (self.inputs.x.read::<N>(at), self.inputs.dy.read::<N>(at));
        let positive = if RELU && ADD { read_bits::<N>(self.inputs.mask, at) } else { 0 };
        let mut pairs = [[R::default(); N]; 2];
        for index in 0..N {
            let (positive, c) = (positive >> index & 1 == 1, lanes.of(index));
            let (g, d) = summands::<E, R, RELU, ADD>(x[index], dy[index], positive, &c);
            (pairs[0][index], pairs[1][index]) = (g, d);
        }
        pairs
    }

    #[inline(always)]
    fn prefetch(&self, at: usize) {
        self.inputs.x.prefetch(at);
        self.inputs.dy.prefetch(at);
    }
}

/// Coefficients of a chunk's lanes.
#[derive(Debug, Clone, Copy)]
pub struct LaneChunk<'a, R, const N: usize>([&'a [R; N]; ROWS]);

impl<R: Real, const N: usize> ChunkCoefficients for LaneChunk<'_, R, N> {
    type Real = R;

    #[inline(always)]
    fn of(self, lane: usize) -> ValueCoefficients<R> {
        let [mean_hi, mean_lo, scale, bias, unit, mean_g, slope] = self.0;
        ValueCoefficients {
            mean_hi: mean_hi[lane],
            mean_lo: mean_lo[lane],
            scale: scale[lane],
            bias: bias[lane],
            unit: unit[lane],
            mean_g: mean_g[lane],
            slope: slope[lane],
        }
    }
}

/// Coefficients along dense rows.
pub struct AlongRows<'a, R>(Ring<'a, R, ROWS>);

impl<'a, R: Real> RunCoefficients for AlongRows<'a, R> {
    type Real = R;
    type Chunk<const N: usize> = LaneChunk<'a, R, N>;

    #[inline(always)]
    fn next<const N: usize>(&mut self) -> LaneChunk<'a, R, N> {
        LaneChunk(self.0.next())
    }
}
