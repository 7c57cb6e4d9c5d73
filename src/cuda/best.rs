//! [`best`]: the GPU where there is one, else the CPU, and which it is.

use super::gpu::Cuda;
use super::launch::{DeviceInfo, NO_DEVICE, devices};
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use std::fmt;

/// What [`best`] picked. Printed, it is the device's name, or why there is none.
#[derive(Debug, Clone)]
pub enum Best {
    /// A GPU, its primary context and that context's default stream.
    Gpu {
        /// To make layers on.
        backend: Cuda,
        /// Which it is.
        info: DeviceInfo,
    },
    /// No GPU that could be used.
    Cpu {
        /// To make layers on.
        backend: Cpu,
        /// Why no GPU was picked, and what would help.
        reason: Error,
    },
}

/// The first GPU that the kernels run on, in CUDA's order (fastest first, unless
/// `CUDA_DEVICE_ORDER` or `CUDA_VISIBLE_DEVICES` says otherwise), or else the CPU. Fails nowhere:
/// what kept it from picking a GPU is in the answer.
///
/// ```
/// use warpnorm::cuda::{Best, best};
/// use warpnorm::{Backend, BatchNorm, Error};
///
/// fn start<B: Backend>(backend: B) -> Result<usize, Error> {
///     let layer: BatchNorm<B> = BatchNorm::new(64, backend)?;
///     Ok(layer.channels())
/// }
///
/// let picked = best();
/// println!("batch normalization runs on {picked}");
/// let channels = match picked {
///     Best::Gpu { backend, .. } => start(backend)?,
///     Best::Cpu { backend, .. } => start(backend)?,
/// };
/// assert_eq!(channels, 64);
/// # Ok::<(), Error>(())
/// ```
pub fn best() -> Best {
    pick(devices(), |info| Cuda::open(info.ordinal))
}

/// The first of `devices` that can be opened. Where none can, the first one's reason is told.
fn pick(devices: Result<Vec<DeviceInfo>>, open: impl Fn(&DeviceInfo) -> Result<Cuda>) -> Best {
    let mut reason = None;
    match devices {
        Err(error) => reason = Some(error),
        Ok(devices) => {
            for info in devices {
                match open(&info) {
                    Ok(backend) => return Best::Gpu { backend, info },
                    Err(error) => drop(reason.get_or_insert(error)),
                }
            }
        }
    }
    let reason = reason.unwrap_or_else(|| Error::system("no GPU", NO_DEVICE));
    Best::Cpu { backend: Cpu::new(), reason }
}

/// `NVIDIA H100 80GB HBM3 (device 0, compute capability 9.0)`, or
/// `the CPU (no CUDA driver: libcuda.so.1 cannot be loaded; install NVIDIA's driver)`.
impl fmt::Display for Best {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Best::Gpu { info, .. } => info.fmt(f),
            Best::Cpu { reason, .. } => write!(f, "the CPU ({reason})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(ordinal: usize) -> DeviceInfo {
        DeviceInfo {
            ordinal,
            name: "NVIDIA H100 80GB HBM3".into(),
            compute_capability: (9, 0),
            memory_bytes: 85_000_000_000,
            driver_version: (12, 9),
        }
    }

    fn reason_of(best: Best) -> String {
        match best {
            Best::Cpu { reason, .. } => reason.to_string(),
            Best::Gpu { info, .. } => panic!("{info}"),
        }
    }

    #[test]
    fn what_is_picked_is_said() {
        match (best(), Cuda::open(0)) {
            (Best::Gpu { info, .. }, _) => assert!(info.to_string().starts_with(&info.name)),
            (Best::Cpu { reason, .. }, opened) => {
                assert!(opened.is_err(), "{reason}");
                assert!(!reason.to_string().is_empty());
            }
        }
        assert_eq!(info(3).to_string(), "NVIDIA H100 80GB HBM3 (device 3, compute capability 9.0)");
    }

    #[test]
    fn without_a_driver_it_is_the_cpu_and_the_reason_is_the_drivers() {
        let missing = Error::system("no CUDA driver", "libcuda.so.1 cannot be loaded");
        let picked = pick(Err(missing.clone()), |_| panic!("there is no device"));
        let text = "the CPU (no CUDA driver: libcuda.so.1 cannot be loaded)";
        assert_eq!(picked.to_string(), text);
        assert_eq!(reason_of(picked), missing.to_string());
    }

    #[test]
    fn without_a_device_the_driver_is_not_to_blame() {
        let picked = pick(Ok(Vec::new()), |_| panic!("there is no device"));
        let reason = reason_of(picked);
        assert!(reason.starts_with("no GPU: the CUDA driver knows of none"), "{reason}");
    }

    #[test]
    fn every_device_is_tried_and_the_first_ones_reason_told() {
        let refuse = |info: &DeviceInfo| {
            Err(Error::system(format!("opening CUDA device {}", info.ordinal), "no kernels"))
        };
        let tried = std::cell::RefCell::new(Vec::new());
        let picked = pick(Ok(vec![info(0), info(1)]), |info| {
            tried.borrow_mut().push(info.ordinal);
            refuse(info)
        });
        assert_eq!(*tried.borrow(), [0, 1]);
        assert_eq!(reason_of(picked), "opening CUDA device 0: no kernels");
    }
}
