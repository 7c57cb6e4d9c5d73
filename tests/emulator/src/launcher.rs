//! [`Emulator`]: the device.

use crate::buffer::{Buffer, Slice, SliceMut};
use crate::counters::Counters;
use crate::options::Options;
use crate::runtime::{AnyLaunch, Device, Failure};
use std::sync::{Arc, Mutex, PoisonError};
use warpnorm::cuda::{DeviceFacts, Launch, Launched, Launcher, MemoryRef};
use warpnorm::{Error, Result, Scalar};

/// Memory up to this size is filled with NaN where a buffer is not initialised. The checker does
/// not depend on it, and larger buffers shall cost nothing until they are touched.
const POISONED_BYTES: usize = 64 << 20;

/// An emulated device. Clones are the same device; its launches run one at a time, those of
/// different emulators side by side.
#[derive(Clone)]
pub struct Emulator {
    device: Arc<Device>,
    options: Options,
    /// Of the launches that went through since they were last taken.
    counted: Arc<Mutex<Vec<Counters>>>,
}

impl Emulator {
    /// A device with memory of its own.
    pub fn new(options: Options) -> Self {
        let device = Arc::new(Device::new(&options));
        Emulator { device, options, counted: Arc::default() }
    }

    /// One that differs from the default by its seed only.
    pub fn with_seed(seed: u64) -> Self {
        Self::new(Options { seed, ..Options::default() })
    }

    /// What it was made with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Memory that reading before writing is an error of.
    ///
    /// # Errors
    /// No memory left.
    pub fn uninitialised<T: Scalar>(&self, len: usize) -> Result<Buffer<T>> {
        let mut buffer = Buffer::new(&self.device, len, false)?;
        if len * size_of::<T>() <= POISONED_BYTES {
            buffer.poison();
        }
        Ok(buffer)
    }

    /// What the latest launch did that went through.
    pub fn counters(&self) -> Counters {
        self.counted().last().cloned().unwrap_or_default()
    }

    /// What all launches did that went through since this was last called.
    pub fn take_counters(&self) -> Vec<Counters> {
        std::mem::take(&mut *self.counted())
    }

    /// Launches any kernel with any parameters. Unless checks are off, a launch that goes wrong is
    /// an error.
    ///
    /// # Errors
    /// What a GPU would refuse, and what the checker finds.
    pub fn run(&self, kernel: &str, shape: [u32; 3], params: &[u8]) -> Result<()> {
        self.require(any_launch(kernel, shape, params))
    }

    /// The same, all blocks resident together.
    ///
    /// # Errors
    /// As [`run`](Self::run); more blocks than the device holds.
    pub fn run_cooperative(&self, kernel: &str, shape: [u32; 3], params: &[u8]) -> Result<()> {
        self.require(AnyLaunch { is_cooperative: true, ..any_launch(kernel, shape, params) })
    }

    /// The same, each `cluster` blocks in a row being a thread block cluster.
    ///
    /// # Errors
    /// As [`run`](Self::run); clusters that the device does not hold, or that the grid is no whole
    /// number of.
    pub fn run_clusters(
        &self,
        kernel: &str,
        cluster: u32,
        shape: [u32; 3],
        params: &[u8],
    ) -> Result<()> {
        self.require(AnyLaunch { cluster, ..any_launch(kernel, shape, params) })
    }

    /// The same of a launch that may begin before the one before has ended.
    ///
    /// # Errors
    /// As [`run`](Self::run); a thread that does not wait before it touches global memory.
    pub fn run_early(&self, kernel: &str, shape: [u32; 3], params: &[u8]) -> Result<()> {
        self.require(AnyLaunch { may_begin_early: true, ..any_launch(kernel, shape, params) })
    }

    /// Has what is too large fail.
    fn require(&self, launch: AnyLaunch<'_>) -> Result<()> {
        self.enqueue(launch).map_err(|failure| error(launch.kernel, failure))
    }

