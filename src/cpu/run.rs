//! Going along a run of neighbouring values in chunks.

use super::convert::{Convert, Real};
use super::simd;

/// Values of a chunk where results are added up: partial sums that are kept apart, enough to hide
/// the latency of an addition, few enough for the registers. Fixed, so that results do not depend
/// on the instruction set's width.
pub const PARTIAL: usize = 16;

/// No chunk is longer.
pub const MAX_CHUNK: usize = 32;

/// A loop's body.
pub trait Body {
    /// Does `N` values from `at` on.
    fn chunk<const N: usize>(&mut self, at: usize);
}

/// Calls `body` for the values of `at..end` in order: `W` at a time, then 8, then one by one.
#[inline(always)]
pub fn along<const W: usize>(body: &mut impl Body, mut at: usize, end: usize) {
    while at + W <= end {
        body.chunk::<W>(at);
        simd::keep_chunk();
        at += W;
    }
    while at + 8 <= end {
        body.chunk::<8>(at);
        simd::keep_chunk();
        at += 8;
    }
    while at < end {
        body.chunk::<1>(at);
        simd::keep_chunk();
        at += 1;
    }
}

/// [`along`] where results go to memory: short chunks for the first `head` values, which lie before
/// a line begins ([`Output::head`]), then whole lines where possible.
#[inline(always)]
pub fn along_lines<E: Convert>(body: &mut impl Body, head: usize, end: usize) {
    match size_of::<E>() {
        2 => along_from_head::<32>(body, head, end),
        _ => along_from_head::<16>(body, head, end),
    }
}

#[inline(always)]
fn along_from_head<const W: usize>(body: &mut impl Body, head: usize, end: usize) {
    let mut at = 0;
    while at < end {
        let stop = if at < head { head } else { end };
        let len = match stop - at {
            left if left >= W && at >= head => {
                body.chunk::<W>(at);
                W
            }
            8.. => {
                body.chunk::<8>(at);
                8
            }
            _ => {
                body.chunk::<1>(at);
                1
            }
        };
        simd::keep_chunk();
        at += len;
    }
}

/// Sums of results along runs, in parts.
#[derive(Clone, Copy)]
pub struct Partial<R> {
    parts: [R; PARTIAL],
    /// Where f32 goes before it holds more than its digits are enough for.
    collected: [f64; PARTIAL],
}

impl<R: Real> Partial<R> {
    #[inline(always)]
    pub fn new() -> Self {
        Partial { parts: [R::default(); PARTIAL], collected: [0.0; PARTIAL] }
    }

    /// Adds the `index`-th result of a chunk whose [`first_partial`] is `first`.
    #[inline(always)]
    pub fn add(&mut self, first: usize, index: usize, value: R) {
        self.parts[first + index] = self.parts[first + index] + value;
    }

    #[inline(always)]
    fn collect(&mut self) {
        for lane in 0..PARTIAL {
            self.collected[lane] += self.parts[lane].extend();
            self.parts[lane] = R::default();
        }
    }

    #[inline(always)]
    pub fn total(mut self) -> f64 {
        self.collect();
        total(self.collected)
    }
}

/// Adds up in a fixed tree.
#[inline(always)]
pub fn total(mut partial: [f64; PARTIAL]) -> f64 {
    let mut width = PARTIAL / 2;
    while width > 0 {
        for lane in 0..width {
            partial[lane] += partial[lane + width];
        }
        width /= 2;
    }
    partial[0]
}

/// A body that adds up.
pub trait Sum: Body {
    type Real: Real;

    fn partials(&mut self) -> [&mut Partial<Self::Real>; 2];
}

