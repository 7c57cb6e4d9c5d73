//! One call of batch normalization, as an operation of candle's graph.
//!
//! Its arguments are `x`, the parameters as one `[2, C]` tensor (weights, then biases; candle's
//! operations have three arguments at most), and the residual, or `x` once more where there is none.
//! All are contiguous: the layer sees to it.

use crate::backend::{CandleBackend, Stored};
use crate::engine::{Engines, Kept, Scratch, lock};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage;
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CustomOp3, DType, Error, Layout, Result, Shape, Storage, Tensor, bail,
};
use std::any::Any;
use std::ops::{Deref, Range};
use std::sync::{Arc, Mutex};
#[cfg(feature = "cuda")]
use warpnorm::cuda::Cuda;
use warpnorm::half::{bf16, f16};
use warpnorm::{
    Affine, BackwardTrain, Cpu, Element, ForwardTrain, GradientsMut, Inference, InferenceBackward,
    Norm, Problem, Running, RunningMut, Saved,
};

/// A call. Forward leaves in it what backward reads.
pub struct Call {
    pub problem: Problem,
    pub norm: Norm,
    /// Whether the batch's statistics normalize, and the running ones advance; else these normalize.
    pub training: bool,
    pub running: RunningStatistics,
    pub engines: Arc<Engines>,
    pub left: Mutex<Left>,
}

/// Running mean and variance, `[C]` each.
#[derive(Clone)]
pub struct RunningStatistics {
    pub mean: Tensor,
    pub var: Tensor,
}

/// What a training forward leaves.
#[derive(Default)]
pub struct Left {
    /// For backward: a [`Saved`] of the backend that has run.
    saved: Option<Arc<dyn Any + Send + Sync>>,
    /// For the layer: its running statistics after the call.
    pub running: Option<RunningStatistics>,
}

/// The element type of tensors.
trait Value: Element<Param: Stored> + Stored {}
impl<E: Element<Param: Stored> + Stored> Value for E {}

/// A tensor's storage and its layout there.
type Place<'a, B> = (&'a <B as CandleBackend>::Storage, &'a Layout);

/// The arguments of the operation.
struct Arguments<'a, B: CandleBackend> {
    x: Place<'a, B>,
    parameters: Place<'a, B>,
    residual: Place<'a, B>,
}

/// Runs `$body` with `$E` the element type that candle calls `$dtype`.
macro_rules! with_element {
    ($dtype:expr, |$E:ident| $body:expr) => {
        match $dtype {
            DType::F32 => {
                type $E = f32;
                $body
            }
            DType::F64 => {
                type $E = f64;
                $body
            }
            DType::F16 => {
                type $E = f16;
                $body
            }
            DType::BF16 => {
                type $E = bf16;
                $body
            }
            other => bail!("batch norm: expected x of f32, f64, f16 or bf16, found {other:?}"),
        }
    };
}

impl Call {
    fn forward<B: Kept, E: Value>(
        &self,
        arguments: Arguments<'_, B>,
    ) -> Result<(B::Storage, Shape)> {
        let x = arguments.x;
        let engine = self.engines.at::<B>(x.0)?;
        let mut y = engine.backend.room::<E>(self.problem.elements())?;
        let mut scratch = engine.take(&self.problem)?;
        match self.training {
            true => self.train::<B, E>(&engine.backend, arguments, &mut y, &mut scratch)?,
            false => self.infer::<B, E>(&engine.backend, arguments, &mut y, &mut scratch)?,
        }
        engine.give_back(scratch)?;
        Ok((B::into_storage(y, x.0), x.1.shape().clone()))
    }

    fn train<B: Kept, E: Value>(
        &self,
        backend: &B,
        arguments: Arguments<'_, B>,
        y: &mut B::Buffer<E>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let Arguments { x, parameters, residual } = arguments;
        let mut saved = Saved::new(backend, &self.problem).map_err(Error::wrap)?;
        let [mut mean, mut var] = self.running.copies::<B, E::Param>(backend)?;
        let running = RunningMut {
            mean: B::slice_mut(&mut mean),
            var: B::slice_mut(&mut var),
            num_batches_tracked: B::slice_mut(&mut scratch.num_batches_tracked),
        };
        let args = ForwardTrain {
            x: slice::<B, E>(x)?,
            residual: self.residual::<B, E>(residual)?,
            affine: affine::<B, E>(parameters)?,
            running: Some(running),
            y: B::slice_mut(y),
            saved: saved.as_mut(),
            workspace: &mut scratch.workspace,
        };
        backend.forward_train::<E>(&self.problem, &self.norm, args).map_err(Error::wrap)?;
        let channels = self.problem.channels();
        let [mean, var] = [mean, var].map(|it| tensor::<B, E::Param>(it, channels, x.0));
        let running = Some(RunningStatistics { mean, var });
        *lock(&self.left) = Left { saved: Some(Arc::new(saved)), running };
        Ok(())
    }

