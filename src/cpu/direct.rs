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
    /// Empty without `ADD`.
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
        if ADD {
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
