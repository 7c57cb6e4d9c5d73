//! The layer beside Burn's own in f64.

use burn::backend::Flex;
use burn::module::{Module, Param, RunningState};
use burn::tensor::{DType, Device, Gradients, Tensor, TensorData, activation};
use rand::SeedableRng;
use rand_distr::{Distribution, Normal};
use rand_pcg::Pcg64Mcg;
use warpnorm_burn::{Activation, BatchNorm, BatchNormConfig};

const CHANNELS: usize = 5;
const SHAPE: [usize; 4] = [6, CHANNELS, 4, 3];
const MOMENTUM: f64 = 0.1;

fn plain() -> Device {
    Device::flex()
}

fn device() -> Device {
    Device::flex().autodiff()
}

/// The same in every run. Values of bf16 and f16, so that every element type holds them: what one rounds
/// lies on another side of ReLU's zero.
fn random<const D: usize>(shape: [usize; D], mean: f64, std: f64) -> Tensor<D> {
    let len = shape.iter().product();
    let seed = mean.to_bits() ^ std.to_bits().rotate_left(17) ^ len as u64;
    let normal = Normal::new(mean, std).expect("a standard deviation");
    let values: Vec<f64> = normal.sample_iter(Pcg64Mcg::seed_from_u64(seed)).take(len).collect();
    let values = Tensor::<D>::from_data(TensorData::new(values, shape), (&device(), DType::F64));
    values.cast(DType::BF16).cast(DType::F16).cast(DType::F64)
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data_as::<f64>().try_into_vec().expect("f64")
}

/// What a step takes and what it is compared by.
struct Step<const D: usize> {
    x: Tensor<D>,
    residual: Option<Tensor<D>>,
    dy: Tensor<D>,
    parameters: [Tensor<1>; 4],
}

impl<const D: usize> Step<D> {
    fn random(shape: [usize; D], residual: bool) -> Self {
        let parameter = |mean, std| random([shape[1]], mean, std);
        Step {
            x: random(shape, 2.0, 1.5),
            residual: residual.then(|| random(shape, 0.0, 1.0)),
            dy: random(shape, 0.0, 1.25),
            parameters: [
                parameter(0.5, 1.0),
                parameter(0.0, 1.0),
                parameter(1.0, 0.5),
                parameter(2.0, 0.2).abs(),
            ],
        }
    }

    /// How many values a channel has.
    fn values(&self) -> f64 {
        (self.x.shape().num_elements() / self.x.dims()[1]) as f64
    }
}

/// y; gradients of x, the residual, gamma and beta; running mean and variance.
type Outcome = Vec<Vec<f64>>;

/// A leaf of the graph that lies in the order of `axes`, and how it goes into the layer.
fn leaf<const D: usize>(it: &Tensor<D>, dtype: DType, axes: [usize; D]) -> (Tensor<D>, Tensor<D>) {
    let data = it.clone().cast(dtype).permute(axes.map(|axis| axis as isize)).into_data();
    let leaf = Tensor::from_data(data, (&device(), dtype)).require_grad();
    (leaf.clone(), leaf.permute(inverse(axes)))
}

fn inverse<const D: usize>(axes: [usize; D]) -> [isize; D] {
    let mut inverse = [0; D];
    axes.iter().enumerate().for_each(|(at, &axis)| inverse[axis] = at as isize);
    inverse
}

fn gradient<const D: usize>(of: &Tensor<D>, gradients: &Gradients) -> Tensor<D> {
    let gradient = of.grad(gradients).expect("a gradient of each variable");
    assert_eq!((gradient.dims(), gradient.dtype()), (of.dims(), of.dtype()));
    gradient
}

/// Both layers have these fields.
macro_rules! set {
    ($layer:ident, $step:ident, $train:expr, $dtype:expr) => {
        let [gamma, beta, mean, var] = $step.parameters.clone().map(|it| it.cast($dtype).detach());
        $layer.gamma = Param::from_tensor(gamma);
        $layer.beta = Param::from_tensor(beta);
        $layer.running_mean = RunningState::new(mean);
        $layer.running_var = RunningState::new(var);
        $layer.training = Param::from_bool($train);
    };
}

