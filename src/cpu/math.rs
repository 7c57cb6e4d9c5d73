//! exp of what is not positive, the logistic function, tanh and the normal distribution in f64,
//! without branches, so that loops over them vectorise. `mul_add` rounds once on every machine: so
//! that all agree to the bit (what has no instruction for it, x86-64 of before 2013, is slow).
//! Errors are stated as tested against 60-digit values.

// Coefficients are given to more digits than f64 holds.
#![allow(clippy::excessive_precision)]

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, LOG2_E};

/// How many digits a function is to have: its series are as long as that takes. Coefficients go from
/// the last to the first; they were made with 60 digits, from values at Chebyshev's nodes.
pub trait Digits {
    /// Of `(e^r - 1 - r) / r^2` in r, where `|r| <= ln(2) / 2`.
    const EXP: &'static [f64];
    /// Of `erfc(x) e^(x^2) / t` in `2t - 1`, where `t = 2 / (2 + x)` and `x >= 0`.
    const ERFC: &'static [f64];
}

/// Those of f64.
pub struct Double;

impl Digits for Double {
    const EXP: &'static [f64] = &[
        2.5105217695684517665e-8,
        2.7620089481954588787e-7,
        2.7557255398338710948e-6,
        0.000024801521293463860584,
        0.00019841269874822308109,
        0.0013888888917215586883,
        0.0083333333333261345642,
        0.04166666666662412338,
        0.16666666666666670991,
        0.50000000000000010223,
    ];
    const ERFC: &'static [f64] = &[
        1.2051665995883636701e-9,
        -1.0590333143571798631e-9,
        -9.744756625932257797e-9,
        1.3216325517632648636e-8,
        2.9041985444209085665e-8,
        -6.9658429434091383088e-8,
        -1.6982724012935666188e-9,
        1.7867229479168534543e-7,
        -2.8554818238341171664e-7,
        -1.3754508233185945131e-8,
        1.0009185862654101138e-6,
        -1.8150355080541665643e-6,
        -5.6281669351929246327e-7,
        8.0578758671473404027e-6,
        -0.000010848057268891095768,
        -0.000017073781133818914395,
        0.000072235350614385433482,
        -0.000017185831874889751496,
        -0.00033153674761946044252,
        0.00041864804327911113001,
        0.0015453060290576436895,
        -0.0032395925345820674644,
        -0.010755330944716363879,
        0.018221115753459039907,
        0.13973604627802689131,
        0.3435803422069051367,
        0.5107913526210114891,
    ];
}

/// Some more than those of f32: errors are below 1e-9 of the value.
pub struct Single;

impl Digits for Single {
    const EXP: &'static [f64] = &[
        0.00019899287840538397795,
        0.0013933652487807975211,
        0.0083332984663998711097,
        0.041666464895355420217,
        0.16666666719039147932,
        0.50000000134703031422,
    ];
    const ERFC: &'static [f64] = &[
        2.5997550708174074599e-6,
        -8.508869900319126127e-6,
        -9.7765994978327662483e-6,
        0.000067687806897345184758,
        -0.000022390034294989608371,
        -0.00032810014798514153139,
        0.00042068324777713248936,
        0.0015440476830892505861,
        -0.0032400066319968449543,
        -0.010755116152754640211,
        0.0182211532128357742,
        0.13973603266188656533,
        0.34358034122127212483,
        0.51079135276122357784,
    ];
}

#[inline(always)]
fn polynomial(coefficients: &[f64], x: f64) -> f64 {
    let mut sum = coefficients[0];
    for &coefficient in &coefficients[1..] {
        sum = sum.mul_add(x, coefficient);
    }
    sum
}

/// ln 2 in two parts.
const LN2_HI: f64 = 6.93147180369123816490e-1;
const LN2_LO: f64 = 1.908214929270587700e-10;
/// Powers of two are made too large by 2^64, so that those of subnormal results are normal.
const EXTRA: i32 = 64;
/// 2^-64
const TOO_LARGE: f64 = 1.0 / 18446744073709551616.0;
/// Added to a small number it leaves the nearest integer in the low bits, as an exponent of f64.
const ROUND: f64 = 6755399441055744.0 + (1023 + EXTRA) as f64;

