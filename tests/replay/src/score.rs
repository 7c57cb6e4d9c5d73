//! The score of one output: how far it is from the expected values, in units of its channel's
//! natural magnitude.

use crate::case::Malformed;
use ndarray::{ArrayD, ArrayViewD, Axis};
use std::fmt;
use warpnorm::DType;

/// A few of fp32's smallest subnormals, taken off every absolute error.
pub const SUBNORMAL_SLACK: f64 = 3e-44;
/// The bar for `y`, `dweight`, `dbias`, saved and running statistics.
pub const BAR: f64 = 2e-7;
/// The bar for `dx` and `dresidual`.
pub const GRADIENT_BAR: f64 = 4e-7;
/// The bar for ONNX's cases, absolute and relative.
pub const ONNX_BAR: f64 = 1e-5;

/// What the absolute error of an element is divided by.
#[derive(Debug, Clone, PartialEq)]
pub enum Scale {
    /// The natural magnitude of each channel, before cancellation.
    PerChannel(Vec<f64>),
    /// The expected value; where that is 0, the channel's standard deviation, and for a constant
    /// channel nothing but 0 will do.
    Expected {
        /// Of `x`, per channel.
        std: Vec<f64>,
    },
    /// One plus the expected value: a tolerance that is absolute and relative.
    OnePlusExpected,
}

/// How an output is judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// What the score may not exceed.
    pub bar: f64,
    /// What errors are measured in.
    pub scale: Scale,
    /// What share of the expected value an error may be without counting, on top of a 16-bit
    /// type's rounding.
    pub free: f64,
}

/// An output of the library, and the type it was held in.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// Widened exactly.
    pub values: ArrayD<f64>,
    /// Decides how far rounding may move a value, and from where on Inf is right.
    pub dtype: DType,
}

/// The score of an output, with the element it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// The output's name.
    pub output: String,
    /// The largest error of its elements, in units of the scale.
    pub score: f64,
    /// What it may not exceed.
    pub bar: f64,
    /// Where, and what was found there.
    pub worst: Option<Worst>,
}

/// The element that a score comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Worst {
    /// Its index.
    pub index: Vec<usize>,
    /// What the library gave.
    pub got: f64,
    /// What it should have given.
    pub expected: f64,
}

impl Score {
    /// Whether the output is right.
    pub fn passed(&self) -> bool {
        self.score <= self.bar
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.output, short(self.score))?;
        if self.passed() {
            return Ok(());
        }
        write!(f, " above the bar {}", short(self.bar))?;
        match &self.worst {
            Some(Worst { index, got, expected }) => {
                write!(f, " (at {index:?}: got {got:e}, expected {expected:e})")
            }
            None => Ok(()),
        }
    }
}

/// Scores `got` against `expected`. In `nonfinite` channels only what should be non-finite is
/// looked at.
///
/// # Errors
/// The shapes differ, or the scale does not fit them.
pub fn score(
    name: &str,
    got: &Output,
    expected: &ArrayD<f64>,
    rule: &Rule,
    nonfinite: &[usize],
) -> Result<Score, Malformed> {
    let (found, shape) = (got.values.shape(), expected.shape());
    if found != shape {
        let reason = format!("{name}.npy: expected values of shape {shape:?}, output of {found:?}");
        return Err(Malformed(reason));
    }
    let axis = Axis(usize::from(expected.ndim() > 1));
    if expected.ndim() == 0 {
        return Err(Malformed(format!("{name}.npy: a single number has no channels")));
    }
    check_scale(name, &rule.scale, expected, axis, nonfinite)?;
    let mut result = Score { output: name.to_owned(), score: 0.0, bar: rule.bar, worst: None };
    let channels = expected.axis_iter(axis).zip(got.values.axis_iter(axis));
    for (channel, (expected, values)) in channels.enumerate() {
        let judge = |got_value: f64, expected: f64| match nonfinite.contains(&channel) {
            true if expected.is_finite() || !got_value.is_finite() => 0.0,
            true => f64::INFINITY,
            false => element_score(got_value, expected, got.dtype, rule, channel),
        };
        for ((index, &expected), &got) in expected.indexed_iter().zip(values.iter()) {
            let score = judge(got, expected);
            if score > result.score {
                let mut full = ndarray::Dimension::slice(&index).to_vec();
                full.insert(axis.index(), channel);
                result.score = score;
                result.worst = Some(Worst { index: full, got, expected });
            }
        }
    }
    Ok(result)
}

