//! Channels-first kernels, on `[N, C, spatial]` views whose last axis is contiguous.
//!
//! A thread takes a channel at a time: moments tile by tile, then apply while the channel is still
//! in cache. The next channel's moments are taken between the tiles of this one's apply, so that
//! memory is read while it is written. Few large channels are cut into parts along N or the
//! spatial axis instead, and go through the split form.

use super::block;
use super::channel::{
    Channels, Coefficients, GradientCoefficients, SavedChannel, Sums, advance_running,
};
use super::direct::Direct;
use super::moments::Moments;
use super::parallel::{Along, Bits, Bundle, for_each};
use super::simd::{Output, finish_streaming, vectorized};
use super::tile::{BackwardInputs, Blocks, Pass, TILE, Tile, tiles, with_blocks};
use crate::config::Epilogue;
use crate::element::{Element, Param};
use ndarray::{ArrayView2, ArrayView3, ArrayViewMut2, ArrayViewMut3, Axis};

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
    pub fn new(batch: usize, channels: usize, spatial: usize, parallel: bool) -> Self {
        /// Enough channels to keep any number of threads in work.
        const MANY_CHANNELS: usize = 32;
        const MAX_PARTS: usize = 32;
        const MIN_PART: usize = 16 * TILE;
        const MIN_TASK: usize = 8 * TILE;
        let values = batch * spatial;
        let wanted = match channels {
            MANY_CHANNELS.. => 1,
            _ => (values / MIN_PART).clamp(1, MAX_PARTS),
        };
        let (axis, len, unit) = if batch >= wanted { (0, batch, 1) } else { (2, spatial, TILE) };
        let grain = len.div_ceil(wanted).next_multiple_of(unit).max(1);
        let per_task = if parallel { MIN_TASK.div_ceil(values.max(1)) } else { usize::MAX };
        Partition { axis, len, grain, channels: per_task, parallel }
    }

    /// Parts per channel.
    pub fn parts(&self) -> usize {
        self.len.div_ceil(self.grain).max(1)
    }

    /// Calls `f` with each task's first channel and its bundle: whole channels.
    fn for_each_channels<B: Bundle>(
        &self,
        bundle: B,
        channels: usize,
        f: &(impl Fn(usize, B, &mut Blocks) + Sync),
    ) {
        for_each(bundle, 1, 0, channels, self.channels, &|start, bundle| {
            with_blocks(|blocks| f(start, bundle, blocks));
        });
    }

    /// Calls `f` with each task's first channel and its bundle: channels, cut into parts.
    fn for_each_part<B: Bundle>(
        &self,
        bundle: B,
        channels: usize,
        f: &(impl Fn(usize, B, &mut Blocks) + Sync),
    ) {
        let grain = if self.parallel { self.grain } else { self.len };
        for_each(bundle, self.axis, 0, self.len, grain, &|_, bundle| {
            self.for_each_channels(bundle, channels, f);
        });
    }

    /// One part of a bundle to read.
    fn part_of<B: Bundle>(&self, bundle: B, part: usize) -> B {
        let start = part * self.grain;
        let len = self.grain.min(self.len - start);
        bundle.split(self.axis, start).1.split(self.axis, len).0
    }
}

/// The tensors of a forward call.
pub type ForwardTensors<'a, E> = (
    ArrayView3<'a, E>,
    Option<ArrayView3<'a, E>>,
    ArrayViewMut3<'a, E>,
    Option<Bits<ArrayViewMut3<'a, u8>>>,
);

/// The tensors that backward reads.
pub type BackwardTensors<'a, E> = (
    ArrayView3<'a, E>,
    ArrayView3<'a, E>,
    Option<ArrayView3<'a, E>>,
    Option<Bits<ArrayView3<'a, u8>>>,
);

/// The tensors that backward writes: dx and dresidual.
pub type GradientTensors<'a, E> = (ArrayViewMut3<'a, E>, Option<ArrayViewMut3<'a, E>>);

