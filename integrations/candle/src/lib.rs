#![doc = include_str!("../README.md")]

mod backend;
mod call;
mod engine;

use call::{Call, Operation, RunningStatistics};
use candle_core::{DType, ModuleT, Result, Tensor, Var, bail};
use candle_nn::{Init, VarBuilder};
use engine::{Engines, lock};
use std::fmt;
use std::sync::{Arc, Mutex};
pub use warpnorm::Activation;
use warpnorm::{Epilogue, Layout, Norm, Problem};

/// How a layer is set up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchNormConfig {
    /// Added to the variance; finite and not negative. 1e-5 by default.
    pub eps: f64,
    /// The weight of the new value in running statistics, 0 to 1. 0.1 by default.
    pub momentum: f64,
    /// Whether there are weight and bias to train. True by default.
    pub affine: bool,
    /// What follows the normalization, in the same pass. By default nothing.
    pub activation: Activation,
}

impl Default for BatchNormConfig {
    fn default() -> Self {
        BatchNormConfig { eps: 1e-5, momentum: 0.1, affine: true, activation: Activation::Identity }
    }
}

/// An eps; the rest as by default.
impl From<f64> for BatchNormConfig {
    fn from(eps: f64) -> Self {
        BatchNormConfig { eps, ..Self::default() }
    }
}

/// A layer over `channels` channels with the variables that [`candle_nn::batch_norm`] has:
/// `running_mean`, `running_var`, and with [`BatchNormConfig::affine`] `weight` and `bias`, `[C]`
/// each. They are f32, or f64 where `vb`'s element type is f64: of tensors of f16 and bf16 the
/// parameters and statistics are kept in f32.
///
/// # Errors
/// An eps or momentum out of its range; variables of another shape.
pub fn batch_norm<C: Into<BatchNormConfig>>(
    channels: usize,
    config: C,
    vb: VarBuilder,
) -> Result<BatchNorm> {
    let config = config.into();
    let vb = match vb.dtype() {
        DType::F64 => vb,
        _ => vb.to_dtype(DType::F32),
    };
    let variable = |name, value| vb.get_with_hints(channels, name, Init::Const(value));
    let (running_mean, running_var) =
        (variable("running_mean", 0.0)?, variable("running_var", 1.0)?);
    let affine = match config.affine {
        true => Some((variable("weight", 1.0)?, variable("bias", 0.0)?)),
        false => None,
    };
    BatchNorm::new(config, running_mean, running_var, affine)
}

/// Batch normalization of `[N, C, ...]` tensors, with gradients. Clones share variables. Training steps
/// on several threads at once are right each for itself, but may lose one another's share of the running
/// statistics, as in candle's layer.
#[derive(Clone)]
pub struct BatchNorm {
    config: BatchNormConfig,
    weight_and_bias: Option<(Tensor, Tensor)>,
    running_mean: Var,
    running_var: Var,
    engines: Arc<Engines>,
}

impl BatchNorm {
    /// A layer on tensors that are there: `[C]` each, all of f32 or all of f64, weight before bias.
    /// Running statistics that are variables are shared with whoever has them, others are copied.
    ///
    /// # Errors
    /// An eps or momentum out of its range; tensors of other shapes or element types.
    pub fn new(
        config: BatchNormConfig,
        running_mean: Tensor,
        running_var: Tensor,
        weight_and_bias: Option<(Tensor, Tensor)>,
    ) -> Result<Self> {
        let BatchNormConfig { eps, momentum, .. } = config;
        if !(eps.is_finite() && eps >= 0.0) {
            bail!("eps: expected a finite number from 0 on, found {eps}");
        }
        if !(0.0..=1.0).contains(&momentum) {
            bail!("momentum: expected 0 to 1, found {momentum}");
        }
        let (shape, dtype) = (running_mean.dims(), running_mean.dtype());
        if !matches!(shape, [channels] if *channels > 0)
            || !matches!(dtype, DType::F32 | DType::F64)
        {
            bail!(
                "running_mean: expected [C] of f32 or f64, C at least 1, found {shape:?} of {dtype:?}"
            );
        }
        let affine = weight_and_bias.iter().flat_map(|(w, b)| [("weight", w), ("bias", b)]);
        for (name, it) in affine.chain([("running_var", &running_var)]) {
            check_alike(name, it, "running_mean", &running_mean)?;
        }
        Ok(BatchNorm {
            config,
            weight_and_bias,
            running_mean: Var::from_tensor(&running_mean)?,
            running_var: Var::from_tensor(&running_var)?,
            engines: Arc::default(),
        })
    }

