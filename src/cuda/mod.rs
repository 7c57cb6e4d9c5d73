//! The CUDA side: plans, launches, and the backend over them.

#[cfg(feature = "cuda")]
mod best;
mod bind;
#[cfg(feature = "cuda")]
mod compression;
mod device;
#[cfg(feature = "cuda")]
pub mod images;
#[cfg(feature = "cuda")]
mod launch;
mod launcher;
#[cfg(feature = "cuda")]
pub mod nvrtc;
#[allow(missing_docs, non_upper_case_globals, dead_code, reason = "made by bindgen")]
mod params;
mod plan;
pub mod profiles;
mod resident;
#[cfg(feature = "cuda")]
pub mod search;
#[cfg(feature = "cuda")]
pub mod target;
mod traffic;
mod workspace;

#[cfg(feature = "cuda")]
pub use best::{Best, best};
pub use device::Device;
#[cfg(feature = "cuda")]
pub use launch::{CudaLauncher, DeviceInfo, GpuBuffer, GpuHold, GpuSlice, GpuSliceMut, devices};
pub use launcher::{DeviceFacts, Launch, Launcher, MemoryRef};
pub use plan::{Alignment, Geometry, Pass, Plan, Tier, Walk, training_plans};
pub use resident::static_shared_bytes;
pub use traffic::RequestedBytes;
pub use workspace::Workspace;

/// The kernels on an NVIDIA GPU.
#[cfg(feature = "cuda")]
pub type Cuda = Device<CudaLauncher>;
