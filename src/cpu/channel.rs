//! What is done once per channel, in f64: variance, invstd, running statistics, and the
//! coefficients that the loops over elements use.

use super::moments::{ChannelMoments, Moments};
use super::simd::vectorized;
use crate::backend::Norm;
use crate::element::{DType, Element, Param};
use std::ops::Range;

/// Turns `x` into the normalized, scaled and shifted value `z`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Coefficients {
    pub mean_hi: f64,
    /// 0 unless the element type is f64: the sum of two f32 is held by `mean_hi`.
    pub mean_lo: f64,
    pub invstd: f64,
    pub scale: f64,
    pub bias: f64,
}

impl Coefficients {
    /// From saved statistics (`mean_lo` included) or running ones (`mean_lo` 0).
    pub fn new<E: Element>(
        mean_hi: f64,
        mean_lo: f64,
        invstd: f64,
        weight: f64,
        bias: f64,
    ) -> Self {
        let (mean_hi, mean_lo) = match E::DTYPE {
            DType::F64 => (mean_hi, mean_lo),
            _ => (mean_hi + mean_lo, 0.0),
        };
        Coefficients { mean_hi, mean_lo, invstd, scale: weight * invstd, bias }
    }
}

/// Turns `g`, the gradient of `z`, into the gradient of `x`:
/// `dx = scale * ((g - mean_g) - d * slope)` with `d = x - mean`; scale is forward's.
#[derive(Debug, Clone, Copy, Default)]
pub struct GradientCoefficients {
    pub mean_g: f64,
    pub slope: f64,
}

impl GradientCoefficients {
    /// From the channel's sums of g and of g * d.
    #[inline(always)]
    pub fn new(invstd: f64, sums: Sums) -> Self {
        GradientCoefficients {
            mean_g: sums.g / sums.count,
            slope: invstd * (sums.gd / sums.count) * invstd,
        }
    }
}

/// Sums over a channel: how many values, g (the gradient of z), and g * (x - mean).
#[derive(Debug, Clone, Copy, Default)]
pub struct Sums {
    pub count: f64,
    pub g: f64,
    pub gd: f64,
}

impl Sums {
    pub fn add(self, other: Sums) -> Sums {
        Sums { count: self.count + other.count, g: self.g + other.g, gd: self.gd + other.gd }
    }

    /// The gradient of the weight.
    pub fn dweight<P: Param>(self, invstd: f64) -> P {
        P::from_f64(self.gd * invstd)
    }

    /// The gradient of the bias.
    pub fn dbias<P: Param>(self) -> P {
        P::from_f64(self.g)
    }
}

/// Where a call takes its statistics from; `[C]` each.
#[derive(Debug, Clone, Copy)]
pub enum Statistics<'a, P> {
    /// What a training forward saved.
    Saved { mean_hi: &'a [P], mean_lo: &'a [P], invstd: &'a [P] },
    /// What training has averaged.
    Running { mean: &'a [P], var: &'a [P], eps: f64 },
}

/// Statistics with weight and bias: all that forward needs to know of a channel.
#[derive(Debug, Clone, Copy)]
pub struct Channels<'a, P> {
    pub statistics: Statistics<'a, P>,
    pub weight: Option<&'a [P]>,
    pub bias: Option<&'a [P]>,
}

impl<P: Param> Channels<'_, P> {
    /// The coefficients of `channel` for tensors of E.
    pub fn coefficients<E: Element>(&self, channel: usize) -> Coefficients {
        let weight = self.weight.map_or(1.0, |weight| weight[channel].to_f64());
        let bias = self.bias.map_or(0.0, |bias| bias[channel].to_f64());
        let (mean_hi, mean_lo) = match self.statistics {
            Statistics::Saved { mean_hi, mean_lo, .. } => {
                (mean_hi[channel].to_f64(), mean_lo[channel].to_f64())
            }
            Statistics::Running { mean, .. } => (mean[channel].to_f64(), 0.0),
        };
        Coefficients::new::<E>(mean_hi, mean_lo, self.invstd(channel), weight, bias)
    }

    /// Its invstd.
    #[inline]
    pub fn invstd(&self, channel: usize) -> f64 {
        match self.statistics {
            Statistics::Saved { invstd, .. } => invstd[channel].to_f64(),
            Statistics::Running { var, eps, .. } => invstd(var[channel].to_f64(), eps),
        }
    }
}

impl<'a, P: Param> Channels<'a, P> {
    /// Those of some channels.
    pub fn range(&self, range: Range<usize>) -> Self {
        let cut = |values: &'a [P]| &values[range.clone()];
        Channels {
            statistics: match self.statistics {
                Statistics::Saved { mean_hi, mean_lo, invstd } => Statistics::Saved {
                    mean_hi: cut(mean_hi),
                    mean_lo: cut(mean_lo),
                    invstd: cut(invstd),
                },
                Statistics::Running { mean, var, eps } => {
                    Statistics::Running { mean: cut(mean), var: cut(var), eps }
                }
            },
            weight: self.weight.map(cut),
            bias: self.bias.map(cut),
        }
    }

