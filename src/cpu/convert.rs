//! Elements to and from f64, a chunk at a time.
//!
//! A 16-bit element reaches f64 by way of f32, which holds it exactly. The way back rounds once
//! all the same: f64 is rounded to odd on its way to f32 (what is cut off leaves a trace in the
//! last bit), so that the second rounding sees on which side of a tie the value was. The exception are
//! results of bf16 below 1.2e-38, f32's smallest normal number: those are rounded twice.

use super::simd::{self, Isa};
use half::{bf16, f16};
use std::ops::{Add, Mul, Sub};

/// Conversions of whole chunks. Every chunk length gives the same results.
pub trait Convert: Copy + Default {
    /// What the arithmetic loads and stores: f64 for f64, f32 for the rest.
    type Wide: Copy + Default + PartialOrd;

    /// Exact.
    fn widen<const N: usize>(isa: impl Isa, values: &[Self; N]) -> [Self::Wide; N];
    /// Exact.
    fn extend(value: Self::Wide) -> f64;
    /// The first half of a rounding.
    fn reduce(value: f64) -> Self::Wide;
    /// The second half: to nearest even.
    fn narrow<const N: usize>(isa: impl Isa, values: &[Self::Wide; N]) -> [Self; N];

    /// Whether f32 holds more digits than a result needs.
    const SINGLE: bool;
    /// Exact, where `SINGLE`.
    fn to_single(value: Self::Wide) -> f32;
    fn from_single(value: f32) -> Self::Wide;
}

/// What is computed in: f64, or f32 for elements of which it holds enough ([`Convert::SINGLE`]).
pub trait Real:
    Copy
    + Default
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + simd::Summable
    + Send
    + Sync
    + 'static
{
    const SINGLE: bool;
    /// Values that are added up at most before f64 takes their sum: each addition of f32 may cost half
    /// a unit of its last digit, where one value outweighs the others.
    const TOGETHER: usize;
    fn load<E: Convert>(value: E::Wide) -> Self;
    /// The first half of a rounding to E.
    fn store<E: Convert>(self) -> E::Wide;
    fn extend(self) -> f64;
}

impl Real for f64 {
    const SINGLE: bool = false;
    const TOGETHER: usize = usize::MAX;

    #[inline(always)]
    fn load<E: Convert>(value: E::Wide) -> f64 {
        E::extend(value)
    }

    #[inline(always)]
    fn store<E: Convert>(self) -> E::Wide {
        E::reduce(self)
    }

    #[inline(always)]
    fn extend(self) -> f64 {
        self
    }
}

impl Real for f32 {
    const SINGLE: bool = true;
    const TOGETHER: usize = 2;

    #[inline(always)]
    fn load<E: Convert>(value: E::Wide) -> f32 {
        E::to_single(value)
    }

    #[inline(always)]
    fn store<E: Convert>(self) -> E::Wide {
        E::from_single(self)
    }

    #[inline(always)]
    fn extend(self) -> f64 {
        f64::from(self)
    }
}

impl Convert for f64 {
    type Wide = f64;

    #[inline(always)]
    fn widen<const N: usize>(_isa: impl Isa, values: &[f64; N]) -> [f64; N] {
        *values
    }

    #[inline(always)]
    fn extend(value: f64) -> f64 {
        value
    }

    #[inline(always)]
    fn reduce(value: f64) -> f64 {
        value
    }

    #[inline(always)]
    fn narrow<const N: usize>(_isa: impl Isa, values: &[f64; N]) -> [f64; N] {
        *values
    }

    const SINGLE: bool = false;

    #[inline(always)]
    fn to_single(value: f64) -> f32 {
        value as f32
    }

    #[inline(always)]
    fn from_single(value: f32) -> f64 {
        f64::from(value)
    }
}

impl Convert for f32 {
    type Wide = f32;

    #[inline(always)]
    fn widen<const N: usize>(_isa: impl Isa, values: &[f32; N]) -> [f32; N] {
        *values
    }

    #[inline(always)]
    fn extend(value: f32) -> f64 {
        f64::from(value)
    }

    #[inline(always)]
    fn reduce(value: f64) -> f32 {
        value as f32
    }

    #[inline(always)]
    fn narrow<const N: usize>(_isa: impl Isa, values: &[f32; N]) -> [f32; N] {
        *values
    }

    const SINGLE: bool = false;

    #[inline(always)]
    fn to_single(value: f32) -> f32 {
        value
    }

    #[inline(always)]
    fn from_single(value: f32) -> f32 {
        value
    }
}

impl Convert for f16 {
    type Wide = f32;

    #[inline(always)]
    fn widen<const N: usize>(isa: impl Isa, values: &[f16; N]) -> [f32; N] {
        isa.f16_to_f32(values)
    }

    #[inline(always)]
    fn extend(value: f32) -> f64 {
        f64::from(value)
    }

    #[inline(always)]
    fn reduce(value: f64) -> f32 {
        round_to_odd(value)
    }

    #[inline(always)]
    fn narrow<const N: usize>(isa: impl Isa, values: &[f32; N]) -> [f16; N] {
        isa.f32_to_f16(values)
    }

    const SINGLE: bool = true;

    #[inline(always)]
    fn to_single(value: f32) -> f32 {
        value
    }

    #[inline(always)]
    fn from_single(value: f32) -> f32 {
        value
    }
}

impl Convert for bf16 {
    type Wide = f32;

