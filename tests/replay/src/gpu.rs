//! The CUDA kernels, run by a GPU.

use std::sync::OnceLock;
use warpnorm::Result;
use warpnorm::cuda::Cuda;

/// The first GPU, opened once.
///
/// # Errors
/// There is none, or nothing to run it with.
pub fn first() -> Result<Cuda> {
    static FIRST: OnceLock<Result<Cuda>> = OnceLock::new();
    FIRST.get_or_init(|| Cuda::open(0)).clone()
}
