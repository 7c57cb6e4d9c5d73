//! What needs `unsafe`: run-time dispatch to the instruction set at hand, conversions of f16, sums in
//! registers, stores that go past the cache, prefetching, and tables read with one check for all rows.
//!
//! Inner loops are plain Rust, written once; [`vectorized!`] compiles them for AVX-512, AVX2 and the
//! baseline (on aarch64 that has NEON), and picks one at run time. Whatever they call must be
//! `#[inline(always)]`, or it stays compiled for the baseline. No multiplication is fused with an
//! addition, so that every instruction set arrives at the same bits.

#![allow(unsafe_code)]

use super::convert::Convert;
use super::run::{MAX_CHUNK, OutputChunks};
use crate::element::Element;
use half::f16;
use std::ops::{Add, Mul, Range};

/// Defines a function whose body is compiled for every instruction set and dispatched at run time;
/// `by_lane` where each lane of a vector has coefficients of its own.
macro_rules! vectorized {
    (by_lane $($function:tt)*) => {
        $crate::cpu::simd::vectorized!(@true $($function)*);
    };
    (
        @$by_lane:literal
        $(#[$attribute:meta])*
        $vis:vis fn $name:ident<$($lifetime:lifetime,)* $element:ident>(
            $($argument:ident: $type:ty),* $(,)?
        ) $(-> $result:ty)? $body:block
    ) => {
        $(#[$attribute])*
        $vis fn $name<$($lifetime,)* $element: $crate::element::Element>(
            $($argument: $type),*
        ) $(-> $result)? {
            struct Call<$($lifetime,)* $element: $crate::element::Element> {
                $($argument: $type,)*
                marker: ::std::marker::PhantomData<($(&$lifetime (),)* $element)>,
            }
            impl<$($lifetime,)* $element: $crate::element::Element> ::pulp::NullaryFnOnce
                for Call<$($lifetime,)* $element>
            {
                type Output = $crate::cpu::simd::result!($($result)?);

                #[inline(always)]
                fn call(self) -> Self::Output {
                    let Call { $($argument,)* marker: _ } = self;
                    $body
                }
            }
            let call = Call::<$($lifetime,)* $element> {
                $($argument,)*
                marker: ::std::marker::PhantomData,
            };
            $crate::cpu::simd::dispatch::<$element, _>(call, $by_lane)
        }
    };
    ($($function:tt)*) => {
        $crate::cpu::simd::vectorized!(@false $($function)*);
    };
}
pub(super) use vectorized;

#[cfg(target_arch = "x86_64")]
pulp::simd_type! {
    /// x86-64-v3: pulp's own leaves out the conversions of f16.
    pub struct Avx2 {
        avx: "avx",
        avx2: "avx2",
        bmi1: "bmi1",
        bmi2: "bmi2",
        f16c: "f16c",
        fma: "fma",
        lzcnt: "lzcnt",
        popcnt: "popcnt",
    }

    /// x86-64-v4.
    struct Avx512 {
        avx: "avx",
        avx2: "avx2",
        bmi1: "bmi1",
        bmi2: "bmi2",
        f16c: "f16c",
        fma: "fma",
        lzcnt: "lzcnt",
        popcnt: "popcnt",
        avx512f: "avx512f",
        avx512bw: "avx512bw",
        avx512cd: "avx512cd",
        avx512dq: "avx512dq",
        avx512vl: "avx512vl",
    }
}

/// Calls `call`, on elements of type E, as compiled for the best instruction set at hand.
#[inline]
pub fn dispatch<E: Convert, F: pulp::NullaryFnOnce>(call: F, by_lane: bool) -> F::Output {
    #[cfg(target_arch = "x86_64")]
    {
        let in_512_bits = !by_lane || E::BY_LANE_IN_512_BITS;
        if in_512_bits && let Some(isa) = Avx512::try_new() {
            return isa.vectorize(call);
        }
        if let Some(isa) = Avx2::try_new() {
            return isa.vectorize(call);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = by_lane;
    call.call()
}

/// The result type of a function, `()` where none is written.
macro_rules! result {
    () => {
        ()
    };
    ($type:ty) => {
        $type
    };
}
pub(super) use result;

/// Bytes of a cache line, the unit that a streaming store should fill.
const LINE: usize = 64;

/// Between the chunks of a loop: keeps the compiler from working on several at once, for which it
/// would gather values from all over them. Costs no instruction.
#[inline(always)]
pub fn keep_chunk() {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    // SAFETY: no instruction at all.
    unsafe {
        std::arch::asm!("", options(nomem, nostack, preserves_flags))
    };
}

/// Exact.
#[inline(always)]
pub fn f16_to_f32<const N: usize>(values: &[f16; N]) -> [f32; N] {
    let mut wide = [0.0; N];
    let (eights, rest) = values.as_chunks::<8>();
    let (wide_eights, wide_rest) = wide.as_chunks_mut::<8>();
    let hardware = has_f16();
    for (wide, eight) in wide_eights.iter_mut().zip(eights) {
        *wide = eight_to_f32(eight, hardware);
    }
    if !rest.is_empty() {
        let mut padded = [f16::ZERO; 8];
        padded[..rest.len()].copy_from_slice(rest);
        let padded = eight_to_f32(&padded, hardware);
        wide_rest.copy_from_slice(&padded[..rest.len()]);
    }
    wide
}

/// To nearest even.
#[inline(always)]
pub fn f32_to_f16<const N: usize>(values: &[f32; N]) -> [f16; N] {
    let mut narrow = [f16::ZERO; N];
    let (eights, rest) = values.as_chunks::<8>();
    let (narrow_eights, narrow_rest) = narrow.as_chunks_mut::<8>();
    let hardware = has_f16();
    for (narrow, eight) in narrow_eights.iter_mut().zip(eights) {
        *narrow = eight_to_f16(eight, hardware);
    }
    if !rest.is_empty() {
        let mut padded = [0.0; 8];
        padded[..rest.len()].copy_from_slice(rest);
        let padded = eight_to_f16(&padded, hardware);
        narrow_rest.copy_from_slice(&padded[..rest.len()]);
    }
    narrow
}

/// Whether the processor converts f16.
#[inline(always)]
fn has_f16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return Avx2::is_available();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// By hand if not by `hardware` ([`has_f16`]). The two ways meet in one register: in an array the
/// compiler would cut values to what fits both.
#[inline(always)]
fn eight_to_f32(values: &[f16; 8], hardware: bool) -> [f32; 8] {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m256, _mm_loadu_si128, _mm256_cvtph_ps};
        let wide: __m256 = match hardware {
            // SAFETY: eight values; the instruction is there. (In functions that were not compiled
            // for it, it is a call.)
            true => unsafe { _mm256_cvtph_ps(_mm_loadu_si128(values.as_ptr().cast())) },
            false => eight_to_f32_by_hand(values),
        };
        // SAFETY: eight f32 either way.
        unsafe { std::mem::transmute::<__m256, [f32; 8]>(wide) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = hardware;
        values.map(|value| Element::to_f64(value) as f32)
    }
}

#[cfg(target_arch = "x86_64")]
#[cold]
#[inline(never)]
fn eight_to_f32_by_hand(values: &[f16; 8]) -> std::arch::x86_64::__m256 {
    let wide = values.map(|value| Element::to_f64(value) as f32);
    // SAFETY: eight f32 either way.
    unsafe { std::mem::transmute::<[f32; 8], std::arch::x86_64::__m256>(wide) }
}

/// As [`eight_to_f32`], to nearest even.
#[inline(always)]
fn eight_to_f16(values: &[f32; 8], hardware: bool) -> [f16; 8] {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            __m128i, _MM_FROUND_TO_NEAREST_INT, _mm256_cvtps_ph, _mm256_loadu_ps,
        };
        let narrow: __m128i = match hardware {
            // SAFETY: as in `eight_to_f32`.
            true => unsafe {
                _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(values.as_ptr()))
            },
            false => eight_to_f16_by_hand(values),
        };
        // SAFETY: eight f16 either way, which any bits are.
        unsafe { std::mem::transmute::<__m128i, [f16; 8]>(narrow) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = hardware;
        values.map(|value| Element::from_f64(value.into()))
    }
}

#[cfg(target_arch = "x86_64")]
#[cold]
#[inline(never)]
fn eight_to_f16_by_hand(values: &[f32; 8]) -> std::arch::x86_64::__m128i {
    let narrow = values.map(|value| <f16 as Element>::from_f64(value.into()));
    // SAFETY: eight f16 either way.
    unsafe { std::mem::transmute::<[f16; 8], std::arch::x86_64::__m128i>(narrow) }
}

/// What adds chunks up. The ways agree to the bit.
pub trait Adder: Copy {
    /// `sums[0] += a` and `sums[1] += a * b`.
    fn add<R: Summable, const N: usize>(self, sums: &mut [[R; N]; 2], a: &[R; N], b: &[R; N]);
}

/// Adds up by plain loops.
#[derive(Debug, Clone, Copy)]
pub struct PlainAdder;

impl Adder for PlainAdder {
    #[inline(always)]
    fn add<R: Summable, const N: usize>(
        self,
        [sums, products]: &mut [[R; N]; 2],
        a: &[R; N],
        b: &[R; N],
    ) {
        for index in 0..N {
            sums[index] = sums[index] + a[index];
            products[index] = products[index] + a[index] * b[index];
        }
    }
}

/// Adds up in registers. In plain loops over arrays the compiler takes those apart, and adds one by
/// one.
#[cfg(target_arch = "x86_64")]
impl Adder for Avx2 {
    #[inline(always)]
    fn add<R: Summable, const N: usize>(self, sums: &mut [[R; N]; 2], a: &[R; N], b: &[R; N]) {
        let whole = N / R::WIDTH * R::WIDTH;
        for at in (0..whole).step_by(R::WIDTH) {
            R::add_vector(self, sums, a, b, at);
        }
        for index in whole..N {
            sums[0][index] = sums[0][index] + a[index];
            sums[1][index] = sums[1][index] + a[index] * b[index];
        }
    }
}

/// What an [`Adder`] adds up.
pub trait Summable: Copy + Add<Output = Self> + Mul<Output = Self> {
    /// Values of a vector.
    #[cfg(target_arch = "x86_64")]
    const WIDTH: usize;

    /// [`Adder::add`] for the vector from `at` on.
    #[cfg(target_arch = "x86_64")]
    fn add_vector<const N: usize>(
        isa: Avx2,
        sums: &mut [[Self; N]; 2],
        a: &[Self; N],
        b: &[Self; N],
        at: usize,
    );
}

macro_rules! summable {
    ($real:ty, $load:ident, $store:ident, $add:ident, $multiply:ident) => {
        impl Summable for $real {
            #[cfg(target_arch = "x86_64")]
            const WIDTH: usize = 32 / size_of::<$real>();

            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            fn add_vector<const N: usize>(
                _isa: Avx2,
                [sums, products]: &mut [[$real; N]; 2],
                a: &[$real; N],
                b: &[$real; N],
                at: usize,
            ) {
                use std::arch::x86_64::{$add, $load, $multiply, $store};
                assert!(at + Self::WIDTH <= N, "a vector inside the chunk");
                // SAFETY: the vector lies inside all four arrays; `_isa` is proof of the instructions.
                unsafe {
                    let (a, b) = ($load(a.as_ptr().add(at)), $load(b.as_ptr().add(at)));
                    let (sums, products) =
                        (sums.as_mut_ptr().add(at), products.as_mut_ptr().add(at));
                    $store(sums, $add($load(sums), a));
                    $store(products, $add($load(products), $multiply(a, b)));
                }
            }
        }
    };
}
summable!(f32, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps, _mm256_mul_ps);
summable!(f64, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_add_pd, _mm256_mul_pd);

/// Evaluates an expression with the [`Adder`] for the processor at hand.
macro_rules! with_adder {
    (|$adder:ident| $body:expr) => {{
        #[cfg(target_arch = "x86_64")]
        let result = match $crate::cpu::simd::Avx2::try_new() {
            Some($adder) => $body,
            None => {
                let $adder = $crate::cpu::simd::PlainAdder;
                $body
            }
        };
        #[cfg(not(target_arch = "x86_64"))]
        let result = {
            let $adder = $crate::cpu::simd::PlainAdder;
            $body
        };
        result
    }};
}
pub(super) use with_adder;

/// Values before the first that lies at the head of a cache line.
#[inline(always)]
pub fn to_line<E>(values: &[E]) -> usize {
    values.as_ptr().align_offset(LINE).min(values.len())
}

/// Whoever has it may store past the cache.
#[derive(Debug, Clone, Copy)]
pub struct PastCache {
    _proof: Proof,
}

#[cfg(target_arch = "x86_64")]
type Proof = Avx2;
#[cfg(not(target_arch = "x86_64"))]
type Proof = std::convert::Infallible;

impl PastCache {
    /// With AVX2: narrower stores would hold the arithmetic to their width.
    #[inline(always)]
    pub fn try_new() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        return Avx2::try_new().map(|_proof| PastCache { _proof });
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// Chunks to be stored past the cache where together they are whole lines, else into it: a line
    /// written in part this way would be worse off than by ordinary stores.
    #[inline(always)]
    pub fn lines<E: Convert, const N: usize>(
        self,
        chunks: &mut [[E; N]],
    ) -> OutputChunks<'_, E, N> {
        let vectors = size_of::<[E; N]>().is_multiple_of(VECTOR);
        let whole =
            chunks.as_ptr().addr().is_multiple_of(LINE) && size_of_val(chunks).is_multiple_of(LINE);
        match vectors && whole {
            true => OutputChunks::PastCache(Lines { chunks, _past_cache: self }),
            false => OutputChunks::Cached(chunks),
        }
    }
}

