//! The numerical rules, each with a test that fails when the rule is broken.

use crate::common::flat::Buffers;
use crate::common::*;
use half::{bf16, f16};
use ndarray::{Array3, Axis};
use warpnorm::*;

fn plain(dim: Dim, layout: Layout) -> Case {
    Case::new(dim, layout, Epilogue::NONE)
}

/// Shapes that go every way through the kernels: one tile and several, folded and not, with rows
/// left over, in parts.
const SHAPES: [Dim; 9] = [
    (6, 3, 1),
    (64, 16, 1),
    (777, 5, 1),
    (9, 7, 49),
    (3, 40, 130),
    (2, 3, 5000),
    (1, 2, 70_001),
    (50_021, 2, 1),
    (31, 700, 3),
];

// 1 to 3: no cancellation, and a mean that keeps its low half.

#[test]
fn a_mean_of_a_million_deviations_costs_no_digit() {
    for layout in LAYOUTS {
        for dim in SHAPES {
            for activation in [Activation::Identity, RELU, Activation::Tanh] {
                let case = Case::new(dim, layout, Epilogue::activation(activation));
                check_far_from_zero(Case { mean: 1e4, std: 1e-2, eps: 1e-12, ..case });
            }
            let residual = Epilogue { activation: RELU, residual: true };
            let case = Case::new(dim, layout, residual);
            check_far_from_zero(Case { mean: -1e4, std: 1e-2, ..case });
        }
    }
}

/// f32 rounds values near 1e4 to multiples of 2^-10: the textbook is given exactly those.
fn check_far_from_zero(case: Case) {
    check_mode::<f32>(case, Embedding::Dense, Mode::Train);
    check_mode::<f32>(case, Embedding::Dense, Mode::Eval);
}

#[test]
fn the_saved_mean_holds_what_one_f32_cannot() {
    for layout in LAYOUTS {
        let case = Case { mean: 1e4, std: 1e-2, ..plain((100, 7, 33), layout) };
        let data = Data::<f32>::new(case);
        let (_, saved) = data.layer(Cpu::new()).forward_train(&data.x).unwrap();
        let expected = data.expected(Mode::Train);
        for channel in 0..7 {
            let (hi, lo) = (saved.mean_hi()[channel], saved.mean_lo()[channel]);
            assert_eq!(hi, expected.mean[channel] as f32);
            assert_ne!(lo, 0.0);
            let error = (f64::from(hi) + f64::from(lo) - expected.mean[channel]).abs();
            assert!(error < 1e-10, "{error:e}");
        }
    }
}

/// The mean of f64 is hi + lo too: at mean 1e8 and std 1e-4, one f64 alone would cost 1e-4.
#[test]
fn f64_keeps_the_low_half_of_its_mean() {
    for layout in LAYOUTS {
        for dim in [(64, 16, 9), (3, 3, 5000), (777, 5, 1)] {
            // Small integers times a power of two, so that adding 2^27 is exact.
            let mut random = Random::new(3);
            let unit = 2f64.powi(-25);
            let near =
                array::<f64>(dim, layout, |_, _, _| (8000.0 * random.normal()).round() * unit);
            let far = near.mapv(|x| x + 2f64.powi(27));
            let mut layer: BatchNorm<Cpu, f64> = BatchNorm::new(dim.1, Cpu::new()).unwrap();
            let (y, saved) = layer.forward_train(&near).unwrap();
            let (y_far, saved_far) = layer.forward_train(&far).unwrap();
            let dx = layer.backward(&near, &y, &saved).unwrap().dx;
            let dx_far = layer.backward(&far, &y, &saved_far).unwrap().dx;
            let largest = |a: &Array3<f64>| a.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            assert!(largest(&(&y - &y_far)) < 1e-10 * largest(&y), "{layout} {dim:?}");
            let scale = saved.invstd().iter().fold(0.0f64, |m, v| m.max(*v)) * largest(&y);
            assert!(largest(&(&dx - &dx_far)) < 1e-10 * scale, "{layout} {dim:?}");
        }
    }
}

/// Half precision has 11 bits: at mean 1000 and std 1 sums in f16, or in one f32, would show.
#[test]
fn sums_of_sixteen_bit_tensors_are_not_sixteen_bit() {
    for layout in LAYOUTS {
        for dim in SHAPES {
            let case = Case { mean: 1000.0, std: 4.0, ..plain(dim, layout) };
            check_mode::<f16>(case, Embedding::Dense, Mode::Train);
            check_mode::<bf16>(Case { std: 30.0, ..case }, Embedding::Dense, Mode::Train);
        }
    }
}

// 4: invstd is correctly rounded.

#[test]
fn invstd_is_correctly_rounded() {
    for layout in LAYOUTS {
        for (dim, eps) in [((40, 2000, 3), 1e-5), ((7, 700, 5), 0.0), ((3, 900, 70), 1e-3)] {
            let data = Data::<f32>::new(Case { eps, std: 1e-2, ..plain(dim, layout) });
            let (_, saved) = data.layer(Cpu::new()).forward_train(&data.x).unwrap();
            let expected = data.expected(Mode::Train).invstd;
            for (got, &want) in saved.invstd().iter().zip(&expected) {
                // A tie may fall to either side of the textbook's own rounding.
                let sides = [want * (1.0 - 1e-13), want * (1.0 + 1e-13)].map(|it| it as f32);
                assert!(sides.contains(got), "{got:e} for {want:e}");
            }
        }
    }
}

