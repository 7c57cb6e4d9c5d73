//! The passes over a tensor, whichever its layout: statistics, apply, reduce, gradients.

use super::bind::Partition;
use super::by_planes;
use super::channel::{Channels, Sums};
use super::moments::{ChannelMoments, Moments};
use super::tensor::{BackwardTensors, ForwardTensors, GradientTensors};
use super::tile::Pass;
use super::{CpuWorkspace, LaneTables, by_rows};
use crate::config::Epilogue;
use crate::element::Element;
use ndarray::ArrayView3;

/// Calls `result` with the channels' moments, merged over the parts in order.
pub(super) fn moments_of<E: Element>(
    partition: &Partition,
    x: ArrayView3<'_, E>,
    workspace: &mut CpuWorkspace,
    mut result: impl FnMut(ChannelMoments<'_>) + Send,
) {
    match partition {
        Partition::Planes(partition) => {
            by_planes::statistics(partition, x, &mut workspace.moments);
            let parts = workspace.moments.chunks(partition.parts());
            for (channel, parts) in parts.take(x.dim().1).enumerate() {
                let merged = parts.iter().fold(Moments::default(), |a, &b| a.merge(b));
                result(ChannelMoments::of_one(channel, &merged));
            }
        }
        Partition::Rows(partition) => {
            by_rows::statistics(partition, x, &mut workspace.partials, result);
        }
    }
}

/// Writes y and the mask.
pub(super) fn apply_to<E: Element>(
    partition: &Partition,
    tensors: ForwardTensors<'_, E>,
    channels: &Channels<'_, E::Param>,
    workspace: &mut CpuWorkspace,
    pass: Pass,
) {
    match partition {
        Partition::Planes(partition) => {
            by_planes::apply(partition, tensors, channels, pass);
        }
        Partition::Rows(partition) => {
            let lanes = &mut workspace.lanes;
            by_rows::apply(partition, tensors, channels, lanes, pass);
        }
    }
}

/// Leaves each channel's sums in the first C of `workspace.sums`.
pub(super) fn reduce_to_workspace<E: Element>(
    partition: &Partition,
    inputs: BackwardTensors<'_, E>,
    channels: &Channels<'_, E::Param>,
    workspace: &mut CpuWorkspace,
    count: usize,
    epilogue: Epilogue,
) {
    let CpuWorkspace { sums, partials, lanes, .. } = workspace;
    match partition {
        Partition::Planes(partition) => {
            let (sums, partials) = sums.split_at_mut(count);
            by_planes::reduce(partition, inputs, partials, channels, epilogue);
            for (sum, parts) in sums.iter_mut().zip(partials.chunks(partition.parts())) {
                *sum = parts.iter().fold(Sums::default(), |a, &b| a.add(b));
            }
        }
        Partition::Rows(partition) => {
            let result = |channel: usize, sum| sums[channel] = sum;
            by_rows::reduce(partition, inputs, channels, partials, lanes, epilogue, result);
        }
    }
}

/// Writes dx and dresidual; without sums the statistics are constants.
pub(super) fn gradients_to<E: Element>(
    partition: &Partition,
    inputs: BackwardTensors<'_, E>,
    outputs: GradientTensors<'_, E>,
    sums: Option<&[Sums]>,
    channels: &Channels<'_, E::Param>,
    lanes: &mut LaneTables,
    pass: Pass,
) {
    match partition {
        Partition::Planes(partition) => {
            by_planes::gradients(partition, inputs, outputs, sums, channels, pass);
        }
        Partition::Rows(partition) => {
            by_rows::gradients(partition, inputs, outputs, sums, channels, lanes, pass)
        }
    }
}

pub(super) fn write_parameter_gradients<E: Element>(
    sums: &[Sums],
    channels: &Channels<'_, E::Param>,
    dweight: Option<&mut [E::Param]>,
    dbias: Option<&mut [E::Param]>,
) {
    if let Some(dweight) = dweight {
        for (channel, (dweight, sums)) in dweight.iter_mut().zip(sums).enumerate() {
            *dweight = sums.dweight(channels.invstd(channel));
        }
    }
    if let Some(dbias) = dbias {
        for (dbias, sums) in dbias.iter_mut().zip(sums) {
            *dbias = sums.dbias();
        }
    }
}
