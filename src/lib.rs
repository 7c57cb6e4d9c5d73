#![doc = include_str!("../docs/front-page.md")]
#![deny(unsafe_code, missing_docs)]

mod arguments;
mod array;
mod backend;
#[cfg(feature = "safetensors")]
pub mod checkpoint;
mod config;
mod cpu;
pub mod cuda;
mod element;
mod error;
mod fold;
mod layer;
mod memory;
mod problem;
pub mod reference;
mod saved;
mod strides;
mod sync;

pub use array::Gradients;
pub use backend::{
    Affine, Apply, Backend, BackwardApply, BackwardReduce, BackwardTrain, ForwardTrain,
    GradientsMut, Inference, InferenceBackward, InferenceInplace, MOMENT_ROWS, MergeStatistics,
    Norm, Running, RunningMut, SUM_ROWS, SavedMut, SavedRef,
};
pub use config::{Activation, BatchNormConfig, DEFAULT_EPS, DEFAULT_MOMENTUM, Epilogue, Layout};
pub use cpu::{Cpu, CpuSlice, CpuSliceMut, CpuWorkspace};
pub use element::{DType, Element, Param, Scalar};
pub use error::{Error, Result};
pub use fold::Folded;
pub use layer::{BatchNorm, State};
pub use problem::{Operand, Problem};
pub use saved::Saved;
pub use strides::to_layout;
pub use sync::{SyncBatchNorm, SyncSaved};

// Their types are part of the interface: here in the versions that fit.
#[doc(no_inline)]
pub use half;
#[doc(no_inline)]
pub use ndarray;
#[cfg(feature = "safetensors")]
#[doc(no_inline)]
pub use safetensors;

#[cfg(all(doctest, feature = "cuda"))]
#[doc = include_str!("../README.md")]
mod readme {}
