//! A tile: the part of a channel that is worked on at a time, several runs or a piece of one.

use super::block::{self, Deviations};
use super::convert::Real;
use super::direct::{
    BackwardRun, ChannelCoefficients, GradientPairs, ValueCoefficients, with_precision,
};
use super::epilogue;
use super::moments::{Moments, is_far};
use super::run::{AHEAD, Input};
use super::simd::Isa;
use super::sums::PairSums;
use crate::config::Epilogue;
use crate::element::Element;
use ndarray::{ArrayView2, ArrayViewMut2, Axis, Slice};
use std::cell::RefCell;
use std::ops::Range;

/// Values per tile, a multiple of 8: three blocks of f64 share the first-level cache with what is
/// read and written.
pub const TILE: usize = 1024;

/// A thread's blocks: a tile each, at the head of a cache line, and not a multiple of a page apart
/// (a load would wait for the store whose address looks the same).
#[repr(C, align(64))]
pub struct Blocks {
    /// x - mean.
    pub d: [f64; TILE],
    _gap: [f64; 128],
    /// The gradient of z.
    pub g: [f64; TILE],
    _second_gap: [f64; 128],
    /// x, then y; in backward z, where the activation asks for it.
    pub z: [f64; TILE],
}

thread_local! {
    static BLOCKS: RefCell<Box<Blocks>> = RefCell::new(Box::new(Blocks {
        d: [0.0; TILE],
        _gap: [0.0; 128],
        g: [0.0; TILE],
        _second_gap: [0.0; 128],
        z: [0.0; TILE],
    }));
}

/// Calls `f` with this thread's blocks, whatever is in them.
pub fn with_blocks<R>(f: impl FnOnce(&mut Blocks) -> R) -> R {
    BLOCKS.with_borrow_mut(|blocks| f(blocks))
}

/// How a pass makes its outputs.
#[derive(Debug, Clone, Copy)]
pub struct Pass {
    pub epilogue: Epilogue,
    /// Whether they go past the cache.
    pub streaming: bool,
}

impl Pass {
    pub fn without_epilogue(self) -> Self {
        Pass { epilogue: Epilogue::NONE, ..self }
    }
}

/// Rows and columns of one tile of a channel `[N, spatial]`.
#[derive(Debug, Clone)]
pub struct Tile {
    pub rows: Range<usize>,
    pub columns: Range<usize>,
}

/// Values of a tile that is added up straight from the tensors, with no block to hold them: what is done
/// once for a tile is less for a value.
const SUMMED: usize = 4 * TILE;

/// Rows of a tile that is added up, of runs of `columns` values.
pub fn summed_rows(columns: usize) -> usize {
    (SUMMED / columns.max(1)).max(1)
}

/// The tiles of a channel that are added up.
pub fn summed_tiles(rows: usize, columns: usize) -> impl ExactSizeIterator<Item = Tile> + Clone {
    tiles_of(SUMMED, rows, columns)
}

/// The tiles of a channel: several short runs, or a piece of a long one.
pub fn tiles(rows: usize, columns: usize) -> impl ExactSizeIterator<Item = Tile> + Clone {
    tiles_of(TILE, rows, columns)
}

fn tiles_of(
    len: usize,
    rows: usize,
    columns: usize,
) -> impl ExactSizeIterator<Item = Tile> + Clone {
    let tile_columns = columns.clamp(1, len);
    let tile_rows = (len / columns.max(1)).max(1);
    let across = columns.div_ceil(tile_columns);
    let count = if columns == 0 { 0 } else { rows.div_ceil(tile_rows) * across };
    (0..count).map(move |index| {
        let (row, column) = (index / across * tile_rows, index % across * tile_columns);
        Tile {
            rows: row..rows.min(row + tile_rows),
            columns: column..columns.min(column + tile_columns),
        }
    })
}

impl Tile {
    pub fn len(&self) -> usize {
        self.rows.len() * self.columns.len()
    }

    /// Where reads are announced: what follows a tile in memory, several runs of which go by before it.
    fn ahead(&self) -> usize {
        AHEAD / self.rows.len().max(1)
    }

