//! [`BatchNorm`]: the stateful layer, on any backend.

use crate::backend::*;
use crate::config::{BatchNormConfig, Epilogue, Layout, check_momentum};
use crate::element::{Element, Param};
use crate::error::{Error, Result, check_len};
use crate::memory::filled;
use crate::problem::Problem;
use crate::saved::Saved;

/// Batch normalization with its parameters and running statistics, as `torch.nn.BatchNorm*d`
/// keeps them: `weight` and `bias` (gamma and beta, `[C]`), `running_mean` and `running_var`
/// (`[C]`), `num_batches_tracked`.
///
/// `P` is what they are held in: `f32` for tensors of `f32`, `f16` and `bf16`, `f64` for `f64`, which
/// only the CPU takes.
///
/// # Calls on arrays and on buffers
/// On the [`Cpu`](crate::Cpu) the layer takes and gives `ndarray` arrays
/// ([`forward_train`](Self::forward_train), [`backward`](Self::backward),
/// [`forward_eval`](Self::forward_eval) and their like). The calls whose names end in `_into` work
/// on flat buffers that are all the caller's and are the same on every backend:
///
/// ```
/// use warpnorm::{Backend, BatchNorm, Cpu, GradientsMut, Layout, Saved};
///
/// let mut bn: BatchNorm = BatchNorm::new(2, Cpu::new())?;
///
/// // Once for each shape.
/// let problem = bn.problem::<f32>(&[4, 2], Layout::ChannelsLast, false)?;
/// let mut saved = Saved::new(bn.backend(), &problem)?;
/// let mut workspace = bn.backend().workspace(&problem)?;
/// let x = vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 9.0];
/// let dy = vec![1.0f32, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
/// let (mut y, mut dx) = (vec![0.0f32; 8], vec![0.0f32; 8]);
/// let (mut dweight, mut dbias) = (vec![0.0f32; 2], vec![0.0f32; 2]);
///
/// // In each step.
/// let (input, output) = ((&x).into(), (&mut y).into());
/// bn.forward_train_into::<f32>(&problem, input, None, output, &mut saved, &mut workspace)?;
/// let gradients = GradientsMut {
///     dx: (&mut dx).into(),
///     dresidual: None,
///     dweight: Some((&mut dweight).into()),
///     dbias: Some((&mut dbias).into()),
/// };
/// let (input, dy) = ((&x).into(), (&dy).into());
/// bn.backward_into::<f32>(&problem, input, None, dy, &saved, gradients, &mut workspace)?;
/// for (weight, gradient) in bn.weight_mut().unwrap().iter_mut().zip(&dweight) {
///     *weight -= 0.1 * gradient;
/// }
/// assert_eq!(dbias, [1.0, 0.0]);
/// # Ok::<(), warpnorm::Error>(())
/// ```
///
/// # Shape and layout of arrays
/// An array has rank 2 and up with channels on axis 1, `[N, C, spatial...]`. Its layout is read off
/// its strides: channels-first if the spatial axes run fastest, channels-last if the channels do
/// (such as an NHWC array seen through `permuted_axes([0, 3, 1, 2])`). Axes of extent 1 are ignored;
/// where both fit, an array of one position per sample, such as `[N, C]`, counts as channels-last
/// and anything else as channels-first. The batch axis may have any stride that leaves samples
/// apart (a slice of a larger array, but not one run backwards or broadcast). Outputs have the
/// layout of `x`. Nothing is copied: what fits neither layout, such as a transposed matrix or a
/// broadcast gradient, or another layout than the call's first tensor, is refused. To pass it all
/// the same, copy it: [`to_layout`](crate::to_layout).
pub struct BatchNorm<B: Backend = crate::Cpu, P: Param = f32> {
    pub(crate) backend: B,
    pub(crate) config: BatchNormConfig,
    pub(crate) weight: Option<B::Buffer<P>>,
    pub(crate) bias: Option<B::Buffer<P>>,
    pub(crate) running: Option<RunningBuffers<B, P>>,
    training: bool,
}

