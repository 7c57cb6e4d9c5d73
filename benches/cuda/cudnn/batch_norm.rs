//! cuDNN's batch normalization on the tensors that ours is called on.

#![allow(unsafe_code, reason = "cuDNN is a C library")]

use super::describe;
use super::handle::{ActivationDescriptor, Handle, Outcome, TensorDescriptor, checked};
use crate::calls::{NORM, Tensors};
use crate::id::{Fused, Id, Pass};
use cudarc::cudnn::sys;
use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};
use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::rc::Rc;
use warpnorm::cuda::{Cuda, GpuBuffer};
use warpnorm::{Element, Scalar};

/// What results are scaled by, and what is there already: host memory.
const ONE: f32 = 1.0;
const ZERO: f32 = 0.0;

/// A call in one of cuDNN's modes.
pub struct BatchNorm {
    handle: Rc<Handle>,
    mode: sys::cudnnBatchNormMode_t,
    ops: sys::cudnnBatchNormOps_t,
    fused: Fused,
    tensor: TensorDescriptor,
    params: TensorDescriptor,
    activation: Option<ActivationDescriptor>,
    statistics: Statistics,
    workspace: Scratch,
    /// What forward leaves for backward, of each set.
    reserves: Vec<Scratch>,
}

/// Memory of a size that cuDNN asks for; none where it asks for none, which is how PyTorch has it.
struct Scratch(Option<CudaSlice<u8>>);

impl Scratch {
    fn new(handle: &Handle, bytes: usize) -> Outcome<Self> {
        if bytes == 0 {
            return Ok(Scratch(None));
        }
        let memory = handle.stream.alloc_zeros::<u8>(bytes);
        memory.map(|memory| Scratch(Some(memory))).map_err(|error| error.to_string())
    }

    /// Address and size.
    fn raw(&mut self, handle: &Handle) -> (*mut c_void, usize) {
        match &mut self.0 {
            Some(memory) => {
                let bytes = memory.len();
                (memory.device_ptr_mut(&handle.stream).0 as *mut c_void, bytes)
            }
            None => (null_mut(), 0),
        }
    }
}

/// `[C]` each.
struct Statistics {
    running_mean: CudaSlice<f32>,
    running_var: CudaSlice<f32>,
    mean: CudaSlice<f32>,
    invstd: CudaSlice<f32>,
    dweight: CudaSlice<f32>,
    dbias: CudaSlice<f32>,
}

impl Statistics {
    fn new(handle: &Handle, channels: usize) -> Outcome<Self> {
        let ones = vec![1.0_f32; channels];
        let vector = || {
            let memory = handle.stream.clone_htod(&ones);
            memory.map_err(|error| error.to_string())
        };
        let statistics = Statistics {
            running_mean: vector()?,
            running_var: vector()?,
            mean: vector()?,
            invstd: vector()?,
            dweight: vector()?,
            dbias: vector()?,
        };
        // `ones` goes, and cudarc does not wait for its copies.
        handle.stream.synchronize().map_err(|error| error.to_string())?;
        Ok(statistics)
    }
}

/// Addresses for reading and for writing. Nothing else uses the memory meanwhile: there is one
/// stream, and cudarc tracks no events on it.
fn read<T: Scalar>(handle: &Handle, buffer: &GpuBuffer<T>) -> *const c_void {
    buffer.view().device_ptr(&handle.stream).0 as *const c_void
}

fn write<T: Scalar>(handle: &Handle, buffer: &mut GpuBuffer<T>) -> *mut c_void {
    buffer.view_mut().device_ptr_mut(&handle.stream).0 as *mut c_void
}

fn vector(handle: &Handle, memory: &CudaSlice<f32>) -> *const c_void {
    memory.device_ptr(&handle.stream).0 as *const c_void
}

fn vector_mut(handle: &Handle, memory: &mut CudaSlice<f32>) -> *mut c_void {
    memory.device_ptr_mut(&handle.stream).0 as *mut c_void
}

fn host(number: &f32) -> *const c_void {
    (&raw const *number).cast()
}