/// eps that f32 would round away, or round to another value.
#[test]
fn eps_and_momentum_are_not_rounded_to_f32() {
    let x = array::<f64>((2, 1, 1), Layout::ChannelsLast, |n, _, _| n as f64 * 2e-6);
    let (eps, momentum) = (1e-12 / 3.0, 1.0 / 3.0);
    let mut layer: BatchNorm<Cpu, f64> =
        BatchNormConfig::new(1).eps(eps).momentum(Some(momentum)).build(Cpu::new()).unwrap();
    let (_, saved) = layer.forward_train(&x).unwrap();
    let expected = 1.0 / (1e-12 + eps).sqrt();
    assert!((saved.invstd()[0] / expected - 1.0).abs() < 1e-15);
    assert!((layer.running_mean().unwrap()[0] / (momentum * 1e-6) - 1.0).abs() < 1e-15);
}

// 5: constant channels.

const CONSTANTS: [f64; 8] = [0.0, 1.0, -3.0, 0.1, 1e4 / 3.0, 1.0 / 3.0, -7e-3, 30_001.0];

/// A different constant in every channel, through every count of rows: the variance is exactly 0
/// (and so, with eps 0, is invstd) and y exactly the bias.
fn check_constant<E: Element>(dim: Dim, layout: Layout) {
    let x = array::<E>(dim, layout, |_, c, _| {
        CONSTANTS[c % CONSTANTS.len()] * if c < CONSTANTS.len() { 1.0 } else { 1.7 }
    });
    let bias = |c: usize| E::Param::from_f64((c as f64 * 0.37).sin());
    for eps in [0.0, 1e-5] {
        let config = BatchNormConfig::new(dim.1).eps(eps).momentum(Some(1.0));
        let mut layer: BatchNorm<Cpu, E::Param> = config.build(Cpu::new()).unwrap();
        layer.weight_mut().unwrap().fill(E::Param::from_f64(123.0));
        (0..dim.1).for_each(|c| layer.bias_mut().unwrap()[c] = bias(c));
        let (y, saved) = layer.forward_train(&x).unwrap();
        let what = format!("{} {layout} {dim:?} eps {eps}", E::DTYPE);
        for c in 0..dim.1 {
            let value = x[[0, c, 0]].to_f64();
            assert_eq!(layer.running_var().unwrap()[c].to_f64(), 0.0, "{what}: {value} varies");
            let mean = saved.mean_hi()[c].to_f64() + saved.mean_lo()[c].to_f64();
            assert_eq!(mean, value, "{what}");
            let invstd = if eps == 0.0 { 0.0 } else { 1.0 / eps.sqrt() };
            let invstd = E::Param::from_f64(invstd).to_f64();
            assert_eq!(saved.invstd()[c].to_f64(), invstd, "{what}");
            let expected = E::from_f64(bias(c).to_f64()).to_f64();
            let channel = y.index_axis(Axis(1), c);
            assert!(channel.iter().all(|y| y.to_f64() == expected), "{what}: {value}");
        }
    }
}

#[test]
fn constant_channels_of_every_count() {
    for layout in LAYOUTS {
        for rows in (2..140).chain([161, 187, 196, 197, 255, 257, 511, 1000]) {
            check_constant::<f32>((rows, 8, 1), layout);
            check_constant::<f32>((1, 16, rows), layout);
            check_constant::<f64>((rows, 16, 1), layout);
            check_constant::<f64>((3, 8, rows), layout);
        }
    }
}

#[test]
fn constant_channels_of_every_shape() {
    let wide = [(103, 300, 1), (11, 2500, 7), (61, 3, 49), (49, 11, 49), (5, 1, 40_003)];
    for layout in LAYOUTS {
        for dim in SHAPES.into_iter().chain(wide) {
            check_constant::<f32>(dim, layout);
            check_constant::<f64>(dim, layout);
            check_constant::<f16>(dim, layout);
            check_constant::<bf16>(dim, layout);
        }
    }
}

/// Samples of a larger array are merged one by one.
#[test]
fn constant_channels_with_gaps_between_samples() {
    for layout in LAYOUTS {
        for dim in [(103, 5, 1), (49, 3, 7), (196, 2, 49)] {
            let dense = array::<f32>(dim, layout, |_, c, _| CONSTANTS[c + 3]);
            let x = Embedded::new(&dense, layout, Embedding::EveryOther);
            let config = BatchNormConfig::new(dim.1).eps(0.0).momentum(Some(1.0));
            let mut layer: BatchNorm = config.build(Cpu::new()).unwrap();
            let (y, saved) = layer.forward_train(&x.view()).unwrap();
            assert!(layer.running_var().unwrap().iter().all(|&var| var == 0.0), "{layout} {dim:?}");
            assert!(saved.invstd().iter().all(|&invstd| invstd == 0.0), "{layout} {dim:?}");
            assert!(y.iter().all(|&y| y == 0.0), "{layout} {dim:?}");
        }
    }
}

