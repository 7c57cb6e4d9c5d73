//! Device memory.

use crate::runtime::{Allocation, Device};
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use warpnorm::{Error, Result, Scalar};

/// Memory of an emulated device: an allocation of exactly its size, with nothing near it.
pub struct Buffer<T: Scalar> {
    device: Arc<Device>,
    allocation: Allocation,
    len: usize,
    elements: PhantomData<T>,
}

/// Borrowed device memory, to read.
pub struct Slice<'a, T: Scalar> {
    buffer: &'a Buffer<T>,
    start: usize,
    len: usize,
}

/// Borrowed device memory, to write.
pub struct SliceMut<'a, T: Scalar> {
    buffer: &'a mut Buffer<T>,
    start: usize,
    len: usize,
}

impl<T: Scalar> Clone for Slice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Scalar> Copy for Slice<'_, T> {}

impl<T: Scalar> Slice<'_, T> {
    pub(crate) fn address(&self) -> u64 {
        self.buffer.address_of(self.start)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

impl<T: Scalar> SliceMut<'_, T> {
    pub(crate) fn address(&self) -> u64 {
        self.buffer.address_of(self.start)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

impl<T: Scalar> Buffer<T> {
    pub(crate) fn new(device: &Arc<Device>, len: usize, written: bool) -> Result<Self> {
        let what = || format!("allocating {len} elements on the emulator");
        let bytes = len
            .checked_mul(size_of::<T>())
            .filter(|bytes| *bytes < 1 << 46)
            .ok_or_else(|| Error::system(what(), "more than it can address"))?;
        let granule = size_of::<T>().clamp(1, 4) as u32;
        let allocation = device
            .allocate(bytes, granule, written)
            .ok_or_else(|| Error::system(what(), "no memory left"))?;
        Ok(Buffer { device: Arc::clone(device), allocation, len, elements: PhantomData })
    }

    /// Elements.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Part of it, from any element on.
    ///
    /// # Panics
    /// If the range is not within the buffer.
    pub fn slice_range(&self, range: impl RangeBounds<usize>) -> Slice<'_, T> {
        let (start, len) = self.resolve(range);
        Slice { buffer: self, start, len }
    }

    /// Part of it, from any element on.
    ///
    /// # Panics
    /// If the range is not within the buffer.
    pub fn slice_range_mut(&mut self, range: impl RangeBounds<usize>) -> SliceMut<'_, T> {
        let (start, len) = self.resolve(range);
        SliceMut { buffer: self, start, len }
    }

    /// Copies host memory to the elements from `start` on.
    ///
    /// # Panics
    /// If they are not all within the buffer.
    pub fn write(&mut self, start: usize, values: &[T]) {
        let (start, len) = self.resolve(start..start + values.len());
        // SAFETY: `resolve` has checked the range, and the borrow is exclusive.
        unsafe {
            self.element(start).copy_from_nonoverlapping(values.as_ptr(), len);
            let (offset, bytes) = (start * size_of::<T>(), size_of_val(values));
            self.device.wrote(self.allocation, offset, bytes);
        }
    }

    /// A copy of some elements in host memory.
    ///
    /// # Panics
    /// If they are not all within the buffer.
    pub fn read(&self, range: impl RangeBounds<usize>) -> Vec<T> {
        let (start, len) = self.resolve(range);
        // SAFETY: `resolve` has checked the range; every bit pattern is a value of a Scalar.
        unsafe { std::slice::from_raw_parts(self.element(start), len).to_vec() }
    }

    pub(crate) fn id(&self) -> u64 {
        self.allocation.id
    }

    /// Fills memory that no one has written with what reads as NaN.
    pub(crate) fn poison(&mut self) {
        // SAFETY: the allocation has so many bytes.
        unsafe { self.allocation.base.as_ptr().write_bytes(0xff, self.len * size_of::<T>()) }
    }

    fn element(&self, index: usize) -> *mut T {
        self.allocation.base.as_ptr().cast::<T>().wrapping_add(index)
    }

    fn address_of(&self, index: usize) -> u64 {
        self.element(index).addr() as u64
    }

    fn resolve(&self, range: impl RangeBounds<usize>) -> (usize, usize) {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => self.len,
        };
        assert!(start <= end && end <= self.len, "{start}..{end} of {} elements", self.len);
        (start, end - start)
    }
}

impl<T: Scalar> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: slices borrow the buffer, so none is left.
        unsafe { self.device.free(self.allocation) }
    }
}
