//! What needs `unsafe`: run-time dispatch to the instruction set at hand, conversions of f16, sums in
//! registers, stores that go past the cache, and prefetching.
//!
//! Inner loops are plain Rust, written once; [`vectorized!`] compiles them for AVX-512, AVX2 and the
//! baseline (on aarch64 that has NEON), and picks one at run time. Whatever they call must be
//! `#[inline(always)]`, or it stays compiled for the baseline. A multiplication is fused with an
//! addition only by `mul_add`, which rounds once whether there is an instruction for it or not, so that
//! every instruction set arrives at the same bits.

#![allow(unsafe_code)]

use super::convert::Convert;
use crate::element::Element;
use half::f16;
use std::ops::{Add, Mul};

/// Defines a function whose body is compiled for every instruction set and dispatched at run time.
/// With `|isa|` before it the body is told for which ([`Isa`]).
macro_rules! vectorized {
    (
        |$isa:ident|
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
            impl<$($lifetime,)* $element: $crate::element::Element> $crate::cpu::simd::Vectorized
                for Call<$($lifetime,)* $element>
            {
                type Output = $crate::cpu::simd::result!($($result)?);

                #[inline(always)]
                fn call(self, $isa: impl $crate::cpu::simd::Isa) -> Self::Output {
                    let Call { $($argument,)* marker: _ } = self;
                    $body
                }
            }
            let call = Call::<$($lifetime,)* $element> {
                $($argument,)*
                marker: ::std::marker::PhantomData,
            };
            $crate::cpu::simd::dispatch(call)
        }
    };
    (
        |$isa:ident|
        $(#[$attribute:meta])*
        $vis:vis fn $name:ident<$($lifetime:lifetime),+>(
            $($argument:ident: $type:ty),* $(,)?
        ) $body:block
    ) => {
        $(#[$attribute])*
        #[inline(never)]
        $vis fn $name<$($lifetime),+>($($argument: $type),*) {
            struct Call<$($lifetime),+> {
                $($argument: $type,)*
            }
            impl<$($lifetime),+> $crate::cpu::simd::Vectorized for Call<$($lifetime),+> {
                type Output = ();

                #[inline(always)]
                fn call(self, $isa: impl $crate::cpu::simd::Isa) {
                    let Call { $($argument),* } = self;
                    $body
                }
            }
            $crate::cpu::simd::dispatch(Call { $($argument),* })
        }
    };
    ($(#[$attribute:meta])* $vis:vis fn $($function:tt)*) => {
        $crate::cpu::simd::vectorized!(|_isa| $(#[$attribute])* $vis fn $($function)*);
    };
}
pub(super) use vectorized;

/// What [`vectorized!`] makes of a function.
pub trait Vectorized {
    type Output;

    /// The function's body, compiled for an instruction set.
    fn call(self, isa: impl Isa) -> Self::Output;
}

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
    pub struct Avx512 {
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

/// A [`Vectorized`] call for an instruction set.
#[cfg(target_arch = "x86_64")]
struct CallFor<F, I>(F, I);

#[cfg(target_arch = "x86_64")]
impl<F: Vectorized, I: Isa> pulp::NullaryFnOnce for CallFor<F, I> {
    type Output = F::Output;

    #[inline(always)]
    fn call(self) -> F::Output {
        self.0.call(self.1)
    }
}

/// Calls `call` as compiled for the best instruction set at hand.
#[inline]
pub fn dispatch<F: Vectorized>(call: F) -> F::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(isa) = Avx512::try_new() {
            return isa.vectorize(CallFor(call, isa));
        }
        if let Some(isa) = Avx2::try_new() {
            return isa.vectorize(CallFor(call, isa));
        }
    }
    call.call(Baseline)
}

/// What `call` gives on every instruction set at hand, the baseline's first.
#[cfg(test)]
pub fn on_every_isa<F: Vectorized + Copy>(call: F) -> Vec<F::Output> {
    let mut results = vec![call.call(Baseline)];
    #[cfg(target_arch = "x86_64")]
    {
        results.extend(Avx2::try_new().map(|isa| isa.vectorize(CallFor(call, isa))));
        results.extend(Avx512::try_new().map(|isa| isa.vectorize(CallFor(call, isa))));
    }
    results
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

/// An instruction set, in code compiled for it. All agree to the bit.
pub trait Isa: Copy {
    /// `sums[0] += a` and `sums[1] += a * b`, in registers: in plain loops over arrays the compiler
    /// takes those apart, and adds one by one.
    fn add<R: Summable, const N: usize>(self, sums: &mut [[R; N]; 2], a: &[R; N], b: &[R; N]);

    /// Exact.
    fn f16_to_f32<const N: usize>(self, values: &[f16; N]) -> [f32; N];

    /// To nearest even.
    fn f32_to_f16<const N: usize>(self, values: &[f32; N]) -> [f16; N];

    /// The right to store past the cache, if there is a way.
    fn past_cache(self) -> Option<PastCache>;
}

/// No more than the compiler's target has.
#[derive(Debug, Clone, Copy)]
pub struct Baseline;

impl Isa for Baseline {
    #[inline(always)]
    fn add<R: Summable, const N: usize>(self, sums: &mut [[R; N]; 2], a: &[R; N], b: &[R; N]) {
        add_one_by_one(sums, a, b, 0);
    }

    #[inline(always)]
    fn f16_to_f32<const N: usize>(self, values: &[f16; N]) -> [f32; N] {
        values.map(|value| Element::to_f64(value) as f32)
    }

    #[inline(always)]
    fn f32_to_f16<const N: usize>(self, values: &[f32; N]) -> [f16; N] {
        values.map(|value| Element::from_f64(value.into()))
    }

    /// None: what baseline x86-64 has would hold the arithmetic to its width.
    #[inline(always)]
    fn past_cache(self) -> Option<PastCache> {
        None
    }
}

#[inline(always)]
fn add_one_by_one<R: Summable, const N: usize>(
    [sums, products]: &mut [[R; N]; 2],
    a: &[R; N],
    b: &[R; N],
    from: usize,
) {
    for index in from..N {
        sums[index] = sums[index] + a[index];
        products[index] = products[index] + a[index] * b[index];
    }
}

#[cfg(target_arch = "x86_64")]
impl Isa for Avx2 {
    #[inline(always)]
    fn add<R: Summable, const N: usize>(self, sums: &mut [[R; N]; 2], a: &[R; N], b: &[R; N]) {
        let (width, mut at) = (32 / size_of::<R>(), 0);
        while at + width <= N {
            R::add_256_bits(self, sums, a, b, at);
            at += width;
        }
        add_one_by_one(sums, a, b, at);
    }

    #[inline(always)]
    fn f16_to_f32<const N: usize>(self, values: &[f16; N]) -> [f32; N] {
        let mut wide = [0.0; N];
        f16_to_f32_from(self, values, &mut wide, 0);
        wide
    }

    #[inline(always)]
    fn f32_to_f16<const N: usize>(self, values: &[f32; N]) -> [f16; N] {
        let mut narrow = [f16::ZERO; N];
        f32_to_f16_from(self, values, &mut narrow, 0);
        narrow
    }

    #[inline(always)]
    fn past_cache(self) -> Option<PastCache> {
        Some(PastCache { _proof: self })
    }
}

#[cfg(target_arch = "x86_64")]
impl Isa for Avx512 {
    #[inline(always)]
    fn add<R: Summable, const N: usize>(self, sums: &mut [[R; N]; 2], a: &[R; N], b: &[R; N]) {
        let (width, mut at) = (64 / size_of::<R>(), 0);
        while at + width <= N {
            R::add_512_bits(self, sums, a, b, at);
            at += width;
        }
        add_one_by_one(sums, a, b, at);
    }

    #[inline(always)]
    fn f16_to_f32<const N: usize>(self, values: &[f16; N]) -> [f32; N] {
        let (mut wide, mut at) = ([0.0; N], 0);
        while at + 16 <= N {
            f16_to_f32_512_bits(self, values, &mut wide, at);
            at += 16;
        }
        f16_to_f32_from(self.avx2(), values, &mut wide, at);
        wide
    }

    #[inline(always)]
    fn f32_to_f16<const N: usize>(self, values: &[f32; N]) -> [f16; N] {
        let (mut narrow, mut at) = ([f16::ZERO; N], 0);
        while at + 16 <= N {
            f32_to_f16_512_bits(self, values, &mut narrow, at);
            at += 16;
        }
        f32_to_f16_from(self.avx2(), values, &mut narrow, at);
        narrow
    }

    #[inline(always)]
    fn past_cache(self) -> Option<PastCache> {
        self.avx2().past_cache()
    }
}

#[cfg(target_arch = "x86_64")]
impl Avx512 {
    #[inline(always)]
    fn avx2(self) -> Avx2 {
        // SAFETY: Avx512's list begins with all of Avx2's.
        unsafe { Avx2::new_unchecked() }
    }
}

/// Functions `wide[at..] = values[at..]` and `narrow[at..] = values[at..]`, one vector of f32 long.
macro_rules! convert_vector {
    (
        $isa:ty, $width:literal, $to_f32:ident, $to_f16:ident,
        $load:ident, $store:ident, $load_wide:ident, $store_wide:ident, $widen:ident, $narrow:ident
    ) => {
        #[cfg(target_arch = "x86_64")]
        #[inline(always)]
        fn $to_f32<const N: usize>(_isa: $isa, values: &[f16; N], wide: &mut [f32; N], at: usize) {
            use std::arch::x86_64::{$load, $store_wide, $widen};
            assert!(at + $width <= N, "a vector inside the chunk");
            // SAFETY: the vector lies inside both arrays; `_isa` is proof of the instructions.
            unsafe {
                let values = $load(values.as_ptr().add(at).cast());
                $store_wide(wide.as_mut_ptr().add(at), $widen(values));
            }
        }

        #[cfg(target_arch = "x86_64")]
        #[inline(always)]
        fn $to_f16<const N: usize>(
            _isa: $isa,
            values: &[f32; N],
            narrow: &mut [f16; N],
            at: usize,
        ) {
            use std::arch::x86_64::{_MM_FROUND_TO_NEAREST_INT, $load_wide, $narrow, $store};
            assert!(at + $width <= N, "a vector inside the chunk");
            // SAFETY: the vector lies inside both arrays; `_isa` is proof of the instructions; any bits
            // are an f16.
            unsafe {
                let values = $load_wide(values.as_ptr().add(at));
                let values = $narrow::<_MM_FROUND_TO_NEAREST_INT>(values);
                $store(narrow.as_mut_ptr().add(at).cast(), values);
            }
        }
    };
}
convert_vector!(
    Avx2,
    8,
    f16_to_f32_256_bits,
    f32_to_f16_256_bits,
    _mm_loadu_si128,
    _mm_storeu_si128,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_cvtph_ps,
    _mm256_cvtps_ph
);
convert_vector!(
    Avx512,
    16,
    f16_to_f32_512_bits,
    f32_to_f16_512_bits,
    _mm256_loadu_si256,
    _mm256_storeu_si256,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_cvtph_ps,
    _mm512_cvtps_ph
);

/// The values from `at` on, the last ones by way of a whole vector.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn f16_to_f32_from<const N: usize>(isa: Avx2, values: &[f16; N], wide: &mut [f32; N], at: usize) {
    let mut at = at;
    while at + 8 <= N {
        f16_to_f32_256_bits(isa, values, wide, at);
        at += 8;
    }
    if at < N {
        let (mut padded, mut padded_wide) = ([f16::ZERO; 8], [0.0; 8]);
        padded[..N - at].copy_from_slice(&values[at..]);
        f16_to_f32_256_bits(isa, &padded, &mut padded_wide, 0);
        wide[at..].copy_from_slice(&padded_wide[..N - at]);
    }
}

/// The values from `at` on, the last ones by way of a whole vector.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn f32_to_f16_from<const N: usize>(isa: Avx2, values: &[f32; N], narrow: &mut [f16; N], at: usize) {
    let mut at = at;
    while at + 8 <= N {
        f32_to_f16_256_bits(isa, values, narrow, at);
        at += 8;
    }
    if at < N {
        let (mut padded, mut padded_narrow) = ([0.0; 8], [f16::ZERO; 8]);
        padded[..N - at].copy_from_slice(&values[at..]);
        f32_to_f16_256_bits(isa, &padded, &mut padded_narrow, 0);
        narrow[at..].copy_from_slice(&padded_narrow[..N - at]);
    }
}

/// What an [`Isa`] adds up.
pub trait Summable: Copy + Add<Output = Self> + Mul<Output = Self> {
    /// [`Isa::add`] for the vector from `at` on.
    #[cfg(target_arch = "x86_64")]
    fn add_256_bits<const N: usize>(
        isa: Avx2,
        sums: &mut [[Self; N]; 2],
        a: &[Self; N],
        b: &[Self; N],
        at: usize,
    );

    /// [`Isa::add`] for the vector from `at` on.
    #[cfg(target_arch = "x86_64")]
    fn add_512_bits<const N: usize>(
        isa: Avx512,
        sums: &mut [[Self; N]; 2],
        a: &[Self; N],
        b: &[Self; N],
        at: usize,
    );
}

macro_rules! add_vector {
    ($name:ident, $isa:ty, $real:ty, $width:literal, $load:ident, $store:ident, $add:ident, $multiply:ident) => {
        #[cfg(target_arch = "x86_64")]
        #[inline(always)]
        fn $name<const N: usize>(
            _isa: $isa,
            [sums, products]: &mut [[$real; N]; 2],
            a: &[$real; N],
            b: &[$real; N],
            at: usize,
        ) {
            use std::arch::x86_64::{$add, $load, $multiply, $store};
            assert!(at + $width <= N, "a vector inside the chunk");
            // SAFETY: the vector lies inside all four arrays; `_isa` is proof of the instructions.
            unsafe {
                let (a, b) = ($load(a.as_ptr().add(at)), $load(b.as_ptr().add(at)));
                let (sums, products) = (sums.as_mut_ptr().add(at), products.as_mut_ptr().add(at));
                $store(sums, $add($load(sums), a));
                $store(products, $add($load(products), $multiply(a, b)));
            }
        }
    };
}

#[rustfmt::skip]
impl Summable for f32 {
    add_vector!(add_256_bits, Avx2, f32, 8, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps, _mm256_mul_ps);
    add_vector!(add_512_bits, Avx512, f32, 16, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps, _mm512_mul_ps);
}

#[rustfmt::skip]
impl Summable for f64 {
    add_vector!(add_256_bits, Avx2, f64, 4, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_add_pd, _mm256_mul_pd);
    add_vector!(add_512_bits, Avx512, f64, 8, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_add_pd, _mm512_mul_pd);
}

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
    /// Chunks to be stored past the cache where together they are whole lines, else into it: a line
    /// written in part this way would be worse off than by ordinary stores.
    #[inline(always)]
    pub fn lines<E: Convert, const N: usize>(self, chunks: &mut [[E; N]]) -> Lines<'_, E, N> {
        let vectors = size_of::<[E; N]>().is_multiple_of(VECTOR);
        let whole =
            chunks.as_ptr().addr().is_multiple_of(LINE) && size_of_val(chunks).is_multiple_of(LINE);
        match vectors && whole {
            true => Lines::PastCache(WholeLines { chunks, _past_cache: self }),
            false => Lines::Cached(chunks),
        }
    }
}

