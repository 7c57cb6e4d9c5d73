//! What the tests share: deterministic tensors in both layouts, the expected results by the
//! textbook, and how far from them a result may be.

// Every test binary compiles this file and uses its own part of it.
#![allow(dead_code)]

pub mod flat;
pub mod on_backend;

use ndarray::{Array1, Array3, ArrayRef, ArrayView3, Axis, Ix3, Slice, s};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use warpnorm::{
    Activation, BatchNorm, BatchNormConfig, Cpu, DType, Element, Epilogue, Gradients, Layout,
    Param, Saved, reference,
};

pub type Dim = (usize, usize, usize);

pub const LAYOUTS: [Layout; 2] = [Layout::ChannelsFirst, Layout::ChannelsLast];

pub const ACTIVATIONS: [Activation; 9] = [
    Activation::Identity,
    Activation::Relu,
    Activation::LeakyRelu { negative_slope: 0.01 },
    Activation::Relu6,
    Activation::Sigmoid,
    Activation::Tanh,
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
];

pub const RELU: Activation = Activation::Relu;

/// Every activation, without and with a residual.
pub fn epilogues() -> impl Iterator<Item = Epilogue> {
    ACTIVATIONS
        .into_iter()
        .flat_map(|activation| [false, true].map(|residual| Epilogue { activation, residual }))
}

/// Reproducible numbers.
pub struct Random(Pcg64Mcg);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(Pcg64Mcg::seed_from_u64(seed))
    }

    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        self.0.random_range(low..high)
    }

    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform(1e-12, 1.0).ln()).sqrt();
        radius * self.uniform(0.0, std::f64::consts::TAU).cos()
    }
}

/// `[N, C, spatial]` in the memory order of `layout`.
pub fn array<E: Element>(
    dim: Dim,
    layout: Layout,
    mut f: impl FnMut(usize, usize, usize) -> f64,
) -> Array3<E> {
    let (n, c, s) = dim;
    match layout {
        Layout::ChannelsFirst => Array3::from_shape_fn(dim, |(n, c, s)| E::from_f64(f(n, c, s))),
        Layout::ChannelsLast => {
            Array3::from_shape_fn((n, s, c), |(n, s, c)| E::from_f64(f(n, c, s)))
                .permuted_axes([0, 2, 1])
        }
    }
}

/// The same values in the memory order of `layout`.
pub fn in_layout<E: Element>(array: &ArrayRef<E, Ix3>, layout: Layout) -> Array3<E> {
    self::array(array.dim(), layout, |n, c, s| array[[n, c, s]].to_f64())
}

pub fn wide<E: Element>(array: &ArrayRef<E, Ix3>) -> Array3<f64> {
    array.mapv(Element::to_f64)
}

/// The bits of every element in index order, to compare results exactly.
pub fn bits<E: Element>(array: &ArrayRef<E, Ix3>) -> Vec<u64> {
    array.iter().map(|value| value.to_f64().to_bits()).collect()
}

pub fn value_bits<E: Element>(values: &[E]) -> Vec<u64> {
    values.iter().map(|value| value.to_f64().to_bits()).collect()
}

/// How a tensor lies in a larger array that is NaN all around it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Embedding {
    Dense,
    /// Every other sample, from the second on.
    EveryOther,
    /// A window on the axis inside the batch: of channels where they are the outer axis of a
    /// sample (or its only one), else of positions. It starts at an odd element.
    Window,
}

/// A tensor in its embedding.
pub struct Embedded<E> {
    memory: Array3<E>,
    embedding: Embedding,
    axis: usize,
    len: usize,
}

const MARGIN: usize = 3;

