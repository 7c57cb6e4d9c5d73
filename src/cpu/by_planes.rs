//! Loops over planes, `[N, C, spatial]` views whose last axis is contiguous: channels-first tensors, but
//! for those that go by rows ([`runs`](super::runs)).
//!
//! A thread takes a channel, or a group of small neighbours, at a time: moments tile by tile, then
//! apply while the values are still in cache. A large channel's moments are taken between the
//! steps of apply of the one before it, so that memory is read while it is written. Few large
//! channels are cut into parts along N or the spatial axis instead, and go through the split form.

use super::block;
use super::channel::{
    Channels, Coefficients, GradientCoefficients, SavedChannel, Sums, advance_running,
};
use super::direct::{ChannelCoefficients, Direct, ValueCoefficients, with_backward};
use super::moments::Moments;
use super::neighbours::{
    ForwardGroup, GradientGroup, Grouping, MAX_GROUP, apply_group, write_group,
};
use super::parallel::Along;
use super::planes::Partition;
use super::simd::{finish_streaming, vectorized};
use super::tensor::{BackwardTensors, ForwardTensors, GradientTensors};
use super::tile::{
    BackwardInputs, Blocks, ChannelOutputs, ForwardChannel, Pass, TILE, summed_tiles, tiles,
};
use crate::config::{Activation, Epilogue};
use crate::element::Element;
use ndarray::{ArrayView2, ArrayView3, ArrayViewMut2, ArrayViewMut3, Axis, Slice};
use std::ops::Range;

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

/// Training forward with one part per channel.
pub fn forward_train<E: Element>(
    partition: &Partition,
    tensors: ForwardTensors<'_, E>,
    statistics: ForwardStatistics<'_, E::Param>,
    settings: &ForwardSettings<'_, E::Param>,
) {
    let channels = tensors.0.len_of(Axis(1));
    let bundle = (tensors, statistics);
    partition.for_each_channels(bundle, channels, &|start, (tensors, mut statistics), blocks| {
        let mut finish = |channel: usize, moments: Moments| -> Coefficients {
            finish_channel::<E>(moments, settings, &mut statistics, channel, start + channel)
        };
        if let Some(direct) = Direct::forward(settings.pass.epilogue) {
            forward_direct::<_, true>(tensors, finish, direct, settings.pass, blocks);
        } else {
            let x = tensors.0;
            forward_blocks(tensors, settings.pass, blocks, |channel| {
                finish(channel, measure(x.index_axis_move(Axis(1), channel), Moments::default()))
            });
        }
        finish_streaming();
    });
}

/// Saves a channel's statistics, advances the running ones, and returns its coefficients. `index`
/// is the channel's place in the task's statistics, `channel` among all.
fn finish_channel<E: Element>(
    moments: Moments,
    settings: &ForwardSettings<'_, E::Param>,
    (hi, lo, invstd, running): &mut ForwardStatistics<'_, E::Param>,
    index: usize,
    channel: usize,
) -> Coefficients {
    let saved = SavedChannel::<E::Param>::new(moments, settings.eps);
    (hi.0[index], lo.0[index], invstd.0[index]) = (saved.mean_hi, saved.mean_lo, saved.invstd);
    if let Some((mean, var)) = running {
        advance_running(moments, settings.running_factor, &mut mean.0[index], &mut var.0[index]);
    }
    let at = |values: Option<&[E::Param]>, default: f64| {
        values.map_or(default, |values| values[channel].to_f64())
    };
    Coefficients::new::<E>(
        saved.mean_hi.to_f64(),
        saved.mean_lo.to_f64(),
        saved.invstd.to_f64(),
        at(settings.weight, 1.0),
        at(settings.bias, 0.0),
    )
}

