//! `ndarray` arrays as tensors: which layout their strides are, their views, and copies in another.

use crate::config::Layout;
use crate::cpu::{CpuSlice, CpuSliceMut};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::memory::filled;
use crate::problem::Operand;
use ndarray::{
    Array, ArrayBase, ArrayRef, ArrayView3, ArrayViewMut3, Axis, Data, Dimension, Ix3, IxDyn,
    ShapeBuilder,
};

/// Which layouts an array's strides fit.
#[derive(Debug, Clone, Copy)]
struct Fits {
    first: bool,
    last: bool,
}

fn fits<E, D: Dimension>(array: &ArrayRef<E, D>) -> Fits {
    if array.is_empty() {
        return Fits { first: true, last: true };
    }
    let (shape, strides) = (array.shape(), array.strides());
    let follows = |order: &mut dyn Iterator<Item = usize>| {
        let mut expected = 1;
        for axis in order {
            if shape[axis] > 1 && strides[axis] != expected {
                return false;
            }
            expected *= shape[axis] as isize;
        }
        shape[0] <= 1 || strides[0] >= expected
    };
    let rank = shape.len();
    Fits {
        first: follows(&mut (1..rank).rev()),
        last: follows(&mut std::iter::once(1).chain((2..rank).rev())),
    }
}

/// The layout that all tensors of a call share.
pub(crate) fn common_layout<E, D: Dimension>(
    tensors: &[(Operand, &ArrayRef<E, D>)],
) -> Result<Layout> {
    let mut common = Fits { first: true, last: true };
    let mut spatial = 1;
    for &(operand, array) in tensors {
        if array.ndim() < 2 {
            return Err(Error::argument(
                operand.name(),
                "rank 2 and up, [N, C, spatial...]",
                format_args!("shape {:?}", array.shape()),
            ));
        }
        spatial = array.shape()[2..].iter().product();
        let fits = fits(array);
        let both = Fits { first: common.first && fits.first, last: common.last && fits.last };
        if !both.first && !both.last {
            let expected = match (common.first, common.last) {
                (true, true) => "channels-first or channels-last strides",
                (true, false) => "channels-first strides, as the call's other tensors",
                _ => "channels-last strides, as the call's other tensors",
            };
            return Err(Error::argument(
                operand.name(),
                format_args!("{expected}; `to_layout` copies into either"),
                format_args!("shape {:?}, strides {:?}", array.shape(), array.strides()),
            ));
        }
        common = both;
    }
    Ok(match (common.first, common.last) {
        (true, false) => Layout::ChannelsFirst,
        (false, true) => Layout::ChannelsLast,
        _ if spatial == 1 => Layout::ChannelsLast,
        _ => Layout::ChannelsFirst,
    })
}

pub(crate) fn check_shape<E, D: Dimension>(
    operand: Operand,
    expected: &[usize],
    array: &ArrayRef<E, D>,
) -> Result<()> {
    if array.shape() == expected {
        return Ok(());
    }
    Err(Error::argument(
        operand.name(),
        format_args!("shape {expected:?}, as x"),
        format_args!("{:?}", array.shape()),
    ))
}

/// Merges the spatial axes of an array that fits a layout.
fn merge_spatial<S: Data>(mut view: ArrayBase<S, IxDyn>) -> Result<ArrayBase<S, Ix3>> {
    let rank = view.ndim();
    if rank == 2 {
        view = view.insert_axis(Axis(2));
    }
    for axis in 2..rank.saturating_sub(1) {
        if !view.merge_axes(Axis(axis), Axis(axis + 1)) {
            return Err(Error::argument("x", "mergeable spatial axes", "others"));
        }
    }
    while view.ndim() > 3 {
        view = view.index_axis_move(Axis(2), 0);
    }
    view.into_dimensionality().map_err(|error| Error::argument("x", "[N, C, spatial...]", error))
}

/// `[N, C, spatial]`
fn three_axes(shape: &[usize]) -> (usize, usize, usize) {
    (shape[0], shape[1], shape[2..].iter().product())
}

pub(crate) fn view<'a, E: Element, D: Dimension>(
    array: &'a ArrayRef<E, D>,
) -> Result<CpuSlice<'a, E>> {
    if array.is_empty() {
        let empty = ArrayView3::from_shape(three_axes(array.shape()), &[]);
        return empty
            .map(CpuSlice::View)
            .map_err(|error| Error::argument("x", "an empty array", error));
    }
    merge_spatial(array.view().into_dyn()).map(CpuSlice::View)
}

pub(crate) fn view_mut<'a, E: Element, D: Dimension>(
    array: &'a mut ArrayRef<E, D>,
) -> Result<CpuSliceMut<'a, E>> {
    if array.is_empty() {
        let empty = ArrayViewMut3::from_shape(three_axes(array.shape()), &mut []);
        return empty
            .map(CpuSliceMut::View)
            .map_err(|error| Error::argument("x", "an empty array", error));
    }
    merge_spatial(array.view_mut().into_dyn()).map(CpuSliceMut::View)
}

/// Zeros of the shape of `like`, dense in `layout`.
pub(crate) fn zeros<E: Element, D: Dimension>(
    like: &ArrayRef<E, D>,
    layout: Layout,
) -> Result<Array<E, D>> {
    let shape = like.raw_dim();
    if like.is_empty() {
        return Ok(Array::from_elem(shape, E::default()));
    }
    let mut strides = shape.clone();
    let rank = shape.ndim();
    let order: Vec<usize> = match layout {
        Layout::ChannelsLast if rank >= 2 => {
            [1].into_iter().chain((2..rank).rev()).chain([0]).collect()
        }
        _ => (0..rank).rev().collect(),
    };
    let mut stride = 1;
    for axis in order {
        strides[axis] = stride;
        stride *= shape[axis].max(1);
    }
    let values = filled(like.len(), E::default())?;
    Ok(Array::from_shape_vec(shape.strides(strides), values).expect("strides of a dense array"))
}

/// A copy of `array` whose memory is in the order of `layout`; its axes stay, channels on axis 1. For
/// what a call refuses for its strides.
///
/// ```
/// use ndarray::Array4;
/// use warpnorm::{Layout, to_layout};
///
/// let nchw = Array4::<f32>::zeros((8, 3, 5, 7));
/// let nhwc = to_layout(&nchw, Layout::ChannelsLast)?;
/// assert_eq!((nhwc.shape(), nhwc.strides()), (&[8, 3, 5, 7][..], &[105, 1, 21, 3][..]));
/// # Ok::<(), warpnorm::Error>(())
/// ```
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn to_layout<E: Element, D: Dimension>(
    array: &ArrayRef<E, D>,
    layout: Layout,
) -> Result<Array<E, D>> {
    let mut copy = zeros(array, layout)?;
    copy.assign(array);
    Ok(copy)
}
