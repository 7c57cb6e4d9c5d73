//! [`CudaLauncher`]: a GPU. Every call of CUDA's driver and every raw pointer is in this file.

// cudarc's launches, and memory that is known by its address only.
#![allow(unsafe_code)]

use super::images;
use super::launcher::{Clusters, DeviceFacts, Launch, Launched, Launcher, MemoryRef};
use super::params::Params;
use super::plan::{BLOCK, Pass, Walk};
use super::resident::static_shared_bytes;
use super::target::Target;
use crate::element::Scalar;
use crate::error::{Error, Result};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, CudaView, CudaViewMut,
    DevicePtrMut, DeviceSlice, DriverError, SyncOnDrop, result,
};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};

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

impl fmt::Debug for CudaLauncher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ordinal = self.context().ordinal();
        f.debug_struct("CudaLauncher").field("device", &ordinal).finish_non_exhaustive()
    }
}

/// A device, as [`devices`] lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// What [`Cuda::open`](super::Cuda::open) takes.
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
    require_driver()?;
    match result::init() {
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok(Vec::new()),
        outcome => outcome.or_fail("starting CUDA")?,
    }
    let driver_version = driver_version()?;
    let count = result::device::get_count().or_fail("counting devices")?;
    (0..count).map(|ordinal| device(ordinal, driver_version)).collect()
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

fn driver_version() -> Result<(u32, u32)> {
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

/// An error where cudarc would panic.
fn require_driver() -> Result<()> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    let name = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
    let missing = MISSING.get_or_init(|| {
        // SAFETY: the driver's library does nothing of note when it is loaded.
        let library = match unsafe { libloading::Library::new(name) } {
            Ok(library) => library,
            Err(_) => return Some(format!("{name} cannot be loaded; install NVIDIA's driver")),
        };
        // SAFETY: looked for, not called.
        let lacks = |function: &&str| unsafe { library.get::<*const ()>(*function) }.is_err();
        let function = DRIVER_FUNCTIONS.iter().find(|function| lacks(function))?;
        Some(format!("{name} has no {function}; update NVIDIA's driver"))
    });
    match missing {
        None => Ok(()),
        Some(reason) => Err(Error::system("no CUDA driver", reason)),
    }
}

/// The driver's errors as this crate's.
trait OrFail<T> {
    fn or_fail(self, what: &str) -> Result<T>;
}

impl<T> OrFail<T> for std::result::Result<T, DriverError> {
    fn or_fail(self, what: &str) -> Result<T> {
        self.map_err(|error| match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::out_of_memory(what, reason(error)),
            _ => Error::system(what, reason(error)),
        })
    }
}

/// `CUDA_ERROR_OUT_OF_MEMORY (out of memory)`.
fn reason(error: DriverError) -> String {
    match error.error_string() {
        Ok(text) => format!("{:?} ({})", error.0, text.to_string_lossy()),
        Err(_) => format!("{:?}", error.0),
    }
}