/// Bytes of a streaming store.
const VECTOR: usize = 32;

/// Chunks, in order whole cache lines, which are not read before they are written.
pub struct Lines<'a, E, const N: usize> {
    /// At the head of a line, and multiples of [`VECTOR`].
    chunks: &'a mut [[E; N]],
    _past_cache: PastCache,
}

impl<E: Convert, const N: usize> Lines<'_, E, N> {
    /// Writes a chunk.
    #[inline(always)]
    pub fn store(&mut self, index: usize, values: &[E; N]) {
        let to = &mut self.chunks[index];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{__m256i, _mm256_loadu_si256, _mm256_stream_si256};
            let (from, to) = (values.as_ptr().cast::<__m256i>(), to.as_mut_ptr().cast::<__m256i>());
            for part in 0..size_of::<[E; N]>() / VECTOR {
                // SAFETY: both are arrays of so many vectors, of f32, f64, f16 or bf16 (nothing else is
                // Convert), so without padding; `chunks` makes `to` aligned; `_past_cache` is proof of
                // the instructions.
                unsafe { _mm256_stream_si256(to.add(part), _mm256_loadu_si256(from.add(part))) };
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            *to = *values;
        }
    }
}

/// `R` rows of equal length, read a chunk of columns at a time with one check for all rows.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a, T, const R: usize> {
    /// At least `R * stride` of them.
    values: &'a [T],
    stride: usize,
    /// `first + width <= stride`.
    first: usize,
    width: usize,
}