// Derived, it would ask for it of P and not of the buffers.
impl<B: Backend, P: Param> Clone for BatchNorm<B, P>
where
    B::Buffer<P>: Clone,
    B::Buffer<i64>: Clone,
{
    fn clone(&self) -> Self {
        let of_running = |running: &RunningBuffers<B, P>| RunningBuffers {
            mean: running.mean.clone(),
            var: running.var.clone(),
            num_batches_tracked: running.num_batches_tracked.clone(),
        };
        BatchNorm {
            backend: self.backend.clone(),
            config: self.config,
            weight: self.weight.clone(),
            bias: self.bias.clone(),
            running: self.running.as_ref().map(of_running),
            training: self.training,
        }
    }
}

pub(crate) struct RunningBuffers<B: Backend, P: Param> {
    pub(crate) mean: B::Buffer<P>,
    pub(crate) var: B::Buffer<P>,
    pub(crate) num_batches_tracked: B::Buffer<i64>,
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

/// A layer's parameters and running statistics in host memory, under PyTorch's names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State<P> {
    /// gamma, `[C]`; absent if not affine.
    pub weight: Option<Vec<P>>,
    /// beta, `[C]`; absent if not affine.
    pub bias: Option<Vec<P>>,
    /// `[C]`; absent if running statistics are not tracked.
    pub running_mean: Option<Vec<P>>,
    /// `[C]`; absent if running statistics are not tracked.
    pub running_var: Option<Vec<P>>,
    /// Training batches seen; absent if running statistics are not tracked.
    pub num_batches_tracked: Option<i64>,
}

impl BatchNormConfig {
    /// The layer on `backend`, in training mode: weight 1, bias 0, running mean 0 and variance 1.
    ///
    /// # Errors
    /// No channels or more than fit memory, eps negative or not finite, momentum outside 0 to 1, a
    /// non-finite parameter of the activation; f64 for P on a GPU.
    pub fn build<B: Backend, P: Param>(self, backend: B) -> Result<BatchNorm<B, P>> {
        self.check()?;
        backend.check_dtype(P::DTYPE).map_err(|error| error.renamed("P"))?;
        let weight = self.parameter(&backend, 1.0)?;
        let bias = self.parameter(&backend, 0.0)?;
        let running = self.running(&backend)?;
        Ok(BatchNorm { backend, config: self, weight, bias, running, training: true })
    }

    /// `[C]` of `value`, if the layer is affine.
    fn parameter<B: Backend, P: Param>(
        &self,
        backend: &B,
        value: f64,
    ) -> Result<Option<B::Buffer<P>>> {
        self.affine.then(|| constant(backend, self.channels, value)).transpose()
    }

    /// Running statistics before the first batch, if the layer keeps any.
    fn running<B: Backend, P: Param>(&self, backend: &B) -> Result<Option<RunningBuffers<B, P>>> {
        if !self.track_running_stats {
            return Ok(None);
        }
        Ok(Some(RunningBuffers {
            mean: constant(backend, self.channels, 0.0)?,
            var: constant(backend, self.channels, 1.0)?,
            num_batches_tracked: backend.zeros(1)?,
        }))
    }
}

/// What is wrong with one of the layer's buffers, by the buffer's name.
fn named<T>(name: &str, result: Result<T>) -> Result<T> {
    result.map_err(|error| error.renamed(name))
}

fn constant<B: Backend, P: Param>(
    backend: &B,
    channels: usize,
    value: f64,
) -> Result<B::Buffer<P>> {
    backend.upload(&filled(channels, P::from_f64(value))?)
}

impl<B: Backend, P: Param> BatchNorm<B, P> {
    /// A layer of `channels` with the default configuration; see [`BatchNormConfig`] for others.
    ///
    /// # Errors
    /// No channels.
    pub fn new(channels: usize, backend: B) -> Result<Self> {
        BatchNormConfig::new(channels).build(backend)
    }

    /// How the layer was set up.
    pub fn config(&self) -> &BatchNormConfig {
        &self.config
    }

    /// Where it runs.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// C.
    pub fn channels(&self) -> usize {
        self.config.channels
    }

