//! Activations and their derivatives over blocks of f64.

use super::math::{Digits, Double, Single, normal, sigmoid, sigmoids, tanh, tanh_derivative};
use super::simd::vectorized;
use crate::config::Activation;
use crate::element::DType;
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

/// sqrt(2 / pi).
const SQRT_2_OVER_PI: f64 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
const GELU_CUBIC: f64 = 0.044715;

vectorized! {
    /// `z = activation(z)`, to be rounded to `dtype`.
    pub fn activate<'a>(activation: Activation, dtype: DType, z: &'a mut [f64]) {
        match dtype {
            DType::F64 => activate_to::<Double>(activation, z),
            _ => activate_to::<Single>(activation, z),
        }
    }
}

#[inline(always)]
fn activate_to<D: Digits>(activation: Activation, z: &mut [f64]) {
    match activation {
        Activation::Identity => {}
        Activation::Relu => map(z, |z| if z <= 0.0 { 0.0 } else { z }),
        Activation::LeakyRelu { negative_slope } => {
            map(z, |z| if z <= 0.0 { negative_slope * z } else { z })
        }
        Activation::Relu6 => map(z, |z| {
            let z = if z <= 0.0 { 0.0 } else { z };
            if z >= 6.0 { 6.0 } else { z }
        }),
        Activation::Sigmoid => map(z, sigmoid::<D>),
        Activation::Tanh => map(z, tanh::<D>),
        Activation::Silu => map(z, |z| z * sigmoid::<D>(z)),
        Activation::Gelu => gelu::<D>(z),
        Activation::GeluTanh => map(z, |z| z * sigmoid::<D>(2.0 * gelu_inner(z))),
    }
}

#[inline(always)]
fn map(z: &mut [f64], f: impl Fn(f64) -> f64) {
    for z in z {
        *z = f(*z);
    }
}

vectorized! {
    /// `g = g * activation'(z)`, to be rounded to `dtype`.
    pub fn differentiate<'a>(
        activation: Activation,
        dtype: DType,
        z: &'a [f64],
        g: &'a mut [f64],
    ) {
        match dtype {
            DType::F64 => differentiate_to::<Double>(activation, z, g),
            _ => differentiate_to::<Single>(activation, z, g),
        }
    }
}

#[inline(always)]
fn differentiate_to<D: Digits>(activation: Activation, z: &[f64], g: &mut [f64]) {
    match activation {
        Activation::Identity => {}
        // A selection, as in PyTorch: an infinite gradient of a cut-off value stays out.
        Activation::Relu => chain(z, g, |z, g| if z <= 0.0 { 0.0 } else { g }),
        Activation::LeakyRelu { negative_slope } => {
            chain(z, g, |z, g| if z <= 0.0 { negative_slope * g } else { g })
        }
        Activation::Relu6 => chain(z, g, |z, g| if is_cut_by_relu6(z) { 0.0 } else { g }),
        Activation::Sigmoid => chain(z, g, |z, g| {
            let [s, rest] = sigmoids::<D>(z);
            g * (s * rest)
        }),
        Activation::Tanh => chain(z, g, |z, g| g * tanh_derivative::<D>(z)),
        Activation::Silu => chain(z, g, |z, g| {
            let [s, rest] = sigmoids::<D>(z);
            g * (s * (1.0 + z * rest))
        }),
        Activation::Gelu => gelu_derivative::<D>(z, g),
        Activation::GeluTanh => chain(z, g, |z, g| {
            let [s, rest] = sigmoids::<D>(2.0 * gelu_inner(z));
            let inner_slope = SQRT_2_OVER_PI * (3.0 * GELU_CUBIC * z * z + 1.0);
            g * (s + 2.0 * z * inner_slope * (s * rest))
        }),
    }
}

#[inline(always)]
fn chain(z: &[f64], g: &mut [f64], f: impl Fn(f64, f64) -> f64) {
    for (g, &z) in g.iter_mut().zip(z) {
        *g = f(z, *g);
    }
}

