//! Loops from tensor to tensor, without a block between: for identity and ReLU, which is what most
//! layers are. Each body loads a chunk, computes it in f64 or f32, and stores or adds it.

use super::block::{deviation, gradient, normalize};
use super::channel::{Coefficients, GradientCoefficients, unit};
use super::convert::Real;
use super::run::{Body, Input, Output, along_lines, bytes_of, read_bits, write_bits};
use super::simd::{Isa, keep_chunk};
use super::strips::Part;
use super::sums::Pairs;
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

    /// What a forward call's values are at least.
    #[inline(always)]
    pub fn floor<E: Element>(self) -> E::Wide {
        if self.relu { E::Wide::default() } else { E::from_single(f32::NEG_INFINITY) }
    }

    /// Of a backward call: what ReLU cut off after a residual was added is read from the mask.
    pub fn backward(epilogue: Epilogue, mask: bool) -> Option<Self> {
        Self::forward(epilogue).filter(|direct| mask || !(direct.relu && direct.add))
    }

    /// Of what writes gradients. Where the statistics are constants (`frozen`) there are direct loops
    /// only if ReLU cuts what x says: in f32, if forward did it in f32.
    pub fn gradient(epilogue: Epilogue, mask: bool, frozen: bool) -> Option<Self> {
        Self::backward(epilogue, mask).filter(|direct| !frozen || (direct.relu && !direct.add))
    }
}

/// Evaluates an expression for a forward call, with constants that say whether values have a
/// [floor](Direct::floor), and whether a residual is added.
macro_rules! with_forward {
    ($direct:expr, |$floor:ident, $add:ident| $body:expr) => {
        match $direct {
            $crate::cpu::direct::Direct { relu: false, add: false } => {
                const $floor: bool = false;
                const $add: bool = false;
                $body
            }
            $crate::cpu::direct::Direct { relu: true, add: false } => {
                const $floor: bool = true;
                const $add: bool = false;
                $body
            }
            $crate::cpu::direct::Direct { add: true, .. } => {
                const $floor: bool = true;
                const $add: bool = true;
                $body
            }
        }
    };
}
pub(super) use with_forward;

/// Evaluates an expression for a backward call, with constants that say whether ReLU cuts gradients,
/// and whether a mask says which.
macro_rules! with_backward {
    ($direct:expr, |$relu:ident, $mask:ident| $body:expr) => {
        match $direct {
            $crate::cpu::direct::Direct { relu: false, .. } => {
                const $relu: bool = false;
                const $mask: bool = false;
                $body
            }
            $crate::cpu::direct::Direct { relu: true, add: false } => {
                const $relu: bool = true;
                const $mask: bool = false;
                $body
            }
            $crate::cpu::direct::Direct { relu: true, add: true } => {
                const $relu: bool = true;
                const $mask: bool = true;
                $body
            }
        }
    };
}
pub(super) use with_backward;

/// [`with_backward`] for what writes gradients, with whether the statistics are constants.
macro_rules! with_gradient {
    ($direct:expr, $frozen:expr, |$relu:ident, $mask:ident, $constant:ident| $body:expr) => {
        if $frozen {
            const $relu: bool = true;
            const $mask: bool = false;
            const $constant: bool = true;
            $body
        } else {
            const $constant: bool = false;
            $crate::cpu::direct::with_backward!($direct, |$relu, $mask| $body)
        }
    };
}
pub(super) use with_gradient;

/// Coefficients in f64 and, where that is enough, in f32.
#[derive(Debug, Clone, Copy)]
pub struct Precisions<D, S> {
    pub double: D,
    pub single: Option<S>,
}

impl<D, S> Precisions<D, S> {
    /// Whether there are those that direct loops take: in f64 if `double`, else in what is enough for
    /// E.
    pub fn are_direct<E: Element>(&self, double: bool) -> bool {
        !E::SINGLE || double || self.single.is_some()
    }
}

/// Evaluates an expression with coefficients of f32 if `$single`, a constant, else with those of f64:
/// `None` where they are missing, which is for blocks to do.
macro_rules! with_precision {
    ($single:expr, $both:expr, |$coefficients:ident| $body:expr) => {
        match $both {
            $crate::cpu::direct::Precisions { single: Some($coefficients), .. } if $single => {
                Some($body)
            }
            $crate::cpu::direct::Precisions { double: $coefficients, .. } if !$single => {
                Some($body)
            }
            _ => None,
        }
    };
}
pub(super) use with_precision;

