//! Loops over rows, `[outer, rows, lanes]` views whose last axis is contiguous: channels-last tensors,
//! and channels-first ones of few positions, whose samples are the rows ([`runs`](super::runs)).
//! Statistics and sums of each part ([`rows`](super::rows)), merged in order; then apply.

use super::block;
use super::channel::{Channels, Sums};
use super::direct::{
    BackwardRun, Direct, Forward, Gradient, with_backward, with_forward, with_gradient,
    with_precision,
};
use super::lanes::{LaneCoefficients, LanePrecisions};
use super::moments::{ChannelMoments, Lanes, is_far};
use super::parallel::for_each_dense;
use super::row_sums::{LanePairs, add_rows};
use super::rows::Partition;
use super::run::{Input, MAX_CHUNK, Output, at, bytes_of};
use super::simd::{Isa, finish_streaming, vectorized};
use super::strips::pieces;
use super::tensor::{BackwardTensors, ForwardTensors, GradientTensors};
use super::tile::{Blocks, Pass, TILE, with_blocks};
use super::{LaneTables, epilogue};
use crate::config::{Activation, Epilogue};
use crate::element::Element;
use ndarray::{ArrayView3, ArrayViewMut3};
use std::ops::Range;

/// Every channel's moments, as `result` is given them.
pub fn statistics<E: Element>(
    partition: &Partition,
    x: ArrayView3<'_, E>,
    partials: &mut [f64],
    mut result: impl FnMut(ChannelMoments<'_>),
) {
    let width = Lanes::ROWS * partition.lanes();
    partition.for_each_partial(x, partials, width, &|x, rows, lanes, partial| {
        measure(x, rows, lanes, &mut partial[..Lanes::ROWS * lanes]);
    });
    let (partials, merged) = partials.split_at_mut(partition.partials() * width);
    let merged = &mut merged[..Lanes::ROWS * partition.channels];
    let count = merge_partials::<E>(partition, partials, merged);
    result(ChannelMoments::of_rows(merged, count));
}

vectorized! {
    /// Merges every channel's partials in order into `[3, C]`; returns how many values that is.
    fn merge_partials<'a, E>(
        partition: &'a Partition,
        partials: &'a [f64],
        merged: &'a mut [f64],
    ) -> f64 {
        let width = Lanes::ROWS * partition.lanes();
        // No rows leave no partials, and the workspace holds what the call before left.
        merged.fill(0.0);
        let mut merged = Lanes::new(merged);
        let mut before = 0.0;
        for (part, lanes, count) in partition.sources() {
            let (hi, rest) = partials[part * width..][..Lanes::ROWS * lanes].split_at(lanes);
            let (lo, m2) = rest.split_at(lanes);
            let row = partition.row();
            let rows = hi.chunks_exact(row).zip(lo.chunks_exact(row)).zip(m2.chunks_exact(row));
            for ((hi, lo), m2) in rows {
                match partition.positions {
                    1 => merged.merge_moments(before, count, hi, lo, m2),
                    positions => merged.merge_positions(positions, before, count, hi, lo, m2),
                }
                before += count * partition.positions as f64;
            }
        }
        before
    }
}

/// The moments of each lane of a part.
fn measure<E: Element>(x: ArrayView3<'_, E>, rows: [usize; 2], lanes: usize, partial: &mut [f64]) {
    let mut before = 0;
    with_blocks(|blocks| {
        for_each_dense(x, rows, &mut |x| {
            measure_rows(x, lanes, before, partial, blocks);
            before += x.len() / lanes;
        });
    });
}

vectorized! {
    |isa|
    /// Merges dense rows into the moments of `before` rows.
    fn measure_rows<'a, 'b, E>(
        x: &'a [E],
        lanes: usize,
        before: usize,
        partial: &'a mut [f64],
        blocks: &'b mut Blocks,
    ) {
        /// Rows whose deviations are taken around one pivot.
        const ROWS: usize = 512;
        let mut moments = Lanes::new(partial);
        for (index, x) in x.chunks(ROWS * lanes).enumerate() {
            let before = (before + index * ROWS) as f64;
            for start in (0..lanes).step_by(TILE) {
                let columns = start..lanes.min(start + TILE);
                let into = moments.columns(columns.clone());
                measure_columns(isa, x, lanes, columns, before, into, blocks);
            }
        }
    }
}