#[test]
fn a_constant_channel_gives_the_activation_of_bias_and_residual_rounded_once() {
    fn check<E: Element>(layout: Layout, activation: Activation, dim: Dim) {
        let x = array::<E>(dim, layout, |_, c, _| CONSTANTS[c + 3]);
        let mut random = Random::new(11);
        let residual = array::<E>(dim, layout, |_, _, _| random.normal());
        let config = BatchNormConfig::new(dim.1).activation(activation);
        let mut layer: BatchNorm<Cpu, E::Param> = config.build(Cpu::new()).unwrap();
        layer.bias_mut().unwrap().fill(E::Param::from_f64(0.3));
        let bias = E::Param::from_f64(0.3).to_f64();
        let (y, _) = layer.forward_train_add(&x, &residual).unwrap();
        for (y, residual) in y.iter().zip(&residual) {
            let z = bias + residual.to_f64();
            let exact = reference::activate(activation, z);
            // Smooth activations have more digits than the type before they are rounded.
            let digits = if E::DTYPE == DType::F64 { 1e-14 } else { 1e-9 };
            let slack =
                if activation.is_smooth() { digits * z.abs().max(exact.abs()) } else { 0.0 };
            let range = [exact - slack, exact + slack].map(|it| E::from_f64(it).to_f64());
            let got = y.to_f64();
            assert!(range[0] <= got && got <= range[1], "{activation} {}: {got} {exact}", E::DTYPE);
        }
    }
    for layout in LAYOUTS {
        for activation in ACTIVATIONS {
            for dim in [(7, 3, 61), (103, 5, 1)] {
                check::<f32>(layout, activation, dim);
                check::<f64>(layout, activation, dim);
                check::<f16>(layout, activation, dim);
                check::<bf16>(layout, activation, dim);
            }
        }
    }
}

/// Where f32 holds no number as large as invstd.
#[test]
fn a_constant_channel_with_the_smallest_eps_gives_the_bias() {
    fn check<E: Element>(layout: Layout, eps: f64) {
        for dim in [(7, 3, 61), (103, 5, 1), (2, 40, 7)] {
            let x = array::<E>(dim, layout, |_, c, _| CONSTANTS[c % 3 + 3]);
            let dy = array::<E>(dim, layout, |n, c, s| (n + c + s) as f64);
            let config = BatchNormConfig::new(dim.1).eps(eps);
            let mut layer: BatchNorm<Cpu, E::Param> = config.build(Cpu::new()).unwrap();
            layer.bias_mut().unwrap().fill(E::Param::from_f64(0.25));
            let (y, saved) = layer.forward_train(&x).unwrap();
            assert!(y.iter().all(|y| y.to_f64() == 0.25), "{} {layout} {eps:e}", E::DTYPE);
            let gradients = layer.backward(&x, &dy, &saved).unwrap();
            assert!(gradients.dweight.unwrap().iter().all(|it| it.to_f64() == 0.0));
        }
    }
    for layout in LAYOUTS {
        for eps in [1e-77, 1e-78, 1e-100, f64::MIN_POSITIVE] {
            check::<f32>(layout, eps);
            check::<f64>(layout, eps);
            check::<f16>(layout, eps);
            check::<bf16>(layout, eps);
        }
    }
}

/// Where all of a channel lies far out, slopes are small, and right all the same.
#[test]
fn saturated_activations_keep_the_digits_of_their_slopes() {
    let cases = [
        (Activation::Sigmoid, 30.0),
        (Activation::Sigmoid, 60.0),
        (Activation::Sigmoid, -60.0),
        (Activation::Tanh, 12.0),
        (Activation::Tanh, -30.0),
    ];
    for layout in LAYOUTS {
        for (activation, bias) in cases {
            let case = Case::new((9, 3, 20), layout, Epilogue::activation(activation));
            let mut data = Data::<f32>::new(case);
            data.bias.fill(bias);
            let expected = data.expected(Mode::Train);
            let mut layer = data.layer(Cpu::new());
            let (_, saved) = layer.forward_train(&data.x).unwrap();
            let gradients = layer.backward(&data.x, &data.dy, &saved).unwrap();
            let want = &expected.gradients;
            assert_tensor("dx", &gradients.dx, &want.dx, &expected.scale.dx, 4e-7);
            for (got, want) in gradients.dbias.unwrap().iter().zip(&want.dbias) {
                let error = (f64::from(*got) - want).abs();
                assert!(*want != 0.0 && error < 1e-5 * want.abs(), "{activation} {got:e} {want:e}");
            }
        }
    }
}

#[test]
fn without_variance_and_eps_no_gradient_reaches_x() {
    for layout in LAYOUTS {
        for dim in SHAPES {
            let mut data = Data::<f32>::new(Case { eps: 0.0, ..plain(dim, layout) });
            data.x.iter_mut().for_each(|x| *x = 0.1);
            let mut layer = data.layer(Cpu::new());
            let (_, saved) = layer.forward_train(&data.x).unwrap();
            let gradients = layer.backward(&data.x, &data.dy, &saved).unwrap();
            assert!(gradients.dx.iter().all(|&dx| dx == 0.0), "{layout} {dim:?}");
            assert!(gradients.dweight.unwrap().iter().all(|&dweight| dweight == 0.0));
            // The bias still learns.
            assert!(gradients.dbias.unwrap().iter().any(|&dbias| dbias != 0.0));
        }
    }
}

/// Running statistics with a variance of 0, and eps 0: y is the bias.
#[test]
fn evaluation_without_variance_and_eps_gives_the_bias() {
    for layout in LAYOUTS {
        let mut data = Data::<f32>::new(Case { eps: 0.0, ..plain((4, 9, 5), layout) });
        data.running_var.fill(0.0);
        let (y, gradients) = eval(&data.layer(Cpu::new()), &data.x, None, &data.dy);
        assert!(y.indexed_iter().all(|((_, c, _), &y)| f64::from(y) == data.bias[c]));
        assert!(gradients.dx.iter().all(|&dx| dx == 0.0));
    }
}

// 6: range.

