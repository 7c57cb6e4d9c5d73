//! Device memory: owned, and borrowed to read or to write.

use crate::element::Scalar;
use crate::error::{Error, Result};
use cudarc::driver::{CudaContext, CudaSlice, CudaView, CudaViewMut, SyncOnDrop};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

/// Device memory that is freed, in its stream's order, when it is dropped. From and into cudarc's
/// `CudaSlice`.
#[derive(Debug)]
pub struct GpuBuffer<T> {
    // Dropped before the memory.
    _bound: BoundOnDrop,
    // One element where `len` is 0: CUDA allocates no empty memory.
    pub(super) memory: CudaSlice<T>,
    pub(super) len: usize,
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
    pub(super) fn of(memory: CudaSlice<T>, len: usize) -> Self {
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

/// Borrowed device memory, to read: from a [`GpuBuffer`], from cudarc's slices and views (by
/// reference: cudarc's views cannot be copied, and this can), or from an address.
#[derive(Debug, Clone, Copy)]
pub struct GpuSlice<'a, T> {
    pub(super) source: Source<'a, T>,
    pub(super) len: usize,
}

/// Memory, and the element of it that comes first.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a, T> {
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
    pub(super) target: Destination<'a, T>,
    pub(super) len: usize,
}

#[derive(Debug)]
pub(super) enum Destination<'a, T> {
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

    /// Some of its elements, from any one on, for as long as the whole is not used.
    ///
    /// # Errors
    /// A range that is not within the slice.
    pub fn part_mut(&mut self, range: Range<usize>) -> Result<GpuSliceMut<'_, T>> {
        check_range(&range, self.len)?;
        let len = range.end - range.start;
        let target = match &mut self.target {
            Destination::View(view) => Destination::View(view.slice_mut(range)),
            Destination::Address(address, _) => {
                let address = *address + (range.start * size_of::<T>()) as u64;
                Destination::Address(address, PhantomData)
            }
        };
        Ok(GpuSliceMut { target, len })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Keeps memory in order between streams: dropped after a launch, it records that the launch uses
/// the memory, for cudarc's other streams to wait on. Nothing for memory known by its address.
pub struct GpuHold<'a> {
    pub(super) _record: Option<SyncOnDrop<'a>>,
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn parts_to_write_begin_where_they_should() -> Result<()> {
        // SAFETY: nothing is launched with it.
        let mut slice = unsafe { GpuSliceMut::<f32>::from_raw(4096, 10) };
        let mut part = slice.part_mut(3..7)?;
        let part = part.part_mut(1..4)?;
        assert_eq!(part.len(), 3);
        assert!(matches!(part.target, Destination::Address(address, _) if address == 4096 + 4 * 4));
        assert!(slice.part_mut(3..11).is_err());
        Ok(())
    }
}
