//! [`PtxMachine`]: the device.

use crate::machine::{self, Launch};
use crate::memory::Memory;
use crate::program::Program;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use warpnorm::cuda::{self, DeviceFacts, Launched, Launcher, MemoryRef};
use warpnorm::{Error, Result, Scalar};

/// Instructions that a launch may take.
const BUDGET: u64 = 4_000_000_000;

/// A device that runs PTX. Clones are the same device; its launches run one at a time.
#[derive(Clone)]
pub struct PtxMachine {
    program: Arc<Program>,
    memory: Arc<Mutex<Memory>>,
    launches: Arc<Mutex<Vec<Ran>>>,
    facts: DeviceFacts,
    seed: u64,
}

/// A launch that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// The entry point's name.
    pub kernel: String,
    /// Instructions of all threads, of PTX.
    pub instructions: u64,
}

/// Memory of a device.
pub struct Buffer<T: Scalar> {
    memory: Arc<Mutex<Memory>>,
    address: u64,
    len: usize,
    elements: PhantomData<T>,
}

/// Borrowed memory, to read.
pub struct Slice<'a, T: Scalar> {
    buffer: &'a Buffer<T>,
    start: usize,
}

/// Borrowed memory, to write.
pub struct SliceMut<'a, T: Scalar> {
    buffer: &'a mut Buffer<T>,
    start: usize,
}

impl PtxMachine {
    /// A device with memory of its own. `seed` is the order in which its threads run.
    pub fn new(program: Arc<Program>, facts: DeviceFacts, seed: u64) -> Self {
        PtxMachine { program, memory: Arc::default(), launches: Arc::default(), facts, seed }
    }

    /// The launches since the last time.
    pub fn take_launches(&self) -> Vec<Ran> {
        std::mem::take(&mut lock(&self.launches))
    }

    /// Launches any kernel with any parameters.
    ///
    /// # Errors
    /// What a thread did wrong, and where.
    pub fn run(&self, launch: Launch<'_>) -> std::result::Result<(), String> {
        let memory = &mut lock(&self.memory);
        let instructions = machine::run(&self.program, memory, launch, self.seed, BUDGET)?;
        lock(&self.launches).push(Ran { kernel: launch.kernel.to_owned(), instructions });
        Ok(())
    }

    /// What a GPU would refuse.
    fn refusal(&self, launch: &cuda::Launch<'_>) -> Option<String> {
        let (module, kernel) = self.program.kernel(launch.kernel())?;
        let kernel = &module.functions[kernel];
        let params = kernel.params.first().map_or(0, |range| range.len());
        let most = self.facts.shared_bytes_per_block;
        if launch.params().len() != params {
            return Some(format!(
                "its parameters are {params} bytes, not {}",
                launch.params().len()
            ));
        }
        if launch.block() == 0 || launch.block() > kernel.max_threads {
            return Some(format!(
                "a block of {} threads of {}",
                launch.block(),
                kernel.max_threads
            ));
        }
        if launch.shared_bytes() > most {
            return Some(format!("{} bytes of shared memory of {most}", launch.shared_bytes()));
        }
        if launch.grid() == 0 || launch.grid() % launch.cluster() != 0 {
            return Some(format!("{} blocks in clusters of {}", launch.grid(), launch.cluster()));
        }
        None
    }

