//! How a layer is set up.

use burn::config::Config;
use burn::serde::{Deserialize, Serialize};
use std::fmt;
use warpnorm::Activation;

/// How a [`BatchNorm`](crate::BatchNorm) is set up: as Burn's own layer, and with an activation. What
/// Burn's configuration has been saved to is read as one without.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(crate = "burn::serde")]
pub struct BatchNormConfig {
    /// C, at least 1.
    pub num_features: usize,
    /// Added to the variance; finite and positive. 1e-5 by default.
    pub epsilon: f64,
    /// The weight of the new value in running statistics, 0 to 1. 0.1 by default.
    pub momentum: f64,
    /// What follows the normalization, in the same pass. By default nothing.
    #[serde(with = "Named", default)]
    pub activation: Activation,
}

impl BatchNormConfig {
    /// A layer over `num_features` channels; the rest as by default.
    pub fn new(num_features: usize) -> Self {
        BatchNormConfig {
            num_features,
            epsilon: warpnorm::DEFAULT_EPS,
            momentum: warpnorm::DEFAULT_MOMENTUM,
            activation: Activation::Identity,
        }
    }

    /// Added to the variance; finite and positive.
    pub fn with_epsilon(mut self, epsilon: f64) -> Self {
        self.epsilon = epsilon;
        self
    }

    /// The weight of the new value in running statistics, 0 to 1.
    pub fn with_momentum(mut self, momentum: f64) -> Self {
        self.momentum = momentum;
        self
    }

    /// What follows the normalization, after the residual if there is one.
    pub fn with_activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }
}

impl Config for BatchNormConfig {}

impl fmt::Display for BatchNormConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&burn::config::config_to_json(self))
    }
}

/// [`Activation`] as it is saved.
#[derive(Serialize, Deserialize)]
#[serde(crate = "burn::serde", remote = "Activation")]
enum Named {
    Identity,
    Relu,
    LeakyRelu { negative_slope: f64 },
    Relu6,
    Sigmoid,
    Tanh,
    Silu,
    Gelu,
    GeluTanh,
}