impl<E: Element> Embedded<E> {
    pub fn new(tensor: &ArrayRef<E, Ix3>, layout: Layout, embedding: Embedding) -> Self {
        let (n, c, s) = tensor.dim();
        let axis = match (embedding, layout) {
            (Embedding::Window, Layout::ChannelsLast) if s > 1 => 2,
            (Embedding::Window, _) => 1,
            _ => 0,
        };
        let mut outer = [n, c, s];
        outer[axis] = match embedding {
            Embedding::Dense => n,
            Embedding::EveryOther => 2 * n + 2,
            Embedding::Window => outer[axis] + 2 * MARGIN,
        };
        let len = tensor.len_of(Axis(axis));
        let memory = array((outer[0], outer[1], outer[2]), layout, |_, _, _| f64::NAN);
        let mut embedded = Embedded { memory, embedding, axis, len };
        let slice = embedded.slice();
        embedded.memory.slice_axis_mut(Axis(axis), slice).assign(tensor);
        embedded
    }

    fn slice(&self) -> Slice {
        let len = self.len as isize;
        match self.embedding {
            Embedding::Dense => Slice::from(..),
            Embedding::EveryOther => Slice::new(1, Some(2 * len), 2),
            Embedding::Window => Slice::from(MARGIN as isize..MARGIN as isize + len),
        }
    }

    pub fn view(&self) -> ArrayView3<'_, E> {
        self.memory.slice_axis(Axis(self.axis), self.slice())
    }
}

/// A layer and its data.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub dim: Dim,
    pub layout: Layout,
    pub epilogue: Epilogue,
    /// About the mean and standard deviation of x; both vary with the channel.
    pub mean: f64,
    pub std: f64,
    pub eps: f64,
}

impl Case {
    pub fn new(dim: Dim, layout: Layout, epilogue: Epilogue) -> Self {
        Case { dim, layout, epilogue, mean: 1.0, std: 1.0, eps: 1e-5 }
    }
}

/// Says what a failure was about: assertions on results do not know the case.
pub struct About<T: std::fmt::Debug>(pub T);

impl<T: std::fmt::Debug> Drop for About<T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in {:?}", self.0);
        }
    }
}

/// Which statistics a call normalizes with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    Train,
    Eval,
}

/// x less `shift` per channel, and the statistics of that.
struct Observed {
    shift: Array1<f64>,
    x: Array3<f64>,
    mean: Array1<f64>,
    var: Array1<f64>,
    invstd: Array1<f64>,
}

#[derive(Clone)]
pub struct Data<E> {
    pub case: Case,
    pub x: Array3<E>,
    pub residual: Array3<E>,
    pub dy: Array3<E>,
    pub weight: Array1<f64>,
    pub bias: Array1<f64>,
    pub running_mean: Array1<f64>,
    pub running_var: Array1<f64>,
}

pub const MOMENTUM: f64 = 0.25;

impl<E: Element> Data<E> {
    pub fn new(case: Case) -> Self {
        let (n, c, s) = case.dim;
        let mut random = Random::new((n * 1_000_003 + c * 1009 + s) as u64);
        // Values of f32, so that parameters are exact.
        let mut parameter = |f: &mut dyn FnMut(usize, &mut Random) -> f64| {
            Array1::from_shape_fn(c, |channel| f64::from(f(channel, &mut random) as f32))
        };
        let mean = parameter(&mut |_, random| case.mean * random.uniform(0.5, 1.5));
        let std = parameter(&mut |_, random| case.std * random.uniform(0.5, 2.0));
        // A weight of 0 now and then: y is the bias then, and dx 0.
        let weight = parameter(&mut |channel, random| match channel % 6 {
            4 => 0.0,
            _ => random.uniform(0.5, 2.0) * if random.uniform(0.0, 1.0) < 0.3 { -1.0 } else { 1.0 },
        });
        let bias = parameter(&mut |_, random| random.uniform(-0.5, 0.5));
        let running_mean =
            parameter(&mut |channel, random| mean[channel] + case.std * random.uniform(-0.5, 0.5));
        let running_var =
            parameter(&mut |_, random| case.std * case.std * random.uniform(0.2, 3.0));
        let x = array(case.dim, case.layout, |_, c, _| mean[c] + std[c] * random.normal());
        let residual = array(case.dim, case.layout, |_, _, _| random.normal());
        let dy = array(case.dim, case.layout, |_, _, _| random.normal());
        Data { case, x, residual, dy, weight, bias, running_mean, running_var }
    }

