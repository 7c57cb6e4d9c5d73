//! Types and arithmetic. A register holds the bits of its value, the rest zero.

use half::{bf16, f16};

/// A type as instructions name it; `b32` is `u32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Pred,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    Bf16,
    F32,
    F64,
}

use Type::*;

impl Type {
    /// `f32` and the like.
    pub fn of(suffix: &str) -> Option<Self> {
        Some(match suffix {
            "pred" => Pred,
            "u8" | "b8" => U8,
            "u16" | "b16" => U16,
            "u32" | "b32" => U32,
            "u64" | "b64" => U64,
            "s8" => S8,
            "s16" => S16,
            "s32" => S32,
            "s64" => S64,
            "f16" => F16,
            "bf16" => Bf16,
            "f32" => F32,
            "f64" => F64,
            _ => return None,
        })
    }

    /// In memory.
    pub fn bytes(self) -> usize {
        match self {
            Pred | U8 | S8 => 1,
            U16 | S16 | F16 | Bf16 => 2,
            U32 | S32 | F32 => 4,
            U64 | S64 | F64 => 8,
        }
    }

    fn is_signed(self) -> bool {
        matches!(self, S8 | S16 | S32 | S64)
    }

    fn is_float(self) -> bool {
        matches!(self, F16 | Bf16 | F32 | F64)
    }

    /// The type's bits of an integer.
    pub fn truncate(self, bits: u64) -> u64 {
        match self {
            Pred => bits & 1,
            _ => bits & (u64::MAX >> (64 - 8 * self.bytes())),
        }
    }

    /// An integer's value.
    fn integer(self, bits: u64) -> i128 {
        let bits = self.truncate(bits);
        let above = 64 - 8 * self.bytes() as u32;
        if self.is_signed() { ((bits << above) as i64 >> above).into() } else { bits.into() }
    }

    /// What a literal stands for.
    pub fn literal(self, text: &str) -> Option<u64> {
        if let Some(digits) = text.strip_prefix("0f") {
            let bits = u32::from_str_radix(digits, 16).ok()?;
            return Some(if self == F64 {
                f64::from(f32::from_bits(bits)).to_bits()
            } else {
                bits.into()
            });
        }
        if let Some(digits) = text.strip_prefix("0d") {
            return u64::from_str_radix(digits, 16).ok();
        }
        let value = match text.strip_prefix("0x") {
            Some(digits) => i128::from_str_radix(digits, 16).ok()?,
            None => text.parse().ok()?,
        };
        Some(self.truncate(value as u64))
    }
}

fn single(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn double(bits: u64) -> f64 {
    f64::from_bits(bits)
}

/// Of two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    /// The product in twice as many bits.
    MulWide,
    /// Its upper half.
    MulHigh,
    Div,
    Rem,
    Min,
    Max,
    /// NaN if either is.
    MaxNan,
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRight,
}

impl Binary {
    /// `None` where PTX has no such instruction, or what it gives is not defined.
    #[inline]
    pub fn apply(self, of: Type, a: u64, b: u64) -> Option<u64> {
        match of {
            F32 => self.single(single(a), single(b)).map(|value| value.to_bits().into()),
            F64 => self.double(double(a), double(b)).map(f64::to_bits),
            _ => self.integer(of, a, b),
        }
    }

    fn single(self, a: f32, b: f32) -> Option<f32> {
        Some(match self {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
            Binary::Div => a / b,
            Binary::Min => a.min(b),
            Binary::Max => a.max(b),
            Binary::MaxNan if a.is_nan() || b.is_nan() => f32::NAN,
            Binary::MaxNan => a.max(b),
            _ => return None,
        })
    }

    fn double(self, a: f64, b: f64) -> Option<f64> {
        Some(match self {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
            Binary::Div => a / b,
            Binary::Min => a.min(b),
            Binary::Max => a.max(b),
            _ => return None,
        })
    }

    #[inline]
    fn integer(self, of: Type, a: u64, b: u64) -> Option<u64> {
        let value = match self {
            Binary::Add => a.wrapping_add(b),
            Binary::Sub => a.wrapping_sub(b),
            Binary::Mul => a.wrapping_mul(b),
            Binary::And => a & b,
            Binary::Or => a | b,
            Binary::Xor => a ^ b,
            Binary::ShiftLeft => a.unbounded_shl(b as u32),
            _ => return self.wide_integer(of, a, b),
        };
        Some(of.truncate(value))
    }