/// `e^x = 2^n (1 + q)` for x from -746 to 600: `2^(n + EXTRA)`, and q.
#[inline(always)]
fn reduced_exp<D: Digits>(x: f64) -> (f64, f64) {
    let rounded = x.mul_add(LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, x));
    let q = (polynomial(D::EXP, r) * r).mul_add(r, r);
    (f64::from_bits(rounded.to_bits() << 52), q)
}

/// `e^x` of an x that is not positive, to 1 ulp; 0 below -745.
#[inline(always)]
pub fn exp<D: Digits>(x: f64) -> f64 {
    let x = if x < -746.0 { -746.0 } else { x };
    let (power, q) = reduced_exp::<D>(x);
    (1.0 + q) * power * TOO_LARGE
}

/// `1 / (1 + e^-x)` to 2 ulp (4 where it is below 2^-1000).
#[inline(always)]
pub fn sigmoid<D: Digits>(x: f64) -> f64 {
    let e = exp::<D>(-x.abs());
    let numerator = if x < 0.0 { e } else { 1.0 };
    numerator / (1.0 + e)
}

/// [`sigmoid`] of x and of -x, to 3 ulp: their product is its derivative, and keeps its digits where
/// one of them is nearly 1.
#[inline(always)]
pub fn sigmoids<D: Digits>(x: f64) -> [f64; 2] {
    let e = exp::<D>(-x.abs());
    let larger = 1.0 / (1.0 + e);
    let smaller = e * larger;
    if x < 0.0 { [smaller, larger] } else { [larger, smaller] }
}

/// `tanh(x)` to 4 ulp.
#[inline(always)]
pub fn tanh<D: Digits>(x: f64) -> f64 {
    let y = -2.0 * x.abs();
    let y = if y < -80.0 { -80.0 } else { y };
    let (power, q) = reduced_exp::<D>(y);
    let power = power * TOO_LARGE;
    let expm1 = power.mul_add(q, power - 1.0);
    (-expm1 / (2.0 + expm1)).copysign(x)
}

/// The derivative of tanh, to 4 ulp.
#[inline(always)]
pub fn tanh_derivative<D: Digits>(x: f64) -> f64 {
    let e = exp::<D>(-2.0 * x.abs());
    let inverse = 1.0 / (1.0 + e);
    4.0 * e * inverse * inverse
}

/// 1 / sqrt(2 pi).
const FRAC_1_SQRT_2PI: f64 = 0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2;

