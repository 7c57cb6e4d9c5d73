//! Going along a run of neighbouring values in chunks.

use super::convert::Convert;
use super::simd;

/// No chunk is longer.
pub const MAX_CHUNK: usize = 32;

/// A loop's body.
pub trait Body {
    /// Does `N` values from `at` on.
    fn chunk<const N: usize>(&mut self, at: usize);
}

/// Calls `body` for the values before `end` in order: in short chunks for the first `head` of them,
/// which lie before a line begins ([`Output::head`]), then in whole lines where possible.
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
            4.. => {
                body.chunk::<4>(at);
                4
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
