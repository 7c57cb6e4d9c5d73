//! exp, the logistic function, tanh and erfc in f64, without branches, so that loops over them
//! vectorise. Errors are stated as tested against 60-digit values.

// Coefficients are given to more digits than f64 holds.
#![allow(clippy::excessive_precision)]

/// Added to a number below 2^51 it leaves the nearest integer in the low bits.
const ROUND: f64 = 6755399441055744.0;
/// ln 2 in two parts, the first with room for an exact product with any exponent.
const LN2_HI: f64 = 6.93147180369123816490e-1;
const LN2_LO: f64 = 1.908214929270587700e-10;

/// `1/k!` from k = 13 down to 2.
const FACTORIAL: [f64; 12] = [
    1.0 / 6227020800.0,
    1.0 / 479001600.0,
    1.0 / 39916800.0,
    1.0 / 3628800.0,
    1.0 / 362880.0,
    1.0 / 40320.0,
    1.0 / 5040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    1.0 / 2.0,
];

/// `e^x = 2^n (1 + q)`: n as an integer, and q.
#[inline(always)]
fn reduced_exp(x: f64) -> (i64, f64) {
    let rounded = x * std::f64::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN2_HI) - n * LN2_LO;
    let mut tail = FACTORIAL[0];
    for &coefficient in &FACTORIAL[1..] {
        tail = tail * r + coefficient;
    }
    let n = (rounded.to_bits() as i64).wrapping_sub(ROUND.to_bits() as i64);
    (n, tail * r * r + r)
}

#[inline(always)]
fn power_of_two(n: i64) -> f64 {
    f64::from_bits((n.wrapping_add(1023) as u64) << 52)
}

