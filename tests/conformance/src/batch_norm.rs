//! Every kernel against the textbook.

use crate::suite::flat::Buffers;
use crate::suite::on_backend::on_backend;
use crate::suite::{About, Bars, Case, Data, Dim, LAYOUTS, Mode, epilogues};
use crate::{ADD_RELU, Subject};
use warpnorm::cuda::{Alignment, Device, Geometry, Launcher, Pass, Plan, Tier};
use warpnorm::{Activation, Backend, Element, Epilogue, Layout, Operand};

/// Training and evaluation, forward and backward, against the textbook.
fn check<E: Element>(subject: &impl Subject, case: Case, gaps: &[(Operand, usize)], seed: u64) {
    let device = subject.device(seed);
    let modes = [Mode::Train, Mode::Eval];
    // Evaluation has no tiers.
    let modes = if subject.tier() == Tier::Streaming { &modes[..] } else { &modes[..1] };
    for &mode in modes {
        let _about = About((E::DTYPE, mode, case, gaps));
        let data = Data::<E>::new(case).without_gradients_at_kinks(mode);
        let mut buffers = Buffers::with_gaps(&data, gaps);
        run(&device, &mut buffers, mode);
        buffers
            .assert_results(&data.expected(mode), Bars::in_f32(E::DTYPE, case.epilogue.activation));
    }
}

fn run<E: Element, L: Launcher>(device: &Device<L>, buffers: &mut Buffers<E>, mode: Mode) {
    let mut workspace = device.workspace(&buffers.problem).unwrap();
    let problem = buffers.problem;
    on_backend(buffers, device, &mut workspace, |on| match mode {
        Mode::Train => on.forward_train().and_then(|()| on.backward_train()),
        Mode::Eval => on.inference().and_then(|()| on.inference_backward()),
    })
    .unwrap_or_else(|error| panic!("{problem} {:?}: {error}", problem.epilogue()));
}

/// Small and odd: planes and columns, whole packs and single elements, one channel and many, tiles
/// and parts that are ragged at every end.
const DIMS: [Dim; 9] = [
    (5, 7, 1),
    (6, 16, 1),
    (1, 3, 13),
    (3, 8, 49),
    (2, 24, 9),
    (3, 5, 169),
    (2, 3, 520),
    (2, 4, 1031),
    (70, 33, 4),
];

/// Every activation, with and without a residual.
pub(crate) fn every_epilogue<S: Subject, E: Element>(subject: &S) {
    let mut cases = Vec::new();
    for (seed, dim) in (0..).zip(DIMS) {
        for layout in LAYOUTS {
            cases.extend(epilogues().map(|epilogue| (Case::new(dim, layout, epilogue), seed)));
        }
    }
    for (case, seed) in cases.into_iter().skip(subject.one_in() / 2).step_by(subject.one_in()) {
        check::<E>(subject, case, &[], seed);
    }
}

/// Samples with gaps between them, for each operand another.
pub(crate) fn strides<S: Subject, E: Element>(subject: &S) {
    use Operand::*;
    let odd = [(X, 5), (Residual, 0), (Y, 3), (Dy, 8), (Dx, 1), (Dresidual, 2)];
    let whole = [(X, 8), (Residual, 16), (Y, 0), (Dy, 8), (Dx, 24), (Dresidual, 8)];
    // Alike, but no sample after the first begins with a pack.
    let alike = [X, Residual, Y, Dy, Dx, Dresidual].map(|operand| (operand, 1));
    let dims =
        [(5, 7, 1), (4, 16, 1), (3, 8, 49), (3, 16, 9), (2, 3, 520), (3, 2, 1032), (2, 2, 1031)];
    let mut cases = Vec::new();
    for (seed, dim) in (2..).zip(dims) {
        for layout in LAYOUTS {
            for gaps in [odd, whole, alike] {
                let epilogues = [Epilogue::NONE, ADD_RELU].into_iter();
                cases.extend(epilogues.map(|it| (Case::new(dim, layout, it), gaps, seed)));
            }
        }
    }
    for (case, gaps, seed) in cases.into_iter().skip(subject.one_in() / 2).step_by(subject.one_in())
    {
        check::<E>(subject, case, &gaps, seed);
    }
}

