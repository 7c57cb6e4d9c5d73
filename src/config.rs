//! How a batch normalization is set up: layout, activation, epilogue, eps and momentum.

use crate::error::{Error, Result};
use std::fmt;

/// How a tensor lies in memory. Extents are always given channels second, `[N, C, spatial...]`,
/// as PyTorch does; the layout says which of them runs fastest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// NCHW, NCDHW, NCL: the spatial positions of one channel of one sample are contiguous.
    ChannelsFirst,
    /// NHWC, NDHWC, NLC and plain `[N, C]`: the channels of one position are contiguous.
    ChannelsLast,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layout::ChannelsFirst => "channels-first",
            Layout::ChannelsLast => "channels-last",
        })
    }
}

/// The function applied to the normalized, scaled and shifted value `z` (residual included).
///
/// NaN goes through every one of them. The definitions are PyTorch's. On the CPU the smooth ones
/// (sigmoid, tanh, SiLU, GELU) are evaluated in f64 and rounded once, with the output. Their errors
/// before that are below 1e-9 of the value for tensors of f32 and 16 bits, below 4e-15 for tensors
/// of f64 (1e-13 far out in GELU's tail). On a GPU they are evaluated in fp32 and right to
/// a few of its last places, but for GELU's far tail, where its values are small.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Activation {
    /// `z`
    #[default]
    Identity,
    /// `max(z, 0)`; derivative 0 at 0.
    Relu,
    /// `z` where `z > 0`, else `negative_slope * z`; derivative `negative_slope` at 0.
    LeakyRelu {
        /// The factor below zero, finite; PyTorch's default is 0.01.
        negative_slope: f64,
    },
    /// `min(max(z, 0), 6)`; derivative 0 at 0 and at 6.
    Relu6,
    /// `1 / (1 + exp(-z))`
    Sigmoid,
    /// `tanh(z)`
    Tanh,
    /// `z * sigmoid(z)`, also called swish.
    Silu,
    /// `z * Phi(z)` with the normal distribution function (Hendrycks & Gimpel 2016), exact.
    Gelu,
    /// GELU by its tanh approximation: `z/2 * (1 + tanh(sqrt(2/pi) * (z + 0.044715 z^3)))`.
    GeluTanh,
}

impl Activation {
    /// Whether the derivative takes two values, so that one bit per element replaces the
    /// pre-activation in backward: true of ReLU, leaky ReLU and ReLU6. False of the identity, whose
    /// derivative is constant.
    pub fn is_piecewise_linear(self) -> bool {
        matches!(self, Activation::Relu | Activation::LeakyRelu { .. } | Activation::Relu6)
    }

    /// Whether the derivative takes any value, so that backward needs the pre-activation: true of
    /// sigmoid, tanh, SiLU and both kinds of GELU.
    pub fn is_smooth(self) -> bool {
        self != Activation::Identity && !self.is_piecewise_linear()
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Activation::Identity => "identity",
            Activation::Relu => "relu",
            Activation::LeakyRelu { negative_slope } => {
                return write!(f, "leaky_relu({negative_slope})");
            }
            Activation::Relu6 => "relu6",
            Activation::Sigmoid => "sigmoid",
            Activation::Tanh => "tanh",
            Activation::Silu => "silu",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_tanh",
        })
    }
}

/// What follows the normalization in the same pass: `y = activation(z + residual)`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Epilogue {
    /// Applied last.
    pub activation: Activation,
    /// Whether a tensor of the shape of `x` is added before the activation.
    pub residual: bool,
}

impl Epilogue {
    /// No residual, no activation.
    pub const NONE: Epilogue = Epilogue { activation: Activation::Identity, residual: false };

    /// An activation without a residual.
    pub fn activation(activation: Activation) -> Self {
        Epilogue { activation, residual: false }
    }

    /// Whether training forward writes a mask that backward reads: one bit per element for a
    /// piecewise linear activation over a residual, which could not be recomputed from `x`.
    pub fn has_mask(self) -> bool {
        self.residual && self.activation.is_piecewise_linear()
    }

    /// Whether backward reads the residual again: for a smooth activation over a residual.
    pub fn backward_reads_residual(self) -> bool {
        self.residual && self.activation.is_smooth()
    }

