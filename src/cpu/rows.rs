//! Rows, of channels-last tensors or whole samples: how they are folded, cut into parts and shared out
//! over threads.
//!
//! A lane is a channel, or one of a channel's `positions` neighbouring lanes, or, where rows are short
//! and leave no gaps, one of several neighbouring rows': `fold` rows count as one, so that loops
//! along a row are long enough. What is left over is one shorter row, the tail. Rows are cut into
//! parts that follow from the shape, and from whether rows leave gaps.

use super::moments::Lanes;
use super::parallel::{Along, Bundle, Order, for_each};
use super::tile::{Blocks, TILE, with_blocks};

/// How rows are folded, cut and shared out; follows from the shape (and from whether rows leave
/// gaps).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    pub channels: usize,
    /// Neighbouring lanes that are one channel's.
    pub positions: usize,
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
    /// For `[outer, rows, channels * positions]` tensors; `dense` if none has gaps (and `outer` is 1).
    pub fn new(
        rows: [usize; 2],
        [channels, positions]: [usize; 2],
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
        let row = channels * positions;
        let fold =
            if dense && (!masked || row.is_multiple_of(8)) { LONG_ROW.div_ceil(row) } else { 1 };
        let lanes = fold * row;
        let tail_rows = rows % fold;
        let rows = [outer, rows / fold];
        let axis = usize::from(outer <= 1);
        let parts = (rows[0] * rows[1] * lanes / MIN_PART)
            .clamp(1, MAX_PARTS)
            .min((MAX_PARTIALS / lanes).max(1));
        Partition {
            channels,
            positions,
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
        self.fold * self.row()
    }

    pub fn tail_lanes(&self) -> usize {
        self.tail_rows * self.row()
    }

    /// Lanes of a row before it is folded.
    pub fn row(&self) -> usize {
        self.channels * self.positions
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
