//! Compiles the CUDA kernels, where NVIDIA's run-time compiler is to be found. Where it is not,
//! the build goes on without them: `build/kernels.rs` says what becomes of that.

#[cfg(feature = "cuda")]
#[path = "src/cuda/cache.rs"]
mod cache;
#[cfg(feature = "cuda")]
#[path = "src/cuda/compression.rs"]
mod compression;
#[cfg(feature = "cuda")]
#[path = "src/cuda/jobs.rs"]
mod jobs;
#[cfg(feature = "cuda")]
#[path = "build/kernels.rs"]
mod kernels;
#[cfg(feature = "cuda")]
#[path = "src/cuda/nvrtc.rs"]
mod nvrtc;
#[cfg(feature = "cuda")]
#[path = "src/cuda/search.rs"]
mod search;
#[cfg(feature = "cuda")]
#[path = "src/cuda/target.rs"]
mod target;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    if let Err(error) = kernels::embed() {
        for line in error.lines() {
            println!("cargo::error={line}");
        }
        std::process::exit(1);
    }
}