    fn enqueue(&self, launch: AnyLaunch<'_>) -> std::result::Result<(), Failure> {
        let (totals, allocations) = self.device.launch(launch)?;
        self.counted().push(Counters::new(launch.kernel, &totals, &allocations));
        Ok(())
    }

    fn counted(&self) -> std::sync::MutexGuard<'_, Vec<Counters>> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A launch without anything out of the ordinary.
fn any_launch<'a>(
    kernel: &'a str,
    [grid, block, shared_bytes]: [u32; 3],
    params: &'a [u8],
) -> AnyLaunch<'a> {
    let (is_cooperative, cluster, may_begin_early) = (false, 1, false);
    AnyLaunch {
        kernel,
        grid,
        block,
        shared_bytes,
        is_cooperative,
        cluster,
        may_begin_early,
        params,
    }
}

fn error(kernel: &str, failure: Failure) -> Error {
    Error::system(format!("emulating {kernel}"), failure.reason)
}

// SAFETY: a buffer's memory stays where it is, and slices borrow it.
unsafe impl Launcher for Emulator {
    type Buffer<T: Scalar> = Buffer<T>;
    type Slice<'a, T: Scalar> = Slice<'a, T>;
    type SliceMut<'a, T: Scalar> = SliceMut<'a, T>;
    type Hold<'a> = ();

    fn facts(&self) -> DeviceFacts {
        self.options.facts
    }

    /// Costs nothing until it is touched, however large.
    fn zeros<T: Scalar>(&self, len: usize) -> Result<Buffer<T>> {
        Buffer::new(&self.device, len, true)
    }

    fn upload<T: Scalar>(&self, values: &[T]) -> Result<Buffer<T>> {
        let mut buffer = self.zeros(values.len())?;
        buffer.write(0, values);
        Ok(buffer)
    }

    fn download<T: Scalar>(&self, buffer: &Buffer<T>) -> Result<Vec<T>> {
        Ok(buffer.read(..))
    }

    fn duplicate<T: Scalar>(&self, buffer: &Buffer<T>) -> Result<Buffer<T>> {
        self.upload(&buffer.read(..))
    }

    fn clear<T: Scalar>(&self, buffer: &mut Buffer<T>) -> Result<()> {
        buffer.write(0, &vec![T::default(); buffer.len()]);
        Ok(())
    }

    fn len<T: Scalar>(buffer: &Buffer<T>) -> usize {
        buffer.len()
    }

    fn slice<T: Scalar>(buffer: &Buffer<T>) -> Slice<'_, T> {
        buffer.slice_range(..)
    }

    fn slice_mut<T: Scalar>(buffer: &mut Buffer<T>) -> SliceMut<'_, T> {
        buffer.slice_range_mut(..)
    }

    fn memory<'s, T: Scalar>(&'s self, slice: &'s Slice<'_, T>) -> Result<MemoryRef<()>> {
        Ok(MemoryRef { address: slice.address(), bytes: slice.bytes(), hold: () })
    }

    fn memory_mut<'s, T: Scalar>(
        &'s self,
        slice: &'s mut SliceMut<'_, T>,
    ) -> Result<MemoryRef<()>> {
        Ok(MemoryRef { address: slice.address(), bytes: slice.bytes(), hold: () })
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<Launched> {
        let outcome = self.enqueue(AnyLaunch {
            kernel: launch.kernel(),
            grid: launch.grid(),
            block: launch.block(),
            shared_bytes: launch.shared_bytes(),
            is_cooperative: launch.is_cooperative(),
            cluster: launch.cluster(),
            may_begin_early: launch.may_begin_early(),
            params: launch.params(),
        });
        match outcome {
            Ok(()) => Ok(Launched::Enqueued),
            Err(failure) if failure.is_too_large => Ok(Launched::TooLarge),
            Err(failure) => Err(error(launch.kernel(), failure)),
        }
    }
}