/// What a fused training forward writes per channel: mean hi, mean lo, invstd, and running mean
/// and variance.
pub type ForwardStatistics<'a, P> =
    (Along<'a, 1, P>, Along<'a, 1, P>, Along<'a, 1, P>, Option<(Along<'a, 1, P>, Along<'a, 1, P>)>);

/// What a training forward is told beside its tensors.
#[derive(Debug, Clone, Copy)]
pub struct ForwardSettings<'a, P> {
    pub weight: Option<&'a [P]>,
    pub bias: Option<&'a [P]>,
    pub eps: f64,
    /// The weight of this batch in the running statistics.
    pub running_factor: f64,
    pub pass: Pass,
}

impl<P: Param> ForwardSettings<'_, P> {
    fn coefficients<E: Element>(&self, channel: usize, saved: SavedChannel<P>) -> Coefficients {
        let at = |values: Option<&[P]>, default: f64| {
            values.map_or(default, |values| values[channel].to_f64())
        };
        Coefficients::new::<E>(
            saved.mean_hi.to_f64(),
            saved.mean_lo.to_f64(),
            saved.invstd.to_f64(),
            at(self.weight, 1.0),
            at(self.bias, 0.0),
        )
    }
}

/// Training forward with one part per channel.
pub fn forward_train<E: Element>(
    partition: &Partition,
    tensors: ForwardTensors<'_, E>,
    statistics: ForwardStatistics<'_, E::Param>,
    settings: &ForwardSettings<'_, E::Param>,
) {
    let channels = tensors.0.len_of(Axis(1));
    let bundle = (tensors, statistics);
    partition.for_each_channels(bundle, channels, &|start, (mut tensors, statistics), blocks| {
        let (hi, lo, invstd, mut running) = statistics;
        let x = tensors.0;
        let mut moments = measure(x.index_axis_move(Axis(1), 0), ahead(x, 1));
        for channel in 0..x.len_of(Axis(1)) {
            let saved = SavedChannel::new(moments, settings.eps);
            hi.0[channel] = saved.mean_hi;
            lo.0[channel] = saved.mean_lo;
            invstd.0[channel] = saved.invstd;
            if let Some((mean, var)) = &mut running {
                let factor = settings.running_factor;
                advance_running(moments, factor, &mut mean.0[channel], &mut var.0[channel]);
            }
            let next = channel + 1;
            moments = apply_and_measure(
                forward_channel(&mut tensors, channel),
                (next < x.len_of(Axis(1))).then(|| x.index_axis_move(Axis(1), next)),
                ahead(x, next + 1),
                settings.coefficients::<E>(start + channel, saved),
                settings.pass,
                blocks,
            );
        }
        finish_streaming();
    });
}

/// A channel to be prefetched while the one before it is worked on, if it is there and made of
/// few short runs: long ones the hardware foresees.
fn ahead<'a, E>(tensor: ArrayView3<'a, E>, channel: usize) -> Option<ArrayView2<'a, E>> {
    const SHORT_RUN: usize = 1 << 10;
    const SMALL_CHANNEL: usize = 128 << 10;
    let (rows, channels, columns) = tensor.dim();
    let run = columns * size_of::<E>();
    let worthwhile = run <= SHORT_RUN && rows * run <= SMALL_CHANNEL;
    (worthwhile && channel < channels).then(|| tensor.index_axis_move(Axis(1), channel))
}

vectorized! {
    /// A channel's moments.
    fn measure<'a, E>(x: ArrayView2<'a, E>, ahead: Option<ArrayView2<'a, E>>) -> Moments {
        let mut moments = Moments::default();
        for tile in tiles(x.nrows(), x.ncols()) {
            tile.prefetch(ahead);
            moments = tile.measure(x, moments);
        }
        moments
    }
}

/// One channel of a forward call's tensors, each `[N, spatial]`.
struct ForwardChannel<'a, E> {
    x: ArrayView2<'a, E>,
    residual: Option<ArrayView2<'a, E>>,
    y: ArrayViewMut2<'a, E>,
    mask: Option<ArrayViewMut2<'a, u8>>,
}

fn forward_channel<'a, E>(
    (x, residual, y, mask): &'a mut ForwardTensors<'_, E>,
    channel: usize,
) -> ForwardChannel<'a, E> {
    ForwardChannel {
        x: x.index_axis(Axis(1), channel),
        residual: residual.as_ref().map(|residual| residual.index_axis(Axis(1), channel)),
        y: y.index_axis_mut(Axis(1), channel),
        mask: mask.as_mut().map(|mask| mask.0.index_axis_mut(Axis(1), channel)),
    }
}