    /// Whether so many blocks cannot be resident together.
    fn is_too_large(&self, launch: &cuda::Launch<'_>) -> bool {
        let shared = launch.shared_bytes() + self.facts.shared_bytes_reserved;
        let by_shared = self.facts.shared_bytes_per_multiprocessor / shared.max(1);
        let by_threads = self.facts.threads_per_multiprocessor / launch.block();
        let blocks = self.facts.multiprocessors * by_shared.min(by_threads);
        let is_too_large_a_cluster =
            launch.cluster() > 1 && launch.cluster() > self.facts.clusters.largest();
        is_too_large_a_cluster || (launch.is_cooperative() && launch.grid() > blocks)
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bytes_of<T: Scalar>(values: &[T]) -> &[u8] {
    // SAFETY: scalars have no padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn bytes_of_mut<T: Scalar>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: scalars have no padding, and every bit pattern is a value of theirs.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

impl<T: Scalar> Buffer<T> {
    fn new(memory: &Arc<Mutex<Memory>>, len: usize) -> Result<Self> {
        let address =
            len.checked_mul(size_of::<T>()).and_then(|bytes| lock(memory).allocate(bytes));
        let address = address
            .ok_or_else(|| Error::system(format!("allocating {len} elements"), "no memory left"))?;
        Ok(Buffer { memory: Arc::clone(memory), address, len, elements: PhantomData })
    }

    /// From an element on.
    ///
    /// # Panics
    /// If it is beyond the end.
    pub fn from(&self, start: usize) -> Slice<'_, T> {
        assert!(start <= self.len, "{start} of {} elements", self.len);
        Slice { buffer: self, start }
    }

    /// From an element on, to write.
    ///
    /// # Panics
    /// If it is beyond the end.
    pub fn from_mut(&mut self, start: usize) -> SliceMut<'_, T> {
        assert!(start <= self.len, "{start} of {} elements", self.len);
        SliceMut { buffer: self, start }
    }

    fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    fn write(&mut self, values: &[T]) {
        let mut memory = lock(&self.memory);
        let bytes = memory.bytes_mut(self.address, self.bytes()).expect("it is allocated");
        bytes.copy_from_slice(bytes_of(values));
    }

    fn read(&self) -> Vec<T> {
        let memory = lock(&self.memory);
        let bytes = memory.bytes(self.address, self.bytes()).expect("it is allocated");
        let mut values = vec![T::default(); self.len];
        bytes_of_mut(&mut values).copy_from_slice(bytes);
        values
    }

    fn memory_from(&self, start: usize) -> MemoryRef<()> {
        let before = start * size_of::<T>();
        MemoryRef { address: self.address + before as u64, bytes: self.bytes() - before, hold: () }
    }
}

impl<T: Scalar> Drop for Buffer<T> {
    fn drop(&mut self) {
        lock(&self.memory).free(self.address);
    }
}

impl<T: Scalar> Clone for Slice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Scalar> Copy for Slice<'_, T> {}

// SAFETY: addresses are no pointers, and a launch checks each.
unsafe impl Launcher for PtxMachine {
    type Buffer<T: Scalar> = Buffer<T>;
    type Slice<'a, T: Scalar> = Slice<'a, T>;
    type SliceMut<'a, T: Scalar> = SliceMut<'a, T>;
    type Hold<'a> = ();

    fn facts(&self) -> DeviceFacts {
        self.facts
    }

    fn zeros<T: Scalar>(&self, len: usize) -> Result<Buffer<T>> {
        Buffer::new(&self.memory, len)
    }

    fn upload<T: Scalar>(&self, values: &[T]) -> Result<Buffer<T>> {
        let mut buffer = self.zeros(values.len())?;
        buffer.write(values);
        Ok(buffer)
    }

    fn download<T: Scalar>(&self, buffer: &Buffer<T>) -> Result<Vec<T>> {
        Ok(buffer.read())
    }

    fn duplicate<T: Scalar>(&self, buffer: &Buffer<T>) -> Result<Buffer<T>> {
        self.upload(&buffer.read())
    }

    fn clear<T: Scalar>(&self, buffer: &mut Buffer<T>) -> Result<()> {
        buffer.write(&vec![T::default(); buffer.len]);
        Ok(())
    }

    fn len<T: Scalar>(buffer: &Buffer<T>) -> usize {
        buffer.len
    }

    fn slice<T: Scalar>(buffer: &Buffer<T>) -> Slice<'_, T> {
        buffer.from(0)
    }

    fn slice_mut<T: Scalar>(buffer: &mut Buffer<T>) -> SliceMut<'_, T> {
        buffer.from_mut(0)
    }

    fn memory<'s, T: Scalar>(&'s self, slice: &'s Slice<'_, T>) -> Result<MemoryRef<()>> {
        Ok(slice.buffer.memory_from(slice.start))
    }

    fn memory_mut<'s, T: Scalar>(
        &'s self,
        slice: &'s mut SliceMut<'_, T>,
    ) -> Result<MemoryRef<()>> {
        Ok(slice.buffer.memory_from(slice.start))
    }

    fn launch(&self, launch: &cuda::Launch<'_>) -> Result<Launched> {
        let failure = |reason| Error::system(format!("running {}'s PTX", launch.kernel()), reason);
        if let Some(reason) = self.refusal(launch) {
            return Err(failure(reason));
        }
        if self.is_too_large(launch) {
            return Ok(Launched::TooLarge);
        }
        let run = self.run(Launch {
            kernel: launch.kernel(),
            grid: launch.grid(),
            block: launch.block(),
            shared_bytes: launch.shared_bytes(),
            is_cooperative: launch.is_cooperative(),
            cluster: launch.cluster(),
            params: launch.params(),
        });
        run.map(|()| Launched::Enqueued).map_err(failure)
    }
}
