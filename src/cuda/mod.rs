//! The CUDA side: plans, launches, and the backend over them.

mod launcher;

pub use launcher::{DeviceFacts, Launch, Launcher, MemoryRef};
