//! Rows of channels-last tensors: how they are folded, cut into parts and shared out over threads,
//! and the pieces and packs that kernels go through.
//!
//! A lane is a channel, or, where channels are few and rows leave no gaps, one of several
//! neighbouring rows' channels: `fold` rows count as one, so that loops along a row are long
//! enough. What is left over is one shorter row, the tail. Rows are cut into parts that follow
//! from the shape alone.

use super::convert::Real;
use super::moments::Lanes;
use super::parallel::{Along, Bundle, for_each};
use super::tile::{Blocks, TILE, with_blocks};
use std::ops::Range;

/// How rows are folded, cut and shared out; follows from the shape alone (and from whether rows
/// leave gaps).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    pub channels: usize,
    /// Rows that count as one.
    pub fold: usize,
    /// The first two extents, folded.
    rows: [usize; 2],
    /// Rows that folding leaves over.
    tail_rows: usize,
    /// The axis that parts are cut along, and its extent in one part.
    axis: usize,
    grain: usize,
    /// Whether parts are shared out over threads. Results do not depend on it.
    parallel: bool,
}

impl Partition {
    /// For `[outer, rows, channels]` tensors; `dense` if none has gaps (and `outer` is 1).
    pub fn new(
        rows: [usize; 2],
        channels: usize,
        dense: bool,
        masked: bool,
        parallel: bool,
    ) -> Self {
        let [outer, rows] = rows;
        /// Values in a row that make loops along it long enough.
        const LONG_ROW: usize = 64;
        const MIN_PART: usize = 64 * TILE;
        const MAX_PARTS: usize = 32;
        /// Parts times lanes: what bounds the workspace.
        const MAX_PARTIALS: usize = 16384;
        // A mask's rows are whole bytes: they can be folded where they hold no padding.
        let fold = if dense && (!masked || channels.is_multiple_of(8)) {
            LONG_ROW.div_ceil(channels)
        } else {
            1
        };
        let lanes = fold * channels;
        let tail_rows = rows % fold;
        let rows = [outer, rows / fold];
        let axis = usize::from(outer <= 1);
        let parts = (rows[0] * rows[1] * lanes / MIN_PART)
            .clamp(1, MAX_PARTS)
            .min((MAX_PARTIALS / lanes).max(1));
        Partition {
            channels,
            fold,
            rows,
            tail_rows,
            axis,
            grain: rows[axis].div_ceil(parts).max(1),
            parallel,
        }
    }

    /// Lanes of a folded row.
    pub fn lanes(&self) -> usize {
        self.fold * self.channels
    }

    pub fn tail_lanes(&self) -> usize {
        self.tail_rows * self.channels
    }

    /// Parts of the rows, the tail not counted.
    pub fn parts(&self) -> usize {
        if self.rows.contains(&0) { 0 } else { self.rows[self.axis].div_ceil(self.grain) }
    }

    /// Parts, the tail counted.
    pub fn partials(&self) -> usize {
        self.parts() + usize::from(self.tail_rows > 0)
    }

    /// How many values of a lane a part holds.
    pub fn count(&self, part: usize) -> f64 {
        let start = part * self.grain;
        let len = self.grain.min(self.rows[self.axis] - start);
        (len * self.rows[1 - self.axis]) as f64
    }

    /// The folded rows, and the tail as one row.
    fn folded<B: Bundle>(&self, bundle: B) -> (B, Option<B>) {
        if self.fold == 1 {
            return (bundle, None);
        }
        let (folded, tail) = bundle.split(1, self.rows[1] * self.fold);
        let tail = (self.tail_rows > 0).then(|| tail.reshape(1));
        (folded.reshape(self.rows[1]), tail)
    }

    /// Calls `f` with tasks of rows, then with the tail: bundle and extents of its first axes.
    pub fn for_each_rows<B: Bundle>(
        &self,
        bundle: B,
        f: &(impl Fn(B, [usize; 2], usize, &mut Blocks) + Sync),
    ) {
        const MIN_TASK: usize = 16 * TILE;
        let (folded, tail) = self.folded(bundle);
        let across = self.rows[1 - self.axis] * self.lanes();
        let len = self.rows[self.axis];
        let grain = if self.parallel { MIN_TASK.div_ceil(across.max(1)) } else { len };
        for_each(folded, self.axis, 0, len, grain, &|start, bundle| {
            let mut rows = self.rows;
            rows[self.axis] = grain.min(len - start);
            with_blocks(|blocks| f(bundle, rows, self.lanes(), blocks));
        });
        if let Some(tail) = tail {
            with_blocks(|blocks| f(tail, [1, 1], self.tail_lanes(), blocks));
        }
    }

