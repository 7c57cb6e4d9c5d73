//! Element types: what tensors are made of, and what parameters and statistics are held in.

use crate::cpu::Compiled;
use half::{bf16, f16};
use std::fmt;

/// The element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64. On the CPU only.
    F64,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    Bf16,
}

impl DType {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            DType::F16 | DType::Bf16 => 2,
            DType::F32 => 4,
            DType::F64 => 8,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
        })
    }
}

mod sealed {
    /// With CUDA, also what cudarc may copy to a device as it is.
    #[cfg(feature = "cuda")]
    pub trait Sealed: cudarc::driver::DeviceRepr + cudarc::driver::ValidAsZeroBits {}
    #[cfg(not(feature = "cuda"))]
    pub trait Sealed {}
}

/// A type that a device buffer may hold: the element types, the tracked batch count (`i64`) and
/// mask bytes (`u8`).
pub trait Scalar: sealed::Sealed + Copy + Default + Send + Sync + fmt::Debug + 'static {}

/// The element type of `x`, `y`, `residual` and their gradients: `f32`, `f64`,
/// [`half::f16`] or [`half::bf16`].
pub trait Element: Scalar + Compiled {
    /// What parameters and statistics are held in: `f32`, and `f64` for `f64`.
    type Param: Param;
    /// This type, as a value.
    const DTYPE: DType;
    /// Exact.
    fn to_f64(self) -> f64;
    /// Rounded once, to nearest even; what exceeds the range becomes infinite.
    fn from_f64(value: f64) -> Self;
}

/// The type of parameters and statistics: `f32` or `f64`.
pub trait Param: Element<Param = Self> + PartialOrd {}

impl sealed::Sealed for f32 {}
impl sealed::Sealed for f64 {}
impl sealed::Sealed for f16 {}
impl sealed::Sealed for bf16 {}
impl sealed::Sealed for i64 {}
impl sealed::Sealed for u8 {}

impl Scalar for f32 {}
impl Scalar for f64 {}
impl Scalar for f16 {}
impl Scalar for bf16 {}
impl Scalar for i64 {}
impl Scalar for u8 {}

impl Param for f32 {}
impl Param for f64 {}

impl Element for f32 {
    type Param = f32;
    const DTYPE: DType = DType::F32;

    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as f32
    }
}

impl Element for f64 {
    type Param = f64;
    const DTYPE: DType = DType::F64;

    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value
    }
}

impl Element for f16 {
    type Param = f32;
    const DTYPE: DType = DType::F16;

    // In place of `f16::to_f32`: branch-free, so that loops over it vectorise.
    #[inline(always)]
    fn to_f64(self) -> f64 {
        let bits = u32::from(self.to_bits());
        let sign = (bits & 0x8000) << 16;
        let shifted = (bits & 0x7fff) << 13;
        let exponent = shifted & 0x0f80_0000;
        let normal = shifted + (112 << 23);
        let subnormal =
            (f32::from_bits(shifted + (113 << 23)) - f32::from_bits(113 << 23)).to_bits();
        let nonfinite = shifted + (224 << 23);
        let magnitude = if exponent == 0 {
            subnormal
        } else if exponent == 0x0f80_0000 {
            nonfinite
        } else {
            normal
        };
        f64::from(f32::from_bits(magnitude | sign))
    }

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        // After this the value fits f16 exactly, but for overflow.
        let bits = (round_to_precision(value, 42, -14) as f32).to_bits();
        let sign = (bits >> 16) & 0x8000;
        let magnitude = bits & 0x7fff_ffff;
        let normal = (magnitude >> 13).wrapping_sub(112 << 10);
        // 0.5 has the smallest subnormal of f16 as its last place.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
        let result = if magnitude > 0x7f80_0000 {
            0x7e00
        } else if magnitude >= (143 << 23) {
            0x7c00
        } else if magnitude < (113 << 23) {
            subnormal
        } else {
            normal
        };
        f16::from_bits((result | sign) as u16)
    }
}