/// What a layer that is [`set`] does with a step.
macro_rules! outcome {
    ($layer:ident, $step:ident, $dtype:expr, $axes:expr, $forward:expr) => {{
        let (leaf_x, x) = leaf(&$step.x, $dtype, $axes);
        let (leaf_residual, residual) =
            $step.residual.as_ref().map(|it| leaf(it, $dtype, $axes)).unzip();
        let y = $forward(&$layer, x.clone(), residual);
        assert_eq!((y.dims(), y.dtype()), (x.dims(), $dtype));
        let gradients = (y.clone() * $step.dy.clone().cast($dtype)).sum().backward();
        let lying = |it: &Tensor<_>| values(gradient(it, &gradients).permute(inverse($axes)));
        let mut outcome = vec![values(y), lying(&leaf_x)];
        outcome.extend(leaf_residual.as_ref().map(lying));
        outcome.push(values(gradient(&$layer.gamma.val(), &gradients)));
        outcome.push(values(gradient(&$layer.beta.val(), &gradients)));
        outcome.push(values($layer.running_mean.value_sync()));
        outcome.push(values($layer.running_var.value_sync()));
        outcome
    }};
}

/// Burn's own layer, and its operations for what follows, in f64.
fn expected<const D: usize>(step: &Step<D>, activation: Activation, train: bool) -> Outcome {
    let mut layer = burn::nn::BatchNormConfig::new(step.x.dims()[1]).init(&device());
    set!(layer, step, train, DType::F64);
    let axes = std::array::from_fn(|axis| axis);
    let forward = |layer: &burn::nn::BatchNorm, x, residual| {
        let z = layer.forward(x);
        let z = match residual {
            Some(it) => z + it,
            None => z,
        };
        activate(activation, z)
    };
    let mut outcome = outcome!(layer, step, DType::F64, axes, forward);
    if train {
        let held = values(step.parameters[3].clone());
        let var = outcome.last_mut().expect("a variance");
        var.iter_mut().zip(held).for_each(|(var, held)| *var = unbiased(*var, held, step.values()));
    }
    outcome
}

/// A running variance after a step that has added the biased one, had it been the other.
fn unbiased(var: f64, held: f64, values: f64) -> f64 {
    let kept = (1.0 - MOMENTUM) * held;
    kept + (var - kept) * values / (values - 1.0)
}

fn activate<const D: usize>(activation: Activation, z: Tensor<D>) -> Tensor<D> {
    match activation {
        Activation::Identity => z,
        Activation::Relu => activation::relu(z),
        Activation::LeakyRelu { negative_slope } => activation::leaky_relu(z, negative_slope),
        Activation::Relu6 => z.clamp(0.0, 6.0),
        Activation::Sigmoid => activation::sigmoid(z),
        Activation::Tanh => activation::tanh(z),
        Activation::Silu => activation::silu(z),
        Activation::Gelu => activation::gelu(z),
        Activation::GeluTanh => activation::gelu_approximate(z),
    }
}

/// The layer under test, with tensors that lie in the order of `axes`.
fn found<const D: usize>(
    step: &Step<D>,
    activation: Activation,
    train: bool,
    dtype: DType,
    axes: [usize; D],
) -> Outcome {
    let config = BatchNormConfig::new(step.x.dims()[1]).with_activation(activation);
    let mut layer = config.init(&device());
    let parameters = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    set!(layer, step, train, parameters);
    outcome!(layer, step, dtype, axes, call)
}

fn call<const D: usize>(layer: &BatchNorm, x: Tensor<D>, residual: Option<Tensor<D>>) -> Tensor<D> {
    match residual {
        Some(it) => layer.forward_add(x, it),
        None => layer.forward(x),
    }
}

fn assert_close(found: &[Vec<f64>], expected: &[Vec<f64>], bar: f64) {
    assert_eq!(found.len(), expected.len());
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.len(), expected.len());
        let scale = expected.iter().fold(0.0, |most: f64, it| most.max(it.abs()));
        for (found, expected) in found.iter().zip(expected) {
            let error = (found - expected).abs();
            assert!(error <= bar * scale, "output {at}: {found} for {expected}");
        }
    }
}