    /// Calls `f` for every part (the tail is the last) with its share of `[partials, width]`.
    pub fn for_each_partial<B: Bundle + Copy + Sync>(
        &self,
        inputs: B,
        partials: &mut [f64],
        width: usize,
        f: &(impl Fn(B, [usize; 2], usize, &mut [f64]) + Sync),
    ) {
        let (folded, tail) = self.folded(inputs);
        let partials = &mut partials[..self.partials() * width];
        let (main, tail_partial) = partials.split_at_mut(self.parts() * width);
        let len = main.len();
        let run = |start: usize, partials: Along<'_, 1, f64>| {
            for (offset, partial) in partials.0.chunks_exact_mut(width).enumerate() {
                let start = (start / width + offset) * self.grain;
                let mut rows = self.rows;
                rows[self.axis] = self.grain.min(self.rows[self.axis] - start);
                let part = folded.split(self.axis, start).1.split(self.axis, rows[self.axis]).0;
                f(part, rows, self.lanes(), partial);
            }
        };
        let grain = if self.parallel { width } else { len };
        for_each(Along::<1, _>(main), 1, 0, len, grain, &run);
        if let Some(tail) = tail {
            f(tail, [1, 1], self.tail_lanes(), tail_partial);
        }
    }

    /// The partials in order: which, its lanes, and how many values it holds of each.
    pub fn sources(&self) -> impl Iterator<Item = (usize, usize, f64)> {
        let tail = (self.tail_rows > 0).then(|| (self.parts(), self.tail_lanes(), 1.0));
        (0..self.parts()).map(|part| (part, self.lanes(), self.count(part))).chain(tail)
    }

    /// Values that the partials of all lanes take, with room for merging them.
    pub fn partials_len(&self) -> usize {
        Lanes::ROWS * (self.partials() * self.lanes() + self.channels)
    }
}

/// Lanes whose sums are kept in registers while a block's rows go by.
pub const PACK: usize = 16;

/// How many rows' results are added up before they are added to sums in f64: all where they are
/// f64, few where they are f32, whose digits are enough for so many.
#[inline(always)]
pub fn together<R: Real>(rows: usize) -> usize {
    if R::SINGLE { 8 } else { rows.max(1) }
}

/// Adds the sums of some rows to those of all.
#[inline(always)]
pub fn collect<R: Real, const W: usize>(sums: &mut [f64; W], some: &[R; W]) {
    for lane in 0..W {
        sums[lane] += some[lane].extend();
    }
}

/// Rows of a block: in the second-level cache for all packs once the first has read them, and
/// enough to make up for what a pack costs beside its rows.
pub fn block_rows<E>(lanes: usize) -> usize {
    const BLOCK: usize = 64 << 10;
    (BLOCK / (lanes * size_of::<E>())).clamp(32, 128)
}

/// A pack: its first lane, and how many of its lanes the pack before it held.
pub struct Pack {
    pub start: usize,
    pub skip: usize,
}

/// The packs of a row. The last one overlaps its neighbour where lanes are no multiple of a pack.
#[inline(always)]
pub fn packs(lanes: usize) -> impl Iterator<Item = Pack> {
    let count = if lanes < PACK { 0 } else { lanes.div_ceil(PACK) };
    (0..count).map(move |index| {
        let start = (index * PACK).min(lanes - PACK);
        Pack { start, skip: index * PACK - start }
    })
}

/// Lanes that are too few for a pack.
#[inline(always)]
pub fn loose_lanes(lanes: usize) -> usize {
    if lanes < PACK { lanes } else { 0 }
}

/// What to prefetch while a pack goes through its rows, a pack's width per row: together the packs
/// of this block bring the next one into the cache, in the order of memory. Their own reads jump
/// from row to row, which the hardware does not foresee.
#[inline(always)]
pub fn ahead<E>(next: &[E], pack: usize, block_rows: usize) -> &[E] {
    let start = next.len().min(pack * block_rows * PACK);
    &next[start..next.len().min(start + block_rows * PACK)]
}

/// Parts of a row of `lanes` or of several whole rows, `len` values in all, that fit a tile: the
/// range of values and the columns.
#[inline(always)]
pub fn pieces(len: usize, lanes: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let columns = lanes.min(TILE);
    let step = TILE / columns * columns;
    let per_row = if lanes > TILE { lanes.div_ceil(TILE) } else { 1 };
    let count = if lanes > TILE { len / lanes * per_row } else { len.div_ceil(step) };
    (0..count).map(move |index| {
        if lanes > TILE {
            let (row, column) = (index / per_row, index % per_row * TILE);
            let end = lanes.min(column + TILE);
            (row * lanes + column..row * lanes + end, column..end)
        } else {
            (index * step..len.min(index * step + step), 0..lanes)
        }
    })
}
