//! Batch normalization as an operation of Burn's backends, and what autodiff keeps of it.

use crate::call::{Call, FlexTensor, Outcome, Statistics, Value};
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, ExtensionType, Flex, TensorMetadata, backend_extension};
use burn::tensor::DType;
use std::marker::PhantomData;
use warpnorm::half::{bf16, f16};
use warpnorm::{Activation, Norm};

/// What a call is set to.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub norm: Norm,
    pub activation: Activation,
    /// Whether the batch's statistics normalize, and the running ones advance; else these normalize.
    pub training: bool,
}

/// What a call takes; what is `[C]` is of the type that parameters of `x`'s element type have.
#[derive(ExtensionType)]
pub struct Inputs<B: Backend> {
    pub x: FloatTensor<B>,
    pub gamma: FloatTensor<B>,
    pub beta: FloatTensor<B>,
    pub running_mean: FloatTensor<B>,
    pub running_var: FloatTensor<B>,
    #[extension_type]
    pub residual: Residual<B>,
}

/// As `x`, where there is one. (An `Option` does not pass through the dispatch.)
#[derive(ExtensionType)]
pub enum Residual<B: Backend> {
    Tensor(FloatTensor<B>),
    None,
}

/// What a call makes: `y`, and the running statistics after it.
#[derive(ExtensionType)]
pub struct Outputs<B: Backend> {
    pub y: FloatTensor<B>,
    pub running_mean: FloatTensor<B>,
    pub running_var: FloatTensor<B>,
}

#[backend_extension(Flex, Autodiff)]
pub trait BatchNormOps: Backend {
    fn batch_norm(#[extension_type] inputs: Inputs<Self>, settings: Settings) -> Outputs<Self>;
}

/// Runs `$body` with `$E` the element type that Burn calls `$dtype`.
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
            other => panic!("batch norm: expected x of f32, f64, f16 or bf16, found {other:?}"),
        }
    };
}

impl BatchNormOps for Flex {
    fn batch_norm(inputs: Inputs<Flex>, settings: Settings) -> Outputs<Flex> {
        let call = Call::new(&inputs, settings);
        with_element!(inputs.x.dtype(), |E| call.forward::<E>(inputs).outputs)
    }
}

impl<C: CheckpointStrategy> BatchNormOps for Autodiff<Flex, C> {
    fn batch_norm(inputs: Inputs<Self>, settings: Settings) -> Outputs<Self> {
        with_element!(inputs.x.dtype(), |E| record::<E, C>(inputs, settings))
    }
}

/// A tensor of autodiff's.
type Tracked = FloatTensor<Autodiff<Flex>>;

/// Runs a call and records it.
fn record<E: Value, C: CheckpointStrategy>(
    inputs: Inputs<Autodiff<Flex, C>>,
    settings: Settings,
) -> Outputs<Autodiff<Flex, C>> {
    let Inputs { x, gamma, beta, running_mean, running_var, residual } = inputs;
    let nodes = [x.node(), gamma.node(), beta.node()];
    let (gamma, beta) = (gamma.into_primitive(), beta.into_primitive());
    let tracked = match residual {
        Residual::Tensor(it) => (x, Some(it)),
        Residual::None => (x, None),
    };
    let inputs = Inputs {
        x: tracked.0.primitive().clone(),
        gamma: gamma.clone(),
        beta: beta.clone(),
        running_mean: running_mean.into_primitive(),
        running_var: running_var.into_primitive(),
        residual: match &tracked.1 {
            Some(it) => Residual::Tensor(it.primitive().clone()),
            None => Residual::None,
        },
    };
    let call = Call::new(&inputs, settings);
    let Outcome { outputs, statistics } = call.forward::<E>(inputs);
    let kept = Kept { call, gamma, beta, statistics };
    let y = match tracked {
        (x, None) => record_y::<E, C, 3>(nodes, x, None, kept, outputs.y),
        (x, Some(residual)) => {
            let [x_node, gamma, beta] = nodes;
            let nodes = [x_node, gamma, beta, residual.node()];
            record_y::<E, C, 4>(nodes, x, Some(residual), kept, outputs.y)
        }
    };
    let [running_mean, running_var] = [outputs.running_mean, outputs.running_var].map(Tracked::new);
    Outputs { y, running_mean, running_var }
}

/// `y` with its backward, if any of `nodes` wants a gradient: x, gamma, beta and the residual.
fn record_y<E: Value, C: CheckpointStrategy, const N: usize>(
    nodes: [NodeGuard; N],
    x: Tracked,
    residual: Option<Tracked>,
    kept: Kept<E>,
    y: FlexTensor,
) -> Tracked {
    match Step(PhantomData).prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let residual = residual.filter(|_| kept.call.backward_reads_residual());
            let x = prep.checkpoint(&x);
            let residual = residual.map(|it| prep.checkpoint(&it));
            prep.finish(State { x, residual, kept }, y)
        }
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

/// What backward reads. Tensors of `x`'s size are the checkpointer's, which may make them again.
#[derive(Debug, Clone)]
struct State<E: Value> {
    x: NodeId,
    residual: Option<NodeId>,
    kept: Kept<E>,
}

/// What forward leaves beside its outputs.
#[derive(Debug, Clone)]
struct Kept<E: Value> {
    call: Call,
    gamma: FlexTensor,
    beta: FlexTensor,
    statistics: Statistics<E>,
}

/// The backward of a call with N inputs that may want a gradient.
#[derive(Debug)]
struct Step<E>(PhantomData<E>);

impl<E: Value, const N: usize> Backward<Flex, N> for Step<E> {
    type State = State<E>;

    fn backward(
        self,
        ops: Ops<State<E>, N>,
        gradients: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let dy = gradients.consume::<Flex>(&ops.node);
        let State { x, residual, kept } = ops.state;
        let Kept { call, gamma, beta, statistics } = kept;
        let mut retrieve = |id| checkpointer.retrieve_node_output::<FlexTensor>(id);
        let (x, residual) = (retrieve(x), residual.map(retrieve));
        let computed = call.backward(x, residual, dy, [gamma, beta], &statistics);
        for (parent, gradient) in ops.parents.into_iter().zip(computed) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                gradients.register::<Flex>(parent.id, gradient);
            }
        }
    }
}