    /// How it is set up.
    pub fn config(&self) -> BatchNormConfig {
        self.config
    }

    /// `[C]` each, where the layer is affine.
    pub fn weight_and_bias(&self) -> Option<(&Tensor, &Tensor)> {
        self.weight_and_bias.as_ref().map(|(weight, bias)| (weight, bias))
    }

    /// The average of the batch means, `[C]`.
    pub fn running_mean(&self) -> &Tensor {
        self.running_mean.as_tensor()
    }

    /// The average of the unbiased batch variances, `[C]`.
    pub fn running_var(&self) -> &Tensor {
        self.running_var.as_tensor()
    }

    /// What is added to the variance.
    pub fn eps(&self) -> f64 {
        self.config.eps
    }

    /// The weight of the new value in running statistics.
    pub fn momentum(&self) -> f64 {
        self.config.momentum
    }

    /// [`forward_t`](Self::forward_t) in training.
    ///
    /// # Errors
    /// As there.
    pub fn forward_train(&self, x: &Tensor) -> Result<Tensor> {
        self.forward(x, None, true)
    }

    /// `activation(z)` with `z` the normalized, scaled and shifted `x`; in training with the batch's
    /// statistics, and then the running ones advance. `y` lies in memory as `x` does.
    ///
    /// # Errors
    /// An `x` that is not `[N, C, ...]` of the layer's channels, of another device or element type, of
    /// neither layout (see [Layouts](crate#layouts)), or of one value per channel in training. The
    /// running statistics are as before then.
    pub fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.forward(x, None, train)
    }

    /// `activation(z + residual)`, in the same pass; `residual` has the shape, element type and layout
    /// of `x`.
    ///
    /// # Errors
    /// As [`forward_t`](Self::forward_t), and for a residual that is not as `x` is.
    pub fn forward_t_add(&self, x: &Tensor, residual: &Tensor, train: bool) -> Result<Tensor> {
        self.forward(x, Some(residual), train)
    }

    fn forward(&self, x: &Tensor, residual: Option<&Tensor>, training: bool) -> Result<Tensor> {
        let channels = self.running_mean.dims()[0];
        if x.rank() < 2 || x.dims()[1] != channels {
            bail!("x: expected [N, {channels}, ...], found {:?}", x.dims());
        }
        check_device("x", x, "running_mean", self.running_mean.as_tensor())?;
        if let Some(residual) = residual {
            check_alike("residual", residual, "x", x)?;
        }
        let layout = layout_of(x)?;
        let residual = residual.map(|it| in_memory_order(it, layout)).transpose()?;
        if let Some(it) = residual.as_ref().filter(|it| !it.is_contiguous()) {
            bail!(
                "residual: expected {layout} order without gaps as x, found strides {:?}",
                it.stride()
            );
        }
        let problem = self.problem(x, residual.is_some(), layout)?;
        let call = Arc::new(Call {
            problem,
            norm: Norm { eps: self.config.eps, momentum: Some(self.config.momentum) },
            training,
            running: self.running(training)?,
            engines: self.engines.clone(),
            left: Mutex::default(),
        });
        let (x, parameters) = (in_memory_order(x, layout)?, self.parameters()?);
        let operation = Operation(call.clone());
        let y = x.apply_op3(&parameters, residual.as_ref().unwrap_or(&x), operation)?;
        if let Some(RunningStatistics { mean, var }) = lock(&call.left).running.take() {
            self.running_mean.set(&mean)?;
            self.running_var.set(&var)?;
        }
        channels_second(&y, layout)
    }

    fn problem(&self, x: &Tensor, residual: bool, layout: Layout) -> Result<Problem> {
        let dtype = match x.dtype() {
            DType::F32 => warpnorm::DType::F32,
            DType::F64 => warpnorm::DType::F64,
            DType::F16 => warpnorm::DType::F16,
            DType::BF16 => warpnorm::DType::Bf16,
            other => bail!("x: expected f32, f64, f16 or bf16, found {other:?}"),
        };
        let (expected, held) = match dtype {
            warpnorm::DType::F64 => (DType::F64, self.running_mean.dtype()),
            _ => (DType::F32, self.running_mean.dtype()),
        };
        if held != expected {
            bail!("x: expected an element type whose parameters are {held:?}, found {dtype}");
        }
        let epilogue = Epilogue { activation: self.config.activation, residual };
        Problem::new(x.dims(), layout, dtype, epilogue).map_err(candle_core::Error::wrap)
    }

    /// What an evaluation normalizes with is a copy: its backward may come after a training step.
    fn running(&self, training: bool) -> Result<RunningStatistics> {
        let [mean, var] = [&self.running_mean, &self.running_var].map(|it| match training {
            true => Ok(it.as_detached_tensor()),
            false => it.copy(),
        });
        Ok(RunningStatistics { mean: mean?, var: var? })
    }

    /// `[2, C]`: weights, then biases.
    fn parameters(&self) -> Result<Tensor> {
        match &self.weight_and_bias {
            Some((weight, bias)) => Tensor::stack(&[weight, bias], 0),
            None => {
                let mean = self.running_mean.as_detached_tensor();
                Tensor::stack(&[mean.ones_like()?, mean.zeros_like()?], 0)
            }
        }
    }
}