/// Channels-last rows that make whole packs only several abreast, in 16 bits if not in f32 too.
pub(crate) fn rows_abreast<S: Subject, E: Element>(subject: &S) {
    let epilogue = |activation, residual| Epilogue { activation, residual };
    let epilogues = [
        epilogue(Activation::Relu, false),
        epilogue(Activation::Identity, true),
        epilogue(Activation::Silu, true),
    ];
    let dims = [
        (512, 1, 1),
        (64, 3, 1),
        (16, 13, 4),
        (8, 27, 9),
        (40, 50, 1),
        (128, 100, 1),
        (900, 50, 1),
    ];
    for (index, dim) in dims.into_iter().enumerate() {
        for epilogue in [Epilogue::NONE, epilogues[index % epilogues.len()]] {
            let case = Case::new(dim, Layout::ChannelsLast, epilogue);
            assert_abreast::<E>(&subject.device(0), case);
            check::<E>(subject, case, &[], index as u64);
        }
    }
    let far = Case::new((128, 50, 1), Layout::ChannelsLast, Epilogue::NONE);
    if size_of::<E>() == 4 {
        check::<E>(subject, Case { mean: 1e4, std: 1e-2, ..far }, &[], 1);
    }
}

/// Rows go by packs, abreast where one is not whole packs.
fn assert_abreast<E: Element>(device: &Device<impl Launcher>, case: Case) {
    let problem = Buffers::dense(&Data::<E>::new(case)).problem;
    let facts = device.launcher().facts();
    let plan = Plan::new(Pass::Apply, &problem, &facts, Alignment::ALIGNED).unwrap();
    let abreast = match plan.geometry {
        Geometry::Columns { rows_abreast, .. } => rows_abreast as usize,
        Geometry::Planes { .. } => 0,
    };
    let (pack, channels) = (16 / size_of::<E>(), case.dim.1);
    assert_eq!(plan.pack as usize, pack, "{plan}");
    assert!((abreast * channels).is_multiple_of(pack), "{plan}");
    assert!(abreast > 1 || channels.is_multiple_of(pack), "{plan}");
}

/// Rule 9: neither another run nor another order of blocks, warps and lanes changes a bit.
pub(crate) fn the_same_bits_again<S: Subject>(subject: &S) {
    for layout in LAYOUTS {
        for dim in [(70, 33, 4), (9, 8, 49), (3, 5, 1031), (900, 24, 1)] {
            let data = Data::<f32>::new(Case::new(dim, layout, ADD_RELU));
            let mut bits = (0..4).map(|seed| {
                let mut buffers = Buffers::dense(&data);
                run(&subject.device(seed), &mut buffers, Mode::Train);
                buffers.fingerprint()
            });
            let first = bits.next().unwrap();
            for other in bits {
                assert!(first == other, "{dim:?} {layout}");
            }
        }
    }
}

/// Rules 2 and 3: a mean a million times the standard deviation.
pub(crate) fn a_mean_far_from_zero<S: Subject>(subject: &S) {
    for dim in [(64, 5, 1), (8, 8, 49), (3, 4, 1031), (700, 12, 1)] {
        for layout in LAYOUTS {
            for epilogue in [Epilogue::NONE, ADD_RELU] {
                let case = Case { mean: 1e4, std: 1e-2, ..Case::new(dim, layout, epilogue) };
                check::<f32>(subject, case, &[], 1);
            }
        }
    }
}

/// Rule 6: values of which neither the squares nor the variance are within fp32.
pub(crate) fn huge_and_tiny_values<S: Subject, E: Element>(subject: &S) {
    for dim in [(64, 5, 1), (8, 8, 49), (3, 4, 1031)] {
        for layout in LAYOUTS {
            for std in [1e29, 1e20, 1e-15, 1e-25] {
                let case = Case::new(dim, layout, Epilogue::NONE);
                let case = Case { mean: 0.5 * std, std, eps: 0.0, ..case };
                check::<E>(subject, case, &[], 1);
            }
        }
    }
}

