//! The split form on any backend, with parts of a batch for ranks: what `SyncBatchNorm` does on
//! the CPU, with an all-gather by way of the host.

use crate::buffers::{Buffers, Call, GradientBuffers};
use crate::subject::{Input, Statistics, Subject, Synchronized, Tensor};
use ndarray::{ArrayD, IxDyn};
use warpnorm::{
    Apply, Backend, BackwardApply, BackwardReduce, BatchNorm, Element, Error, Gradients,
    MOMENT_ROWS, MergeStatistics, Result, SUM_ROWS, Saved,
};

/// Forward, and backward if there is a `dy` for every part.
///
/// # Errors
/// The library refuses a call, or the device fails.
pub(crate) fn run<B: Backend, E: Element>(
    on: &Buffers<B>,
    bn: &mut BatchNorm<B, E::Param>,
    inputs: &[Input<'_, E>],
    dy: Option<&[&Tensor<E>]>,
) -> Result<Synchronized<E>> {
    let mut parts = parts(on, bn, inputs, dy)?;
    let moments = moments(on.backend(), bn.channels(), &mut parts)?;
    merge_statistics(on.backend(), bn, &moments, &mut parts)?;
    let y = parts.iter_mut().map(|part| part.apply(on, bn)).collect::<Result<Vec<_>>>()?;
    let statistics = Statistics::download(on.backend(), &parts[0].saved)?;
    let gradients = dy.map(|_| backward(on, bn, &mut parts)).transpose()?;
    Ok(Synchronized { y, statistics, gradients })
}

/// A rank's share of the call.
struct Part<'a, B: Backend, E: Element> {
    input: Input<'a, E>,
    call: Call<B, E>,
    /// Its statistics are those of all ranks; the mask is its own.
    saved: Saved<B, E::Param>,
}

fn parts<'a, B: Backend, E: Element>(
    on: &Buffers<B>,
    bn: &BatchNorm<B, E::Param>,
    inputs: &[Input<'a, E>],
    dy: Option<&[&Tensor<E>]>,
) -> Result<Vec<Part<'a, B, E>>> {
    let part = |(rank, &input): (usize, &Input<'a, E>)| {
        let call = Call::new(on, bn, input, dy.map(|dy| dy[rank]))?;
        let saved = Saved::new(on.backend(), &call.problem)?;
        Ok(Part { input, call, saved })
    };
    let parts = inputs.iter().enumerate().map(part).collect::<Result<Vec<_>>>()?;
    let first = parts.first().ok_or_else(|| Error::argument("x", "at least one part", 0))?;
    // On a GPU merge_statistics cannot tell.
    let values = parts.iter().map(|part| part.call.problem.values_per_channel()).sum();
    first.call.problem.check_trainable(values)?;
    Ok(parts)
}

