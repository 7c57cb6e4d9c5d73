//! The driver: whether it is there, what devices it has, and what its errors say.

use crate::error::{Error, Result};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};
use cudarc::driver::{DriverError, result};
use libloading::Library;
use std::fmt;
use std::sync::OnceLock;

/// A device, as [`devices`] lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// What [`Cuda::open`](crate::cuda::Cuda::open) takes.
    pub ordinal: usize,
    /// As NVIDIA names it: `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Bytes of memory in all, used or not.
    pub memory_bytes: u64,
    /// The latest version of CUDA that the installed driver supports, major and minor.
    pub driver_version: (u32, u32),
}

/// `NVIDIA H100 80GB HBM3 (device 0, compute capability 9.0)`.
impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeviceInfo { ordinal, name, compute_capability: (major, minor), .. } = self;
        write!(f, "{name} (device {ordinal}, compute capability {major}.{minor})")
    }
}

/// Every device that this process may use; none, where there is a driver but no device.
///
/// ```no_run
/// for device in warpnorm::cuda::devices()? {
///     println!("{}: {}, {} GB", device.ordinal, device.name, device.memory_bytes / 1_000_000_000);
/// }
/// # Ok::<(), warpnorm::Error>(())
/// ```
///
/// # Errors
/// No CUDA driver, or one that does not work.
pub fn devices() -> Result<Vec<DeviceInfo>> {
    match device_count()? {
        0 => Ok(Vec::new()),
        count => {
            let driver_version = driver_version()?;
            (0..count).map(|ordinal| device(ordinal, driver_version)).collect()
        }
    }
}

fn device_count() -> Result<i32> {
    require_driver()?;
    match result::init() {
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok(0),
        outcome => outcome.or_fail("starting CUDA")?,
    }
    result::device::get_count().or_fail("counting devices")
}

/// Refuses a number that is no device's.
pub(super) fn require_device(ordinal: usize) -> Result<()> {
    check_ordinal(ordinal, device_count()?.unsigned_abs() as usize)
}

fn check_ordinal(ordinal: usize, count: usize) -> Result<()> {
    let what = || format!("opening CUDA device {ordinal}");
    match count {
        0 => Err(Error::system(what(), NO_DEVICE)),
        1 if ordinal > 0 => Err(Error::system(what(), "there is one device only, number 0")),
        _ if ordinal < count => Ok(()),
        _ => {
            let last = count - 1;
            let reason = format!("there are {count} devices, numbered from 0 to {last}");
            Err(Error::system(what(), reason))
        }
    }
}

/// What is the matter where there is a driver and no device, and where to look.
pub(in crate::cuda) const NO_DEVICE: &str = "the CUDA driver knows of none; see whether nvidia-smi \
    lists one, and whether CUDA_VISIBLE_DEVICES hides it";

/// Whether tests of a GPU have one to run on: not where there is no driver, or one that knows no
/// device. What else may keep a GPU from being used, they are to fail of.
#[doc(hidden)]
pub fn expects_gpu() -> bool {
    is_expected(driver_library().is_some(), devices())
}

fn is_expected(has_driver: bool, devices: Result<Vec<DeviceInfo>>) -> bool {
    has_driver && devices.map_or(true, |devices| !devices.is_empty())
}

fn device(ordinal: i32, driver_version: (u32, u32)) -> Result<DeviceInfo> {
    let what = "asking a device what it is";
    let handle = result::device::get(ordinal).or_fail(what)?;
    // SAFETY: the handle is one that the driver has just given.
    let attribute = |name| unsafe { result::device::get_attribute(handle, name) }.or_fail(what);
    Ok(DeviceInfo {
        ordinal: ordinal.unsigned_abs() as usize,
        name: result::device::get_name(handle).or_fail(what)?,
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?.unsigned_abs(),
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?.unsigned_abs(),
        ),
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(handle) }.or_fail(what)? as u64,
        driver_version,
    })
}