/// Merges some columns of rows into the moments of `before` rows.
#[inline(always)]
fn measure_columns<E: Element>(
    isa: impl Isa,
    x: &[E],
    lanes: usize,
    columns: Range<usize>,
    before: f64,
    mut into: Lanes<'_>,
    blocks: &mut Blocks,
) {
    let rows = x.len() / lanes;
    let (count, inverse, width) = (rows as f64, 1.0 / rows as f64, columns.len());
    let Blocks { d: first, g: second, z: pivot, .. } = blocks;
    let (first, second, pivot) = (&mut first[..width], &mut second[..width], &mut pivot[..width]);
    if before == 0.0 {
        block::load(isa, &x[columns.clone()], pivot);
    } else {
        pivot.copy_from_slice(into.mean_hi);
    }
    add_deviations(isa, x, lanes, columns.clone(), pivot, first, second);
    let mut far = false;
    for (&first, &second) in first.iter().zip(&*second) {
        far |= is_far::<E>(inverse, first, second);
    }
    if far {
        for (pivot, first) in pivot.iter_mut().zip(&*first) {
            *pivot += first * inverse;
        }
        add_deviations(isa, x, lanes, columns, pivot, first, second);
    }
    into.merge(before, count, pivot, first, second);
}

/// Sums of some columns' deviations from their pivots, and of their squares.
#[inline(always)]
fn add_deviations<E: Element>(
    isa: impl Isa,
    x: &[E],
    lanes: usize,
    columns: Range<usize>,
    pivot: &[f64],
    first: &mut [f64],
    second: &mut [f64],
) {
    first.fill(0.0);
    second.fill(0.0);
    let deviations = LaneDeviations { x: Input::new(isa, x), pivot, start: columns.start };
    add_rows(isa, &deviations, 0..x.len() / lanes, lanes, columns, [first, second]);
}

/// Deviations from each lane's pivot, twice: for sums of them and of their squares.
struct LaneDeviations<'a, E, I> {
    x: Input<'a, E, I>,
    /// Of the lanes from `start` on.
    pivot: &'a [f64],
    start: usize,
}

impl<E: Element, I: Isa> LanePairs for LaneDeviations<'_, E, I> {
    type Real = f64;
    type Lanes<const N: usize> = [f64; N];

    #[inline(always)]
    fn lanes<const N: usize>(&self, lane: usize) -> [f64; N] {
        *at(self.pivot, lane - self.start)
    }

    #[inline(always)]
    fn pairs<const N: usize>(&self, at: usize, pivot: [f64; N]) -> [[f64; N]; 2] {
        let x = self.x.read::<N>(at);
        let mut deviations = [0.0; N];
        for lane in 0..N {
            deviations[lane] = E::extend(x[lane]) - pivot[lane];
        }
        [deviations; 2]
    }

    #[inline(always)]
    fn prefetch<const N: usize>(&self, at: usize) {
        self.x.prefetch::<N>(at);
    }
}

/// Writes y (and the mask) from known statistics.
pub fn apply<E: Element>(
    partition: &Partition,
    tensors: ForwardTensors<'_, E>,
    channels: &Channels<'_, E::Param>,
    lanes: &mut LaneTables,
    pass: Pass,
) {
    let head = head_of(&tensors.2, tensors.3.is_some());
    let coefficients = forward_coefficients::<E>(lanes, partition, channels, pass.epilogue, head);
    partition.for_each_rows(tensors, &|tensors, rows, lanes, blocks| {
        for_each_dense(tensors, rows, &mut |tensors| {
            apply_rows(tensors, coefficients.first(lanes), pass, blocks);
        });
        finish_streaming();
    });
}

/// The direct loops of a forward call that are the way for these rows.
#[inline(always)]
fn direct_forward(epilogue: Epilogue, lanes: usize) -> Option<Direct> {
    Direct::forward(epilogue).filter(|_| has_whole_bytes(epilogue, lanes))
}

/// The direct loops of a backward call that are the way for these rows.
#[inline(always)]
fn direct_backward(epilogue: Epilogue, mask: bool, lanes: usize) -> Option<Direct> {
    Direct::backward(epilogue, mask).filter(|_| has_whole_bytes(epilogue, lanes))
}