impl fmt::Debug for BatchNorm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchNorm")
            .field("config", &self.config)
            .field("channels", &self.running_mean.dims()[0])
            .finish_non_exhaustive()
    }
}

impl ModuleT for BatchNorm {
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.forward(x, None, train)
    }
}

/// Refuses a tensor that is not as another one is.
fn check_alike(name: &str, it: &Tensor, other_name: &str, other: &Tensor) -> Result<()> {
    if it.dims() != other.dims() || it.dtype() != other.dtype() {
        let [expected, found] =
            [other, it].map(|it| format!("{:?} of {:?}", it.dims(), it.dtype()));
        bail!("{name}: expected {expected} as {other_name}, found {found}");
    }
    check_device(name, it, other_name, other)
}

/// Refuses a tensor that lies elsewhere.
fn check_device(name: &str, it: &Tensor, other_name: &str, other: &Tensor) -> Result<()> {
    if it.device().same_device(other.device()) {
        return Ok(());
    }
    let [expected, found] = [other, it].map(|it| it.device().location());
    bail!("{name}: expected a tensor on {expected:?} as {other_name}, found one on {found:?}")
}

/// The layout that a tensor's strides show; of one position per sample, where they show both, rows of
/// channels.
fn layout_of(x: &Tensor) -> Result<Layout> {
    let positions: usize = x.dims()[2..].iter().product();
    if positions != 1 && x.is_contiguous() {
        Ok(Layout::ChannelsFirst)
    } else if in_memory_order(x, Layout::ChannelsLast)?.is_contiguous() {
        Ok(Layout::ChannelsLast)
    } else {
        bail!(
            "x: expected [N, C, ...] in channels-first or channels-last order without gaps, found {:?} \
             with strides {:?}; `contiguous` makes a copy that is",
            x.dims(),
            x.stride()
        )
    }
}

/// Channels last, where the layout has them last: axes in the order of memory.
fn in_memory_order(x: &Tensor, layout: Layout) -> Result<Tensor> {
    match layout {
        Layout::ChannelsFirst => Ok(x.clone()),
        Layout::ChannelsLast => {
            let axes: Vec<_> = [0].into_iter().chain(2..x.rank()).chain([1]).collect();
            x.permute(axes)
        }
    }
}

/// Channels on axis 1 again.
fn channels_second(y: &Tensor, layout: Layout) -> Result<Tensor> {
    match layout {
        Layout::ChannelsFirst => Ok(y.clone()),
        Layout::ChannelsLast => {
            let last = y.rank() - 1;
            let axes: Vec<_> = [0, last].into_iter().chain(1..last).collect();
            y.permute(axes)
        }
    }
}
