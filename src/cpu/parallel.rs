//! Splitting work over threads: bundles of views that are cut together, by recursion.

use ndarray::{ArrayView3, ArrayViewMut3, Axis};
use std::ops::Range;

/// Tensors (and slices of parameters) that are cut at the same place, and read or written as flat
/// slices once they are contiguous.
pub trait Bundle: Sized + Send {
    /// The same memory, flat.
    type Flat;
    /// Cuts `axis` before `at`.
    fn split(self, axis: usize, at: usize) -> (Self, Self);
    /// Whether all of it is contiguous.
    fn is_dense(&self) -> bool;
    /// Flat slices.
    ///
    /// # Panics
    /// If it is not dense.
    fn into_flat(self) -> Self::Flat;
    /// The same memory as one matrix of `rows` rows; it is dense.
    fn reshape(self, rows: usize) -> Self;
}

impl<'a, T: Send + Sync> Bundle for ArrayView3<'a, T> {
    type Flat = &'a [T];

    fn split(self, axis: usize, at: usize) -> (Self, Self) {
        self.split_at(Axis(axis), at)
    }

    fn is_dense(&self) -> bool {
        self.is_standard_layout()
    }

    fn into_flat(self) -> &'a [T] {
        self.to_slice().expect("checked by is_dense")
    }

    fn reshape(self, rows: usize) -> Self {
        let width = self.len() / rows.max(1);
        self.into_shape_with_order((1, rows, width)).expect("checked by is_dense")
    }
}

impl<'a, T: Send> Bundle for ArrayViewMut3<'a, T> {
    type Flat = &'a mut [T];

    fn split(self, axis: usize, at: usize) -> (Self, Self) {
        self.split_at(Axis(axis), at)
    }

    fn is_dense(&self) -> bool {
        self.is_standard_layout()
    }

    fn into_flat(self) -> &'a mut [T] {
        self.into_slice().expect("checked by is_dense")
    }

    fn reshape(self, rows: usize) -> Self {
        let width = self.len() / rows.max(1);
        self.into_shape_with_order((1, rows, width)).expect("checked by is_dense")
    }
}

impl<T: Bundle> Bundle for Option<T> {
    type Flat = Option<T::Flat>;

    fn split(self, axis: usize, at: usize) -> (Self, Self) {
        self.map(|bundle| bundle.split(axis, at)).unzip()
    }

    fn is_dense(&self) -> bool {
        self.as_ref().is_none_or(T::is_dense)
    }

    fn into_flat(self) -> Self::Flat {
        self.map(T::into_flat)
    }

    fn reshape(self, rows: usize) -> Self {
        self.map(|bundle| bundle.reshape(rows))
    }
}

/// A mask beside a tensor: its last axis holds 8 of the tensor's values in a byte, so that it is
/// cut at multiples of 8.
#[derive(Clone, Copy)]
pub struct Bits<V>(pub V);

impl<V: Bundle> Bundle for Bits<V> {
    type Flat = V::Flat;

    fn split(self, axis: usize, at: usize) -> (Self, Self) {
        let at = if axis == 2 { at.div_ceil(8) } else { at };
        let (left, right) = self.0.split(axis, at);
        (Bits(left), Bits(right))
    }

    fn is_dense(&self) -> bool {
        self.0.is_dense()
    }

    fn into_flat(self) -> Self::Flat {
        self.0.into_flat()
    }

    fn reshape(self, rows: usize) -> Self {
        Bits(self.0.reshape(rows))
    }
}

/// A value per index of one axis, cut with that axis and shared along the others.
pub struct Along<'a, const AXIS: usize, T>(pub &'a mut [T]);

impl<'a, const AXIS: usize, T: Send> Bundle for Along<'a, AXIS, T> {
    type Flat = &'a mut [T];

    fn split(self, axis: usize, at: usize) -> (Self, Self) {
        assert_eq!(axis, AXIS, "results cannot be shared between threads");
        let (left, right) = self.0.split_at_mut(at);
        (Along(left), Along(right))
    }

    fn is_dense(&self) -> bool {
        true
    }

    fn into_flat(self) -> &'a mut [T] {
        self.0
    }

    fn reshape(self, _rows: usize) -> Self {
        self
    }
}

