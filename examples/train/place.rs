//! Where the networks run.

#[cfg(feature = "cuda")]
use crate::accelerated::Gpu;
#[cfg(feature = "cuda")]
use crate::cuda::Nvidia;
use crate::options::{Device, Dtype};
#[cfg(feature = "cuda")]
use warpnorm::cuda::{Best, best};
use warpnorm::{Cpu, Result};

/// A device, and what to call it.
pub enum Place {
    Cpu(Cpu, String),
    #[cfg(feature = "cuda")]
    Gpu(Gpu<Nvidia>, String),
}

/// The device that was asked for, or the best one.
pub fn choose(device: Device, dtype: Dtype) -> Result<Place> {
    match (device, dtype) {
        (Device::Cpu, _) => Ok(on_cpu("the CPU".into())),
        (Device::Auto, Dtype::F64) => Ok(on_cpu("the CPU, where f64 is".into())),
        (Device::Auto, _) => Ok(choose_best()),
        (Device::Cuda, _) => open_gpu(),
    }
}

fn on_cpu(name: String) -> Place {
    Place::Cpu(Cpu::new(), name)
}

/// A GPU, or the CPU where it, or what the networks need beside it, is missing.
#[cfg(feature = "cuda")]
fn choose_best() -> Place {
    let picked = best();
    let name = picked.to_string();
    match picked {
        Best::Cpu { .. } => on_cpu(name),
        Best::Gpu { backend, .. } => match Nvidia::new(&backend) {
            Ok(gpu) => Place::Gpu(Gpu::new(gpu), name),
            Err(reason) => on_cpu(format!("the CPU ({reason})")),
        },
    }
}

#[cfg(feature = "cuda")]
fn open_gpu() -> Result<Place> {
    match best() {
        Best::Cpu { reason, .. } => Err(reason),
        Best::Gpu { backend, info } => {
            Ok(Place::Gpu(Gpu::new(Nvidia::new(&backend)?), info.to_string()))
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn choose_best() -> Place {
    on_cpu("the CPU".into())
}

#[cfg(not(feature = "cuda"))]
fn open_gpu() -> Result<Place> {
    let expected = "cpu or auto, as this was built without the feature `cuda`";
    Err(warpnorm::Error::argument("--device", expected, "cuda"))
}