/// Coefficients of one value.
#[derive(Debug, Clone, Copy)]
pub struct ValueCoefficients<R> {
    pub mean_hi: R,
    pub mean_lo: R,
    pub scale: R,
    pub bias: R,
    /// In f32 deviations are multiplied by this power of two: their products stay in range.
    pub unit: R,
    pub mean_g: R,
    pub slope: R,
}

/// A channel's coefficients.
pub type ChannelCoefficients = Precisions<ValueCoefficients<f64>, ValueCoefficients<f32>>;

impl ChannelCoefficients {
    pub const NONE: Self = Precisions { double: ValueCoefficients::NONE, single: None };

    /// For [`E`](Element) and, if gradients are asked for, what makes them.
    #[inline(always)]
    pub fn new<E: Element>(c: &Coefficients, by: &GradientCoefficients) -> Self {
        let double = ValueCoefficients::new(c, by);
        let single = if E::SINGLE { double.single(c.invstd) } else { None };
        Precisions { double, single }
    }

    /// Without those of gradients.
    #[inline(always)]
    pub fn forward<E: Element>(c: &Coefficients) -> Self {
        Self::new::<E>(c, &GradientCoefficients::default())
    }
}

impl ValueCoefficients<f64> {
    /// Of a channel, with those of its gradients.
    #[inline(always)]
    pub fn new(c: &Coefficients, by: &GradientCoefficients) -> Self {
        ValueCoefficients {
            mean_hi: c.mean_hi,
            mean_lo: c.mean_lo,
            scale: c.scale,
            bias: c.bias,
            unit: 1.0,
            mean_g: by.mean_g,
            slope: by.slope,
        }
    }

    /// Without those of gradients.
    #[inline(always)]
    pub fn forward(c: &Coefficients) -> Self {
        Self::new(c, &GradientCoefficients::default())
    }

    const NONE: Self = ValueCoefficients {
        mean_hi: 0.0,
        mean_lo: 0.0,
        scale: 0.0,
        bias: 0.0,
        unit: 1.0,
        mean_g: 0.0,
        slope: 0.0,
    };

    /// The same in f32, if whatever is computed with them stays in its range. The mean's low part
    /// goes into the constants that follow it. Forward and backward choose alike: the gradient's
    /// coefficients have no say.
    #[inline(always)]
    pub fn single(&self, invstd: f64) -> Option<ValueCoefficients<f32>> {
        let (single, fits) = self.rounded(invstd);
        fits.then_some(single)
    }

    /// [`single`](Self::single), without a branch.
    #[inline(always)]
    pub fn rounded(&self, invstd: f64) -> (ValueCoefficients<f32>, bool) {
        const LARGE: f64 = f64::from_bits((1023 + 100) << 52);
        const SMALL: f64 = f64::from_bits((1023 - 100) << 52);
        // Times this, what f32 loses below its normal range is nothing to bf16.
        const STEEP: f64 = (1 << 15) as f64;
        let unit = unit(invstd);
        let mean = self.mean_hi as f32;
        let mean_lo = self.mean_hi - f64::from(mean);
        let bias = self.bias - mean_lo * self.scale;
        let inside = |it: f64, limit: f64| (it.abs() >= SMALL && it.abs() <= limit) | (it == 0.0);
        let fits = (self.mean_hi.abs() <= LARGE)
            & (bias.abs() <= LARGE)
            & inside(self.scale, STEEP)
            & inside(invstd, LARGE);
        let single = ValueCoefficients {
            mean_hi: mean,
            mean_lo: 0.0,
            scale: self.scale as f32,
            bias: bias as f32,
            unit: unit as f32,
            mean_g: (self.mean_g - mean_lo * self.slope) as f32,
            slope: (self.slope / unit) as f32,
        };
        // What is not finite is not in either type, and must not choose for its neighbours.
        let finite = invstd.is_finite()
            & self.scale.is_finite()
            & self.bias.is_finite()
            & self.mean_hi.is_finite();
        (single, fits | !finite)
    }
}

impl<R: Real> ValueCoefficients<R> {
    /// Sums of g and of g * d in units, around the mean's high part, as sums of g and of g * d;
    /// `mean` is the whole of it.
    #[inline(always)]
    pub fn sums(&self, g: f64, gd: f64, mean: f64) -> [f64; 2] {
        match R::SINGLE {
            true => [g, gd / self.unit.extend() - (mean - self.mean_hi.extend()) * g],
            false => [g, gd],
        }
    }