    /// What depends on more than the type's bits.
    fn wide_integer(self, of: Type, a: u64, b: u64) -> Option<u64> {
        let bits = 8 * of.bytes() as u64;
        let (wide_a, wide_b) = (of.integer(a), of.integer(b));
        let value = match self {
            Binary::MulWide => return Some((wide_a * wide_b) as u64),
            Binary::MulHigh => (wide_a * wide_b) >> bits,
            Binary::Div => wide_a.checked_div(wide_b)?,
            Binary::Rem => wide_a.checked_rem(wide_b)?,
            Binary::Min => wide_a.min(wide_b),
            Binary::Max => wide_a.max(wide_b),
            // A shift's distance is a u32 in any type.
            Binary::ShiftRight => wide_a >> u64::from(b as u32).min(bits),
            _ => return None,
        };
        Some(of.truncate(value as u64))
    }
}

/// Of one operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unary {
    Move,
    Not,
    Neg,
    Abs,
    PopulationCount,
    ReverseBits,
    /// How far the highest bit that is set is from the top; all bits where there is none.
    FindShift,
    Sqrt,
    Reciprocal,
    /// Approximations are as far off as they may be: this by 1 of the last places.
    ReciprocalApprox,
    /// 2 to the power of it, and this by 2.
    Exp2Approx,
}

/// Off by so many of the last places, up or down as the last one has it. What is subnormal is lost.
fn off_by(ulps: u32, exact: f32) -> f32 {
    let bits = exact.to_bits();
    match exact.is_normal() {
        true if bits & 1 == 1 => f32::from_bits(bits + ulps),
        true => f32::from_bits(bits - ulps),
        false if exact.is_subnormal() => 0.0_f32.copysign(exact),
        false => exact,
    }
}

impl Unary {
    /// `None` where PTX has no such instruction.
    #[inline]
    pub fn apply(self, of: Type, a: u64) -> Option<u64> {
        match (self, of) {
            (Unary::Move, _) => Some(a),
            (_, F32) => self.single(single(a)).map(|value| value.to_bits().into()),
            (_, F64) => self.double(double(a)).map(f64::to_bits),
            _ => self.integer(of, a).map(|value| of.truncate(value)),
        }
    }

    fn single(self, a: f32) -> Option<f32> {
        Some(match self {
            Unary::Neg => -a,
            Unary::Abs => a.abs(),
            Unary::Sqrt => a.sqrt(),
            Unary::Reciprocal => 1.0 / a,
            Unary::ReciprocalApprox => off_by(1, 1.0 / a),
            Unary::Exp2Approx => off_by(2, f64::from(a).exp2() as f32),
            _ => return None,
        })
    }

    fn double(self, a: f64) -> Option<f64> {
        Some(match self {
            Unary::Neg => -a,
            Unary::Abs => a.abs(),
            Unary::Sqrt => a.sqrt(),
            Unary::Reciprocal => 1.0 / a,
            _ => return None,
        })
    }

    fn integer(self, of: Type, a: u64) -> Option<u64> {
        Some(match self {
            Unary::Not => !a,
            Unary::Neg => a.wrapping_neg(),
            Unary::Abs => of.integer(a).unsigned_abs() as u64,
            Unary::PopulationCount => a.count_ones().into(),
            Unary::ReverseBits => a.reverse_bits() >> (64 - 8 * of.bytes()),
            Unary::FindShift if a == 0 => u64::MAX,
            Unary::FindShift => a.leading_zeros() as u64 + 8 * of.bytes() as u64 - 64,
            _ => return None,
        })
    }
}

/// Where a result goes that is none of the type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    Nearest,
    Down,
    Up,
}

/// `a * b + c`, rounded once.
pub fn fused(of: Type, rounding: Rounding, [a, b, c]: [u64; 3]) -> Option<u64> {
    let in_f32 = || [a, b, c].map(single);
    Some(match (of, rounding) {
        (F64, Rounding::Nearest) => double(a).mul_add(double(b), double(c)).to_bits(),
        (F32, Rounding::Nearest) => {
            let [a, b, c] = in_f32();
            a.mul_add(b, c).to_bits().into()
        }
        (F32, Rounding::Down) => fused_down(in_f32()).to_bits().into(),
        (F32, Rounding::Up) => {
            let [a, b, c] = in_f32();
            (-fused_down([-a, b, -c])).to_bits().into()
        }
        _ => return None,
    })
}

