//! The split form on any backend, with parts of a batch for ranks: what `SyncBatchNorm` does on
//! the CPU, with an all-gather by way of the host.

use crate::buffers::{Buffers, Call, GradientBuffers};
use crate::subject::{Input, Statistics, Subject, Synchronized, Tensor};
use ndarray::{ArrayD, IxDyn};
use warpnorm::{
    Affine, Apply, Backend, BackwardApply, BackwardReduce, BatchNorm, Element, Error, Gradients,
    MOMENT_ROWS, MergeStatistics, Norm, Param, Result, RunningMut, SUM_ROWS, Saved, SavedRef,
    State,
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
    let mut state = bn.state()?;
    let mut ranks = Ranks::new(on, bn, &state, inputs, dy)?;
    let y = ranks.forward(&bn.norm());
    // Whatever came of it: a refused call must have left them alone.
    ranks.parameters.download(on.backend(), &mut state)?;
    bn.load_state(&state)?;
    let y = y?;
    let first = &ranks.parts[0];
    let statistics = Statistics::download(on.backend(), &first.saved)?;
    let gradients = dy.map(|_| ranks.backward()).transpose()?;
    Ok(Synchronized { y, statistics, gradients })
}

/// A rank's share of the call.
struct Part<'a, B: Backend, E: Element> {
    input: Input<'a, E>,
    call: Call<B, E>,
    /// Its statistics are those of all ranks.
    saved: Saved<B, E::Param>,
    mask: B::Buffer<u8>,
}

struct Ranks<'a, B: Backend, E: Element> {
    on: &'a Buffers<B>,
    parameters: Parameters<B, E::Param>,
    parts: Vec<Part<'a, B, E>>,
}

impl<'a, B: Backend, E: Element> Ranks<'a, B, E> {
    fn new(
        on: &'a Buffers<B>,
        bn: &BatchNorm<B, E::Param>,
        state: &State<E::Param>,
        inputs: &[Input<'a, E>],
        dy: Option<&[&Tensor<E>]>,
    ) -> Result<Self> {
        let part = |(rank, &input): (usize, &Input<'a, E>)| {
            let call = Call::new(on, bn, input, dy.map(|dy| dy[rank]))?;
            let saved = Saved::new(on.backend(), &call.problem)?;
            let mask = on.backend().zeros(call.problem.mask_len())?;
            Ok(Part { input, call, saved, mask })
        };
        let parts = inputs.iter().enumerate().map(part).collect::<Result<Vec<_>>>()?;
        let first = parts.first().ok_or_else(|| Error::argument("x", "at least one part", 0))?;
        // On a GPU merge_statistics cannot tell.
        let values = parts.iter().map(|part| part.call.problem.values_per_channel()).sum();
        first.call.problem.check_trainable(values)?;
        Ok(Ranks { on, parameters: Parameters::upload(on.backend(), state)?, parts })
    }

    fn forward(&mut self, norm: &Norm) -> Result<Vec<ArrayD<E>>> {
        let (backend, channels) = (self.on.backend(), self.channels());
        let mut moments = Vec::new();
        for part in &mut self.parts {
            let Call { problem, x, workspace, .. } = &mut part.call;
            let mut own = backend.zeros(MOMENT_ROWS * channels)?;
            backend.statistics::<E>(problem, B::slice(x), B::slice_mut(&mut own), workspace)?;
            moments.extend(backend.download(&own)?);
        }
        let moments = backend.upload(&moments)?;
        let mut running = self.parameters.running.as_mut();
        for part in &mut self.parts {
            // Each rank would advance its own; here there is one layer.
            let running = running.take().map(RunningBuffers::as_mut);
            let saved = part.saved.as_mut();
            let merge = MergeStatistics::<'_, B, E> { moments: B::slice(&moments), running, saved };
            backend.merge_statistics(channels, norm, merge)?;
        }
        self.parts.iter_mut().map(|part| part.apply(self.on, &self.parameters)).collect()
    }

    fn backward(&mut self) -> Result<Vec<Gradients<E, IxDyn>>> {
        let (backend, channels) = (self.on.backend(), self.channels());
        let (mut gathered, mut gradients) = (Vec::new(), Vec::new());
        for part in &mut self.parts {
            let mut own = backend.zeros(SUM_ROWS * channels)?;
            let affine = self.parameters.weight.is_some();
            let mut part_gradients = GradientBuffers::new(self.on, channels, affine, part.input)?;
            part.reduce(backend, &self.parameters, &mut own, &mut part_gradients)?;
            gathered.extend(backend.download(&own)?);
            gradients.push(part_gradients);
        }
        let gathered = backend.upload(&gathered)?;
        let mut sums = backend.zeros(SUM_ROWS * channels)?;
        backend.merge_sums(channels, B::slice(&gathered), B::slice_mut(&mut sums))?;
        let parts = self.parts.iter_mut().zip(gradients);
        let gradients = parts.map(|(part, mut gradients)| {
            part.backward_apply(backend, &self.parameters, &sums, &mut gradients)?;
            gradients.download(self.on, part.input.x.shape())
        });
        gradients.collect()
    }

    fn channels(&self) -> usize {
        self.parts[0].call.problem.channels()
    }
}

impl<B: Backend, E: Element> Part<'_, B, E> {
    fn apply(
        &mut self,
        on: &Buffers<B>,
        parameters: &Parameters<B, E::Param>,
    ) -> Result<ArrayD<E>> {
        let Call { problem, x, residual, workspace, .. } = &mut self.call;
        let mut y = on.unwritten::<E>(self.input.x.len())?;
        let args = Apply::<'_, B, E> {
            x: B::slice(x),
            residual: residual.as_ref().map(B::slice),
            affine: parameters.affine(),
            y: B::slice_mut(&mut y),
            saved: self.saved.as_ref(),
            mask: Some(B::slice_mut(&mut self.mask)),
            workspace,
        };
        on.backend().apply(problem, args)?;
        on.download(&y, self.input.x.shape())
    }

    fn reduce(
        &mut self,
        backend: &B,
        parameters: &Parameters<B, E::Param>,
        sums: &mut B::Buffer<f64>,
        gradients: &mut GradientBuffers<B, E>,
    ) -> Result<()> {
        let Call { problem, x, residual, dy, workspace } = &mut self.call;
        let args = BackwardReduce::<'_, B, E> {
            x: B::slice(x),
            residual: residual.as_ref().map(B::slice),
            dy: B::slice(dy.as_ref().ok_or_else(missing_dy)?),
            affine: parameters.affine(),
            saved: SavedRef { mask: Some(B::slice(&self.mask)), ..self.saved.as_ref() },
            sums: B::slice_mut(sums),
            dweight: gradients.dweight.as_mut().map(B::slice_mut),
            dbias: gradients.dbias.as_mut().map(B::slice_mut),
            workspace,
        };
        backend.backward_reduce(problem, args)
    }

    fn backward_apply(
        &mut self,
        backend: &B,
        parameters: &Parameters<B, E::Param>,
        sums: &B::Buffer<f64>,
        gradients: &mut GradientBuffers<B, E>,
    ) -> Result<()> {
        let Call { problem, x, residual, dy, workspace } = &mut self.call;
        let args = BackwardApply::<'_, B, E> {
            x: B::slice(x),
            residual: residual.as_ref().map(B::slice),
            dy: B::slice(dy.as_ref().ok_or_else(missing_dy)?),
            affine: parameters.affine(),
            saved: SavedRef { mask: Some(B::slice(&self.mask)), ..self.saved.as_ref() },
            sums: B::slice(sums),
            dx: B::slice_mut(&mut gradients.dx),
            dresidual: gradients.dresidual.as_mut().map(B::slice_mut),
            workspace,
        };
        backend.backward_apply(problem, args)
    }
}