/// Rule 5: all values of a channel equal.
pub(crate) fn constant_channels<S: Subject, E: Element>(subject: &S) {
    for layout in LAYOUTS {
        for dim in [(7, 5, 1), (3, 8, 49), (3, 3, 1031)] {
            for eps in [1e-5, 0.0] {
                let case = Case { eps, ..Case::new(dim, layout, ADD_RELU) };
                constant_channel::<E>(subject, case);
            }
        }
    }
}

/// y is the activation of bias + residual, rounded once; dx is 0 where invstd is.
fn constant_channel<E: Element>(subject: &impl Subject, case: Case) {
    let mut data = Data::<E>::new(case);
    for (channel, mut x) in data.x.axis_iter_mut(ndarray::Axis(1)).enumerate() {
        x.fill(E::from_f64(1.1 + 1000.3 * channel as f64));
    }
    let mut buffers = Buffers::dense(&data);
    run(&subject.device(5), &mut buffers, Mode::Train);
    let (y, dx) = (buffers.tensor(Operand::Y), buffers.tensor(Operand::Dx));
    for ((n, c, s), y) in y.indexed_iter() {
        let z = data.bias[c] + data.residual[[n, c, s]].to_f64();
        assert_eq!(y.to_f64(), E::from_f64(z.max(0.0)).to_f64(), "{case:?} [{n}, {c}, {s}]");
        assert!(case.eps > 0.0 || dx[[n, c, s]].to_f64() == 0.0);
    }
}

/// Rule 7: what is not finite stays in its channel.
pub(crate) fn a_nan_stays_in_its_channel<S: Subject>(subject: &S) {
    for bad in [f32::NAN, f32::INFINITY] {
        for layout in LAYOUTS {
            for dim in [(9, 24, 1), (7, 48, 4), (3, 8, 49), (3, 4, 1031), (5, 7, 3), (8, 7, 3)] {
                for channel in [0, 2, dim.1 - 1] {
                    stays_in(subject, Case::new(dim, layout, Epilogue::NONE), bad, channel);
                }
            }
        }
    }
}

fn stays_in<S: Subject>(subject: &S, case: Case, bad: f32, channel: usize) {
    let mut data = Data::<f32>::new(case);
    data.x[[1, channel, 0]] = bad;
    let mut buffers = Buffers::dense(&data);
    run(&subject.device(1), &mut buffers, Mode::Train);
    for operand in [Operand::Y, Operand::Dx] {
        for ((n, c, s), value) in buffers.tensor(operand).indexed_iter() {
            assert_eq!(value.is_finite(), c != channel, "{operand:?}[{n}, {c}, {s}] {case:?}");
        }
    }
    let of_channels = [
        (&buffers.running_var, "running_var"),
        (buffers.dweight.as_ref().expect("asked for"), "dweight"),
    ];
    for (values, name) in of_channels {
        for (c, value) in values.iter().enumerate() {
            assert_eq!(value.is_finite(), c != channel, "{name}[{c}] {case:?}");
        }
    }
}

/// A scaled twin of a layer of ResNet-50, in each walk.
pub(crate) fn real_shapes<S: Subject, E: Element>(subject: &S) {
    let epilogue = if size_of::<E>() == 2 { ADD_RELU } else { Epilogue::NONE };
    for (dim, layout) in [
        ((4, 16, 56 * 56), Layout::ChannelsFirst),
        ((8, 64, 49), Layout::ChannelsFirst),
        ((4, 64, 28 * 28), Layout::ChannelsLast),
        ((1024, 256, 1), Layout::ChannelsLast),
    ] {
        check::<E>(subject, Case::new(dim, layout, epilogue), &[], 1);
    }
}