    /// Whether [`forward`](Self::forward) and [`forward_add`](Self::forward_add) use batch statistics
    /// (training mode) or running ones.
    pub fn is_training(&self) -> bool {
        self.training
    }

    /// Switches to training mode. The mode steers [`forward`](Self::forward) and
    /// [`forward_add`](Self::forward_add) alone: `forward_train`, `forward_eval`, the calls that end in
    /// `_into` and [`SyncBatchNorm`](crate::SyncBatchNorm) do what their names say in either. On a GPU,
    /// which has no `forward`, the layer only carries it along.
    pub fn train(&mut self) {
        self.training = true;
    }

    /// Switches to evaluation mode; see [`train`](Self::train).
    pub fn eval(&mut self) {
        self.training = false;
    }

    /// gamma, `[C]`, in the memory of the backend; absent if not affine.
    pub fn weight_buffer(&self) -> Option<&B::Buffer<P>> {
        self.weight.as_ref()
    }

    /// gamma, to be trained in the memory of the backend. Calls refuse a buffer of another length
    /// in its place.
    pub fn weight_buffer_mut(&mut self) -> Option<&mut B::Buffer<P>> {
        self.weight.as_mut()
    }

    /// beta, `[C]`, in the memory of the backend; absent if not affine.
    pub fn bias_buffer(&self) -> Option<&B::Buffer<P>> {
        self.bias.as_ref()
    }

    /// beta, to be trained in the memory of the backend. Calls refuse a buffer of another length
    /// in its place.
    pub fn bias_buffer_mut(&mut self) -> Option<&mut B::Buffer<P>> {
        self.bias.as_mut()
    }

    /// The running mean, `[C]`, in the memory of the backend; absent if not tracked.
    pub fn running_mean_buffer(&self) -> Option<&B::Buffer<P>> {
        self.running.as_ref().map(|running| &running.mean)
    }

    /// The running mean, to be written, e.g. by a broadcast from another rank. Calls refuse a
    /// buffer of another length in its place.
    pub fn running_mean_buffer_mut(&mut self) -> Option<&mut B::Buffer<P>> {
        self.running.as_mut().map(|running| &mut running.mean)
    }

    /// The running variance, `[C]`, in the memory of the backend; absent if not tracked.
    pub fn running_var_buffer(&self) -> Option<&B::Buffer<P>> {
        self.running.as_ref().map(|running| &running.var)
    }

    /// The running variance, to be written. Calls refuse a buffer of another length in its place.
    pub fn running_var_buffer_mut(&mut self) -> Option<&mut B::Buffer<P>> {
        self.running.as_mut().map(|running| &mut running.var)
    }

    /// Training batches seen, `[1]`, in the memory of the backend; absent if not tracked.
    pub fn num_batches_tracked_buffer(&self) -> Option<&B::Buffer<i64>> {
        self.running.as_ref().map(|running| &running.num_batches_tracked)
    }

    /// Training batches seen, to be written: 0 or more. Calls refuse a buffer of another length in
    /// its place.
    pub fn num_batches_tracked_buffer_mut(&mut self) -> Option<&mut B::Buffer<i64>> {
        self.running.as_mut().map(|running| &mut running.num_batches_tracked)
    }

    /// A copy of the parameters and running statistics in host memory.
    ///
    /// # Errors
    /// The device fails to copy.
    pub fn state(&self) -> Result<State<P>> {
        let backend = &self.backend;
        let download = |name: &str, buffer: Option<&B::Buffer<P>>| {
            named(name, buffer.map(|buffer| backend.download(buffer)).transpose())
        };
        let running = self.running.as_ref();
        let tracked = running.map(|running| backend.download(&running.num_batches_tracked));
        let tracked = named("num_batches_tracked", tracked.transpose())?;
        Ok(State {
            weight: download("weight", self.weight.as_ref())?,
            bias: download("bias", self.bias.as_ref())?,
            running_mean: download("running_mean", running.map(|running| &running.mean))?,
            running_var: download("running_var", running.map(|running| &running.var))?,
            num_batches_tracked: tracked.and_then(|tracked| tracked.first().copied()),
        })
    }