impl CudaLauncher {
    /// Device `ordinal`, its primary context (which it shares with CUDA's runtime, PyTorch and
    /// candle) and that context's default stream.
    ///
    /// # Errors
    /// No driver, no such device, or no kernels for it; each says what to do.
    pub fn open(ordinal: usize) -> Result<Self> {
        require_driver()?;
        let what = format!("opening CUDA device {ordinal}");
        // cudarc cuts the number to 32 bits.
        if i32::try_from(ordinal).is_err() {
            return Err(Error::system(what, "there is no device of this number"));
        }
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

/// The compute capability that has thread block clusters first.
const FIRST_WITH_CLUSTERS: (u32, u32) = (9, 0);
/// The first whose kernels can wait for the launch before by themselves, and the first version of
/// CUDA that captures such launches in graphs.
const FIRST_TO_BEGIN_EARLY: ((u32, u32), (u32, u32)) = ((9, 0), (12, 3));
/// Any of the kernels that teams run.
const STANDS_FOR_RESIDENT_KERNELS: &str = "forward_planes_f32x4";

/// The kernels, loaded into one context.
struct Kernels {
    modules: Vec<Arc<CudaModule>>,
    functions: RwLock<HashMap<String, CudaFunction>>,
    facts: DeviceFacts,
    /// Whether launches may begin before the one before them has ended.
    begin_early: bool,
}

/// A context's kernels. Those of a primary context stay: it belongs to the process, and a launcher
/// for each call is then cheap. Another context must go when its owner lets it go.
struct Loaded {
    kernels: Weak<Kernels>,
    _kept: Option<Arc<Kernels>>,
}

impl Kernels {
    /// The kernels of a context, which are loaded once.
    fn of(context: &Arc<CudaContext>) -> Result<Arc<Self>> {
        // By address: kernels hold their context, so while they live no other one has it.
        static LOADED: Mutex<Option<HashMap<usize, Loaded>>> = Mutex::new(None);
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = loaded.get_or_insert_default();
        let address = context.cu_ctx() as usize;
        if let Some(kernels) = loaded.get(&address).and_then(|entry| entry.kernels.upgrade()) {
            return Ok(kernels);
        }
        let kernels = Arc::new(Self::load(context)?);
        let kept = context.is_primary().then(|| kernels.clone());
        loaded.retain(|_, entry| entry.kernels.strong_count() > 0);
        loaded.insert(address, Loaded { kernels: Arc::downgrade(&kernels), _kept: kept });
        Ok(kernels)
    }

    fn load(context: &Arc<CudaContext>) -> Result<Self> {
        let mut facts = facts(context)?;
        let (major, minor) = facts.compute_capability;
        let (target, modules) = images::load(10 * major + minor, |modules| {
            let images::Modules { target, images } = modules;
            let modules = images.into_iter().map(|image| load_module(context, target, image));
            Ok((target, modules.collect::<Result<_>>()?))
        })?;
        // Plans must not ask for what the image was compiled without.
        facts.compute_capability = (target.capability() / 10, target.capability() % 10);
        let (capability, version) = FIRST_TO_BEGIN_EARLY;
        let begin_early = facts.compute_capability >= capability && driver_version()? >= version;
        let functions = RwLock::default();
        let mut kernels = Self { modules, functions, facts, begin_early };
        kernels.find_what_fits(context)?;
        Ok(kernels)
    }

    /// Fills in what of the facts needs a kernel to ask with: any that keeps tensors on chip stands
    /// for all of them, whose registers are for as many blocks.
    fn find_what_fits(&mut self, context: &CudaContext) -> Result<()> {
        let what = "asking the device how much it holds";
        context.bind_to_thread().or_fail(what)?;
        let function = self.function(STANDS_FOR_RESIDENT_KERNELS, true)?;
        let multiprocessors = multiprocessors_of_context(self.facts.multiprocessors);
        self.facts.multiprocessors = multiprocessors;
        let cooperates = Attribute::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH;
        if context.attribute(cooperates).or_fail(what)? != 0 {
            for residents in 1..=2 {
                let fit = self.resident_blocks(function, residents).or_fail(what)?;
                self.facts.cooperative_blocks[residents as usize - 1] = fit * multiprocessors;
            }
        }
        if self.facts.compute_capability >= FIRST_WITH_CLUSTERS {
            let resident = |residents, size| self.resident_clusters(function, residents, size);
            self.facts.clusters = Clusters::of(resident);
        }
        Ok(())
    }

    /// Dynamic shared memory of a block that shares its multiprocessor with others: what plans give
    /// it at most.
    fn shared_bytes_of(&self, residents: u32) -> u32 {
        let share = self.facts.shared_bytes_per_multiprocessor / residents;
        let of_a_block = share.saturating_sub(self.facts.shared_bytes_reserved);
        let of_its_own = static_shared_bytes(Pass::Forward, Walk::Planes);
        of_a_block.min(self.facts.shared_bytes_per_block).saturating_sub(of_its_own)
    }

    /// Blocks of so many that do share a multiprocessor.
    fn resident_blocks(
        &self,
        function: sys::CUfunction,
        residents: u32,
    ) -> std::result::Result<u32, DriverError> {
        let (mut count, shared_bytes) = (0, self.shared_bytes_of(residents) as usize);
        // SAFETY: the function is of the context that is current; the driver writes the count.
        let outcome = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut count,
                function,
                BLOCK as i32,
                shared_bytes,
            )
        };
        outcome.result()?;
        Ok(count.unsigned_abs().min(residents))
    }