/// Magnitudes at either end, and both in one tensor: partial moments meet across 60 decades.
#[test]
fn any_magnitude_up_to_1e30_and_any_std_down_to_1e_minus_30() {
    for layout in LAYOUTS {
        for dim in SHAPES {
            for (mean, std) in [
                (0.0, 1e30 / 8.0),
                (1e29, 1e29),
                (0.0, 1e-30),
                (3e-30, 1e-30),
                (1e-24, 1e-30),
                (0.0, 1e-15),
                (1e20, 1e16),
            ] {
                let case = Case { mean, std, eps: 0.0, ..plain(dim, layout) };
                check_mode::<f32>(case, Embedding::Dense, Mode::Train);
                check_mode::<f64>(Case { mean: 0.0, ..case }, Embedding::Dense, Mode::Train);
            }
        }
    }
}

#[test]
fn gradients_of_1e30_are_not_lost() {
    for layout in LAYOUTS {
        for dim in SHAPES {
            // dx is finite in f32 where std times weight allows it.
            for (std, gradient) in [(1e30 / 8.0, 1e29), (1.0, 1e29), (1e-30, 1e-3), (1e-6, 1e29)] {
                let mut data = Data::<f32>::new(Case { std, eps: 0.0, ..plain(dim, layout) });
                let mut random = Random::new(7);
                data.x = array(dim, layout, |_, _, _| std * random.normal());
                data.dy = array(dim, layout, |_, _, _| gradient * random.normal());
                check_data(&data, Embedding::Dense, Mode::Train);
            }
        }
    }
}

/// 16-bit tensors are computed in f32 only where its range is enough.
#[test]
fn bf16_keeps_its_range() {
    for layout in LAYOUTS {
        for dim in SHAPES {
            for (mean, std) in
                [(0.0, 1e30 / 8.0), (1e29, 1e29), (0.0, 1e-30), (3e-30, 1e-30), (0.0, 1e-15)]
            {
                for activation in [Activation::Identity, RELU] {
                    let epilogue = Epilogue::activation(activation);
                    let case = Case { mean, std, eps: 0.0, ..Case::new(dim, layout, epilogue) };
                    check_mode::<bf16>(case, Embedding::Dense, Mode::Train);
                    let mut data = Data::<bf16>::new(case);
                    data.dy.mapv_inplace(|dy| {
                        bf16::from_f64(dy.to_f64() * if std < 1.0 { 1e-3 } else { 1e29 })
                    });
                    check_data(
                        &data.without_gradients_at_kinks(Mode::Train),
                        Embedding::Dense,
                        Mode::Train,
                    );
                }
            }
        }
    }
}

/// weight / std is below f32's range here, y and dx are not.
#[test]
fn a_scale_below_the_range_of_f32_keeps_its_digits() {
    for layout in LAYOUTS {
        for dim in SHAPES {
            let case = Case { mean: 0.0, std: 1e30 / 8.0, eps: 0.0, ..plain(dim, layout) };
            let mut data = Data::<bf16>::new(case);
            data.weight.fill(f64::from(1e-14f32));
            data.bias.fill(0.0);
            data.dy.mapv_inplace(|dy| bf16::from_f64(dy.to_f64() * 1e29));
            check_data(&data, Embedding::Dense, Mode::Train);
        }
    }
}

/// One outlier of 1e30 among ordinary values: everything stays finite and right.
#[test]
fn one_huge_value_among_ordinary_ones() {
    for layout in LAYOUTS {
        for dim in SHAPES {
            let mut data = Data::<f32>::new(plain(dim, layout));
            data.x[[dim.0 / 2, 1, dim.2 / 2]] = 1e30;
            check_data(&data, Embedding::Dense, Mode::Train);
        }
    }
}

#[test]
fn sixteen_bit_outputs_round_to_infinity_as_ieee_does() {
    for layout in LAYOUTS {
        let data = Data::<f16>::new(plain((4, 3, 8), layout));
        let mut layer = data.layer(Cpu::new());
        layer.weight_mut().unwrap().fill(1e6);
        let (y, _) = layer.forward_train(&data.x).unwrap();
        let mut single = Data::<f32>::new(plain((4, 3, 8), layout)).layer(Cpu::new());
        single.weight_mut().unwrap().fill(1e6);
        single.bias_mut().unwrap().copy_from_slice(layer.bias().unwrap());
        let (wide, _) = single.forward_train(&data.x.mapv(f32::from)).unwrap();
        assert!(y.iter().any(|y| y.is_infinite()) && y.iter().any(|y| y.is_finite()));
        for (&y, &wide) in y.iter().zip(&wide) {
            if wide.abs() > 65_521.0 {
                assert_eq!(y, if wide > 0.0 { f16::INFINITY } else { f16::NEG_INFINITY });
            } else if wide.abs() < 65_519.0 {
                assert!(y.is_finite());
            }
        }
    }
}