    fn infer<B: Kept, E: Value>(
        &self,
        backend: &B,
        arguments: Arguments<'_, B>,
        y: &mut B::Buffer<E>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let Arguments { x, parameters, residual } = arguments;
        let [mean, var] = self.running.storages();
        let args = Inference {
            x: slice::<B, E>(x)?,
            residual: self.residual::<B, E>(residual)?,
            affine: affine::<B, E>(parameters)?,
            running: running::<B, E>(&mean, &var)?,
            y: B::slice_mut(y),
            workspace: &mut scratch.workspace,
        };
        backend.inference::<E>(&self.problem, &self.norm, args).map_err(Error::wrap)
    }

    /// The residual, where there is one.
    fn residual<'a, B: Kept, E: Value>(
        &self,
        argument: Place<'a, B>,
    ) -> Result<Option<B::Slice<'a, E>>> {
        self.problem.epilogue().residual.then(|| slice::<B, E>(argument)).transpose()
    }

    /// What a training forward has left on the backend.
    fn saved<B: Kept, E: Value>(&self) -> Option<Arc<Saved<B, E::Param>>> {
        lock(&self.left).saved.clone()?.downcast().ok()
    }

    /// The gradients of x, of the parameters, and of the residual, from that of y.
    fn gradients(
        &self,
        x: &Tensor,
        parameters: &Tensor,
        residual: &Tensor,
        dy: &Tensor,
    ) -> Result<(Tensor, Tensor, Option<Tensor>)> {
        let gradient = Gradient { call: self, parameters, rest: Mutex::default() };
        let dy = dy.contiguous()?;
        let dx = x.apply_op3_no_bwd(&dy, residual, &gradient)?;
        match std::mem::take(&mut *lock(&gradient.rest)) {
            (Some(dparameters), dresidual) => Ok((dx, dparameters, dresidual)),
            (None, _) => bail!("batch norm: no gradients"),
        }
    }
}

/// The backward of a call, as an operation on x, dy and the residual: candle locks the storages of an
/// operation's arguments as a thread may do that has locked them.
struct Gradient<'a> {
    call: &'a Call,
    parameters: &'a Tensor,
    /// The gradients of the parameters and of the residual, beside the result.
    rest: Mutex<(Option<Tensor>, Option<Tensor>)>,
}

impl Gradient<'_> {
    fn of_x<B: Kept, E: Value>(
        &self,
        x: Place<'_, B>,
        dy: Place<'_, B>,
        residual: Place<'_, B>,
    ) -> Result<(B::Storage, Shape)> {
        let Call { problem, norm, .. } = self.call;
        let engine = self.call.engines.at::<B>(x.0)?;
        let backend = &engine.backend;
        let (elements, channels) = (problem.elements(), problem.channels());
        let has_residual = problem.epilogue().residual;
        let mut dx = backend.room::<E>(elements)?;
        let mut dresidual = has_residual.then(|| backend.room::<E>(elements)).transpose()?;
        let mut dweight = backend.room::<E::Param>(channels)?;
        let mut dbias = backend.room::<E::Param>(channels)?;
        let mut scratch = engine.take(problem)?;
        let (parameters, saved) = (self.parameters.storage_and_layout(), self.call.saved::<B, E>());
        // An evaluation has copies of its own, for which nobody else waits.
        let storages = (!self.call.training).then(|| self.call.running.storages());
        let gradients = GradientsMut {
            dx: B::slice_mut(&mut dx),
            dresidual: dresidual.as_mut().map(B::slice_mut),
            dweight: Some(B::slice_mut(&mut dweight)),
            dbias: Some(B::slice_mut(&mut dbias)),
        };
        let (workspace, dy) = (&mut scratch.workspace, slice::<B, E>(dy)?);
        let (input, affine) = (slice::<B, E>(x)?, affine::<B, E>(place::<B>(&parameters)?)?);
        let residual = self.call.residual::<B, E>(residual)?;
        if let Some([mean, var]) = &storages {
            let running = running::<B, E>(mean, var)?;
            let args =
                InferenceBackward { x: input, residual, dy, affine, running, gradients, workspace };
            backend.inference_backward::<E>(problem, norm, args)
        } else if let Some(saved) = &saved {
            let saved = saved.as_ref().as_ref();
            let args =
                BackwardTrain { x: input, residual, dy, affine, saved, gradients, workspace };
            backend.backward_train::<E>(problem, args)
        } else {
            bail!("batch norm: expected a backward where forward has run, found another device")
        }
        .map_err(Error::wrap)?;
        engine.give_back(scratch)?;
        let shape = x.1.shape();
        let dparameters = [dweight, dbias].map(|it| tensor::<B, E::Param>(it, channels, x.0));
        let dresidual = dresidual.map(|it| tensor::<B, E>(it, shape, x.0));
        *lock(&self.rest) = (Some(Tensor::stack(&dparameters, 0)?), dresidual);
        Ok((B::into_storage(dx, x.0), shape.clone()))
    }
}

