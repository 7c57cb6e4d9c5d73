//! Run-time dispatch to the instruction set at hand, and stores that go past the cache.
//!
//! Inner loops are plain Rust, written once; [`vectorized!`] compiles them for AVX-512, AVX2, the
//! baseline, and NEON, and picks one at run time. Whatever they call must be `#[inline(always)]`,
//! or it stays compiled for the baseline. No multiplication is fused with an addition, so that
//! every instruction set arrives at the same bits.

#![allow(unsafe_code)]

use crate::element::Element;

/// Defines a function whose body is compiled for every instruction set and dispatched at run time.
macro_rules! vectorized {
    (
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
            struct Dispatch<T>(T);
            impl<T: ::pulp::NullaryFnOnce> ::pulp::WithSimd for Dispatch<T> {
                type Output = T::Output;

                #[inline(always)]
                fn with_simd<S: ::pulp::Simd>(self, _: S) -> Self::Output {
                    self.0.call()
                }
            }
            ::pulp::Arch::new().dispatch(Dispatch(Call::<$($lifetime,)* $element> {
                $($argument,)*
                marker: ::std::marker::PhantomData,
            }))
        }
    };
}
pub(super) use vectorized;

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

/// `dst = src`, rounded once.
#[inline(always)]
pub fn store<E: Element>(src: &[f64], dst: &mut [E]) {
    for (dst, &src) in dst.iter_mut().zip(src) {
        *dst = E::from_f64(src);
    }
}

/// Where a pass writes: straight to its output, or through a staging block and past the cache. The
/// latter is for outputs too large to stay there: an ordinary store would read each line before it
/// overwrites it.
pub struct Output<'b> {
    staging: Option<&'b mut [f64]>,
}

impl<'b> Output<'b> {
    /// Streams through `staging` if `streaming`. What is streamed is seen by other threads after
    /// [`finish_streaming`].
    #[inline(always)]
    pub fn new(streaming: bool, staging: &'b mut [f64]) -> Self {
        Output { staging: streaming.then_some(staging) }
    }

    /// Where to compute what belongs to `dst`, whose length is at most the staging block's.
    #[inline(always)]
    pub fn target<'t, E: Element>(&'t mut self, dst: &'t mut [E]) -> &'t mut [E] {
        match &mut self.staging {
            Some(staging) => &mut elements(staging)[..dst.len()],
            None => dst,
        }
    }

    /// Brings to `dst` what was computed for it.
    #[inline(always)]
    pub fn finish<E: Element>(&mut self, dst: &mut [E]) {
        if let Some(staging) = &mut self.staging {
            copy_streaming(&elements(staging)[..dst.len()], dst);
        }
    }

    /// `dst = src`, rounded once.
    #[inline(always)]
    pub fn store<E: Element>(&mut self, src: &[f64], dst: &mut [E]) {
        store(src, self.target(dst));
        self.finish(dst);
    }
}

/// A block's memory as elements.
#[inline(always)]
fn elements<E: Element>(block: &mut [f64]) -> &mut [E] {
    // SAFETY: elements are f32, f64, f16 or bf16 (the trait is sealed), of which every bit pattern
    // is valid, and none is aligned beyond f64.
    unsafe { block.align_to_mut::<E>().1 }
}

/// `dst = src` by stores that do not bring whole lines of `dst` into the cache.
fn copy_streaming<E: Element>(src: &[E], dst: &mut [E]) {
    let head = dst.as_ptr().align_offset(LINE).min(dst.len());
    let body = (dst.len() - head) / (LINE / size_of::<E>()) * (LINE / size_of::<E>());
    dst[..head].copy_from_slice(&src[..head]);
    let (from, to) = (&src[head..head + body], &mut dst[head..head + body]);
    // SAFETY: both are `body` elements, a whole number of lines; `to` starts at a line.
    unsafe { stream_lines(from.as_ptr().cast(), to.as_mut_ptr().cast(), size_of_val(from) / LINE) };
    dst[head + body..].copy_from_slice(&src[head + body..]);
}

/// # Safety
/// `src` and `dst` are valid for reading and writing `lines` lines; `dst` is aligned to one.
#[cfg(target_arch = "x86_64")]
unsafe fn stream_lines(src: *const u8, dst: *mut u8, lines: usize) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the caller's promise, and the feature is there.
        return unsafe { stream_lines_avx512(src, dst, lines) };
    }
    let (src, dst) = (src.cast::<__m128i>(), dst.cast::<__m128i>());
    for part in 0..lines * (LINE / 16) {
        // SAFETY: the caller's promise; SSE2 is in the x86-64 baseline.
        unsafe { _mm_stream_si128(dst.add(part), _mm_loadu_si128(src.add(part))) };
    }
}

/// # Safety
/// As [`stream_lines`]; the processor has AVX-512F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn stream_lines_avx512(src: *const u8, dst: *mut u8, lines: usize) {
    use std::arch::x86_64::{__m512i, _mm512_loadu_si512, _mm512_stream_si512};
    let (src, dst) = (src.cast::<__m512i>(), dst.cast::<__m512i>());
    for line in 0..lines {
        // SAFETY: the caller's promise.
        unsafe { _mm512_stream_si512(dst.add(line), _mm512_loadu_si512(src.add(line))) };
    }
}

/// # Safety
/// `src` and `dst` are valid for reading and writing `lines` lines.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn stream_lines(src: *const u8, dst: *mut u8, lines: usize) {
    // SAFETY: the caller's promise; a shared and an exclusive borrow cannot overlap.
    unsafe { std::ptr::copy_nonoverlapping(src, dst, lines * LINE) };
}

/// Asks for `values` to be brought into the cache.
#[inline(always)]
pub fn prefetch<E>(values: &[E]) {
    for index in (0..values.len()).step_by(LINE / size_of::<E>()) {
        prefetch_line(values, index);
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
