//! The example `train` on a GPU: its kernels compile, and it computes there what it does on the
//! CPU. Without a GPU, or NVRTC for the first of them, tests are listed as ignored; with a GPU they
//! need it to work, and cuBLAS and NVRTC, too.

#![allow(dead_code, reason = "the example's, of which the tests use a part")]

#[path = "../../examples/train/accelerated.rs"]
mod accelerated;
#[path = "../../examples/train/cpu.rs"]
mod cpu;
#[path = "../../examples/train/cuda.rs"]
mod cuda;
#[path = "../../examples/train/network.rs"]
mod network;
#[path = "../../examples/train/norm.rs"]
mod norm;
mod operations;
#[path = "../../examples/train/ops.rs"]
mod ops;

use accelerated::{Gpu, KERNELS};
use cuda::{Nvidia, SOURCES};
use libtest_mimic::{Arguments, Failed, Trial};
use std::process::ExitCode;
use warpnorm::cuda::nvrtc::Nvrtc;
use warpnorm::cuda::target::Target;
use warpnorm::cuda::{Best, best, expects_gpu};

fn main() -> ExitCode {
    let has_nvrtc = Nvrtc::open(|name| std::env::var_os(name)).is_ok();
    let has_gpu = expects_gpu();
    let trials = vec![
        trial("kernels_compile", has_nvrtc, "no NVRTC", kernels_compile),
        trial("each_operation_is_the_cpus", has_gpu, "no GPU", || {
            operations::each_is_the_cpus(&gpu()?);
            Ok(())
        }),
        trial("training_is_the_cpus", has_gpu, "no GPU", || {
            operations::training_is_the_cpus(&gpu()?);
            Ok(())
        }),
        trial("what_does_not_fit_is_refused", has_gpu, "no GPU", || {
            operations::refusals(&gpu()?);
            Ok(())
        }),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(name: &str, possible: bool, lack: &str, test: fn() -> Result<(), Failed>) -> Trial {
    Trial::test(name, test).with_ignored_flag(!possible).with_kind(if possible { "" } else { lack })
}

/// A GPU without cuBLAS or NVRTC fails the tests: it could run them.
fn gpu() -> Result<Gpu<Nvidia>, Failed> {
    match best() {
        Best::Gpu { backend, .. } => Ok(Gpu::new(Nvidia::new(&backend)?)),
        Best::Cpu { reason, .. } => Err(reason.into()),
    }
}

/// For machines old and new, with every entry point that will be looked up.
fn kernels_compile() -> Result<(), Failed> {
    let nvrtc = Nvrtc::open(|name| std::env::var_os(name))?;
    let (kernels, headers) = SOURCES.split_first().ok_or("no sources")?;
    for capability in nvrtc.capabilities()?.into_iter().filter(|capability| *capability >= 75) {
        let ptx = nvrtc.compile(*kernels, headers, Target::Ptx(capability))?.image;
        let ptx = String::from_utf8(ptx)?;
        for kernel in KERNELS {
            assert!(ptx.contains(&format!(".entry {kernel}(")), "no {kernel} in {capability}");
        }
        assert_eq!(ptx.matches(".entry ").count(), KERNELS.len());
    }
    let log = nvrtc.compile(*kernels, headers, Target::Sm(90))?.log;
    assert!(!log.contains("warning"), "{log}");
    Ok(())
}