vectorized! {
    /// Writes a channel's y, and takes the moments of `next` between its tiles.
    fn apply_and_measure<'a, 'b, E>(
        channel: ForwardChannel<'a, E>,
        next: Option<ArrayView2<'a, E>>,
        ahead: Option<ArrayView2<'a, E>>,
        coefficients: Coefficients,
        pass: Pass,
        blocks: &'b mut Blocks,
    ) -> Moments {
        let ForwardChannel { x, residual, mut y, mut mask } = channel;
        let mut moments = Moments::default();
        for tile in tiles(x.nrows(), x.ncols()) {
            let c = &coefficients;
            let output = &mut Output::new(pass.streaming, &mut blocks.staging);
            match Direct::of(pass.epilogue) {
                Some(Direct::Identity) => tile.forward_direct::<E, false>(x, c, &mut y, output),
                Some(Direct::Relu) => tile.forward_direct::<E, true>(x, c, &mut y, output),
                None => {
                    let block = &mut blocks.z[..tile.len()];
                    tile.forward(x, block, c, pass.epilogue, residual, mask.as_mut());
                    tile.scatter(block, &mut y, output);
                }
            }
            if let Some(next) = next {
                tile.prefetch(ahead);
                moments = tile.measure(next, moments);
            }
        }
        moments
    }
}

/// Writes each part's moments of each channel, `[C, parts]`.
pub fn statistics<E: Element>(
    partition: &Partition,
    x: ArrayView3<'_, E>,
    partials: &mut [Moments],
) {
    let (channels, parts) = (x.len_of(Axis(1)), partition.parts());
    let partials = Along::<1, _>(&mut partials[..channels * parts]);
    let tasks = channels * parts;
    partition.for_each_channels(partials, tasks, &|start, partials, _| {
        for (offset, moments) in partials.0.iter_mut().enumerate() {
            let (channel, part) = ((start + offset) / parts, (start + offset) % parts);
            let part = partition.part_of(x, part);
            *moments = measure(part.index_axis_move(Axis(1), channel), None);
        }
    });
}

/// Writes y (and the mask) from known statistics.
pub fn apply<E: Element>(
    partition: &Partition,
    tensors: ForwardTensors<'_, E>,
    channels: &Channels<'_, E::Param>,
    pass: Pass,
) {
    let count = tensors.0.len_of(Axis(1));
    partition.for_each_part(tensors, count, &|start, mut tensors, blocks| {
        for channel in 0..tensors.0.len_of(Axis(1)) {
            let coefficients = channels.coefficients::<E>(start + channel);
            let channel = forward_channel(&mut tensors, channel);
            apply_and_measure(channel, None, None, coefficients, pass, blocks);
        }
        finish_streaming();
    });
}

/// [`apply`] with x in y's place.
pub fn apply_in_place<E: Element>(
    partition: &Partition,
    tensors: (Option<ArrayView3<'_, E>>, ArrayViewMut3<'_, E>),
    channels: &Channels<'_, E::Param>,
    epilogue: Epilogue,
) {
    let count = tensors.1.len_of(Axis(1));
    partition.for_each_part(tensors, count, &|start, (residual, mut x), blocks| {
        for channel in 0..x.len_of(Axis(1)) {
            apply_channel_in_place(
                residual.map(|residual| residual.index_axis_move(Axis(1), channel)),
                x.index_axis_mut(Axis(1), channel),
                channels.coefficients::<E>(start + channel),
                epilogue,
                blocks,
            );
        }
    });
}

vectorized! {
    fn apply_channel_in_place<'a, 'b, E>(
        residual: Option<ArrayView2<'a, E>>,
        x: ArrayViewMut2<'a, E>,
        coefficients: Coefficients,
        epilogue: Epilogue,
        blocks: &'b mut Blocks,
    ) {
        let mut x = x;
        for tile in tiles(x.nrows(), x.ncols()) {
            let block = &mut blocks.z[..tile.len()];
            tile.forward(x.view(), block, &coefficients, epilogue, residual, None);
            tile.scatter(block, &mut x, &mut Output::new(false, &mut blocks.staging));
        }
    }
}

