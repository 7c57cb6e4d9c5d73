//! The layer: Burn's parameters, records and rules of training around the operation.

use crate::BatchNormConfig;
use crate::operation::{BatchNormOps, Inputs, Outputs, Residual, Settings};
use burn::backend::{Dispatch, DispatchDevice};
use burn::module::{Content, DisplaySettings, Flag, Module, ModuleDisplay, Param, RunningState};
use burn::tensor::{DType, Device, Tensor, assert_shape};
use warpnorm::{Activation, Norm};

/// Batch normalization of `[N, C, ...]` tensors. Its fields are those of Burn's own layer: each
/// loads the other's records.
///
/// As in Burn's own layer training takes a tensor on an autodiff device and `training` enabled, which
/// [`freeze`](Module::freeze) disables; running statistics normalize otherwise, and what threads add
/// to them at once is averaged.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct BatchNorm {
    /// The weight, `[C]`.
    pub gamma: Param<Tensor<1>>,
    /// The bias, `[C]`.
    pub beta: Param<Tensor<1>>,
    /// Whether the batch's statistics normalize on an autodiff device.
    pub training: Param<Flag>,
    /// The average of the batch means, `[C]`.
    pub running_mean: RunningState<Tensor<1>>,
    /// The average of the unbiased batch variances, `[C]`.
    pub running_var: RunningState<Tensor<1>>,
    /// The weight of the new value in running statistics.
    pub momentum: f64,
    /// What is added to the variance.
    pub epsilon: f64,
    /// What follows the normalization.
    #[module(skip)]
    pub activation: Activation,
}

impl BatchNormConfig {
    /// A layer on `device`: f64 where that is the device's element type, and f32 otherwise, which is
    /// what tensors of f16 and bf16 take.
    ///
    /// # Panics
    /// No features, an epsilon that is not finite and positive, a momentum that is not in 0 to 1, an
    /// activation with a non-finite parameter.
    pub fn init(&self, device: &Device) -> BatchNorm {
        let BatchNormConfig { num_features, epsilon, momentum, activation } = *self;
        assert!(num_features > 0, "num_features: expected at least 1, found 0");
        assert!(
            epsilon.is_finite() && epsilon > 0.0,
            "epsilon: expected a finite positive number, found {epsilon}"
        );
        assert!((0.0..=1.0).contains(&momentum), "momentum: expected 0 to 1, found {momentum}");
        if let Activation::LeakyRelu { negative_slope } = activation {
            assert!(
                negative_slope.is_finite(),
                "negative_slope: expected a finite number, found {negative_slope}"
            );
        }
        let dtype = match DType::from(device.settings().float_dtype) {
            DType::F64 => DType::F64,
            _ => DType::F32,
        };
        let vector = |value: f64| Tensor::<1>::full([num_features], value, (device, dtype));
        BatchNorm {
            gamma: Param::from_tensor(vector(1.0)),
            beta: Param::from_tensor(vector(0.0)),
            training: Param::from_bool(true),
            running_mean: RunningState::new(vector(0.0)),
            running_var: RunningState::new(vector(1.0)),
            momentum,
            epsilon,
            activation,
        }
    }
}

impl BatchNorm {
    /// `activation(z)` with `z` the normalized, scaled and shifted input: in training with the batch's
    /// statistics, and then the running ones advance. The output lies in memory as the input does,
    /// where that is in one of warpnorm's layouts (see [Layouts](crate#layouts)).
    ///
    /// # Panics
    /// An input that is not `[N, C, ...]` of the layer's channels, not on the backend Flex or of an
    /// element type other than f32, f64, f16 and bf16; in training, one of a single value per channel.
    /// The running statistics are as before then.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        self.call(input, None)
    }

    /// `activation(z + residual)`, in the same pass; `residual` has the shape and element type of the
    /// input.
    ///
    /// # Panics
    /// As [`forward`](Self::forward), and for a residual that is not as the input is.
    pub fn forward_add<const D: usize>(&self, input: Tensor<D>, residual: Tensor<D>) -> Tensor<D> {
        self.call(input, Some(residual))
    }

    fn call<const D: usize>(&self, x: Tensor<D>, residual: Option<Tensor<D>>) -> Tensor<D> {
        let [num_features] = self.gamma.shape().dims();
        assert_shape!(x, [_, num_features, ..]);
        let device = x.device();
        check_device(&device);
        if let Some(residual) = &residual {
            check_residual(residual, &x);
        }
        let dtype = parameter_dtype(x.dtype());
        let settings = self.settings(&device);
        let running = [&self.running_mean, &self.running_var].map(RunningState::value_sync);
        let held = running.each_ref().map(|it| it.dtype());
        let parameter = |it: Tensor<1>| it.cast(dtype).into_dispatch();
        let [running_mean, running_var] = running.map(|it| parameter(it.to_device(&device)));
        let inputs = Inputs {
            x: x.into_dispatch(),
            gamma: parameter(self.gamma.val()),
            beta: parameter(self.beta.val()),
            running_mean,
            running_var,
            residual: match residual {
                Some(it) => Residual::Tensor(it.into_dispatch()),
                None => Residual::None,
            },
        };
        let Outputs { y, running_mean, running_var } = Dispatch::batch_norm(inputs, settings);
        if settings.training {
            let advanced = [running_mean, running_var].map(Tensor::from_dispatch);
            self.advance(advanced, held);
        }
        Tensor::from_dispatch(y)
    }

    fn settings(&self, device: &Device) -> Settings {
        Settings {
            norm: Norm { eps: self.epsilon, momentum: Some(self.momentum) },
            activation: self.activation,
            training: device.is_autodiff() && self.training.is_enabled(),
        }
    }

    /// Running statistics keep the element types that a record or a cast has given them.
    fn advance(&self, [mean, var]: [Tensor<1>; 2], [mean_dtype, var_dtype]: [DType; 2]) {
        self.running_mean.update(mean.detach().cast(mean_dtype));
        self.running_var.update(var.detach().cast(var_dtype));
    }
}

impl ModuleDisplay for BatchNorm {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [num_features] = self.beta.shape().dims();
        let content = content
            .add("num_features", &num_features)
            .add("momentum", &self.momentum)
            .add("epsilon", &self.epsilon)
            .add("activation", &self.activation.to_string());
        match self.training.is_enabled() {
            true => content.optional(),
            false => content.add("training", &self.training).optional(),
        }
    }
}

/// What parameters of tensors of an element type are of.
fn parameter_dtype(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        DType::F32 | DType::F16 | DType::BF16 => DType::F32,
        other => panic!("input: expected f32, f64, f16 or bf16, found {other:?}"),
    }
}

/// The operation is there for one backend.
fn check_device(device: &Device) {
    match device.clone().without_autodiff().as_dispatch() {
        DispatchDevice::Flex(_) => (),
        other => panic!("input: expected a tensor on the backend Flex, found one on {other:?}"),
    }
}

fn check_residual<const D: usize>(residual: &Tensor<D>, x: &Tensor<D>) {
    let [expected, found] = [x, residual].map(|it| format!("{:?} of {:?}", it.dims(), it.dtype()));
    assert!(expected == found, "residual: expected {expected} as the input, found {found}");
}