/// The direct loops that write gradients of these rows.
#[inline(always)]
fn direct_gradient(epilogue: Epilogue, mask: bool, frozen: bool, lanes: usize) -> Option<Direct> {
    Direct::gradient(epilogue, mask, frozen).filter(|_| has_whole_bytes(epilogue, lanes))
}

/// Values of an output before its first cache line, which its strips begin with: none where they begin
/// with bytes of a mask.
fn head_of<E: Element>(output: &ArrayViewMut3<'_, E>, masked: bool) -> usize {
    if masked { 0 } else { output.as_ptr().align_offset(64).min(MAX_CHUNK) }
}

/// What forward calls need to know of each lane.
fn forward_coefficients<'a, E: Element>(
    tables: &'a mut LaneTables,
    partition: &Partition,
    channels: &Channels<'_, E::Param>,
    epilogue: Epilogue,
    head: usize,
) -> LanePrecisions<'a> {
    let double = LaneCoefficients::fill::<E>(&mut tables.double, partition, channels, None, head);
    match direct_forward(epilogue, partition.lanes()) {
        // Bias and residual are added before the only rounding.
        Some(Direct { add: false, .. }) => double.with_single::<E>(&mut tables.single),
        _ => double.alone(),
    }
}

/// What backward calls need to know of each lane.
fn backward_coefficients<'a, E: Element>(
    tables: &'a mut LaneTables,
    partition: &Partition,
    channels: &Channels<'_, E::Param>,
    sums: Option<&[Sums]>,
    direct: Option<Direct>,
    head: usize,
) -> LanePrecisions<'a> {
    let double = LaneCoefficients::fill::<E>(&mut tables.double, partition, channels, sums, head);
    match direct {
        Some(_) => double.with_single::<E>(&mut tables.single),
        None => double.alone(),
    }
}

/// The mask bytes of a block of values.
#[inline(always)]
fn mask_range(values: &Range<usize>, lanes: usize) -> Range<usize> {
    let row_bytes = lanes.div_ceil(8);
    let at = |value: usize| value / lanes * row_bytes + (value % lanes).div_ceil(8);
    at(values.start)..at(values.end)
}

type FlatForward<'a, E> = (&'a [E], Option<&'a [E]>, &'a mut [E], Option<&'a mut [u8]>);

vectorized! {
    |isa|
    fn apply_rows<'a, 'b, E>(
        tensors: FlatForward<'a, E>,
        coefficients: LanePrecisions<'a>,
        pass: Pass,
        blocks: &'b mut Blocks,
    ) {
        let (x, residual, y, mut mask) = tensors;
        let lanes = coefficients.double.lanes;
        let direct = direct_forward(pass.epilogue, lanes);
        if let Some(direct) = direct.filter(|it| coefficients.are_direct::<E>(it.add)) {
            let residual = residual.unwrap_or_default();
            let mask = mask.unwrap_or_default();
            return with_forward!(direct, |FLOOR, ADD| {
                with_precision!(E::SINGLE && !ADD, coefficients, |coefficients| {
                    for part in coefficients.parts(x.len()) {
                        Forward::<_, _, _, FLOOR, ADD> {
                            x: Input::part(isa, x, &part),
                            residual: Input::part(isa, residual, &part),
                            y: Output::part(isa, y, &part, pass.streaming),
                            mask: mask.get_mut(bytes_of(&part.values)).unwrap_or_default(),
                            floor: direct.floor::<E>(),
                            coefficients: coefficients.along(&part),
                        }
                        .run();
                    }
                })
            })
            .unwrap_or_default();
        }
        let coefficients = coefficients.double;
        for (values, columns) in pieces(x.len(), lanes) {
            let z = &mut blocks.z[..values.len()];
            let residual = residual.map(|residual| &residual[values.clone()]);
            let mask = mask.as_deref_mut().map(|mask| &mut mask[mask_range(&values, lanes)]);
            let coefficients = coefficients.columns(columns);
            forward_block(isa, &x[values.clone()], z, &coefficients, pass.epilogue, residual, mask);
            block::store(isa, z, &mut y[values], pass.streaming);
        }
    }
}

