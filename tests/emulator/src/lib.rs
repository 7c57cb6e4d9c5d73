//! Runs the kernels of `warpnorm` on the CPU.
//!
//! `build.rs` compiles the very files in `kernels/` with a C++ compiler; [`Emulator`] implements
//! [`warpnorm::cuda::Launcher`] over them. Every thread of a launch runs, in an order that a seed
//! permutes. A checker finds accesses that are out of bounds, uninitialised, misaligned or racing,
//! and [`Counters`] say what a profiler would.
//!
//! On systems other than Linux on x86-64 and AArch64 the crate is empty.
#![cfg(emulated)]

mod buffer;
mod counters;
#[path = "../../conformance/src/devices.rs"]
mod devices;
mod launcher;
mod options;
mod runtime;
mod source;

pub use buffer::{Buffer, Slice, SliceMut};
pub use counters::{BufferTraffic, Counters, SharedTraffic, Traffic};
pub use devices::{clustered_facts, cramped_facts, default_facts};
pub use launcher::Emulator;
pub use options::Options;
pub use runtime::{KernelFacts, kernels};
