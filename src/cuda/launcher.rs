//! [`Launcher`]: the last step of a call, the only one that differs between a GPU and the emulator.

use crate::element::Scalar;
use crate::error::Result;

/// What a plan needs to know of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Compute capability, major and minor: `(9, 0)`.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Threads that one multiprocessor holds at a time.
    pub threads_per_multiprocessor: u32,
    /// Bytes of shared memory that one block may have, static and dynamic together.
    pub shared_bytes_per_block: u32,
    /// Bytes of shared memory of one multiprocessor.
    pub shared_bytes_per_multiprocessor: u32,
    /// Bytes of it that each block takes beyond what it asks for.
    pub shared_bytes_reserved: u32,
    /// Bytes of the second-level cache.
    pub l2_bytes: u64,
    /// Bytes a second that memory moves at best.
    pub memory_bandwidth: u64,
}

/// One kernel launch. Only a [`Device`](super::Device) makes one, of addresses that it holds.
#[derive(Debug, PartialEq)]
pub struct Launch<'a> {
    pub(super) kernel: &'a str,
    pub(super) grid: u32,
    pub(super) block: u32,
    pub(super) shared_bytes: u32,
    pub(super) is_cooperative: bool,
    pub(super) params: &'a [u8],
}

impl Launch<'_> {
    /// The entry point's name: a C identifier.
    pub fn kernel(&self) -> &str {
        self.kernel
    }

    /// Blocks; grids are one-dimensional.
    pub fn grid(&self) -> u32 {
        self.grid
    }

    /// Threads per block, one-dimensional, a multiple of 32.
    pub fn block(&self) -> u32 {
        self.block
    }

    /// Bytes of dynamic shared memory.
    pub fn shared_bytes(&self) -> u32 {
        self.shared_bytes
    }

    /// Whether blocks wait for each other, so that all must be resident together.
    pub fn is_cooperative(&self) -> bool {
        self.is_cooperative
    }

    /// The bytes of the one struct that the kernel takes by value.
    pub fn params(&self) -> &[u8] {
        self.params
    }
}

/// An address that a launch may use for as long as this value lives.
pub struct MemoryRef<H> {
    /// In the device's address space.
    pub address: u64,
    /// Bytes from there on.
    pub bytes: usize,
    /// What must outlive the launch: cudarc's event guards, nothing in the emulator.
    pub hold: H,
}

impl<H> MemoryRef<H> {
    /// Whether any byte is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let ends_before = |a: &Self, b: &Self| a.address + a.bytes as u64 <= b.address;
        let is_empty = self.bytes == 0 || other.bytes == 0;
        !is_empty && !ends_before(self, other) && !ends_before(other, self)
    }
}

/// A device that has memory and runs kernels in the order they are launched.
///
/// # Safety
/// [`memory`](Self::memory) and [`memory_mut`](Self::memory_mut) give addresses at which a launch
/// on this device may read, or read and write, so many bytes for as long as `hold` lives.
// A promise, not an operation: what is unsafe about launches stays in the implementations.
#[allow(unsafe_code)]
pub unsafe trait Launcher: Clone + Send + Sync + Sized + 'static {
    /// Memory that the device owns.
    type Buffer<T: Scalar>: Send + Sync;
    /// Borrowed memory, to read.
    type Slice<'a, T: Scalar>: Copy;
    /// Borrowed memory, to write.
    type SliceMut<'a, T: Scalar>;
    /// What keeps memory in order between streams while a launch is enqueued.
    type Hold<'a>;

    /// The device's facts.
    fn facts(&self) -> DeviceFacts;
    /// `len` zeros.
    fn zeros<T: Scalar>(&self, len: usize) -> Result<Self::Buffer<T>>;
    /// A copy of host memory.
    fn upload<T: Scalar>(&self, values: &[T]) -> Result<Self::Buffer<T>>;
    /// A copy in host memory.
    fn download<T: Scalar>(&self, buffer: &Self::Buffer<T>) -> Result<Vec<T>>;
    /// A buffer of the same contents.
    fn duplicate<T: Scalar>(&self, buffer: &Self::Buffer<T>) -> Result<Self::Buffer<T>>;
    /// Fills a buffer with zeros, where it is.
    fn clear<T: Scalar>(&self, buffer: &mut Self::Buffer<T>) -> Result<()>;
    /// Elements of a buffer.
    fn len<T: Scalar>(buffer: &Self::Buffer<T>) -> usize;
    /// The whole of a buffer.
    fn slice<T: Scalar>(buffer: &Self::Buffer<T>) -> Self::Slice<'_, T>;
    /// The whole of a buffer.
    fn slice_mut<T: Scalar>(buffer: &mut Self::Buffer<T>) -> Self::SliceMut<'_, T>;
    /// The memory behind a slice.
    fn memory<'s, T: Scalar>(
        &'s self,
        slice: &'s Self::Slice<'_, T>,
    ) -> Result<MemoryRef<Self::Hold<'s>>>;
    /// The memory behind a slice, to write.
    fn memory_mut<'s, T: Scalar>(
        &'s self,
        slice: &'s mut Self::SliceMut<'_, T>,
    ) -> Result<MemoryRef<Self::Hold<'s>>>;
    /// Enqueues one kernel.
    ///
    /// # Errors
    /// No such kernel, a launch that the device refuses.
    fn launch(&self, launch: &Launch<'_>) -> Result<()>;
}
