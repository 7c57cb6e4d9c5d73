//! The textbook in f64: slow, obvious, the oracle that every backend is checked against.
//!
//! Tensors are `[N, C, spatial]` arrays of f64; parameters are `[C]`.
//!
//! ```
//! use ndarray::{arr1, arr3};
//! use warpnorm::reference::{invstd, moments, normalize};
//!
//! let x = arr3(&[[[1.0, 3.0]], [[5.0, 7.0]]]); // N = 2, C = 1
//! let (mean, var) = moments(x.view());
//! assert_eq!((mean[0], var[0]), (4.0, 5.0));
//!
//! let (invstd, weight, bias) = (invstd(var.view(), 4.0), arr1(&[3.0]), arr1(&[0.5]));
//! let y = normalize(x.view(), None, mean.view(), invstd.view(), weight.view(), bias.view());
//! assert_eq!(y[[1, 0, 1]], 3.0 * (7.0 - 4.0) / 3.0 + 0.5);
//! ```
//!
//! # Panics
//! Unlike the rest of the crate, functions on arrays panic if the shapes do not fit.

use crate::config::Activation;
use ndarray::{Array1, Array3, ArrayView1, ArrayView3, Axis};

/// Mean and biased variance of each channel, `[C]` each, by two passes. NaN for a channel without
/// values.
pub fn moments(x: ArrayView3<f64>) -> (Array1<f64>, Array1<f64>) {
    let count = (x.len_of(Axis(0)) * x.len_of(Axis(2))) as f64;
    let per_channel = |f: &dyn Fn(usize, f64) -> f64| -> Array1<f64> {
        (0..x.len_of(Axis(1)))
            .map(|c| x.index_axis(Axis(1), c).iter().map(|&x| f(c, x)).sum::<f64>() / count)
            .collect()
    };
    // A rounded mean has a mean deviation of its own: take that off too.
    let mean = per_channel(&|_, x| x);
    let mean = &mean + &per_channel(&|c, x| x - mean[c]);
    let var = per_channel(&|c, x| (x - mean[c]).powi(2));
    (mean, var)
}

/// `1 / sqrt(var + eps)`; 0 where that would be infinite.
pub fn invstd(var: ArrayView1<f64>, eps: f64) -> Array1<f64> {
    var.mapv(|var| if var + eps == 0.0 { 0.0 } else { 1.0 / (var + eps).sqrt() })
}

/// `weight * (x - mean) * invstd + bias`, plus the residual: `[N, C, spatial]`.
///
/// # Panics
/// A parameter with fewer than C values, a residual smaller than `x`.
pub fn normalize(
    x: ArrayView3<f64>,
    residual: Option<ArrayView3<f64>>,
    mean: ArrayView1<f64>,
    invstd: ArrayView1<f64>,
    weight: ArrayView1<f64>,
    bias: ArrayView1<f64>,
) -> Array3<f64> {
    Array3::from_shape_fn(x.dim(), |(n, c, s)| {
        let z = weight[c] * (x[[n, c, s]] - mean[c]) * invstd[c] + bias[c];
        z + residual.map_or(0.0, |residual| residual[[n, c, s]])
    })
}

/// The activation of one value.
pub fn activate(activation: Activation, z: f64) -> f64 {
    match activation {
        Activation::Identity => z,
        Activation::Relu if z <= 0.0 => 0.0,
        Activation::Relu => z,
        Activation::LeakyRelu { negative_slope } if z <= 0.0 => negative_slope * z,
        Activation::LeakyRelu { .. } => z,
        Activation::Relu6 if z <= 0.0 => 0.0,
        Activation::Relu6 if z >= 6.0 => 6.0,
        Activation::Relu6 => z,
        Activation::Sigmoid => logistic(z),
        Activation::Tanh => z.tanh(),
        Activation::Silu => z * logistic(z),
        Activation::Gelu => z * normal_cdf(z),
        Activation::GeluTanh => 0.5 * z * (1.0 + gelu_inner(z).tanh()),
    }
}

