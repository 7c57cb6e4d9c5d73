//! [`Launcher`]: the last step of a call, the only one that differs between a GPU and the emulator.

use crate::element::Scalar;
use crate::error::{Error, Result};

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
    /// Blocks that a cooperative launch may have, for one of them on a multiprocessor and for two.
    pub cooperative_blocks: [u32; 2],
    /// Thread block clusters that it holds.
    pub clusters: Clusters,
    /// Bytes of the second-level cache.
    pub l2_bytes: u64,
    /// Bytes a second that memory moves at best.
    pub memory_bandwidth: u64,
}

impl DeviceFacts {
    /// Bytes that L2 is counted on to hold until they are read again: half of it.
    pub(super) fn held_by_l2(&self) -> u64 {
        self.l2_bytes / 2
    }
}

/// How many thread block clusters of each size can be resident together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clusters {
    /// For one block on a multiprocessor and for two: those of 1 block, of 2, ...
    counts: [[u32; Clusters::LARGEST]; 2],
}

impl Clusters {
    /// Blocks that a cluster may have on any device.
    pub const LARGEST: usize = 16;
    /// What a device before compute capability 9.0 has.
    pub const NONE: Clusters = Clusters { counts: [[0; Self::LARGEST]; 2] };

    /// Of a device whose multiprocessors are grouped so: a cluster is within one group.
    pub const fn of_gpcs(multiprocessors: &[u32]) -> Clusters {
        let mut clusters = Self::NONE;
        let mut gpc = 0;
        while gpc < multiprocessors.len() {
            let mut size = 1;
            while size <= Self::LARGEST as u32 {
                let [one, two] = &mut clusters.counts;
                one[size as usize - 1] += multiprocessors[gpc] / size;
                two[size as usize - 1] += 2 * multiprocessors[gpc] / size;
                size += 1;
            }
            gpc += 1;
        }
        clusters
    }

    /// Of what a device says: `count(blocks on a multiprocessor, size)`.
    pub fn of(count: impl Fn(u32, u32) -> u32) -> Clusters {
        let mut clusters = Self::NONE;
        for (residents, counts) in (1..).zip(&mut clusters.counts) {
            for (size, clusters) in (1..).zip(counts) {
                *clusters = count(residents, size);
            }
        }
        clusters
    }

    /// The same without all sizes but one, for tests and measurements.
    pub fn only(self, size: u32) -> Clusters {
        let mut clusters = Self::NONE;
        for (residents, counts) in (1..).zip(&mut clusters.counts) {
            if let Some(count) = counts.get_mut((size as usize).wrapping_sub(1)) {
                *count = self.resident(residents, size);
            }
        }
        clusters
    }

    /// Clusters of `size` blocks, `residents` of which share a multiprocessor.
    pub fn resident(&self, residents: u32, size: u32) -> u32 {
        let of = |number: u32| (number as usize).checked_sub(1);
        let counts = of(residents).and_then(|index| self.counts.get(index));
        let count = counts.zip(of(size)).and_then(|(counts, index)| counts.get(index));
        count.copied().unwrap_or(0)
    }

    /// The most blocks of a cluster; 0: there are none.
    pub fn largest(&self) -> u32 {
        let holds = |size: &u32| (1..=2).any(|residents| self.resident(residents, *size) > 0);
        (2..=Self::LARGEST as u32).rev().find(holds).unwrap_or(0)
    }
}

/// One kernel launch. Only a [`Device`](super::Device) makes one, of addresses that it holds.
#[derive(Debug, PartialEq)]
pub struct Launch<'a> {
    pub(super) kernel: &'a str,
    pub(super) grid: u32,
    pub(super) block: u32,
    pub(super) shared_bytes: u32,
    pub(super) is_cooperative: bool,
    pub(super) cluster: u32,
    pub(super) may_begin_early: bool,
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

    /// Neighbouring blocks that are a thread block cluster; 1: none are.
    pub fn cluster(&self) -> u32 {
        self.cluster
    }

    /// Whether it waits by itself for the launch before, and so may begin before that has ended.
    pub fn may_begin_early(&self) -> bool {
        self.may_begin_early
    }

    /// The bytes of the one struct that the kernel takes by value.
    pub fn params(&self) -> &[u8] {
        self.params
    }
}

/// What became of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Launched {
    /// It will run.
    Enqueued,
    /// Nothing was enqueued: not so many blocks can be resident together, as may be found out only
    /// then on a GPU that others share.
    TooLarge,
}

impl Launched {
    /// Of what needs no blocks to be resident together.
    pub(super) fn required(self, kernel: &str) -> Result<()> {
        match self {
            Launched::Enqueued => Ok(()),
            Launched::TooLarge => {
                Err(Error::system(format!("launching {kernel}"), "too large for the device"))
            }
        }
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
    /// No such kernel, a launch that the device refuses for another reason than its size.
    fn launch(&self, launch: &Launch<'_>) -> Result<Launched>;
}