/// Writes y (and the mask) by direct loops, with the coefficients that `finish` gives for a channel
/// and, if they are to be taken, its moments.
fn forward_direct<E: Element, const MEASURED: bool>(
    mut tensors: ForwardTensors<'_, E>,
    mut finish: impl FnMut(usize, Moments) -> Coefficients,
    direct: Direct,
    pass: Pass,
    blocks: &mut Blocks,
) {
    let x = tensors.0;
    let grouping = if MEASURED { Grouping::twice } else { Grouping::once }(x.dim());
    let mut coefficients = [ChannelCoefficients::NONE; MAX_GROUP];
    let mut moments = [Moments::default(); MAX_GROUP];
    let measure_group = |group: Range<usize>, samples: Range<usize>, moments: &mut [Moments]| {
        for samples in grouping.tiles(samples).filter(|_| MEASURED) {
            for (moments, channel) in moments.iter_mut().zip(group.clone()) {
                *moments = measure(samples_of(x, channel, samples.clone()), *moments);
            }
        }
    };
    measure_group(grouping.group(0), 0..x.len_of(Axis(0)), &mut moments);
    for group in grouping.groups() {
        let coefficients = &mut coefficients[..group.len()];
        for ((it, &moments), channel) in coefficients.iter_mut().zip(&moments).zip(group.clone()) {
            *it = ChannelCoefficients::forward::<E>(&finish(channel, moments));
        }
        let next = grouping.group(group.end);
        moments.fill(Moments::default());
        for samples in grouping.steps() {
            let part = ForwardGroup::new(&mut tensors, group.clone(), samples.clone());
            apply_group(part, coefficients, direct, pass.streaming);
            measure_group(next.clone(), samples, &mut moments);
        }
        for (coefficients, channel) in coefficients.iter().zip(group) {
            if !coefficients.are_direct::<E>(direct.add) {
                let channel = forward_channel(&mut tensors, channel);
                apply_blocks(channel, coefficients.double, pass, blocks);
            }
        }
    }
}

/// A channel in some samples.
fn samples_of<T>(
    tensor: ArrayView3<'_, T>,
    channel: usize,
    samples: Range<usize>,
) -> ArrayView2<'_, T> {
    tensor.index_axis_move(Axis(1), channel).slice_axis_move(Axis(0), Slice::from(samples))
}

vectorized! {
    |isa|
    /// A channel's moments, merged into those `before`.
    fn measure<'a, E>(x: ArrayView2<'a, E>, before: Moments) -> Moments {
        let mut moments = before;
        for tile in summed_tiles(x.nrows(), x.ncols()) {
            moments = tile.measure(isa, x, moments);
        }
        moments
    }
}