/// A scale must have a number for each channel in which it is used.
fn check_scale(
    name: &str,
    scale: &Scale,
    expected: &ArrayD<f64>,
    axis: Axis,
    nonfinite: &[usize],
) -> Result<(), Malformed> {
    let (what, values) = match scale {
        Scale::PerChannel(values) => ("scale", values),
        Scale::Expected { std } => ("standard deviation", std),
        Scale::OnePlusExpected => return Ok(()),
    };
    let channels = expected.len_of(axis);
    if values.len() != channels {
        let found = values.len();
        return Err(Malformed(format!(
            "{name}: expected a {what} for each of {channels} channels, found {found}"
        )));
    }
    if matches!(scale, Scale::Expected { .. }) {
        return Ok(());
    }
    let unfit = |&(channel, &value): &(usize, &f64)| {
        !(nonfinite.contains(&channel) || value.is_finite() && value >= 0.0)
    };
    match values.iter().enumerate().find(unfit) {
        Some((channel, value)) => Err(Malformed(format!(
            "{name}: the {what} of channel {channel} is {value}, not a finite number"
        ))),
        None => Ok(()),
    }
}

fn element_score(got: f64, expected: f64, dtype: DType, rule: &Rule, channel: usize) -> f64 {
    if expected.is_nan() || got.is_nan() {
        return if expected.is_nan() && got.is_nan() { 0.0 } else { f64::INFINITY };
    }
    // Also where both are the same infinity.
    if got == expected {
        return 0.0;
    }
    if expected.is_infinite() {
        return f64::INFINITY;
    }
    if got.is_infinite() {
        let right = rounds_to_infinity(expected, dtype) && got.signum() == expected.signum();
        return if right { 0.0 } else { f64::INFINITY };
    }
    let error = (got - expected).abs();
    let beyond_subnormals = (error - SUBNORMAL_SLACK).max(0.0);
    let free = one_rounding(expected, dtype) + rule.free * expected.abs();
    let beyond_rounding = (beyond_subnormals - free).max(0.0);
    let score = match &rule.scale {
        Scale::PerChannel(scale) => ratio(beyond_rounding, scale[channel]),
        Scale::Expected { std } if expected == 0.0 && std[channel] == 0.0 => f64::INFINITY,
        Scale::Expected { std } if expected == 0.0 => ratio(beyond_subnormals, std[channel]),
        Scale::Expected { .. } => ratio(beyond_subnormals, expected.abs()),
        Scale::OnePlusExpected => beyond_rounding / (1.0 + expected.abs()),
    };
    if score.is_nan() { f64::INFINITY } else { score }
}

/// Nothing is no error at any scale.
fn ratio(error: f64, scale: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / scale }
}

/// How far rounding to a 16-bit type may move `expected`: half a unit in its last place at most.
/// The bars for fp32 and f64 already count theirs.
fn one_rounding(expected: f64, dtype: DType) -> f64 {
    let magnitude = expected.abs();
    match dtype {
        DType::F16 => (magnitude * 2f64.powi(-11)).max(2f64.powi(-25)),
        DType::Bf16 => (magnitude * 2f64.powi(-8)).max(2f64.powi(-134)),
        DType::F32 | DType::F64 => 0.0,
    }
}

/// Whether the type's nearest value is Inf: from half a step above its largest finite value on.
fn rounds_to_infinity(expected: f64, dtype: DType) -> bool {
    let from = match dtype {
        DType::F16 => 65520.0,
        DType::Bf16 => (2.0 - 2f64.powi(-8)) * 2f64.powi(127),
        DType::F32 => (2.0 - 2f64.powi(-24)) * 2f64.powi(127),
        DType::F64 => f64::INFINITY,
    };
    // An fp32 result within the bar of the limit may fall on either side of it.
    expected.abs() * (1.0 + BAR) >= from
}

