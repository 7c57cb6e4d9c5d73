//! What each call of the backend does: it binds its arguments, then runs its passes.

use super::bind::*;
use super::by_planes::{self, ForwardSettings};
use super::channel::{Channels, Sums};
use super::moments::{ChannelMoments, Moments, read};
use super::passes::*;
use super::tensor::{CpuSlice, CpuSliceMut};
use super::{Cpu, CpuWorkspace, by_rows};
use crate::arguments::rank_count;
use crate::backend::*;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::problem::{Operand, Problem};

pub(super) fn forward_train<E: Element>(
    cpu: &Cpu,
    problem: &Problem,
    norm: &Norm,
    args: ForwardTrain<'_, Cpu, E>,
) -> Result<()> {
    let ForwardTrain { x, residual, affine, running, y, saved, workspace } = args;
    let gapless = is_forward_gapless(problem, &x, &residual, &y);
    let call = Call::new::<E>(cpu, problem, &gapless, workspace)?;
    problem.check_trainable(problem.values_per_channel())?;
    let channels = problem.channels();
    let weight = optional("weight", channels, affine.weight)?;
    let bias = optional("bias", channels, affine.bias)?;
    let (mut saved, mask) = BoundSavedMut::bind(channels, norm, saved, running)?;
    let x = call.bind(Operand::X, x)?;
    let residual = call.bind_residual(residual)?;
    let mask = call.bind_mask_mut("saved.mask", mask)?;
    let tensors = (x, residual, call.bind_mut(Operand::Y, y)?, mask);
    let pass = call.pass();

    cpu.run(call.parallel, || {
        match &call.partition {
            Partition::Planes(partition) if partition.parts() == 1 => {
                let settings = ForwardSettings {
                    weight,
                    bias,
                    eps: norm.eps,
                    running_factor: saved.factor,
                    pass,
                };
                by_planes::forward_train(partition, tensors, saved.along(), &settings);
            }
            partition => {
                moments_of(partition, x, workspace, |moments| {
                    saved.write::<E>(moments, norm.eps);
                });
                let channels = Channels { statistics: saved.statistics(), weight, bias };
                apply_to(partition, tensors, &channels, workspace, pass);
            }
        }
        saved.count_batch();
    });
    Ok(())
}

pub(super) fn backward_train<E: Element>(
    cpu: &Cpu,
    problem: &Problem,
    args: BackwardTrain<'_, Cpu, E>,
) -> Result<()> {
    let BackwardTrain { x, residual, dy, affine, saved, gradients, workspace } = args;
    problem.check_trainable(problem.values_per_channel())?;
    let needs_residual = problem.epilogue().backward_reads_residual();
    let (statistics, mask) = bind_saved(problem.channels(), saved)?;
    let backward = Backward::bind(
        cpu,
        problem,
        (x, dy, residual, mask),
        needs_residual,
        affine,
        statistics,
        gradients,
        workspace,
    )?;
    let Backward { call, inputs, outputs, channels, dweight, dbias } = backward;
    let (count, pass) = (problem.channels(), call.pass());

    cpu.run(call.parallel, || {
        match &call.partition {
            Partition::Planes(partition) if partition.parts() == 1 => {
                by_planes::backward_train(
                    partition,
                    inputs,
                    outputs,
                    &mut workspace.sums[..count],
                    &channels,
                    pass,
                );
            }
            partition => {
                reduce_to_workspace(partition, inputs, &channels, workspace, count, pass.epilogue);
                let CpuWorkspace { sums, lanes, .. } = workspace;
                gradients_to(
                    partition,
                    inputs,
                    outputs,
                    Some(&sums[..count]),
                    &channels,
                    lanes,
                    pass,
                );
            }
        }
        write_parameter_gradients::<E>(&workspace.sums[..count], &channels, dweight, dbias);
    });
    Ok(())
}

pub(super) fn inference<E: Element>(
    cpu: &Cpu,
    problem: &Problem,
    norm: &Norm,
    args: Inference<'_, Cpu, E>,
) -> Result<()> {
    let Inference { x, residual, affine, running, y, workspace } = args;
    let gapless = is_forward_gapless(problem, &x, &residual, &y);
    let call = Call::new::<E>(cpu, problem, &gapless, workspace)?;
    let statistics = bind_running(problem.channels(), running, norm.eps)?;
    let channels = bind_channels::<E>(problem.channels(), affine, statistics)?;
    let x = call.bind(Operand::X, x)?;
    let residual = call.bind_residual(residual)?;
    let tensors = (x, residual, call.bind_mut(Operand::Y, y)?, None);
    let pass = call.pass();
    cpu.run(call.parallel, || {
        apply_to(&call.partition, tensors, &channels, workspace, pass);
    });
    Ok(())
}