/// The standard normal distribution function of several values and their densities, with a relative
/// error of 4e-15 down to -7, 1e-13 where it is as small as f64 goes. Several at once, because the
/// compiler does not vectorise across so long a series.
#[inline(always)]
pub fn normal<D: Digits, const N: usize>(x: &[f64; N]) -> [[f64; N]; 2] {
    let (mut t, mut argument, mut series) = ([0.0; N], [0.0; N], [D::ERFC[0]; N]);
    for i in 0..N {
        t[i] = 2.0 / FRAC_1_SQRT_2.mul_add(x[i].abs(), 2.0);
        argument[i] = 2.0 * t[i] - 1.0;
    }
    for &coefficient in &D::ERFC[1..] {
        for i in 0..N {
            series[i] = series[i].mul_add(argument[i], coefficient);
        }
    }
    let (mut cdf, mut density) = ([0.0; N], [0.0; N]);
    for i in 0..N {
        let bell = exp::<D>(-0.5 * x[i] * x[i]);
        let tail = 0.5 * (series[i] * t[i]) * bell;
        cdf[i] = if x[i] > 0.0 { 1.0 - tail } else { tail };
        density[i] = FRAC_1_SQRT_2PI * bell;
    }
    [cdf, density]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values are mpmath's with 60 digits, or the standard library's.
    fn close(got: f64, expected: f64, relative: f64) {
        let error = (got - expected).abs();
        assert!(error <= relative * expected.abs(), "got {got:e}, expected {expected:e}");
    }

    #[test]
    fn exp_agrees_with_the_standard_library() {
        for i in -74000..=0 {
            let x = f64::from(i) * 0.01;
            let expected = x.exp();
            let error = (exp::<Double>(x) - expected).abs();
            assert!(error <= 3e-16 * expected + 5e-324, "exp({x})");
            let error = (exp::<Single>(x) - expected).abs();
            assert!(error <= 3e-10 * expected + 5e-324, "exp({x})");
        }
        for x in [-800.0, f64::NEG_INFINITY] {
            assert_eq!(exp::<Double>(x), 0.0);
            assert_eq!(exp::<Single>(x), 0.0);
        }
        assert!(exp::<Double>(f64::NAN).is_nan());
        assert!(exp::<Single>(f64::NAN).is_nan());
    }

    #[test]
    fn tanh_keeps_its_digits_near_zero_and_far_out() {
        fn check<D: Digits>(x: f64, relative: f64) {
            close(tanh::<D>(x), x.tanh(), relative);
            close(tanh_derivative::<D>(x), x.cosh().powi(-2), relative);
        }
        let near = (1..300).map(|exponent| 10f64.powi(-exponent));
        for x in (-4000..=4000).map(|i| f64::from(i) * 0.01).chain(near) {
            check::<Double>(x, 1e-15);
            check::<Single>(x, 1e-9);
        }
        assert_eq!(tanh::<Double>(f64::INFINITY), 1.0);
        assert_eq!(tanh_derivative::<Double>(f64::INFINITY), 0.0);
        assert!(tanh::<Double>(f64::NAN).is_nan());
        assert!(tanh_derivative::<Double>(f64::NAN).is_nan());
    }

    #[test]
    fn sigmoid_is_right_on_both_sides() {
        fn check<D: Digits>(x: f64, expected: f64, relative: f64) {
            close(sigmoid::<D>(x), expected, relative);
            let [s, rest] = sigmoids::<D>(x);
            close(s, expected, relative);
            close(rest, sigmoid::<D>(-x), 1e-15);
        }
        let expected = [
            (0.0, 0.5),
            (1.0, 0.73105857863000487925),
            (-1.0, 0.26894142136999512075),
            (-40.0, 4.2483542552915889953e-18),
            (-700.0, 9.8596765437597708567e-305),
            (f64::INFINITY, 1.0),
            (f64::NEG_INFINITY, 0.0),
        ];
        for (x, expected) in expected {
            check::<Double>(x, expected, if x < -600.0 { 1e-15 } else { 5e-16 });
            check::<Single>(x, expected, 1e-9);
        }
        assert!(sigmoid::<Double>(f64::NAN).is_nan());
        assert!(sigmoids::<Double>(f64::NAN)[0].is_nan());
    }

    /// The distribution function and the density at x.
    fn normal_at<D: Digits>(x: f64) -> [f64; 2] {
        normal::<D, 1>(&[x]).map(|[value]| value)
    }

    #[test]
    fn the_normal_distribution_is_right_on_both_sides() {
        fn check<D: Digits>(x: f64, expected: f64, relative: f64) {
            close(normal_at::<D>(x)[0], expected, relative);
        }
        let expected = [
            (0.0, 0.5),
            (0.5, 0.69146246127401310364),
            (-0.5, 0.30853753872598689636),
            (2.0, 0.9772498680518207928),
            (-2.0, 0.0227501319481792072),
            (-5.0, 2.8665157187919391167e-7),
            (-7.0, 1.2798125438858350044e-12),
            (-20.0, 2.7536241186062336951e-89),
            (-38.0, 2.8854283600687843084e-316),
            (f64::INFINITY, 1.0),
            (f64::NEG_INFINITY, 0.0),
        ];
        for (x, expected) in expected {
            check::<Double>(x, expected, if x < -7.0 { 1e-13 } else { 4e-15 });
            check::<Single>(x, expected, 1e-9);
        }
        // Its derivative is known: the function is then right everywhere if it is in places.
        for i in 1..800 {
            let (x, h) = (f64::from(i) * 0.01 - 4.0, 1e-4);
            let [cdf, density] = normal_at::<Double>(x);
            let slope = (normal_at::<Double>(x + h)[0] - normal_at::<Double>(x - h)[0]) / (2.0 * h);
            let expected = FRAC_1_SQRT_2PI * (-0.5 * x * x).exp();
            assert!((slope - expected).abs() < 1e-8, "Phi'({x}) = {slope}, expected {expected}");
            close(density, expected, 1e-15);
            let single = normal_at::<Single>(x);
            close(single[0], cdf, 1e-9);
            close(single[1], density, 1e-9);
        }
        assert!(normal_at::<Double>(f64::NAN)[0].is_nan());
    }
}