/// Each type's rounding, with room for sums: of gradients in 16 bits the products with dy are rounded
/// by Burn.
const BARS: [(DType, f64); 4] =
    [(DType::F64, 1e-13), (DType::F32, 1e-6), (DType::F16, 2e-3), (DType::BF16, 2e-2)];

const CHANNELS_FIRST: [usize; 4] = [0, 1, 2, 3];
const CHANNELS_LAST: [usize; 4] = [0, 2, 3, 1];
/// Neither of the layouts.
const CHANNELS_OUTSIDE: [usize; 4] = [1, 3, 0, 2];

#[test]
fn passes_agree_with_burn_s_layer_in_f64() {
    for residual in [false, true] {
        let step = Step::random(SHAPE, residual);
        for train in [true, false] {
            for activation in [Activation::Identity, Activation::Relu, Activation::Silu] {
                let expected = expected(&step, activation, train);
                for (dtype, bar) in BARS {
                    for axes in [CHANNELS_FIRST, CHANNELS_LAST, CHANNELS_OUTSIDE] {
                        let found = found(&step, activation, train, dtype, axes);
                        assert_close(&found, &expected, bar);
                    }
                }
            }
        }
    }
}

#[test]
fn activations_agree_with_burn_s() {
    let step = Step::random(SHAPE, true);
    let leaky = Activation::LeakyRelu { negative_slope: 0.25 };
    let others = [leaky, Activation::Relu6, Activation::Sigmoid, Activation::Tanh];
    for activation in others.into_iter().chain([Activation::Gelu, Activation::GeluTanh]) {
        for train in [true, false] {
            let expected = expected(&step, activation, train);
            let found = found(&step, activation, train, DType::F64, CHANNELS_FIRST);
            assert_close(&found, &expected, 1e-6);
        }
    }
}

#[test]
fn matrices_and_other_ranks() {
    fn agree<const D: usize>(shape: [usize; D]) {
        let step = Step::random(shape, true);
        let axes = std::array::from_fn(|axis| axis);
        for train in [true, false] {
            let expected = expected(&step, Activation::Relu, train);
            let found = found(&step, Activation::Relu, train, DType::F32, axes);
            assert_close(&found, &expected, 1e-6);
        }
    }
    agree([7, CHANNELS]);
    agree([9, 1]);
    agree([3, CHANNELS, 9]);
    agree([1, 17, 13]);
    agree([33, 3, 1, 1]);
    agree([2, CHANNELS, 3, 2, 4]);
}

/// Steps in Burn's layer add the biased variance; those of this layer PyTorch's.
#[test]
fn running_statistics_advance_with_each_step() {
    let mut held = (vec![0.0; CHANNELS], vec![1.0; CHANNELS]);
    let layer = BatchNormConfig::new(CHANNELS).init(&device());
    for at in 0..4 {
        let x = random([9, CHANNELS, 2], f64::from(at), 1.0 + f64::from(at));
        let single = x.clone().cast(DType::F32);
        layer.forward(single);
        let rows = values(x.swap_dims(0, 1));
        for (channel, values) in rows.chunks(18).enumerate() {
            let mean = values.iter().sum::<f64>() / 18.0;
            let var = values.iter().map(|it| (it - mean).powi(2)).sum::<f64>() / 17.0;
            held.0[channel] += MOMENTUM * (mean - held.0[channel]);
            held.1[channel] += MOMENTUM * (var - held.1[channel]);
        }
        let statistics =
            [&layer.running_mean, &layer.running_var].map(|it| values(it.value_sync()));
        assert_close(&statistics, &[held.0.clone(), held.1.clone()], 1e-6);
    }
    let valid = layer.valid();
    let x = random([9, CHANNELS, 2], 0.0, 1.0).without_autodiff();
    let y = values(valid.forward(x.clone().cast(DType::F32)));
    let own = burn::nn::BatchNormConfig::new(CHANNELS).init(&plain());
    let own = own.load_record(valid.into_record());
    assert_close(&[y], &[values(own.forward(x.cast(DType::F32)))], 1e-5);
}