impl BatchNorm {
    /// For calls on so many sets of tensors.
    pub fn new(
        handle: &Rc<Handle>,
        id: &Id,
        mode: sys::cudnnBatchNormMode_t,
        sets: usize,
    ) -> Outcome<Self> {
        let problem = id.problem().map_err(|error| error.to_string())?;
        let shape = describe::shape(&id.extents, describe::layout(mode, problem.layout()))?;
        let tensor = TensorDescriptor::new(problem.dtype(), &shape)?;
        let params = TensorDescriptor::of_params(&tensor, mode)?;
        let ops = describe::ops(id.fused);
        let activation = match id.fused {
            Fused::None => None,
            Fused::Relu | Fused::AddRelu => Some(ActivationDescriptor::relu()?),
        };
        if id.pass == Pass::Inference && id.fused != Fused::None {
            return Err("no fused inference".to_owned());
        }
        let sizes = if id.pass == Pass::Inference {
            Sizes::default()
        } else {
            Sizes::ask(handle, mode, ops, id.fused, &tensor, &params, activation.as_ref())?
        };
        let reserves = (0..sets).map(|_| Scratch::new(handle, sizes.reserve));
        let reserves = reserves.collect::<Outcome<_>>()?;
        Ok(BatchNorm {
            statistics: Statistics::new(handle, problem.channels())?,
            workspace: Scratch::new(handle, sizes.workspace)?,
            reserves,
            handle: handle.clone(),
            mode,
            ops,
            fused: id.fused,
            tensor,
            params,
            activation,
        })
    }

    /// One call on one set.
    pub fn call<E: Element>(
        &mut self,
        pass: Pass,
        tensors: &mut Tensors<Cuda, E>,
        set: usize,
    ) -> Outcome<()> {
        match pass {
            Pass::TrainForward => self.forward(tensors, set),
            Pass::TrainBackward => self.backward(tensors, set),
            Pass::Inference => self.inference(tensors),
            Pass::Copy => Err("a copy is no batch normalization".to_owned()),
        }
    }

    fn activation(&self) -> sys::cudnnActivationDescriptor_t {
        self.activation.as_ref().map_or(null_mut(), |activation| activation.raw)
    }

    /// The residual's descriptor, null where there is none.
    fn added(&self) -> sys::cudnnTensorDescriptor_t {
        if self.fused == Fused::AddRelu { self.tensor.raw } else { null_mut() }
    }

    fn forward<E: Element>(&mut self, tensors: &mut Tensors<Cuda, E>, set: usize) -> Outcome<()> {
        let (activation, added) = (self.activation(), self.added());
        let BatchNorm { handle, tensor, params, statistics, workspace, reserves, .. } = self;
        let residual = tensors.residual.as_ref().map_or(null(), |buffer| read(handle, buffer));
        let (workspace, workspace_bytes) = workspace.raw(handle);
        let (reserve, reserve_bytes) = reserves[set].raw(handle);
        // SAFETY: descriptors fit the memory, which is of the handle's context and is used on its
        // stream alone; workspace and reserve have the sizes that cuDNN asked for.
        checked(unsafe {
            sys::cudnnBatchNormalizationForwardTrainingEx(
                handle.raw,
                self.mode,
                self.ops,
                host(&ONE),
                host(&ZERO),
                tensor.raw,
                read(handle, &tensors.x),
                added,
                residual,
                tensor.raw,
                write(handle, &mut tensors.y),
                params.raw,
                read(handle, &tensors.weight),
                read(handle, &tensors.bias),
                NORM.momentum.unwrap_or(0.1),
                vector_mut(handle, &mut statistics.running_mean),
                vector_mut(handle, &mut statistics.running_var),
                NORM.eps,
                vector_mut(handle, &mut statistics.mean),
                vector_mut(handle, &mut statistics.invstd),
                activation,
                workspace,
                workspace_bytes,
                reserve,
                reserve_bytes,
            )
        })
    }

