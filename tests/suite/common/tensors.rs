//! Tensors of the tests: reproducible numbers, in both layouts, alone or inside larger arrays.

use ndarray::{Array3, ArrayRef, ArrayView3, Axis, Ix3, Slice};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use warpnorm::{Element, Layout};

pub type Dim = (usize, usize, usize);

/// Reproducible numbers.
pub struct Random(Pcg64Mcg);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(Pcg64Mcg::seed_from_u64(seed))
    }

    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        self.0.random_range(low..high)
    }

    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform(1e-12, 1.0).ln()).sqrt();
        radius * self.uniform(0.0, std::f64::consts::TAU).cos()
    }
}

/// `[N, C, spatial]` in the memory order of `layout`.
pub fn array<E: Element>(
    dim: Dim,
    layout: Layout,
    mut f: impl FnMut(usize, usize, usize) -> f64,
) -> Array3<E> {
    let (n, c, s) = dim;
    match layout {
        Layout::ChannelsFirst => Array3::from_shape_fn(dim, |(n, c, s)| E::from_f64(f(n, c, s))),
        Layout::ChannelsLast => {
            Array3::from_shape_fn((n, s, c), |(n, s, c)| E::from_f64(f(n, c, s)))
                .permuted_axes([0, 2, 1])
        }
    }
}

/// The same values in the memory order of `layout`.
pub fn in_layout<E: Element>(array: &ArrayRef<E, Ix3>, layout: Layout) -> Array3<E> {
    self::array(array.dim(), layout, |n, c, s| array[[n, c, s]].to_f64())
}

pub fn wide<E: Element>(array: &ArrayRef<E, Ix3>) -> Array3<f64> {
    array.mapv(Element::to_f64)
}

/// The bits of every element in index order, to compare results exactly.
pub fn bits<E: Element>(array: &ArrayRef<E, Ix3>) -> Vec<u64> {
    array.iter().map(|value| value.to_f64().to_bits()).collect()
}

pub fn value_bits<E: Element>(values: &[E]) -> Vec<u64> {
    values.iter().map(|value| value.to_f64().to_bits()).collect()
}

/// How a tensor lies in a larger array that is NaN all around it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Embedding {
    Dense,
    /// Every other sample, from the second on.
    EveryOther,
    /// A window on the axis inside the batch: of channels where they are the outer axis of a
    /// sample (or its only one), else of positions. It starts at an odd element.
    Window,
}

/// A tensor in its embedding.
pub struct Embedded<E> {
    memory: Array3<E>,
    embedding: Embedding,
    axis: usize,
    len: usize,
}

const MARGIN: usize = 3;

impl<E: Element> Embedded<E> {
    pub fn new(tensor: &ArrayRef<E, Ix3>, layout: Layout, embedding: Embedding) -> Self {
        let (n, c, s) = tensor.dim();
        let axis = match (embedding, layout) {
            (Embedding::Window, Layout::ChannelsLast) if s > 1 => 2,
            (Embedding::Window, _) => 1,
            _ => 0,
        };
        let mut outer = [n, c, s];
        outer[axis] = match embedding {
            Embedding::Dense => n,
            Embedding::EveryOther => 2 * n + 2,
            Embedding::Window => outer[axis] + 2 * MARGIN,
        };
        let len = tensor.len_of(Axis(axis));
        let memory = array((outer[0], outer[1], outer[2]), layout, |_, _, _| f64::NAN);
        let mut embedded = Embedded { memory, embedding, axis, len };
        let slice = embedded.slice();
        embedded.memory.slice_axis_mut(Axis(axis), slice).assign(tensor);
        embedded
    }

    fn slice(&self) -> Slice {
        let len = self.len as isize;
        match self.embedding {
            Embedding::Dense => Slice::from(..),
            Embedding::EveryOther => Slice::new(1, Some(2 * len), 2),
            Embedding::Window => Slice::from(MARGIN as isize..MARGIN as isize + len),
        }
    }

    pub fn view(&self) -> ArrayView3<'_, E> {
        self.memory.slice_axis(Axis(self.axis), self.slice())
    }
}