impl<'a, T: Copy, const R: usize> Table<'a, T, R> {
    /// Cuts `values` into rows.
    pub fn new(values: &'a [T]) -> Self {
        let stride = values.len() / R;
        Table { values, stride, first: 0, width: stride }
    }

    /// How many columns it has.
    #[inline(always)]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Some of its columns.
    #[inline(always)]
    pub fn columns(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.width, "columns of the table");
        Table { first: self.first + range.start, width: range.len(), ..self }
    }

    /// The first `len` columns of every row.
    #[inline(always)]
    pub fn rows(self, len: usize) -> [&'a [T]; R] {
        let mut rows = [&[][..]; R];
        for (index, row) in rows.iter_mut().enumerate() {
            *row = &self.values[index * self.stride + self.first..][..len.min(self.width)];
        }
        rows
    }

    /// The columns `at..at + N` of every row.
    #[inline(always)]
    pub fn chunk<const N: usize>(self, at: usize) -> [&'a [T; N]; R] {
        assert!(at <= self.width && N <= self.width - at, "columns of the table");
        std::array::from_fn(|row| {
            // SAFETY: the last column is before `first + width`, so inside the row; all rows are
            // inside `values`.
            unsafe { &*self.values.as_ptr().add(row * self.stride + self.first + at).cast() }
        })
    }
}

