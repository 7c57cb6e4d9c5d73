//! The kernels of a context: found, loaded once, looked up by name; and what the device says of them.

use super::driver::{OrFail, driver_version, failure};
use super::{cluster, config};
use crate::cuda::images::{self, Refusal};
use crate::cuda::launcher::{Clusters, DeviceFacts};
use crate::cuda::plan::BLOCK;
use crate::cuda::resident::STATIC_SHARED_BYTES;
use crate::cuda::target::Target;
use crate::error::{Error, Result};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, DriverError};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::env;
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

/// The compute capability that has thread block clusters first.
const FIRST_WITH_CLUSTERS: (u32, u32) = (9, 0);
/// The first whose kernels can wait for the launch before by themselves, and the first version of
/// CUDA that captures such launches in graphs.
const FIRST_TO_BEGIN_EARLY: ((u32, u32), (u32, u32)) = ((9, 0), (12, 3));
/// `0`: every launch begins when the one before it has ended.
const EARLY_LAUNCH: &str = "WARPNORM_EARLY_LAUNCH";
/// Any of the kernels that teams run.
const STANDS_FOR_RESIDENT_KERNELS: &str = "forward_planes_f32x4";

/// The kernels, loaded into one context.
pub(super) struct Kernels {
    modules: Vec<Arc<CudaModule>>,
    functions: RwLock<HashMap<String, CudaFunction>>,
    pub(super) facts: DeviceFacts,
    /// Whether launches may begin before the one before them has ended.
    pub(super) begin_early: bool,
}

/// A context's kernels. Those of a primary context stay: it belongs to the process, and a launcher
/// for each call is then cheap. Another context must go when its owner lets it go.
struct Loaded {
    kernels: Weak<Kernels>,
    _kept: Option<Arc<Kernels>>,
}

impl Kernels {
    /// The kernels of a context, which are loaded once.
    pub(super) fn of(context: &Arc<CudaContext>) -> Result<Arc<Self>> {
        // By address: kernels hold their context, so while they live no other one has it. Held
        // while kernels are compiled: another GPU of the same kind then finds them in the cache.
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
        // It would end a capture under way.
        let _anything = AllowedInCapture::begin();
        let mut facts = facts(context)?;
        let (major, minor) = facts.compute_capability;
        let (target, modules) = images::load(10 * major + minor, |modules| {
            let images::Modules { target, images } = modules;
            let modules = images.into_iter().map(|image| load_module(context, target, image));
            Ok((target, modules.collect::<std::result::Result<_, _>>()?))
        })?;
        // Plans must not ask for what the image was compiled without.
        facts.compute_capability = (target.capability() / 10, target.capability() % 10);
        let switch = env::var_os(EARLY_LAUNCH);
        let begin_early =
            begin_early(facts.compute_capability, driver_version()?, switch.as_deref());
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
        of_a_block.min(self.facts.shared_bytes_per_block).saturating_sub(STATIC_SHARED_BYTES)
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
    pub(super) fn function(&self, name: &str, keeps: bool) -> Result<sys::CUfunction> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(name) {
            return Ok(function.cu_function());
        }
        drop(functions);
        let function = self.find(name, keeps)?;
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        Ok(functions.entry(name.to_owned()).or_insert(function).cu_function())
    }

    pub(super) fn find(&self, name: &str, keeps: bool) -> Result<CudaFunction> {
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
) -> std::result::Result<Arc<CudaModule>, Refusal> {
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
        let refusal = if is_unfit(error.0) { Refusal::Unfit } else { Refusal::Failed };
        refusal(failure(error, &what))
    })
}

/// Whether it is of the image that this was said, and the driver may take another.
fn is_unfit(outcome: CUresult) -> bool {
    matches!(
        outcome,
        CUresult::CUDA_ERROR_INVALID_IMAGE
            | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUresult::CUDA_ERROR_INVALID_PTX
            | CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
            | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | CUresult::CUDA_ERROR_JIT_COMPILATION_DISABLED
            | CUresult::CUDA_ERROR_INVALID_SOURCE
    )
}

/// Whether launches may begin early with kernels for `capability`, a driver of CUDA `driver`, and
/// [`EARLY_LAUNCH`] as it is set.
fn begin_early(capability: (u32, u32), driver: (u32, u32), switch: Option<&OsStr>) -> bool {
    let (first_capability, first_driver) = FIRST_TO_BEGIN_EARLY;
    let is_switched_off = switch.is_some_and(|switch| switch == "0");
    capability >= first_capability && driver >= first_driver && !is_switched_off
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
            // Some virtual GPUs do not say.
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE).unwrap_or(0),
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH).unwrap_or(0),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_not_to_blame_for_what_befalls_the_device() {
        assert!(is_unfit(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU));
        assert!(is_unfit(CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION));
        assert!(!is_unfit(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
        assert!(!is_unfit(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS));
    }

    #[test]
    fn launches_begin_early_where_they_can_unless_they_shall_not() {
        let hopper = |switch: Option<&str>| begin_early((9, 0), (12, 3), switch.map(OsStr::new));
        assert!(hopper(None) && hopper(Some("1")) && hopper(Some("")));
        assert!(!hopper(Some("0")));
        assert!(!begin_early((8, 9), (12, 3), None));
        assert!(!begin_early((10, 0), (12, 2), None));
    }

    #[test]
    fn memory_that_does_not_tell_its_speed_has_one() {
        assert_eq!(bandwidth(2_619_000, 5120, 132), 3_352_320_000_000);
        assert_eq!(bandwidth(0, 256, 48), 480_000_000_000);
        assert_eq!(bandwidth(4_266_000, 0, 48), 480_000_000_000);
    }
}