    /// Clusters of `size` blocks that the device holds. 0 where the driver refuses to say, whatever
    /// its reason: plans do without that size, and the GPU is of use all the same.
    fn resident_clusters(&self, function: sys::CUfunction, residents: u32, size: u32) -> u32 {
        let (mut count, mut attribute) = (0, cluster(size));
        let config = sys::CUlaunchConfig {
            attrs: &raw mut attribute,
            numAttrs: 1,
            ..config(size, BLOCK, self.shared_bytes_of(residents))
        };
        // SAFETY: the function is of the context that is current; the driver writes the count, and
        // reads the config and its one attribute, which outlive the call.
        let outcome = unsafe { sys::cuOccupancyMaxActiveClusters(&mut count, function, &config) };
        if outcome == CUresult::CUDA_SUCCESS { count.unsigned_abs() } else { 0 }
    }

    /// A kernel by its name, looked up once. `keeps`: whether it is launched with dynamic shared
    /// memory, always.
    fn function(&self, name: &str, keeps: bool) -> Result<sys::CUfunction> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(name) {
            return Ok(function.cu_function());
        }
        drop(functions);
        let function = self.find(name, keeps)?;
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        Ok(functions.entry(name.to_owned()).or_insert(function).cu_function())
    }

    fn find(&self, name: &str, keeps: bool) -> Result<CudaFunction> {
        let what = || format!("looking up the kernel {name:?}");
        // It may load code, which would end a capture under way.
        let _anything = AllowedInCapture::begin();
        // cudarc panics on a NUL.
        let modules = self.modules.iter().filter(|_| !name.contains('\0'));
        for module in modules {
            match module.load_function(name) {
                Err(DriverError(CUresult::CUDA_ERROR_NOT_FOUND)) => {}
                outcome => {
                    let function = outcome.or_fail(&what())?;
                    self.allow_shared(&function, keeps).or_fail(&what())?;
                    return Ok(function);
                }
            }
        }
        Err(Error::system(what(), "there is none of this name"))
    }

    /// Beyond 48 KB a kernel must be told beforehand how much dynamic shared memory a launch may
    /// ask for. All the device has: this is a limit and costs nothing by itself. What keeps
    /// tensors there wants no L1 cache in its place, and may be launched in clusters of more blocks
    /// than all devices of its kind have.
    fn allow_shared(
        &self,
        function: &CudaFunction,
        keeps: bool,
    ) -> std::result::Result<(), DriverError> {
        use sys::CUfunction_attribute::{
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as LIMIT,
            CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED as LARGE_CLUSTERS,
            CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT as PERCENT,
        };
        if keeps {
            function.set_attribute(PERCENT, 100)?;
            if self.facts.compute_capability >= FIRST_WITH_CLUSTERS {
                // Who refuses it has clusters of up to 8 blocks, as the device will say.
                let _ = function.set_attribute(LARGE_CLUSTERS, 1);
            }
        }
        let of_its_own = function.shared_size_bytes()?;
        let limit = self.facts.shared_bytes_per_block.saturating_sub(of_its_own.unsigned_abs());
        function.set_attribute(LIMIT, limit.try_into().unwrap_or(i32::MAX))
    }
}

/// For as long as it lives, this thread may call what no graph can hold while a stream is captured.
struct AllowedInCapture {
    before: sys::CUstreamCaptureMode,
}

impl AllowedInCapture {
    fn begin() -> Self {
        Self { before: Self::exchange(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED) }
    }

    fn exchange(mut mode: sys::CUstreamCaptureMode) -> sys::CUstreamCaptureMode {
        // SAFETY: the driver reads the mode and writes the one before. It fails for no valid mode.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
        mode
    }
}

impl Drop for AllowedInCapture {
    fn drop(&mut self) {
        Self::exchange(self.before);
    }
}

fn load_module(
    context: &Arc<CudaContext>,
    target: Target,
    image: Vec<u8>,
) -> Result<Arc<CudaModule>> {
    let image = if target.is_ptx() {
        Ptx::from_src(String::from_utf8_lossy(&image))
    } else {
        Ptx::from_binary(image)
    };
    context.load_module(image).map_err(|error| {
        let (major, minor) = driver_version().unwrap_or_default();
        let of = images::compiler().map_or(String::new(), |(a, b)| format!(" of NVRTC {a}.{b}"));
        let what =
            format!("loading kernels{of} for {target} into a driver of CUDA {major}.{minor}");
        Error::system(what, reason(error))
    })
}

