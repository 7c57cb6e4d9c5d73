//! What the tests share: deterministic tensors in both layouts, the expected results by the
//! textbook, and how far from them a result may be.

// Every test binary compiles this file and uses its own part of it.
#![allow(dead_code)]

pub mod bars;
pub mod data;
pub mod expected;
pub mod flat;
pub mod on_backend;
pub mod runs;
pub mod tensors;

pub use bars::*;
pub use data::*;
pub use expected::*;
pub use runs::*;
pub use tensors::*;

use warpnorm::{Activation, Epilogue, Layout};

pub const LAYOUTS: [Layout; 2] = [Layout::ChannelsFirst, Layout::ChannelsLast];

pub const ACTIVATIONS: [Activation; 9] = [
    Activation::Identity,
    Activation::Relu,
    Activation::LeakyRelu { negative_slope: 0.01 },
    Activation::Relu6,
    Activation::Sigmoid,
    Activation::Tanh,
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
];

pub const RELU: Activation = Activation::Relu;

/// Every activation, without and with a residual.
pub fn epilogues() -> impl Iterator<Item = Epilogue> {
    ACTIVATIONS
        .into_iter()
        .flat_map(|activation| [false, true].map(|residual| Epilogue { activation, residual }))
}

/// Says what a failure was about: assertions on results do not know the case.
pub struct About<T: std::fmt::Debug>(pub T);

impl<T: std::fmt::Debug> Drop for About<T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in {:?}", self.0);
        }
    }
}