/// A slice of a larger batch is taken where it lies, and y lies as x does.
#[test]
fn views_keep_their_layout() {
    let layer = BatchNormConfig::new(CHANNELS).init(&plain());
    let strides = |it: Tensor<4>| {
        let primitive = it.try_into_primitive::<Flex>().expect("a tensor of Flex");
        primitive.layout().strides().to_vec()
    };
    let x = random(SHAPE, 1.0, 1.0).without_autodiff();
    let data = x.clone().permute([0, 2, 3, 1]).into_data();
    let last = Tensor::<4>::from_data(data, (&plain(), DType::F64)).permute([0, 3, 1, 2]);
    for x in [x, last] {
        let part = x.clone().narrow(0, 1, 3);
        let y = layer.forward(part.clone());
        assert_eq!(strides(y.clone()), strides(part));
        let whole = layer.forward(x);
        assert_close(&[values(y)], &[values(whole.narrow(0, 1, 3))], 1e-15);
    }
}

#[test]
fn records_are_burn_s() {
    let device = device();
    let theirs = burn::nn::BatchNormConfig::new(3).init(&device);
    theirs.forward(random([4, 3, 2], 1.0, 2.0).cast(DType::F32));
    let theirs = theirs.valid();
    let bytes = theirs.clone().into_record().into_bytes().expect("a record");
    let record = burn::store::ModuleRecord::from_bytes(bytes).expect("a record");
    let ours = BatchNormConfig::new(3).init(&plain()).load_record(record);
    let held = |running: &RunningState<Tensor<1>>| values(running.value());
    assert_eq!(held(&ours.running_mean), held(&theirs.running_mean));
    assert_eq!(held(&ours.running_var), held(&theirs.running_var));
    assert!(held(&ours.running_mean).iter().all(|&it| it != 0.0));

    let mut changed = ours.train();
    changed.gamma = Param::from_data([1.0, 2.0, 3.0], &device);
    changed.beta = Param::from_data([4.0, 5.0, 6.0], &device);
    let back = theirs.load_record(changed.into_record());
    assert_eq!(values(back.gamma.val()), [1.0, 2.0, 3.0]);
    assert_eq!(values(back.beta.val()), [4.0, 5.0, 6.0]);
}

/// As a record of another element type leaves them.
#[test]
fn parameters_of_other_types_are_converted() {
    let layer = BatchNormConfig::new(3).init(&device());
    let mut half = BatchNormConfig::new(3).init(&device());
    half.gamma = Param::from_tensor(layer.gamma.val().cast(DType::BF16).detach());
    let vector = |value: f64| Tensor::full([3], value, (&device(), DType::BF16));
    half.running_mean = RunningState::new(vector(0.0));
    half.running_var = RunningState::new(vector(1.0));
    let x = random([4, 3, 2], 1.0, 2.0);
    for dtype in [DType::BF16, DType::F32, DType::F64] {
        let x = x.clone().cast(dtype);
        let (y, other) = (layer.forward(x.clone()), half.forward(x));
        assert_eq!(other.dtype(), dtype);
        let gradients = other.clone().square().sum().backward();
        gradient(&half.gamma.val(), &gradients);
        assert_eq!(values(y), values(other));
    }
    assert_eq!(half.running_mean.value_sync().dtype(), DType::BF16);
    assert_eq!(layer.running_mean.value_sync().dtype(), DType::F32);
}

#[test]
fn training_learns() {
    use burn::optim::{GradientsParams, SgdConfig};
    let config = BatchNormConfig::new(CHANNELS).with_activation(Activation::Relu);
    let mut layer = config.init(&device());
    let mut optimizer = SgdConfig::new().init();
    let x = random([32, CHANNELS, 3], -1.0, 2.0).cast(DType::F32);
    // What other parameters make of x.
    let mut target = config.init(&device());
    target.gamma = Param::from_data([0.5, 1.2, 2.0, 1.5, 0.1], &device());
    target.beta = Param::from_data([1.0, 0.3, 0.5, -0.5, 2.0], &device());
    let target = target.forward(x.clone()).detach();
    let loss = |layer: &BatchNorm| (layer.forward(x.clone()) - target.clone()).square().mean();
    let first = values(loss(&layer))[0];
    for _ in 0..200 {
        let gradients = GradientsParams::from_grads(loss(&layer).backward(), &layer);
        layer = optimizer.step(1.0, layer, gradients);
    }
    let last = values(loss(&layer))[0];
    assert!(last < 1e-3 * first, "{last} after {first}");
    let gamma = values(layer.gamma.val());
    assert!((gamma[2] - 2.0).abs() < 1e-2, "{gamma:?}");
}