fn facts(context: &CudaContext) -> Result<DeviceFacts> {
    let attribute = |name| {
        let value = context.attribute(name).or_fail("asking the device for its properties")?;
        Ok(value.unsigned_abs())
    };
    Ok(DeviceFacts {
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        threads_per_multiprocessor: attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR,
        )?,
        shared_bytes_per_block: attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )?,
        shared_bytes_per_multiprocessor: attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
        )?,
        shared_bytes_reserved: attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK,
        )?,
        // These are known when there are kernels to ask with.
        cooperative_blocks: [0, 0],
        clusters: Clusters::NONE,
        l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.into(),
        memory_bandwidth: bandwidth(
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        ),
    })
}

/// Those that the current context may use of the device's: MPS can hold it to fewer.
fn multiprocessors_of_context(of_device: u32) -> u32 {
    let mut affinity = MaybeUninit::<sys::CUexecAffinityParam>::zeroed();
    let kind = sys::CUexecAffinityType::CU_EXEC_AFFINITY_TYPE_SM_COUNT;
    // SAFETY: a struct of the right type to write to.
    let limit = match unsafe { sys::cuCtxGetExecAffinity(affinity.as_mut_ptr(), kind) } {
        // SAFETY: zeros are a value of each of its fields; the driver has set the one for this type.
        CUresult::CUDA_SUCCESS => unsafe { affinity.assume_init().param.smCount.val },
        // There is no such limit.
        _ => of_device,
    };
    // Nothing says what it is in a context that was made without one.
    if (1..=of_device).contains(&limit) { limit } else { of_device }
}

/// Of memory that moves two bits a clock on each line. Where the clock or the lines are not told, as
/// of memory that belongs to the processor, what multiprocessors mostly have: plans divide by it.
fn bandwidth(clock_khz: u32, bus_bits: u32, multiprocessors: u32) -> u64 {
    const OF_A_MULTIPROCESSOR: u64 = 10_000_000_000;
    let bytes_per_clock = u64::from(bus_bits) / 8 * 2;
    match u64::from(clock_khz) * 1000 * bytes_per_clock {
        0 => u64::from(multiprocessors) * OF_A_MULTIPROCESSOR,
        told => told,
    }
}

/// Device memory that is freed, in its stream's order, when it is dropped. From and into cudarc's
/// `CudaSlice`.
#[derive(Debug)]
pub struct GpuBuffer<T> {
    // Dropped before the memory.
    _bound: BoundOnDrop,
    // One element where `len` is 0: CUDA allocates no empty memory.
    memory: CudaSlice<T>,
    len: usize,
}

/// Makes its context the thread's current one when it is dropped. cudarc frees memory in whichever
/// context is current: a thread may have none, or that of another device.
#[derive(Debug)]
struct BoundOnDrop(Arc<CudaContext>);

impl Drop for BoundOnDrop {
    fn drop(&mut self) {
        let earlier = self.0.check_err();
        let bound = self.0.bind_to_thread();
        // For the next call to report; of two errors the earlier.
        self.0.record_err(bound);
        self.0.record_err(earlier);
    }
}

impl<T> GpuBuffer<T> {
    fn of(memory: CudaSlice<T>, len: usize) -> Self {
        Self { _bound: BoundOnDrop(memory.context().clone()), memory, len }
    }
}

/// Memory of cudarc's making.
impl<T> From<CudaSlice<T>> for GpuBuffer<T> {
    fn from(memory: CudaSlice<T>) -> Self {
        let len = memory.len();
        Self::of(memory, len)
    }
}

/// As cudarc has it, for instance to make a tensor of candle's. An empty buffer has one element
/// then.
impl<T> From<GpuBuffer<T>> for CudaSlice<T> {
    fn from(buffer: GpuBuffer<T>) -> Self {
        buffer.memory
    }
}