macro_rules! bundle_tuple {
    ($($name:ident $index:tt),+) => {
        impl<$($name: Bundle),+> Bundle for ($($name,)+) {
            type Flat = ($($name::Flat,)+);

            fn split(self, axis: usize, at: usize) -> (Self, Self) {
                let parts = ($(self.$index.split(axis, at),)+);
                (($(parts.$index.0,)+), ($(parts.$index.1,)+))
            }

            fn is_dense(&self) -> bool {
                $(self.$index.is_dense())&&+
            }

            fn into_flat(self) -> Self::Flat {
                ($(self.$index.into_flat(),)+)
            }

            fn reshape(self, rows: usize) -> Self {
                ($(self.$index.reshape(rows),)+)
            }
        }
    };
}
bundle_tuple!(A 0, B 1);
bundle_tuple!(A 0, B 1, C 2);
bundle_tuple!(A 0, B 1, C 2, D 3);

/// Who takes pieces, and in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As many threads as rayon has, the first pieces first.
    Forwards,
    /// The same, the last pieces first.
    Backwards,
    /// This thread, the last pieces first.
    BackwardsAlone,
}

/// Cuts `axis` (of extent `len`) until pieces are no longer than `grain`, and calls `f` with the
/// first index of each.
pub fn for_each<B: Bundle>(
    bundle: B,
    axis: usize,
    Range { start, end }: Range<usize>,
    grain: usize,
    order: Order,
    f: &(impl Fn(usize, B) + Sync),
) {
    if end - start <= grain {
        return f(start, bundle);
    }
    let half = (end - start).div_ceil(grain) / 2 * grain;
    let (left, right) = bundle.split(axis, half);
    let (mut left, mut right) = (Some(left), Some(right));
    let mut left = || {
        let left = left.take().expect("called once");
        for_each(left, axis, start..start + half, grain, order, f);
    };
    let mut right = || {
        let right = right.take().expect("called once");
        for_each(right, axis, start + half..end, grain, order, f);
    };
    match order {
        Order::Forwards => join(&mut left, &mut right),
        Order::Backwards => join(&mut right, &mut left),
        Order::BackwardsAlone => {
            right();
            left();
        }
    }
}

/// [`rayon::join`], compiled once.
fn join(first: &mut (dyn FnMut() + Send), second: &mut (dyn FnMut() + Send)) {
    rayon::join(first, second);
}

/// Cuts the first two axes, of extents `rows`, until pieces are dense, and calls `f` with them in
/// memory order.
pub fn for_each_dense<B: Bundle>(bundle: B, rows: [usize; 2], f: &mut impl FnMut(B::Flat)) {
    if bundle.is_dense() {
        return f(bundle.into_flat());
    }
    let axis = if rows[0] > 1 { 0 } else { 1 };
    let half = rows[axis] / 2;
    let (mut left_rows, mut right_rows) = (rows, rows);
    left_rows[axis] = half;
    right_rows[axis] -= half;
    let (left, right) = bundle.split(axis, half);
    for_each_dense(left, left_rows, f);
    for_each_dense(right, right_rows, f);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes every value's index beside it, piece by piece.
    fn number(start: usize, piece: Along<'_, 0, usize>) {
        piece.0.iter_mut().enumerate().for_each(|(index, it)| *it += start + index);
    }

    #[test]
    fn the_last_pieces_come_first_where_that_is_asked_for() {
        let order = std::sync::Mutex::new(Vec::new());
        let mut values = [0; 10];
        let take = |start, _: Along<'_, 0, usize>| order.lock().unwrap().push(start);
        for_each(Along::<0, _>(&mut values), 0, 0..10, 3, Order::BackwardsAlone, &take);
        assert_eq!(order.into_inner().unwrap(), [9, 6, 3, 0]);
    }

    #[test]
    fn pieces_are_all_there_and_once_in_any_order() {
        for len in 0..40 {
            for grain in [1, 3, 8, 100] {
                for order in [Order::Forwards, Order::Backwards, Order::BackwardsAlone] {
                    let mut values = vec![0; len];
                    for_each(Along::<0, _>(&mut values), 0, 0..len, grain, order, &number);
                    assert_eq!(values, (0..len).collect::<Vec<_>>(), "{len} by {grain}, {order:?}");
                }
            }
        }
    }
}