    pub fn residual(&self) -> Option<&ArrayRef<E, Ix3>> {
        self.case.epilogue.residual.then_some(&*self.residual)
    }

    /// The layer with this data's parameters and running statistics.
    pub fn layer(&self, cpu: Cpu) -> BatchNorm<Cpu, E::Param> {
        let mut layer: BatchNorm<Cpu, E::Param> = BatchNormConfig::new(self.case.dim.1)
            .eps(self.case.eps)
            .momentum(Some(MOMENTUM))
            .activation(self.case.epilogue.activation)
            .build(cpu)
            .unwrap();
        fill(layer.weight_mut(), &self.weight);
        fill(layer.bias_mut(), &self.bias);
        fill(layer.running_mean_mut(), &self.running_mean);
        fill(layer.running_var_mut(), &self.running_var);
        layer
    }

    /// Takes dy to 0 where the pre-activation is so close to a kink that rounding may put it on
    /// either side.
    pub fn without_gradients_at_kinks(mut self, mode: Mode) -> Self {
        let kinks: &[f64] = match self.case.epilogue.activation {
            Activation::Relu | Activation::LeakyRelu { .. } => &[0.0],
            Activation::Relu6 => &[0.0, 6.0],
            _ => return self,
        };
        let z = self.pre_activation(&self.observed(mode));
        for (dy, &z) in self.dy.iter_mut().zip(&z) {
            if kinks.iter().any(|kink| (z - kink).abs() < 1e-5) {
                *dy = E::from_f64(0.0);
            }
        }
        self
    }

    /// What the reference normalizes: x, and the mean and variance to do it with. In training a
    /// value of each channel is taken off x, which changes nothing but the mean: the reference's
    /// own is one f64, whose rounding would show where the values of a channel nearly coincide.
    fn observed(&self, mode: Mode) -> Observed {
        let (n, c, s) = self.case.dim;
        let shift = match mode {
            Mode::Train if n * s > 0 => self.x.slice(s![0, .., 0]).mapv(Element::to_f64),
            _ => Array1::zeros(c),
        };
        let x = wide(&self.x) - shift.view().insert_axis(Axis(1));
        let (mean, var) = match mode {
            Mode::Train => reference::moments(x.view()),
            Mode::Eval => (self.running_mean.clone(), self.running_var.clone()),
        };
        let invstd = reference::invstd(var.view(), self.case.eps);
        Observed { shift, x, mean, var, invstd }
    }

    fn pre_activation(&self, observed: &Observed) -> Array3<f64> {
        let residual = self.residual().map(wide);
        reference::normalize(
            observed.x.view(),
            residual.as_ref().map(|residual| residual.view()),
            observed.mean.view(),
            observed.invstd.view(),
            self.weight.view(),
            self.bias.view(),
        )
    }

    pub fn expected(&self, mode: Mode) -> Expected {
        let observed = self.observed(mode);
        let activation = self.case.epilogue.activation;
        let residual = self.residual().map(wide);
        let dy = wide(&self.dy);
        let z = self.pre_activation(&observed);
        let y = z.mapv(|z| reference::activate(activation, z));
        let gradients = reference::backward(
            observed.x.view(),
            residual.as_ref().map(|residual| residual.view()),
            dy.view(),
            observed.mean.view(),
            observed.invstd.view(),
            self.weight.view(),
            self.bias.view(),
            activation,
            mode == Mode::Train,
        );
        let scale = self.scales(&observed, &y, &dy, &gradients, mode);
        let Observed { shift, x, mean, var, invstd } = observed;
        let mean = mean + shift;
        let count = (x.len_of(Axis(0)) * x.len_of(Axis(2))) as f64;
        let unbiased = &var * (count / (count - 1.0));
        let blend = |old: &Array1<f64>, new: &Array1<f64>| old * (1.0 - MOMENTUM) + new * MOMENTUM;
        Expected {
            y,
            gradients,
            running_mean: blend(&self.running_mean, &mean),
            running_var: blend(&self.running_var, &unbiased),
            mean,
            invstd,
            scale,
        }
    }

