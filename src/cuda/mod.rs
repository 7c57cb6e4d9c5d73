//! The CUDA side: plans, launches, and the backend over them.

#[cfg(feature = "cuda")]
pub mod images;
#[cfg(feature = "cuda")]
mod launch;
mod launcher;
#[cfg(feature = "cuda")]
pub mod nvrtc;
#[cfg(feature = "cuda")]
pub mod search;
#[cfg(feature = "cuda")]
pub mod target;

#[cfg(feature = "cuda")]
pub use launch::{CudaLauncher, Device, GpuBuffer, GpuHold, GpuSlice, GpuSliceMut, devices};
pub use launcher::{DeviceFacts, Launch, Launcher, MemoryRef};