fn channel_inputs<'a, E>(
    (x, dy, residual, mask): BackwardTensors<'a, E>,
    channel: usize,
) -> BackwardInputs<'a, E> {
    BackwardInputs {
        x: x.index_axis_move(Axis(1), channel),
        dy: dy.index_axis_move(Axis(1), channel),
        residual: residual.map(|residual| residual.index_axis_move(Axis(1), channel)),
        mask: mask.map(|mask| mask.0.index_axis_move(Axis(1), channel)),
    }
}

/// How dx follows from g.
#[derive(Debug, Clone, Copy)]
pub enum Gradient<'a> {
    /// Through the batch statistics; the sums of each channel over the whole batch.
    Train(&'a [Sums]),
    /// The statistics are constants.
    Frozen,
}

/// Training backward with one part per channel; writes each channel's sums.
pub fn backward_train<E: Element>(
    partition: &Partition,
    inputs: BackwardTensors<'_, E>,
    outputs: GradientTensors<'_, E>,
    sums: &mut [Sums],
    channels: &Channels<'_, E::Param>,
    pass: Pass,
) {
    let count = inputs.0.len_of(Axis(1));
    let bundle = (inputs, outputs, Along::<1, _>(sums));
    partition.for_each_channels(bundle, count, &|start, (inputs, mut outputs, sums), blocks| {
        let count = sums.0.len();
        let reduction = |channel: usize| Reduction {
            inputs: channel_inputs(inputs, channel),
            following: (ahead(inputs.0, channel + 1), ahead(inputs.1, channel + 1)),
            coefficients: channels.coefficients::<E>(start + channel),
        };
        sums.0[0] = reduce_channel(reduction(0), pass.epilogue, blocks);
        for channel in 0..count {
            let coefficients = channels.coefficients::<E>(start + channel);
            let gradient = Some(GradientCoefficients::new(&coefficients, sums.0[channel]));
            let inputs = channel_inputs(inputs, channel);
            let next = (channel + 1 < count).then(|| reduction(channel + 1));
            let outputs = channel_outputs(&mut outputs, channel);
            let reduced =
                write_gradients(inputs, outputs, coefficients, gradient, next, pass, blocks);
            if let Some(next) = sums.0.get_mut(channel + 1) {
                *next = reduced;
            }
        }
        finish_streaming();
    });
}

/// A channel to be reduced; x and dy of the following one are prefetched.
struct Reduction<'a, E> {
    inputs: BackwardInputs<'a, E>,
    following: (Option<ArrayView2<'a, E>>, Option<ArrayView2<'a, E>>),
    coefficients: Coefficients,
}

impl<E: Element> Reduction<'_, E> {
    /// Adds a tile.
    #[inline(always)]
    fn add(&self, tile: &Tile, epilogue: Epilogue, blocks: &mut Blocks, sums: Sums) -> Sums {
        tile.prefetch(self.following.0);
        tile.prefetch(self.following.1);
        let [g, gd] = match Direct::of(epilogue) {
            Some(Direct::Identity) => self.inputs.sums_direct::<false>(tile, &self.coefficients),
            Some(Direct::Relu) => self.inputs.sums_direct::<true>(tile, &self.coefficients),
            None => {
                blocks.gather(tile, &self.inputs, &self.coefficients, epilogue);
                blocks.sums(tile.len())
            }
        };
        sums.add(Sums { count: tile.len() as f64, g, gd })
    }
}

vectorized! {
    /// The sums of one channel.
    fn reduce_channel<'a, 'b, E>(
        channel: Reduction<'a, E>,
        epilogue: Epilogue,
        blocks: &'b mut Blocks,
    ) -> Sums {
        let mut sums = Sums::default();
        for tile in tiles(channel.inputs.x.nrows(), channel.inputs.x.ncols()) {
            sums = channel.add(&tile, epilogue, blocks, sums);
        }
        sums
    }
}

/// What backward writes of one channel, each `[N, spatial]`.
struct ChannelOutputs<'a, E> {
    dx: ArrayViewMut2<'a, E>,
    dresidual: Option<ArrayViewMut2<'a, E>>,
}