    /// What is added up in each result, before anything cancels.
    ///
    /// The derivative of a smooth activation is conditioned by its second derivative (1.1 at
    /// most): half an ulp of invstd moves it by half an ulp of `weight * xhat`, which is added.
    fn scales(
        &self,
        observed: &Observed,
        y: &Array3<f64>,
        dy: &Array3<f64>,
        gradients: &reference::Gradients,
        mode: Mode,
    ) -> Scales {
        let Observed { x, mean, invstd, .. } = observed;
        let residual = self.residual().map(wide);
        let smooth = f64::from(u8::from(self.case.epilogue.activation.is_smooth()));
        let count = (x.len_of(Axis(0)) * x.len_of(Axis(2))) as f64;
        let per_channel = |f: &dyn Fn(usize) -> f64| Array1::from_shape_fn(x.dim().1, f);
        let lane = |a: &Array3<f64>, c: usize| a.index_axis(Axis(1), c).to_owned();
        let largest = |a: &Array3<f64>, c| lane(a, c).iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let xhat = |c: usize| lane(x, c).mapv(|x| (x - mean[c]) * invstd[c]);
        let largest_xhat = |c: usize| xhat(c).iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let spread = per_channel(&|c| self.weight[c].abs() * largest_xhat(c));
        let g = |c: usize| {
            let conditioned = lane(dy, c).mapv(f64::abs) * (smooth * spread[c]);
            lane(&gradients.dresidual, c).mapv(f64::abs) + conditioned
        };
        let through_statistics = f64::from(u8::from(mode == Mode::Train)) / count;
        Scales {
            y: per_channel(&|c| {
                let residual = residual.as_ref().map_or(0.0, |residual| largest(residual, c));
                (spread[c] + self.bias[c].abs() + residual).max(largest(y, c))
            }),
            dresidual: per_channel(&|c| largest(dy, c) * (1.0 + smooth * spread[c])),
            // The rounding of the reference's mean moves an xhat close to 0 by more than its share.
            dweight: per_channel(&|c| {
                let hair = 1e-3 * largest_xhat(c);
                (g(c) * xhat(c).mapv(|xhat| xhat.abs() + hair)).sum()
            }),
            dbias: per_channel(&|c| g(c).sum()),
            dx: per_channel(&|c| {
                let statistics =
                    gradients.dbias[c].abs() + largest_xhat(c) * gradients.dweight[c].abs();
                let largest_g = g(c).iter().fold(0.0f64, |m, &v| m.max(v));
                let sum = largest_g + through_statistics * statistics;
                (self.weight[c] * invstd[c]).abs() * sum
            }),
        }
    }
}

pub fn fill<P: Param>(parameter: Option<&mut [P]>, values: &Array1<f64>) {
    for (parameter, &value) in parameter.unwrap().iter_mut().zip(values) {
        *parameter = P::from_f64(value);
    }
}

/// The textbook's results.
pub struct Expected {
    pub y: Array3<f64>,
    pub gradients: reference::Gradients,
    pub mean: Array1<f64>,
    pub invstd: Array1<f64>,
    pub running_mean: Array1<f64>,
    pub running_var: Array1<f64>,
    pub scale: Scales,
}

/// Per channel, the magnitude that errors are measured against.
pub struct Scales {
    pub y: Array1<f64>,
    pub dx: Array1<f64>,
    pub dresidual: Array1<f64>,
    pub dweight: Array1<f64>,
    pub dbias: Array1<f64>,
}

/// The largest error allowed, as a share of scale.
#[derive(Debug, Clone, Copy)]
pub struct Bars {
    /// Of y, dweight, dbias, saved and running statistics.
    pub y: f64,
    /// Of dx and dresidual.
    pub dx: f64,
}

impl Bars {
    /// 2e-7 and 4e-7 for parameters of f32. In f64 the reference itself rounds: 5e-13.
    pub fn of(dtype: DType) -> Self {
        match dtype {
            DType::F64 => Bars { y: 5e-13, dx: 5e-13 },
            _ => Bars { y: 2e-7, dx: 4e-7 },
        }
    }

