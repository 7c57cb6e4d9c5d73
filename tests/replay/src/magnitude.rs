//! Natural magnitudes where a case brings no scale files: what the terms of each sum come to in
//! absolute value, in f64.

use crate::case::{Case, Malformed};
use ndarray::{ArrayD, ArrayViewD, Axis};

/// The largest |dy|, for every channel.
///
/// # Errors
/// `dy` is missing or cannot be read.
pub fn of_dresidual(case: &Case, channels: usize) -> Result<Vec<f64>, Malformed> {
    let dy = case.require_input("dy")?;
    Ok(vec![largest(dy.view()); channels])
}

/// The largest |y| of each channel, 1 at least.
pub fn of_sequence_y(expected: &ArrayD<f64>) -> Vec<f64> {
    let axis = Axis(usize::from(expected.ndim() > 1));
    let channels = expected.axis_iter(axis);
    channels.map(|channel| largest(channel).max(1.0)).collect()
}

/// The magnitude of `y`, `dx`, `dweight` or `dbias` per channel, from the case's inputs.
/// Activations are left out: their derivatives are about 1 at most.
///
/// # Errors
/// An input is missing or does not fit.
pub fn before_cancellation(case: &Case, output: &str) -> Result<Vec<f64>, Malformed> {
    let x = case.require_input("x")?;
    if x.ndim() < 2 {
        return Err(Malformed(format!("x.npy: rank {} has no channels", x.ndim())));
    }
    let channels = x.len_of(Axis(1));
    let parameter = |name: &str, default: f64| {
        let values = case.per_channel(name, channels)?;
        Ok(values.unwrap_or_else(|| vec![default; channels]))
    };
    let (weight, bias) = (parameter("weight", 1.0)?, parameter("bias", 0.0)?);
    let running_mean = parameter("running_mean_in", 0.0)?;
    let running_var = parameter("running_var_in", 1.0)?;
    let other = match output {
        "y" => case.input("residual")?,
        _ => Some(case.require_input("dy")?),
    };
    if other.as_ref().is_some_and(|other| other.shape() != x.shape()) {
        let found = other.map(|other| other.shape().to_vec());
        let shape = x.shape();
        return Err(Malformed(format!(
            "expected dy and residual of shape {shape:?}, found {found:?}"
        )));
    }
    let eps = case.meta.eps.unwrap_or(1e-5);
    let magnitude = |channel: usize| {
        let values = x.index_axis(Axis(1), channel);
        let (mean, var) = match case.meta.uses_batch_stats() {
            true => moments(values.view()),
            false => (running_mean[channel], running_var[channel]),
        };
        let invstd = if var + eps == 0.0 { 0.0 } else { 1.0 / (var + eps).sqrt() };
        let weight = weight[channel].abs();
        let normalized = values.iter().map(|value| ((value - mean) * invstd).abs());
        let other = other.as_ref().map(|other| other.index_axis(Axis(1), channel));
        let others = other.iter().flatten().map(|value| value.abs());
        match output {
            "y" => {
                let others = others.chain(std::iter::repeat(0.0));
                let terms = normalized.zip(others).map(|(x, residual)| x * weight + residual);
                terms.fold(0.0, f64::max) + bias[channel].abs()
            }
            "dx" => others.fold(0.0, f64::max) * weight * invstd,
            "dweight" => normalized.zip(others).map(|(x, dy)| x * dy).sum(),
            _ => others.sum(),
        }
    };
    Ok((0..channels).map(magnitude).collect())
}

fn moments(values: ArrayViewD<'_, f64>) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.sum() / count;
    let m2: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, m2 / count)
}

fn largest(values: ArrayViewD<'_, f64>) -> f64 {
    let finite = values.iter().filter(|value| value.is_finite());
    finite.fold(0.0, |largest, value| largest.max(value.abs()))
}
