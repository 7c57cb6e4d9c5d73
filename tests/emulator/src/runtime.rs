//! The C interface of `runtime/api.cpp`, behind safe functions.

use crate::options::Options;
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[repr(C)]
struct RawOptions {
    seed: u64,
    budget: u64,
    shared_bytes_per_block: u32,
    resident_blocks: u32,
    multiprocessors: u32,
    threads_per_multiprocessor: u32,
    shared_bytes_per_multiprocessor: u32,
    shared_bytes_reserved: u32,
    largest_cluster: u32,
    checks: u8,
    counters: u8,
}

#[repr(C)]
struct RawLaunch {
    kernel: *const c_char,
    params: *const c_void,
    params_bytes: usize,
    grid: u32,
    block: u32,
    shared_bytes: u32,
    cooperative: u32,
    cluster: u32,
    early: u32,
}

/// One launch, of any addresses: the checker finds those that are wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AnyLaunch<'a> {
    pub kernel: &'a str,
    pub grid: u32,
    pub block: u32,
    pub shared_bytes: u32,
    pub is_cooperative: bool,
    pub cluster: u32,
    pub may_begin_early: bool,
    pub params: &'a [u8],
}

/// Why a launch failed.
pub(crate) struct Failure {
    pub reason: String,
    /// The device holds too few blocks together.
    pub is_too_large: bool,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RawTraffic {
    pub bytes: u64,
    pub requests: u64,
    pub sectors: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RawAllocationCounters {
    pub id: u64,
    pub read: RawTraffic,
    pub written: RawTraffic,
    pub atomics: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RawTotals {
    pub shared_read_bytes: u64,
    pub shared_written_bytes: u64,
    pub shared_requests: u64,
    pub shared_extra_wavefronts: u64,
    pub peer_read_bytes: u64,
    pub barriers: u64,
    pub most_barriers: u64,
    pub threads: u64,
    pub switches: u64,
    pub allocations: u64,
}

enum RawDevice {}
enum RawAllocation {}

unsafe extern "C" {
    fn emulator_device(options: *const RawOptions) -> *mut RawDevice;
    fn emulator_device_free(device: *mut RawDevice);
    fn emulator_allocate(
        device: *mut RawDevice,
        bytes: usize,
        granule: u32,
        written: bool,
    ) -> *mut RawAllocation;
    fn emulator_free(device: *mut RawDevice, allocation: *mut RawAllocation);
    fn emulator_address(allocation: *const RawAllocation) -> *mut u8;
    fn emulator_id(allocation: *const RawAllocation) -> u64;
    fn emulator_wrote(
        device: *mut RawDevice,
        allocation: *mut RawAllocation,
        offset: usize,
        bytes: usize,
    );
    fn emulator_launch(
        device: *mut RawDevice,
        launch: *const RawLaunch,
        site: *mut u64,
        too_large: *mut bool,
    ) -> *mut c_char;
    fn emulator_free_text(text: *mut c_char);
    fn emulator_totals(device: *const RawDevice, totals: *mut RawTotals);
    fn emulator_allocation_counters(device: *const RawDevice, counters: *mut RawAllocationCounters);
    fn emulator_kernel_count() -> usize;
    fn emulator_kernel_name(index: usize) -> *const c_char;
    fn emulator_kernel_threads(index: usize) -> u32;
    fn emulator_kernel_params_bytes(index: usize) -> usize;
}

/// A kernel that the emulator can launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelFacts {
    /// The entry point's name.
    pub name: String,
    /// The most threads that a block of it may have.
    pub threads: u32,
    /// The size of the struct it takes.
    pub params_bytes: usize,
}

/// All kernels, in order of their names.
pub fn kernels() -> Vec<KernelFacts> {
    // SAFETY: the registry does not change once `main` runs, and its names are literals.
    let facts = |index| unsafe {
        KernelFacts {
            name: CStr::from_ptr(emulator_kernel_name(index)).to_string_lossy().into_owned(),
            threads: emulator_kernel_threads(index),
            params_bytes: emulator_kernel_params_bytes(index),
        }
    };
    // SAFETY: as above.
    let count = unsafe { emulator_kernel_count() };
    (0..count).map(facts).collect()
}

/// Device memory and launches. One call at a time: the mutex keeps them apart.
pub(crate) struct Device(Mutex<DevicePointer>);

struct DevicePointer(NonNull<RawDevice>);

// SAFETY: the device has no tie to the host thread that made it.
unsafe impl Send for DevicePointer {}

/// An allocation of a device, which must outlive it.
#[derive(Clone, Copy)]
pub(crate) struct Allocation {
    raw: NonNull<RawAllocation>,
    /// Where it begins.
    pub base: NonNull<u8>,
    /// A number that no other allocation of the device ever has.
    pub id: u64,
}

// SAFETY: the pointers are followed only with the device's mutex held, or for memory that borrows
// of the owning buffer keep apart.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

impl Device {
    pub fn new(options: &Options) -> Self {
        let all = options.facts.multiprocessors;
        let granted = options.granted_multiprocessors.unwrap_or(all);
        let raw = RawOptions {
            seed: options.seed,
            budget: options.budget.min(i64::MAX as u64),
            shared_bytes_per_block: options.facts.shared_bytes_per_block,
            resident_blocks: (2 * options.facts.multiprocessors).clamp(1, 16),
            multiprocessors: granted,
            threads_per_multiprocessor: options.facts.threads_per_multiprocessor,
            shared_bytes_per_multiprocessor: options.facts.shared_bytes_per_multiprocessor,
            shared_bytes_reserved: options.facts.shared_bytes_reserved,
            largest_cluster: options.facts.clusters.largest().min(2 * granted),
            checks: options.checks.into(),
            counters: options.counters.into(),
        };
        // SAFETY: the options are copied.
        let device = unsafe { emulator_device(&raw) };
        Device(Mutex::new(DevicePointer(NonNull::new(device).expect("new never gives null"))))
    }

    fn lock(&self) -> MutexGuard<'_, DevicePointer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Zeros, in granules of so many bytes for the checker. `None`: no memory.
    pub fn allocate(&self, bytes: usize, granule: u32, written: bool) -> Option<Allocation> {
        let device = self.lock();
        // SAFETY: the device lives, and no other call is in it.
        let raw =
            NonNull::new(unsafe { emulator_allocate(device.0.as_ptr(), bytes, granule, written) })?;
        // SAFETY: the allocation was just made.
        let (base, id) = unsafe { (emulator_address(raw.as_ptr()), emulator_id(raw.as_ptr())) };
        Some(Allocation { raw, base: NonNull::new(base)?, id })
    }

    /// # Safety
    /// The allocation is of this device, and nobody uses it from now on.
    pub unsafe fn free(&self, allocation: Allocation) {
        let device = self.lock();
        // SAFETY: the caller's promise.
        unsafe { emulator_free(device.0.as_ptr(), allocation.raw.as_ptr()) }
    }

    /// # Safety
    /// The allocation is of this device, lives, and has the bytes.
    pub unsafe fn wrote(&self, allocation: Allocation, offset: usize, bytes: usize) {
        let device = self.lock();
        // SAFETY: the caller's promise.
        unsafe { emulator_wrote(device.0.as_ptr(), allocation.raw.as_ptr(), offset, bytes) }
    }

    /// Runs one launch and returns what it counted, or why it failed.
    pub fn launch(
        &self,
        launch: AnyLaunch<'_>,
    ) -> Result<(RawTotals, Vec<RawAllocationCounters>), Failure> {
        let name = CString::new(launch.kernel)
            .map_err(|error| Failure { reason: error.to_string(), is_too_large: false })?;
        let raw = RawLaunch {
            kernel: name.as_ptr(),
            params: launch.params.as_ptr().cast(),
            params_bytes: launch.params.len(),
            grid: launch.grid,
            block: launch.block,
            shared_bytes: launch.shared_bytes,
            cooperative: launch.is_cooperative.into(),
            cluster: launch.cluster,
            early: launch.may_begin_early.into(),
        };
        let device = self.lock();
        let (mut site, mut is_too_large) = (0, false);
        // SAFETY: no other call is in the device, and the params are copied.
        let failure =
            unsafe { emulator_launch(device.0.as_ptr(), &raw, &mut site, &mut is_too_large) };
        if !failure.is_null() {
            // SAFETY: a C string, which is ours to free.
            let text = unsafe {
                let text = CStr::from_ptr(failure).to_string_lossy().into_owned();
                emulator_free_text(failure);
                text
            };
            let place = crate::source::line(site).map(|line| format!(" (latest access: {line})"));
            return Err(Failure { reason: text + &place.unwrap_or_default(), is_too_large });
        }
        let mut totals = RawTotals::default();
        // SAFETY: the struct has the layout of `Totals`.
        unsafe { emulator_totals(device.0.as_ptr(), &mut totals) };
        let mut allocations = vec![RawAllocationCounters::default(); totals.allocations as usize];
        // SAFETY: there is room for as many as there are.
        unsafe { emulator_allocation_counters(device.0.as_ptr(), allocations.as_mut_ptr()) };
        Ok((totals, allocations))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let device = self.lock();
        // SAFETY: buffers hold the device, so none is left.
        unsafe { emulator_device_free(device.0.as_ptr()) }
    }
}