pub(super) fn driver_version() -> Result<(u32, u32)> {
    let mut version = 0;
    // SAFETY: an integer to write to.
    let outcome = unsafe { sys::cuDriverGetVersion(&mut version) }.result();
    outcome.or_fail("asking for the driver's version")?;
    let version = version.unsigned_abs();
    Ok((version / 1000, version % 1000 / 10))
}

/// What cudarc calls, directly or when it drops something. It looks a function up when it first
/// calls it, and panics where library or function is missing.
const DRIVER_FUNCTIONS: [&str; 41] = [
    "cuCtxDestroy_v2",
    "cuCtxGetCurrent",
    "cuCtxGetExecAffinity",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuInit",
    "cuLaunchKernelEx",
    "cuMemAllocAsync",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFree_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    "cuOccupancyMaxActiveClusters",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamIsCapturing",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuThreadExchangeStreamCaptureMode",
];

const DRIVER: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };

/// The one that cudarc opens, which asks for the name without a number first.
fn driver_library() -> Option<Library> {
    // SAFETY: the driver's library does nothing of note when it is loaded.
    ["libcuda.so", DRIVER].into_iter().find_map(|name| unsafe { Library::new(name) }.ok())
}

/// An error where cudarc would panic.
pub(super) fn require_driver() -> Result<()> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    let missing = MISSING.get_or_init(|| {
        let Some(library) = driver_library() else {
            return Some(format!("{DRIVER} cannot be loaded; install NVIDIA's driver"));
        };
        // SAFETY: looked for, not called.
        let lacks = |function: &&str| unsafe { library.get::<*const ()>(*function) }.is_err();
        let function = DRIVER_FUNCTIONS.iter().find(|function| lacks(function))?;
        Some(format!("{DRIVER} has no {function}; update NVIDIA's driver"))
    });
    match missing {
        None => Ok(()),
        Some(reason) => Err(Error::system("no CUDA driver", reason)),
    }
}

/// The driver's errors as this crate's.
pub(super) trait OrFail<T> {
    fn or_fail(self, what: &str) -> Result<T>;
}

impl<T> OrFail<T> for std::result::Result<T, DriverError> {
    fn or_fail(self, what: &str) -> Result<T> {
        self.map_err(|error| failure(error, what))
    }
}

pub(super) fn failure(error: DriverError, what: &str) -> Error {
    match error.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::out_of_memory(what, reason(error)),
        _ => Error::system(what, reason(error)),
    }
}

/// `CUDA_ERROR_OUT_OF_MEMORY (out of memory)`.
fn reason(error: DriverError) -> String {
    match error.error_string() {
        Ok(text) => format!("{:?} ({})", error.0, text.to_string_lossy()),
        Err(_) => format!("{:?}", error.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_listed_or_missing_with_a_reason() {
        match devices() {
            Ok(devices) => assert!(devices.iter().all(|device| device.memory_bytes > 0)),
            Err(error) => assert!(error.to_string().contains("driver"), "{error}"),
        }
    }

    #[test]
    fn a_number_that_is_no_devices_is_refused_with_those_that_are() {
        let refusal = |ordinal, count| check_ordinal(ordinal, count).unwrap_err().to_string();
        assert_eq!(check_ordinal(0, 1).and(check_ordinal(1, 2)), Ok(()));
        assert_eq!(refusal(0, 0), format!("opening CUDA device 0: {NO_DEVICE}"));
        let reason = "there is one device only, number 0";
        assert_eq!(refusal(7, 1), format!("opening CUDA device 7: {reason}"));
        let reason = "there are 2 devices, numbered from 0 to 1";
        assert_eq!(refusal(2, 2), format!("opening CUDA device 2: {reason}"));
    }

    #[test]
    fn a_gpu_that_does_not_work_is_expected_to() {
        let broken = || Err(Error::system("starting CUDA", "CUDA_ERROR_UNKNOWN"));
        assert!(is_expected(true, broken()));
        assert!(!is_expected(false, broken()));
        assert!(!is_expected(true, Ok(Vec::new())));
    }
}