    /// [`coefficients`](Self::coefficients) of all channels, a slice each.
    #[inline(always)]
    pub fn fill<E: Element>(
        &self,
        mean_hi: &mut [f64],
        mean_lo: &mut [f64],
        scale: &mut [f64],
        bias: &mut [f64],
        invstds: &mut [f64],
    ) {
        match self.statistics {
            Statistics::Saved { mean_hi: hi, mean_lo: lo, invstd } => {
                widen(hi, mean_hi);
                widen(lo, mean_lo);
                widen(invstd, invstds);
            }
            Statistics::Running { mean, var, eps } => {
                widen(mean, mean_hi);
                mean_lo.fill(0.0);
                for (it, var) in invstds.iter_mut().zip(var) {
                    *it = invstd(var.to_f64(), eps);
                }
            }
        }
        if !matches!(E::DTYPE, DType::F64) {
            for (hi, lo) in mean_hi.iter_mut().zip(mean_lo) {
                *hi += std::mem::take(lo);
            }
        }
        scale.copy_from_slice(invstds);
        if let Some(weight) = self.weight {
            for (scale, weight) in scale.iter_mut().zip(weight) {
                *scale *= weight.to_f64();
            }
        }
        match self.bias {
            Some(values) => widen(values, bias),
            None => bias.fill(0.0),
        }
    }
}

#[inline(always)]
fn widen<P: Param>(src: &[P], dst: &mut [f64]) {
    for (dst, src) in dst.iter_mut().zip(src) {
        *dst = src.to_f64();
    }
}

/// A power of two near `invstd`; 1 for 0 and what is not finite.
#[inline(always)]
pub fn unit(invstd: f64) -> f64 {
    let power = f64::from_bits(invstd.to_bits() & f64::INFINITY.to_bits());
    if power == 0.0 || power == f64::INFINITY { 1.0 } else { power }
}

/// `1 / sqrt(var + eps)`, and 0 where both are 0.
#[inline(always)]
pub fn invstd(var: f64, eps: f64) -> f64 {
    if var + eps == 0.0 { 0.0 } else { 1.0 / (var + eps).sqrt() }
}

/// A channel's statistics as saved for backward.
#[derive(Debug, Clone, Copy)]
pub struct SavedChannel<P> {
    pub mean_hi: P,
    pub mean_lo: P,
    pub invstd: P,
}

impl<P: Param> SavedChannel<P> {
    #[inline(always)]
    pub fn new(moments: Moments, eps: f64) -> Self {
        let mean_hi = P::from_f64(moments.mean_hi);
        let rest = (moments.mean_hi - mean_hi.to_f64()) + moments.mean_lo;
        SavedChannel {
            mean_hi,
            mean_lo: P::from_f64(rest),
            invstd: P::from_f64(finite::<P>(invstd(moments.m2 / moments.count, eps))),
        }
    }
}

vectorized! {
    /// Saves the statistics of some channels: rows mean hi, mean lo, invstd.
    pub fn save_channels<'a, E>(
        moments: ChannelMoments<'a>,
        eps: f64,
        rows: [&'a mut [E::Param]; 3],
    ) {
        let channels = moments.mean_hi.len();
        let [hi, lo, invstd] = rows.map(|row| &mut row[..channels]);
        let each = hi.iter_mut().zip(lo).zip(invstd).zip(moments.each());
        for (((hi, lo), invstd), moments) in each {
            let saved = SavedChannel::<E::Param>::new(moments, eps);
            (*hi, *lo, *invstd) = (saved.mean_hi, saved.mean_lo, saved.invstd);
        }
    }
}

vectorized! {
    /// Moves the running statistics of some channels towards the batch's.
    pub fn advance_channels<'a, E>(
        moments: ChannelMoments<'a>,
        factor: f64,
        mean: &'a mut [E::Param],
        var: &'a mut [E::Param],
    ) {
        for ((mean, var), moments) in mean.iter_mut().zip(var).zip(moments.each()) {
            advance_running(moments, factor, mean, var);
        }
    }
}

/// Not infinite where P holds no number so large: a constant channel's y is the bias still.
#[inline(always)]
fn finite<P: Param>(invstd: f64) -> f64 {
    let largest = match P::DTYPE {
        DType::F32 => f32::MAX.into(),
        _ => f64::MAX,
    };
    if invstd > largest { largest } else { invstd }
}

/// The weight of this batch in the running statistics.
pub fn running_factor(norm: &Norm, num_batches_tracked: i64) -> f64 {
    norm.momentum.unwrap_or_else(|| 1.0 / (num_batches_tracked as f64 + 1.0))
}

/// Moves a channel's running mean and (unbiased) variance towards the batch's.
#[inline(always)]
pub fn advance_running<P: Param>(moments: Moments, factor: f64, mean: &mut P, var: &mut P) {
    let blend = |old: P, new: f64| P::from_f64((1.0 - factor) * old.to_f64() + factor * new);
    *mean = blend(*mean, moments.mean_hi);
    *var = blend(*var, moments.m2 / (moments.count - 1.0));
}
