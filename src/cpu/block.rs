//! Loops over blocks: a few thousand values in the first-level cache, widened to f64.
//!
//! Channels-first works on a block of one channel's values with scalar parameters; channels-last
//! on rows with a parameter per lane. Everything here inlines into a function that
//! [`vectorized!`](super::simd::vectorized) compiled for the instruction set.

use super::convert::Real;
use super::direct::ValueCoefficients;
use super::run::{self, Body, Input, Output, along_lines};
use super::simd::{Isa, keep_chunk};
use super::sums::{PairSums, Pairs};
use crate::element::{DType, Element};

/// `block = values`, exactly.
#[inline(always)]
pub fn load<E: Element>(isa: impl Isa, values: &[E], block: &mut [f64]) {
    let mut load = Load::<E, _, false> { values: Input::new(isa, values), block };
    along_lines::<E>(&mut load, 0, values.len());
}

/// `block += values`.
#[inline(always)]
pub fn load_add<E: Element>(isa: impl Isa, values: &[E], block: &mut [f64]) {
    let mut load = Load::<E, _, true> { values: Input::new(isa, values), block };
    along_lines::<E>(&mut load, 0, values.len());
}

struct Load<'a, E, I, const ADD: bool> {
    values: Input<'a, E, I>,
    block: &'a mut [f64],
}

impl<E: Element, I: Isa, const ADD: bool> Body for Load<'_, E, I, ADD> {
    #[inline(always)]
    fn chunks<const N: usize>(&mut self, at: usize, count: usize) {
        let values = self.values.chunks::<N>(at, count);
        let block = &mut self.block[at..][..count * N].as_chunks_mut::<N>().0[..count];
        for chunk in 0..count {
            let (values, block) = (values.read(chunk), &mut block[chunk]);
            for index in 0..N {
                let value = E::extend(values[index]);
                block[index] = if ADD { block[index] + value } else { value };
            }
            keep_chunk();
        }
    }
}

/// `values = block`, rounded once.
#[inline(always)]
pub fn store<E: Element>(isa: impl Isa, block: &[f64], values: &mut [E], streaming: bool) {
    let output = Output::new(isa, values, streaming);
    let head = output.head();
    let mut store = Store { block, output };
    along_lines::<E>(&mut store, head, block.len());
}

struct Store<'a, E, I> {
    block: &'a [f64],
    output: Output<'a, E, I>,
}

impl<E: Element, I: Isa> Body for Store<'_, E, I> {
    #[inline(always)]
    fn chunks<const N: usize>(&mut self, at: usize, count: usize) {
        let block = &self.block[at..][..count * N].as_chunks::<N>().0[..count];
        let mut output = self.output.chunks::<N>(at, count);
        for (chunk, block) in block.iter().enumerate() {
            let mut values = [E::Wide::default(); N];
            for index in 0..N {
                values[index] = E::reduce(block[index]);
            }
            output.write(chunk, &values);
            keep_chunk();
        }
    }
}

/// The deviation from the mean.
#[inline(always)]
pub fn deviation<E: Element, R: Real>(x: R, mean_hi: R, mean_lo: R) -> R {
    match E::DTYPE {
        DType::F64 => (x - mean_hi) - mean_lo,
        _ => x - mean_hi,
    }
}

/// The deviations of a run's values from a pivot, twice: for sums of them and of their squares.
pub struct Deviations<'a, E, I> {
    pub values: Input<'a, E, I>,
    pub pivot: f64,
}

impl<E: Element, I: Isa> Pairs for Deviations<'_, E, I> {
    type Real = f64;

    #[inline(always)]
    fn pairs<const N: usize>(&self, at: usize) -> [[f64; N]; 2] {
        let values = self.values.read_along::<N>(at);
        let mut deviations = [0.0; N];
        for index in 0..N {
            deviations[index] = E::extend(values[index]) - self.pivot;
        }
        [deviations; 2]
    }
}

/// The sums of g and of g * d over a block.
#[inline(always)]
pub fn gradient_sums(isa: impl Isa, g: &[f64], d: &[f64]) -> [f64; 2] {
    let mut sums = PairSums::new();
    sums.add(isa, &Gradients { g, d }, g.len());
    sums.totals()
}

struct Gradients<'a> {
    g: &'a [f64],
    d: &'a [f64],
}

impl Pairs for Gradients<'_> {
    type Real = f64;

    #[inline(always)]
    fn pairs<const N: usize>(&self, at: usize) -> [[f64; N]; 2] {
        [*run::at(self.g, at), *run::at(self.d, at)]
    }
}

/// `d = x - mean`, in x's place.
#[inline(always)]
pub fn center<E: Element>(d: &mut [f64], c: &ValueCoefficients<f64>) {
    for d in d {
        *d = deviation::<E, _>(*d, c.mean_hi, c.mean_lo);
    }
}

/// The value before the activation, residual aside. Forward and backward share it, so that both
/// see the same side of a kink.
#[inline(always)]
pub fn normalize<R: Real>(d: R, scale: R, bias: R) -> R {
    d * scale + bias
}

/// `z = d * scale + bias`.
#[inline(always)]
pub fn normalize_from(d: &[f64], c: &ValueCoefficients<f64>, z: &mut [f64]) {
    for (z, &d) in z.iter_mut().zip(d) {
        *z = normalize(d, c.scale, c.bias);
    }
}

/// `z = (x - mean) * scale + bias`, in x's place.
#[inline(always)]
pub fn normalize_in_place<E: Element>(z: &mut [f64], c: &ValueCoefficients<f64>) {
    for z in z {
        *z = normalize(deviation::<E, _>(*z, c.mean_hi, c.mean_lo), c.scale, c.bias);
    }
}

/// `g = dx`, from g and d = x - mean.
#[inline(always)]
pub fn input_gradient(g: &mut [f64], d: &[f64], c: &ValueCoefficients<f64>) {
    for (g, &d) in g.iter_mut().zip(d) {
        *g = gradient(*g, d, c.scale, c.mean_g, c.slope);
    }
}

/// `dx` of one value.
#[inline(always)]
pub fn gradient<R: Real>(g: R, d: R, scale: R, mean_g: R, slope: R) -> R {
    scale * ((g - mean_g) - d * slope)
}