/// Writes y (and the mask) by way of blocks.
fn forward_blocks<E: Element>(
    mut tensors: ForwardTensors<'_, E>,
    pass: Pass,
    blocks: &mut Blocks,
    mut coefficients: impl FnMut(usize) -> Coefficients,
) {
    for channel in 0..tensors.0.len_of(Axis(1)) {
        let coefficients = ValueCoefficients::forward(&coefficients(channel));
        apply_blocks(forward_channel(&mut tensors, channel), coefficients, pass, blocks);
    }
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
    |isa|
    fn apply_blocks<'a, 'b, E>(
        channel: ForwardChannel<'a, E>,
        coefficients: ValueCoefficients<f64>,
        pass: Pass,
        blocks: &'b mut Blocks,
    ) {
        let ForwardChannel { x, residual, mut y, mut mask } = channel;
        for tile in tiles(x.nrows(), x.ncols()) {
            let block = &mut blocks.z[..tile.len()];
            let inputs = (x, residual);
            tile.forward(isa, inputs, block, &coefficients, pass.epilogue, mask.as_mut());
            tile.scatter(isa, block, &mut y, pass.streaming);
        }
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
            *moments = measure(part.index_axis_move(Axis(1), channel), Moments::default());
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
    partition.for_each_part(tensors, count, &|start, tensors, blocks| {
        let coefficients = |channel| channels.coefficients::<E>(start + channel);
        if let Some(direct) = Direct::forward(pass.epilogue) {
            let finish = |channel, _| coefficients(channel);
            forward_direct::<_, false>(tensors, finish, direct, pass, blocks);
        } else {
            forward_blocks(tensors, pass, blocks, coefficients);
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
    let pass = Pass { epilogue, streaming: false };
    partition.for_each_part(tensors, count, &|start, (residual, mut x), blocks| {
        let mut copy = [E::default(); TILE];
        for channel in 0..x.len_of(Axis(1)) {
            let residual = residual.map(|residual| residual.index_axis_move(Axis(1), channel));
            let x = x.index_axis_mut(Axis(1), channel);
            let coefficients = channels.coefficients::<E>(start + channel);
            apply_channel_in_place(residual, x, coefficients, pass, &mut copy, blocks);
        }
    });
}

/// Writes y in x's place, by way of a copy of each tile.
fn apply_channel_in_place<E: Element>(
    residual: Option<ArrayView2<'_, E>>,
    mut x: ArrayViewMut2<'_, E>,
    coefficients: Coefficients,
    pass: Pass,
    copy: &mut [E; TILE],
    blocks: &mut Blocks,
) {
    let coefficients = [ChannelCoefficients::forward::<E>(&coefficients)];
    let direct = Direct::forward(pass.epilogue);
    let direct = direct.filter(|direct| coefficients[0].are_direct::<E>(direct.add));
    for tile in tiles(x.nrows(), x.ncols()) {
        let y = tile.cut_mut(&mut x);
        let copy = &mut copy[..tile.len()];
        let mut x = ArrayViewMut2::from_shape(y.dim(), copy).expect("as many values");
        x.assign(&y);
        let residual = residual.map(|residual| tile.cut(residual));
        match direct {
            Some(direct) => {
                let group = ForwardGroup::of_one(x.view(), residual, y);
                apply_group(group, &coefficients, direct, false);
            }
            None => {
                let channel = ForwardChannel { x: x.view(), residual, y, mask: None };
                apply_blocks(channel, coefficients[0].double, pass, blocks);
            }
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
    partition.for_each_channels(bundle, count, &|start, (inputs, outputs, sums), blocks| {
        let coefficients = |channel| channels.coefficients::<E>(start + channel);
        let mut finish = |channel: usize, sum: Sums| {
            sums.0[channel] = sum;
            GradientCoefficients::new(channels.invstd(start + channel), sum)
        };
        if let Some(direct) = Direct::backward(pass.epilogue, inputs.3.is_some()) {
            let how = (direct, false);
            backward_direct::<_, true>(inputs, outputs, coefficients, finish, how, pass, blocks);
        } else {
            backward_blocks(inputs, outputs, pass, blocks, |channel, blocks| {
                let (it, c) = (channel_inputs(inputs, channel), coefficients(channel));
                let before = ValueCoefficients::forward(&c);
                let by = finish(channel, reduce_blocks(it, before, pass.epilogue, blocks));
                (ValueCoefficients::new(&c, &by), false)
            });
        }
        finish_streaming();
    });
}

/// Writes dx and dresidual by direct loops, with what `finish` gives for a channel and, if they are
/// to be taken, its sums.
fn backward_direct<E: Element, const REDUCED: bool>(
    inputs: BackwardTensors<'_, E>,
    mut outputs: GradientTensors<'_, E>,
    coefficients: impl Fn(usize) -> Coefficients,
    mut finish: impl FnMut(usize, Sums) -> GradientCoefficients,
    (direct, frozen): (Direct, bool),
    pass: Pass,
    blocks: &mut Blocks,
) {
    let grouping = if REDUCED { Grouping::twice } else { Grouping::once }(inputs.0.dim());
    let mut values = [ChannelCoefficients::NONE; MAX_GROUP];
    let mut sums = [Sums::default(); MAX_GROUP];
    let reduce_group = |group: Range<usize>, samples, sums: &mut [Sums], blocks: &mut Blocks| {
        for samples in grouping.tiles(samples).filter(|_| REDUCED) {
            for (sums, channel) in sums.iter_mut().zip(group.clone()) {
                let inputs = channel_inputs(inputs, channel).samples(samples.clone());
                let coefficients = ChannelCoefficients::forward::<E>(&coefficients(channel));
                *sums = reduce_channel(inputs, coefficients, direct, *sums, pass.epilogue, blocks);
            }
        }
    };
    reduce_group(grouping.group(0), 0..inputs.0.len_of(Axis(0)), &mut sums, blocks);
    for group in grouping.groups() {
        let values = &mut values[..group.len()];
        for ((value, &sums), channel) in values.iter_mut().zip(&sums).zip(group.clone()) {
            let by = finish(channel, sums);
            *value = ChannelCoefficients::new::<E>(&coefficients(channel), &by);
        }
        let next = grouping.group(group.end);
        sums.fill(Sums::default());
        for samples in grouping.steps() {
            let group = group.clone();
            let part = GradientGroup::new(inputs, &mut outputs, group, samples.clone());
            write_group(part, values, direct, frozen, pass.streaming);
            reduce_group(next.clone(), samples, &mut sums, blocks);
        }
        for (value, channel) in values.iter().zip(group) {
            if !value.are_direct::<E>(false) {
                let inputs = channel_inputs(inputs, channel);
                let outputs = channel_outputs(&mut outputs, channel);
                write_blocks(inputs, outputs, (value.double, frozen), pass, blocks);
            }
        }
    }
}

/// The sums of one channel, added to those `before`.
fn reduce_channel<E: Element>(
    inputs: BackwardInputs<'_, E>,
    coefficients: ChannelCoefficients,
    direct: Direct,
    before: Sums,
    epilogue: Epilogue,
    blocks: &mut Blocks,
) -> Sums {
    match coefficients.are_direct::<E>(false) {
        true => reduce_direct(inputs, coefficients, direct, before),
        false => before.add(reduce_blocks(inputs, coefficients.double, epilogue, blocks)),
    }
}

vectorized! {
    |isa|
    /// The sums of one channel, added to those `before`: straight from x and dy.
    fn reduce_direct<'a, E>(
        inputs: BackwardInputs<'a, E>,
        coefficients: ChannelCoefficients,
        direct: Direct,
        before: Sums,
    ) -> Sums {
        let mut sums = before;
        for tile in summed_tiles(inputs.x.nrows(), inputs.x.ncols()) {
            let added = with_backward!(direct, |RELU, MASK| {
                inputs.sums_direct::<RELU, MASK>(isa, &tile, &coefficients)
            });
            let [g, gd] = added.unwrap_or_default();
            sums = sums.add(Sums { count: tile.len() as f64, g, gd });
        }
        sums
    }
}

vectorized! {
    |isa|
    /// The sums of one channel, by way of blocks.
    fn reduce_blocks<'a, 'b, E>(
        inputs: BackwardInputs<'a, E>,
        coefficients: ValueCoefficients<f64>,
        epilogue: Epilogue,
        blocks: &'b mut Blocks,
    ) -> Sums {
        let mut sums = Sums::default();
        for tile in tiles(inputs.x.nrows(), inputs.x.ncols()) {
            blocks.gather(isa, &tile, &inputs, &coefficients, epilogue);
            let [g, gd] = blocks.sums(isa, tile.len());
            sums = sums.add(Sums { count: tile.len() as f64, g, gd });
        }
        sums
    }
}

/// Writes dx and dresidual by way of blocks, with what `coefficients` gives for a channel, and whether
/// its statistics are constants.
fn backward_blocks<E: Element>(
    inputs: BackwardTensors<'_, E>,
    mut outputs: GradientTensors<'_, E>,
    pass: Pass,
    blocks: &mut Blocks,
    mut coefficients: impl FnMut(usize, &mut Blocks) -> (ValueCoefficients<f64>, bool),
) {
    for channel in 0..inputs.0.len_of(Axis(1)) {
        let coefficients = coefficients(channel, blocks);
        let inputs = channel_inputs(inputs, channel);
        let outputs = channel_outputs(&mut outputs, channel);
        write_blocks(inputs, outputs, coefficients, pass, blocks);
    }
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
    |isa|
    fn write_blocks<'a, 'b, E>(
        inputs: BackwardInputs<'a, E>,
        outputs: ChannelOutputs<'b, E>,
        coefficients: (ValueCoefficients<f64>, bool),
        pass: Pass,
        blocks: &'b mut Blocks,
    ) {
        let ChannelOutputs { mut dx, mut dresidual } = outputs;
        let (c, frozen) = coefficients;
        for tile in tiles(inputs.x.nrows(), inputs.x.ncols()) {
            blocks.gather(isa, &tile, &inputs, &c, pass.epilogue);
            let Blocks { d, g, .. } = &mut *blocks;
            let (d, g) = (&d[..tile.len()], &mut g[..tile.len()]);
            if let Some(dresidual) = &mut dresidual {
                tile.scatter(isa, g, dresidual, pass.streaming);
            }
            match frozen {
                true => g.iter_mut().for_each(|g| *g *= c.scale),
                false => block::input_gradient(g, d, &c),
            }
            tile.scatter(isa, g, &mut dx, pass.streaming);
        }
    }
}

/// Writes the sums of each channel's parts, `[C, parts]`.
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
            let coefficients = ChannelCoefficients::forward::<E>(&coefficients);
            let none = Sums::default();
            *sums = match Direct::backward(epilogue, inputs.mask.is_some()) {
                Some(direct) => {
                    reduce_channel(inputs, coefficients, direct, none, epilogue, blocks)
                }
                None => reduce_blocks(inputs, coefficients.double, epilogue, blocks),
            };
        }
    });
}

/// Writes dx and dresidual: through the batch statistics, given each channel's sums, or with
/// constant statistics.
pub fn gradients<E: Element>(
    partition: &Partition,
    inputs: BackwardTensors<'_, E>,
    outputs: GradientTensors<'_, E>,
    sums: Option<&[Sums]>,
    channels: &Channels<'_, E::Param>,
    pass: Pass,
) {
    let count = inputs.0.len_of(Axis(1));
    partition.for_each_part((inputs, outputs), count, &|start, (inputs, outputs), blocks| {
        let coefficients = |channel| channels.coefficients::<E>(start + channel);
        let by = |channel: usize| match sums {
            Some(sums) => {
                GradientCoefficients::new(channels.invstd(start + channel), sums[start + channel])
            }
            None => GradientCoefficients::default(),
        };
        let frozen = sums.is_none();
        if frozen && pass.epilogue.activation == Activation::Identity {
            scale_gradients(inputs.1, outputs, coefficients, pass, blocks);
            return finish_streaming();
        }
        if let Some(direct) = Direct::gradient(pass.epilogue, inputs.3.is_some(), frozen) {
            let (by, how) = (|channel, _| by(channel), (direct, frozen));
            backward_direct::<_, false>(inputs, outputs, coefficients, by, how, pass, blocks);
        } else {
            backward_blocks(inputs, outputs, pass, blocks, |channel, _| {
                (ValueCoefficients::new(&coefficients(channel), &by(channel)), frozen)
            });
        }
        finish_streaming();
    });
}

/// `dx = scale * dy`, which is a forward call on dy, and `dresidual = dy`: where neither the batch nor
/// an activation comes between.
fn scale_gradients<E: Element>(
    dy: ArrayView3<'_, E>,
    (dx, dresidual): GradientTensors<'_, E>,
    coefficients: impl Fn(usize) -> Coefficients,
    pass: Pass,
    blocks: &mut Blocks,
) {
    if let Some(mut dresidual) = dresidual {
        dresidual.assign(&dy);
    }
    let scale = |channel, _| Coefficients {
        mean_hi: 0.0,
        mean_lo: 0.0,
        bias: 0.0,
        ..coefficients(channel)
    };
    let (pass, direct) = (pass.without_epilogue(), Direct { relu: false, add: false });
    forward_direct::<_, false>((dy, None, dx, None), scale, direct, pass, blocks);
}
