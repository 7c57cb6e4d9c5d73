//! The CUDA kernels, run by a GPU.

use std::sync::OnceLock;
use warpnorm::Result;
use warpnorm::cuda::{Cuda, CudaLauncher};

/// The first GPU, opened once.
///
/// # Errors
/// There is none, or nothing to run it with.
pub fn first() -> Result<Cuda> {
    static FIRST: OnceLock<Result<Cuda>> = OnceLock::new();
    FIRST.get_or_init(|| CudaLauncher::open(0).map(Cuda::new)).clone()
}