/// Values whose distribution function is taken at once.
const LANES: usize = 16;

/// `z = z * Phi(z)`.
#[inline(always)]
fn gelu<D: Digits>(z: &mut [f64]) {
    let (chunks, rest) = z.as_chunks_mut::<LANES>();
    for z in chunks {
        gelu_lanes::<D>(z);
    }
    let mut padded = [0.0; LANES];
    padded[..rest.len()].copy_from_slice(rest);
    gelu_lanes::<D>(&mut padded);
    rest.copy_from_slice(&padded[..rest.len()]);
}

#[inline(always)]
fn gelu_lanes<D: Digits>(z: &mut [f64; LANES]) {
    let [cdf, _] = normal::<D, LANES>(z);
    for (z, cdf) in z.iter_mut().zip(cdf) {
        *z *= cdf;
    }
}

/// `g = g * (Phi(z) + z * phi(z))`.
#[inline(always)]
fn gelu_derivative<D: Digits>(z: &[f64], g: &mut [f64]) {
    let (z_chunks, z_rest) = z.as_chunks::<LANES>();
    let (g_chunks, g_rest) = g.as_chunks_mut::<LANES>();
    for (z, g) in z_chunks.iter().zip(g_chunks) {
        gelu_derivative_lanes::<D>(z, g);
    }
    let (mut z, mut g) = ([0.0; LANES], [0.0; LANES]);
    z[..z_rest.len()].copy_from_slice(z_rest);
    g[..g_rest.len()].copy_from_slice(g_rest);
    gelu_derivative_lanes::<D>(&z, &mut g);
    g_rest.copy_from_slice(&g[..g_rest.len()]);
}

#[inline(always)]
fn gelu_derivative_lanes<D: Digits>(z: &[f64; LANES], g: &mut [f64; LANES]) {
    let [cdf, density] = normal::<D, LANES>(z);
    for (i, g) in g.iter_mut().enumerate() {
        *g *= z[i] * density[i] + cdf[i];
    }
}

/// The argument of GELU's tanh; `(1 + tanh(u)) / 2` is `sigmoid(2u)`.
#[inline(always)]
fn gelu_inner(z: f64) -> f64 {
    SQRT_2_OVER_PI * (z * (GELU_CUBIC * z * z + 1.0))
}

// `|`, not `||`: a branch would keep loops from vectorising.
#[inline(always)]
fn is_cut_by_relu6(z: f64) -> bool {
    (z <= 0.0) | (z >= 6.0)
}

vectorized! {
    /// Writes a bit per value: 1 where the derivative of the piecewise linear `activation` is 1.
    pub fn write_mask<'a>(activation: Activation, z: &'a [f64], mask: &'a mut [u8]) {
        match activation {
            Activation::Relu6 => pack_bits(z, mask, |z| !is_cut_by_relu6(z)),
            // NaN counts as positive: it passes, and so does its gradient.
            _ => pack_bits(z, mask, |z| z > 0.0 || z.is_nan()),
        }
    }
}

#[inline(always)]
fn pack_bits(z: &[f64], mask: &mut [u8], is_set: impl Fn(f64) -> bool) {
    for (byte, values) in mask.iter_mut().zip(z.chunks(8)) {
        *byte =
            values.iter().enumerate().fold(0, |bits, (i, &z)| bits | (u8::from(is_set(z)) << i));
    }
}

vectorized! {
    /// `g = g * activation'`, from the bits of [`write_mask`].
    pub fn differentiate_by_mask<'a>(activation: Activation, mask: &'a [u8], g: &'a mut [f64]) {
        let slope = match activation {
            Activation::LeakyRelu { negative_slope } => Some(negative_slope),
            _ => None,
        };
        for (&byte, values) in mask.iter().zip(g.chunks_mut(8)) {
            for (i, g) in values.iter_mut().enumerate() {
                let cut = slope.map_or(0.0, |slope| slope * *g);
                *g = if byte >> i & 1 == 1 { *g } else { cut };
            }
        }
    }
}
