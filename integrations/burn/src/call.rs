//! One call of warpnorm on tensors of Burn's backend Flex.

use crate::operation::{Inputs, Outputs, Residual, Settings};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::{DType, TensorData};
use bytemuck::Pod;
use std::sync::Arc;
use warpnorm::{
    Affine, Backend, BackwardTrain, Cpu, CpuSlice, CpuWorkspace, Element, Epilogue, ForwardTrain,
    GradientsMut, Inference, InferenceBackward, Layout, Problem, Result, Running, RunningMut,
    Saved, Scalar,
};

/// A tensor of Burn's.
pub type FlexTensor = FloatTensor<Flex>;

/// What tensors of Burn and buffers of warpnorm may both hold.
pub trait Stored: Scalar + burn::tensor::Element + Pod {}
impl<T: Scalar + burn::tensor::Element + Pod> Stored for T {}

/// The element type of tensors.
pub trait Value: Element<Param: Stored> + Stored {}
impl<E: Element<Param: Stored> + Stored> Value for E {}

/// A call.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    problem: Problem,
    settings: Settings,
}

/// What forward makes.
pub struct Outcome<E: Value> {
    pub outputs: Outputs<Flex>,
    pub statistics: Statistics<E>,
}

/// What has normalized, for backward.
#[derive(Debug, Clone)]
pub enum Statistics<E: Value> {
    Batch(Arc<Saved<Cpu, E::Param>>),
    Running(Box<[FlexTensor; 2]>),
}

impl Call {
    pub fn new(inputs: &Inputs<Flex>, settings: Settings) -> Self {
        let x = &inputs.x;
        let dtype = match x.dtype() {
            DType::F64 => warpnorm::DType::F64,
            DType::F16 => warpnorm::DType::F16,
            DType::BF16 => warpnorm::DType::Bf16,
            _ => warpnorm::DType::F32,
        };
        let residual = matches!(inputs.residual, Residual::Tensor(_));
        let epilogue = Epilogue { activation: settings.activation, residual };
        let problem = done(Problem::new(&x.shape(), layout_of(x), dtype, epilogue));
        Call { problem, settings }
    }

    /// Whether [`backward`](Self::backward) reads the residual.
    pub fn backward_reads_residual(&self) -> bool {
        let epilogue = self.problem.epilogue();
        match self.settings.training {
            true => epilogue.backward_reads_residual(),
            false => epilogue.inference_backward_reads_residual(),
        }
    }

    pub fn forward<E: Value>(&self, inputs: Inputs<Flex>) -> Outcome<E> {
        let Inputs { x, gamma, beta, running_mean, running_var, residual } = inputs;
        let residual = match residual {
            Residual::Tensor(it) => Some(it),
            Residual::None => None,
        };
        let tensors = self.tensors(x, residual, [gamma, beta]);
        let running = [running_mean, running_var].map(contiguous);
        match self.settings.training {
            true => self.train(&tensors, &running),
            false => self.infer(&tensors, running),
        }
    }

    fn train<E: Value>(&self, tensors: &Tensors, running: &[FlexTensor; 2]) -> Outcome<E> {
        let (cpu, problem) = (Cpu::new(), &self.problem);
        let mut saved = done(Saved::new(&cpu, problem));
        let [mut mean, mut var] = running.each_ref().map(|it| values::<E::Param>(it).to_vec());
        let mut y = room::<E>(problem.elements());
        // Burn's layers do not count their batches.
        let mut batches = [0];
        let running = RunningMut {
            mean: (&mut mean).into(),
            var: (&mut var).into(),
            num_batches_tracked: (&mut batches[..]).into(),
        };
        let args = ForwardTrain {
            x: slice::<E>(&tensors.x),
            residual: tensors.residual::<E>(),
            affine: tensors.affine::<E>(),
            running: Some(running),
            y: (&mut y).into(),
            saved: saved.as_mut(),
            workspace: &mut done(cpu.workspace(problem)),
        };
        done(cpu.forward_train::<E>(problem, &self.settings.norm, args));
        let y = self.tensor(y, &tensors.x);
        let outputs = Outputs { y, running_mean: vector(mean), running_var: vector(var) };
        Outcome { outputs, statistics: Statistics::Batch(Arc::new(saved)) }
    }

    fn infer<E: Value>(&self, tensors: &Tensors, running: [FlexTensor; 2]) -> Outcome<E> {
        let (cpu, problem) = (Cpu::new(), &self.problem);
        let mut y = room::<E>(problem.elements());
        let [mean, var] = &running;
        let args = Inference {
            x: slice::<E>(&tensors.x),
            residual: tensors.residual::<E>(),
            affine: tensors.affine::<E>(),
            running: Running { mean: slice::<E::Param>(mean), var: slice::<E::Param>(var) },
            y: (&mut y).into(),
            workspace: &mut done(cpu.workspace(problem)),
        };
        done(cpu.inference::<E>(problem, &self.settings.norm, args));
        let y = self.tensor(y, &tensors.x);
        let [running_mean, running_var] = running.clone();
        let outputs = Outputs { y, running_mean, running_var };
        Outcome { outputs, statistics: Statistics::Running(Box::new(running)) }
    }