    #[inline(always)]
    fn deviation<E: Element>(&self, x: R) -> R {
        deviation::<E, R>(x, self.mean_hi, self.mean_lo)
    }

    #[inline(always)]
    fn normalize(&self, d: R) -> R {
        normalize(d, self.scale, self.bias)
    }

    /// A deviation as sums and slope take it.
    #[inline(always)]
    fn in_units(&self, d: R) -> R {
        if R::SINGLE { d * self.unit } else { d }
    }

    #[inline(always)]
    fn gradient(&self, g: R, d: R) -> R {
        gradient(g, self.in_units(d), self.scale, self.mean_g, self.slope)
    }
}

/// The coefficients of a run's values, from its start on.
pub trait RunCoefficients {
    type Real: Real;
    type Chunk<const N: usize>: ChunkCoefficients<Real = Self::Real>;

    /// Those of the next `N` values.
    fn next<const N: usize>(&mut self) -> Self::Chunk<N>;
}

/// The coefficients of a chunk's values.
pub trait ChunkCoefficients: Copy {
    type Real: Real;

    fn of(self, index: usize) -> ValueCoefficients<Self::Real>;
}

/// The same for every value: a channel's.
impl<R: Real> RunCoefficients for ValueCoefficients<R> {
    type Real = R;
    type Chunk<const N: usize> = Self;

    #[inline(always)]
    fn next<const N: usize>(&mut self) -> Self {
        *self
    }
}

impl<R: Real> ChunkCoefficients for ValueCoefficients<R> {
    type Real = R;

    #[inline(always)]
    fn of(self, _index: usize) -> ValueCoefficients<R> {
        self
    }
}

/// `y = act((x - mean) * scale + bias + residual)`; with a residual and ReLU, also the mask.
pub struct Forward<'a, E: Element, I, C, const FLOOR: bool, const ADD: bool> {
    pub x: Input<'a, E, I>,
    /// Empty without `ADD`.
    pub residual: Input<'a, E, I>,
    pub y: Output<'a, E, I>,
    /// Empty where none is to be written.
    pub mask: &'a mut [u8],
    /// What is less becomes this: [`Direct::floor`].
    pub floor: E::Wide,
    pub coefficients: C,
}

impl<E, I, C, const FLOOR: bool, const ADD: bool> Forward<'_, E, I, C, FLOOR, ADD>
where
    E: Element,
    I: Isa,
    C: RunCoefficients,
{
    /// All of it.
    #[inline(always)]
    pub fn run(mut self) {
        let (head, end) = (self.y.head(), self.x.len());
        along_lines::<E>(&mut self, head, end);
    }
}

impl<E, I, C, const FLOOR: bool, const ADD: bool> Body for Forward<'_, E, I, C, FLOOR, ADD>
where
    E: Element,
    I: Isa,
    C: RunCoefficients,
{
    #[inline(always)]
    fn chunks<const N: usize>(&mut self, at: usize, count: usize) {
        let x = self.x.chunks::<N>(at, count);
        let residual = if ADD { Some(self.residual.chunks::<N>(at, count)) } else { None };
        let mut y = self.y.chunks::<N>(at, count);
        for chunk in 0..count {
            let coefficients = self.coefficients.next::<N>();
            let x = x.read(chunk);
            let residual = match &residual {
                Some(residual) => residual.read(chunk),
                None => [E::Wide::default(); N],
            };
            let mut values = [E::Wide::default(); N];
            let mut positive = 0;
            for index in 0..N {
                let c = coefficients.of(index);
                let mut z = c.normalize(c.deviation::<E>(C::Real::load::<E>(x[index])));
                if ADD {
                    z = z + C::Real::load::<E>(residual[index]);
                }
                // NaN passes.
                let negative = z <= C::Real::default();
                positive |= u32::from(!negative) << index;
                let value = z.store::<E>();
                values[index] = if FLOOR && self.floor > value { self.floor } else { value };
            }
            if ADD && !self.mask.is_empty() {
                write_bits::<N>(self.mask, at + chunk * N, positive);
            }
            y.write(chunk, &values);
            keep_chunk();
        }
    }
}

/// g, the gradient of z, and d = x - mean of one value.
#[inline(always)]
fn backward<E: Element, R: Real, const RELU: bool, const MASK: bool>(
    x: E::Wide,
    dy: E::Wide,
    positive: bool,
    c: &ValueCoefficients<R>,
) -> (R, R) {
    let d = c.deviation::<E>(R::load::<E>(x));
    let cut = RELU && if MASK { !positive } else { c.normalize(d) <= R::default() };
    (if cut { R::default() } else { R::load::<E>(dy) }, d)
}