pub(super) fn inference_inplace<E: Element>(
    cpu: &Cpu,
    problem: &Problem,
    norm: &Norm,
    args: InferenceInplace<'_, Cpu, E>,
) -> Result<()> {
    let InferenceInplace { x, residual, affine, running, workspace } = args;
    let gapless = [
        is_gapless_mut(problem, Operand::X, &x),
        residual.is_none_or(|residual| is_gapless(problem, Operand::Residual, &residual)),
    ];
    let call = Call::new::<E>(cpu, problem, &gapless, workspace)?;
    let statistics = bind_running(problem.channels(), running, norm.eps)?;
    let channels = bind_channels::<E>(problem.channels(), affine, statistics)?;
    let residual = call.bind_residual(residual)?;
    let tensors = (residual, call.bind_mut(Operand::X, x)?);
    let epilogue = problem.epilogue();
    cpu.run(call.parallel, || match &call.partition {
        Partition::Planes(partition) => {
            by_planes::apply_in_place(partition, tensors, &channels, epilogue);
        }
        Partition::Rows(partition) => {
            let lanes = &mut workspace.lanes;
            by_rows::apply_in_place(partition, tensors, &channels, lanes, epilogue);
        }
    });
    Ok(())
}

pub(super) fn inference_backward<E: Element>(
    cpu: &Cpu,
    problem: &Problem,
    norm: &Norm,
    args: InferenceBackward<'_, Cpu, E>,
) -> Result<()> {
    let InferenceBackward { x, residual, dy, affine, running, gradients, workspace } = args;
    let needs_residual = problem.epilogue().inference_backward_reads_residual();
    let statistics = bind_running(problem.channels(), running, norm.eps)?;
    let backward = Backward::bind(
        cpu,
        problem,
        (x, dy, residual, None),
        needs_residual,
        affine,
        statistics,
        gradients,
        workspace,
    )?;
    let Backward { call, inputs, outputs, channels, dweight, dbias } = backward;
    let (count, pass) = (problem.channels(), call.pass());

    cpu.run(call.parallel, || {
        if dweight.is_some() || dbias.is_some() {
            let partition = &call.partition;
            reduce_to_workspace(partition, inputs, &channels, workspace, count, pass.epilogue);
            write_parameter_gradients::<E>(&workspace.sums[..count], &channels, dweight, dbias);
        }
        gradients_to(&call.partition, inputs, outputs, None, &channels, &mut workspace.lanes, pass);
    });
    Ok(())
}

pub(super) fn statistics<E: Element>(
    cpu: &Cpu,
    problem: &Problem,
    x: CpuSlice<'_, E>,
    moments: CpuSliceMut<'_, f64>,
    workspace: &mut CpuWorkspace,
) -> Result<()> {
    let gapless = [is_gapless(problem, Operand::X, &x)];
    let call = Call::new::<E>(cpu, problem, &gapless, workspace)?;
    let channels = problem.channels();
    let rows = moments.flat("moments", MOMENT_ROWS * channels)?;
    let x = call.bind(Operand::X, x)?;
    cpu.run(call.parallel, || {
        moments_of(&call.partition, x, workspace, |moments| {
            let range = moments.range();
            let mut rows = rows.chunks_exact_mut(channels).map(|row| &mut row[range.clone()]);
            rows.next().expect("four rows").fill(moments.count);
            for (row, values) in rows.zip([moments.mean_hi, moments.mean_lo, moments.m2]) {
                row.copy_from_slice(values);
            }
        });
    });
    Ok(())
}

pub(super) fn apply<E: Element>(
    cpu: &Cpu,
    problem: &Problem,
    args: Apply<'_, Cpu, E>,
) -> Result<()> {
    let Apply { x, residual, affine, y, saved, mask, workspace } = args;
    let gapless = is_forward_gapless(problem, &x, &residual, &y);
    let call = Call::new::<E>(cpu, problem, &gapless, workspace)?;
    let (statistics, _) = bind_saved(problem.channels(), saved)?;
    let channels = bind_channels::<E>(problem.channels(), affine, statistics)?;
    let x = call.bind(Operand::X, x)?;
    let residual = call.bind_residual(residual)?;
    let mask = call.bind_mask_mut("mask", mask)?;
    let tensors = (x, residual, call.bind_mut(Operand::Y, y)?, mask);
    let pass = call.pass();
    cpu.run(call.parallel, || {
        apply_to(&call.partition, tensors, &channels, workspace, pass);
    });
    Ok(())
}

