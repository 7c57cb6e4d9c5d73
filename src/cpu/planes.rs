//! Channels-first tensors as planes, `[N, spatial]` for each channel: how they are shared out over
//! threads, and cut where there are few of them.

use super::parallel::{Bundle, Order, for_each};
use super::tile::{Blocks, TILE, with_blocks};

/// Values that the last-level cache keeps until they are read again, beside what else is there.
pub const SLAB: usize = 1 << 20;

/// How channels are cut and shared out; follows from the shape alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// The axis that parts are cut along: 0 (batch) or 2 (spatial).
    axis: usize,
    /// Its extent.
    len: usize,
    /// Its extent in one part.
    grain: usize,
    /// Channels per task.
    channels: usize,
    /// Whether tasks are shared out over threads. Results do not depend on it.
    parallel: bool,
}

impl Partition {
    pub fn new(batch: usize, channels: usize, spatial: usize, threads: usize) -> Self {
        /// Enough channels to keep any number of threads in work.
        const MANY_CHANNELS: usize = 32;
        const MAX_PARTS: usize = 32;
        const MIN_PART: usize = 16 * TILE;
        const MIN_TASK: usize = 8 * TILE;
        /// For each thread, so that none waits long for the last.
        const TASKS: usize = 4;
        let values = batch * spatial;
        let wanted = match channels {
            MANY_CHANNELS.. => 1,
            _ => (values / MIN_PART).clamp(1, MAX_PARTS),
        };
        let (axis, len, unit) = if batch >= wanted { (0, batch, 1) } else { (2, spatial, TILE) };
        let grain = len.div_ceil(wanted).next_multiple_of(unit).max(1);
        let parallel = threads > 1;
        let task = (channels * values / (TASKS * threads)).clamp(MIN_TASK, SLAB);
        let per_task = match (parallel, axis) {
            (false, _) => usize::MAX,
            // In a piece of each plane the channels do not lie side by side.
            (true, 2) => 1,
            (true, _) => task.div_ceil(values.max(1)),
        };
        Partition { axis, len, grain, channels: per_task, parallel }
    }

    /// Parts per channel.
    pub fn parts(&self) -> usize {
        self.len.div_ceil(self.grain).max(1)
    }

    /// Calls `f` with each task's first channel and its bundle: whole channels.
    pub fn for_each_channels<B: Bundle>(
        &self,
        bundle: B,
        channels: usize,
        f: &(impl Fn(usize, B, &mut Blocks) + Sync),
    ) {
        for_each(bundle, 1, 0..channels, self.channels, Order::Forwards, &|start, bundle| {
            with_blocks(|blocks| f(start, bundle, blocks));
        });
    }

    /// Calls `f` with each task's first channel and its bundle: channels, cut into parts.
    pub fn for_each_part<B: Bundle>(
        &self,
        bundle: B,
        channels: usize,
        f: &(impl Fn(usize, B, &mut Blocks) + Sync),
    ) {
        let grain = if self.parallel { self.grain } else { self.len };
        for_each(bundle, self.axis, 0..self.len, grain, Order::Forwards, &|_, bundle| {
            self.for_each_channels(bundle, channels, f);
        });
    }

    /// One part of a bundle to read.
    pub fn part_of<B: Bundle>(&self, bundle: B, part: usize) -> B {
        let start = part * self.grain;
        let len = self.grain.min(self.len - start);
        bundle.split(self.axis, start).1.split(self.axis, len).0
    }
}
