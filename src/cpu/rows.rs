//! Rows of channels-last tensors: how they are folded, cut into parts and shared out over threads,
//! and the pieces and packs that kernels go through.
//!
//! A lane is a channel, or, where channels are few and rows leave no gaps, one of several
//! neighbouring rows' channels: `fold` rows count as one, so that loops along a row are long
//! enough. What is left over is one shorter row, the tail. Rows are cut into parts that follow
//! from the shape alone.

use super::moments::Lanes;
use super::parallel::{Along, Bundle, Order, for_each};
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

    /// Calls `f` with the tail, then with tasks of rows, the last ones first: bundle and extents of
    /// its first axes. What has gone by before in the order of memory is in the cache at its end.
    pub fn for_each_rows<B: Bundle>(
        &self,
        bundle: B,
        f: &(impl Fn(B, [usize; 2], usize, &mut Blocks) + Sync),
    ) {
        const MIN_TASK: usize = 64 * TILE;
        let (folded, tail) = self.folded(bundle);
        let across = self.rows[1 - self.axis] * self.lanes();
        let len = self.rows[self.axis];
        let grain = MIN_TASK.div_ceil(across.max(1));
        if let Some(tail) = tail {
            with_blocks(|blocks| f(tail, [1, 1], self.tail_lanes(), blocks));
        }
        let f = |start: usize, bundle: B| {
            let mut rows = self.rows;
            rows[self.axis] = grain.min(len - start);
            with_blocks(|blocks| f(bundle, rows, self.lanes(), blocks));
        };
        let order = if self.parallel { Order::Backwards } else { Order::BackwardsAlone };
        for_each(folded, self.axis, 0..len, grain, order, &f);
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
        for_each(Along::<1, _>(main), 1, 0..len, grain, Order::Forwards, &run);
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

/// How dense rows are gone over: along all of them, or, where what is known of a row's lanes would
/// leave the first-level cache before the next row, in strips of columns, each from the first row to
/// the last.
#[derive(Debug, Clone, Copy)]
pub struct Strips {
    /// Values of all rows.
    pub len: usize,
    /// Values of a row.
    pub lanes: usize,
    /// Columns of a strip, about.
    pub width: usize,
}

/// Neighbouring values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub values: Range<usize>,
    /// Of the first row, if they are several.
    pub columns: Range<usize>,
    /// How far ahead reads are announced, if they must be: the hardware does not foresee the next row
    /// of a strip.
    pub ahead: Option<usize>,
}

impl Strips {
    /// What is gone over in one go, in order.
    #[inline(always)]
    pub fn parts(self) -> impl Iterator<Item = Part> {
        const ROWS_AHEAD: usize = 4;
        let Strips { len, lanes, width } = self;
        // Whole lines, and whole bytes of a mask.
        let width = lanes.div_ceil(lanes.div_ceil(width)).next_multiple_of(64);
        let (rows, strips) =
            if lanes > width { (len / lanes, lanes.div_ceil(width)) } else { (1, 1) };
        (0..rows * strips).map(move |index| {
            if strips == 1 {
                return Part { values: 0..len, columns: 0..lanes, ahead: None };
            }
            let (row, start) = (index % rows * lanes, index / rows * width);
            let columns = start..lanes.min(start + width);
            let values = row + columns.start..row + columns.end;
            Part { values, columns, ahead: Some(ROWS_AHEAD * lanes) }
        })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_hold_every_value_once() {
        for lanes in [1, 64, 100, 512, 513, 600, 1024, 1031, 5000] {
            for rows in [0, 1, 2, 7] {
                let len = rows * lanes;
                let mut taken = vec![0; len];
                for Part { values, columns, ahead } in (Strips { len, lanes, width: 512 }).parts() {
                    assert_eq!(values.start % lanes, columns.start, "{rows}x{lanes}");
                    assert!(values.len() == columns.len() || (ahead, lanes <= 512) == (None, true));
                    taken[values].iter_mut().for_each(|it| *it += 1);
                }
                assert!(taken.iter().all(|&it| it == 1), "{rows}x{lanes}");
            }
        }
    }
}