impl CustomOp3 for Gradient<'_> {
    fn name(&self) -> &'static str {
        "batch-norm-backward"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        dy: &CpuStorage,
        dy_layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, dy, residual) = ((x, x_layout), (dy, dy_layout), (residual, residual_layout));
        with_element!(x.0.dtype(), |E| self.of_x::<Cpu, E>(x, dy, residual))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        dy: &CudaStorage,
        dy_layout: &Layout,
        residual: &CudaStorage,
        residual_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (x, dy, residual) = ((x, x_layout), (dy, dy_layout), (residual, residual_layout));
        with_element!(x.0.dtype(), |E| self.of_x::<Cuda, E>(x, dy, residual))
    }
}

impl RunningStatistics {
    fn storages(&self) -> [(impl Deref<Target = Storage>, &Layout); 2] {
        [&self.mean, &self.var].map(|it| it.storage_and_layout())
    }

    fn copies<B: Kept, T: Stored>(&self, backend: &B) -> Result<[B::Buffer<T>; 2]> {
        let [mean, var] = self.storages();
        let copy = |(storage, layout): Place<'_, B>| backend.copy_of::<T>(storage, range(layout)?);
        Ok([copy(place::<B>(&mean)?)?, copy(place::<B>(&var)?)?])
    }
}

/// A tensor's, whose storage is locked.
fn place<'a, B: CandleBackend>(
    (storage, layout): &'a (impl Deref<Target = Storage>, &Layout),
) -> Result<Place<'a, B>> {
    Ok((B::storage_of(storage)?, layout))
}

/// The elements of its storage that a contiguous tensor has.
fn range(layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => {
            bail!("batch norm: expected a contiguous tensor, found strides {:?}", layout.stride())
        }
    }
}

fn slice<B: CandleBackend, T: Stored>((storage, layout): Place<'_, B>) -> Result<B::Slice<'_, T>> {
    B::slice_of(storage, range(layout)?)
}

/// Weights and biases.
fn affine<B: CandleBackend, E: Value>((storage, layout): Place<'_, B>) -> Result<Affine<'_, B, E>> {
    let Range { start, end } = range(layout)?;
    let middle = start + (end - start) / 2;
    let weight = Some(B::slice_of(storage, start..middle)?);
    let bias = Some(B::slice_of(storage, middle..end)?);
    Ok(Affine { weight, bias })
}

/// Running statistics to normalize with, whose storages are locked.
fn running<'a, B: CandleBackend, E: Value>(
    mean: &'a (impl Deref<Target = Storage>, &Layout),
    var: &'a (impl Deref<Target = Storage>, &Layout),
) -> Result<Running<'a, B, E>> {
    let (mean, var) = (place::<B>(mean)?, place::<B>(var)?);
    Ok(Running { mean: slice::<B, E::Param>(mean)?, var: slice::<B, E::Param>(var)? })
}

/// A tensor of its own, where `like` lies.
fn tensor<B: CandleBackend, T: Stored>(
    buffer: B::Buffer<T>,
    shape: impl Into<Shape>,
    like: &B::Storage,
) -> Tensor {
    let storage = B::any(B::into_storage(buffer, like));
    Tensor::from_storage(storage, shape, BackpropOp::none(), false)
}

/// A call as candle takes it.
pub struct Operation(pub Arc<Call>);

impl CustomOp3 for Operation {
    fn name(&self) -> &'static str {
        "batch-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        parameters: &CpuStorage,
        parameters_layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, residual) = ((x, x_layout), (residual, residual_layout));
        let arguments = Arguments { x, parameters: (parameters, parameters_layout), residual };
        with_element!(x.0.dtype(), |E| self.0.forward::<Cpu, E>(arguments))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        parameters: &CudaStorage,
        parameters_layout: &Layout,
        residual: &CudaStorage,
        residual_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (x, residual) = ((x, x_layout), (residual, residual_layout));
        let arguments = Arguments { x, parameters: (parameters, parameters_layout), residual };
        with_element!(x.0.dtype(), |E| self.0.forward::<Cuda, E>(arguments))
    }

    fn bwd(
        &self,
        x: &Tensor,
        parameters: &Tensor,
        residual: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dparameters, dresidual) = self.0.gradients(x, parameters, residual, dy)?;
        Ok((Some(dx), Some(dparameters), dresidual))
    }
}