/// Whether direct loops, which go through a mask without regard to rows, find whole bytes there.
fn has_whole_bytes(epilogue: Epilogue, lanes: usize) -> bool {
    !epilogue.has_mask() || lanes.is_multiple_of(8)
}

/// `z = y`; writes the mask.
#[inline(always)]
fn forward_block<E: Element>(
    isa: impl Isa,
    x: &[E],
    z: &mut [f64],
    coefficients: &LaneCoefficients<'_>,
    epilogue: Epilogue,
    residual: Option<&[E]>,
    mask: Option<&mut [u8]>,
) {
    let lanes = coefficients.lanes;
    block::load(isa, x, z);
    coefficients.normalize_in_place::<E>(z);
    if let Some(residual) = residual {
        block::load_add(isa, residual, z);
    }
    if let Some(mask) = mask {
        for (row, z) in mask.chunks_exact_mut(lanes.div_ceil(8)).zip(z.chunks_exact(lanes)) {
            epilogue::write_mask(epilogue.activation, z, row);
        }
    }
    epilogue::activate(epilogue.activation, E::DTYPE, z);
}

/// [`apply`] with x in y's place.
pub fn apply_in_place<E: Element>(
    partition: &Partition,
    tensors: (Option<ArrayView3<'_, E>>, ArrayViewMut3<'_, E>),
    channels: &Channels<'_, E::Param>,
    lanes: &mut LaneTables,
    epilogue: Epilogue,
) {
    let coefficients = forward_coefficients::<E>(lanes, partition, channels, epilogue, 0);
    let pass = Pass { epilogue, streaming: false };
    partition.for_each_rows(tensors, &|tensors, rows, lanes, blocks| {
        let coefficients = coefficients.first(lanes);
        let mut copy = [E::default(); TILE];
        for_each_dense(tensors, rows, &mut |(residual, y)| {
            for (values, columns) in pieces(y.len(), lanes) {
                let (residual, y) = (residual.map(|it| &it[values.clone()]), &mut y[values]);
                let x = &mut copy[..y.len()];
                x.copy_from_slice(y);
                apply_rows((x, residual, y, None), coefficients.columns(columns), pass, blocks);
            }
        });
    });
}

type FlatInputs<'a, E> = (&'a [E], &'a [E], Option<&'a [E]>, Option<&'a [u8]>);

/// Fills the blocks d (x - mean) and g (the gradient of z) with a piece of the rows, and returns
/// them; `lanes` is the length of a row.
#[inline(always)]
fn load_gradient<'b, E: Element>(
    isa: impl Isa,
    blocks: &'b mut Blocks,
    inputs: &FlatInputs<'_, E>,
    values: Range<usize>,
    lanes: usize,
    coefficients: &LaneCoefficients<'_>,
    epilogue: Epilogue,
) -> (&'b mut [f64], &'b mut [f64]) {
    let len = values.len();
    let (d, g, z) = (&mut blocks.d[..len], &mut blocks.g[..len], &mut blocks.z[..len]);
    let (x, dy, residual, mask) = inputs;
    block::load(isa, &x[values.clone()], d);
    coefficients.center::<E>(d);
    block::load(isa, &dy[values.clone()], g);
    let activation = epilogue.activation;
    if let Some(mask) = mask {
        let columns = coefficients.lanes;
        let mask = mask[mask_range(&values, lanes)].chunks_exact(columns.div_ceil(8));
        for (mask, g) in mask.zip(g.chunks_exact_mut(columns)) {
            epilogue::differentiate_by_mask(activation, mask, g);
        }
    } else if activation != Activation::Identity {
        coefficients.normalize(d, z);
        if let Some(residual) = residual {
            block::load_add(isa, &residual[values], z);
        }
        epilogue::differentiate(activation, E::DTYPE, z, g);
    }
    (d, g)
}

/// Rows of a lane's backward sums: g, g * d.
const SUM_LANES: usize = 2;

