//! Going along a run of neighbouring values in chunks.

use super::convert::Convert;
use super::simd::{self, Isa, Lines, PastCache};
use super::strips::Part;
use std::ops::Range;

/// No chunk is longer.
pub const MAX_CHUNK: usize = 32;

/// A loop's body.
pub trait Body {
    /// Does `count` chunks of `N` values from `at` on.
    fn chunks<const N: usize>(&mut self, at: usize, count: usize);
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
    let (mut at, mut stop) = (0, head.min(end));
    // One loop for both ends: theirs is most of the code.
    loop {
        along_short(body, at, stop);
        if stop == end {
            return;
        }
        let lines = (end - stop) / W;
        if lines > 0 {
            body.chunks::<W>(stop, lines);
        }
        (at, stop) = (stop + lines * W, end);
    }
}

/// Goes from `at` to `end` in chunks of 8, then in shorter ones. Short runs feel it where a loop of no
/// chunks is set up.
#[inline(always)]
fn along_short(body: &mut impl Body, mut at: usize, end: usize) {
    if at == end {
        return;
    }
    let eights = (end - at) / 8;
    if eights > 0 {
        body.chunks::<8>(at, eights);
        at += 8 * eights;
    }
    if end - at >= 4 {
        body.chunks::<4>(at, 1);
        at += 4;
    }
    if at < end {
        body.chunks::<1>(at, end - at);
    }
}

/// The chunk of `values` from `at` on.
#[inline(always)]
pub fn at<T, const N: usize>(values: &[T], at: usize) -> &[T; N] {
    values[at..].first_chunk().expect("chunks lie inside the run")
}

/// How many values ahead of what is read reads are announced, in the order in which memory is gone
/// over: farther than the hardware's own guesses, which end with a page and do not know the next run.
pub const AHEAD: usize = 2048;

/// A run to read.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a, E, I> {
    isa: I,
    values: &'a [E],
    /// Where reads are announced, from what is read on.
    ahead: usize,
}

impl<'a, E: Convert, I: Isa> Input<'a, E, I> {
    #[inline(always)]
    pub fn new(isa: I, values: &'a [E]) -> Self {
        Input { isa, values, ahead: 0 }
    }

    /// A part of a tensor, if there is one.
    #[inline(always)]
    pub fn part(isa: I, tensor: &'a [E], part: &Part) -> Self {
        let values = tensor.get(part.values.clone()).unwrap_or_default();
        Input::new(isa, values).announcing(part.ahead)
    }

    /// The same, with reads announced so far ahead.
    #[inline(always)]
    pub fn announcing(self, ahead: usize) -> Self {
        Input { ahead, ..self }
    }

    #[inline(always)]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// The chunk from `at` on, widened.
    #[inline(always)]
    pub fn read<const N: usize>(&self, at: usize) -> [E::Wide; N] {
        E::widen(self.isa, self::at(self.values, at))
    }

    /// [`read`](Self::read), with the announcement.
    #[inline(always)]
    pub fn read_along<const N: usize>(&self, at: usize) -> [E::Wide; N] {
        self.prefetch::<N>(at + self.ahead);
        self.read(at)
    }

    /// The `count` chunks from `at` on.
    #[inline(always)]
    pub fn chunks<const N: usize>(&self, at: usize, count: usize) -> InputChunks<'a, E, I, N> {
        let values = &self.values[at..][..count * N];
        InputChunks { isa: self.isa, values: &values.as_chunks().0[..count], ahead: self.ahead }
    }

    /// Brings the chunk from `at` on into the cache.
    #[inline(always)]
    pub fn prefetch<const N: usize>(&self, at: usize) {
        simd::prefetch::<E, N>(self.values, at);
    }
}

/// Chunks of an [`Input`].
pub struct InputChunks<'a, E, I, const N: usize> {
    isa: I,
    values: &'a [[E; N]],
    ahead: usize,
}

impl<E: Convert, I: Isa, const N: usize> InputChunks<'_, E, I, N> {
    /// A chunk, widened.
    #[inline(always)]
    pub fn read(&self, index: usize) -> [E::Wide; N] {
        simd::prefetch::<E, N>(self.values.as_flattened(), index * N + self.ahead);
        E::widen(self.isa, &self.values[index])
    }
}

/// A run to write: into the cache, or past it. The latter is for outputs too large to stay there:
/// an ordinary store would read each line before it overwrites it.
pub struct Output<'a, E, I> {
    isa: I,
    values: &'a mut [E],
    /// What goes past the cache is seen by other threads after [`simd::finish_streaming`].
    past_cache: Option<PastCache>,
    /// Values before the first that chunks should begin with.
    head: usize,
}

impl<'a, E: Convert, I: Isa> Output<'a, E, I> {
    #[inline(always)]
    pub fn new(isa: I, values: &'a mut [E], streaming: bool) -> Self {
        let past_cache = if streaming { isa.past_cache() } else { None };
        let head = if past_cache.is_some() { simd::to_line(values) } else { 0 };
        Output { isa, values, past_cache, head }
    }

    /// A part of a tensor, if there is one.
    #[inline(always)]
    pub fn part(isa: I, tensor: &'a mut [E], part: &Part, streaming: bool) -> Self {
        let values = tensor.get_mut(part.values.clone()).unwrap_or_default();
        let head = simd::to_line(values);
        Output { head, ..Output::new(isa, values, streaming) }
    }

    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Values before the first that chunks should begin with: for stores past the cache, and for long
    /// runs, where a line begins.
    #[inline(always)]
    pub fn head(&self) -> usize {
        self.head
    }

    /// The `count` chunks from `at` on.
    #[inline(always)]
    pub fn chunks<const N: usize>(&mut self, at: usize, count: usize) -> OutputChunks<'_, E, I, N> {
        let values = &mut self.values[at..][..count * N];
        let values = &mut values.as_chunks_mut().0[..count];
        let lines = match self.past_cache {
            Some(past_cache) => past_cache.lines(values),
            None => Lines::Cached(values),
        };
        OutputChunks { isa: self.isa, lines }
    }
}

/// Chunks of an [`Output`].
pub struct OutputChunks<'a, E, I, const N: usize> {
    isa: I,
    lines: Lines<'a, E, N>,
}

impl<E: Convert, I: Isa, const N: usize> OutputChunks<'_, E, I, N> {
    /// Rounds values to a chunk.
    #[inline(always)]
    pub fn write(&mut self, index: usize, values: &[E::Wide; N]) {
        self.lines.store(index, &E::narrow(self.isa, values));
    }
}

/// Where the bits of so many values lie; the first is a byte's first.
#[inline(always)]
pub fn bytes_of(values: &Range<usize>) -> Range<usize> {
    values.start / 8..values.end.div_ceil(8)
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