    /// The gradients of x, gamma, beta and, where there is one, the residual, which is given where
    /// [`backward_reads_residual`](Self::backward_reads_residual) says so.
    pub fn backward<E: Value>(
        &self,
        x: FlexTensor,
        residual: Option<FlexTensor>,
        dy: FlexTensor,
        affine: [FlexTensor; 2],
        statistics: &Statistics<E>,
    ) -> [Option<FlexTensor>; 4] {
        let (cpu, problem) = (Cpu::new(), &self.problem);
        let tensors = self.tensors(x, residual, affine);
        let dy = self.in_memory_order(dy);
        let mut dx = room::<E>(problem.elements());
        let mut dresidual = problem.epilogue().residual.then(|| room::<E>(problem.elements()));
        let mut dgamma = room::<E::Param>(problem.channels());
        let mut dbeta = room::<E::Param>(problem.channels());
        let gradients = GradientsMut {
            dx: (&mut dx).into(),
            dresidual: dresidual.as_mut().map(Into::into),
            dweight: Some((&mut dgamma).into()),
            dbias: Some((&mut dbeta).into()),
        };
        let workspace = &mut done(cpu.workspace(problem));
        self.gradients(&tensors, &dy, statistics, gradients, workspace);
        let tensor = |it| self.tensor(it, &tensors.x);
        [Some(tensor(dx)), Some(vector(dgamma)), Some(vector(dbeta)), dresidual.map(tensor)]
    }

    fn gradients<'a, E: Value>(
        &self,
        tensors: &'a Tensors,
        dy: &'a FlexTensor,
        statistics: &'a Statistics<E>,
        gradients: GradientsMut<'a, Cpu, E>,
        workspace: &'a mut CpuWorkspace,
    ) {
        let (cpu, problem) = (Cpu::new(), &self.problem);
        let (x, dy) = (slice::<E>(&tensors.x), slice::<E>(dy));
        let (residual, affine) = (tensors.residual::<E>(), tensors.affine::<E>());
        done(match statistics {
            Statistics::Batch(saved) => {
                let saved = saved.as_ref().as_ref();
                let args = BackwardTrain { x, residual, dy, affine, saved, gradients, workspace };
                cpu.backward_train::<E>(problem, args)
            }
            Statistics::Running(running) => {
                let [mean, var] = running.as_ref();
                let running = Running { mean: slice(mean), var: slice(var) };
                let args =
                    InferenceBackward { x, residual, dy, affine, running, gradients, workspace };
                cpu.inference_backward::<E>(problem, &self.settings.norm, args)
            }
        });
    }

    fn tensors(
        &self,
        x: FlexTensor,
        residual: Option<FlexTensor>,
        affine: [FlexTensor; 2],
    ) -> Tensors {
        let x = self.in_memory_order(x);
        let residual = residual.map(|it| self.in_memory_order(it));
        let [gamma, beta] = affine.map(contiguous);
        Tensors { x, residual, gamma, beta }
    }

    /// Without gaps, channels last where the layout has them last. Copied where it lies otherwise.
    fn in_memory_order(&self, tensor: FlexTensor) -> FlexTensor {
        contiguous(match self.problem.layout() {
            Layout::ChannelsFirst => tensor,
            Layout::ChannelsLast => channels_last(tensor),
        })
    }

    /// Values in the order of memory, as a tensor that lies as `like`.
    fn tensor<E: Value>(&self, values: Vec<E>, like: &FlexTensor) -> FlexTensor {
        let tensor = FlexTensor::from_data(TensorData::new(values, like.shape()));
        match self.problem.layout() {
            Layout::ChannelsFirst => tensor,
            Layout::ChannelsLast => channels_second(tensor),
        }
    }
}

/// What calls read, without gaps in the order of memory.
struct Tensors {
    x: FlexTensor,
    residual: Option<FlexTensor>,
    gamma: FlexTensor,
    beta: FlexTensor,
}

impl Tensors {
    fn residual<E: Value>(&self) -> Option<CpuSlice<'_, E>> {
        self.residual.as_ref().map(slice::<E>)
    }

    fn affine<E: Value>(&self) -> Affine<'_, Cpu, E> {
        Affine { weight: Some(slice(&self.gamma)), bias: Some(slice(&self.beta)) }
    }
}

/// The layout that a tensor's strides show; of one position per sample, where they show both, rows of
/// channels. What shows neither is copied to channels-first.
fn layout_of(x: &FlexTensor) -> Layout {
    let positions: usize = x.shape()[2..].iter().product();
    let is_last = || !x.is_contiguous() && channels_last(x.clone()).is_contiguous();
    if positions == 1 || is_last() { Layout::ChannelsLast } else { Layout::ChannelsFirst }
}

fn channels_last(tensor: FlexTensor) -> FlexTensor {
    let axes: Vec<_> = [0].into_iter().chain(2..tensor.rank()).chain([1]).collect();
    Flex::float_permute(tensor, &axes)
}

/// Channels on axis 1 again.
fn channels_second(tensor: FlexTensor) -> FlexTensor {
    let last = tensor.rank() - 1;
    let axes: Vec<_> = [0, last].into_iter().chain(1..last).collect();
    Flex::float_permute(tensor, &axes)
}

fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

/// A `[C]` tensor.
fn vector<T: Stored>(values: Vec<T>) -> FlexTensor {
    let shape = [values.len()];
    FlexTensor::from_data(TensorData::new(values, shape))
}

fn values<T: Stored>(tensor: &FlexTensor) -> &[T] {
    let found = tensor.dtype();
    tensor
        .as_slice()
        .unwrap_or_else(|| panic!("batch norm: expected {:?}, found {found:?}", T::dtype()))
}

fn slice<T: Stored>(tensor: &FlexTensor) -> CpuSlice<'_, T> {
    values(tensor).into()
}

/// Memory for a call to overwrite.
fn room<T: Stored>(len: usize) -> Vec<T> {
    done(Cpu::new().zeros(len))
}

/// Burn's operations have no errors.
fn done<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("batch norm: {error}"))
}