/// Each channel's sums of g and of g * d.
pub fn reduce<E: Element>(
    partition: &Partition,
    inputs: BackwardTensors<'_, E>,
    channels: &Channels<'_, E::Param>,
    partials: &mut [f64],
    lanes: &mut LaneTables,
    epilogue: Epilogue,
    mut result: impl FnMut(usize, Sums),
) {
    let width = SUM_LANES * partition.lanes();
    let direct = direct_backward(epilogue, inputs.3.is_some(), partition.lanes());
    let coefficients = backward_coefficients::<E>(lanes, partition, channels, None, direct, 0);
    partition.for_each_partial(inputs, partials, width, &|inputs, rows, lanes, partial| {
        let partial = &mut partial[..SUM_LANES * lanes];
        partial.fill(0.0);
        with_blocks(|blocks| {
            for_each_dense(inputs, rows, &mut |inputs| {
                reduce_rows(inputs, coefficients.first(lanes), epilogue, partial, blocks);
            });
        });
    });
    let (partials, added) = partials.split_at_mut(partition.partials() * width);
    let added = &mut added[..SUM_LANES * partition.channels];
    let count = add_partials::<E>(partition, partials, added);
    let (g, gd) = added.split_at(partition.channels);
    for (channel, (&g, &gd)) in g.iter().zip(gd).enumerate() {
        let [g, gd] = coefficients.sums(channel * partition.positions, [g, gd]);
        result(channel, Sums { count, g, gd });
    }
}

vectorized! {
    /// Adds up every channel's partial sums in order into `[2, C]`; returns how many values that is.
    fn add_partials<'a, E>(
        partition: &'a Partition,
        partials: &'a [f64],
        added: &'a mut [f64],
    ) -> f64 {
        let width = SUM_LANES * partition.lanes();
        let mut before = 0.0;
        added.fill(0.0);
        for (part, lanes, count) in partition.sources() {
            let sums = partials[part * width..][..SUM_LANES * lanes].chunks_exact(lanes);
            for (sums, added) in sums.zip(added.chunks_exact_mut(partition.channels)) {
                for row in sums.chunks_exact(partition.row()) {
                    match partition.positions {
                        1 => added.iter_mut().zip(row).for_each(|(added, &sum)| *added += sum),
                        positions => {
                            let channels = added.iter_mut().zip(row.chunks_exact(positions));
                            channels.for_each(|(added, sums)| *added += sums.iter().sum::<f64>());
                        }
                    }
                }
            }
            before += count * (lanes / partition.channels) as f64;
        }
        before
    }
}

vectorized! {
    |isa|
    /// Adds dense rows to the sums of each lane.
    fn reduce_rows<'a, 'b, E>(
        inputs: FlatInputs<'a, E>,
        coefficients: LanePrecisions<'a>,
        epilogue: Epilogue,
        partial: &'a mut [f64],
        blocks: &'b mut Blocks,
    ) {
        let lanes = coefficients.double.lanes;
        let (sum_g, sum_gd) = partial.split_at_mut(lanes);
        let direct = direct_backward(epilogue, inputs.3.is_some(), lanes);
        if let Some(direct) = direct.filter(|_| coefficients.are_direct::<E>(false)) {
            let (x, dy, _, mask) = inputs;
            let inputs = BackwardRun::new(isa, x, dy, mask.unwrap_or_default());
            return with_backward!(direct, |RELU, MASK| {
                with_precision!(E::SINGLE, coefficients, |coefficients| {
                    coefficients.add_sums::<E, RELU, MASK>(isa, inputs, sum_g, sum_gd);
                })
            })
            .unwrap_or_default();
        }
        let coefficients = coefficients.double;
        for (values, columns) in pieces(inputs.0.len(), lanes) {
            let coefficients = coefficients.columns(columns.clone());
            let (d, g) = load_gradient(isa, blocks, &inputs, values, lanes, &coefficients, epilogue);
            let width = columns.len();
            let (sum_g, sum_gd) = (&mut sum_g[columns.clone()], &mut sum_gd[columns]);
            for (g, d) in g.chunks_exact(width).zip(d.chunks_exact(width)) {
                for lane in 0..width {
                    sum_g[lane] += g[lane];
                    sum_gd[lane] += g[lane] * d[lane];
                }
            }
        }
    }
}