/// [`along`] for a body that adds up; `pending` bounds what a part holds since it was collected.
#[inline(always)]
pub fn along_sums<S: Sum>(body: &mut S, end: usize, pending: &mut usize) {
    /// Results that a part holds at most: of so few, f32's digits are enough.
    const TOGETHER: usize = 8;
    let step = if S::Real::SINGLE { TOGETHER * PARTIAL } else { end.max(1) };
    for start in (0..end).step_by(step) {
        let stop = end.min(start + step);
        // The rest of a run, by eight and one by one, may come to the same part twice.
        let most = if stop - start == step { TOGETHER } else { (stop - start) / PARTIAL + 2 };
        if S::Real::SINGLE && *pending + most > TOGETHER {
            body.partials().into_iter().for_each(Partial::collect);
            *pending = 0;
        }
        along::<PARTIAL>(body, start, stop);
        *pending += most;
    }
}

/// The partial sum that the first value of a chunk belongs to. An index that is not constant also
/// keeps the compiler from taking partial sums apart: it would add them up one by one.
#[inline(always)]
pub fn first_partial<const N: usize>(at: usize) -> usize {
    if N == 1 { at % PARTIAL } else { 0 }
}

/// The chunk of `values` from `at` on.
#[inline(always)]
pub fn at<T, const N: usize>(values: &[T], at: usize) -> &[T; N] {
    values[at..].first_chunk().expect("chunks lie inside the run")
}

/// The chunk of `values` from `at` on, widened.
#[inline(always)]
pub fn read<E: Convert, const N: usize>(values: &[E], at: usize) -> [E::Wide; N] {
    E::widen(self::at(values, at))
}

/// A run to write: into the cache, or past it. The latter is for outputs too large to stay there:
/// an ordinary store would read each line before it overwrites it.
pub struct Output<'a, E> {
    values: &'a mut [E],
    /// What is streamed is seen by other threads after [`simd::finish_streaming`].
    streaming: bool,
}

impl<'a, E: Convert> Output<'a, E> {
    #[inline(always)]
    pub fn new(values: &'a mut [E], streaming: bool) -> Self {
        Output { values, streaming }
    }

    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Values before the first that streaming stores should begin with.
    #[inline(always)]
    pub fn head(&self) -> usize {
        if self.streaming { simd::to_line(self.values) } else { 0 }
    }

    /// Rounds a chunk to `at`.
    #[inline(always)]
    pub fn write<const N: usize>(&mut self, at: usize, values: &[E::Wide; N]) {
        let values = E::narrow(values);
        let to: &mut [E; N] =
            self.values[at..].first_chunk_mut().expect("chunks lie inside the run");
        if self.streaming {
            simd::store_past_cache(&values, to);
        } else {
            *to = values;
        }
    }
}

/// The bits of the chunk from `at` on, from the lowest of each byte on.
#[inline(always)]
pub fn read_bits<const N: usize>(bits: &[u8], at: usize) -> u32 {
    let (byte, shift) = (at / 8, at % 8);
    let whole: u64 = match N {
        32 => u32::from_le_bytes(*self::at(bits, byte)).into(),
        16 => u16::from_le_bytes(*self::at(bits, byte)).into(),
        _ => bits[byte].into(),
    };
    let split = shift + N > 8 * N.div_ceil(8);
    let rest = if split { u64::from(bits[byte + N.div_ceil(8)]) << (8 * N.div_ceil(8)) } else { 0 };
    ((whole | rest) >> shift) as u32
}

/// Writes what [`read_bits`] reads, in order: a byte's first bit clears the others.
#[inline(always)]
pub fn write_bits<const N: usize>(bits: &mut [u8], at: usize, values: u32) {
    let (byte, shift) = (at / 8, at % 8);
    let before = if shift > 0 { bits[byte] } else { 0 };
    let values = u64::from(values) << shift | u64::from(before);
    match N {
        32 => bits[byte..byte + 4].copy_from_slice(&(values as u32).to_le_bytes()),
        16 => bits[byte..byte + 2].copy_from_slice(&(values as u16).to_le_bytes()),
        _ => bits[byte] = values as u8,
    }
    if shift + N > 8 * N.div_ceil(8) {
        bits[byte + N.div_ceil(8)] = (values >> (8 * N.div_ceil(8))) as u8;
    }
}
