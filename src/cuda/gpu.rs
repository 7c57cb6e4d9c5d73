//! [`Cuda`]: the backend on a GPU.

use super::device::Device;
use super::launch::CudaLauncher;
use super::workspace::Workspace;
use crate::error::Result;
use cudarc::driver::CudaStream;
use std::sync::Arc;

/// An NVIDIA GPU: a [`Device`] over cudarc. Clones share the stream and the kernels.
///
/// ```no_run
/// use warpnorm::Backend;
/// use warpnorm::cuda::Cuda;
///
/// let gpu = Cuda::open(0)?;
/// let x = gpu.upload(&[1.0_f32, 2.0, 3.0])?;
/// assert_eq!(gpu.download(&x)?, [1.0, 2.0, 3.0]);
/// # Ok::<(), warpnorm::Error>(())
/// ```
pub type Cuda = Device<CudaLauncher>;

/// Scratch of [`Cuda`]'s calls, to be kept beside its layers.
pub type CudaWorkspace = Workspace<CudaLauncher>;

/// [`Cuda`]: a GPU by way of cudarc.
impl Cuda {
    /// Device `ordinal`, its primary context (which it shares with CUDA's runtime, PyTorch and
    /// candle) and that context's default stream.
    ///
    /// # Errors
    /// No driver, no such device, or no kernels for it; each says what to do.
    pub fn open(ordinal: usize) -> Result<Self> {
        CudaLauncher::open(ordinal).map(Device::new)
    }

    /// The caller's stream, in the context that it belongs to.
    ///
    /// # Errors
    /// No kernels for the device: why, and what to do.
    pub fn on_stream(stream: Arc<CudaStream>) -> Result<Self> {
        CudaLauncher::new(stream).map(Device::new)
    }

    /// What calls are enqueued on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        self.launcher().stream()
    }

    /// Waits until all that was enqueued is done.
    ///
    /// # Errors
    /// What has gone wrong on the device since the last such call.
    pub fn synchronize(&self) -> Result<()> {
        self.launcher().synchronize()
    }
}