/// The derivative of the activation at one value.
pub fn derivative(activation: Activation, z: f64) -> f64 {
    match activation {
        Activation::Identity => 1.0,
        Activation::Relu if z <= 0.0 => 0.0,
        Activation::LeakyRelu { negative_slope } if z <= 0.0 => negative_slope,
        Activation::Relu6 if z <= 0.0 || z >= 6.0 => 0.0,
        // NaN's too.
        Activation::Relu | Activation::LeakyRelu { .. } | Activation::Relu6 => 1.0,
        Activation::Sigmoid => logistic(z) * logistic(-z),
        Activation::Tanh => 1.0 / z.cosh().powi(2),
        Activation::Silu => logistic(z) * (1.0 + z * logistic(-z)),
        Activation::Gelu => {
            normal_cdf(z) + z * (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt()
        }
        Activation::GeluTanh => {
            let u = gelu_inner(z);
            let slope = (2.0 / std::f64::consts::PI).sqrt() * (1.0 + 3.0 * 0.044715 * z * z);
            0.5 * (1.0 + u.tanh()) + 0.5 * z * slope / u.cosh().powi(2)
        }
    }
}

fn logistic(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

fn gelu_inner(z: f64) -> f64 {
    (2.0 / std::f64::consts::PI).sqrt() * (z + 0.044715 * z.powi(3))
}

/// The distribution function of the standard normal distribution, by its power series, or by its
/// continued fraction where the series would cancel.
fn normal_cdf(z: f64) -> f64 {
    let density = (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt();
    if z.abs() < 3.0 {
        let mut term = z;
        let mut sum = z;
        for k in 1..200 {
            term *= z * z / f64::from(2 * k + 1);
            sum += term;
        }
        return 0.5 + density * sum;
    }
    let fraction = (1..=200).rev().fold(z.abs(), |tail, k| z.abs() + f64::from(k) / tail);
    let upper_tail = density / fraction;
    if z > 0.0 { 1.0 - upper_tail } else { upper_tail }
}

/// What backward computes.
#[derive(Debug, Clone)]
pub struct Gradients {
    /// Of `x`.
    pub dx: Array3<f64>,
    /// Of the residual: the gradient of the pre-activation.
    pub dresidual: Array3<f64>,
    /// `[C]`.
    pub dweight: Array1<f64>,
    /// `[C]`.
    pub dbias: Array1<f64>,
}

/// The gradients of `activation(normalize(...))`. With `batch_statistics` the mean and invstd are
/// functions of `x` (Ioffe & Szegedy 2015, section 3), else constants.
///
/// # Panics
/// As [`normalize`]; a `dy` of another shape than `x`.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    x: ArrayView3<f64>,
    residual: Option<ArrayView3<f64>>,
    dy: ArrayView3<f64>,
    mean: ArrayView1<f64>,
    invstd: ArrayView1<f64>,
    weight: ArrayView1<f64>,
    bias: ArrayView1<f64>,
    activation: Activation,
    batch_statistics: bool,
) -> Gradients {
    let z = normalize(x, residual, mean, invstd, weight, bias);
    let g = &dy * &z.mapv(|z| derivative(activation, z));
    let xhat = Array3::from_shape_fn(x.dim(), |(n, c, s)| (x[[n, c, s]] - mean[c]) * invstd[c]);
    let sum = |a: &Array3<f64>| a.sum_axis(Axis(2)).sum_axis(Axis(0));
    let (dbias, dweight) = (sum(&g), sum(&(&g * &xhat)));
    let count = (x.len_of(Axis(0)) * x.len_of(Axis(2))) as f64;
    let dx = Array3::from_shape_fn(x.dim(), |(n, c, s)| {
        let through_statistics = match batch_statistics {
            true => (dbias[c] + xhat[[n, c, s]] * dweight[c]) / count,
            false => 0.0,
        };
        weight[c] * invstd[c] * (g[[n, c, s]] - through_statistics)
    });
    Gradients { dx, dresidual: g, dweight, dbias }
}
