//! Direct loops over channels-first tensors: over one channel, or over several small ones. Those
//! lie side by side in every sample, and are written together, sample by sample, in the order of
//! memory.

use super::channels_first::{BackwardTensors, ForwardTensors, GradientTensors};
use super::direct::{
    BackwardRun, ChannelCoefficients, Direct, Forward, Gradient, with_direct, with_precision,
};
use super::run::Output;
use super::simd::{prefetch, vectorized};
use super::tile::{TILE, tile_rows};
use crate::element::Element;
use ndarray::{ArrayView3, ArrayViewMut3, Axis, Slice};
use std::ops::Range;

/// Neighbours at most.
pub const MAX_GROUP: usize = 64;

/// How a task's channels are grouped, and the samples that are done at a time.
#[derive(Debug, Clone, Copy)]
pub struct Grouping {
    channels: usize,
    /// Channels of a group, at most [`MAX_GROUP`].
    size: usize,
    batch: usize,
    step: usize,
}

impl Grouping {
    /// Neighbours whose tensors fit a second-level cache together; single channels where runs are
    /// so long that the hardware foresees what comes. Single channels are done a few samples at a
    /// time, so that other work can go between.
    pub fn new((batch, channels, spatial): (usize, usize, usize)) -> Self {
        const SHORT_RUN: usize = 256;
        const GROUP: usize = 32 << 10;
        const STEP: usize = 4 * TILE;
        if spatial < SHORT_RUN {
            let size = (GROUP / (batch * spatial).max(1)).clamp(1, MAX_GROUP);
            Grouping { channels, size, batch, step: batch.max(1) }
        } else {
            // Whole tiles: a channel's are then the same wherever a task begins.
            let step = STEP.div_ceil(spatial).next_multiple_of(tile_rows(spatial));
            Grouping { channels, size: 1, batch, step }
        }
    }

    /// The channels of every group.
    pub fn groups(self) -> impl Iterator<Item = Range<usize>> {
        (0..self.channels).step_by(self.size).map(move |start| self.group(start))
    }

    /// The group that begins with channel `start`; empty behind the last.
    pub fn group(self, start: usize) -> Range<usize> {
        start.min(self.channels)..self.channels.min(start + self.size)
    }

    /// What is brought into the cache while the group before `next` is written: the hardware does
    /// not foresee short runs.
    pub fn ahead(self, next: Range<usize>) -> Range<usize> {
        if self.size > 1 { next } else { next.start..next.start }
    }

    /// Samples to be done at a time.
    pub fn steps(self) -> impl Iterator<Item = Range<usize>> {
        let Grouping { batch, step, .. } = self;
        (0..batch).step_by(step).map(move |start| start..batch.min(start + step))
    }
}

/// Some channels of a tensor, in some samples.
fn part<T>(
    tensor: ArrayView3<'_, T>,
    channels: Range<usize>,
    samples: Range<usize>,
) -> ArrayView3<'_, T> {
    tensor
        .slice_axis_move(Axis(0), Slice::from(samples))
        .slice_axis_move(Axis(1), Slice::from(channels))
}

/// Some channels of a tensor to write, in some samples.
fn part_mut<'a, T>(
    tensor: &'a mut ArrayViewMut3<'_, T>,
    channels: Range<usize>,
    samples: Range<usize>,
) -> ArrayViewMut3<'a, T> {
    tensor
        .slice_axis_mut(Axis(0), Slice::from(samples))
        .slice_axis_move(Axis(1), Slice::from(channels))
}

/// Neighbours of a forward call's tensors.
pub struct ForwardGroup<'a, E> {
    x: ArrayView3<'a, E>,
    residual: Option<ArrayView3<'a, E>>,
    y: ArrayViewMut3<'a, E>,
    mask: Option<ArrayViewMut3<'a, u8>>,
    /// The next neighbours' x, brought into the cache meanwhile.
    ahead: ArrayView3<'a, E>,
}

impl<'a, E> ForwardGroup<'a, E> {
    pub fn new(
        (x, residual, y, mask): &'a mut ForwardTensors<'_, E>,
        group: Range<usize>,
        ahead: Range<usize>,
        samples: Range<usize>,
    ) -> Self {
        let cut = |tensor: ArrayView3<'a, E>| part(tensor, group.clone(), samples.clone());
        ForwardGroup {
            x: cut(x.reborrow()),
            residual: residual.as_ref().map(|residual| cut(residual.reborrow())),
            y: part_mut(y, group.clone(), samples.clone()),
            mask: mask.as_mut().map(|mask| part_mut(&mut mask.0, group.clone(), samples.clone())),
            ahead: part(x.reborrow(), ahead, samples.clone()),
        }
    }
}

vectorized! {
    /// Writes y (and the mask) of neighbours.
    pub fn apply_group<'a, 'b, E>(
        group: ForwardGroup<'a, E>,
        coefficients: &'b [ChannelCoefficients],
        direct: Direct,
        streaming: bool,
    ) {
        let mut group = group;
        for index in 0..group.x.len_of(Axis(0)) {
            prefetch(sample(group.ahead, index));
            with_direct!(direct, |RELU, ADD| {
                forward_sample::<E, RELU, ADD>(&mut group, index, coefficients, streaming);
            });
        }
    }
}

