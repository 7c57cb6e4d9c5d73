//! Every call against the textbook in f64, over element types, layouts, shapes, strides,
//! activations and residuals; the bars are those of `common::Bars`.

use crate::common::flat::Buffers;
use crate::common::*;
use half::{bf16, f16};
use ndarray::{Array3, Axis, Slice};
use warpnorm::*;

/// Channels few enough to be folded, and more than a tile; one position, odd numbers of them, more
/// than a tile; batches that leave rows over.
const SHAPES: [Dim; 20] = [
    (2, 1, 1),
    (5, 3, 1),
    (2, 7, 7),
    (3, 16, 49),
    (2, 17, 50),
    (4, 33, 7),
    (3, 64, 9),
    (2, 300, 11),
    (67, 300, 1),
    (2, 2500, 3),
    (9, 2500, 1),
    (1, 3, 2049),
    (2, 5, 5000),
    (70, 1, 49),
    (1, 1, 4097),
    (300, 3, 1),
    (129, 16, 3),
    // Samples as rows, on the CPU: several panels of them, odd planes, the largest.
    (9, 2100, 2),
    (37, 450, 9),
    (70, 5, 12),
];

fn check_shapes<E: Element>(embedding: Embedding) {
    let epilogue = Epilogue { activation: RELU, residual: true };
    for dim in SHAPES {
        for layout in LAYOUTS {
            check::<E>(Case::new(dim, layout, Epilogue::NONE), embedding);
            check::<E>(Case::new(dim, layout, epilogue), embedding);
        }
    }
}

#[test]
fn every_shape_in_f32() {
    check_shapes::<f32>(Embedding::Dense);
}

#[test]
fn every_shape_in_f64() {
    check_shapes::<f64>(Embedding::Dense);
}

#[test]
fn every_shape_in_f16() {
    check_shapes::<f16>(Embedding::Dense);
}

#[test]
fn every_shape_in_bf16() {
    check_shapes::<bf16>(Embedding::Dense);
}

#[test]
fn every_other_sample_of_a_larger_array() {
    check_shapes::<f32>(Embedding::EveryOther);
    check_shapes::<bf16>(Embedding::EveryOther);
}

/// Also the column slices of `[N, C]`. The windows start at odd elements.
#[test]
fn windows_of_a_larger_array() {
    check_shapes::<f32>(Embedding::Window);
    check_shapes::<f64>(Embedding::Window);
    check_shapes::<f16>(Embedding::Window);
}

fn check_epilogues<E: Element>() {
    for epilogue in epilogues() {
        for layout in LAYOUTS {
            // Masks: 53 positions and 13 channels leave bits over.
            for dim in [(3, 5, 53), (6, 13, 5), (2, 8, 21), (40, 16, 1), (2, 2051, 2), (21, 15, 4)]
            {
                check::<E>(Case::new(dim, layout, epilogue), Embedding::Dense);
            }
            check::<E>(Case::new((3, 13, 9), layout, epilogue), Embedding::Window);
            check::<E>(Case::new((3, 13, 9), layout, epilogue), Embedding::EveryOther);
        }
    }
}

#[test]
fn every_epilogue_in_f32() {
    check_epilogues::<f32>();
}

#[test]
fn every_epilogue_in_f64() {
    check_epilogues::<f64>();
}

#[test]
fn every_epilogue_in_f16() {
    check_epilogues::<f16>();
}

#[test]
fn every_epilogue_in_bf16() {
    check_epilogues::<bf16>();
}

/// Few large channels are cut into parts, along the batch or along the positions; all are large
/// enough for several threads.
#[test]
fn channels_cut_into_parts() {
    let epilogue = Epilogue { activation: Activation::Relu6, residual: true };
    for dim in [(1, 1, 170_001), (41, 2, 2051), (3, 2, 35_001), (80_003, 2, 1), (30_000, 1, 3)] {
        for layout in LAYOUTS {
            check::<f32>(Case::new(dim, layout, epilogue), Embedding::Dense);
            check::<f16>(Case::new(dim, layout, Epilogue::NONE), Embedding::Window);
        }
    }
    // Samples as rows, on the CPU.
    for layout in LAYOUTS {
        let case = Case::new((503, 47, 3), layout, Epilogue::NONE);
        check::<f32>(case, Embedding::Dense);
        check::<f16>(case, Embedding::Dense);
    }
}