/// What sums are made of: g of one value, and d in units.
#[inline(always)]
pub fn summands<E: Element, R: Real, const RELU: bool, const MASK: bool>(
    x: E::Wide,
    dy: E::Wide,
    positive: bool,
    c: &ValueCoefficients<R>,
) -> (R, R) {
    let (g, d) = backward::<E, R, RELU, MASK>(x, dy, positive, c);
    (g, c.in_units(d))
}

/// A run of what backward reads.
#[derive(Clone, Copy)]
pub struct BackwardRun<'a, E, I> {
    pub x: Input<'a, E, I>,
    pub dy: Input<'a, E, I>,
    /// Read with a residual and ReLU.
    pub mask: &'a [u8],
}

impl<'a, E: Element, I: Isa> BackwardRun<'a, E, I> {
    #[inline(always)]
    pub fn new(isa: I, x: &'a [E], dy: &'a [E], mask: &'a [u8]) -> Self {
        BackwardRun { x: Input::new(isa, x), dy: Input::new(isa, dy), mask }
    }

    /// The same, with reads announced so far ahead.
    #[inline(always)]
    pub fn announcing(self, ahead: usize) -> Self {
        BackwardRun { x: self.x.announcing(ahead), dy: self.dy.announcing(ahead), ..self }
    }

    /// A part of tensors; its mask, if there is one, begins with a byte.
    #[inline(always)]
    pub fn part(isa: I, x: &'a [E], dy: &'a [E], mask: &'a [u8], part: &Part) -> Self {
        BackwardRun {
            x: Input::part(isa, x, part),
            dy: Input::part(isa, dy, part),
            mask: mask.get(bytes_of(&part.values)).unwrap_or_default(),
        }
    }
}

/// dx, and with `MASK` dresidual; `FROZEN` where the statistics are constants.
pub struct Gradient<'a, E, I, C, const RELU: bool, const MASK: bool, const FROZEN: bool> {
    pub inputs: BackwardRun<'a, E, I>,
    pub dx: Output<'a, E, I>,
    /// Empty where none is to be written.
    pub dresidual: Output<'a, E, I>,
    pub coefficients: C,
}

impl<E, I, C, const RELU: bool, const MASK: bool, const FROZEN: bool>
    Gradient<'_, E, I, C, RELU, MASK, FROZEN>
where
    E: Element,
    I: Isa,
    C: RunCoefficients,
{
    /// All of it.
    #[inline(always)]
    pub fn run(mut self) {
        let (head, end) = (self.dx.head(), self.inputs.x.len());
        along_lines::<E>(&mut self, head, end);
    }
}

impl<E, I, C, const RELU: bool, const MASK: bool, const FROZEN: bool> Body
    for Gradient<'_, E, I, C, RELU, MASK, FROZEN>
where
    E: Element,
    I: Isa,
    C: RunCoefficients,
{
    #[inline(always)]
    fn chunks<const N: usize>(&mut self, at: usize, count: usize) {
        let BackwardRun { x, dy, mask } = self.inputs;
        let (x, dy) = (x.chunks::<N>(at, count), dy.chunks::<N>(at, count));
        let mut dx = self.dx.chunks::<N>(at, count);
        let mut dresidual = match MASK && !self.dresidual.is_empty() {
            true => Some(self.dresidual.chunks::<N>(at, count)),
            false => None,
        };
        for chunk in 0..count {
            let coefficients = self.coefficients.next::<N>();
            let (x, dy) = (x.read(chunk), dy.read(chunk));
            let positive = if MASK { read_bits::<N>(mask, at + chunk * N) } else { 0 };
            let (mut values, mut gated) = ([E::Wide::default(); N], [C::Real::default(); N]);
            for index in 0..N {
                let c = coefficients.of(index);
                let positive = positive >> index & 1 == 1;
                let (g, d) = backward::<E, _, RELU, MASK>(x[index], dy[index], positive, &c);
                let gradient = if FROZEN { c.scale * g } else { c.gradient(g, d) };
                values[index] = gradient.store::<E>();
                gated[index] = g;
            }
            dx.write(chunk, &values);
            if let Some(dresidual) = &mut dresidual {
                for (value, g) in values.iter_mut().zip(gated) {
                    *value = g.store::<E>();
                }
                dresidual.write(chunk, &values);
            }
            keep_chunk();
        }
    }
}