/// The standard deviation of each channel of `x`, in f64; exactly 0 where all values are equal.
pub fn std_per_channel(x: ArrayViewD<'_, f64>) -> Vec<f64> {
    let axis = Axis(1);
    x.axis_iter(axis).map(|channel| std(channel)).collect()
}

fn std(channel: ArrayViewD<'_, f64>) -> f64 {
    let Some(&first) = channel.first() else {
        return 0.0;
    };
    if channel.iter().all(|&value| value == first) {
        return 0.0;
    }
    let count = channel.len() as f64;
    let mean = channel.sum() / count;
    let m2: f64 = channel.iter().map(|&value| (value - mean).powi(2)).sum();
    (m2 / count).sqrt()
}

/// Two digits: `0`, `6.1e-8`, `inf`.
pub fn short(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        value if value.is_finite() => format!("{value:.1e}"),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn plain(scale: Scale) -> Rule {
        Rule { bar: BAR, scale, free: 0.0 }
    }

    fn one(got: f64, expected: f64, dtype: DType, scale: Scale) -> f64 {
        let output = Output { values: array![got].into_dyn(), dtype };
        let rule = plain(scale);
        let expected = array![expected].into_dyn();
        score("y", &output, &expected, &rule, &[]).unwrap().score
    }

    fn per_channel(scale: f64) -> Scale {
        Scale::PerChannel(vec![scale])
    }

    fn relative(std: f64) -> Scale {
        Scale::Expected { std: vec![std] }
    }

    #[test]
    fn errors_are_in_units_of_the_scale() {
        let score = one(1.0 + 1e-6, 1.0, DType::F32, per_channel(10.0));
        assert!((score - 1e-7).abs() < 1e-15, "{score}");
    }

    #[test]
    fn a_few_subnormals_are_no_error() {
        assert_eq!(one(3e-44, 0.0, DType::F32, per_channel(0.0)), 0.0);
        assert_eq!(one(4e-44, 0.0, DType::F32, per_channel(0.0)), f64::INFINITY);
        let score = one(4e-44, 0.0, DType::F32, per_channel(1e-36));
        assert!((score - 1e-8).abs() < 1e-15, "{score}");
    }

    #[test]
    fn an_expected_zero_is_measured_by_the_standard_deviation() {
        assert!((one(2e-7, 0.0, DType::F32, relative(2.0)) - 1e-7).abs() < 1e-15);
        assert_eq!(one(0.0, 0.0, DType::F32, relative(0.0)), 0.0);
        assert_eq!(one(1e-44, 0.0, DType::F32, relative(0.0)), f64::INFINITY);
    }

    #[test]
    fn statistics_are_relative() {
        let score = one(1e4 * (1.0 + 3e-7), 1e4, DType::F32, relative(1e-2));
        assert!((score - 3e-7).abs() < 1e-12, "{score}");
    }

    #[test]
    fn one_rounding_of_a_16_bit_type_is_free() {
        for (dtype, unit, tiny) in [
            (DType::F16, 2f64.powi(-11), 2f64.powi(-25)),
            (DType::Bf16, 2f64.powi(-8), 2f64.powi(-134)),
        ] {
            assert_eq!(one(3.0 * (1.0 + unit), 3.0, dtype, per_channel(1.0)), 0.0);
            let score = one(3.0 * (1.0 + unit) + 1e-6, 3.0, dtype, per_channel(1.0));
            assert!((score - 1e-6).abs() < 1e-12, "{score}");
            assert_eq!(one(tiny, 0.0, dtype, per_channel(0.0)), 0.0);
            assert_eq!(
                one(2.0 * tiny + SUBNORMAL_SLACK, 0.0, dtype, per_channel(0.0)),
                f64::INFINITY
            );
        }
        assert!(one(3.0 * (1.0 + 1e-4), 3.0, DType::F32, per_channel(1.0)) > 1e-4);
    }

    #[test]
    fn what_is_free_does_not_count() {
        let judge = |got| {
            let output = Output { values: array![got].into_dyn(), dtype: DType::F32 };
            let rule = Rule { free: 1e-6, ..plain(per_channel(1e-3)) };
            score("y", &output, &array![0.5].into_dyn(), &rule, &[]).unwrap().score
        };
        assert_eq!(judge(0.5 + 4.9e-7), 0.0);
        assert!((judge(0.5 + 6e-7) - 1e-4).abs() < 1e-9);
    }

    #[test]
    fn infinity_is_right_where_the_type_ends() {
        let inf = f64::INFINITY;
        assert_eq!(one(inf, 1e57, DType::F32, relative(1.0)), 0.0);
        assert_eq!(one(inf, 1e30, DType::F32, relative(1.0)), inf);
        assert_eq!(one(-inf, 1e57, DType::F32, relative(1.0)), inf);
        assert!(one(f64::from(f32::MAX), 1e57, DType::F32, relative(1.0)) > 0.9);
        assert_eq!(one(inf, 65520.0, DType::F16, per_channel(1.0)), 0.0);
        assert_eq!(one(inf, 65500.0, DType::F16, per_channel(1.0)), inf);
        assert_eq!(one(inf, 3.4e38, DType::Bf16, per_channel(1.0)), 0.0);
        assert_eq!(one(inf, 3.38e38, DType::Bf16, per_channel(1.0)), inf);
    }

    #[test]
    fn nan_is_never_right_but_for_nan() {
        let nan = f64::NAN;
        for scale in [per_channel(1.0), relative(1.0), Scale::OnePlusExpected] {
            assert_eq!(one(nan, 1.0, DType::F32, scale.clone()), f64::INFINITY);
            assert_eq!(one(1.0, nan, DType::F32, scale.clone()), f64::INFINITY);
            assert_eq!(one(1.0, f64::INFINITY, DType::F32, scale.clone()), f64::INFINITY);
            assert_eq!(one(nan, nan, DType::F32, scale), 0.0);
        }
    }

    #[test]
    fn nonfinite_channels_require_only_what_should_be_nonfinite() {
        let rule = plain(Scale::PerChannel(vec![1.0, f64::NAN]));
        let expected = array![[1.0, f64::NAN], [2.0, 5.0]].into_dyn();
        let judge = |values| {
            let output = Output { values, dtype: DType::F32 };
            score("y", &output, &expected, &rule, &[1]).unwrap().score
        };
        assert_eq!(judge(array![[1.0, f64::INFINITY], [2.0, 7.0]].into_dyn()), 0.0);
        assert_eq!(judge(array![[1.0, 3.0], [2.0, 5.0]].into_dyn()), f64::INFINITY);
        assert_eq!(judge(array![[f64::NAN, f64::NAN], [2.0, 5.0]].into_dyn()), f64::INFINITY);
    }

    #[test]
    fn the_worst_element_is_named() {
        let rule = plain(Scale::PerChannel(vec![1.0, 10.0]));
        let expected = ArrayD::zeros(vec![2, 2, 3]);
        let mut values = expected.clone();
        values[[1, 0, 2]] = 1e-3;
        values[[0, 1, 1]] = 5e-3;
        let output = Output { values, dtype: DType::F32 };
        let score = score("y", &output, &expected, &rule, &[]).unwrap();
        assert!(!score.passed());
        assert_eq!(score.worst.unwrap().index, [1, 0, 2]);
    }

    #[test]
    fn what_does_not_fit_is_malformed() {
        let output = Output { values: ArrayD::zeros(vec![2, 3]), dtype: DType::F32 };
        let expected = ArrayD::zeros(vec![2, 3]);
        let judge =
            |expected: &ArrayD<f64>, scale| score("y", &output, expected, &plain(scale), &[]);
        assert!(judge(&expected, Scale::PerChannel(vec![1.0; 3])).is_ok());
        assert!(judge(&expected, Scale::PerChannel(vec![1.0; 2])).is_err());
        assert!(judge(&expected, Scale::PerChannel(vec![1.0, f64::NAN, 1.0])).is_err());
        assert!(judge(&ArrayD::zeros(vec![3, 2]), Scale::OnePlusExpected).is_err());
    }

    #[test]
    fn standard_deviations_are_per_channel() {
        let x = array![[1.0, 0.1], [3.0, 0.1], [5.0, 0.1]].into_dyn();
        let std = std_per_channel(x.view());
        assert!((std[0] - (8.0f64 / 3.0).sqrt()).abs() < 1e-15);
        assert_eq!(std[1], 0.0);
    }
}
