//! Tensors in an element type and a memory layout, and back.

use crate::score::Output;
use ndarray::{ArrayD, ArrayRef, Axis, IxDyn};
use warpnorm::{Element, Layout};

/// `values` rounded to `E`, in memory as `layout` says; the shape stays channels-second.
pub fn lay_out<E: Element>(values: &ArrayD<f64>, layout: Layout) -> ArrayD<E> {
    let order = memory_order(values.ndim(), layout);
    let dense: ArrayD<E> = in_memory_order(values.view().permuted_axes(IxDyn(&order)));
    channels_second(dense, layout)
}

/// The elements of `tensor` in the order of a dense buffer in `layout`.
pub fn flat<E: Element>(tensor: &ArrayRef<E, IxDyn>, layout: Layout) -> Vec<E> {
    let order = memory_order(tensor.ndim(), layout);
    tensor.view().permuted_axes(IxDyn(&order)).iter().copied().collect()
}

/// The tensor of `shape` that a dense buffer in `layout` holds.
pub fn from_flat<E: Element>(elements: Vec<E>, shape: &[usize], layout: Layout) -> ArrayD<E> {
    let order = memory_order(shape.len(), layout);
    let in_memory: Vec<usize> = order.iter().map(|&axis| shape[axis]).collect();
    let dense = ArrayD::from_shape_vec(in_memory, elements).expect("one element for each index");
    channels_second(dense, layout)
}

/// The axes of a channels-second tensor, the one that runs slowest first.
fn memory_order(rank: usize, layout: Layout) -> Vec<usize> {
    match layout {
        Layout::ChannelsLast if rank > 2 => [0].into_iter().chain(2..rank).chain([1]).collect(),
        _ => (0..rank).collect(),
    }
}

/// A tensor whose axes are in `memory_order`, seen channels-second.
fn channels_second<E>(dense: ArrayD<E>, layout: Layout) -> ArrayD<E> {
    let rank = dense.ndim();
    match layout {
        Layout::ChannelsLast if rank > 2 => {
            let axes: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
            dense.permuted_axes(IxDyn(&axes))
        }
        _ => dense,
    }
}

/// A dense copy whose last axis runs fastest, whatever the order of `values`.
fn in_memory_order<E: Element>(values: ndarray::ArrayViewD<'_, f64>) -> ArrayD<E> {
    let elements: Vec<E> = values.iter().map(|&value| E::from_f64(value)).collect();
    let shape = values.raw_dim();
    ArrayD::from_shape_vec(shape, elements).expect("one element for each index")
}

/// A tensor as an output to score.
pub fn output<E: Element>(tensor: &ArrayD<E>) -> Output {
    Output { values: tensor.mapv(E::to_f64), dtype: E::DTYPE }
}

/// A `[C]` array as an output to score.
pub fn channel_output<E: Element>(values: impl IntoIterator<Item = E>) -> Output {
    let values: Vec<f64> = values.into_iter().map(E::to_f64).collect();
    Output { values: ndarray::Array1::from(values).into_dyn(), dtype: E::DTYPE }
}

/// Parts of a batch as one output to score.
pub fn concatenated<E: Element>(parts: &[ArrayD<E>]) -> Output {
    let wide: Vec<ArrayD<f64>> = parts.iter().map(|part| part.mapv(E::to_f64)).collect();
    let views: Vec<_> = wide.iter().map(|part| part.view()).collect();
    let values = ndarray::concatenate(Axis(0), &views).expect("parts differ in rows only");
    Output { values, dtype: E::DTYPE }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array, ShapeBuilder};

    #[test]
    fn channels_last_changes_memory_and_nothing_else() {
        let values = Array::from_shape_fn((2, 3, 4, 5), |(n, c, h, w)| {
            (n * 1000 + c * 100 + h * 10 + w) as f64
        })
        .into_dyn();
        let fortran = Array::from_shape_fn((2, 3, 4, 5).f(), |(n, c, h, w)| values[[n, c, h, w]]);
        for values in [values.clone(), fortran.into_dyn()] {
            let last = lay_out::<f32>(&values, Layout::ChannelsLast);
            assert_eq!(last.strides(), [60, 1, 15, 3]);
            assert_eq!(last.mapv(f64::from), values);
            let first = lay_out::<f32>(&values, Layout::ChannelsFirst);
            assert_eq!(first.strides(), [60, 20, 5, 1]);
            assert_eq!(first.mapv(f64::from), values);
            for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
                let buffer = flat(&lay_out::<f32>(&values, Layout::ChannelsFirst), layout);
                let tensor = lay_out::<f32>(&values, layout);
                assert_eq!(buffer, tensor.as_slice_memory_order().unwrap());
                assert_eq!(from_flat(buffer, values.shape(), layout), tensor);
            }
        }
    }
}