/// Many pre-activations are 0 but for rounding: backward lets a gradient through exactly where
/// forward let a value through. `steep` puts a channel among them that f32 cannot hold.
fn check_gates(dim: Dim, layout: Layout, steep: bool) {
    let unit = |c: usize| if steep && c == 1 { 1e-20 } else { 1.0 };
    let x = array::<bf16>(dim, layout, |n, c, s| {
        ((n * 31 + c * 7 + s * 17) % 5) as f64 / 4.0 * unit(c)
    });
    let dy = array::<bf16>(dim, layout, |_, _, _| 1.0);
    let config = BatchNormConfig::new(dim.1).eps(1e-12).momentum(Some(1.0)).activation(RELU);
    let mut layer: BatchNorm<Cpu> = config.build(Cpu::new()).unwrap();
    (0..dim.1).for_each(|c| layer.weight_mut().unwrap()[c] = 1.0 + 0.37 * c as f32);
    let (_, saved) = layer.forward_train(&x).unwrap();
    let to_zero = |c: usize, mean: f64, invstd: f64| {
        (-(0.5 * unit(c) - mean) * invstd * f64::from(1.0 + 0.37 * c as f32)) as f32
    };

    for c in 0..dim.1 {
        let mean = f64::from(saved.mean_hi()[c]) + f64::from(saved.mean_lo()[c]);
        layer.bias_mut().unwrap()[c] = to_zero(c, mean, saved.invstd()[c].into());
    }
    let (y, saved) = layer.forward_train(&x).unwrap();
    let gradients = layer.backward(&x, &dy, &saved).unwrap();
    for (c, y) in y.axis_iter(Axis(1)).enumerate() {
        let open = y.iter().filter(|y| y.to_f64() > 0.0).count();
        assert_eq!(gradients.dbias.as_ref().unwrap()[c], open as f32, "{dim:?} {layout} {c}");
    }

    for c in 0..dim.1 {
        let var = f64::from(layer.running_var().unwrap()[c]);
        let mean = f64::from(layer.running_mean().unwrap()[c]);
        layer.bias_mut().unwrap()[c] = to_zero(c, mean, 1.0 / (var + 1e-12).sqrt());
    }
    let y = layer.forward_eval(&x).unwrap();
    let mut in_place = x.clone();
    layer.forward_eval_inplace(&mut in_place).unwrap();
    assert_eq!(bits(&in_place), bits(&y), "{dim:?} {layout}");
    let dx = layer.backward_eval(&x, &dy).unwrap().dx;
    for (index, dx) in dx.indexed_iter() {
        assert_eq!(dx.to_f64() > 0.0, y[index].to_f64() > 0.0, "{dim:?} {layout} {index:?}");
    }
}

#[test]
fn backward_opens_the_gates_that_forward_opened() {
    for layout in LAYOUTS {
        for dim in [(9, 40, 49), (64, 33, 1), (3, 40, 300), (2, 5, 5000)] {
            check_gates(dim, layout, false);
            check_gates(dim, layout, true);
        }
    }
}

// 7: what is not finite stays in its channel.

#[test]
fn non_finite_values_stay_in_their_channel() {
    for layout in LAYOUTS {
        for dim in SHAPES.into_iter().filter(|dim| dim.1 > 2) {
            for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for epilogue in [Epilogue::NONE, Epilogue { activation: RELU, residual: true }] {
                    check_contained(Case::new(dim, layout, epilogue), poison);
                }
            }
        }
    }
}

/// Of x frozen backward asks the derivative of the activation, if there is one, and no more.
#[test]
fn frozen_gradients_do_not_see_what_is_not_finite() {
    for layout in LAYOUTS {
        for dim in SHAPES {
            for activation in [Activation::Identity, RELU] {
                let epilogue = Epilogue { activation, residual: activation != RELU };
                check_frozen::<f32>(Case::new(dim, layout, epilogue));
                check_frozen::<bf16>(Case::new(dim, layout, epilogue));
            }
        }
    }
}

fn check_frozen<E: Element>(case: Case) {
    let mut data = Data::<E>::new(case);
    let layer = data.layer(Cpu::new());
    let (_, clean) = eval(&layer, &data.x, data.residual(), &data.dy);
    data.x.fill(E::from_f64(f64::NAN));
    let (y, frozen) = eval(&layer, &data.x, data.residual(), &data.dy);
    assert!(y.iter().all(|y| y.to_f64().is_nan()), "{case:?}");
    for ((index, &dx), &clean) in frozen.dx.indexed_iter().zip(&clean.dx) {
        // NaN passes ReLU, and so does its gradient.
        assert!(dx.to_f64().is_finite(), "{case:?} {index:?}");
        let (dx, clean) = (dx.to_f64(), clean.to_f64());
        assert!(dx == clean || clean == 0.0, "{case:?} {index:?}");
    }
    if case.epilogue.residual {
        assert_eq!(bits(frozen.dresidual.as_ref().unwrap()), bits(&data.dy), "{case:?}");
    }
}

fn check_contained(case: Case, poison: f32) {
    let clean = Data::<f32>::new(case);
    let mut dirty = Data::<f32>::new(case);
    let (n, s) = (case.dim.0 - 1, case.dim.2 / 2);
    dirty.x[[n, 1, s]] = poison;
    let [clean, dirty] = [clean, dirty].map(|data| {
        let mut layer = data.layer(Cpu::new());
        let (y, saved, gradients) = train(&mut layer, &data.x, data.residual(), &data.dy);
        let dweight = gradients.dweight.unwrap();
        (y, gradients.dx, saved.invstd().clone(), layer.running_var().unwrap().to_vec(), dweight)
    });
    for c in 0..case.dim.1 {
        let [y_clean, y] = [&clean.0, &dirty.0].map(|y| y.index_axis(Axis(1), c));
        let [dx_clean, dx] = [&clean.1, &dirty.1].map(|dx| dx.index_axis(Axis(1), c));
        if c == 1 {
            assert!(y[[n, s]].is_nan() && dirty.2[c].is_nan() && dirty.3[c].is_nan());
            continue;
        }
        assert!(y == y_clean && dx == dx_clean, "{case:?} {poison}: channel {c}");
        assert!(dirty.2[c] == clean.2[c] && dirty.3[c] == clean.3[c]);
        assert_eq!(dirty.4[c], clean.4[c]);
    }
}