fn fused_down([a, b, c]: [f32; 3]) -> f32 {
    // The product is exact; what the sum loses says on which side of it the result is.
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    if sum == 0.0 {
        return if product.is_sign_negative() || c.is_sign_negative() { -0.0 } else { 0.0 };
    }
    let c_of_sum = sum - product;
    let lost = (product - (sum - c_of_sum)) + (c - c_of_sum);
    let nearest = sum as f32;
    let above = f64::from(nearest) - sum;
    let is_above = above > 0.0 || (above == 0.0 && lost < 0.0);
    if is_above { nearest.next_down() } else { nearest }
}

/// `prmt`: a word of four of the eight bytes of a and b, or of their signs.
pub fn permute([a, b, selector]: [u64; 3]) -> u64 {
    let bytes = (b << 32 | a).to_le_bytes();
    let select = |index: u32| {
        let chosen = selector >> (4 * index);
        let byte = bytes[chosen as usize & 7];
        let byte = if chosen & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 };
        u64::from(byte) << (8 * index)
    };
    (0..4).map(select).sum()
}

/// How `setp` compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Comparison {
    /// What holds of numbers that are less, equal, greater.
    pub holds: [bool; 3],
    /// What holds where one of them is NaN.
    pub unordered: bool,
}

impl Comparison {
    /// `lt`, `gtu` and the like.
    pub fn of(name: &str) -> Option<Self> {
        let (base, unordered) = match name.strip_suffix('u') {
            Some(base) => (base, true),
            // Of numbers, that they differ; NaN differs from nothing.
            None => (name, false),
        };
        let holds = match base {
            "eq" => [false, true, false],
            "ne" => [true, false, true],
            "lt" => [true, false, false],
            "le" => [true, true, false],
            "gt" => [false, false, true],
            "ge" => [false, true, true],
            "nan" => return Some(Comparison { holds: [false; 3], unordered: true }),
            "num" => return Some(Comparison { holds: [true; 3], unordered: false }),
            _ => return None,
        };
        Some(Comparison { holds, unordered })
    }

    /// Whether it holds.
    #[inline]
    pub fn apply(self, of: Type, a: u64, b: u64) -> bool {
        let order = match of {
            F32 => single(a).partial_cmp(&single(b)),
            F64 => double(a).partial_cmp(&double(b)),
            _ => Some(of.integer(a).cmp(&of.integer(b))),
        };
        order.map_or(self.unordered, |order| self.holds[(order as i8 + 1) as usize])
    }
}

/// `cvt`: from one type to another; of floats, rounded to nearest, to an integer (`integral`), and
/// into 0 to 1 (`saturate`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conversion {
    pub to: Type,
    pub from: Type,
    pub integral: bool,
    pub saturate: bool,
}

