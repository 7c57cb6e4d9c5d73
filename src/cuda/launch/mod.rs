//! [`CudaLauncher`]: a GPU. Every call of CUDA's driver and every raw pointer is in this folder.

// cudarc's launches, and memory that is known by its address only.
#![allow(unsafe_code)]

mod driver;
mod kernels;
mod memory;

pub(super) use driver::NO_DEVICE;
pub use driver::{DeviceInfo, devices, expects_gpu};
pub use memory::{GpuBuffer, GpuHold, GpuSlice, GpuSliceMut};

use super::launcher::{DeviceFacts, Launch, Launched, Launcher, MemoryRef};
use super::params::Params;
use crate::element::Scalar;
use crate::error::{Error, Result};
use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, CudaStream, DevicePtrMut, DeviceSlice, result};
use driver::{OrFail, require_device, require_driver};
use kernels::Kernels;
use memory::{Destination, Source};
use std::ffi::c_void;
use std::fmt;
use std::ptr;
use std::sync::Arc;

/// One stream of one device, and the kernels loaded there: what [`Cuda`](super::Cuda) launches
/// with. Clones share both.
///
/// The first launcher in a context loads the kernels; later ones find them loaded. A launch
/// allocates nothing and waits for nothing.
#[derive(Clone)]
pub struct CudaLauncher {
    stream: Arc<CudaStream>,
    kernels: Arc<Kernels>,
}

impl Drop for CudaLauncher {
    /// A stream that ends with its last launcher is waited for: cudarc orders memory with streams that are
    /// there, and CUDA goes on with what an ended one has begun.
    fn drop(&mut self) {
        if Arc::strong_count(&self.stream) == 1 {
            // Whoever comes next is told what has gone wrong.
            let _ = self.synchronize();
        }
    }
}

impl fmt::Debug for CudaLauncher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ordinal = self.context().ordinal();
        f.debug_struct("CudaLauncher").field("device", &ordinal).finish_non_exhaustive()
    }
}

impl CudaLauncher {
    /// Device `ordinal`, its primary context (which it shares with CUDA's runtime, PyTorch and
    /// candle) and that context's default stream.
    ///
    /// # Errors
    /// No driver, no such device, or no kernels for it; each says what to do.
    pub fn open(ordinal: usize) -> Result<Self> {
        require_device(ordinal)?;
        let what = format!("opening CUDA device {ordinal}");
        let context = CudaContext::new(ordinal).or_fail(&what)?;
        Self::new(context.default_stream())
    }

    /// The caller's stream, in the context that it belongs to.
    ///
    /// # Errors
    /// No kernels for the device: why, and what to do.
    pub fn new(stream: Arc<CudaStream>) -> Result<Self> {
        require_driver()?;
        let kernels = Kernels::of(stream.context())?;
        Ok(Self { stream, kernels })
    }

    /// What launches are enqueued on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// What memory must belong to.
    pub fn context(&self) -> &Arc<CudaContext> {
        self.stream.context()
    }

    /// Whether there is a kernel of this name, for tests.
    #[doc(hidden)]
    pub fn check_kernel(&self, name: &str) -> Result<()> {
        self.context().bind_to_thread().or_fail("looking for a kernel")?;
        self.kernels.find(name, false).map(drop)
    }

    /// Whether both launch the same kernels, loaded once, for tests.
    #[doc(hidden)]
    pub fn shares_kernels(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.kernels, &other.kernels)
    }

    /// Waits until all that was enqueued is done.
    ///
    /// # Errors
    /// What has gone wrong on the device since the last such call.
    pub fn synchronize(&self) -> Result<()> {
        self.context().bind_to_thread().or_fail("waiting for the device")?;
        self.stream.synchronize().or_fail("waiting for the device")
    }

    /// Refuses memory of another device or context, and memory that nothing keeps in order with
    /// this stream: cudarc orders the streams of one `CudaContext` value, of which there may be
    /// several for one context of CUDA's.
    fn check_owner(&self, argument: &str, owner: &CudaStream) -> Result<()> {
        let (own, other) = (self.context(), owner.context());
        if **own != **other {
            let of = |context: &CudaContext| {
                format!("memory of device {}, context {:p}", context.ordinal(), context.cu_ctx())
            };
            return Err(Error::argument(argument, of(own), of(other)));
        }
        let only_stream = self.stream.cu_stream() == owner.cu_stream()
            && !own.is_in_multi_stream_mode()
            && !other.is_in_multi_stream_mode();
        if Arc::ptr_eq(own, other) || only_stream {
            return Ok(());
        }
        Err(Error::argument(
            argument,
            "memory of the launcher's own CudaContext (make the launcher on the memory's stream)",
            "memory of another CudaContext, whose streams are not ordered with the launcher's",
        ))
    }

    /// Refuses what a graph must not hold: copies from and to host memory, which is gone when it
    /// is replayed, and memory, which would be the graph's.
    fn check_not_captured(&self, what: &str) -> Result<()> {
        match self.stream.capture_status().or_fail(what)? {
            sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE => Ok(()),
            _ => Err(Error::system(what, "the stream is being captured in a graph; do it before")),
        }
    }

    /// Waits for a copy, whose host memory CUDA may use until then.
    fn finish_copy(&self, what: &str) -> Result<()> {
        // SAFETY: the stream is `self`'s, and the copy has made its context current. Not by way
        // of cudarc, which would not wait if it had an earlier error to report.
        let finished = unsafe { result::stream::synchronize(self.stream.cu_stream()) };
        self.context().check_err().and(finished).or_fail(what)
    }
}

