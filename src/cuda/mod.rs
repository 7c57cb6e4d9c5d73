//! The CUDA side: plans, launches, and the backend over them.

mod bind;
mod device;
mod launcher;
#[allow(missing_docs, non_upper_case_globals, dead_code, reason = "made by bindgen")]
mod params;
mod plan;
mod workspace;

pub use device::Device;
pub use launcher::{DeviceFacts, Launch, Launcher, MemoryRef};
pub use plan::{Alignment, Geometry, Pass, Plan, Walk};
pub use workspace::Workspace;