    /// The same of the backward of inference, whose forward keeps no mask: for any activation over a
    /// residual.
    pub fn inference_backward_reads_residual(self) -> bool {
        self.residual && self.activation != Activation::Identity
    }
}

/// The default of PyTorch and of the paper's reference implementations.
pub const DEFAULT_EPS: f64 = 1e-5;
/// PyTorch's default; the weight of the new value.
pub const DEFAULT_MOMENTUM: f64 = 0.1;

/// Settings of a [`BatchNorm`](crate::BatchNorm) layer, builder style. The defaults are PyTorch's.
///
/// ```
/// use warpnorm::{Activation, BatchNorm, BatchNormConfig, Cpu};
///
/// let bn: BatchNorm<Cpu> = BatchNormConfig::new(64)
///     .eps(1e-3)
///     .momentum(None) // cumulative average
///     .activation(Activation::Relu)
///     .build(Cpu::new())?;
/// assert_eq!(bn.weight().unwrap().len(), 64);
/// # Ok::<(), warpnorm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct BatchNormConfig {
    /// C.
    pub channels: usize,
    /// Added to the variance.
    pub eps: f64,
    /// The weight of the new value in the running statistics; `None` is the cumulative average.
    pub momentum: Option<f64>,
    /// Whether there are a weight and a bias.
    pub affine: bool,
    /// Whether running statistics are kept.
    pub track_running_stats: bool,
    /// Applied to the result.
    pub activation: Activation,
}

impl BatchNormConfig {
    /// eps 1e-5, momentum 0.1, affine, with running statistics, no activation.
    pub fn new(channels: usize) -> Self {
        BatchNormConfig {
            channels,
            eps: DEFAULT_EPS,
            momentum: Some(DEFAULT_MOMENTUM),
            affine: true,
            track_running_stats: true,
            activation: Activation::Identity,
        }
    }

    /// Added to the variance; finite and not negative.
    pub fn eps(mut self, eps: f64) -> Self {
        self.eps = eps;
        self
    }

    /// The weight of the new value in the running statistics, 0 to 1 (PyTorch's convention, not
    /// ONNX's); `None` is the cumulative average over all batches seen.
    pub fn momentum(mut self, momentum: Option<f64>) -> Self {
        self.momentum = momentum;
        self
    }

    /// Whether there are a weight and a bias.
    pub fn affine(mut self, affine: bool) -> Self {
        self.affine = affine;
        self
    }

    /// Whether running statistics are kept. Without them evaluation uses the batch's own.
    pub fn track_running_stats(mut self, track: bool) -> Self {
        self.track_running_stats = track;
        self
    }

    /// Applied to the result, after the residual if there is one.
    pub fn activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.channels == 0 {
            return Err(Error::argument("channels", "at least 1", 0));
        }
        if self.channels > MOST_CHANNELS {
            return Err(Error::argument("channels", "as many as can be addressed", self.channels));
        }
        check_eps(self.eps)?;
        check_activation(self.activation)?;
        check_momentum(self.momentum)
    }
}

/// Of which what a call keeps for each can be counted in bytes.
pub(crate) const MOST_CHANNELS: usize = isize::MAX as usize / 1024;

pub(crate) fn check_eps(eps: f64) -> Result<()> {
    if eps.is_finite() && eps >= 0.0 {
        return Ok(());
    }
    Err(Error::argument("eps", "a finite number, 0 or more", eps))
}

pub(crate) fn check_momentum(momentum: Option<f64>) -> Result<()> {
    momentum.map_or(Ok(()), |momentum| check_factor("momentum", momentum))
}

pub(crate) fn check_factor(argument: &str, factor: f64) -> Result<()> {
    if (0.0..=1.0).contains(&factor) {
        return Ok(());
    }
    Err(Error::argument(argument, "a number from 0 to 1", factor))
}

pub(crate) fn check_activation(activation: Activation) -> Result<()> {
    match activation {
        Activation::LeakyRelu { negative_slope } if !negative_slope.is_finite() => {
            Err(Error::argument("negative_slope", "a finite number", negative_slope))
        }
        _ => Ok(()),
    }
}
