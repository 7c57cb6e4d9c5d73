//! [`RequestedBytes`]: what a plan asks memory for.

use super::launcher::DeviceFacts;
use super::plan::{BLOCK, Geometry, Pass, Plan};
use super::resident::SLOT_GRANULE;
use crate::problem::{Operand, Problem};

/// Bytes that a plan asks memory for, exactly, by tensor. What L2 serves of them is not taken off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestedBytes {
    /// Loads of x.
    pub x: u64,
    /// Loads of the residual.
    pub residual: u64,
    /// Loads of dy.
    pub dy: u64,
    /// Stores of y.
    pub y: u64,
    /// Stores of dx.
    pub dx: u64,
    /// Stores of dresidual, if it is wanted.
    pub dresidual: u64,
    /// Loads of the mask: a byte for every pack, whatever number of its bits the pack needs, and for
    /// every part of one.
    pub mask_read: u64,
    /// Stores of the mask.
    pub mask_written: u64,
}

impl RequestedBytes {
    /// All of them.
    pub fn total(&self) -> u64 {
        let tensors = self.x + self.residual + self.dy + self.y + self.dx + self.dresidual;
        tensors + self.mask_read + self.mask_written
    }
}

impl Plan {
    /// What the plan's launch asks memory for, but for what it keeps per channel.
    pub fn requested_bytes(&self, problem: &Problem) -> RequestedBytes {
        let size = problem.dtype().size() as u64;
        let tensor = problem.elements() as u64 * size;
        let when = |condition: bool| if condition { tensor } else { 0 };
        let (epilogue, pass) = (problem.epilogue(), self.pass);
        let reads_residual = match pass {
            Pass::Statistics => false,
            Pass::Apply | Pass::Inference | Pass::Forward => epilogue.residual,
            Pass::Reduce | Pass::Gradient | Pass::Backward => epilogue.backward_reads_residual(),
            Pass::Frozen => epilogue.inference_backward_reads_residual(),
        };
        // What did not stay on chip is read a second time: all inputs of a backward, but only x of
        // a forward, whose residual waits.
        let again = self.evicted_elements(problem) * size;
        let if_backward = |read: u64| if pass.reads_dy() && read > 0 { read + again } else { read };
        let touches_mask = |touches: bool| touches && epilogue.has_mask();
        RequestedBytes {
            x: tensor + again,
            residual: if_backward(when(reads_residual)),
            dy: if_backward(when(pass.reads_dy())),
            y: when(pass.writes_y()),
            dx: when(pass.writes_dx()),
            dresidual: when(pass.writes_dx() && epilogue.residual),
            mask_read: match touches_mask(pass.reads_mask()) {
                true => self.packs(problem) + self.evicted(problem, Plan::packs_before),
                false => 0,
            },
            mask_written: match (touches_mask(pass.writes_mask()), self.geometry) {
                (false, _) => 0,
                (true, Geometry::Columns { rows, columns, .. }) => rows * columns.div_ceil(8),
                (true, Geometry::Planes { .. }) => problem.mask_len() as u64,
            },
        }
    }

    /// What of it should reach memory, an estimate: L2 serves the second read of what half of it holds,
    /// in each turn of the teams. In the plans of one call, `is_second` is the second.
    pub fn hbm_bytes(&self, problem: &Problem, facts: &DeviceFacts, is_second: bool) -> u64 {
        let bytes = self.requested_bytes(problem);
        let read_before = match self.pass {
            Pass::Apply => bytes.x,
            Pass::Gradient => bytes.x + bytes.dy + bytes.residual,
            _ => 0,
        };
        let size = problem.dtype().size() as u64;
        let residual = u64::from(problem.epilogue().backward_reads_residual());
        let inputs = if self.pass == Pass::Backward { 2 + residual } else { 1 };
        let again = inputs * self.evicted_elements(problem) * size;
        let held = facts.held_by_l2();
        let turns = (self.groups * u64::from(self.parts)).div_ceil(u64::from(self.grid));
        let from_l2 = if is_second { read_before.min(held) } else { again.min(held * turns) };
        bytes.total() - from_l2
    }

    /// Elements that make room on chip for later ones, and are read again.
    pub fn evicted_elements(&self, problem: &Problem) -> u64 {
        self.evicted(problem, Plan::elements_before)
    }