// SAFETY: addresses are those of cudarc's memory of this context, whose guards are the holds, or
// those whose owner has promised as much (`from_raw`).
unsafe impl Launcher for CudaLauncher {
    type Buffer<T: Scalar> = GpuBuffer<T>;
    type Slice<'a, T: Scalar> = GpuSlice<'a, T>;
    type SliceMut<'a, T: Scalar> = GpuSliceMut<'a, T>;
    type Hold<'a> = GpuHold<'a>;

    /// The compute capability is the kernels', where that is below the device's.
    fn facts(&self) -> DeviceFacts {
        self.kernels.facts
    }

    fn zeros<T: Scalar>(&self, len: usize) -> Result<GpuBuffer<T>> {
        let what = format!("allocating {len} elements of {} bytes", size_of::<T>());
        if len.checked_mul(size_of::<T>()).is_none() {
            return Err(Error::out_of_memory(what, "more than the address space"));
        }
        self.check_not_captured(&what)?;
        let memory = self.stream.alloc_zeros(len.max(1)).or_fail(&what)?;
        Ok(GpuBuffer::of(memory, len))
    }

    fn upload<T: Scalar>(&self, values: &[T]) -> Result<GpuBuffer<T>> {
        if values.is_empty() {
            return self.zeros(0);
        }
        let what = "copying to the device";
        self.check_not_captured(what)?;
        let memory = self.stream.clone_htod(values).or_fail(what)?;
        self.finish_copy(what)?;
        Ok(memory.into())
    }

    fn download<T: Scalar>(&self, buffer: &GpuBuffer<T>) -> Result<Vec<T>> {
        if buffer.len == 0 {
            return Ok(Vec::new());
        }
        self.check_owner("buffer", buffer.memory.stream())?;
        let what = "copying from the device";
        self.check_not_captured(what)?;
        let values = self.stream.clone_dtoh(&buffer.memory).or_fail(what)?;
        self.finish_copy(what)?;
        Ok(values)
    }

    fn duplicate<T: Scalar>(&self, buffer: &GpuBuffer<T>) -> Result<GpuBuffer<T>> {
        self.check_owner("buffer", buffer.memory.stream())?;
        let what = "copying on the device";
        self.check_not_captured(what)?;
        let memory = self.stream.clone_dtod(&buffer.memory).or_fail(what)?;
        Ok(GpuBuffer::of(memory, buffer.len))
    }

    fn clear<T: Scalar>(&self, buffer: &mut GpuBuffer<T>) -> Result<()> {
        self.check_owner("buffer", buffer.memory.stream())?;
        self.stream.memset_zeros(&mut buffer.memory).or_fail("clearing memory")
    }

    fn len<T: Scalar>(buffer: &GpuBuffer<T>) -> usize {
        buffer.len
    }

