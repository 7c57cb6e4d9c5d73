//! Coefficients of every lane of a row, and the loops along rows that use them.

use super::block::{self, deviation, normalize};
use super::channel::{Channels, GradientCoefficients, Sums};
use super::convert::Real;
use super::direct::{
    BackwardRun, ChunkCoefficients, Precisions, RunCoefficients, ValueCoefficients, summands,
};
use super::row_sums::{LanePairs, add_rows, rows_together};
use super::rows::Partition;
use super::run::{self, MAX_CHUNK, read_bits};
use super::simd::{Isa, vectorized};
use super::strips::{PANEL, Part, Parts, panel_columns, panel_width};
use crate::element::Element;
use crate::error::Result;
use crate::memory::filled;
use std::ops::Range;

/// Coefficients of neighbouring lanes, a row each: mean hi, mean lo, scale, bias, unit (invstd in f64),
/// mean g, slope. A row goes on with what comes next in the tensor, so that a chunk may reach into the
/// next panel or row. Rows lie a constant number of values apart: one register points to all of them.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub struct Panel<R>([[R; PAD + PANEL + MAX_CHUNK]; ROWS]);

const ROWS: usize = 7;

/// Columns before the first lane's at most, less one: so many that the chunks which loops begin with a
/// cache line of the output find their coefficients at the head of one, too.
const PAD: usize = 16;

impl<R: Real> Panel<R> {
    /// How many panels the coefficients of so many lanes take.
    pub fn count(lanes: usize) -> usize {
        lanes.div_ceil(panel_width(lanes))
    }

    /// `len` of them.
    pub fn filled(len: usize) -> Result<Vec<Self>> {
        filled(len, Panel([[R::default(); _]; ROWS]))
    }

    /// The columns `at..at + N` of every row.
    #[inline(always)]
    fn chunk<const N: usize>(&self, at: usize) -> LaneChunk<'_, R, N> {
        let [a, b, c, d, e, f, g] = &self.0;
        LaneChunk([
            run::at(a, at),
            run::at(b, at),
            run::at(c, at),
            run::at(d, at),
            run::at(e, at),
            run::at(f, at),
            run::at(g, at),
        ])
    }
}

/// Coefficients of every lane of a row, in panels.
#[derive(Debug, Clone, Copy)]
pub struct LaneCoefficients<'a, R = f64> {
    pub lanes: usize,
    /// Values of the output before its first cache line.
    pub head: usize,
    panels: &'a [Panel<R>],
}

/// Coefficients of lanes, in one or both precisions.
pub type LanePrecisions<'a> = Precisions<LaneCoefficients<'a>, LaneCoefficients<'a, f32>>;

impl LanePrecisions<'_> {
    /// A channel's sums of g and of g * d, from what its lanes have added up.
    #[inline]
    pub fn sums(&self, channel: usize, [g, gd]: [f64; 2]) -> [f64; 2] {
        match self.single {
            Some(single) => {
                let mean = self.double.lane(channel).mean_hi;
                single.lane(channel).sums(g, gd, mean)
            }
            None => [g, gd],
        }
    }

    /// Those of a panel.
    pub fn columns(self, range: Range<usize>) -> Self {
        Precisions {
            double: self.double.columns(range.clone()),
            single: self.single.map(|single| single.columns(range)),
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
    /// Columns of a panel before the first lane's.
    #[inline(always)]
    fn pad(&self) -> usize {
        self.head.wrapping_neg() % PAD
    }

    /// Those of a lane.
    fn lane(&self, lane: usize) -> ValueCoefficients<R> {
        let width = panel_width(self.lanes);
        self.panels[lane / width].chunk::<1>(self.pad() + lane % width).of(0)
    }

    /// The panel that begins at a column.
    #[inline(always)]
    fn panel(&self, column: usize) -> &'a Panel<R> {
        &self.panels[column / panel_width(self.lanes)]
    }

    /// Those of a panel.
    #[inline(always)]
    pub fn columns(self, range: Range<usize>) -> Self {
        let panel = self.panel(range.start);
        LaneCoefficients { lanes: range.len(), panels: std::slice::from_ref(panel), ..self }
    }

    /// The parts of rows of `len` values in all.
    #[inline(always)]
    pub fn parts(&self, len: usize) -> Parts {
        /// Of a coefficient's columns, of which a few lie beside the tensors in the first-level cache.
        const BYTES: usize = 4 << 10;
        Parts::new(len, self.lanes, BYTES / size_of::<R>(), self.head)
    }

    /// The coefficients along a part of rows.
    #[inline(always)]
    pub fn along(self, part: &Part) -> AlongRows<'a, R> {
        let pad = self.pad();
        let (at, end) = (pad + part.column, pad + self.lanes);
        AlongRows { panel: &self.panels[part.panel], at, end, period: self.lanes }
    }
}