/// In the gradient alone: dy poisons its own channel's dx and sums, no other.
#[test]
fn a_non_finite_gradient_stays_in_its_channel() {
    for layout in LAYOUTS {
        for dim in SHAPES.into_iter().filter(|dim| dim.1 > 2) {
            let mut data = Data::<f32>::new(plain(dim, layout));
            let mut layer = data.layer(Cpu::new());
            let (_, _, clean) = train(&mut layer, &data.x, None, &data.dy);
            data.dy[[0, 2, 0]] = f32::NAN;
            let (_, _, dirty) = train(&mut layer, &data.x, None, &data.dy);
            for c in 0..dim.1 {
                let dbias = dirty.dbias.as_ref().unwrap()[c];
                let [dx, before] = [&dirty.dx, &clean.dx].map(|dx| dx.index_axis(Axis(1), c));
                match c {
                    2 => assert!(dbias.is_nan() && dx.iter().all(|dx| dx.is_nan())),
                    _ => assert!(dx == before && !dbias.is_nan()),
                }
            }
        }
    }
}

/// Channels-last, the coefficients of a row are one array: a bad one must not choose the arithmetic of
/// the others.
#[test]
fn a_bad_parameter_changes_no_bit_of_another_channel() {
    for layout in LAYOUTS {
        for bad in [f64::NAN, f64::INFINITY] {
            for epilogue in [Epilogue::NONE, Epilogue::activation(RELU)] {
                let clean = Data::<bf16>::new(Case::new((50, 40, 1), layout, epilogue));
                for parameter in 0..2 {
                    let mut dirty = clean.clone();
                    let changed = [&mut dirty.weight, &mut dirty.bias];
                    changed[parameter][2] = bad;
                    let [(y, _, of), (clean_y, _, clean_of)] = [&dirty, &clean].map(|data| {
                        train(&mut data.layer(Cpu::new()), &data.x, data.residual(), &data.dy)
                    });
                    for c in (0..40).filter(|&c| c != 2) {
                        for (got, want) in [(&y, &clean_y), (&of.dx, &clean_of.dx)] {
                            let [got, want] = [got, want].map(|it| it.index_axis(Axis(1), c));
                            assert!(got == want, "{bad} {epilogue:?} {layout} {c}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn activations_propagate_nan() {
    for layout in LAYOUTS {
        for epilogue in epilogues() {
            // Evaluation acts on each element: NaN in, NaN out, there and nowhere else.
            let mut data = Data::<f32>::new(Case::new((3, 5, 7), layout, epilogue));
            data.x[[1, 2, 3]] = f32::NAN;
            data.residual[[2, 4, 6]] = f32::NAN;
            let (y, gradients) = eval(&data.layer(Cpu::new()), &data.x, data.residual(), &data.dy);
            for ((n, c, s), y) in y.indexed_iter() {
                let poisoned =
                    (n, c, s) == (1, 2, 3) || epilogue.residual && (n, c, s) == (2, 4, 6);
                assert_eq!(y.is_nan(), poisoned, "{epilogue:?} {layout} [{n}, {c}, {s}]");
            }
            if epilogue.activation.is_smooth() {
                assert!(gradients.dx[[1, 2, 3]].is_nan(), "{epilogue:?} {layout}");
            }
        }
    }
}

// 8: running statistics.

#[test]
fn running_variance_is_unbiased_and_normalization_biased() {
    // Variance of 1, 2, 3, 6: biased 3.5, unbiased 14/3.
    let x = ndarray::array![[1.0f64], [2.0], [3.0], [6.0]];
    let mut layer: BatchNorm<Cpu, f64> =
        BatchNormConfig::new(1).eps(0.0).momentum(Some(0.25)).build(Cpu::new()).unwrap();
    let (y, saved) = layer.forward_train(&x).unwrap();
    assert!((saved.invstd()[0] - 1.0 / 3.5f64.sqrt()).abs() < 1e-15);
    assert!((y[[3, 0]] - 3.0 / 3.5f64.sqrt()).abs() < 1e-15);
    assert!((layer.running_mean().unwrap()[0] - 0.25 * 3.0).abs() < 1e-15);
    assert!((layer.running_var().unwrap()[0] - (0.75 + 0.25 * 14.0 / 3.0)).abs() < 1e-15);
    assert_eq!(layer.num_batches_tracked(), Some(1));
}

#[test]
fn no_momentum_is_the_cumulative_average() {
    let mut layer: BatchNorm<Cpu, f64> =
        BatchNormConfig::new(1).momentum(None).build(Cpu::new()).unwrap();
    let mut random = Random::new(9);
    let (mut means, mut vars) = (0.0, 0.0);
    for batch in 1..=7 {
        let x = ndarray::Array2::from_shape_simple_fn((5 + batch, 1), || random.normal());
        layer.forward_train(&x).unwrap();
        means += x.mean().unwrap();
        vars += x.var(1.0);
        let count = batch as f64;
        assert!((layer.running_mean().unwrap()[0] - means / count).abs() < 1e-14);
        assert!((layer.running_var().unwrap()[0] - vars / count).abs() < 1e-14);
        assert_eq!(layer.num_batches_tracked(), Some(batch as u64));
    }
}

#[test]
fn momentum_of_one_replaces_and_of_zero_keeps() {
    for (momentum, expected) in [(1.0, 3.0), (0.0, 0.0)] {
        let config = BatchNormConfig::new(1).momentum(Some(momentum));
        let mut layer: BatchNorm = config.build(Cpu::new()).unwrap();
        layer.forward_train(&ndarray::array![[2.0f32], [4.0]]).unwrap();
        assert_eq!(layer.running_mean().unwrap(), [expected]);
        assert_eq!(layer.num_batches_tracked(), Some(1));
    }
}

#[test]
fn one_value_per_channel_cannot_be_trained_on_but_evaluated() {
    for dim in [(1, 4, 1), (0, 4, 1), (0, 4, 9), (3, 4, 0)] {
        for layout in LAYOUTS {
            let data = Data::<f32>::new(plain(dim, layout));
            let mut layer = data.layer(Cpu::new());
            let before = layer.state().unwrap();
            let error = layer.forward_train(&data.x).err().unwrap().to_string();
            assert!(error.starts_with("`x`: expected more than 1 value per channel"), "{error}");
            assert_eq!(layer.state().unwrap(), before);
            assert_eq!(layer.forward_eval(&data.x).unwrap().dim(), dim);
            let gradients = layer.backward_eval(&data.x, &data.dy).unwrap();
            let sum = dim.0 * dim.2 > 0;
            assert_eq!(gradients.dbias.unwrap().iter().any(|&dbias| dbias != 0.0), sum);
        }
    }
}

// 9: the same bits.

/// All that a training step and an evaluation give, as bits.
fn results<E: Element>(data: &Data<E>, cpu: Cpu) -> Vec<Vec<u64>> {
    let mut layer = data.layer(cpu);
    let (y, saved, gradients) = train(&mut layer, &data.x, data.residual(), &data.dy);
    let (eval_y, frozen) = eval(&layer, &data.x, data.residual(), &data.dy);
    let mut all = vec![bits(&y), bits(&eval_y)];
    for statistic in [saved.mean_hi(), saved.mean_lo(), saved.invstd()] {
        all.push(value_bits(statistic));
    }
    all.push(saved.mask().into_iter().flatten().map(|&byte| byte.into()).collect());
    all.push(value_bits(layer.running_mean().unwrap()));
    all.push(value_bits(layer.running_var().unwrap()));
    for gradients in [gradients, frozen] {
        all.push(bits(&gradients.dx));
        all.push(gradients.dresidual.as_ref().map_or(vec![], |it| bits(it)));
        all.push(value_bits(&gradients.dweight.unwrap().to_vec()));
        all.push(value_bits(&gradients.dbias.unwrap().to_vec()));
    }
    all
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let backends: Vec<Cpu> =
        [2, 3, 8].into_iter().map(|threads| Cpu::with_threads(threads).unwrap()).collect();
    let shapes = [
        (64, 12, 400),
        (1, 1, 200_003),
        (37, 3, 4099),
        (6, 40, 777),
        (9, 2200, 11),
        (70_001, 3, 1),
        (301, 512, 1),
        // Channels-first samples as rows, in several parts.
        (301, 512, 4),
        // Cut along the positions, with more channels than tasks.
        (1, 29, 33_000),
    ];
    for layout in LAYOUTS {
        for dim in shapes {
            for epilogue in [Epilogue::NONE, Epilogue { activation: RELU, residual: true }] {
                let case = Case::new(dim, layout, epilogue);
                same_bits(&Data::<f32>::new(case), &backends);
                same_bits(&Data::<f64>::new(case), &backends);
            }
        }
    }
}

/// Where the mask says all, a residual and the gaps between its samples are nothing to backward.
#[test]
fn a_residual_that_is_not_read_changes_no_bit() {
    let epilogue = Epilogue { activation: RELU, residual: true };
    for layout in LAYOUTS {
        let data = Data::<f32>::new(Case::new((61, 24, 49), layout, epilogue));
        let mut buffers = Buffers::with_gaps(&data, &[(Operand::Residual, 8)]);
        buffers.forward_train(&Cpu::new()).unwrap();
        let reduce = |buffers: &mut Buffers<f32>, residual: Option<Vec<f32>>| {
            buffers.residual = residual;
            let mut sums = vec![f64::NAN; SUM_ROWS * 24];
            buffers.backward_reduce(&Cpu::new(), &mut sums).unwrap();
            sums.into_iter().map(f64::to_bits).collect::<Vec<_>>()
        };
        let residual = buffers.residual.clone().unwrap();
        assert!(reduce(&mut buffers, Some(residual)) == reduce(&mut buffers, None), "{layout}");
    }
}

/// Few channels and many, few samples and many: cut along either, or not, in tasks of one channel or
/// several.
#[test]
fn shapes_that_nobody_chose_give_the_same_bits_on_any_number_of_threads() {
    let mut random = Random::new(17);
    for round in 0..16 {
        let mut below = |end: f64| random.uniform(1.0, end) as usize;
        let (n, c, threads) = (below(9.0), below(40.0), 1 + below(8.0));
        let dim = (n, c, (70_000 + below(1e6)) / (n * c));
        let backends = [Cpu::with_threads(threads).unwrap()];
        let activation = [Activation::Identity, RELU, Activation::Relu6][round % 3];
        let epilogue = Epilogue { activation, residual: round % 2 == 0 };
        for layout in LAYOUTS {
            let case = Case::new(dim, layout, epilogue);
            match round % 4 {
                0 => same_bits(&Data::<f32>::new(case), &backends),
                1 => same_bits(&Data::<f64>::new(case), &backends),
                2 => same_bits(&Data::<f16>::new(case), &backends),
                _ => same_bits(&Data::<bf16>::new(case), &backends),
            }
        }
    }
}

fn same_bits<E: Element>(data: &Data<E>, backends: &[Cpu]) {
    let one = results(data, Cpu::with_threads(1).unwrap());
    assert!(results(data, Cpu::with_threads(1).unwrap()) == one, "repeated");
    for backend in backends {
        assert!(results(data, backend.clone()) == one, "{backend:?} {:?}", data.case);
    }
    assert!(results(data, Cpu::new()) == one, "ambient {:?}", data.case);
}

#[test]
fn the_pool_that_a_call_is_made_in_changes_no_bit() {
    let silu = Epilogue { activation: Activation::Silu, residual: true };
    for layout in LAYOUTS {
        let data = Data::<bf16>::new(Case::new((35, 5, 811), layout, silu));
        let outside = results(&data, Cpu::new());
        let pool = rayon::ThreadPoolBuilder::new().num_threads(5).build().unwrap();
        assert!(pool.install(|| results(&data, Cpu::new())) == outside);
        assert!(pool.install(|| results(&data, Cpu::with_threads(2).unwrap())) == outside);
    }
}

/// A workspace that has served another call is as good as a new one.
#[test]
fn a_used_workspace_changes_no_bit() {
    for layout in LAYOUTS {
        let mut clean = Buffers::dense(&Data::<f32>::new(plain((700, 5, 3), layout)));
        let mut used = clean.clone();
        let dirt = Data::<f32>::new(Case { mean: f64::NAN, ..plain((700, 5, 3), layout) });
        let mut other = Buffers::dense(&dirt);
        other.forward_train(&Cpu::new()).unwrap();
        other.backward_train(&Cpu::new()).unwrap();
        used.workspace = other.workspace;
        for buffers in [&mut clean, &mut used] {
            buffers.forward_train(&Cpu::new()).unwrap();
            buffers.backward_train(&Cpu::new()).unwrap();
        }
        assert_eq!(clean.fingerprint(), used.fingerprint());
    }
}

// 10: any size.

#[test]
fn more_rows_than_sixteen_bits_count() {
    for layout in LAYOUTS {
        check::<f32>(plain((65_537, 3, 1), layout), Embedding::Dense);
        check::<f32>(plain((131_073, 1, 2), layout), Embedding::EveryOther);
    }
}

#[test]
fn a_hundred_thousand_channels() {
    for layout in LAYOUTS {
        check::<f32>(plain((3, 100_000, 1), layout), Embedding::Dense);
        check::<f32>(plain((1, 100_000, 3), layout), Embedding::Window);
    }
}

#[test]
fn a_batch_of_one_sample() {
    for layout in LAYOUTS {
        for dim in [(1, 1, 2), (1, 3, 7), (1, 129, 65), (1, 7, 3001)] {
            check::<f32>(plain(dim, layout), Embedding::Dense);
        }
        check_mode::<f32>(plain((1, 1000, 1), layout), Embedding::Dense, Mode::Eval);
    }
}

/// A pivot taken from what came first must not cost f64 digits where the data then jump.
#[test]
fn f64_keeps_its_digits_where_the_data_jump() {
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        for (n, c, s) in [(2, 3, 4099), (4099, 3, 1), (600, 70, 3)] {
            let x = crate::common::array::<f64>((n, c, s), layout, |n, c, s| {
                let first = n == 0 && s == 0;
                let spread = ((n * 7919 + s * 104_729 + c * 31) % 1009) as f64 / 1009.0;
                if first { 300.0 } else { spread }
            });
            let (mean, var) = warpnorm::reference::moments(x.view());
            let mut bn: BatchNorm<Cpu, f64> =
                BatchNormConfig::new(c).eps(0.0).build(Cpu::new()).unwrap();
            let (_, saved) = bn.forward_train(&x).unwrap();
            for channel in 0..c {
                let expected = 1.0 / var[channel].sqrt();
                let error = (saved.invstd()[channel] - expected).abs() / expected;
                assert!(error < 2e-14, "{layout} [{n}, {c}, {s}]: invstd off by {error:e}");
                let error = (saved.mean_hi()[channel] - mean[channel]).abs() * expected;
                assert!(error < 2e-14, "{layout} [{n}, {c}, {s}]: mean off by {error:e}");
            }
        }
    }
}

/// A rank without rows writes zeros, whatever a workspace was used for before.
#[test]
fn the_moments_of_an_empty_rank_are_zero() {
    let cpu = Cpu::new();
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        let full = Problem::new(&[40, 3, 2], layout, DType::F32, Epilogue::NONE).unwrap();
        let no_rows = Problem::new(&[0, 3, 2], layout, DType::F32, Epilogue::NONE).unwrap();
        let no_positions = Problem::new(&[40, 3, 0], layout, DType::F32, Epilogue::NONE).unwrap();
        let gaps = no_positions.with_batch_stride(Operand::X, 10).unwrap();
        // So many samples of nothing that going over them would not end.
        let endless = Problem::new(&[1 << 40, 3, 0], layout, DType::F32, Epilogue::NONE).unwrap();
        let mut workspace = cpu.workspace(&full).unwrap();
        let x: Vec<f32> = (0..full.elements()).map(|i| i as f32).collect();
        for empty in [no_rows, no_positions, gaps, endless] {
            let mut moments = vec![7.0; MOMENT_ROWS * 3];
            let mut statistics = |problem: &Problem, x: &[f32]| {
                cpu.statistics::<f32>(problem, x.into(), (&mut moments).into(), &mut workspace)
            };
            statistics(&full, &x).unwrap();
            statistics(&empty, &vec![1.0; empty.span(Operand::X)]).unwrap();
            assert_eq!(moments, vec![0.0; MOMENT_ROWS * 3], "{layout} {empty}");
        }
    }
}