    /// The part of a channel in this tile.
    pub fn cut<'a, T>(&self, tensor: ArrayView2<'a, T>) -> ArrayView2<'a, T> {
        tensor
            .slice_axis_move(Axis(0), Slice::from(self.rows.clone()))
            .slice_axis_move(Axis(1), Slice::from(self.columns.clone()))
    }

    /// The part of a channel in this tile, to write.
    pub fn cut_mut<'a, T>(&self, tensor: &'a mut ArrayViewMut2<'_, T>) -> ArrayViewMut2<'a, T> {
        tensor
            .slice_axis_mut(Axis(0), Slice::from(self.rows.clone()))
            .slice_axis_move(Axis(1), Slice::from(self.columns.clone()))
    }

    fn mask_columns(&self) -> Range<usize> {
        self.columns.start / 8..self.columns.end.div_ceil(8)
    }

    /// The part of a tensor's run in this tile.
    #[inline(always)]
    fn run<'a, T>(&self, tensor: ArrayView2<'a, T>, row: usize) -> &'a [T] {
        let run = tensor.index_axis_move(Axis(0), row).to_slice();
        &run.expect("runs are contiguous")[self.columns.clone()]
    }

    /// The part of a tensor's run in this tile, to write.
    #[inline(always)]
    fn run_mut<'a, T>(&self, tensor: &'a mut ArrayViewMut2<'_, T>, row: usize) -> &'a mut [T] {
        let run = tensor.index_axis_mut(Axis(0), row).into_slice();
        &mut run.expect("runs are contiguous")[self.columns.clone()]
    }

    /// The part of a mask's row in this tile.
    #[inline(always)]
    fn mask_run<'a>(&self, mask: ArrayView2<'a, u8>, row: usize) -> &'a [u8] {
        let run = mask.index_axis_move(Axis(0), row).to_slice();
        &run.expect("runs are contiguous")[self.mask_columns()]
    }

    /// Calls `f` with each run of `tensor` in this tile, beside its part of `block`.
    #[inline(always)]
    fn for_each_run<T>(
        &self,
        tensor: ArrayView2<'_, T>,
        columns: Range<usize>,
        block: &mut [f64],
        mut f: impl FnMut(&[T], &mut [f64]),
    ) {
        for (row, block) in self.rows.clone().zip(block.chunks_mut(self.columns.len())) {
            let run = tensor.index_axis_move(Axis(0), row);
            f(&run.to_slice().expect("runs are contiguous")[columns.clone()], block);
        }
    }

    /// Calls `f` with each run of `tensor` to write, beside its part of `block`.
    #[inline(always)]
    fn for_each_run_mut<T>(
        &self,
        tensor: &mut ArrayViewMut2<'_, T>,
        columns: Range<usize>,
        block: &[f64],
        mut f: impl FnMut(&mut [T], &[f64]),
    ) {
        for (row, block) in self.rows.clone().zip(block.chunks(self.columns.len())) {
            let run = tensor.index_axis_mut(Axis(0), row);
            f(&mut run.into_slice().expect("runs are contiguous")[columns.clone()], block);
        }
    }

    /// `block = tensor`, widened.
    #[inline(always)]
    pub fn gather<E: Element>(&self, isa: impl Isa, tensor: ArrayView2<'_, E>, block: &mut [f64]) {
        self.for_each_run(tensor, self.columns.clone(), block, |run, block| {
            block::load(isa, run, block)
        });
    }

    /// Merges this tile of a channel into the moments of the tiles before it.
    #[inline(always)]
    pub fn measure<E: Element>(
        &self,
        isa: impl Isa,
        tensor: ArrayView2<'_, E>,
        before: Moments,
    ) -> Moments {
        let count = self.len() as f64;
        let inverse = 1.0 / count;
        let mut pivot = match before.count {
            0.0 => tensor[[self.rows.start, self.columns.start]].to_f64(),
            _ => before.mean_hi,
        };
        let [mut first, mut second] = self.deviations(isa, tensor, pivot);
        if is_far::<E>(inverse, first, second) {
            pivot += first * inverse;
            [first, second] = self.deviations(isa, tensor, pivot);
        }
        before.merge(Moments::around(count, inverse, pivot, first, second))
    }

    #[inline(always)]
    fn deviations<E: Element>(
        &self,
        isa: impl Isa,
        tensor: ArrayView2<'_, E>,
        pivot: f64,
    ) -> [f64; 2] {
        let mut sums = PairSums::new();
        for row in self.rows.clone() {
            let values = Input::new(isa, self.run(tensor, row)).announcing(self.ahead());
            sums.add(isa, &Deviations { values, pivot }, values.len());
        }
        sums.totals()
    }

    /// `tensor = block`, rounded once.
    #[inline(always)]
    pub fn scatter<E: Element>(
        &self,
        isa: impl Isa,
        block: &[f64],
        tensor: &mut ArrayViewMut2<'_, E>,
        streaming: bool,
    ) {
        let width = self.columns.len();
        for (row, block) in self.rows.clone().zip(block.chunks(width)) {
            block::store(isa, block, self.run_mut(tensor, row), streaming);
        }
    }

    /// `z = y`; writes the mask.
    #[inline(always)]
    pub fn forward<E: Element>(
        &self,
        isa: impl Isa,
        (x, residual): (ArrayView2<'_, E>, Option<ArrayView2<'_, E>>),
        z: &mut [f64],
        c: &ValueCoefficients<f64>,
        epilogue: Epilogue,
        mask: Option<&mut ArrayViewMut2<'_, u8>>,
    ) {
        self.gather(isa, x, z);
        block::normalize_in_place::<E>(z, c);
        if let Some(residual) = residual {
            self.for_each_run(residual, self.columns.clone(), z, |run, z| {
                block::load_add(isa, run, z)
            });
        }
        if let Some(mask) = mask {
            self.for_each_run_mut(mask, self.mask_columns(), z, |run, z| {
                epilogue::write_mask(epilogue.activation, z, run);
            });
        }
        epilogue::activate(epilogue.activation, E::DTYPE, z);
    }
}