/// As in Burn's layer: on a training device, by its running statistics, which stay.
#[test]
fn a_frozen_layer_is_an_evaluation() {
    let layer = BatchNormConfig::new(CHANNELS).init(&device()).freeze();
    let x = random(SHAPE, 3.0, 2.0).cast(DType::F32).require_grad();
    let y = layer.forward(x.clone());
    assert_close(&[values(y.clone())], &[values(x.clone())], 1e-5);
    let gradients = y.sum().backward();
    assert!(values(gradient(&x, &gradients)).iter().all(|it| (it - 1.0).abs() < 1e-5));
    assert!(layer.gamma.val().grad(&gradients).is_none());
    assert_eq!(values(layer.running_mean.value_sync()), [0.0; CHANNELS]);
}

#[test]
fn what_asks_for_no_gradient_has_none() {
    use burn::module::ParamGroup;
    let layer = BatchNormConfig::new(CHANNELS).init(&device());
    let layer = layer.freeze_group(ParamGroup::from_path("gamma"));
    let x = random(SHAPE, 3.0, 2.0).cast(DType::F32);
    let residual = random(SHAPE, 0.0, 1.0).cast(DType::F32).require_grad();
    let gradients = layer.forward_add(x.clone(), residual.clone()).sum().backward();
    assert!(layer.gamma.val().grad(&gradients).is_none() && x.grad(&gradients).is_none());
    assert_eq!(values(gradient(&residual, &gradients)), vec![1.0; values(x).len()]);
    assert_eq!(values(gradient(&layer.beta.val(), &gradients)), [72.0; CHANNELS]);
    assert!(values(layer.running_mean.value_sync()).iter().all(|&it| it != 0.0));
}

/// Tensors that are no variables beside parameters that are.
#[test]
fn plain_tensors_may_meet_parameters_to_train() {
    let layer = BatchNormConfig::new(CHANNELS).init(&device());
    let x = random(SHAPE, 3.0, 2.0).cast(DType::F32).without_autodiff();
    let y = layer.forward(x.clone());
    assert_close(&[values(y.clone())], &[values(x)], 1e-5);
    let gradients = y.sum().backward();
    assert_eq!(values(gradient(&layer.beta.val(), &gradients)), [72.0; CHANNELS]);
    assert_eq!(values(layer.running_mean.value_sync()), [0.0; CHANNELS]);
}

/// What is dropped and made again, x and the residual among it, is as it was.
#[test]
fn gradients_under_checkpointing_are_the_same() {
    let gradients = |device: Device| {
        let config = BatchNormConfig::new(CHANNELS).with_activation(Activation::Silu);
        let layer = config.init(&device);
        let data = TensorData::new((0..360).map(|it| (it as f32).sin()).collect(), SHAPE);
        let x = Tensor::<4>::from_data(data, &device).require_grad();
        let inner = activation::relu(x.clone() * 2.0);
        let y = layer.forward_add(inner.clone(), inner);
        let gradients = y.square().sum().backward();
        let mean = values(layer.running_mean.value_sync());
        [values(gradient(&x, &gradients)), values(gradient(&layer.gamma.val(), &gradients)), mean]
    };
    let kept = gradients(device());
    assert_eq!(gradients(device().gradient_checkpointing()), kept);
    assert!(kept.iter().flatten().any(|&it| it != 0.0));
}

/// The gradients of an evaluation are those of what it normalized with.
#[test]
fn a_training_step_between_changes_no_gradient() {
    let gradient_of = |between: bool| {
        let mut layer = BatchNormConfig::new(CHANNELS).init(&device());
        let x = (random(SHAPE, 3.0, 0.0) + 0.5).cast(DType::F32).require_grad();
        layer.training = Param::from_bool(false);
        let y = layer.forward(x.clone());
        if between {
            layer.training = Param::from_bool(true);
            layer.forward(random(SHAPE, 3.0, 2.0).cast(DType::F32));
            assert!(values(layer.running_mean.value_sync()).iter().all(|&it| it != 0.0));
        }
        values(gradient(&x, &y.square().sum().backward()))
    };
    assert_eq!(gradient_of(false), gradient_of(true));
}