    /// Replaces the parameters and running statistics, in new buffers. `num_batches_tracked` may be
    /// absent (old PyTorch checkpoints lack it) and is then 0.
    ///
    /// # Errors
    /// An entry that this layer has and `state` lacks, or the other way round; a length that is
    /// not C; a negative batch count. The layer is then as before.
    pub fn load_state(&mut self, state: &State<P>) -> Result<()> {
        let channels = self.config.channels;
        let upload = |name: &str, wanted: bool, values: &Option<Vec<P>>| match (wanted, values) {
            (true, Some(values)) => {
                check_len(name, channels, values.len())?;
                self.backend.upload(values).map(Some)
            }
            (false, None) => Ok(None),
            (true, None) => Err(Error::argument(name, format_args!("{channels} elements"), "none")),
            (false, Some(_)) => Err(Error::argument(name, "none (the layer has none)", "some")),
        };
        let weight = upload("weight", self.config.affine, &state.weight)?;
        let bias = upload("bias", self.config.affine, &state.bias)?;
        let track = self.config.track_running_stats;
        let mean = upload("running_mean", track, &state.running_mean)?;
        let var = upload("running_var", track, &state.running_var)?;
        let batches = state.num_batches_tracked.unwrap_or(0);
        if batches < 0 {
            return Err(Error::argument("num_batches_tracked", "0 or more", batches));
        }
        if !track && state.num_batches_tracked.is_some() {
            return Err(Error::argument(
                "num_batches_tracked",
                "none (the layer has none)",
                batches,
            ));
        }
        let num_batches_tracked = self.backend.upload(&[batches])?;
        self.running =
            mean.zip(var).map(|(mean, var)| RunningBuffers { mean, var, num_batches_tracked });
        (self.weight, self.bias) = (weight, bias);
        Ok(())
    }

    /// Running mean 0, variance 1 and no batch seen, as PyTorch's method of this name; nothing in
    /// a layer that tracks none. The buffers are new: a CUDA graph is to be captured again.
    ///
    /// # Errors
    /// The device has no memory left. The layer is then as before.
    pub fn reset_running_stats(&mut self) -> Result<()> {
        self.running = self.config.running(&self.backend)?;
        Ok(())
    }