/// What backward reads of one channel, each `[N, spatial]`.
#[derive(Clone, Copy)]
pub struct BackwardInputs<'a, E> {
    pub x: ArrayView2<'a, E>,
    pub dy: ArrayView2<'a, E>,
    pub residual: Option<ArrayView2<'a, E>>,
    pub mask: Option<ArrayView2<'a, u8>>,
}

impl<'a, E: Element> BackwardInputs<'a, E> {
    #[inline(always)]
    fn run<I: Isa>(&self, isa: I, tile: &Tile, row: usize) -> BackwardRun<'a, E, I> {
        let mask = self.mask.map_or(&[][..], |mask| tile.mask_run(mask, row));
        BackwardRun::new(isa, tile.run(self.x, row), tile.run(self.dy, row), mask)
    }

    /// The part in some samples.
    pub fn samples(self, samples: Range<usize>) -> Self {
        let samples = Slice::from(samples);
        BackwardInputs {
            x: self.x.slice_axis_move(Axis(0), samples),
            dy: self.dy.slice_axis_move(Axis(0), samples),
            residual: self.residual.map(|it| it.slice_axis_move(Axis(0), samples)),
            mask: self.mask.map(|it| it.slice_axis_move(Axis(0), samples)),
        }
    }

    /// A tile's sums of g and of g * d, straight from x and dy; `None` where that is for blocks to do.
    #[inline(always)]
    pub fn sums_direct<const RELU: bool, const MASK: bool>(
        &self,
        isa: impl Isa,
        tile: &Tile,
        coefficients: &ChannelCoefficients,
    ) -> Option<[f64; 2]> {
        let mean = coefficients.double.mean_hi;
        with_precision!(E::SINGLE, *coefficients, |coefficients| {
            let [g, gd] = self.sums_in::<_, RELU, MASK>(isa, tile, coefficients);
            coefficients.sums(g, gd, mean)
        })
    }

    #[inline(always)]
    fn sums_in<R: Real, const RELU: bool, const MASK: bool>(
        &self,
        isa: impl Isa,
        tile: &Tile,
        coefficients: ValueCoefficients<R>,
    ) -> [f64; 2] {
        let mut sums = PairSums::new();
        for row in tile.rows.clone() {
            let inputs = self.run(isa, tile, row).announcing(tile.ahead());
            let pairs = GradientPairs::<_, _, R, RELU, MASK> { inputs, coefficients };
            sums.add(isa, &pairs, tile.columns.len());
        }
        sums.totals()
    }
}

/// One channel of a forward call's tensors, each `[N, spatial]`.
pub struct ForwardChannel<'a, E> {
    pub x: ArrayView2<'a, E>,
    pub residual: Option<ArrayView2<'a, E>>,
    pub y: ArrayViewMut2<'a, E>,
    pub mask: Option<ArrayViewMut2<'a, u8>>,
}

/// What backward writes of one channel, each `[N, spatial]`.
pub struct ChannelOutputs<'a, E> {
    pub dx: ArrayViewMut2<'a, E>,
    pub dresidual: Option<ArrayViewMut2<'a, E>>,
}

impl Blocks {
    /// Fills `d` and `g` for a tile.
    #[inline(always)]
    pub fn gather<E: Element>(
        &mut self,
        isa: impl Isa,
        tile: &Tile,
        inputs: &BackwardInputs<'_, E>,
        c: &ValueCoefficients<f64>,
        epilogue: Epilogue,
    ) {
        let len = tile.len();
        let (d, g, z) = (&mut self.d[..len], &mut self.g[..len], &mut self.z[..len]);
        tile.gather(isa, inputs.x, d);
        block::center::<E>(d, c);
        tile.gather(isa, inputs.dy, g);
        let activation = epilogue.activation;
        if let Some(mask) = inputs.mask {
            tile.for_each_run(mask, tile.mask_columns(), g, |mask, g| {
                epilogue::differentiate_by_mask(activation, mask, g);
            });
        } else if activation != crate::config::Activation::Identity {
            block::normalize_from(d, c, z);
            if let Some(residual) = inputs.residual {
                tile.for_each_run(residual, tile.columns.clone(), z, |run, z| {
                    block::load_add(isa, run, z)
                });
            }
            epilogue::differentiate(activation, E::DTYPE, z, g);
        }
    }

    /// The tile's sums of g and of g * d.
    #[inline(always)]
    pub fn sums(&self, isa: impl Isa, len: usize) -> [f64; 2] {
        block::gradient_sums(isa, &self.g[..len], &self.d[..len])
    }
}