/// Several shapes in turns, on several threads.
#[test]
fn layers_may_be_called_from_several_threads() {
    let layer = BatchNormConfig::new(CHANNELS).init(&device());
    let step = |n: usize| {
        let x =
            TensorData::new((0..n * CHANNELS).map(|it| (it as f32).sin()).collect(), [n, CHANNELS]);
        let x = Tensor::<2>::from_data(x, &device()).require_grad();
        let y = layer.forward(x.clone());
        values(gradient(&x, &y.square().sum().backward()))
    };
    let alone: Vec<_> = (2..9).map(step).collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| (2..9).map(step).collect::<Vec<_>>())).collect();
        for it in threads {
            assert_eq!(it.join().expect("no panic"), alone);
        }
    });
}

#[test]
fn configurations_are_saved_and_read() {
    use burn::config::Config;
    let leaky = Activation::LeakyRelu { negative_slope: 0.2 };
    let config =
        BatchNormConfig::new(3).with_epsilon(1e-3).with_momentum(0.2).with_activation(leaky);
    let read = BatchNormConfig::load_binary(config.to_string().as_bytes());
    assert_eq!(read.expect("its own"), config);
    let theirs = burn::nn::BatchNormConfig::new(3).with_epsilon(1e-3).to_string();
    let read = BatchNormConfig::load_binary(theirs.as_bytes()).expect("Burn's");
    assert_eq!(read, BatchNormConfig::new(3).with_epsilon(1e-3));
}

#[test]
fn display_is_short() {
    let config = BatchNormConfig::new(3).with_activation(Activation::Relu);
    let text = config.init(&plain()).to_string();
    assert_eq!(
        text,
        "BatchNorm {num_features: 3, momentum: 0.1, epsilon: 0.00001, activation: relu, params: 12}"
    );
}

/// What does not fit is refused by name, and leaves the running statistics.
#[test]
fn what_does_not_fit_is_refused() {
    let layer = BatchNormConfig::new(3).init(&device());
    let zeros = |shape, dtype| Tensor::<3>::zeros(shape, (&device(), dtype));
    let x = zeros([2, 3, 4], DType::F32);
    refused(|| layer.forward(zeros([2, 4, 4], DType::F32)), "axis 1 expected 3, got 4");
    refused(|| layer.forward(Tensor::<1>::zeros([3], &device())), "expected rank at least 2");
    refused(|| layer.forward(zeros([1, 3, 1], DType::F32)), "more than 1 value");
    refused(|| layer.forward(zeros([0, 3, 2], DType::F32)), "more than 1 value");
    refused(|| layer.forward_add(x.clone(), zeros([2, 3, 1], DType::F32)), "residual: expected");
    refused(|| layer.forward_add(x.clone(), zeros([2, 3, 4], DType::F16)), "residual: expected");
    assert_eq!(values(layer.running_mean.value_sync()), [0.0; 3]);
    assert_eq!(values(layer.running_var.value_sync()), [1.0; 3]);
    let empty = zeros([0, 3, 2], DType::F32).without_autodiff();
    assert_eq!(layer.valid().forward(empty).dims(), [0, 3, 2]);

    let bad = |config: BatchNormConfig, expected| refused(|| config.init(&plain()), expected);
    let config = BatchNormConfig::new(3);
    bad(BatchNormConfig::new(0), "num_features");
    bad(config.clone().with_epsilon(0.0), "epsilon");
    bad(config.clone().with_epsilon(f64::NAN), "epsilon");
    bad(config.clone().with_momentum(1.5), "momentum");
    let infinite = Activation::LeakyRelu { negative_slope: f64::INFINITY };
    bad(config.with_activation(infinite), "negative_slope");
}

fn refused<T>(call: impl FnOnce() -> T, expected: &str) {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    let panic = result.err().expect("refused");
    let message = panic.downcast_ref::<String>().cloned();
    let message = message.or(panic.downcast_ref::<&str>().map(|it| it.to_string()));
    let message = message.expect("a message");
    assert!(message.contains(expected), "{message}");
}