impl<'a> LaneCoefficients<'a> {
    /// Fills the panels with the coefficients of every channel, repeated along a folded row; without
    /// sums those of dx are left as they are.
    pub fn fill<E: Element>(
        panels: &'a mut [Panel<f64>],
        partition: &Partition,
        channels: &Channels<'_, E::Param>,
        sums: Option<&[Sums]>,
        head: usize,
    ) -> Self {
        let lanes = partition.lanes();
        let pad = LaneCoefficients::<f64> { lanes, head, panels: &[] }.pad();
        let panels = &mut panels[..Panel::<f64>::count(lanes)];
        for (panel, columns) in panels.iter_mut().zip(panel_columns(lanes)) {
            let width = columns.len() + MAX_CHUNK;
            let range = columns.start..partition.row().min(columns.start + width);
            let (count, positions) = (range.len(), partition.positions);
            panel.fill::<E>(pad, range, positions, channels, sums);
            match columns.start {
                0 => panel.repeat(pad..pad + width, count),
                _ => panel.fill::<E>(pad + count, 0..width - count, positions, channels, sums),
            }
        }
        LaneCoefficients { lanes, head, panels }
    }

    /// [`fill`](Self::fill) with what multiplies by the scale and no more.
    pub fn fill_scale<E: Element>(
        panels: &'a mut [Panel<f64>],
        partition: &Partition,
        channels: &Channels<'_, E::Param>,
        head: usize,
    ) -> Self {
        let filled = LaneCoefficients::fill::<E>(panels, partition, channels, None, head);
        let (lanes, count) = (filled.lanes, filled.panels.len());
        let panels = &mut panels[..count];
        for Panel([mean_hi, mean_lo, _scale, bias, ..]) in &mut *panels {
            for row in [mean_hi, mean_lo, bias] {
                row.fill(0.0);
            }
        }
        LaneCoefficients { lanes, head, panels }
    }

    /// Beside these, the same in f32, if that is enough for every lane.
    pub fn with_single<E: Element>(self, singles: &'a mut [Panel<f32>]) -> LanePrecisions<'a> {
        let mut single = None;
        if E::SINGLE {
            let singles = &mut singles[..self.panels.len()];
            if round_panels::<E>(self, singles) {
                let LaneCoefficients { lanes, head, .. } = self;
                single = Some(LaneCoefficients { lanes, head, panels: singles });
            }
        }
        Precisions { double: self, single }
    }

    /// In f64 only.
    pub fn alone(self) -> LanePrecisions<'a> {
        Precisions { double: self, single: None }
    }