    fn slice<T: Scalar>(buffer: &GpuBuffer<T>) -> GpuSlice<'_, T> {
        buffer.into()
    }

    fn slice_mut<T: Scalar>(buffer: &mut GpuBuffer<T>) -> GpuSliceMut<'_, T> {
        buffer.into()
    }

    fn memory<'s, T: Scalar>(
        &'s self,
        slice: &'s GpuSlice<'_, T>,
    ) -> Result<MemoryRef<GpuHold<'s>>> {
        let (address, record) = match slice.source {
            Source::Slice(memory, start) => {
                self.check_owner("slice", memory.stream())?;
                let part = memory.slice(start..start + slice.len);
                let (address, record) = part.view_ptr(&self.stream);
                (address, Some(record))
            }
            Source::View(view, start) => {
                self.check_owner("slice", view.stream())?;
                let part = view.slice(start..start + slice.len);
                let (address, record) = part.view_ptr(&self.stream);
                (address, Some(record))
            }
            Source::Address(address) => (address, None),
        };
        Ok(MemoryRef {
            address,
            bytes: slice.len * size_of::<T>(),
            hold: GpuHold { _record: record },
        })
    }

    fn memory_mut<'s, T: Scalar>(
        &'s self,
        slice: &'s mut GpuSliceMut<'_, T>,
    ) -> Result<MemoryRef<GpuHold<'s>>> {
        let bytes = slice.len * size_of::<T>();
        let (address, record) = match &mut slice.target {
            Destination::View(view) => {
                self.check_owner("slice", view.stream())?;
                let (address, record) = view.device_ptr_mut(&self.stream);
                (address, Some(record))
            }
            Destination::Address(address, _) => (*address, None),
        };
        Ok(MemoryRef { address, bytes, hold: GpuHold { _record: record } })
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<Launched> {
        let what = || {
            let Launch { kernel, grid, block, shared_bytes, cluster, .. } = launch;
            format!(
                "launching {kernel}, {grid} x {block} threads in clusters of {cluster}, \
                 {shared_bytes} B shared"
            )
        };
        let facts = &self.kernels.facts;
        if launch.cluster > 1 && launch.cluster > facts.clusters.largest() {
            return Err(Error::system(what(), "the device holds no cluster of so many blocks"));
        }
        // Every kernel takes this struct, and the driver would read beyond a shorter one.
        if launch.params.len() != size_of::<Params>() {
            return Err(Error::system(what(), "its parameters are of another size"));
        }
        self.context().bind_to_thread().or_fail(&what())?;
        let function = self.kernels.function(launch.kernel, launch.shared_bytes > 0)?;
        // By pointer: of cooperative launches nobody promises that they may be given another way.
        let mut params = launch.params.as_ptr().cast_mut().cast::<c_void>();
        let (mut attributes, count) = attributes(launch, self.kernels.begin_early);
        let config = sys::CUlaunchConfig {
            hStream: self.stream.cu_stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: count,
            ..config(launch.grid, launch.block, launch.shared_bytes)
        };
        // SAFETY: function and stream are of the context that is current; config and parameters, of
        // the size that was checked, outlive the call, which copies them. The addresses in them are
        // those of memory that the caller holds: only `Device` makes a launch, of what `memory` gave it.
        let outcome =
            unsafe { sys::cuLaunchKernelEx(&config, function, &mut params, ptr::null_mut()) };
        let are_together = launch.is_cooperative || launch.cluster > 1;
        match outcome {
            CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE
            | CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE => Ok(Launched::TooLarge),
            CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES if are_together => Ok(Launched::TooLarge),
            outcome => outcome.result().or_fail(&what()).map(|()| Launched::Enqueued),
        }
    }
}

/// What a launch asks for out of the ordinary, and how many of these attributes are meant.
fn attributes(launch: &Launch<'_>, begin_early: bool) -> ([sys::CUlaunchAttribute; 3], u32) {
    let mut attributes = [cooperative(); 3];
    let mut count = u32::from(launch.is_cooperative);
    let mut add = |attribute| {
        attributes[count as usize] = attribute;
        count += 1;
    };
    if launch.cluster > 1 {
        add(cluster(launch.cluster));
    }
    if launch.may_begin_early && begin_early {
        add(early());
    }
    (attributes, count)
}

/// A launch on the default stream that asks for nothing out of the ordinary.
fn config(grid: u32, block: u32, shared_bytes: u32) -> sys::CUlaunchConfig {
    sys::CUlaunchConfig {
        gridDimX: grid,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: block,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: shared_bytes,
        hStream: ptr::null_mut(),
        attrs: ptr::null_mut(),
        numAttrs: 0,
    }
}

/// Has each `size` neighbouring blocks be a cluster.
fn cluster(size: u32) -> sys::CUlaunchAttribute {
    let cluster = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: size, y: 1, z: 1 };
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { clusterDim: cluster },
    }
}

/// Lets a launch begin while the one before it in the stream ends.
fn early() -> sys::CUlaunchAttribute {
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    }
}

/// Asks for all blocks of a launch to be resident together, or for an error.
fn cooperative() -> sys::CUlaunchAttribute {
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { cooperative: 1 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever there is here, no device has such a number, and nothing panics.
    #[test]
    fn opening_says_what_is_missing_and_what_to_do() {
        // The second would be 0 in 32 bits.
        for ordinal in [1000, 1 << 32] {
            let text = CudaLauncher::open(ordinal).unwrap_err().to_string();
            let says = ["install", "update", "CUDA_ERROR", "nvidia-smi", "number"];
            assert!(says.iter().any(|part| text.contains(part)), "{text}");
        }
    }
}