/// `e^x` to 1 ulp; 0 below -745, infinite above 710.
#[inline(always)]
pub fn exp(x: f64) -> f64 {
    let x = if x < -746.0 { -746.0 } else { x };
    let x = if x > 710.0 { 710.0 } else { x };
    let (n, q) = reduced_exp(x);
    // In two steps: 2^n alone may be out of range where the result is not.
    let half = n >> 1;
    (1.0 + q) * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// `1 / (1 + e^-x)` to 2 ulp (4 where it is below 2^-1000).
#[inline(always)]
pub fn sigmoid(x: f64) -> f64 {
    let e = exp(-x.abs());
    let numerator = if x < 0.0 { e } else { 1.0 };
    numerator / (1.0 + e)
}

/// `tanh(x)` to 4 ulp.
#[inline(always)]
pub fn tanh(x: f64) -> f64 {
    let y = -2.0 * x.abs();
    let y = if y < -80.0 { -80.0 } else { y };
    let (n, q) = reduced_exp(y);
    let power = power_of_two(n);
    let expm1 = power * q + (power - 1.0);
    (-expm1 / (2.0 + expm1)).copysign(x)
}

/// Chebyshev coefficients of `ln(erfc(x) / t) + x^2` in `2t - 1`, `t = 2 / (2 + x)`, from the
/// last to the first but one; made with 60 digits from 64 nodes.
const ERFC: [f64; 27] = [
    -2.816663087747176971849e-17,
    1.210237189224278992322e-16,
    -9.45749457129123400048e-17,
    -1.523028201457104304267e-15,
    7.106097613609236987764e-15,
    3.81090525518923205517e-16,
    -1.127082236136725236596e-13,
    3.130921399342958078294e-13,
    8.944879273090725716745e-13,
    -6.88602752649755339842e-12,
    2.394038083039114744703e-12,
    9.646791102015526801966e-11,
    -2.273651222931835855731e-10,
    -9.913641564930330867426e-10,
    5.059343495551468941798e-9,
    6.5290544390988514964e-9,
    -8.523809591492652254538e-8,
    1.562644172206614317827e-8,
    1.303655835580523201809e-6,
    -1.624290004647025513462e-6,
    -2.027857811253424315431e-5,
    4.252332480690777164483e-5,
    3.668394978527614518729e-4,
    -9.465953444820368663006e-4,
    -9.561514786808631641872e-3,
    1.947647320418583631165e-2,
    6.419697923564902603042e-1,
];
/// Half the first coefficient.
const ERFC_FIRST: f64 = 0.5 * -1.30265371978170943419;

/// `erfc(x)` of several values, with a relative error of 4e-15 up to 5, 1e-13 where it is as small
/// as f64 goes. Several at once, because the compiler does not vectorise across so long a series.
#[inline(always)]
pub fn erfc<const N: usize>(x: &[f64; N]) -> [f64; N] {
    let (mut t, mut argument) = ([0.0; N], [0.0; N]);
    for i in 0..N {
        t[i] = 2.0 / (2.0 + x[i].abs());
        argument[i] = 4.0 * t[i] - 2.0;
    }
    let (mut last, mut before) = ([0.0; N], [0.0; N]);
    for &coefficient in &ERFC {
        for i in 0..N {
            let next = argument[i] * last[i] + (coefficient - before[i]);
            before[i] = last[i];
            last[i] = next;
        }
    }
    let mut result = [0.0; N];
    for i in 0..N {
        let series = 0.5 * argument[i] * last[i] + (ERFC_FIRST - before[i]);
        let positive = t[i] * exp(series - x[i] * x[i]);
        result[i] = if x[i] < 0.0 { 2.0 - positive } else { positive };
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values from mpmath with 60 digits.
    fn close(got: f64, expected: f64, relative: f64) {
        let error = (got - expected).abs();
        assert!(error <= relative * expected.abs(), "got {got:e}, expected {expected:e}");
    }

    #[test]
    fn exp_agrees_with_the_standard_library() {
        for i in -74000..=70900 {
            let x = f64::from(i) * 0.01;
            let expected = x.exp();
            let error = (exp(x) - expected).abs();
            assert!(error <= 3e-16 * expected + 5e-324, "exp({x})");
        }
        assert_eq!(exp(-800.0), 0.0);
        assert_eq!(exp(800.0), f64::INFINITY);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert!(exp(f64::NAN).is_nan());
    }

    #[test]
    fn tanh_keeps_its_digits_near_zero_and_far_out() {
        for i in -4000..=4000 {
            let x = f64::from(i) * 0.01;
            close(tanh(x), x.tanh(), 1e-15);
        }
        for exponent in 1..300 {
            let x = 10f64.powi(-exponent);
            close(tanh(x), x.tanh(), 1e-15);
        }
        assert_eq!(tanh(f64::INFINITY), 1.0);
        assert!(tanh(f64::NAN).is_nan());
    }

    #[test]
    fn sigmoid_is_right_on_both_sides() {
        close(sigmoid(0.0), 0.5, 0.0);
        close(sigmoid(1.0), 0.73105857863000487925, 3e-16);
        close(sigmoid(-1.0), 0.26894142136999512075, 3e-16);
        close(sigmoid(-40.0), 4.2483542552915889953e-18, 5e-16);
        close(sigmoid(-700.0), 9.8596765437597708567e-305, 1e-15);
        assert_eq!(sigmoid(f64::INFINITY), 1.0);
        assert!(sigmoid(f64::NAN).is_nan());
    }

    fn erfc_of(x: f64) -> f64 {
        erfc(&[x])[0]
    }

    #[test]
    fn erfc_is_right_on_both_sides() {
        close(erfc_of(0.0), 1.0, 1e-15);
        close(erfc_of(0.5), 0.47950012218695346232, 3e-15);
        close(erfc_of(-0.5), 1.5204998778130465377, 3e-15);
        close(erfc_of(2.0), 0.0046777349810472658379, 3e-15);
        close(erfc_of(5.0), 1.5374597944280348502e-12, 3e-15);
        // Its derivative is known: the function is then right everywhere if it is in places.
        for i in 1..600 {
            let (x, h) = (f64::from(i) * 0.01 - 3.0, 1e-4);
            let slope = (erfc_of(x + h) - erfc_of(x - h)) / (2.0 * h);
            let expected = -std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp();
            assert!((slope - expected).abs() < 1e-8, "erfc'({x}) = {slope}, expected {expected}");
        }
        close(erfc_of(20.0), 5.3958656116079009289e-176, 1e-13);
        assert_eq!(erfc_of(f64::NEG_INFINITY), 2.0);
        assert!(erfc_of(f64::NAN).is_nan());
    }
}