    /// The rows of the one panel, cut to the lanes.
    #[inline(always)]
    fn rows(&self) -> [&'a [f64]; ROWS] {
        let [a, b, c, d, e, f, g] = &self.panels[0].0;
        let pad = self.pad();
        [a, b, c, d, e, f, g].map(|row| &row[pad..pad + self.lanes])
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

impl Panel<f64> {
    /// Fills the columns from `at` on with the coefficients of some lanes of a row, of which each channel
    /// has so many `positions`.
    fn fill<E: Element>(
        &mut self,
        at: usize,
        lanes: Range<usize>,
        positions: usize,
        channels: &Channels<'_, E::Param>,
        sums: Option<&[Sums]>,
    ) {
        let range = lanes.start / positions..lanes.end.div_ceil(positions);
        let rows = self.0.each_mut().map(|row| &mut row[at..at + range.len()]);
        fill_rows::<E>(rows, channels.range(range.clone()), sums.map(|sums| &sums[range.clone()]));
        if positions > 1 {
            for row in &mut self.0 {
                let row = &mut row[at..at + lanes.len()];
                // From the end on, where what is overwritten has been copied.
                for (column, lane) in lanes.clone().enumerate().rev() {
                    row[column] = row[lane / positions - range.start];
                }
            }
        }
    }

    /// Fills columns with the first `count` of them over and over again.
    fn repeat(&mut self, columns: Range<usize>, count: usize) {
        for row in &mut self.0 {
            let row = &mut row[columns.clone()];
            let mut filled = count;
            while filled < row.len() {
                let next = filled.min(row.len() - filled);
                row.copy_within(..next, filled);
                filled += next;
            }
        }
    }
}

vectorized! {
    /// Fills rows with the coefficients of channels.
    fn fill_rows<'a, E>(
        rows: [&'a mut [f64]; ROWS],
        channels: Channels<'a, E::Param>,
        sums: Option<&'a [Sums]>,
    ) {
        let [mean_hi, mean_lo, scale, bias, invstd, mean_g, slope] = rows;
        channels.fill::<E>(mean_hi, mean_lo, scale, bias, invstd);
        let Some(sums) = sums else { return };
        let to = mean_g.iter_mut().zip(slope).zip(&*invstd);
        for (((mean_g, slope), &invstd), &sums) in to.zip(sums) {
            let by = GradientCoefficients::new(invstd, sums);
            (*mean_g, *slope) = (by.mean_g, by.slope);
        }
    }
}

vectorized! {
    /// Fills the panels of f32; returns whether that is enough for every lane.
    fn round_panels<'a, 'b, E>(from: LaneCoefficients<'a>, to: &'b mut [Panel<f32>]) -> bool {
        let (mut fits, pad) = (true, from.pad());
        let panels = from.panels.iter().zip(to);
        for ((from, to), columns) in panels.zip(panel_columns(from.lanes)) {
            let [mean, mean_lo, scale, bias, invstd, mean_g, slope] = &from.0;
            let [to_mean, _, to_scale, to_bias, to_unit, to_mean_g, to_slope] = &mut to.0;
            for lane in pad..pad + columns.len() + MAX_CHUNK {
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
        }
        fits
    }
}

impl<R: Real> LaneCoefficients<'_, R> {
    /// The sums of g and of g * d (in units) of each lane over rows, straight from x and dy.
    #[inline(always)]
    pub fn add_sums<E: Element, const RELU: bool, const MASK: bool>(
        &self,
        isa: impl Isa,
        inputs: BackwardRun<'_, E, impl Isa>,
        sum_g: &mut [f64],
        sum_gd: &mut [f64],
    ) {
        let (lanes, rows) = (self.lanes, inputs.x.len() / self.lanes);
        // Panel by panel, but of few rows at a time: in the order of memory.
        let together = rows_together::<R>(lanes);
        for first in (0..rows).step_by(together) {
            let rows = first..rows.min(first + together);
            for columns in panel_columns(lanes) {
                let (panel, pad) = (self.panel(columns.start), self.pad());
                let start = columns.start;
                let pairs = LaneGradients::<_, _, _, RELU, MASK> { inputs, panel, pad, start };
                let sums = [&mut sum_g[columns.clone()], &mut sum_gd[columns.clone()]];
                add_rows(isa, &pairs, rows.clone(), lanes, columns, sums);
            }
        }
    }
}

/// g and d (in units) of a panel's columns, to be added up.
struct LaneGradients<'a, E, I, R, const RELU: bool, const MASK: bool> {
    inputs: BackwardRun<'a, E, I>,
    panel: &'a Panel<R>,
    pad: usize,
    /// The panel's first column.
    start: usize,
}

impl<'a, E, I, R, const RELU: bool, const MASK: bool> LanePairs
    for LaneGradients<'a, E, I, R, RELU, MASK>
where
    E: Element,
    I: Isa,
    R: Real,
{
    type Real = R;
    type Lanes<const N: usize> = LaneChunk<'a, R, N>;

    #[inline(always)]
    fn lanes<const N: usize>(&self, lane: usize) -> LaneChunk<'a, R, N> {
        self.panel.chunk(self.pad + (lane - self.start))
    }

    #[inline(always)]
    fn pairs<const N: usize>(&self, at: usize, lanes: LaneChunk<'a, R, N>) -> [[R; N]; 2] {
        let (x, dy) = (self.inputs.x.read::<N>(at), self.inputs.dy.read::<N>(at));
        let positive = if MASK { read_bits::<N>(self.inputs.mask, at) } else { 0 };
        let mut pairs = [[R::default(); N]; 2];
        for index in 0..N {
            let (positive, c) = (positive >> index & 1 == 1, lanes.of(index));
            let (g, d) = summands::<E, R, RELU, MASK>(x[index], dy[index], positive, &c);
            (pairs[0][index], pairs[1][index]) = (g, d);
        }
        pairs
    }

    #[inline(always)]
    fn prefetch<const N: usize>(&self, at: usize) {
        self.inputs.x.prefetch::<N>(at);
        self.inputs.dy.prefetch::<N>(at);
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
pub struct AlongRows<'a, R> {
    panel: &'a Panel<R>,
    /// Before the end.
    at: usize,
    /// Where the columns begin anew, of which there are so many.
    end: usize,
    period: usize,
}

impl<'a, R: Real> RunCoefficients for AlongRows<'a, R> {
    type Real = R;
    type Chunk<const N: usize> = LaneChunk<'a, R, N>;

    #[inline(always)]
    fn next<const N: usize>(&mut self) -> LaneChunk<'a, R, N> {
        let at = self.at;
        self.at += N;
        while self.at >= self.end {
            self.at -= self.period;
        }
        self.panel.chunk(at)
    }
}