impl Conversion {
    /// `None` where this is not done here.
    #[inline]
    pub fn apply(self, bits: u64) -> Option<u64> {
        if !self.from.is_float() {
            let value = self.from.integer(bits);
            return Some(match self.to {
                F32 => (value as f32).to_bits().into(),
                F64 => (value as f64).to_bits(),
                F16 | Bf16 => return None,
                to => to.truncate(value as u64),
            });
        }
        let value = match self.from {
            F16 => f16::from_bits(bits as u16).to_f64(),
            Bf16 => bf16::from_bits(bits as u16).to_f64(),
            F32 => single(bits).into(),
            _ => double(bits),
        };
        let value = if self.integral { value.trunc() } else { value };
        let value =
            if self.saturate { if value > 0.0 { value.min(1.0) } else { 0.0 } } else { value };
        Some(match self.to {
            // The hardware's one NaN.
            F16 | Bf16 if value.is_nan() => 0x7fff,
            // From f32, as no instruction rounds an f64 to them.
            F16 => f16::from_f32(value as f32).to_bits().into(),
            Bf16 => bf16::from_f32(value as f32).to_bits().into(),
            F32 => (value as f32).to_bits().into(),
            F64 => value.to_bits(),
            U32 => (value as u32).into(),
            U64 => value as u64,
            S32 => u64::from(value as i32 as u32),
            S64 => value as i64 as u64,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_wrap_and_keep_their_sign() {
        assert_eq!(Binary::Sub.apply(U32, 1, 2), Some(0xffff_ffff));
        assert_eq!(Binary::ShiftRight.apply(S32, 0x8000_0000, 31), Some(0xffff_ffff));
        assert_eq!(Binary::ShiftRight.apply(U32, 0x8000_0000, 40), Some(0));
        assert_eq!(Binary::Min.apply(S32, 0xffff_ffff, 1), Some(0xffff_ffff));
        assert_eq!(Binary::Min.apply(U32, 0xffff_ffff, 1), Some(1));
        assert_eq!(Binary::MulWide.apply(U32, 0xffff_ffff, 2), Some(0x1_ffff_fffe));
        assert_eq!(Binary::Div.apply(U32, 1, 0), None);
        assert_eq!(Unary::ReverseBits.apply(U32, 6), Some(0x6000_0000));
        assert_eq!(Unary::FindShift.apply(U32, 0x6000_0000), Some(1));
    }

    #[test]
    fn nan_is_unordered() {
        let nan = f32::NAN.to_bits().into();
        assert!(!Comparison::of("gt").unwrap().apply(F32, nan, 0));
        assert!(Comparison::of("gtu").unwrap().apply(F32, nan, 0));
        assert!(!Comparison::of("ne").unwrap().apply(F32, nan, 0));
        assert!(Comparison::of("neu").unwrap().apply(F32, nan, 0));
        assert!(Binary::MaxNan.apply(F32, nan, 0).is_some_and(|it| single(it).is_nan()));
        assert_eq!(Binary::Max.apply(F32, nan, 0), Some(0));
    }

    #[test]
    fn literals() {
        assert_eq!(F32.literal("0f3F800000"), Some(1.0_f32.to_bits().into()));
        assert_eq!(F64.literal("0d3FF0000000000000"), Some(1.0_f64.to_bits()));
        assert_eq!(U32.literal("-1"), Some(0xffff_ffff));
        assert_eq!(U16.literal("0x10"), Some(16));
        assert_eq!(U16.literal("ten"), None);
    }

    #[test]
    fn rounding_down_and_up() {
        let bits = |value: f32| u64::from(value.to_bits());
        let rounded = |to, operands: [f32; 3]| single(fused(F32, to, operands.map(bits)).unwrap());
        let down = |a, b, c| rounded(Rounding::Down, [a, b, c]);
        let up = |a, b, c| rounded(Rounding::Up, [a, b, c]);
        let ulp = f32::EPSILON;
        assert_eq!(down(1.0, 1.0, ulp), 1.0 + ulp);
        assert_eq!(down(1.0, 1.0, -1e-30), 1.0_f32.next_down());
        assert_eq!(down(1.0, 1.0, 1e-30), 1.0);
        assert_eq!(down(1.0 + ulp, 1.0 + ulp, 0.0), 1.0 + 2.0 * ulp);
        assert_eq!(up(1.0, 1.0, -1e-30), 1.0);
        assert_eq!(up(1.0, 1.0, 1e-30), 1.0_f32.next_up());
        assert_eq!(up(-1.0, 1.0, 1e-30), (-1.0_f32).next_up());
        assert_eq!(down(f32::MAX, 1.0, f32::MAX), f32::MAX);
        assert_eq!(up(f32::MAX, 1.0, f32::MAX), f32::INFINITY);
        assert!(down(1.0, 1.0, -1.0).is_sign_negative() && up(1.0, 1.0, -1.0).is_sign_positive());
    }

    #[test]
    fn bytes_are_permuted() {
        assert_eq!(permute([0x3322_1180, 0x7766_5544, 0x7610]), 0x7766_1180);
        assert_eq!(permute([0x3322_1180, 0x7766_5544, 0x9842]), 0x00ff_4422);
    }

    #[test]
    fn conversions() {
        let cvt = |to, from, bits| {
            Conversion { to, from, integral: false, saturate: false }.apply(bits).unwrap()
        };
        assert_eq!(cvt(U16, U32, 0x12345), 0x2345);
        assert_eq!(cvt(S64, S32, 0xffff_ffff), u64::MAX);
        assert_eq!(cvt(Bf16, F32, f32::NAN.to_bits().into()), 0x7fff);
        assert_eq!(cvt(F32, F16, 0x3c00), u64::from(1.0_f32.to_bits()));
        let saturate = Conversion { to: F32, from: F32, integral: false, saturate: true };
        assert_eq!(saturate.apply(f32::NAN.to_bits().into()), Some(0));
    }
}