    /// Where smooth activations are evaluated in f32: 6 ulp (of the value, not of the scale, which
    /// is larger) on top.
    pub fn in_f32(dtype: DType, activation: Activation) -> Self {
        let bars = Self::of(dtype);
        let ulps = if activation.is_smooth() { 6.0 * f64::from(f32::EPSILON) / 2.0 } else { 0.0 };
        Bars { y: bars.y + ulps, dx: bars.dx + ulps }
    }
}

/// One rounding of a 16-bit type, which is allowed beside the bar.
pub fn rounding(dtype: DType, expected: f64) -> f64 {
    match dtype {
        DType::F16 => (expected.abs() * 2f64.powi(-11)).max(2f64.powi(-25)),
        DType::Bf16 => (expected.abs() * 2f64.powi(-8)).max(2f64.powi(-134)),
        DType::F32 | DType::F64 => 0.0,
    }
}

/// A few of the smallest subnormals of f32.
const TINY: f64 = 3e-44;

pub fn assert_tensor<E: Element>(
    what: &str,
    got: &ArrayRef<E, Ix3>,
    expected: &Array3<f64>,
    scale: &Array1<f64>,
    bar: f64,
) {
    assert_eq!(got.dim(), expected.dim(), "{what}");
    for ((n, c, s), &got) in got.indexed_iter() {
        let (got, expected) = (got.to_f64(), expected[[n, c, s]]);
        if got == E::from_f64(expected).to_f64() {
            continue; // also where both are infinite
        }
        let allowed = bar * scale[c] + rounding(E::DTYPE, expected) + TINY;
        let error = (got - expected).abs();
        assert!(
            error <= allowed,
            "{what}[{n}, {c}, {s}]: got {got:e}, expected {expected:e}, scale {:e}, score {:e}",
            scale[c],
            error / scale[c],
        );
    }
}

pub fn assert_channels<P: Param>(
    what: &str,
    got: &[P],
    expected: &Array1<f64>,
    scale: &Array1<f64>,
    bar: f64,
) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (c, got) in got.iter().enumerate() {
        if *got == P::from_f64(expected[c]) {
            continue; // also where both are infinite
        }
        let error = (got.to_f64() - expected[c]).abs();
        assert!(
            error <= bar * scale[c] + TINY,
            "{what}[{c}]: got {got:?}, expected {:e}, score {:e}",
            expected[c],
            error / scale[c],
        );
    }
}

/// All results of a training step.
pub type Step<E> = (Array3<E>, Saved<Cpu, <E as Element>::Param>, Gradients<E, Ix3>);

pub fn train<E: Element>(
    layer: &mut BatchNorm<Cpu, E::Param>,
    x: &ArrayRef<E, Ix3>,
    residual: Option<&ArrayRef<E, Ix3>>,
    dy: &ArrayRef<E, Ix3>,
) -> Step<E> {
    match residual {
        None => {
            let (y, saved) = layer.forward_train(x).unwrap();
            let gradients = layer.backward(x, dy, &saved).unwrap();
            (y, saved, gradients)
        }
        Some(residual) => {
            let (y, saved) = layer.forward_train_add(x, residual).unwrap();
            let kept = layer.config().activation;
            let kept = kept.is_smooth().then_some(residual);
            let gradients = layer.backward_add(x, kept, dy, &saved).unwrap();
            (y, saved, gradients)
        }
    }
}

pub fn eval<E: Element>(
    layer: &BatchNorm<Cpu, E::Param>,
    x: &ArrayRef<E, Ix3>,
    residual: Option<&ArrayRef<E, Ix3>>,
    dy: &ArrayRef<E, Ix3>,
) -> (Array3<E>, Gradients<E, Ix3>) {
    match residual {
        None => (layer.forward_eval(x).unwrap(), layer.backward_eval(x, dy).unwrap()),
        Some(residual) => (
            layer.forward_eval_add(x, residual).unwrap(),
            layer.backward_eval_add(x, residual, dy).unwrap(),
        ),
    }
}