/// Writes dx and dresidual: through the batch statistics, given each channel's sums, or with
/// constant statistics.
pub fn gradients<E: Element>(
    partition: &Partition,
    inputs: BackwardTensors<'_, E>,
    outputs: GradientTensors<'_, E>,
    sums: Option<&[Sums]>,
    channels: &Channels<'_, E::Param>,
    lanes: &mut LaneTables,
    pass: Pass,
) {
    let frozen = sums.is_none();
    if frozen && pass.epilogue.activation == Activation::Identity {
        return scale_gradients(partition, inputs.1, outputs, channels, lanes, pass);
    }
    let direct = direct_gradient(pass.epilogue, inputs.3.is_some(), frozen, partition.lanes());
    let head = head_of(&outputs.0, inputs.3.is_some());
    let coefficients = backward_coefficients::<E>(lanes, partition, channels, sums, direct, head);
    partition.for_each_rows((inputs, outputs), &|(inputs, outputs), rows, lanes, blocks| {
        let coefficients = coefficients.first(lanes);
        for_each_dense((inputs, outputs), rows, &mut |(inputs, outputs)| {
            write_gradients(inputs, outputs, coefficients, frozen, pass, blocks);
        });
        finish_streaming();
    });
}

vectorized! {
    |isa|
    fn write_gradients<'a, 'b, E>(
        inputs: FlatInputs<'a, E>,
        outputs: (&'a mut [E], Option<&'a mut [E]>),
        coefficients: LanePrecisions<'a>,
        frozen: bool,
        pass: Pass,
        blocks: &'b mut Blocks,
    ) {
        let (dx, mut dresidual) = outputs;
        let lanes = coefficients.double.lanes;
        let direct = direct_gradient(pass.epilogue, inputs.3.is_some(), frozen, lanes);
        if let Some(direct) = direct.filter(|_| coefficients.are_direct::<E>(false)) {
            let (x, dy, _, mask) = inputs;
            let (mask, dresidual) = (mask.unwrap_or_default(), dresidual.unwrap_or_default());
            return with_gradient!(direct, frozen, |RELU, MASK, FROZEN| {
                with_precision!(E::SINGLE, coefficients, |coefficients| {
                    for part in coefficients.parts(x.len()) {
                        if !MASK && !dresidual.is_empty() {
                            let values = part.values.clone();
                            dresidual[values.clone()].copy_from_slice(&dy[values]);
                        }
                        Gradient::<_, _, _, RELU, MASK, FROZEN> {
                            inputs: BackwardRun::part(isa, x, dy, mask, &part),
                            dx: Output::part(isa, dx, &part, pass.streaming),
                            dresidual: Output::part(isa, dresidual, &part, pass.streaming),
                            coefficients: coefficients.along(&part),
                        }
                        .run();
                    }
                })
            })
            .unwrap_or_default();
        }
        let coefficients = coefficients.double;
        for (values, columns) in pieces(dx.len(), lanes) {
            let coefficients = coefficients.columns(columns);
            let (at, epilogue) = (values.clone(), pass.epilogue);
            let (d, g) = load_gradient(isa, blocks, &inputs, at, lanes, &coefficients, epilogue);
            if let Some(dresidual) = &mut dresidual {
                block::store(isa, g, &mut dresidual[values.clone()], pass.streaming);
            }
            if frozen {
                coefficients.scale_rows(g);
            } else {
                coefficients.input_gradient(g, d);
            }
            block::store(isa, g, &mut dx[values], pass.streaming);
        }
    }
}

/// `dx = scale * dy`, which is a forward call on dy, and `dresidual = dy`: where neither the batch nor
/// an activation comes between.
fn scale_gradients<E: Element>(
    partition: &Partition,
    dy: ArrayView3<'_, E>,
    (dx, dresidual): GradientTensors<'_, E>,
    channels: &Channels<'_, E::Param>,
    lanes: &mut LaneTables,
    pass: Pass,
) {
    let (head, pass) = (head_of(&dx, false), pass.without_epilogue());
    let double = LaneCoefficients::fill_scale::<E>(&mut lanes.double, partition, channels, head);
    let coefficients = double.with_single::<E>(&mut lanes.single);
    partition.for_each_rows((dy, dx, dresidual), &|tensors, rows, lanes, blocks| {
        for_each_dense(tensors, rows, &mut |(dy, dx, dresidual)| {
            if let Some(dresidual) = dresidual {
                dresidual.copy_from_slice(dy);
            }
            apply_rows((dy, None, dx, None), coefficients.first(lanes), pass, blocks);
        });
        finish_streaming();
    });
}