/// Those of every part.
fn moments<B: Backend, E: Element>(
    backend: &B,
    channels: usize,
    parts: &mut [Part<'_, B, E>],
) -> Result<B::Buffer<f64>> {
    let mut gathered = Vec::new();
    for part in parts {
        let Call { problem, x, workspace, .. } = &mut part.call;
        let mut own = backend.zeros(MOMENT_ROWS * channels)?;
        backend.statistics::<E>(problem, B::slice(x), B::slice_mut(&mut own), workspace)?;
        gathered.extend(backend.download(&own)?);
    }
    backend.upload(&gathered)
}

/// Each rank would advance running statistics of its own; here there is one layer.
fn merge_statistics<B: Backend, E: Element>(
    backend: &B,
    bn: &mut BatchNorm<B, E::Param>,
    moments: &B::Buffer<f64>,
    parts: &mut [Part<'_, B, E>],
) -> Result<()> {
    let (channels, norm) = (bn.channels(), bn.norm());
    let mut running = bn.running_mut();
    for part in parts {
        let (running, saved) = (running.take(), part.saved.as_mut());
        let merge = MergeStatistics::<'_, B, E> { moments: B::slice(moments), running, saved };
        backend.merge_statistics(channels, &norm, merge)?;
    }
    Ok(())
}

fn backward<B: Backend, E: Element>(
    on: &Buffers<B>,
    bn: &BatchNorm<B, E::Param>,
    parts: &mut [Part<'_, B, E>],
) -> Result<Vec<Gradients<E, IxDyn>>> {
    let (backend, channels) = (on.backend(), bn.channels());
    let (mut gathered, mut gradients) = (Vec::new(), Vec::new());
    for part in &mut *parts {
        let mut own = backend.zeros(SUM_ROWS * channels)?;
        let mut part_gradients = GradientBuffers::new(on, bn, part.input)?;
        part.reduce(bn, &mut own, &mut part_gradients)?;
        gathered.extend(backend.download(&own)?);
        gradients.push(part_gradients);
    }
    let gathered = backend.upload(&gathered)?;
    let mut sums = backend.zeros(SUM_ROWS * channels)?;
    backend.merge_sums(channels, B::slice(&gathered), B::slice_mut(&mut sums))?;
    let gradients = parts.iter_mut().zip(gradients).map(|(part, mut gradients)| {
        part.backward_apply(bn, &sums, &mut gradients)?;
        gradients.download(on, part.input.x.shape())
    });
    gradients.collect()
}

impl<B: Backend, E: Element> Part<'_, B, E> {
    fn apply(&mut self, on: &Buffers<B>, bn: &BatchNorm<B, E::Param>) -> Result<ArrayD<E>> {
        let Call { problem, x, residual, workspace, .. } = &mut self.call;
        let mut y = on.unwritten::<E>(self.input.x.len())?;
        let (saved, mask) = self.saved.split_mask();
        let args = Apply::<'_, B, E> {
            x: B::slice(x),
            residual: residual.as_ref().map(B::slice),
            affine: bn.affine(),
            y: B::slice_mut(&mut y),
            saved,
            mask,
            workspace,
        };
        on.backend().apply(problem, args)?;
        on.download(&y, self.input.x.shape())
    }

    fn reduce(
        &mut self,
        bn: &BatchNorm<B, E::Param>,
        sums: &mut B::Buffer<f64>,
        gradients: &mut GradientBuffers<B, E>,
    ) -> Result<()> {
        let Call { problem, x, residual, dy, workspace } = &mut self.call;
        let args = BackwardReduce::<'_, B, E> {
            x: B::slice(x),
            residual: residual.as_ref().map(B::slice),
            dy: B::slice(dy.as_ref().ok_or_else(missing_dy)?),
            affine: bn.affine(),
            saved: self.saved.as_ref(),
            sums: B::slice_mut(sums),
            dweight: gradients.dweight.as_mut().map(B::slice_mut),
            dbias: gradients.dbias.as_mut().map(B::slice_mut),
            workspace,
        };
        bn.backend().backward_reduce(problem, args)
    }

    fn backward_apply(
        &mut self,
        bn: &BatchNorm<B, E::Param>,
        sums: &B::Buffer<f64>,
        gradients: &mut GradientBuffers<B, E>,
    ) -> Result<()> {
        let Call { problem, x, residual, dy, workspace } = &mut self.call;
        let args = BackwardApply::<'_, B, E> {
            x: B::slice(x),
            residual: residual.as_ref().map(B::slice),
            dy: B::slice(dy.as_ref().ok_or_else(missing_dy)?),
            affine: bn.affine(),
            saved: self.saved.as_ref(),
            sums: B::slice(sums),
            dx: B::slice_mut(&mut gradients.dx),
            dresidual: gradients.dresidual.as_mut().map(B::slice_mut),
            workspace,
        };
        bn.backend().backward_apply(problem, args)
    }
}

fn missing_dy() -> Error {
    Error::argument("dy", "a tensor for every part", "none")
}
