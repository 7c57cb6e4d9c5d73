//! How dense rows are gone over. What is known of a row's lanes lies in panels, some columns each, and
//! wide rows go in strips, each from the first row to the last: so that what is known of a strip's
//! lanes stays in the first-level cache. Blocks take pieces that fit them.

use super::run::AHEAD;
use super::tile::TILE;
use std::ops::Range;

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

/// The parts of dense rows in the order in which they are gone over: all rows as one part, or strip
/// by strip, and of a strip row by row.
pub struct Parts {
    /// Values of all rows.
    len: usize,
    /// Columns of a row; of all rows if all is one part.
    row: usize,
    /// Columns of a strip, and how many strips a panel has.
    width: usize,
    per_panel: usize,
    /// Columns by which strips begin late, but the first.
    shift: usize,
    ahead: usize,
    /// What comes next: a strip, and where the row begins.
    strip: usize,
    at: usize,
}

impl Parts {
    /// Those of `len` values in rows of `lanes`. Rows of more than `width` columns go in strips: panels,
    /// or halves of them if a panel is wider. Strips begin `shift` columns late, at most
    /// [`MAX_CHUNK`](super::run::MAX_CHUNK).
    #[inline(always)]
    pub fn new(len: usize, lanes: usize, width: usize, shift: usize) -> Self {
        if lanes <= width || len == 0 {
            let (row, width) = (len, len);
            return Parts {
                len,
                row,
                width,
                per_panel: 1,
                shift: 0,
                ahead: AHEAD,
                strip: 0,
                at: 0,
            };
        }
        let panel = panel_width(lanes);
        let per_panel = if panel > width { 2 } else { 1 };
        let width = panel / per_panel;
        let ahead = AHEAD / width * lanes;
        Parts { len, row: lanes, width, per_panel, shift, ahead, strip: 0, at: 0 }
    }
}

impl Iterator for Parts {
    type Item = Part;

    #[inline(always)]
    fn next(&mut self) -> Option<Part> {
        let Parts { row, width, per_panel, ahead, strip, at, .. } = *self;
        if strip * width >= row {
            return None;
        }
        let shift = if strip == 0 { 0 } else { self.shift };
        let start = row.min(strip * width + shift);
        let end = row.min((strip + 1) * width + self.shift);
        self.at += row;
        if self.at >= self.len {
            (self.strip, self.at) = (strip + 1, 0);
        }
        let (panel, column) = match per_panel {
            1 => (strip, shift),
            _ => (strip / 2, strip % 2 * width + shift),
        };
        Some(Part { values: at + start..at + end, panel, column, ahead })
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