pub(super) fn backward_reduce<E: Element>(
    cpu: &Cpu,
    problem: &Problem,
    args: BackwardReduce<'_, Cpu, E>,
) -> Result<()> {
    let BackwardReduce { x, residual, dy, affine, saved, sums, dweight, dbias, workspace } = args;
    let count = problem.channels();
    let needs_residual = problem.epilogue().backward_reads_residual();
    let residual = residual.filter(|_| needs_residual);
    let (statistics, mask) = bind_saved(count, saved)?;
    let gapless = [
        is_gapless(problem, Operand::X, &x),
        is_gapless(problem, Operand::Dy, &dy),
        residual.is_none_or(|residual| is_gapless(problem, Operand::Residual, &residual)),
    ];
    let call = Call::new::<E>(cpu, problem, &gapless, workspace)?;
    let inputs = (
        call.bind(Operand::X, x)?,
        call.bind(Operand::Dy, dy)?,
        call.bind_residual_for_backward(residual, needs_residual)?,
        call.bind_mask(mask)?,
    );
    let channels = bind_channels::<E>(count, affine, statistics)?;
    let rows = sums.flat("sums", SUM_ROWS * count)?;
    let dweight = optional_mut("dweight", count, dweight)?;
    let dbias = optional_mut("dbias", count, dbias)?;
    cpu.run(call.parallel, || {
        let epilogue = problem.epilogue();
        reduce_to_workspace(&call.partition, inputs, &channels, workspace, count, epilogue);
        let sums = &workspace.sums[..count];
        for (channel, sums) in sums.iter().enumerate() {
            rows[channel] = sums.count;
            rows[count + channel] = sums.g;
            rows[2 * count + channel] = sums.gd;
        }
        write_parameter_gradients::<E>(sums, &channels, dweight, dbias);
    });
    Ok(())
}

pub(super) fn backward_apply<E: Element>(
    cpu: &Cpu,
    problem: &Problem,
    args: BackwardApply<'_, Cpu, E>,
) -> Result<()> {
    let BackwardApply { x, residual, dy, affine, saved, sums, dx, dresidual, workspace } = args;
    let count = problem.channels();
    let needs_residual = problem.epilogue().backward_reads_residual();
    let (statistics, mask) = bind_saved(count, saved)?;
    let rows = sums.flat("sums", SUM_ROWS * count)?;
    if let Some((channel, values)) = untrainable(rows[..count].iter().copied()) {
        return Err(Error::argument(
            "sums",
            "more than 1 value per channel",
            format_args!("{values} in channel {channel}"),
        ));
    }
    let gradients = GradientsMut { dx, dresidual, dweight: None, dbias: None };
    let backward = Backward::bind(
        cpu,
        problem,
        (x, dy, residual, mask),
        needs_residual,
        affine,
        statistics,
        gradients,
        workspace,
    )?;
    let Backward { call, inputs, outputs, channels, .. } = backward;
    cpu.run(call.parallel, || {
        let CpuWorkspace { sums, lanes, .. } = workspace;
        for (channel, sums) in sums[..count].iter_mut().enumerate() {
            *sums = Sums {
                count: rows[channel],
                g: rows[count + channel],
                gd: rows[2 * count + channel],
            };
        }
        gradients_to(
            &call.partition,
            inputs,
            outputs,
            Some(&sums[..count]),
            &channels,
            lanes,
            call.pass(),
        );
    });
    Ok(())
}

/// The first channel whose count of values gives no variance, or is none.
fn untrainable(counts: impl Iterator<Item = f64>) -> Option<(usize, f64)> {
    counts.enumerate().find(|(_, values)| values.is_nan() || *values <= 1.0)
}

pub(super) fn merge_statistics<E: Element>(
    channels: usize,
    norm: &Norm,
    args: MergeStatistics<'_, Cpu, E>,
) -> Result<()> {
    let MergeStatistics { moments, running, saved } = args;
    let ranks = rank_count("moments", MOMENT_ROWS.saturating_mul(channels), moments.len())?;
    let moments = moments.flat("moments", ranks * MOMENT_ROWS * channels)?;
    let (mut saved, _) = BoundSavedMut::bind(channels, norm, saved, running)?;
    let merged = |channel| {
        moments
            .chunks_exact(MOMENT_ROWS * channels)
            .map(|rank| read(rank, channels, channel))
            .fold(Moments::default(), Moments::merge)
    };
    if let Some((channel, values)) = untrainable((0..channels).map(|it| merged(it).count)) {
        return Err(Error::argument(
            "moments",
            "more than 1 value per channel to take statistics of",
            format_args!("{values} in channel {channel} over {ranks} ranks"),
        ));
    }
    for channel in 0..channels {
        saved.write::<E>(ChannelMoments::of_one(channel, &merged(channel)), norm.eps);
    }
    saved.count_batch();
    Ok(())
}

pub(super) fn merge_sums(
    channels: usize,
    gathered: CpuSlice<'_, f64>,
    sums: CpuSliceMut<'_, f64>,
) -> Result<()> {
    let len = SUM_ROWS.saturating_mul(channels);
    let ranks = rank_count("gathered", len, gathered.len())?;
    let gathered = gathered.flat("gathered", ranks * len)?;
    let sums = sums.flat("sums", len)?;
    for (index, sum) in sums.iter_mut().enumerate() {
        *sum = gathered.iter().skip(index).step_by(len).sum();
    }
    Ok(())
}
