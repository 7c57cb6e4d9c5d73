//! Loops from tensor to tensor, without a block between: for identity and ReLU without a
//! residual, which is what most layers are.

use super::block::{PARTIAL, deviation, gradient, normalize, total};
use super::channel::{Coefficients, GradientCoefficients};
use crate::config::{Activation, Epilogue};
use crate::element::Element;

/// The epilogues that have direct loops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direct {
    Identity,
    Relu,
}

impl Direct {
    pub fn of(epilogue: Epilogue) -> Option<Self> {
        match epilogue {
            Epilogue { activation: Activation::Identity, residual: false } => Some(Self::Identity),
            Epilogue { activation: Activation::Relu, residual: false } => Some(Self::Relu),
            _ => None,
        }
    }
}

/// y of one value.
#[inline(always)]
pub fn forward<E: Element, const RELU: bool>(x: E, [mean_hi, mean_lo, scale, bias]: [f64; 4]) -> E {
    let z = normalize(deviation::<E>(x.to_f64(), mean_hi, mean_lo), scale, bias);
    E::from_f64(if RELU && z <= 0.0 { 0.0 } else { z })
}

/// g, the gradient of z, and d = x - mean of one value.
#[inline(always)]
pub fn backward<E: Element, const RELU: bool>(
    x: E,
    dy: E,
    [mean_hi, mean_lo, scale, bias]: [f64; 4],
) -> (f64, f64) {
    let d = deviation::<E>(x.to_f64(), mean_hi, mean_lo);
    let cut = RELU && normalize(d, scale, bias) <= 0.0;
    (if cut { 0.0 } else { dy.to_f64() }, d)
}

impl Coefficients {
    #[inline(always)]
    fn as_array(&self) -> [f64; 4] {
        [self.mean_hi, self.mean_lo, self.scale, self.bias]
    }
}

/// `y = act((x - mean) * scale + bias)` along a run.
#[inline(always)]
pub fn forward_run<E: Element, const RELU: bool>(x: &[E], c: &Coefficients, y: &mut [E]) {
    let c = c.as_array();
    for (y, &x) in y.iter_mut().zip(x) {
        *y = forward::<E, RELU>(x, c);
    }
}

/// `dx` along a run.
#[inline(always)]
pub fn gradient_run<E: Element, const RELU: bool>(
    x: &[E],
    dy: &[E],
    c: &Coefficients,
    by: &GradientCoefficients,
    dx: &mut [E],
) {
    let c = c.as_array();
    for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
        let (g, d) = backward::<E, RELU>(x, dy, c);
        *dx = E::from_f64(gradient(g, d, by.scale, by.mean_g, by.slope));
    }
}

/// Sums of g and of g * d along runs, in parts.
#[derive(Clone, Copy)]
pub struct GradientSums {
    g: [f64; PARTIAL],
    gd: [f64; PARTIAL],
}

impl GradientSums {
    pub const ZERO: Self = GradientSums { g: [0.0; PARTIAL], gd: [0.0; PARTIAL] };

    /// Adds a run.
    #[inline(always)]
    pub fn add<E: Element, const RELU: bool>(&mut self, x: &[E], dy: &[E], c: &Coefficients) {
        let c = c.as_array();
        let (x_chunks, x) = x.as_chunks::<PARTIAL>();
        let (dy_chunks, dy) = dy.as_chunks::<PARTIAL>();
        for (x, dy) in x_chunks.iter().zip(dy_chunks) {
            self.add_chunk::<E, RELU, PARTIAL>(x, dy, c);
        }
        let (x_chunks, x) = x.as_chunks::<8>();
        let (dy_chunks, dy) = dy.as_chunks::<8>();
        for (x, dy) in x_chunks.iter().zip(dy_chunks) {
            self.add_chunk::<E, RELU, 8>(x, dy, c);
        }
        for (&x, &dy) in x.iter().zip(dy) {
            self.add_chunk::<E, RELU, 1>(&[x], &[dy], c);
        }
    }

    #[inline(always)]
    fn add_chunk<E: Element, const RELU: bool, const N: usize>(
        &mut self,
        x: &[E; N],
        dy: &[E; N],
        c: [f64; 4],
    ) {
        for lane in 0..N {
            let (g, d) = backward::<E, RELU>(x[lane], dy[lane], c);
            self.g[lane] += g;
            self.gd[lane] += g * d;
        }
    }

    /// The two sums.
    #[inline(always)]
    pub fn totals(self) -> [f64; 2] {
        [total(self.g), total(self.gd)]
    }
}