#[test]
fn many_channels_on_several_threads() {
    for dim in [(3, 35, 1031), (2, 600, 64), (300, 300, 1)] {
        for layout in LAYOUTS {
            for epilogue in [
                Epilogue { activation: RELU, residual: true },
                Epilogue::activation(Activation::Silu),
            ] {
                check::<f32>(Case::new(dim, layout, epilogue), Embedding::Dense);
                check::<bf16>(Case::new(dim, layout, epilogue), Embedding::EveryOther);
            }
        }
    }
}

/// A layer without running statistics evaluates with the batch's own, and the gradient goes
/// through them; one that is not affine has no parameter gradients.
#[test]
fn layers_that_keep_nothing() {
    for layout in LAYOUTS {
        for epilogue in [Epilogue::NONE, Epilogue { activation: RELU, residual: true }] {
            let mut data = Data::<f32>::new(Case::new((4, 9, 13), layout, epilogue));
            data.weight.fill(1.0);
            data.bias.fill(0.0);
            let data = data.without_gradients_at_kinks(Mode::Train);
            let expected = data.expected(Mode::Train);
            let layer: BatchNorm = BatchNormConfig::new(9)
                .affine(false)
                .track_running_stats(false)
                .activation(epilogue.activation)
                .build(Cpu::new())
                .unwrap();
            let (y, gradients) = eval(&layer, &data.x, data.residual(), &data.dy);
            assert_tensor("y", &y, &expected.y, &expected.scale.y, 2e-7);
            let want = &expected.gradients;
            assert_tensor("dx", &gradients.dx, &want.dx, &expected.scale.dx, 4e-7);
            assert!(gradients.dweight.is_none() && gradients.dbias.is_none());
            assert_eq!(layer.state().unwrap(), State::default());
        }
    }
}

/// The flat calls take the layout as given, also where the shape alone would not tell it; every
/// operand has a batch stride of its own, and gaps in outputs stay as they were.
#[test]
fn flat_calls_with_a_stride_for_every_operand() {
    use Operand::*;
    let gaps = [(X, 5), (Residual, 0), (Y, 3), (Dy, 8), (Dx, 1), (Dresidual, 2)];
    for dim in [(5, 7, 1), (6, 1, 13), (3, 16, 9), (5, 300, 1), (1, 3, 7), (2, 2100, 2)] {
        for layout in LAYOUTS {
            for epilogue in [
                Epilogue::NONE,
                Epilogue { activation: RELU, residual: true },
                Epilogue { activation: Activation::Silu, residual: true },
            ] {
                check_flat::<f32>(Case::new(dim, layout, epilogue), &gaps);
                check_flat::<bf16>(Case::new(dim, layout, epilogue), &gaps);
                check_flat::<f64>(Case::new(dim, layout, epilogue), &[]);
            }
        }
    }
}

fn check_flat<E: Element>(case: Case, gaps: &[(Operand, usize)]) {
    for mode in [Mode::Train, Mode::Eval] {
        check_data(&Data::<E>::new(case).without_gradients_at_kinks(mode), mode, gaps);
    }
}

fn check_data<E: Element>(data: &Data<E>, mode: Mode, gaps: &[(Operand, usize)]) {
    let expected = data.expected(mode);
    let mut buffers = Buffers::with_gaps(data, gaps);
    match mode {
        Mode::Train => {
            buffers.forward_train(&Cpu::new()).unwrap();
            buffers.backward_train(&Cpu::new()).unwrap();
            assert_eq!(buffers.num_batches_tracked, [1]);
        }
        Mode::Eval => {
            buffers.inference(&Cpu::new()).unwrap();
            buffers.inference_backward(&Cpu::new()).unwrap();
        }
    }
    buffers.assert_results(&expected, Bars::of(E::DTYPE));
}

