//! candle's storages as memory of warpnorm's backends.

use candle_core::{CpuStorage, Result, Storage, WithDType, bail};
use std::ops::Range;
use std::thread::ThreadId;
use warpnorm::half::{bf16, f16};
use warpnorm::{Backend, Cpu, Scalar};

/// What storages of candle and buffers of warpnorm may both hold.
#[cfg(not(feature = "cuda"))]
pub trait Stored: Scalar + WithDType {}
/// What storages of candle and buffers of warpnorm may both hold.
#[cfg(feature = "cuda")]
pub trait Stored: Scalar + WithDType + candle_core::cuda_backend::CudaDType {}

impl Stored for f32 {}
impl Stored for f64 {}
impl Stored for f16 {}
impl Stored for bf16 {}

/// A backend whose memory lies in a kind of candle's storages.
pub trait CandleBackend: Backend {
    type Storage;

    /// A tensor's storage, if it is of the kind.
    fn storage_of(storage: &Storage) -> Result<&Self::Storage>;

    /// The other way round.
    fn any(storage: Self::Storage) -> Storage;

    /// The backend that works where a storage lies.
    fn of(storage: &Self::Storage) -> Result<Self>;

    /// Whether this is the one.
    fn is_of(&self, storage: &Self::Storage) -> bool;

    /// Whose scratch a call may take: this thread's, where each has a stream of its own on which what it
    /// has enqueued may still run; `None`: anyone's.
    fn owner() -> Option<ThreadId>;

    /// Waits for what any thread has enqueued.
    fn wait_for_all(&self) -> Result<()>;

    /// Some elements of a storage.
    fn slice_of<T: Stored>(
        storage: &Self::Storage,
        range: Range<usize>,
    ) -> Result<Self::Slice<'_, T>>;

    /// A copy of some elements of a storage.
    fn copy_of<T: Stored>(
        &self,
        storage: &Self::Storage,
        range: Range<usize>,
    ) -> Result<Self::Buffer<T>>;

    /// Memory for a call to overwrite; what it holds before is not specified.
    fn room<T: Stored>(&self, len: usize) -> Result<Self::Buffer<T>>;

    /// A storage where `like` lies.
    fn into_storage<T: Stored>(buffer: Self::Buffer<T>, like: &Self::Storage) -> Self::Storage;
}

impl CandleBackend for Cpu {
    type Storage = CpuStorage;

    fn storage_of(storage: &Storage) -> Result<&CpuStorage> {
        match storage {
            Storage::Cpu(storage) => Ok(storage),
            other => bail!(
                "batch norm: expected all tensors on the CPU, found one on {:?}",
                other.device()
            ),
        }
    }

    fn any(storage: CpuStorage) -> Storage {
        Storage::Cpu(storage)
    }

    fn of(_storage: &CpuStorage) -> Result<Cpu> {
        Ok(Cpu::new())
    }

    fn is_of(&self, _storage: &CpuStorage) -> bool {
        true
    }

    fn owner() -> Option<ThreadId> {
        None
    }

    fn wait_for_all(&self) -> Result<()> {
        Ok(())
    }

    fn slice_of<T: Stored>(
        storage: &CpuStorage,
        range: Range<usize>,
    ) -> Result<Self::Slice<'_, T>> {
        Ok(storage.as_slice::<T>()?[range].into())
    }

    fn copy_of<T: Stored>(&self, storage: &CpuStorage, range: Range<usize>) -> Result<Vec<T>> {
        Ok(storage.as_slice::<T>()?[range].to_vec())
    }

    fn room<T: Stored>(&self, len: usize) -> Result<Vec<T>> {
        self.zeros(len).map_err(candle_core::Error::wrap)
    }

    fn into_storage<T: Stored>(buffer: Vec<T>, _like: &CpuStorage) -> CpuStorage {
        T::to_cpu_storage_owned(buffer)
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::{CandleBackend, Stored};
    use candle_core::backend::BackendStorage;
    use candle_core::{CudaStorage, Error, Result, Storage, bail};
    use std::ops::Range;
    use std::sync::Arc;
    use std::thread::{self, ThreadId};
    use warpnorm::Backend;
    use warpnorm::cuda::{Cuda, GpuBuffer, GpuSlice};

    impl CandleBackend for Cuda {
        type Storage = CudaStorage;

        fn storage_of(storage: &Storage) -> Result<&CudaStorage> {
            match storage {
                Storage::Cuda(storage) => Ok(storage),
                other => bail!(
                    "batch norm: expected all tensors on the GPU, found one on {:?}",
                    other.device()
                ),
            }
        }

        fn any(storage: CudaStorage) -> Storage {
            Storage::Cuda(storage)
        }

        fn of(storage: &CudaStorage) -> Result<Cuda> {
            Cuda::on_stream(storage.device().cuda_stream()).map_err(Error::wrap)
        }

        fn is_of(&self, storage: &CudaStorage) -> bool {
            Arc::ptr_eq(self.stream(), &storage.device().cuda_stream())
        }

        fn owner() -> Option<ThreadId> {
            Some(thread::current().id())
        }

        fn wait_for_all(&self) -> Result<()> {
            self.stream().context().synchronize().map_err(Error::wrap)
        }

        fn slice_of<T: Stored>(
            storage: &CudaStorage,
            range: Range<usize>,
        ) -> Result<Self::Slice<'_, T>> {
            GpuSlice::from(storage.as_cuda_slice::<T>()?).part(range).map_err(Error::wrap)
        }

        fn copy_of<T: Stored>(
            &self,
            storage: &CudaStorage,
            range: Range<usize>,
        ) -> Result<GpuBuffer<T>> {
            let view = storage.as_cuda_slice::<T>()?.slice(range);
            Ok(self.stream().clone_dtod(&view).map_err(Error::wrap)?.into())
        }

        fn room<T: Stored>(&self, len: usize) -> Result<GpuBuffer<T>> {
            if len == 0 {
                return self.zeros(0).map_err(Error::wrap);
            }
            // SAFETY: any bits are a `T`. The call that this is for overwrites all of it on the same
            // stream, before anyone else has it; where it fails, nobody gets it.
            let memory = unsafe { self.stream().alloc::<T>(len) }.map_err(Error::wrap)?;
            Ok(memory.into())
        }

        fn into_storage<T: Stored>(buffer: GpuBuffer<T>, like: &CudaStorage) -> CudaStorage {
            CudaStorage::wrap_cuda_slice(buffer.into(), like.device().clone())
        }
    }
}
