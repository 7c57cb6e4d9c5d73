//! Borrowed tensors: flat slices or `ndarray` views, bound to a problem as views of three axes.
//!
//! Kernels see memory order: channels-first as `[N, C, spatial]`, channels-last as
//! `[N, spatial, C]`, the last axis contiguous. Where channels-last leaves no gap between samples
//! it is `[1, N * spatial, C]`: one long matrix. Channels-first tensors of small planes without gaps
//! are `[1, N, C * spatial]` (see [`runs`](super::runs)).

use super::parallel::Bits;
use super::runs::Runs;
use crate::arguments::check_span;
use crate::config::Layout;
use crate::element::Scalar;
use crate::error::{Error, Result, check_len};
use crate::problem::{Operand, Problem};
use ndarray::{ArrayView3, ArrayViewMut3, Axis, RawData, ShapeBuilder, Slice};

/// The tensors of a forward call.
pub type ForwardTensors<'a, E> = (
    ArrayView3<'a, E>,
    Option<ArrayView3<'a, E>>,
    ArrayViewMut3<'a, E>,
    Option<Bits<ArrayViewMut3<'a, u8>>>,
);

/// The tensors that backward reads.
pub type BackwardTensors<'a, E> = (
    ArrayView3<'a, E>,
    ArrayView3<'a, E>,
    Option<ArrayView3<'a, E>>,
    Option<Bits<ArrayView3<'a, u8>>>,
);

/// The tensors that backward writes: dx and dresidual.
pub type GradientTensors<'a, E> = (ArrayViewMut3<'a, E>, Option<ArrayViewMut3<'a, E>>);

/// Memory to read: flat, or an `ndarray` view `[N, C, spatial]` of any batch stride.
#[derive(Debug, Clone, Copy)]
pub enum CpuSlice<'a, T> {
    /// A tensor's elements in the problem's layout and batch stride; or a `[C]` parameter.
    Flat(&'a [T]),
    /// A tensor, channels second, strides as in the problem's layout.
    View(ArrayView3<'a, T>),
}

/// Memory to write: see [`CpuSlice`].
#[derive(Debug)]
pub enum CpuSliceMut<'a, T> {
    /// A tensor's elements in the problem's layout and batch stride; or a `[C]` parameter.
    Flat(&'a mut [T]),
    /// A tensor, channels second, strides as in the problem's layout.
    View(ArrayViewMut3<'a, T>),
}

impl<'a, T> From<&'a [T]> for CpuSlice<'a, T> {
    fn from(slice: &'a [T]) -> Self {
        CpuSlice::Flat(slice)
    }
}

impl<'a, T> From<&'a Vec<T>> for CpuSlice<'a, T> {
    fn from(vec: &'a Vec<T>) -> Self {
        CpuSlice::Flat(vec)
    }
}

impl<'a, T> From<&'a mut [T]> for CpuSliceMut<'a, T> {
    fn from(slice: &'a mut [T]) -> Self {
        CpuSliceMut::Flat(slice)
    }
}

impl<'a, T> From<&'a mut Vec<T>> for CpuSliceMut<'a, T> {
    fn from(vec: &'a mut Vec<T>) -> Self {
        CpuSliceMut::Flat(vec)
    }
}

impl<'a, T: Scalar> CpuSlice<'a, T> {
    pub(super) fn len(&self) -> usize {
        match self {
            CpuSlice::Flat(flat) => flat.len(),
            CpuSlice::View(view) => view.len(),
        }
    }

    /// A parameter of `len` values.
    pub(super) fn flat(self, argument: &str, len: usize) -> Result<&'a [T]> {
        let flat = match self {
            CpuSlice::Flat(flat) => flat,
            CpuSlice::View(view) => view
                .to_slice()
                .ok_or_else(|| Error::argument(argument, "contiguous memory", "a strided view"))?,
        };
        check_len(argument, len, flat.len())?;
        Ok(flat)
    }

    /// A tensor of the problem, in memory order.
    pub(super) fn bind(
        self,
        problem: &Problem,
        operand: Operand,
        runs: Runs,
        merge: bool,
    ) -> Result<ArrayView3<'a, T>> {
        let view = match self {
            CpuSlice::Flat(flat) => {
                check_span(problem, operand, flat.len())?;
                ArrayView3::from_shape(flat_shape(problem, operand), flat)
                    .map_err(|error| Error::argument(operand.name(), "a valid shape", error))?
            }
            CpuSlice::View(view) => {
                check_view(problem, operand, view.dim(), view.strides())?;
                view
            }
        };
        in_memory_order(view, problem, operand, runs, merge)
    }
}

impl<'a, T: Scalar> CpuSliceMut<'a, T> {
    pub(super) fn len(&self) -> usize {
        match self {
            CpuSliceMut::Flat(flat) => flat.len(),
            CpuSliceMut::View(view) => view.len(),
        }
    }