impl Element for bf16 {
    type Param = f32;
    const DTYPE: DType = DType::Bf16;

    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(f32::from_bits(u32::from(self.to_bits()) << 16))
    }

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        // After this the value fits bf16 exactly, but for overflow.
        let bits = (round_to_precision(value, 45, -126) as f32).to_bits();
        let quiet = if bits & 0x7fff_ffff > 0x7f80_0000 { 0x40_0000 } else { 0 };
        bf16::from_bits(((bits | quiet) >> 16) as u16)
    }
}

/// Rounds to nearest even, keeping `52 - dropped_bits` fraction bits, fewer below
/// `2^min_exponent`: conversion to 16 bits through f32 would round twice.
#[inline(always)]
fn round_to_precision(value: f64, dropped_bits: i32, min_exponent: i32) -> f64 {
    const EXPONENT: u64 = 0x7ff0_0000_0000_0000;
    const HUGE: f64 = f64::from_bits(((1023 + 900) as u64) << 52);
    let smallest = f64::from_bits(((1023 + min_exponent) as u64) << 52);
    let power = f64::from_bits(value.to_bits() & EXPONENT);
    let scale = if power < smallest { smallest } else { power };
    let magic = scale * (1.5 * f64::from_bits(((1023 + dropped_bits) as u64) << 52));
    if power < HUGE { ((value + magic) - magic).copysign(value) } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_converts_exactly_both_ways() {
        for bits in 0..=u16::MAX {
            let value = f16::from_bits(bits);
            let wide = Element::to_f64(value);
            assert_eq!(wide.to_bits() & !(1 << 51), value.to_f64().to_bits() & !(1 << 51));
            let back = <f16 as Element>::from_f64(wide);
            assert!(value.is_nan() && back.is_nan() || back.to_bits() == bits, "{bits:#x}");
        }
    }

    #[test]
    fn every_bf16_converts_exactly_both_ways() {
        for bits in 0..=u16::MAX {
            let value = bf16::from_bits(bits);
            let back = <bf16 as Element>::from_f64(Element::to_f64(value));
            assert!(value.is_nan() && back.is_nan() || back.to_bits() == bits, "{bits:#x}");
        }
    }

    /// Ties, and values a hair off a tie: a conversion by way of f32 gets these wrong.
    #[test]
    fn sixteen_bit_values_are_rounded_once() {
        for step in 0..=u16::MAX {
            let (low, high) = (f16::from_bits(step), f16::from_bits(step.wrapping_add(1)));
            if (step & 0x7fff) >= 0x7bff {
                continue;
            }
            let tie = 0.5 * (low.to_f64() + high.to_f64());
            let even = if step % 2 == 0 { low } else { high };
            assert_eq!(<f16 as Element>::from_f64(tie), even);
            assert_eq!(<f16 as Element>::from_f64(tie * (1.0 + f64::EPSILON)), high);
            assert_eq!(<f16 as Element>::from_f64(tie * (1.0 - f64::EPSILON)), low);
        }
        for step in 0..=u16::MAX {
            let (low, high) = (bf16::from_bits(step), bf16::from_bits(step.wrapping_add(1)));
            if (step & 0x7fff) >= 0x7f7f {
                continue;
            }
            let tie = 0.5 * (low.to_f64() + high.to_f64());
            let even = if step % 2 == 0 { low } else { high };
            assert_eq!(<bf16 as Element>::from_f64(tie), even);
            assert_eq!(<bf16 as Element>::from_f64(tie * (1.0 + f64::EPSILON)), high);
            assert_eq!(<bf16 as Element>::from_f64(tie * (1.0 - f64::EPSILON)), low);
        }
    }

    #[test]
    fn what_exceeds_sixteen_bits_is_infinite() {
        for value in [65520.0, 1e5, 1e30, 1e300, f64::INFINITY] {
            assert_eq!(<f16 as Element>::from_f64(value), f16::INFINITY);
            assert_eq!(<f16 as Element>::from_f64(-value), f16::NEG_INFINITY);
        }
        assert_eq!(<f16 as Element>::from_f64(65519.9), f16::MAX);
        for value in [3.4e38, 1e39, 1e300, f64::INFINITY] {
            assert_eq!(<bf16 as Element>::from_f64(value), bf16::INFINITY);
        }
        assert!(<bf16 as Element>::from_f64(f64::NAN).is_nan());
        assert!(<f16 as Element>::from_f64(f64::NAN).is_nan());
    }
}
