//! Loops from tensor to tensor, without a block between: for identity and ReLU, which is what most
//! layers are. Each body loads a chunk, computes it in f64, and stores or adds it.

use super::block::{deviation, gradient, normalize, total};
use super::channel::{Coefficients, GradientCoefficients};
use super::run::{Body, Output, PARTIAL, first_partial, read, read_bits, write_bits};
use crate::config::{Activation, Epilogue};
use crate::element::Element;

/// An epilogue that has direct loops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Direct {
    pub relu: bool,
    pub add: bool,
}

impl Direct {
    /// Of a forward call.
    pub fn forward(epilogue: Epilogue) -> Option<Self> {
        match epilogue.activation {
            Activation::Identity => Some(Direct { relu: false, add: epilogue.residual }),
            Activation::Relu => Some(Direct { relu: true, add: epilogue.residual }),
            _ => None,
        }
    }

    /// Of a backward call: what ReLU cut off after a residual was added is read from the mask.
    pub fn backward(epilogue: Epilogue, mask: bool) -> Option<Self> {
        Self::forward(epilogue).filter(|direct| mask || !(direct.relu && direct.add))
    }
}

/// Evaluates an expression with a [`Direct`]'s fields as constants.
macro_rules! with_direct {
    ($direct:expr, |$relu:ident, $add:ident| $body:expr) => {
        match $direct {
            $crate::cpu::direct::Direct { relu: false, add: false } => {
                const $relu: bool = false;
                const $add: bool = false;
                $body
            }
            $crate::cpu::direct::Direct { relu: true, add: false } => {
                const $relu: bool = true;
                const $add: bool = false;
                $body
            }
            $crate::cpu::direct::Direct { relu: false, add: true } => {
                const $relu: bool = false;
                const $add: bool = true;
                $body
            }
            $crate::cpu::direct::Direct { relu: true, add: true } => {
                const $relu: bool = true;
                const $add: bool = true;
                $body
            }
        }
    };
}
pub(super) use with_direct;

/// Coefficients of one value.
#[derive(Debug, Clone, Copy)]
pub struct ValueCoefficients {
    pub mean_hi: f64,
    pub mean_lo: f64,
    pub scale: f64,
    pub bias: f64,
    pub mean_g: f64,
    pub slope: f64,
}

impl ValueCoefficients {
    pub const NONE: Self = ValueCoefficients {
        mean_hi: 0.0,
        mean_lo: 0.0,
        scale: 0.0,
        bias: 0.0,
        mean_g: 0.0,
        slope: 0.0,
    };

    /// Those that forward needs.
    #[inline(always)]
    pub fn forward(c: &Coefficients) -> Self {
        Self::new(c, &GradientCoefficients::default())
    }

    #[inline(always)]
    pub fn new(c: &Coefficients, by: &GradientCoefficients) -> Self {
        ValueCoefficients {
            mean_hi: c.mean_hi,
            mean_lo: c.mean_lo,
            scale: c.scale,
            bias: c.bias,
            mean_g: by.mean_g,
            slope: by.slope,
        }
    }

    #[inline(always)]
    fn deviation<E: Element>(&self, x: E::Wide) -> f64 {
        deviation::<E>(E::extend(x), self.mean_hi, self.mean_lo)
    }

    #[inline(always)]
    fn normalize(&self, d: f64) -> f64 {
        normalize(d, self.scale, self.bias)
    }

    #[inline(always)]
    fn gradient(&self, g: f64, d: f64) -> f64 {
        gradient(g, d, self.scale, self.mean_g, self.slope)
    }
}

/// The coefficients of a run's values, from its start on.
pub trait RunCoefficients {
    type Chunk<const N: usize>: ChunkCoefficients;

    /// Those of the next `N` values.
    fn next<const N: usize>(&mut self) -> Self::Chunk<N>;
}

/// The coefficients of a chunk's values.
pub trait ChunkCoefficients: Copy {
    fn of(self, index: usize) -> ValueCoefficients;
}

/// The same for every value: a channel's.
impl RunCoefficients for ValueCoefficients {
    type Chunk<const N: usize> = Self;

    #[inline(always)]
    fn next<const N: usize>(&mut self) -> Self {
        *self
    }
}

impl ChunkCoefficients for ValueCoefficients {
    #[inline(always)]
    fn of(self, _index: usize) -> ValueCoefficients {
        self
    }
}