/// g and d (in units) of a run of a channel, to be added up.
pub struct GradientPairs<'a, E, I, R, const RELU: bool, const MASK: bool> {
    pub inputs: BackwardRun<'a, E, I>,
    pub coefficients: ValueCoefficients<R>,
}

impl<E, I, R, const RELU: bool, const MASK: bool> Pairs for GradientPairs<'_, E, I, R, RELU, MASK>
where
    E: Element,
    I: Isa,
    R: Real,
{
    type Real = R;

    #[inline(always)]
    fn pairs<const N: usize>(&self, at: usize) -> [[R; N]; 2] {
        let (x, dy) = (self.inputs.x.read_along::<N>(at), self.inputs.dy.read_along::<N>(at));
        let positive = if MASK { read_bits::<N>(self.inputs.mask, at) } else { 0 };
        let mut pairs = [[R::default(); N]; 2];
        for index in 0..N {
            let (positive, c) = (positive >> index & 1 == 1, &self.coefficients);
            let (g, d) = summands::<E, R, RELU, MASK>(x[index], dy[index], positive, c);
            (pairs[0][index], pairs[1][index]) = (g, d);
        }
        pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::run::along_lines;
    use crate::cpu::simd::{Vectorized, on_every_isa};
    use half::{bf16, f16};

    const VALUE: ValueCoefficients<f64> = ValueCoefficients {
        mean_hi: 0.125,
        mean_lo: 0.0,
        scale: 1.5,
        bias: -0.25,
        unit: 1.0,
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
        fn new(isa: impl Isa, offset: usize, len: usize, streaming: bool) -> Self {
            let end = offset + len;
            let (x, residual, dy) = (tensor(end, 1), tensor(end, 2), tensor(end, 3));
            let [mut y, mut dx, mut dresidual] = [(); 3].map(|()| tensor::<E>(end, 4));
            let mut mask = vec![0xaa; len.div_ceil(8)];
            let mut forward = Forward::<E, _, _, true, true> {
                x: Input::new(isa, &x[offset..]),
                residual: Input::new(isa, &residual[offset..]),
                y: Output::new(isa, &mut y[offset..], streaming),
                mask: &mut mask,
                floor: E::Wide::default(),
                coefficients: VALUE,
            };
            match streaming {
                true => {
                    let head = forward.y.head();
                    along_lines::<E>(&mut forward, head, len);
                }
                false => (0..len).for_each(|at| forward.chunks::<1>(at, 1)),
            }
            let mut gradient = Gradient::<E, _, _, true, true, false> {
                inputs: BackwardRun::new(isa, &x[offset..], &dy[offset..], &mask),
                dx: Output::new(isa, &mut dx[offset..], streaming),
                dresidual: Output::new(isa, &mut dresidual[offset..], streaming),
                coefficients: VALUE,
            };
            match streaming {
                true => {
                    let head = gradient.dx.head();
                    along_lines::<E>(&mut gradient, head, len);
                }
                false => (0..len).for_each(|at| gradient.chunks::<1>(at, 1)),
            }
            Run { y, mask, dx, dresidual }
        }
    }

    #[derive(Clone, Copy)]
    struct AtOffset(usize);

    impl Vectorized for AtOffset {
        type Output = ();

        fn call(self, isa: impl Isa) {
            chunks_are_their_values::<f32>(isa, self.0);
            chunks_are_their_values::<f64>(isa, self.0);
            chunks_are_their_values::<f16>(isa, self.0);
            chunks_are_their_values::<bf16>(isa, self.0);
        }
    }

    fn chunks_are_their_values<E: Element + PartialEq>(isa: impl Isa, offset: usize) {
        for len in [0, 1, 7, 8, 31, 33, 64, 97, 200] {
            let single = Run::<E>::new(isa, offset, len, false);
            let lines = Run::<E>::new(isa, offset, len, true);
            crate::cpu::simd::finish_streaming();
            assert!(lines.y == single.y && lines.mask == single.mask, "{offset} {len}");
            assert!(lines.dx == single.dx, "{offset} {len}");
            assert!(lines.dresidual == single.dresidual, "{offset} {len}");
            assert!(lines.y[..offset] == tensor::<E>(offset + len, 4)[..offset]);
        }
    }

    /// Whatever the alignment, lines past the cache and chunks give what single values give, and
    /// write nothing else.
    #[test]
    fn chunks_of_every_type_are_their_values() {
        for offset in 0..40 {
            on_every_isa(AtOffset(offset));
        }
    }
}