    /// As [`reset_running_stats`](Self::reset_running_stats), and weight 1 and bias 0: the layer as
    /// it was built, but for [`set_momentum`](Self::set_momentum) and its mode.
    ///
    /// ```
    /// use warpnorm::{BatchNorm, Cpu};
    ///
    /// let mut bn: BatchNorm = BatchNorm::new(1, Cpu::new())?;
    /// let built = bn.state()?;
    /// bn.weight_mut().unwrap()[0] = 3.0;
    /// bn.forward_train(&ndarray::arr2(&[[1.0f32], [2.0]]))?;
    ///
    /// bn.reset_parameters()?;
    /// assert_eq!(bn.state()?, built);
    /// # Ok::<(), warpnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn reset_parameters(&mut self) -> Result<()> {
        let weight = self.config.parameter(&self.backend, 1.0)?;
        let bias = self.config.parameter(&self.backend, 0.0)?;
        self.reset_running_stats()?;
        (self.weight, self.bias) = (weight, bias);
        Ok(())
    }

    /// Changes the weight of the new value in the running statistics; `None` is the cumulative
    /// average. Calls captured in a CUDA graph keep the momentum that they were captured with.
    ///
    /// # Errors
    /// A momentum outside 0 to 1. The layer is then as before.
    pub fn set_momentum(&mut self, momentum: Option<f64>) -> Result<()> {
        check_momentum(momentum)?;
        self.config.momentum = momentum;
        Ok(())
    }

    /// A copy of this layer on another backend: configuration, parameters, running statistics and
    /// mode.
    ///
    /// ```
    /// use warpnorm::{BatchNorm, Cpu};
    ///
    /// let bn: BatchNorm = BatchNorm::new(3, Cpu::new())?;
    /// let on_one_thread = bn.to_backend(Cpu::with_threads(1)?)?; // or a `Cuda`
    /// assert_eq!(on_one_thread.state()?, bn.state()?);
    /// # Ok::<(), warpnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`build`](BatchNormConfig::build), [`state`](Self::state) and
    /// [`load_state`](Self::load_state), e.g. f64 parameters for a GPU.
    pub fn to_backend<B2: Backend>(&self, backend: B2) -> Result<BatchNorm<B2, P>> {
        let mut copy: BatchNorm<B2, P> = self.config.build(backend)?;
        copy.load_state(&self.state()?)?;
        copy.training = self.training;
        Ok(copy)
    }

    /// The same layer once more, with buffers of its own on the same backend: on a GPU nothing goes
    /// through the host's memory. A layer whose buffers can be cloned, as on the CPU, is `Clone` too.
    ///
    /// # Errors
    /// The device has no memory left, or fails to copy.
    pub fn duplicate(&self) -> Result<Self> {
        let backend = &self.backend;
        let copy = |name: &str, buffer: &B::Buffer<P>| named(name, backend.duplicate(buffer));
        let running = self.running.as_ref().map(|running| {
            let tracked = backend.duplicate(&running.num_batches_tracked);
            Ok::<_, Error>(RunningBuffers {
                mean: copy("running_mean", &running.mean)?,
                var: copy("running_var", &running.var)?,
                num_batches_tracked: named("num_batches_tracked", tracked)?,
            })
        });
        let copy_of = |name: &str, buffer: &Option<B::Buffer<P>>| {
            buffer.as_ref().map(|buffer| copy(name, buffer)).transpose()
        };
        Ok(BatchNorm {
            backend: self.backend.clone(),
            config: self.config,
            weight: copy_of("weight", &self.weight)?,
            bias: copy_of("bias", &self.bias)?,
            running: running.transpose()?,
            training: self.training,
        })
    }

    /// eps and momentum.
    pub fn norm(&self) -> Norm {
        Norm { eps: self.config.eps, momentum: self.config.momentum }
    }

    /// The problem of a call on this layer: its activation, with or without a residual.
    ///
    /// # Errors
    /// See [`Problem::new`]; extents of another number of channels.
    pub fn problem<E: Element<Param = P>>(
        &self,
        extents: &[usize],
        layout: Layout,
        residual: bool,
    ) -> Result<Problem> {
        self.problem_of::<E>("extents", extents, layout, residual)
    }

    /// `argument` is what has these extents.
    pub(crate) fn problem_of<E: Element<Param = P>>(
        &self,
        argument: &str,
        extents: &[usize],
        layout: Layout,
        residual: bool,
    ) -> Result<Problem> {
        let epilogue = Epilogue { activation: self.config.activation, residual };
        let problem = Problem::new(extents, layout, E::DTYPE, epilogue);
        let problem = problem.map_err(|error| error.renamed(argument))?;
        self.check_problem(argument, &problem)?;
        Ok(problem)
    }

    fn check_problem(&self, argument: &str, problem: &Problem) -> Result<()> {
        if problem.channels() != self.config.channels {
            return Err(Error::argument(
                argument,
                format_args!("{} channels", self.config.channels),
                problem.channels(),
            ));
        }
        if problem.epilogue().activation != self.config.activation {
            return Err(Error::argument(
                "problem",
                format_args!("the layer's activation, {}", self.config.activation),
                problem.epilogue().activation,
            ));
        }
        Ok(())
    }

    /// Refuses a weight or bias whose buffer was replaced by one of another length.
    pub(crate) fn check_affine(&self) -> Result<()> {
        for (argument, buffer) in [("weight", &self.weight), ("bias", &self.bias)] {
            if let Some(buffer) = buffer {
                check_len(argument, self.config.channels, B::len(buffer))?;
            }
        }
        Ok(())
    }

    /// Weight and bias to pass to a stateless call.
    pub fn affine<E: Element<Param = P>>(&self) -> Affine<'_, B, E> {
        Affine {
            weight: self.weight.as_ref().map(B::slice),
            bias: self.bias.as_ref().map(B::slice),
        }
    }

    /// The running statistics to pass to a stateless call that advances them; absent if not
    /// tracked. A layer's part in [the split form](Backend#the-split-form):
    ///
    /// ```
    /// use warpnorm::*;
    ///
    /// # let gather = |share: &[f64]| share.to_vec();
    /// let mut bn: BatchNorm = BatchNorm::new(1, Cpu::new())?;
    /// let problem = bn.problem::<f32>(&[3, 1], Layout::ChannelsLast, false)?;
    /// let mut saved = Saved::new(bn.backend(), &problem)?;
    /// let mut workspace = bn.backend().workspace(&problem)?;
    /// let (x, mut y) = ([1.0f32, 2.0, 6.0], [0.0f32; 3]);
    ///
    /// let (cpu, norm) = (bn.backend().clone(), bn.norm());
    /// let mut share = vec![0.0; MOMENT_ROWS];
    /// cpu.statistics::<f32>(&problem, x[..].into(), (&mut share).into(), &mut workspace)?;
    /// let moments = gather(&share); // your all-gather
    /// let (running, saved_mut) = (bn.running_mut(), saved.as_mut());
    /// let merge = MergeStatistics { moments: (&moments).into(), running, saved: saved_mut };
    /// cpu.merge_statistics::<f32>(1, &norm, merge)?;
    /// let (statistics, mask) = saved.split_mask();
    /// cpu.apply::<f32>(&problem, Apply {
    ///     x: x[..].into(),
    ///     residual: None,
    ///     affine: bn.affine(),
    ///     y: (&mut y[..]).into(),
    ///     saved: statistics,
    ///     mask,
    ///     workspace: &mut workspace,
    /// })?;
    /// assert_eq!(bn.running_mean().unwrap(), [0.3]); // 0.1 of the mean 3
    /// # Ok::<(), warpnorm::Error>(())
    /// ```
    pub fn running_mut<E: Element<Param = P>>(&mut self) -> Option<RunningMut<'_, B, E>> {
        self.running.as_mut().map(RunningBuffers::as_mut)
    }

    fn running<E: Element<Param = P>>(&self) -> Result<Running<'_, B, E>> {
        let running = self.running.as_ref().ok_or_else(|| {
            Error::argument(
                "track_running_stats",
                "a layer with running statistics",
                "one without: evaluate with the batch's own by forward_batch_into",
            )
        })?;
        Ok(Running { mean: B::slice(&running.mean), var: B::slice(&running.var) })
    }

    /// [`Backend::forward_train`] with this layer's parameters; advances its running statistics.
    ///
    /// # Errors
    /// See there; a problem of other channels or another activation; a `saved` made for a problem
    /// without a residual where this one has one, or the reverse.
    pub fn forward_train_into<'a, E: Element<Param = P>>(
        &'a mut self,
        problem: &Problem,
        x: B::Slice<'a, E>,
        residual: Option<B::Slice<'a, E>>,
        y: B::SliceMut<'a, E>,
        saved: &'a mut Saved<B, P>,
        workspace: &'a mut B::Workspace,
    ) -> Result<()> {
        self.check_problem("problem", problem)?;
        saved.check_residual(problem)?;
        let norm = self.norm();
        let args = ForwardTrain {
            x,
            residual,
            affine: Affine {
                weight: self.weight.as_ref().map(B::slice),
                bias: self.bias.as_ref().map(B::slice),
            },
            running: self.running.as_mut().map(RunningBuffers::as_mut),
            y,
            saved: saved.as_mut(),
            workspace,
        };
        self.backend.forward_train::<E>(problem, &norm, args)
    }

    /// [`forward_train_into`](Self::forward_train_into) that leaves the running statistics alone:
    /// evaluation of a layer that keeps none.
    ///
    /// # Errors
    /// As there.
    pub fn forward_batch_into<'a, E: Element<Param = P>>(
        &'a self,
        problem: &Problem,
        x: B::Slice<'a, E>,
        residual: Option<B::Slice<'a, E>>,
        y: B::SliceMut<'a, E>,
        saved: &'a mut Saved<B, P>,
        workspace: &'a mut B::Workspace,
    ) -> Result<()> {
        self.check_problem("problem", problem)?;
        saved.check_residual(problem)?;
        let args = ForwardTrain {
            x,
            residual,
            affine: self.affine(),
            running: None,
            y,
            saved: saved.as_mut(),
            workspace,
        };
        self.backend.forward_train::<E>(problem, &self.norm(), args)
    }

    /// [`Backend::backward_train`] with this layer's parameters. `saved` is what forward wrote for
    /// the same `x`, with the same weight and bias; one of another call on the same shape, both with a
    /// residual or both without, cannot be told apart.
    ///
    /// # Errors
    /// As [`forward_train_into`](Self::forward_train_into).
    #[allow(clippy::too_many_arguments)]
    pub fn backward_into<'a, E: Element<Param = P>>(
        &'a self,
        problem: &Problem,
        x: B::Slice<'a, E>,
        residual: Option<B::Slice<'a, E>>,
        dy: B::Slice<'a, E>,
        saved: &'a Saved<B, P>,
        gradients: GradientsMut<'a, B, E>,
        workspace: &'a mut B::Workspace,
    ) -> Result<()> {
        self.check_problem("problem", problem)?;
        saved.check_residual(problem)?;
        let args = BackwardTrain {
            x,
            residual,
            dy,
            affine: self.affine(),
            saved: saved.as_ref(),
            gradients,
            workspace,
        };
        self.backend.backward_train::<E>(problem, args)
    }

    /// [`Backend::inference`] with this layer's parameters and running statistics.
    ///
    /// # Errors
    /// See there; a problem of other channels or another activation; a layer without running
    /// statistics.
    pub fn forward_eval_into<'a, E: Element<Param = P>>(
        &'a self,
        problem: &Problem,
        x: B::Slice<'a, E>,
        residual: Option<B::Slice<'a, E>>,
        y: B::SliceMut<'a, E>,
        workspace: &'a mut B::Workspace,
    ) -> Result<()> {
        self.check_problem("problem", problem)?;
        let (affine, running) = (self.affine(), self.running()?);
        let args = Inference { x, residual, affine, running, y, workspace };
        self.backend.inference::<E>(problem, &self.norm(), args)
    }

    /// [`Backend::inference_inplace`] with this layer's parameters and running statistics.
    ///
    /// # Errors
    /// As [`forward_eval_into`](Self::forward_eval_into).
    pub fn forward_eval_inplace_into<'a, E: Element<Param = P>>(
        &'a self,
        problem: &Problem,
        x: B::SliceMut<'a, E>,
        residual: Option<B::Slice<'a, E>>,
        workspace: &'a mut B::Workspace,
    ) -> Result<()> {
        self.check_problem("problem", problem)?;
        let (affine, running) = (self.affine(), self.running()?);
        let args = InferenceInplace { x, residual, affine, running, workspace };
        self.backend.inference_inplace::<E>(problem, &self.norm(), args)
    }

    /// [`Backend::inference_backward`] with this layer's parameters and running statistics
    /// (frozen batch norm).
    ///
    /// # Errors
    /// As [`forward_eval_into`](Self::forward_eval_into).
    pub fn backward_eval_into<'a, E: Element<Param = P>>(
        &'a self,
        problem: &Problem,
        x: B::Slice<'a, E>,
        residual: Option<B::Slice<'a, E>>,
        dy: B::Slice<'a, E>,
        gradients: GradientsMut<'a, B, E>,
        workspace: &'a mut B::Workspace,
    ) -> Result<()> {
        self.check_problem("problem", problem)?;
        let (affine, running) = (self.affine(), self.running()?);
        let args = InferenceBackward { x, residual, dy, affine, running, gradients, workspace };
        self.backend.inference_backward::<E>(problem, &self.norm(), args)
    }
}

impl<B: Backend, P: Param> std::fmt::Debug for BatchNorm<B, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BatchNorm")
            .field("config", &self.config)
            .field("training", &self.training)
            .finish_non_exhaustive()
    }
}
