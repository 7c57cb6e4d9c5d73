//! The device under measurement, and what it says of itself.

use crate::cudnn::Cudnn;
use crate::files::{GpuDevice, GpuFile};
use crate::sampling;
use crate::timing::{Stopwatch, driver};
use std::sync::Arc;
use warpnorm::cuda::cudarc::driver::CudaStream;
use warpnorm::cuda::{Cuda, DeviceFacts, DeviceInfo, Launcher, devices, images};
use warpnorm::{Backend, Result};

/// Large enough for any L2.
const COPY_BYTES: usize = 1 << 30;

pub struct Gpu {
    pub cuda: Cuda,
    pub stream: Arc<CudaStream>,
    pub stopwatch: Stopwatch,
    /// With the bandwidth of a copy in the place of what clock and width come to: for predictions.
    pub facts: DeviceFacts,
    /// As calls have them: what plans are made of.
    pub planned_with: DeviceFacts,
    info: DeviceInfo,
    /// Or why there is none.
    pub cudnn: std::result::Result<Cudnn, String>,
}

impl Gpu {
    /// The first device, on a stream that can be captured in a graph.
    pub fn open() -> Result<Self> {
        let first = Cuda::open(0)?;
        let info = devices()?.swap_remove(0);
        let context = first.stream().context();
        // SAFETY: all memory is made and used on the one stream below.
        #[allow(unsafe_code, reason = "events between streams would end a capture")]
        unsafe {
            context.disable_event_tracking();
        }
        let stream = driver("making a stream", context.new_stream())?;
        let cuda = Cuda::on_stream(stream.clone())?;
        let facts = cuda.launcher().facts();
        let mut gpu = Gpu {
            cudnn: Cudnn::open(stream.clone()),
            stopwatch: Stopwatch::new(stream.clone())?,
            cuda,
            stream,
            facts,
            planned_with: facts,
            info,
        };
        gpu.facts.memory_bandwidth = gpu.copy_bandwidth()?;
        Ok(gpu)
    }

    /// Bytes a second, read and written, of one copy again and again, too large for the L2 to hold
    /// any of it until the next; it also warms the device up.
    fn copy_bandwidth(&self) -> Result<u64> {
        let bytes = COPY_BYTES.min(self.free_bytes()? as usize / 8);
        let from = self.cuda.zeros::<u8>(bytes)?;
        let mut to = self.cuda.zeros::<u8>(bytes)?;
        let ns = sampling::median_ns(|calls| {
            self.stopwatch.time(calls, &mut |_| {
                let copied = self.stream.memcpy_dtod(&from.view(), &mut to.view_mut());
                driver("copying", copied)
            })
        })?;
        Ok((2.0 * bytes as f64 / (ns * 1e-9)) as u64)
    }

    pub fn free_bytes(&self) -> Result<u64> {
        let (free, _) = driver("asking for memory", self.stream.context().mem_get_info())?;
        Ok(free as u64)
    }

    /// The file's beginning.
    pub fn file(&self) -> GpuFile {
        let ((major, minor), (cuda, update)) =
            (self.info.compute_capability, self.info.driver_version);
        let mut versions = std::collections::BTreeMap::new();
        versions.insert("driver".to_owned(), format!("for CUDA {cuda}.{update}"));
        versions.insert("warpnorm".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        if let Ok((major, minor)) = images::compiler() {
            versions.insert("nvrtc".to_owned(), format!("{major}.{minor}"));
        }
        if let Ok(version) = std::fs::read_to_string("/sys/module/nvidia/version") {
            versions.insert("nvidia".to_owned(), version.trim().to_owned());
        }
        GpuFile {
            device: GpuDevice {
                name: self.info.name.clone(),
                compute_capability: format!("{major}.{minor}"),
                multiprocessors: self.facts.multiprocessors,
                memory_bytes: self.info.memory_bytes,
                l2_bytes: self.facts.l2_bytes,
                memory_bandwidth: self.planned_with.memory_bandwidth,
            },
            versions,
            copy_bandwidth: self.facts.memory_bandwidth as f64,
            no_cudnn: self.cudnn.as_ref().err().cloned(),
            ..GpuFile::default()
        }
    }
}
