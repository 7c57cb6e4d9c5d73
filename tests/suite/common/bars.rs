//! How far from what is expected a result may be.

use super::expected::Expected;
use ndarray::{Array1, Array3, ArrayRef, Ix3};
use warpnorm::{Activation, BatchNorm, Cpu, DType, Element, Gradients, Param, Saved};

/// The largest error allowed, as a share of scale.
#[derive(Debug, Clone, Copy)]
pub struct Bars {
    /// Of y, dweight, dbias, saved and running statistics.
    pub y: f64,
    /// Of dx and dresidual.
    pub dx: f64,
}

impl Bars {
    /// 2e-7 and 4e-7 for parameters of f32. In f64 the reference itself rounds: 5e-13.
    pub fn of(dtype: DType) -> Self {
        match dtype {
            DType::F64 => Bars { y: 5e-13, dx: 5e-13 },
            _ => Bars { y: 2e-7, dx: 4e-7 },
        }
    }

    /// Where smooth activations are evaluated in f32: 6 ulp (of the value, not of the scale, which
    /// is larger) on top.
    pub fn in_f32(dtype: DType, activation: Activation) -> Self {
        let bars = Self::of(dtype);
        let ulps = if activation.is_smooth() { 6.0 * f64::from(f32::EPSILON) / 2.0 } else { 0.0 };
        Bars { y: bars.y + ulps, dx: bars.dx + ulps }
    }
}

/// One rounding of a 16-bit type, which is allowed beside the bar.
pub fn rounding(dtype: DType, expected: f64) -> f64 {
    match dtype {
        DType::F16 => (expected.abs() * 2f64.powi(-11)).max(2f64.powi(-25)),
        DType::Bf16 => (expected.abs() * 2f64.powi(-8)).max(2f64.powi(-134)),
        DType::F32 | DType::F64 => 0.0,
    }
}

/// A few of the smallest subnormals of f32.
const TINY: f64 = 3e-44;

pub fn assert_tensor<E: Element>(
    what: &str,
    got: &ArrayRef<E, Ix3>,
    expected: &Array3<f64>,
    scale: &Array1<f64>,
    bar: f64,
) {
    assert_eq!(got.dim(), expected.dim(), "{what}");
    for ((n, c, s), &got) in got.indexed_iter() {
        let (got, expected) = (got.to_f64(), expected[[n, c, s]]);
        if got == E::from_f64(expected).to_f64() {
            continue; // also where both are infinite
        }
        let allowed = bar * scale[c] + rounding(E::DTYPE, expected) + TINY;
        let error = (got - expected).abs();
        assert!(
            error <= allowed,
            "{what}[{n}, {c}, {s}]: got {got:e}, expected {expected:e}, scale {:e}, score {:e}",
            scale[c],
            error / scale[c],
        );
    }
}

pub fn assert_channels<P: Param>(
    what: &str,
    got: &[P],
    expected: &Array1<f64>,
    scale: &Array1<f64>,
    bar: f64,
) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (c, got) in got.iter().enumerate() {
        if *got == P::from_f64(expected[c]) {
            continue; // also where both are infinite
        }
        let error = (got.to_f64() - expected[c]).abs();
        assert!(
            error <= bar * scale[c] + TINY,
            "{what}[{c}]: got {got:?}, expected {:e}, score {:e}",
            expected[c],
            error / scale[c],
        );
    }
}

pub fn assert_gradients<E: Element>(
    gradients: &Gradients<E, Ix3>,
    expected: &Expected,
    residual: bool,
) {
    assert_gradients_within(gradients, expected, residual, Bars::of(E::DTYPE));
}

pub fn assert_gradients_within<E: Element>(
    gradients: &Gradients<E, Ix3>,
    expected: &Expected,
    residual: bool,
    bars: Bars,
) {
    let (scale, want) = (&expected.scale, &expected.gradients);
    assert_tensor("dx", &gradients.dx, &want.dx, &scale.dx, bars.dx);
    assert_eq!(gradients.dresidual.is_some(), residual);
    if let Some(dresidual) = &gradients.dresidual {
        assert_tensor("dresidual", dresidual, &want.dresidual, &scale.dresidual, bars.dx);
    }
    let parameter = |it: &Option<Array1<E::Param>>| it.as_ref().unwrap().to_vec();
    let (dweight, dbias) = (parameter(&gradients.dweight), parameter(&gradients.dbias));
    assert_channels("dweight", &dweight, &want.dweight, &scale.dweight, bars.y);
    assert_channels("dbias", &dbias, &want.dbias, &scale.dbias, bars.y);
}

/// Saved statistics (the mean against the spread of the channel, hi and lo together) and running
/// ones.
pub fn assert_statistics<E: Element>(
    layer: &BatchNorm<Cpu, E::Param>,
    saved: &Saved<Cpu, E::Param>,
    expected: &Expected,
) {
    let bar = Bars::of(E::DTYPE).y;
    let hi_and_lo = saved.mean_hi().iter().zip(saved.mean_lo());
    let mean: Vec<f64> = hi_and_lo.map(|(hi, lo)| hi.to_f64() + lo.to_f64()).collect();
    // The reference's own mean is one f64.
    let spread = expected.invstd.mapv(f64::recip) + expected.mean.mapv(|mean| 1e-9 * mean.abs());
    assert_channels("saved mean", &mean, &expected.mean, &spread, bar);
    let invstd = &expected.invstd;
    assert_channels("saved invstd", saved.invstd(), invstd, invstd, bar);
    let (mean, var) = (&expected.running_mean, &expected.running_var);
    let mean_scale = mean.mapv(f64::abs) + spread;
    assert_channels("running_mean", layer.running_mean().unwrap(), mean, &mean_scale, bar);
    assert_channels("running_var", layer.running_var().unwrap(), var, var, bar);
}
