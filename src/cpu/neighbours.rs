//! Direct loops over channels-first tensors: over one channel, or over several small ones. Those
//! lie side by side in every sample, and are written together, sample by sample, in the order of
//! memory.

use super::direct::{
    BackwardRun, ChannelCoefficients, Direct, Forward, Gradient, with_forward, with_gradient,
    with_precision,
};
use super::planes::SLAB;
use super::run::{AHEAD, Input, Output};
use super::simd::{Isa, vectorized};
use super::tensor::{BackwardTensors, ForwardTensors, GradientTensors};
use super::tile::{TILE, summed_rows};
use crate::element::Element;
use ndarray::{ArrayView2, ArrayView3, ArrayViewMut2, ArrayViewMut3, Axis, Slice};
use std::ops::Range;

/// Neighbours at most.
pub const MAX_GROUP: usize = 256;

/// How a task's channels are grouped, and the samples that are done at a time.
#[derive(Debug, Clone, Copy)]
pub struct Grouping {
    channels: usize,
    /// Channels of a group, at most [`MAX_GROUP`].
    size: usize,
    batch: usize,
    /// Samples that are written at a time.
    step: usize,
    /// Samples that are added up at a time: whole tiles, so that a channel's are the same wherever a
    /// task begins.
    tile: usize,
}

impl Grouping {
    /// For passes that read a channel twice. Short runs make up for their distance only side by side:
    /// as many neighbours as the last-level cache surely holds. Channels of long runs go by
    /// themselves, a few samples at a time, so that the next one is read while this one is written.
    pub fn twice((batch, channels, spatial): (usize, usize, usize)) -> Self {
        const SHORT_RUN: usize = 8192;
        const STEP: usize = 4 * TILE;
        let tile = summed_rows(spatial);
        if spatial < SHORT_RUN {
            let size = (SLAB / (batch * spatial).max(1)).clamp(1, MAX_GROUP);
            Grouping { channels, size, batch, step: batch.max(1), tile }
        } else {
            let step = STEP.div_ceil(spatial).next_multiple_of(tile);
            Grouping { channels, size: 1, batch, step, tile: step }
        }
    }

    /// For passes that read a channel once: many neighbours, in the order of memory.
    pub fn once((batch, channels, _): (usize, usize, usize)) -> Self {
        Grouping { channels, size: MAX_GROUP, batch, step: batch.max(1), tile: batch.max(1) }
    }

    /// The channels of every group.
    pub fn groups(self) -> impl Iterator<Item = Range<usize>> {
        (0..self.channels).step_by(self.size).map(move |start| self.group(start))
    }

    /// The group that begins with channel `start`; empty behind the last.
    pub fn group(self, start: usize) -> Range<usize> {
        start.min(self.channels)..self.channels.min(start + self.size)
    }

    /// Samples to be written at a time.
    pub fn steps(self) -> impl Iterator<Item = Range<usize>> {
        steps(0..self.batch, self.step)
    }

    /// Parts of `samples` to be added up at a time.
    pub fn tiles(self, samples: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        steps(samples, self.tile)
    }
}

fn steps(range: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(step).map(move |start| start..end.min(start + step))
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
}

impl<'a, E> ForwardGroup<'a, E> {
    /// One channel in some samples, without a mask.
    pub fn of_one(
        x: ArrayView2<'a, E>,
        residual: Option<ArrayView2<'a, E>>,
        y: ArrayViewMut2<'a, E>,
    ) -> Self {
        ForwardGroup {
            x: x.insert_axis(Axis(1)),
            residual: residual.map(|residual| residual.insert_axis(Axis(1))),
            y: y.insert_axis(Axis(1)),
            mask: None,
        }
    }

    pub fn new(
        (x, residual, y, mask): &'a mut ForwardTensors<'_, E>,
        group: Range<usize>,
        samples: Range<usize>,
    ) -> Self {
        let cut = |tensor: ArrayView3<'a, E>| part(tensor, group.clone(), samples.clone());
        ForwardGroup {
            x: cut(x.reborrow()),
            residual: residual.as_ref().map(|residual| cut(residual.reborrow())),
            y: part_mut(y, group.clone(), samples.clone()),
            mask: mask.as_mut().map(|mask| part_mut(&mut mask.0, group.clone(), samples.clone())),
        }
    }
}

vectorized! {
    |isa|
    /// Writes y (and the mask) of neighbours that are [direct](ChannelCoefficients::are_direct).
    pub fn apply_group<'a, 'b, E>(
        group: ForwardGroup<'a, E>,
        coefficients: &'b [ChannelCoefficients],
        direct: Direct,
        streaming: bool,
    ) {
        let mut group = group;
        for index in 0..group.x.len_of(Axis(0)) {
            with_forward!(direct, |FLOOR, ADD| {
                forward_sample::<E, FLOOR, ADD>(isa, &mut group, index, coefficients, direct, streaming);
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
fn forward_sample<E: Element, const FLOOR: bool, const ADD: bool>(
    isa: impl Isa,
    group: &mut ForwardGroup<'_, E>,
    index: usize,
    coefficients: &[ChannelCoefficients],
    direct: Direct,
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
        let x = Input::new(isa, &x[run.clone()]).announcing(AHEAD);
        let y = Output::new(isa, &mut y[run.clone()], streaming);
        let residual = Input::new(isa, if ADD { &residual[run] } else { &[] }).announcing(AHEAD);
        with_precision!(E::SINGLE && !ADD, coefficients, |coefficients| {
            let floor = direct.floor::<E>();
            Forward::<_, _, _, FLOOR, ADD> { x, residual, y, mask: mask_run, floor, coefficients }
                .run();
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
}

impl<'a, E> GradientGroup<'a, E> {
    pub fn new(
        (x, dy, _, mask): BackwardTensors<'a, E>,
        (dx, dresidual): &'a mut GradientTensors<'_, E>,
        group: Range<usize>,
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
        }
    }
}

vectorized! {
    |isa|
    /// Writes dx (and dresidual) of neighbours that are [direct](ChannelCoefficients::are_direct).
    pub fn write_group<'a, 'b, E>(
        group: GradientGroup<'a, E>,
        coefficients: &'b [ChannelCoefficients],
        direct: Direct,
        frozen: bool,
        streaming: bool,
    ) {
        let mut group = group;
        for index in 0..group.x.len_of(Axis(0)) {
            with_gradient!(direct, frozen, |RELU, MASK, FROZEN| {
                let (group, c) = (&mut group, coefficients);
                gradient_sample::<E, RELU, MASK, FROZEN>(isa, group, index, c, streaming);
            });
        }
    }
}

#[inline(always)]
fn gradient_sample<E: Element, const RELU: bool, const MASK: bool, const FROZEN: bool>(
    isa: impl Isa,
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
    if !MASK && !dresidual.is_empty() {
        dresidual.copy_from_slice(dy);
    }
    for (channel, &coefficients) in coefficients.iter().enumerate() {
        let run = channel * len..(channel + 1) * len;
        let mask = if MASK { &mask[channel * mask_len..][..mask_len] } else { &[] };
        let dx = Output::new(isa, &mut dx[run.clone()], streaming);
        let dresidual = dresidual.get_mut(run.clone()).unwrap_or_default();
        let dresidual = Output::new(isa, dresidual, streaming);
        let inputs = BackwardRun::new(isa, &x[run.clone()], &dy[run], mask).announcing(AHEAD);
        with_precision!(E::SINGLE, coefficients, |coefficients| {
            Gradient::<_, _, _, RELU, MASK, FROZEN> { inputs, dx, dresidual, coefficients }.run();
        });
    }
}