    /// A parameter of `len` values.
    pub(super) fn flat(self, argument: &str, len: usize) -> Result<&'a mut [T]> {
        let flat = match self {
            CpuSliceMut::Flat(flat) => flat,
            CpuSliceMut::View(view) => view
                .into_slice()
                .ok_or_else(|| Error::argument(argument, "contiguous memory", "a strided view"))?,
        };
        check_len(argument, len, flat.len())?;
        Ok(flat)
    }

    /// A tensor of the problem, in memory order.
    pub(super) fn bind(
        self,
        problem: &Problem,
        operand: Operand,
        runs: Runs,
        merge: bool,
    ) -> Result<ArrayViewMut3<'a, T>> {
        let view = match self {
            CpuSliceMut::Flat(flat) => {
                check_span(problem, operand, flat.len())?;
                ArrayViewMut3::from_shape(flat_shape(problem, operand), flat)
                    .map_err(|error| Error::argument(operand.name(), "a valid shape", error))?
            }
            CpuSliceMut::View(view) => {
                check_view(problem, operand, view.dim(), view.strides())?;
                view
            }
        };
        in_memory_order(view, problem, operand, runs, merge)
    }
}

/// The mask's rows, in the order of the tensor's runs.
pub(super) fn mask_shape(problem: &Problem) -> (usize, usize, usize) {
    let (rows, bytes) = problem.mask_rows();
    (problem.batch(), rows, bytes)
}

/// The logical shape `[N, C, spatial]` over a flat buffer.
fn flat_shape(
    problem: &Problem,
    operand: Operand,
) -> ndarray::StrideShape<ndarray::Dim<[usize; 3]>> {
    let shape = (problem.batch(), problem.channels(), problem.spatial());
    let stride = problem.batch_stride(operand);
    if problem.elements() == 0 {
        // Strides over nothing are refused.
        return shape.into();
    }
    match problem.layout() {
        Layout::ChannelsFirst => shape.strides((stride, problem.spatial(), 1)),
        Layout::ChannelsLast => shape.strides((stride, 1, problem.channels())),
    }
}

fn check_view(
    problem: &Problem,
    operand: Operand,
    shape: (usize, usize, usize),
    strides: &[isize],
) -> Result<()> {
    let expected = (problem.batch(), problem.channels(), problem.spatial());
    if shape != expected {
        return Err(Error::argument(
            operand.name(),
            format_args!("[N, C, spatial] = {expected:?}"),
            format_args!("{shape:?}"),
        ));
    }
    let (channel, spatial) = match problem.layout() {
        Layout::ChannelsFirst => (problem.spatial() as isize, 1),
        Layout::ChannelsLast => (1, problem.channels() as isize),
    };
    let fits = |extent: usize, stride: isize, wanted: isize| extent <= 1 || stride == wanted;
    let sample = problem.channels() * problem.spatial();
    if problem.elements() == 0
        || fits(problem.channels(), strides[1], channel)
            && fits(problem.spatial(), strides[2], spatial)
            && (problem.batch() <= 1 || strides[0] >= sample as isize)
    {
        return Ok(());
    }
    Err(Error::argument(
        operand.name(),
        format_args!(
            "{} strides [at least {sample}, {channel}, {spatial}]; `to_layout` copies into them",
            problem.layout()
        ),
        format_args!("{strides:?}"),
    ))
}

/// Without the samples that hold nothing, over which loops would run all the same.
fn with_values<S: RawData>(
    view: ndarray::ArrayBase<S, ndarray::Ix3>,
) -> ndarray::ArrayBase<S, ndarray::Ix3> {
    let samples = if view.is_empty() { 0 } else { view.len_of(Axis(0)) };
    view.slice_axis_move(Axis(0), Slice::from(..samples))
}

/// As loops run: planes as `[N, C, spatial]`; rows as `[N, spatial, C]`, or, to `merge`, as one matrix
/// `[1, N * spatial, C]`; samples, which are merged, as `[1, N, C * spatial]`.
fn in_memory_order<S: RawData>(
    view: ndarray::ArrayBase<S, ndarray::Ix3>,
    problem: &Problem,
    operand: Operand,
    runs: Runs,
    merge: bool,
) -> Result<ndarray::ArrayBase<S, ndarray::Ix3>> {
    let view = with_values(view);
    let (view, columns) = match runs {
        Runs::Planes => return Ok(view),
        Runs::Samples => (view, problem.channels() * problem.spatial()),
        Runs::Rows => {
            let view = view.permuted_axes([0, 2, 1]);
            // [N, C]: rows of whatever stride are still one matrix.
            let is_matrix = view.len_of(Axis(1)) == 1;
            let view = if is_matrix { view.permuted_axes([1, 0, 2]) } else { view };
            if !merge {
                return Ok(view);
            }
            (view, problem.channels())
        }
    };
    let rows = problem.elements() / columns;
    view.into_shape_with_order((1, rows, columns))
        .map_err(|error| Error::argument(operand.name(), "a dense tensor", error))
}

/// Whether samples of these strides follow each other without gaps.
pub(super) fn is_gapless(problem: &Problem, strides: &[isize]) -> bool {
    problem.batch() <= 1 || strides[0] == (problem.channels() * problem.spatial()) as isize
}
