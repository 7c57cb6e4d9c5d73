//! An NVIDIA GPU as an [`Accelerator`]: kernels launched by cudarc, products by cuBLAS. All
//! `unsafe` of this example is here.

// Launches, and matrix products, whose sizes nobody checks.
#![allow(unsafe_code)]

use crate::accelerated::{Accelerator, BLOCK, Gemm, KERNELS, KernelParams};
use cudarc::cublas::sys::{cublasOperation_t as Operation, is_culib_present};
use cudarc::cublas::{CudaBlas, Gemm as _, GemmConfig};
use cudarc::driver::{CudaFunction, DeviceRepr, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;
use warpnorm::cuda::images::{self, Modules};
use warpnorm::cuda::nvrtc::Source;
use warpnorm::cuda::{Cuda, CudaLauncher, GpuBuffer};
use warpnorm::{Error, Result};

/// What NVRTC is given: the kernels, and the library's own header that they use.
pub const SOURCES: [Source<'static>; 2] = [
    Source { name: "kernels.cu", text: include_str!("kernels.cu") },
    Source { name: "device.cuh", text: include_str!("../../kernels/device.cuh") },
];

/// One stream of a GPU.
#[derive(Clone)]
pub struct Nvidia {
    launcher: CudaLauncher,
    blas: Arc<CudaBlas>,
    kernels: Arc<HashMap<&'static str, CudaFunction>>,
}

// SAFETY: C's layout, the same as the kernels' `TrainParams`, and numbers only.
unsafe impl DeviceRepr for KernelParams {}

impl Nvidia {
    /// The GPU, and the stream, that `backend` runs on.
    pub fn new(backend: &Cuda) -> Result<Self> {
        let launcher = backend.launcher().clone();
        let kernels = Arc::new(load_kernels(&launcher)?);
        // SAFETY: loading cuBLAS does nothing of note.
        if !unsafe { is_culib_present() } {
            return Err(Error::system(
                "no cuBLAS",
                "libcublas.so cannot be loaded; install it with the CUDA toolkit or by \
                 pip install nvidia-cublas-cu12, and add its directory to LD_LIBRARY_PATH",
            ));
        }
        let blas = CudaBlas::new(launcher.stream().clone()).map_err(failed("starting cuBLAS"))?;
        Ok(Nvidia { launcher, blas: Arc::new(blas), kernels })
    }
}

/// The kernels for a device of compute capability `capability` (90 is 9.0).
pub fn compile(capability: u32) -> Result<Modules> {
    images::compile_sources(&SOURCES, capability)
}

fn load_kernels(launcher: &CudaLauncher) -> Result<HashMap<&'static str, CudaFunction>> {
    let context = launcher.context();
    let (major, minor) =
        context.compute_capability().map_err(failed("asking the device what it is"))?;
    let Modules { target, images } = compile((10 * major + minor).unsigned_abs())?;
    let mut functions = HashMap::new();
    for image in images {
        let image = if target.is_ptx() {
            Ptx::from_src(String::from_utf8_lossy(&image))
        } else {
            Ptx::from_binary(image)
        };
        let module = context.load_module(image).map_err(failed("loading the network's kernels"))?;
        for kernel in KERNELS {
            let function = module.load_function(kernel).map_err(failed(kernel))?;
            functions.insert(kernel, function);
        }
    }
    Ok(functions)
}

impl Accelerator for Nvidia {
    type Launcher = CudaLauncher;

    fn launcher(&self) -> &CudaLauncher {
        &self.launcher
    }

    fn launch(&self, kernel: &str, threads: usize, params: &KernelParams) -> Result<()> {
        let function =
            self.kernels.get(kernel).ok_or_else(|| Error::system(kernel, "no such kernel"))?;
        let config = LaunchConfig {
            grid_dim: (small(kernel, threads.div_ceil(BLOCK))?, 1, 1),
            block_dim: (small(kernel, BLOCK)?, 1, 1),
            shared_mem_bytes: 0,
        };
        let mut launch = self.launcher.stream().launch_builder(function);
        launch.arg(params);
        // SAFETY: every kernel of the module takes one `TrainParams` and touches what its
        // addresses, rows and columns say; that this is there is for the caller to answer
        // (`Accelerator::launch`).
        unsafe { launch.launch(config) }.map_err(failed(kernel))?;
        Ok(())
    }

    fn multiply(
        &self,
        gemm: &Gemm,
        a: &GpuBuffer<f32>,
        b: &GpuBuffer<f32>,
        c: &mut GpuBuffer<f32>,
    ) -> Result<()> {
        const WHAT: &str = "multiplying matrices";
        let operation = |transposed| match transposed {
            true => Operation::CUBLAS_OP_T,
            false => Operation::CUBLAS_OP_N,
        };
        let config = GemmConfig {
            transa: operation(gemm.a_transposed),
            transb: operation(gemm.b_transposed),
            m: small(WHAT, gemm.m)?,
            n: small(WHAT, gemm.n)?,
            k: small(WHAT, gemm.k)?,
            alpha: gemm.alpha,
            lda: small(WHAT, gemm.lda)?,
            ldb: small(WHAT, gemm.ldb)?,
            beta: gemm.beta,
            ldc: small(WHAT, gemm.ldc)?,
        };
        // cuBLAS works in the context that is current.
        self.launcher.context().bind_to_thread().map_err(failed(WHAT))?;
        gemm.check(a.view().len(), b.view().len(), c.view().len())?;
        // SAFETY: the buffers are as large as the product says, as was just checked, and `c` is
        // borrowed apart from `a` and `b`.
        unsafe { self.blas.gemm(config, &a.view(), &b.view(), &mut c.view_mut()) }
            .map_err(failed(WHAT))
    }

    fn wait(&self) -> Result<()> {
        self.launcher.synchronize()
    }
}

/// As the integer that CUDA takes.
fn small<T: TryFrom<usize>>(what: &str, number: usize) -> Result<T> {
    T::try_from(number)
        .map_err(|_| Error::system(what, format!("{number} is more than CUDA takes at once")))
}

/// cudarc's errors as the library's.
fn failed<E: Display>(what: &str) -> impl Fn(E) -> Error {
    move |error| Error::system(what, error)
}
