//! One call of batch normalization, as an operation of candle's graph.
//!
//! Its arguments are `x`, the parameters as one `[2, C]` tensor (weights, then biases; candle's
//! operations have three arguments at most), and a residual where there is one. All are contiguous:
//! the layer sees to it.

use crate::backend::{CandleBackend, Stored};
use crate::engine::{Engines, Kept, Scratch, lock};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage;
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CustomOp2, CustomOp3, DType, Error, Layout, Result, Shape, Storage, Tensor, bail,
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
    saved: Option<Box<dyn Any + Send>>,
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
    residual: Option<Place<'a, B>>,
}

/// The gradients of x, of the parameters, and of the residual.
type Gradients = (Tensor, Tensor, Option<Tensor>);

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
        engine.give_back(scratch);
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
            residual: residual.map(slice::<B, E>).transpose()?,
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
        *lock(&self.left) = Left { saved: Some(Box::new(saved)), running };
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
            residual: residual.map(slice::<B, E>).transpose()?,
            affine: affine::<B, E>(parameters)?,
            running: running::<B, E>(&mean, &var)?,
            y: B::slice_mut(y),
            workspace: &mut scratch.workspace,
        };
        backend.inference::<E>(&self.problem, &self.norm, args).map_err(Error::wrap)
    }

    fn backward<B: Kept, E: Value>(
        &self,
        arguments: Arguments<'_, B>,
        dy: Place<'_, B>,
    ) -> Result<Gradients> {
        let Arguments { x, parameters, residual } = arguments;
        let engine = self.engines.at::<B>(x.0)?;
        let backend = &engine.backend;
        let (elements, channels) = (self.problem.elements(), self.problem.channels());
        let mut dx = backend.room::<E>(elements)?;
        let mut dresidual = residual.map(|_| backend.room::<E>(elements)).transpose()?;
        let mut dweight = backend.room::<E::Param>(channels)?;
        let mut dbias = backend.room::<E::Param>(channels)?;
        let mut scratch = engine.take(&self.problem)?;
        let (left, [mean, var]) = (lock(&self.left), self.running.storages());
        let gradients = GradientsMut {
            dx: B::slice_mut(&mut dx),
            dresidual: dresidual.as_mut().map(B::slice_mut),
            dweight: Some(B::slice_mut(&mut dweight)),
            dbias: Some(B::slice_mut(&mut dbias)),
        };
        let (workspace, dy) = (&mut scratch.workspace, slice::<B, E>(dy)?);
        let (input, affine) = (slice::<B, E>(x)?, affine::<B, E>(parameters)?);
        let residual = residual.map(slice::<B, E>).transpose()?;
        if self.training {
            let saved = left.saved::<B, E>()?.as_ref();
            let args =
                BackwardTrain { x: input, residual, dy, affine, saved, gradients, workspace };
            backend.backward_train::<E>(&self.problem, args)
        } else {
            let running = running::<B, E>(&mean, &var)?;
            let args =
                InferenceBackward { x: input, residual, dy, affine, running, gradients, workspace };
            backend.inference_backward::<E>(&self.problem, &self.norm, args)
        }
        .map_err(Error::wrap)?;
        drop(left);
        engine.give_back(scratch);
        let shape = x.1.shape();
        let dx = tensor::<B, E>(dx, shape, x.0);
        let dparameters = [dweight, dbias].map(|it| tensor::<B, E::Param>(it, channels, x.0));
        let dresidual = dresidual.map(|it| tensor::<B, E>(it, shape, x.0));
        Ok((dx, Tensor::stack(&dparameters, 0)?, dresidual))
    }

    /// [`backward`](Self::backward) on a kind of device.
    fn backward_on<B: Kept>(
        &self,
        [x, parameters, dy]: [&Tensor; 3],
        residual: Option<&Tensor>,
    ) -> Result<Gradients> {
        let dtype = x.dtype();
        let [x, parameters, dy] = [x, parameters, dy].map(Tensor::storage_and_layout);
        let residual = residual.map(Tensor::storage_and_layout);
        let arguments = Arguments::<B> {
            x: place::<B>(&x)?,
            parameters: place::<B>(&parameters)?,
            residual: residual.as_ref().map(|it| place::<B>(it)).transpose()?,
        };
        let dy = place::<B>(&dy)?;
        with_element!(dtype, |E| self.backward::<B, E>(arguments, dy))
    }

    /// The gradients of the arguments, from that of y.
    fn gradients(
        &self,
        x: &Tensor,
        parameters: &Tensor,
        residual: Option<&Tensor>,
        dy: &Tensor,
    ) -> Result<Gradients> {
        // What follows in the graph may hand back a view, such as a broadcast.
        let tensors = [x, parameters, &dy.contiguous()?];
        match &*x.storage_and_layout().0 {
            Storage::Cpu(_) => self.backward_on::<Cpu>(tensors, residual),
            #[cfg(feature = "cuda")]
            Storage::Cuda(_) => self.backward_on::<Cuda>(tensors, residual),
            other => bail!("batch norm: no implementation for {:?}", other.device().location()),
        }
    }
}

impl Left {
    fn saved<B: Kept, E: Value>(&self) -> Result<&Saved<B, E::Param>> {
        match self.saved.as_ref().and_then(|it| it.downcast_ref()) {
            Some(saved) => Ok(saved),
            None => bail!("batch norm: backward on another device than forward"),
        }
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

impl CustomOp2 for Operation {
    fn name(&self) -> &'static str {
        "batch-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        parameters: &CpuStorage,
        parameters_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, parameters) = ((x, x_layout), (parameters, parameters_layout));
        let arguments = Arguments { x, parameters, residual: None };
        with_element!(x.0.dtype(), |E| self.0.forward::<Cpu, E>(arguments))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        parameters: &CudaStorage,
        parameters_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (x, parameters) = ((x, x_layout), (parameters, parameters_layout));
        let arguments = Arguments { x, parameters, residual: None };
        with_element!(x.0.dtype(), |E| self.0.forward::<Cuda, E>(arguments))
    }

    fn bwd(
        &self,
        x: &Tensor,
        parameters: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dparameters, _) = self.0.gradients(x, parameters, None, dy)?;
        Ok((Some(dx), Some(dparameters)))
    }
}

impl CustomOp3 for Operation {
    fn name(&self) -> &'static str {
        "batch-norm-add"
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
        let (x, parameters) = ((x, x_layout), (parameters, parameters_layout));
        let arguments = Arguments { x, parameters, residual: Some((residual, residual_layout)) };
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
        let (x, parameters) = ((x, x_layout), (parameters, parameters_layout));
        let arguments = Arguments { x, parameters, residual: Some((residual, residual_layout)) };
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
        let (dx, dparameters, dresidual) = self.0.gradients(x, parameters, Some(residual), dy)?;
        Ok((Some(dx), Some(dparameters), dresidual))
    }
}
