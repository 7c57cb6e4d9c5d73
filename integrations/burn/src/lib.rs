#![doc = include_str!("../README.md")]

mod call;
mod config;
mod layer;
mod operation;

pub use config::BatchNormConfig;
pub use layer::BatchNorm;
pub use warpnorm::Activation;
