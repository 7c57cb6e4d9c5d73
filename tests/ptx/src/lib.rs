//! Runs the PTX that NVRTC made of `warpnorm`'s kernels, on the CPU.
//!
//! The emulator (`tests/emulator`) compiles the kernels with a C++ compiler, which sees
//! neither their inline assembly nor what NVRTC makes of the rest. Here the compiler's own output
//! runs, instruction by instruction: [`program()`] takes PTX apart, and [`PtxMachine`] implements
//! [`warpnorm::cuda::Launcher`] over it. It checks that accesses are within an allocation and
//! aligned, that the lanes of a warp meet at one instruction, and that nobody reads the shared memory
//! of a block that has returned. It knows the instructions that the kernels have, and refuses others.

mod decode;
mod device;
mod embedded;
mod machine;
mod memory;
#[cfg(test)]
mod mistakes;
mod program;
mod step;
mod text;
mod thread;
mod value;

pub use decode::program;
pub use device::{Buffer, PtxMachine, Ran, Slice, SliceMut};
pub use embedded::{CAPABILITIES, embedded};
pub use machine::Launch;
pub use program::Program;