/// A tensor's values of one sample.
#[inline(always)]
fn sample<T>(tensor: ArrayView3<'_, T>, index: usize) -> &[T] {
    tensor.index_axis_move(Axis(0), index).to_slice().expect("channels lie side by side")
}

/// A tensor's values of one sample, to write.
#[inline(always)]
fn sample_mut<'a, T>(tensor: &'a mut ArrayViewMut3<'_, T>, index: usize) -> &'a mut [T] {
    tensor.index_axis_mut(Axis(0), index).into_slice().expect("channels lie side by side")
}

#[inline(always)]
fn forward_sample<E: Element, const RELU: bool, const ADD: bool>(
    group: &mut ForwardGroup<'_, E>,
    index: usize,
    coefficients: &[ChannelCoefficients],
    streaming: bool,
) {
    let (len, mask_len) = (group.x.len_of(Axis(2)), group.x.len_of(Axis(2)).div_ceil(8));
    let x = sample(group.x, index);
    let residual = group.residual.map_or(&[][..], |residual| sample(residual, index));
    let y = sample_mut(&mut group.y, index);
    let mut mask = group.mask.as_mut().map_or(&mut [][..], |mask| sample_mut(mask, index));
    for (channel, &coefficients) in coefficients.iter().enumerate() {
        let run = channel * len..(channel + 1) * len;
        let mask_run = mask.split_off_mut(..mask_len.min(mask.len())).unwrap_or_default();
        let (x, y) = (&x[run.clone()], Output::new(&mut y[run.clone()], streaming));
        let residual = if ADD { &residual[run] } else { &[] };
        let coefficients = if ADD { coefficients.without_single() } else { coefficients };
        with_precision!(E, coefficients, |coefficients| {
            Forward::<_, _, RELU, ADD> { x, residual, y, mask: mask_run, coefficients }.run();
        });
    }
}

/// Neighbours of a backward call's tensors.
pub struct GradientGroup<'a, E> {
    x: ArrayView3<'a, E>,
    dy: ArrayView3<'a, E>,
    mask: Option<ArrayView3<'a, u8>>,
    dx: ArrayViewMut3<'a, E>,
    dresidual: Option<ArrayViewMut3<'a, E>>,
    /// The next neighbours' x and dy, brought into the cache meanwhile.
    ahead: [ArrayView3<'a, E>; 2],
}

impl<'a, E> GradientGroup<'a, E> {
    pub fn new(
        (x, dy, _, mask): BackwardTensors<'a, E>,
        (dx, dresidual): &'a mut GradientTensors<'_, E>,
        group: Range<usize>,
        ahead: Range<usize>,
        samples: Range<usize>,
    ) -> Self {
        let cut_mut =
            |it: &'a mut ArrayViewMut3<'_, E>| part_mut(it, group.clone(), samples.clone());
        GradientGroup {
            dx: cut_mut(dx),
            dresidual: dresidual.as_mut().map(cut_mut),
            x: part(x, group.clone(), samples.clone()),
            dy: part(dy, group.clone(), samples.clone()),
            mask: mask.map(|mask| part(mask.0, group.clone(), samples.clone())),
            ahead: [x, dy].map(|it| part(it, ahead.clone(), samples.clone())),
        }
    }
}

vectorized! {
    /// Writes dx (and dresidual) of neighbours.
    pub fn write_group<'a, 'b, E>(
        group: GradientGroup<'a, E>,
        coefficients: &'b [ChannelCoefficients],
        direct: Direct,
        frozen: bool,
        streaming: bool,
    ) {
        let mut group = group;
        for index in 0..group.x.len_of(Axis(0)) {
            prefetch(sample(group.ahead[0], index));
            prefetch(sample(group.ahead[1], index));
            with_direct!(direct, |RELU, ADD| {
                let (group, c) = (&mut group, coefficients);
                match frozen {
                    true => gradient_sample::<E, RELU, ADD, true>(group, index, c, streaming),
                    false => gradient_sample::<E, RELU, ADD, false>(group, index, c, streaming),
                }
            });
        }
    }
}

#[inline(always)]
fn gradient_sample<E: Element, const RELU: bool, const ADD: bool, const FROZEN: bool>(
    group: &mut GradientGroup<'_, E>,
    index: usize,
    coefficients: &[ChannelCoefficients],
    streaming: bool,
) {
    let (len, mask_len) = (group.x.len_of(Axis(2)), group.x.len_of(Axis(2)).div_ceil(8));
    let (x, dy) = (sample(group.x, index), sample(group.dy, index));
    let mask = group.mask.map_or(&[][..], |mask| sample(mask, index));
    let dx = sample_mut(&mut group.dx, index);
    let dresidual = group.dresidual.as_mut().map_or(&mut [][..], |it| sample_mut(it, index));
    for (channel, &coefficients) in coefficients.iter().enumerate() {
        let run = channel * len..(channel + 1) * len;
        let mask = if RELU && ADD { &mask[channel * mask_len..][..mask_len] } else { &[] };
        let dx = Output::new(&mut dx[run.clone()], streaming);
        let dresidual = dresidual.get_mut(run.clone()).unwrap_or_default();
        let dresidual = Output::new(dresidual, streaming);
        let inputs = BackwardRun { x: &x[run.clone()], dy: &dy[run], mask };
        with_precision!(E, coefficients, |coefficients| {
            Gradient::<_, _, RELU, ADD, FROZEN> { inputs, dx, dresidual, coefficients }.run();
        });
    }
}