    fn backward<E: Element>(&mut self, tensors: &mut Tensors<Cuda, E>, set: usize) -> Outcome<()> {
        let (activation, added) = (self.activation(), self.added());
        let BatchNorm { handle, tensor, params, statistics, workspace, reserves, .. } = self;
        let (workspace, workspace_bytes) = workspace.raw(handle);
        let (reserve, reserve_bytes) = reserves[set].raw(handle);
        let is_fused = self.fused != Fused::None;
        let y = if is_fused { read(handle, &tensors.y) } else { null() };
        let y_descriptor = if is_fused { tensor.raw } else { null_mut() };
        let bias = if is_fused { read(handle, &tensors.bias) } else { null() };
        let dresidual = match &mut tensors.dresidual {
            Some(buffer) => write(handle, buffer),
            None => null_mut(),
        };
        // SAFETY: as for forward; y and reserve are what forward left for this set.
        checked(unsafe {
            sys::cudnnBatchNormalizationBackwardEx(
                handle.raw,
                self.mode,
                self.ops,
                host(&ONE),
                host(&ZERO),
                host(&ONE),
                host(&ZERO),
                tensor.raw,
                read(handle, &tensors.x),
                y_descriptor,
                y,
                tensor.raw,
                read(handle, &tensors.dy),
                added,
                dresidual,
                tensor.raw,
                write(handle, &mut tensors.dx),
                params.raw,
                read(handle, &tensors.weight),
                bias,
                vector_mut(handle, &mut statistics.dweight),
                vector_mut(handle, &mut statistics.dbias),
                NORM.eps,
                vector(handle, &statistics.mean),
                vector(handle, &statistics.invstd),
                activation,
                workspace,
                workspace_bytes,
                reserve,
                reserve_bytes,
            )
        })
    }

    fn inference<E: Element>(&mut self, tensors: &mut Tensors<Cuda, E>) -> Outcome<()> {
        let BatchNorm { handle, tensor, params, .. } = self;
        // SAFETY: as for forward.
        checked(unsafe {
            sys::cudnnBatchNormalizationForwardInference(
                handle.raw,
                self.mode,
                host(&ONE),
                host(&ZERO),
                tensor.raw,
                read(handle, &tensors.x),
                tensor.raw,
                write(handle, &mut tensors.y),
                params.raw,
                read(handle, &tensors.weight),
                read(handle, &tensors.bias),
                read(handle, &tensors.running_mean),
                read(handle, &tensors.running_var),
                NORM.eps,
            )
        })
    }
}

/// Bytes that training calls ask for.
#[derive(Default)]
struct Sizes {
    workspace: usize,
    reserve: usize,
}

impl Sizes {
    #[allow(clippy::too_many_arguments)]
    fn ask(
        handle: &Handle,
        mode: sys::cudnnBatchNormMode_t,
        ops: sys::cudnnBatchNormOps_t,
        fused: Fused,
        tensor: &TensorDescriptor,
        params: &TensorDescriptor,
        activation: Option<&ActivationDescriptor>,
    ) -> Outcome<Sizes> {
        let activation = activation.map_or(null_mut(), |activation| activation.raw);
        let added = if fused == Fused::AddRelu { tensor.raw } else { null_mut() };
        let (mut forward, mut backward, mut reserve) = (0, 0, 0);
        // SAFETY: set descriptors of a live library, null where the operation has no such tensor;
        // sizes to write to.
        unsafe {
            checked(sys::cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
                handle.raw,
                mode,
                ops,
                tensor.raw,
                added,
                tensor.raw,
                params.raw,
                activation,
                &mut forward,
            ))?;
            checked(sys::cudnnGetBatchNormalizationBackwardExWorkspaceSize(
                handle.raw,
                mode,
                ops,
                tensor.raw,
                tensor.raw,
                tensor.raw,
                added,
                tensor.raw,
                params.raw,
                activation,
                &mut backward,
            ))?;
            checked(sys::cudnnGetBatchNormalizationTrainingExReserveSpaceSize(
                handle.raw,
                mode,
                ops,
                activation,
                tensor.raw,
                &mut reserve,
            ))?;
        }
        Ok(Sizes { workspace: forward.max(backward), reserve })
    }
}
