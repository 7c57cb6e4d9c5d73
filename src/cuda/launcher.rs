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
    /// Bytes of the second-level cache.
    pub l2_bytes: u64,
}

/// One kernel launch.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch<'a> {
    /// The entry point's name: a C identifier.
    pub kernel: &'a str,
    /// Blocks; grids are one-dimensional.
    pub grid: u32,
    /// Threads per block, one-dimensional, a multiple of 32.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
    /// The bytes of the one struct that the kernel takes by value.
    pub params: &'a [u8],
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
pub trait Launcher: Clone + Send + Sync + Sized + 'static {
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
    /// Enqueues one kernel. Every address in its params must be held by the caller.
    ///
    /// # Errors
    /// No such kernel, a launch that the device refuses.
    fn launch(&self, launch: &Launch<'_>) -> Result<()>;
}