    /// What is brought twice, as `before` counts.
    fn evicted(&self, problem: &Problem, before: Before) -> u64 {
        let slots = u64::from(self.slots);
        if slots == 0 || self.steps() <= slots {
            return 0;
        }
        // Of each part: the windows or rows of all rounds but its last, which is full.
        let evicted = |count: u64, per_step: u64| {
            let steps = count.div_ceil(per_step).next_multiple_of(SLOT_GRANULE);
            steps.saturating_sub(slots) * per_step
        };
        let parts = |whole: u64, part: u64| {
            (0..u64::from(self.parts)).map(move |index| {
                let start = (index * part).min(whole);
                (start, part.min(whole - start))
            })
        };
        match self.geometry {
            Geometry::Columns { rows, rows_per_part, packs_per_tile, .. } => {
                let height = u64::from(BLOCK / packs_per_tile);
                parts(rows, rows_per_part)
                    // Rows are all alike: as many as before the row of that number.
                    .map(|(_, rows)| before(self, problem, 0, evicted(rows, height)))
                    .sum()
            }
            Geometry::Planes { windows, windows_per_part, .. } => {
                let whole = problem.batch() as u64 * windows;
                let block = u64::from(BLOCK);
                let of_channel = |channel: u64| {
                    parts(whole, windows_per_part)
                        .map(|(start, count)| {
                            let end = start + evicted(count, block);
                            before(self, problem, channel, end)
                                - before(self, problem, channel, start)
                        })
                        .sum::<u64>()
                };
                (0..problem.channels() as u64).map(of_channel).sum()
            }
        }
    }

    /// Packs that a thread goes through.
    fn steps(&self) -> u64 {
        match self.geometry {
            Geometry::Columns { rows_per_part, packs_per_tile, .. } => {
                rows_per_part.div_ceil(u64::from(BLOCK / packs_per_tile))
            }
            Geometry::Planes { windows_per_part, .. } => windows_per_part.div_ceil(BLOCK.into()),
        }
    }

    /// Elements of a channel that lie before one of its windows, or of all before a row.
    fn elements_before(&self, problem: &Problem, channel: u64, place: u64) -> u64 {
        match self.geometry {
            Geometry::Columns { columns, .. } => place * columns,
            Geometry::Planes { windows, .. } => {
                let (sample, window) = (place / windows, place % windows);
                let spatial = problem.spatial() as u64;
                let shift = self.shift(problem, sample, channel);
                let in_plane = (window * u64::from(self.pack)).saturating_sub(shift).min(spatial);
                sample * spatial + in_plane
            }
        }
    }

    /// Packs, whole or in part, likewise, of planes that lie alike in all samples.
    fn packs_before(&self, problem: &Problem, channel: u64, place: u64) -> u64 {
        let pack = u64::from(self.pack);
        match self.geometry {
            Geometry::Columns { columns, .. } => place * columns / pack,
            Geometry::Planes { windows, .. } => {
                let (sample, window) = (place / windows, place % windows);
                let shift = self.shift(problem, sample, channel);
                let (first, last) =
                    (shift / pack, (shift + problem.spatial() as u64).div_ceil(pack));
                sample * (last - first) + window.clamp(first, last) - first
            }
        }
    }

    /// All packs of a tensor, whole or in part.
    fn packs(&self, problem: &Problem) -> u64 {
        match self.geometry {
            Geometry::Columns { rows, .. } => self.packs_before(problem, 0, rows),
            Geometry::Planes { windows, .. } => (0..problem.channels() as u64)
                .map(|channel| {
                    self.packs_before(problem, channel, problem.batch() as u64 * windows)
                })
                .sum(),
        }
    }

    /// Elements from the boundary before a plane to its first: `Planes::cut` in `kernels/walk.cuh`.
    fn shift(&self, problem: &Problem, sample: u64, channel: u64) -> u64 {
        let Geometry::Planes { misalignment, boundary, .. } = self.geometry else { return 0 };
        let before = match boundary > self.pack {
            true => 0,
            false => u64::from(misalignment) + sample * problem.batch_stride(Operand::X) as u64,
        };
        (before + channel * problem.spatial() as u64) % u64::from(boundary)
    }
}

/// A count of what a channel has before one of its windows, or all channels before a row.
type Before = fn(&Plan, &Problem, u64, u64) -> u64;