fn missing_dy() -> Error {
    Error::argument("dy", "a tensor for every part", "none")
}

/// The layer's, which keeps its own buffers to itself.
struct Parameters<B: Backend, P: Param> {
    weight: Option<B::Buffer<P>>,
    bias: Option<B::Buffer<P>>,
    running: Option<RunningBuffers<B, P>>,
}

struct RunningBuffers<B: Backend, P: Param> {
    mean: B::Buffer<P>,
    var: B::Buffer<P>,
    num_batches_tracked: B::Buffer<i64>,
}

impl<B: Backend, P: Param> Parameters<B, P> {
    fn upload(backend: &B, state: &State<P>) -> Result<Self> {
        let upload = |values: &Option<Vec<P>>| {
            values.as_ref().map(|values| backend.upload(values)).transpose()
        };
        let running = match (upload(&state.running_mean)?, upload(&state.running_var)?) {
            (Some(mean), Some(var)) => {
                let batches = state.num_batches_tracked.unwrap_or(0);
                Some(RunningBuffers { mean, var, num_batches_tracked: backend.upload(&[batches])? })
            }
            _ => None,
        };
        Ok(Parameters { weight: upload(&state.weight)?, bias: upload(&state.bias)?, running })
    }

    /// The running statistics as they are now.
    fn download(&self, backend: &B, state: &mut State<P>) -> Result<()> {
        let Some(running) = &self.running else { return Ok(()) };
        state.running_mean = Some(backend.download(&running.mean)?);
        state.running_var = Some(backend.download(&running.var)?);
        state.num_batches_tracked =
            backend.download(&running.num_batches_tracked)?.first().copied();
        Ok(())
    }

    fn affine<E: Element<Param = P>>(&self) -> Affine<'_, B, E> {
        Affine {
            weight: self.weight.as_ref().map(B::slice),
            bias: self.bias.as_ref().map(B::slice),
        }
    }
}

impl<B: Backend, P: Param> RunningBuffers<B, P> {
    fn as_mut<E: Element<Param = P>>(&mut self) -> RunningMut<'_, B, E> {
        RunningMut {
            mean: B::slice_mut(&mut self.mean),
            var: B::slice_mut(&mut self.var),
            num_batches_tracked: B::slice_mut(&mut self.num_batches_tracked),
        }
    }
}
