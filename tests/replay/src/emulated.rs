//! The CUDA kernels, run on the CPU.

use crate::buffers::Buffers;
use emulator::{Emulator, Options};
use warpnorm::Layout;
use warpnorm::cuda::Device;

/// On an emulator of its own, so that cases run side by side.
pub(crate) fn subject(layout: Layout) -> Buffers<Device<Emulator>> {
    let options = Options { counters: false, ..Options::default() };
    Buffers::new(Device::new(Emulator::new(options)), layout)
}