/// `y = act((x - mean) * scale + bias + residual)`; with a residual and ReLU, also the mask.
pub struct Forward<'a, E, C, const RELU: bool, const ADD: bool> {
    pub x: &'a [E],
    /// Empty without `ADD`.
    pub residual: &'a [E],
    pub y: Output<'a, E>,
    /// Empty where none is to be written.
    pub mask: &'a mut [u8],
    pub coefficients: C,
}

impl<E, C, const RELU: bool, const ADD: bool> Body for Forward<'_, E, C, RELU, ADD>
where
    E: Element,
    C: RunCoefficients,
{
    #[inline(always)]
    fn chunk<const N: usize>(&mut self, at: usize) {
        let coefficients = self.coefficients.next::<N>();
        let x = read::<E, N>(self.x, at);
        let residual = if ADD { read::<E, N>(self.residual, at) } else { [E::Wide::default(); N] };
        let mut y = [E::Wide::default(); N];
        let mut positive = 0;
        for index in 0..N {
            let c = coefficients.of(index);
            let mut z = c.normalize(c.deviation::<E>(x[index]));
            if ADD {
                z += E::extend(residual[index]);
            }
            // NaN passes.
            let cut = RELU && z <= 0.0;
            positive |= u32::from(!cut) << index;
            y[index] = E::reduce(if cut { 0.0 } else { z });
        }
        if RELU && ADD && !self.mask.is_empty() {
            write_bits::<N>(self.mask, at, positive);
        }
        self.y.write(at, &y);
    }
}

/// g, the gradient of z, and d = x - mean of one value.
#[inline(always)]
pub fn backward<E: Element, const RELU: bool, const ADD: bool>(
    x: E::Wide,
    dy: E::Wide,
    positive: bool,
    c: &ValueCoefficients,
) -> (f64, f64) {
    let d = c.deviation::<E>(x);
    let cut = RELU && if ADD { !positive } else { c.normalize(d) <= 0.0 };
    (if cut { 0.0 } else { E::extend(dy) }, d)
}

/// A run of what backward reads.
#[derive(Clone, Copy)]
pub struct BackwardRun<'a, E> {
    pub x: &'a [E],
    pub dy: &'a [E],
    /// Read with a residual and ReLU.
    pub mask: &'a [u8],
}

/// dx, and with `ADD` dresidual.
pub struct Gradient<'a, E, C, const RELU: bool, const ADD: bool> {
    pub inputs: BackwardRun<'a, E>,
    pub dx: Output<'a, E>,
    /// Empty where none is to be written.
    pub dresidual: Output<'a, E>,
    pub coefficients: C,
}

impl<E, C, const RELU: bool, const ADD: bool> Body for Gradient<'_, E, C, RELU, ADD>
where
    E: Element,
    C: RunCoefficients,
{
    #[inline(always)]
    fn chunk<const N: usize>(&mut self, at: usize) {
        let coefficients = self.coefficients.next::<N>();
        let (x, dy) = (read::<E, N>(self.inputs.x, at), read::<E, N>(self.inputs.dy, at));
        let positive = if RELU && ADD { read_bits::<N>(self.inputs.mask, at) } else { 0 };
        let (mut dx, mut dresidual) = ([E::Wide::default(); N], [E::Wide::default(); N]);
        for index in 0..N {
            let c = coefficients.of(index);
            let positive = positive >> index & 1 == 1;
            let (g, d) = backward::<E, RELU, ADD>(x[index], dy[index], positive, &c);
            dx[index] = E::reduce(c.gradient(g, d));
            dresidual[index] = E::reduce(g);
        }
        self.dx.write(at, &dx);
        if ADD && !self.dresidual.is_empty() {
            self.dresidual.write(at, &dresidual);
        }
    }
}

/// Sums of g and of g * d along runs of a channel, in parts.
pub struct GradientSums<'a, E, const RELU: bool, const ADD: bool> {
    pub inputs: BackwardRun<'a, E>,
    pub coefficients: ValueCoefficients,
    pub sums: PartialSums,
}

#[derive(Clone, Copy)]
pub struct PartialSums {
    g: [f64; PARTIAL],
    gd: [f64; PARTIAL],
}

