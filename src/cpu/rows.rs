//! Rows of channels-last tensors: how they are folded, cut into parts and shared out over threads,
//! and the pieces and packs that kernels go through.
//!
//! A lane is a channel, or, where channels are few and rows leave no gaps, one of several
//! neighbouring rows' channels: `fold` rows count as one, so that loops along a row are long
//! enough. What is left over is one shorter row, the tail. Rows are cut into parts that follow
//! from the shape alone.

use super::moments::Lanes;
use super::parallel::{Along, Bundle, Order, for_each};
use super::run::AHEAD;
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

/// Columns of a panel at most: of what is known of a row's lanes.
pub const PANEL: usize = 1024;

/// Columns of a panel: whole lines, and whole bytes of a mask, of half of them too.
#[inline(always)]
pub fn panel_width(lanes: usize) -> usize {
    lanes.div_ceil(lanes.div_ceil(PANEL)).next_multiple_of(64)
}

/// The columns of each panel.
#[inline(always)]
pub fn panel_columns(lanes: usize) -> impl Iterator<Item = Range<usize>> {
    let width = panel_width(lanes);
    (0..lanes.div_ceil(width)).map(move |index| index * width..lanes.min((index + 1) * width))
}

/// Neighbouring values, which are gone over in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub values: Range<usize>,
    pub panel: usize,
    /// The first value's, in the panel.
    pub column: usize,
    /// Where reads are announced, from what is read on.
    pub ahead: usize,
}

/// The parts of dense rows in the order in which they are gone over. Wide rows go in strips of
/// columns, each from the first row to the last, so that what is known of its lanes stays in the
/// first-level cache; else all is one part.
pub struct Parts {
    /// Values of all rows.
    len: usize,
    /// Columns of a row; of all rows if all is one part.
    row: usize,
    panel_width: usize,
    /// Columns of a strip.
    width: usize,
    /// Columns by which strips begin late, but the first.
    shift: usize,
    /// Where the row begins.
    at: usize,
    /// Where the strip would begin, in the row and in the panel.
    start: usize,
    column: usize,
    panel: usize,
    ahead: usize,
}

impl Parts {
    /// Those of `len` values in rows of `lanes`, in strips of about `width` (a panel or half of one at
    /// least). Strips begin `shift` columns late, at most [`MAX_CHUNK`](super::run::MAX_CHUNK).
    #[inline(always)]
    pub fn new(len: usize, lanes: usize, width: usize, shift: usize) -> Self {
        let panel_width = panel_width(lanes);
        let one = Parts {
            len,
            row: len,
            panel_width,
            width: len,
            shift: 0,
            at: 0,
            start: 0,
            column: 0,
            panel: 0,
            ahead: AHEAD,
        };
        if lanes <= width || len == 0 {
            return one;
        }
        let width = if panel_width > width { panel_width / 2 } else { panel_width };
        Parts { row: lanes, width, shift, ahead: AHEAD / width * lanes, ..one }
    }
}

impl Iterator for Parts {
    type Item = Part;

    #[inline(always)]
    fn next(&mut self) -> Option<Part> {
        let Parts { row, width, at, start, column, panel, ahead, .. } = *self;
        if start >= row {
            return None;
        }
        let shift = if start == 0 { 0 } else { self.shift };
        let (first, end) = (row.min(start + shift), row.min(start + width + self.shift));
        self.at += row;
        if self.at >= self.len {
            (self.at, self.start, self.column) = (0, start + width, column + width);
            if self.column >= self.panel_width {
                (self.panel, self.column) = (panel + 1, 0);
            }
        }
        Some(Part { values: at + first..at + end, panel, column: column + shift, ahead })
    }
}

/// Parts of a row, a panel wide, or of several whole rows, `len` values in all, that fit a tile: the
/// range of values and the columns.
#[inline(always)]
pub fn pieces(len: usize, lanes: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let width = panel_width(lanes);
    let step = TILE / lanes.min(width) * lanes;
    let per_row = lanes.div_ceil(width);
    let count = if per_row > 1 { len / lanes * per_row } else { len.div_ceil(step) };
    (0..count).map(move |index| {
        if per_row > 1 {
            let (row, column) = (index / per_row, index % per_row * width);
            let end = lanes.min(column + width);
            (row * lanes + column..row * lanes + end, column..end)
        } else {
            (index * step..len.min(index * step + step), 0..lanes)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::run::MAX_CHUNK;

    #[test]
    fn parts_and_pieces_hold_every_value_once() {
        for lanes in [1, 64, 100, 512, 513, 600, 1024, 1031, 5000] {
            for rows in [0, 1, 2, 7] {
                let len = rows * lanes;
                let mut taken = vec![0; len];
                for (width, shift) in [(512, 0), (512, 12), (1024, 0), (1024, 31)] {
                    for Part { values, panel, column, .. } in Parts::new(len, lanes, width, shift) {
                        let (first, end) = (values.start, column + values.len());
                        assert!(
                            values.is_empty()
                                || first % lanes == panel * panel_width(lanes) + column,
                            "{rows}x{lanes}"
                        );
                        assert!(lanes <= width || end <= PANEL + MAX_CHUNK, "{rows}x{lanes}");
                        taken[values].iter_mut().for_each(|it| *it += 1);
                    }
                }
                let panels: Vec<_> = panel_columns(lanes).collect();
                for (values, columns) in pieces(len, lanes) {
                    assert!(panels.contains(&columns) && values.len() <= TILE);
                    taken[values].iter_mut().for_each(|it| *it += 1);
                }
                assert!(taken.iter().all(|&it| it == 5), "{rows}x{lanes}");
            }
        }
    }
}