    #[inline(always)]
    fn widen<const N: usize>(_isa: impl Isa, values: &[bf16; N]) -> [f32; N] {
        let mut wide = [0.0; N];
        for (wide, value) in wide.iter_mut().zip(values) {
            *wide = f32::from_bits(u32::from(value.to_bits()) << 16);
        }
        wide
    }

    #[inline(always)]
    fn extend(value: f32) -> f64 {
        f64::from(value)
    }

    #[inline(always)]
    fn reduce(value: f64) -> f32 {
        round_to_odd(value)
    }

    #[inline(always)]
    fn narrow<const N: usize>(_isa: impl Isa, values: &[f32; N]) -> [bf16; N] {
        let mut narrow = [bf16::ZERO; N];
        for (narrow, value) in narrow.iter_mut().zip(values) {
            let bits = value.to_bits();
            let nearest_even = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            let quiet = bits >> 16 | 0x40;
            let bits = if value.is_nan() { quiet } else { nearest_even };
            *narrow = bf16::from_bits(bits as u16);
        }
        narrow
    }

    const SINGLE: bool = true;

    #[inline(always)]
    fn to_single(value: f32) -> f32 {
        value
    }

    #[inline(always)]
    fn from_single(value: f32) -> f32 {
        value
    }
}

/// To f32, with the last bit set where anything was cut off. Below f32's smallest normal number the
/// conversion itself rounds once more.
#[inline(always)]
fn round_to_odd(value: f64) -> f32 {
    /// The bits that f32 has no room for.
    const CUT: u64 = (1 << 29) - 1;
    let bits = value.to_bits();
    let trace = (bits & CUT) + CUT;
    f64::from_bits((bits | trace) & !CUT) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{Vectorized, on_every_isa};
    use crate::element::{DType, Element};

    #[derive(Clone, Copy)]
    struct Rounded(f64);

    impl Rounded {
        fn to<E: Element>(self, isa: impl Isa) -> [E; 32] {
            E::narrow(isa, &[E::reduce(self.0); 32])
        }
    }

    fn same<E: Element>(one: E, other: E) -> bool {
        let (one, other) = (one.to_f64(), other.to_f64());
        one.to_bits() == other.to_bits() || one.is_nan() && other.is_nan()
    }

    /// Holds the values of E, in order.
    #[derive(Clone, Copy)]
    struct Values<'a, E>(&'a [E]);

    impl<E: Element> Vectorized for Values<'_, E> {
        type Output = ();

        /// Every value, its ties with the next one, and what is a hair off them, in chunks of every
        /// length that loops use.
        fn call(self, isa: impl Isa) {
            for pair in self.0.windows(2) {
                let (value, next) = (pair[0].to_f64(), pair[1].to_f64());
                let tie = 0.5 * (value + next);
                for hair in [-f64::EPSILON, 0.0, f64::EPSILON] {
                    for exact in [value * (1.0 + hair), tie * (1.0 + hair)] {
                        // Where bf16 is rounded twice.
                        if E::DTYPE == DType::Bf16 && exact.abs() < 2f64.powi(-126) {
                            continue;
                        }
                        let expected = E::from_f64(exact);
                        let chunk = Rounded(exact).to::<E>(isa);
                        assert!(chunk.iter().all(|&it| same(it, expected)), "{exact:e}");
                        agree(&chunk, E::narrow(isa, &[E::reduce(exact)]));
                        agree(&chunk, E::narrow(isa, &[E::reduce(exact); 11]));
                    }
                }
                let wide = E::widen(isa, &[pair[0]; 32]).map(E::extend);
                assert!(wide.iter().all(|it| it.to_bits() == value.to_bits() || value.is_nan()));
                let short = E::widen(isa, &[pair[0]; 11]).map(E::extend);
                assert!(short.iter().all(|it| it.to_bits() == wide[0].to_bits()));
            }
        }
    }

    fn agree<E: Element, const N: usize>(chunk: &[E; 32], values: [E; N]) {
        assert!(values.iter().all(|it| format!("{it:?}") == format!("{:?}", chunk[0])));
    }

    #[test]
    fn chunks_of_f16() {
        let all: Vec<_> = (0..=u16::MAX).map(f16::from_bits).collect();
        on_every_isa(Values(&all));
    }

    #[test]
    fn chunks_of_bf16() {
        let all: Vec<_> = (0..=u16::MAX).map(bf16::from_bits).collect();
        on_every_isa(Values(&all));
    }

    impl Vectorized for Rounded {
        type Output = ([f16; 32], [bf16; 32]);

        fn call(self, isa: impl Isa) -> ([f16; 32], [bf16; 32]) {
            (self.to(isa), self.to(isa))
        }
    }

    #[test]
    fn beyond_the_range_is_infinite() {
        for value in [65520.0, 1e5, 1e30, 1e300, f64::INFINITY] {
            assert!(on_every_isa(Rounded(value)).iter().all(|it| it.0 == [f16::INFINITY; 32]));
            assert!(on_every_isa(Rounded(-value)).iter().all(|it| it.0 == [f16::NEG_INFINITY; 32]));
        }
        assert!(on_every_isa(Rounded(65519.9)).iter().all(|it| it.0 == [f16::MAX; 32]));
        for value in [3.4e38, 3.402_823_5e38, 1e39, 1e300, f64::INFINITY] {
            assert!(on_every_isa(Rounded(value)).iter().all(|it| it.1 == [bf16::INFINITY; 32]));
        }
    }
}