impl<T> GpuBuffer<T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// As cudarc's view, to take parts of.
    pub fn view(&self) -> CudaView<'_, T> {
        self.memory.slice(..self.len)
    }

    /// As cudarc's view, to take parts of.
    pub fn view_mut(&mut self) -> CudaViewMut<'_, T> {
        self.memory.slice_mut(..self.len)
    }

    /// Some of its elements, from any one on.
    ///
    /// # Errors
    /// A range that is not within the buffer.
    pub fn part(&self, range: Range<usize>) -> Result<GpuSlice<'_, T>> {
        GpuSlice::from(self).part(range)
    }

    /// Some of its elements, from any one on.
    ///
    /// # Errors
    /// A range that is not within the buffer.
    pub fn part_mut(&mut self, range: Range<usize>) -> Result<GpuSliceMut<'_, T>> {
        check_range(&range, self.len)?;
        Ok(self.memory.slice_mut(range).into())
    }
}

fn check_range(range: &Range<usize>, len: usize) -> Result<()> {
    if range.start <= range.end && range.end <= len {
        return Ok(());
    }
    Err(Error::argument("range", format_args!("a part of 0..{len}"), format_args!("{range:?}")))
}

/// Borrowed device memory, to read: from a [`GpuBuffer`], from cudarc's slices and views, or from
/// an address.
#[derive(Debug, Clone, Copy)]
pub struct GpuSlice<'a, T> {
    source: Source<'a, T>,
    len: usize,
}

/// Memory, and the element of it that comes first.
#[derive(Debug, Clone, Copy)]
enum Source<'a, T> {
    Slice(&'a CudaSlice<T>, usize),
    View(&'a CudaView<'a, T>, usize),
    Address(u64),
}

impl<'a, T> From<&'a CudaSlice<T>> for GpuSlice<'a, T> {
    fn from(slice: &'a CudaSlice<T>) -> Self {
        Self { source: Source::Slice(slice, 0), len: slice.len() }
    }
}

impl<'a, T> From<&'a CudaView<'_, T>> for GpuSlice<'a, T> {
    fn from(view: &'a CudaView<'_, T>) -> Self {
        Self { source: Source::View(view, 0), len: view.len() }
    }
}

impl<'a, T> From<&'a GpuBuffer<T>> for GpuSlice<'a, T> {
    fn from(buffer: &'a GpuBuffer<T>) -> Self {
        Self { source: Source::Slice(&buffer.memory, 0), len: buffer.len }
    }
}

impl<T: Scalar> GpuSlice<'_, T> {
    /// `len` elements at an address of the device, as other libraries give it.
    ///
    /// # Safety
    /// - They are initialized memory of the launcher's context, and stay so until what is enqueued
    ///   with them has run, which may be after this value is gone.
    /// - What writes them is ordered before that work, on the same stream or by an event, and
    ///   nothing writes them while it runs.
    /// - The address is a multiple of the element's size.
    pub unsafe fn from_raw(address: u64, len: usize) -> Self {
        Self { source: Source::Address(address), len }
    }
}

impl<T> GpuSlice<'_, T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Some of its elements, from any one on.
    ///
    /// # Errors
    /// A range that is not within the slice.
    pub fn part(self, range: Range<usize>) -> Result<Self> {
        check_range(&range, self.len)?;
        let source = match self.source {
            Source::Slice(memory, start) => Source::Slice(memory, start + range.start),
            Source::View(view, start) => Source::View(view, start + range.start),
            Source::Address(address) => {
                Source::Address(address + (range.start * size_of::<T>()) as u64)
            }
        };
        Ok(Self { source, len: range.end - range.start })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Borrowed device memory, to write: from a [`GpuBuffer`], from cudarc's slices and views, or from
/// an address.
#[derive(Debug)]
pub struct GpuSliceMut<'a, T> {
    target: Destination<'a, T>,
    len: usize,
}

#[derive(Debug)]
enum Destination<'a, T> {
    View(CudaViewMut<'a, T>),
    Address(u64, PhantomData<&'a mut [T]>),
}

impl<'a, T> From<CudaViewMut<'a, T>> for GpuSliceMut<'a, T> {
    fn from(view: CudaViewMut<'a, T>) -> Self {
        Self { len: view.len(), target: Destination::View(view) }
    }
}

impl<'a, T> From<&'a mut CudaViewMut<'_, T>> for GpuSliceMut<'a, T> {
    fn from(view: &'a mut CudaViewMut<'_, T>) -> Self {
        view.slice_mut(..).into()
    }
}

impl<'a, T> From<&'a mut CudaSlice<T>> for GpuSliceMut<'a, T> {
    fn from(slice: &'a mut CudaSlice<T>) -> Self {
        slice.as_view_mut().into()
    }
}

