//! The library's tests, in one program: each would compile every kernel again.

#[cfg(feature = "safetensors")]
mod checkpoints;
mod common;
mod faults;
mod gradients;
mod layer;
mod memory;
mod oracle;
mod plans;
mod properties;
mod rules;
mod shipped_bugs;