pub fn assert_gradients<E: Element>(
    gradients: &Gradients<E, Ix3>,
    expected: &Expected,
    residual: bool,
) {
    assert_gradients_within(gradients, expected, residual, Bars::of(E::DTYPE));
}

pub fn assert_gradients_within<E: Element>(
    gradients: &Gradients<E, Ix3>,
    expected: &Expected,
    residual: bool,
    bars: Bars,
) {
    let (scale, want) = (&expected.scale, &expected.gradients);
    assert_tensor("dx", &gradients.dx, &want.dx, &scale.dx, bars.dx);
    assert_eq!(gradients.dresidual.is_some(), residual);
    if let Some(dresidual) = &gradients.dresidual {
        assert_tensor("dresidual", dresidual, &want.dresidual, &scale.dresidual, bars.dx);
    }
    let parameter = |it: &Option<Array1<E::Param>>| it.as_ref().unwrap().to_vec();
    let (dweight, dbias) = (parameter(&gradients.dweight), parameter(&gradients.dbias));
    assert_channels("dweight", &dweight, &want.dweight, &scale.dweight, bars.y);
    assert_channels("dbias", &dbias, &want.dbias, &scale.dbias, bars.y);
}

/// Saved statistics (the mean against the spread of the channel, hi and lo together) and running
/// ones.
pub fn assert_statistics<E: Element>(
    layer: &BatchNorm<Cpu, E::Param>,
    saved: &Saved<Cpu, E::Param>,
    expected: &Expected,
) {
    let bar = Bars::of(E::DTYPE).y;
    let hi_and_lo = saved.mean_hi().iter().zip(saved.mean_lo());
    let mean: Vec<f64> = hi_and_lo.map(|(hi, lo)| hi.to_f64() + lo.to_f64()).collect();
    // The reference's own mean is one f64.
    let spread = expected.invstd.mapv(f64::recip) + expected.mean.mapv(|mean| 1e-9 * mean.abs());
    assert_channels("saved mean", &mean, &expected.mean, &spread, bar);
    let invstd = &expected.invstd;
    assert_channels("saved invstd", saved.invstd(), invstd, invstd, bar);
    let (mean, var) = (&expected.running_mean, &expected.running_var);
    let mean_scale = mean.mapv(f64::abs) + spread;
    assert_channels("running_mean", layer.running_mean().unwrap(), mean, &mean_scale, bar);
    assert_channels("running_var", layer.running_var().unwrap(), var, var, bar);
}

/// Training and evaluation, forward and backward, against the textbook.
pub fn check<E: Element>(case: Case, embedding: Embedding) {
    check_mode::<E>(case, embedding, Mode::Train);
    check_mode::<E>(case, embedding, Mode::Eval);
}

pub fn check_mode<E: Element>(case: Case, embedding: Embedding, mode: Mode) {
    let data = Data::<E>::new(case).without_gradients_at_kinks(mode);
    check_data(&data, embedding, mode);
}

pub fn check_data<E: Element>(data: &Data<E>, embedding: Embedding, mode: Mode) {
    let case = data.case;
    let _about = About((E::DTYPE, mode, case));
    let expected = data.expected(mode);
    let embed = |tensor| Embedded::new(tensor, case.layout, embedding);
    let (x, dy, residual) = (embed(&*data.x), embed(&*data.dy), data.residual().map(embed));
    let residual = residual.as_ref().map(Embedded::view);
    let residual = residual.as_deref();
    let mut layer = data.layer(Cpu::new());
    let (y, gradients) = match mode {
        Mode::Train => {
            let (y, saved, gradients) = train(&mut layer, &x.view(), residual, &dy.view());
            assert_statistics::<E>(&layer, &saved, &expected);
            (y, gradients)
        }
        Mode::Eval => eval(&layer, &x.view(), residual, &dy.view()),
    };
    assert_tensor("y", &y, &expected.y, &expected.scale.y, Bars::of(E::DTYPE).y);
    assert_gradients(&gradients, &expected, residual.is_some());
}