impl PartialSums {
    pub const ZERO: Self = PartialSums { g: [0.0; PARTIAL], gd: [0.0; PARTIAL] };

    /// The two sums.
    #[inline(always)]
    pub fn totals(self) -> [f64; 2] {
        [total(self.g), total(self.gd)]
    }
}

impl<E: Element, const RELU: bool, const ADD: bool> Body for GradientSums<'_, E, RELU, ADD> {
    #[inline(always)]
    fn chunk<const N: usize>(&mut self, at: usize) {
        let (x, dy) = (read::<E, N>(self.inputs.x, at), read::<E, N>(self.inputs.dy, at));
        let positive = if RELU && ADD { read_bits::<N>(self.inputs.mask, at) } else { 0 };
        let partial = first_partial::<N>(at);
        for index in 0..N {
            let positive = positive >> index & 1 == 1;
            let (g, d) =
                backward::<E, RELU, ADD>(x[index], dy[index], positive, &self.coefficients);
            self.sums.g[partial + index] += g;
            self.sums.gd[partial + index] += g * d;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::run::{along, along_lines};
    use half::{bf16, f16};

    const VALUE: ValueCoefficients = ValueCoefficients {
        mean_hi: 0.125,
        mean_lo: 0.0,
        scale: 1.5,
        bias: -0.25,
        mean_g: 0.0625,
        slope: 0.375,
    };

    fn tensor<E: Element>(len: usize, seed: usize) -> Vec<E> {
        (0..len)
            .map(|i| E::from_f64(((i * 7919 + seed * 104_729) % 401) as f64 / 100.0 - 2.0))
            .collect()
    }

    /// y and mask, dx and dresidual of a run that begins `offset` values into its tensors.
    struct Run<E> {
        y: Vec<E>,
        mask: Vec<u8>,
        dx: Vec<E>,
        dresidual: Vec<E>,
    }

    impl<E: Element> Run<E> {
        fn new(offset: usize, len: usize, streaming: bool) -> Self {
            let end = offset + len;
            let (x, residual, dy) = (tensor(end, 1), tensor(end, 2), tensor(end, 3));
            let [mut y, mut dx, mut dresidual] = [(); 3].map(|()| tensor::<E>(end, 4));
            let mut mask = vec![0xaa; len.div_ceil(8)];
            let mut forward = Forward::<E, _, true, true> {
                x: &x[offset..],
                residual: &residual[offset..],
                y: Output::new(&mut y[offset..], streaming),
                mask: &mut mask,
                coefficients: VALUE,
            };
            match streaming {
                true => {
                    let head = forward.y.head();
                    along_lines::<E>(&mut forward, head, len);
                }
                false => along::<1>(&mut forward, len),
            }
            let mut gradient = Gradient::<E, _, true, true> {
                inputs: BackwardRun { x: &x[offset..], dy: &dy[offset..], mask: &mask },
                dx: Output::new(&mut dx[offset..], streaming),
                dresidual: Output::new(&mut dresidual[offset..], streaming),
                coefficients: VALUE,
            };
            match streaming {
                true => {
                    let head = gradient.dx.head();
                    along_lines::<E>(&mut gradient, head, len);
                }
                false => along::<1>(&mut gradient, len),
            }
            Run { y, mask, dx, dresidual }
        }
    }

    /// Whatever the alignment, lines past the cache and chunks give what single values give, and
    /// write nothing else.
    fn chunks_are_their_values<E: Element + PartialEq>() {
        for offset in 0..40 {
            for len in [0, 1, 7, 8, 31, 33, 64, 97, 200] {
                let single = Run::<E>::new(offset, len, false);
                let lines = Run::<E>::new(offset, len, true);
                crate::cpu::simd::finish_streaming();
                assert!(lines.y == single.y && lines.mask == single.mask, "{offset} {len}");
                assert!(lines.dx == single.dx, "{offset} {len}");
                assert!(lines.dresidual == single.dresidual, "{offset} {len}");
                assert!(lines.y[..offset] == tensor::<E>(offset + len, 4)[..offset]);
            }
        }
    }

    #[test]
    fn chunks_of_every_type_are_their_values() {
        chunks_are_their_values::<f32>();
        chunks_are_their_values::<f64>();
        chunks_are_their_values::<f16>();
        chunks_are_their_values::<bf16>();
    }
}