fn channel_outputs<'a, E>(
    (dx, dresidual): &'a mut GradientTensors<'_, E>,
    channel: usize,
) -> ChannelOutputs<'a, E> {
    ChannelOutputs {
        dx: dx.index_axis_mut(Axis(1), channel),
        dresidual: dresidual.as_mut().map(|it| it.index_axis_mut(Axis(1), channel)),
    }
}

vectorized! {
    /// dx and dresidual of one channel; without gradient coefficients the statistics are constants.
    /// Takes the sums of `next` between its tiles.
    fn write_gradients<'a, 'b, E>(
        inputs: BackwardInputs<'a, E>,
        outputs: ChannelOutputs<'b, E>,
        coefficients: Coefficients,
        gradient: Option<GradientCoefficients>,
        next: Option<Reduction<'a, E>>,
        pass: Pass,
        blocks: &'b mut Blocks,
    ) -> Sums {
        let ChannelOutputs { mut dx, mut dresidual } = outputs;
        let mut sums = Sums::default();
        for tile in tiles(inputs.x.nrows(), inputs.x.ncols()) {
            let c = &coefficients;
            match (Direct::of(pass.epilogue), &gradient) {
                (Some(direct), Some(by)) => {
                    let out = &mut Output::new(pass.streaming, &mut blocks.staging);
                    match direct {
                        Direct::Identity => {
                            inputs.gradient_direct::<false>(&tile, c, by, &mut dx, out);
                        }
                        Direct::Relu => inputs.gradient_direct::<true>(&tile, c, by, &mut dx, out),
                    }
                }
                _ => {
                    blocks.gather(&tile, &inputs, c, pass.epilogue);
                    let Blocks { d, g, staging, .. } = &mut *blocks;
                    let (d, g) = (&d[..tile.len()], &mut g[..tile.len()]);
                    let out = &mut Output::new(pass.streaming, staging);
                    if let Some(dresidual) = &mut dresidual {
                        tile.scatter(g, dresidual, out);
                    }
                    match &gradient {
                        Some(by) => block::input_gradient(g, d, by),
                        None => g.iter_mut().for_each(|g| *g *= c.scale),
                    }
                    tile.scatter(g, &mut dx, out);
                }
            }
            if let Some(next) = &next {
                sums = next.add(&tile, pass.epilogue, blocks, sums);
            }
        }
        sums
    }
}

/// Writes each channel's sums, merged over its parts in order.
pub fn reduce<E: Element>(
    partition: &Partition,
    inputs: BackwardTensors<'_, E>,
    partials: &mut [Sums],
    channels: &Channels<'_, E::Param>,
    epilogue: Epilogue,
) {
    let (count, parts) = (inputs.0.len_of(Axis(1)), partition.parts());
    let partials = Along::<1, _>(&mut partials[..count * parts]);
    partition.for_each_channels(partials, count * parts, &|start, partials, blocks| {
        for (offset, sums) in partials.0.iter_mut().enumerate() {
            let (channel, part) = ((start + offset) / parts, (start + offset) % parts);
            let coefficients = channels.coefficients::<E>(channel);
            let inputs = channel_inputs(partition.part_of(inputs, part), channel);
            let reduction = Reduction { inputs, following: (None, None), coefficients };
            *sums = reduce_channel(reduction, epilogue, blocks);
        }
    });
}

/// Writes dx and dresidual from known sums.
pub fn gradients<E: Element>(
    partition: &Partition,
    inputs: BackwardTensors<'_, E>,
    outputs: GradientTensors<'_, E>,
    gradient: Gradient<'_>,
    channels: &Channels<'_, E::Param>,
    pass: Pass,
) {
    let count = inputs.0.len_of(Axis(1));
    partition.for_each_part((inputs, outputs), count, &|start, (inputs, mut outputs), blocks| {
        for channel in 0..inputs.0.len_of(Axis(1)) {
            let coefficients = channels.coefficients::<E>(start + channel);
            let gradient = match gradient {
                Gradient::Train(sums) => {
                    Some(GradientCoefficients::new(&coefficients, sums[start + channel]))
                }
                Gradient::Frozen => None,
            };
            let inputs = channel_inputs(inputs, channel);
            let outputs = channel_outputs(&mut outputs, channel);
            write_gradients(inputs, outputs, coefficients, gradient, None, pass, blocks);
        }
        finish_streaming();
    });
}