/// A value that outweighs the others costs their sum no more than its own rounding.
#[test]
fn gradients_of_weights_hold_where_one_value_outweighs_the_rest() {
    for layout in LAYOUTS {
        for outlier in 0..256 {
            let mut data = Data::<bf16>::new(Case::new((256, 1, 1), layout, Epilogue::NONE));
            data.x.fill(bf16::from_f64(0.0018 + 1e-5 * outlier as f64));
            data.x[[outlier, 0, 0]] = bf16::from_f64(65536.0 - 100.0 * outlier as f64);
            data.dy.fill(bf16::ONE);
            check_data(&data, Mode::Eval, &[]);
        }
    }
}

/// Gradients that nobody asks for change nothing in the others.
#[test]
fn gradients_are_optional() {
    for layout in LAYOUTS {
        for epilogue in epilogues() {
            // Channels that are and are not whole mask bytes; small ones and large ones.
            for dim in [(5, 16, 9), (5, 7, 3), (2, 3, 1031), (9, 24, 1)] {
                for mode in [Mode::Train, Mode::Eval] {
                    let mut all =
                        Buffers::dense(&Data::<f32>::new(Case::new(dim, layout, epilogue)));
                    all.forward_train(&Cpu::new()).unwrap();
                    let mut only_dx = all.clone();
                    (only_dx.dresidual, only_dx.dweight, only_dx.dbias) = (None, None, None);
                    for buffers in [&mut all, &mut only_dx] {
                        match mode {
                            Mode::Train => buffers.backward_train(&Cpu::new()).unwrap(),
                            Mode::Eval => buffers.inference_backward(&Cpu::new()).unwrap(),
                        }
                    }
                    assert_eq!(
                        value_bits(&only_dx.dx),
                        value_bits(&all.dx),
                        "{layout} {epilogue:?}"
                    );
                }
            }
        }
    }
}

/// Outputs of 12 MiB and more are stored past the cache, by another path: it must give what
/// samples taken one by one give, whatever their alignment.
#[test]
fn large_outputs_are_those_of_their_samples() {
    for (layout, dim) in
        [(Layout::ChannelsFirst, (9, 33, 28_339)), (Layout::ChannelsLast, (9, 65, 14_387))]
    {
        let mut random = Random::new(5);
        let values: Vec<f64> = (0..9973).map(|_| random.normal()).collect();
        let at = |index: usize| values[index % values.len()];
        let x = array::<f32>(dim, layout, |n, c, s| at(n * 3989 + c * 131 + s * 7));
        let dy = array::<f32>(dim, layout, |n, c, s| at(n * 17 + c * 5 + s));
        let mut layer: BatchNorm =
            BatchNormConfig::new(dim.1).activation(RELU).build(Cpu::new()).unwrap();

        // Given the batch's statistics, evaluation is what training was, but for their rounding.
        let (trained, saved) = layer.forward_train(&x).unwrap();
        layer.running_mean_mut().unwrap().copy_from_slice(saved.mean_hi());
        let var = saved.invstd().iter().map(|&it| (f64::from(it).powi(-2) - 1e-5) as f32);
        layer.running_var_mut().unwrap().iter_mut().zip(var).for_each(|(to, var)| *to = var);
        let (y, gradients) = eval(&layer, &x, None, &dy);
        assert!(trained.iter().zip(&y).all(|(a, b)| (a - b).abs() < 1e-5));

        for n in 0..dim.0 {
            let sample = |of: &Array3<f32>| {
                in_layout(&of.slice_axis(Axis(0), Slice::from(n..n + 1)), layout)
            };
            let (small_y, small) = eval(&layer, &sample(&x), None, &sample(&dy));
            assert!(small_y == sample(&y), "y of sample {n}, {layout}");
            assert!(small.dx == sample(&gradients.dx), "dx of sample {n}, {layout}");
        }
    }
}