/// Bytes of a streaming store.
const VECTOR: usize = 32;

/// Chunks to be written: into the cache, or past it.
pub enum Lines<'a, E, const N: usize> {
    Cached(&'a mut [[E; N]]),
    PastCache(WholeLines<'a, E, N>),
}

impl<E: Convert, const N: usize> Lines<'_, E, N> {
    /// Writes a chunk.
    #[inline(always)]
    pub fn store(&mut self, index: usize, values: &[E; N]) {
        match self {
            Lines::Cached(chunks) => chunks[index] = *values,
            Lines::PastCache(lines) => lines.store(index, values),
        }
    }
}

/// Chunks, in order whole cache lines, which are not read before they are written.
pub struct WholeLines<'a, E, const N: usize> {
    /// At the head of a line, and multiples of [`VECTOR`].
    chunks: &'a mut [[E; N]],
    _past_cache: PastCache,
}

impl<E: Convert, const N: usize> WholeLines<'_, E, N> {
    #[inline(always)]
    fn store(&mut self, index: usize, values: &[E; N]) {
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

/// Asks for the lines to be brought into the cache where `values[at..at + N]` lie, or would lie.
#[inline(always)]
pub fn prefetch<E, const N: usize>(values: &[E], at: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let mut line = 0;
        while line < N {
            let address = values.as_ptr().wrapping_add(at).wrapping_add(line);
            // SAFETY: a hint, which reads nothing and faults nowhere; SSE is in the x86-64 baseline.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
            line += LINE / size_of::<E>();
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, at);
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
