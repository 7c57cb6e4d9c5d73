#![cfg_attr(feature = "cuda", doc = include_str!("../../docs/cuda.md"))]
#![cfg_attr(not(feature = "cuda"), doc = "NVIDIA GPUs. This build is without the feature `cuda`.")]

#[cfg(feature = "cuda")]
mod best;
mod bind;
#[cfg(feature = "cuda")]
mod cache;
mod choice;
#[cfg(feature = "cuda")]
mod compression;
mod device;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod images;
#[cfg(feature = "cuda")]
mod jobs;
#[cfg(feature = "cuda")]
mod launch;
mod launcher;
mod model;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod nvrtc;
#[allow(missing_docs, non_upper_case_globals, dead_code, reason = "made by bindgen")]
mod params;
mod plan;
#[doc(hidden)]
pub mod profiles;
mod remembered;
mod resident;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod search;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod target;
mod traffic;
mod workspace;

#[cfg(feature = "cuda")]
pub use best::{Best, best};
#[doc(hidden)]
pub use choice::{Choice, predicted_seconds, training_plans};
#[cfg(feature = "cuda")]
#[doc(no_inline)]
pub use cudarc;
pub use device::Device;
#[cfg(feature = "cuda")]
pub use gpu::{Cuda, CudaWorkspace};
#[cfg(feature = "cuda")]
pub use launch::{CudaLauncher, DeviceInfo, GpuBuffer, GpuSlice, GpuSliceMut, devices};
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub use launch::{GpuHold, expects_gpu};
#[doc(hidden)]
pub use launcher::{Clusters, DeviceFacts, Launch, Launched, Launcher, MemoryRef};
#[doc(hidden)]
pub use plan::{Alignment, BLOCK, Geometry, Pass, Plan, Tier, Walk};
#[doc(hidden)]
pub use resident::STATIC_SHARED_BYTES;
#[doc(hidden)]
pub use traffic::RequestedBytes;
pub use workspace::Workspace;