/// The columns of a [`Table`] over and over again.
#[derive(Debug, Clone, Copy)]
pub struct Ring<'a, T, const R: usize> {
    table: Table<'a, T, R>,
    /// After so many columns it begins anew; the table goes on for [`MAX_CHUNK`] more.
    period: usize,
    /// Less than the period.
    at: usize,
}

impl<'a, T: Copy, const R: usize> Ring<'a, T, R> {
    pub fn new(table: Table<'a, T, R>, period: usize) -> Self {
        assert!(0 < period && period + MAX_CHUNK <= table.width, "a table longer than its period");
        Ring { table, period, at: 0 }
    }

    /// The next `N` columns of every row.
    #[inline(always)]
    pub fn next<const N: usize>(&mut self) -> [&'a [T; N]; R] {
        const { assert!(N <= MAX_CHUNK) };
        let (table, at) = (self.table, self.at);
        self.at += N;
        while self.at >= self.period {
            self.at -= self.period;
        }
        std::array::from_fn(|row| {
            // SAFETY: before `period + MAX_CHUNK`, so inside the row; all rows are inside `values`.
            unsafe { &*table.values.as_ptr().add(row * table.stride + table.first + at).cast() }
        })
    }
}

/// Asks for the line of `values[index]` to be brought into the cache, if there is such a value.
#[inline(always)]
pub fn prefetch_line<E>(values: &[E], index: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(value) = values.get(index) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the address is that of a value; SSE is in the x86-64 baseline.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, index);
}

/// Makes streaming stores of this thread visible before whatever follows.
#[inline]
pub fn finish_streaming() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is in the x86-64 baseline; a fence touches no memory.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}
