//! Loops over blocks: a few thousand values in the first-level cache, widened to f64.
//!
//! Channels-first works on a block of one channel's values with scalar parameters; channels-last
//! on rows with a parameter per lane. Everything here inlines into a function that
//! [`vectorized!`](super::simd::vectorized) compiled for the instruction set.

use super::channel::{Coefficients, GradientCoefficients};
use crate::element::{DType, Element};

/// Partial sums that a reduction keeps apart: enough to hide the latency of an addition, and
/// fixed, so that results do not depend on the instruction set's width.
pub const PARTIAL: usize = 32;

/// `dst = src`, exactly.
#[inline(always)]
pub fn load<E: Element>(src: &[E], dst: &mut [f64]) {
    for (dst, &src) in dst.iter_mut().zip(src) {
        *dst = src.to_f64();
    }
}

/// `dst += src`.
#[inline(always)]
pub fn load_add<E: Element>(src: &[E], dst: &mut [f64]) {
    for (dst, &src) in dst.iter_mut().zip(src) {
        *dst += src.to_f64();
    }
}

/// The deviation from the mean.
#[inline(always)]
pub fn deviation<E: Element>(x: f64, mean_hi: f64, mean_lo: f64) -> f64 {
    match E::DTYPE {
        DType::F64 => (x - mean_hi) - mean_lo,
        _ => x - mean_hi,
    }
}

/// Sums of deviations from a pivot and of their squares, in parts.
#[derive(Clone, Copy)]
pub struct Deviations {
    first: [f64; PARTIAL],
    second: [f64; PARTIAL],
}

impl Deviations {
    pub const ZERO: Self = Deviations { first: [0.0; PARTIAL], second: [0.0; PARTIAL] };

    /// Adds a run of values.
    #[inline(always)]
    pub fn add<E: Element>(&mut self, values: &[E], pivot: f64) {
        let (chunks, rest) = values.as_chunks::<PARTIAL>();
        for chunk in chunks {
            self.add_chunk(chunk, pivot);
        }
        let (chunks, rest) = rest.as_chunks::<8>();
        for chunk in chunks {
            self.add_chunk(chunk, pivot);
        }
        for &value in rest {
            self.add_chunk(&[value], pivot);
        }
    }

    #[inline(always)]
    fn add_chunk<E: Element, const N: usize>(&mut self, chunk: &[E; N], pivot: f64) {
        for (lane, value) in chunk.iter().enumerate() {
            let deviation = value.to_f64() - pivot;
            self.first[lane] += deviation;
            self.second[lane] += deviation * deviation;
        }
    }

    /// The two sums.
    #[inline(always)]
    pub fn totals(self) -> [f64; 2] {
        [total(self.first), total(self.second)]
    }
}

/// Adds up in a fixed tree.
#[inline(always)]
pub fn total(mut partial: [f64; PARTIAL]) -> f64 {
    let mut width = PARTIAL / 2;
    while width > 0 {
        for lane in 0..width {
            partial[lane] += partial[lane + width];
        }
        width /= 2;
    }
    partial[0]
}

/// The sums of g and of g * d over a block.
#[inline(always)]
pub fn gradient_sums(g: &[f64], d: &[f64]) -> [f64; 2] {
    let mut partial = [[0.0; PARTIAL]; 2];
    let (g_chunks, g_rest) = g.as_chunks::<PARTIAL>();
    let (d_chunks, d_rest) = d.as_chunks::<PARTIAL>();
    for (g, d) in g_chunks.iter().zip(d_chunks) {
        for lane in 0..PARTIAL {
            partial[0][lane] += g[lane];
            partial[1][lane] += g[lane] * d[lane];
        }
    }
    for (lane, (&g, &d)) in g_rest.iter().zip(d_rest).enumerate() {
        partial[0][lane] += g;
        partial[1][lane] += g * d;
    }
    partial.map(total)
}

/// `d = x - mean`.
#[inline(always)]
pub fn load_centered<E: Element>(x: &[E], c: &Coefficients, d: &mut [f64]) {
    for (d, &x) in d.iter_mut().zip(x) {
        *d = deviation::<E>(x.to_f64(), c.mean_hi, c.mean_lo);
    }
}

/// The value before the activation, residual aside. Forward and backward share it, so that both
/// see the same side of a kink.
#[inline(always)]
pub fn normalize(d: f64, scale: f64, bias: f64) -> f64 {
    d * scale + bias
}

/// `z = d * scale + bias`.
#[inline(always)]
pub fn normalize_from(d: &[f64], c: &Coefficients, z: &mut [f64]) {
    for (z, &d) in z.iter_mut().zip(d) {
        *z = normalize(d, c.scale, c.bias);
    }
}

/// `z = (x - mean) * scale + bias`.
#[inline(always)]
pub fn load_normalized<E: Element>(x: &[E], c: &Coefficients, z: &mut [f64]) {
    for (z, &x) in z.iter_mut().zip(x) {
        *z = normalize(deviation::<E>(x.to_f64(), c.mean_hi, c.mean_lo), c.scale, c.bias);
    }
}

/// `g = dx`, from g and d = x - mean.
#[inline(always)]
pub fn input_gradient(g: &mut [f64], d: &[f64], c: &GradientCoefficients) {
    for (g, &d) in g.iter_mut().zip(d) {
        *g = gradient(*g, d, c.scale, c.mean_g, c.slope);
    }
}

/// `dx` of one value.
#[inline(always)]
pub fn gradient(g: f64, d: f64, scale: f64, mean_g: f64, slope: f64) -> f64 {
    scale * ((g - mean_g) - d * slope)
}