impl<'a, T> From<&'a mut GpuBuffer<T>> for GpuSliceMut<'a, T> {
    fn from(buffer: &'a mut GpuBuffer<T>) -> Self {
        buffer.view_mut().into()
    }
}

impl<T: Scalar> GpuSliceMut<'_, T> {
    /// `len` elements at an address of the device, as other libraries give it.
    ///
    /// # Safety
    /// - They are memory of the launcher's context, and stay so until what is enqueued with them
    ///   has run, which may be after this value is gone.
    /// - Whatever else reads or writes them is ordered before or after that work, on the same
    ///   stream or by an event.
    /// - The address is a multiple of the element's size.
    pub unsafe fn from_raw(address: u64, len: usize) -> Self {
        Self { target: Destination::Address(address, PhantomData), len }
    }
}

impl<T> GpuSliceMut<'_, T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Keeps memory in order between streams: dropped after a launch, it records that the launch uses
/// the memory, for cudarc's other streams to wait on. Nothing for memory known by its address.
pub struct GpuHold<'a> {
    _record: Option<SyncOnDrop<'a>>,
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
            return Err(Error::system(what, "more than the address space"));
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

    /// Device 0, or nothing, with the reason shown.
    fn gpu() -> Option<CudaLauncher> {
        CudaLauncher::open(0).inspect_err(|error| eprintln!("not tested on a GPU: {error}")).ok()
    }

    #[test]
    fn opening_says_what_is_missing_and_does_not_panic() {
        let Err(error) = CudaLauncher::open(0) else { return };
        let text = error.to_string();
        assert!(text.contains("install") || text.contains("CUDA_ERROR"), "{text}");
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        assert!(CudaLauncher::open(1000).is_err());
        // Not the first one, which 2^32 is in 32 bits.
        assert!(CudaLauncher::open(1 << 32).is_err());
    }

    #[test]
    fn memory_that_does_not_tell_its_speed_has_one() {
        assert_eq!(bandwidth(2_619_000, 5120, 132), 3_352_320_000_000);
        assert_eq!(bandwidth(0, 256, 48), 480_000_000_000);
        assert_eq!(bandwidth(4_266_000, 0, 48), 480_000_000_000);
    }

    #[test]
    fn parts_begin_where_they_should() -> Result<()> {
        // SAFETY: nothing is launched with it.
        let slice = unsafe { GpuSlice::<f32>::from_raw(4096, 10) };
        let part = slice.part(3..7)?.part(1..4)?;
        assert_eq!(part.len(), 3);
        assert!(matches!(part.source, Source::Address(address) if address == 4096 + 4 * 4));
        assert!(slice.part(10..10)?.is_empty());
        for range in [Range { start: 3, end: 11 }, Range { start: 5, end: 4 }] {
            let error = slice.part(range).unwrap_err().to_string();
            assert!(error.contains("`range`: expected a part of 0..10"), "{error}");
        }
        Ok(())
    }

    #[test]
    fn devices_are_listed_or_missing_with_a_reason() {
        match devices() {
            Ok(devices) => assert!(devices.iter().all(|device| device.memory_bytes > 0)),
            Err(error) => assert!(error.to_string().contains("driver"), "{error}"),
        }
    }

    #[test]
    fn an_unknown_kernel_is_an_error_that_names_it() {
        let Some(gpu) = gpu() else { return };
        let params = Params::default();
        for kernel in ["no_such_kernel", "nul\0"] {
            let launch = Launch {
                kernel,
                grid: 1,
                block: 32,
                shared_bytes: 0,
                is_cooperative: false,
                cluster: 1,
                may_begin_early: false,
                params: bytemuck::bytes_of(&params),
            };
            let error = gpu.launch(&launch).unwrap_err().to_string();
            assert!(error.contains("looking up the kernel"), "{error}");
        }
    }

    #[test]
    fn clones_and_further_launchers_share_kernels() {
        let Some(gpu) = gpu() else { return };
        let again = CudaLauncher::new(gpu.context().new_stream().unwrap()).unwrap();
        assert!(Arc::ptr_eq(&gpu.kernels, &again.kernels));
        assert_eq!(gpu.facts(), again.facts());
    }
}
