//! What must hold for any data: symmetries of the formula, and different calls for the same thing.

use crate::common::flat::Buffers;
use crate::common::*;
use half::{bf16, f16};
use ndarray::{Array3, ArrayD, Axis, Slice};
use proptest::prelude::*;
use warpnorm::*;

fn dims() -> impl Strategy<Value = Dim> {
    prop_oneof![
        (2..9usize, 1..40usize, 1..70usize),
        (2..300usize, 1..40usize, Just(1)),
        (1..3usize, 1..4usize, 2..6000usize),
        (2..5usize, 500..2300usize, 1..4usize),
        // Samples as rows, on the CPU.
        (16..80usize, 1..60usize, 2..6usize),
    ]
}

fn layouts() -> impl Strategy<Value = Layout> {
    prop::sample::select(&LAYOUTS)
}

fn any_epilogue() -> impl Strategy<Value = Epilogue> {
    prop::sample::select(epilogues().collect::<Vec<_>>())
}

fn cases() -> impl Strategy<Value = Case> {
    (dims(), layouts(), any_epilogue())
        .prop_map(|(dim, layout, epilogue)| Case::new(dim, layout, epilogue))
}

fn step<E: Element>(data: &Data<E>) -> Step<E> {
    train(&mut data.layer(Cpu::new()), &data.x, data.residual(), &data.dy)
}

fn vector<P: Param>(parameter: &Option<ndarray::Array1<P>>) -> Vec<P> {
    parameter.as_ref().unwrap().to_vec()
}

/// `data` with its channels or its samples in another order.
fn reordered<E: Element>(data: &Data<E>, axis: usize, order: &[usize]) -> Data<E> {
    let layout = data.case.layout;
    let tensor = |it: &Array3<E>| in_layout(&it.select(Axis(axis), order), layout);
    let parameter = |it: &ndarray::Array1<f64>| match axis {
        1 => it.select(Axis(0), order),
        _ => it.clone(),
    };
    Data {
        case: data.case,
        x: tensor(&data.x),
        residual: tensor(&data.residual),
        dy: tensor(&data.dy),
        weight: parameter(&data.weight),
        bias: parameter(&data.bias),
        running_mean: parameter(&data.running_mean),
        running_var: parameter(&data.running_var),
    }
}

fn shuffled(len: usize, seed: u64) -> Vec<usize> {
    let mut random = Random::new(seed);
    let mut keyed: Vec<_> = (0..len).map(|i| (random.normal(), i)).collect();
    keyed.sort_by(|a, b| a.0.total_cmp(&b.0));
    keyed.into_iter().map(|(_, i)| i).collect()
}

/// Within twice the bar of each other: both are within it of the exact result.
fn assert_same_within_bars<E: Element>(a: &Step<E>, b: &Step<E>, expected: &Expected) {
    let (bars, scale) = (Bars::of(E::DTYPE), &expected.scale);
    assert_tensor("y", &a.0, &wide(&b.0), &scale.y, 2.0 * bars.y);
    assert_tensor("dx", &a.2.dx, &wide(&b.2.dx), &scale.dx, 2.0 * bars.dx);
    for (a, b, scale) in
        [(&a.2.dweight, &b.2.dweight, &scale.dweight), (&a.2.dbias, &b.2.dbias, &scale.dbias)]
    {
        let b = vector(b).into_iter().map(Element::to_f64).collect();
        assert_channels("parameter gradient", &vector(a), &b, scale, 2.0 * bars.y);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn layouts_agree(case in cases()) {
        let mut data = Data::<f32>::new(case).without_gradients_at_kinks(Mode::Train);
        let (expected, one) = (data.expected(Mode::Train), step(&data));
        let layout = match case.layout {
            Layout::ChannelsFirst => Layout::ChannelsLast,
            Layout::ChannelsLast => Layout::ChannelsFirst,
        };
        for tensor in [&mut data.x, &mut data.residual, &mut data.dy] {
            *tensor = in_layout(tensor, layout);
        }
        assert_same_within_bars(&one, &step(&data), &expected);
    }

    #[test]
    fn permuting_channels_permutes_results(case in cases(), seed: u64) {
        let data = Data::<f32>::new(case);
        let order = shuffled(case.dim.1, seed);
        let (before, after) = (step(&data), step(&reordered(&data, 1, &order)));
        let permuted = |it: &Array3<f32>| bits(&it.select(Axis(1), &order));
        prop_assert!(bits(&after.0) == permuted(&before.0));
        prop_assert!(bits(&after.2.dx) == permuted(&before.2.dx));
        let (dweight, old) = (vector(&after.2.dweight), vector(&before.2.dweight));
        prop_assert!(order.iter().zip(&dweight).all(|(&c, dweight)| *dweight == old[c]));
    }

    #[test]
    fn the_order_of_the_batch_does_not_matter_beyond_rounding(case in cases(), seed: u64) {
        let data = Data::<f32>::new(case).without_gradients_at_kinks(Mode::Train);
        let expected = data.expected(Mode::Train);
        let order = shuffled(case.dim.0, seed);
        let (before, after) = (step(&data), step(&reordered(&data, 0, &order)));
        let permuted = |it: &Array3<f32>| it.select(Axis(0), &order);
        let mut gradients = before.2.clone();
        gradients.dx = permuted(&before.2.dx);
        let before = (permuted(&before.0), before.1, gradients);
        assert_same_within_bars(&after, &before, &expected);
    }

    /// With eps 0, y does not see the scale of x, and dx has its inverse: exactly, for powers of
    /// two.
    #[test]
    fn scaling_x_scales_dx_inversely(case in cases(), exponent in -60..60i32) {
        let mut data = Data::<f32>::new(Case { eps: 0.0, ..case });
        let factor = 2f32.powi(exponent);
        let before = step(&data);
        data.x.mapv_inplace(|x| x * factor);
        let after = step(&data);
        prop_assert!(bits(&after.0) == bits(&before.0));
        prop_assert!(after.2.dx.iter().zip(&before.2.dx).all(|(a, b)| a * factor == *b));
        prop_assert_eq!(after.2.dweight, before.2.dweight);
    }

    /// y and dx are linear in weight and bias, exactly for powers of two.
    #[test]
    fn scaling_weight_and_bias_scales_y_and_dx(
        dim in dims(), layout in layouts(), exponent in -20..20i32,
    ) {
        let mut data = Data::<f32>::new(Case::new(dim, layout, Epilogue::NONE));
        let factor = 2f64.powi(exponent);
        let before = step(&data);
        data.weight *= factor;
        data.bias *= factor;
        let after = step(&data);
        let factor = factor as f32;
        prop_assert!(after.0.iter().zip(&before.0).all(|(a, b)| *a == b * factor));
        prop_assert!(after.2.dx.iter().zip(&before.2.dx).all(|(a, b)| *a == b * factor));
        prop_assert_eq!(after.2.dweight, before.2.dweight);
        prop_assert_eq!(after.2.dbias, before.2.dbias);
    }

    /// The layer's purpose: each channel of y has mean 0 and variance var / (var + eps).
    #[test]
    fn y_is_normalized(dim in dims(), layout in layouts()) {
        let mut data = Data::<f64>::new(Case::new(dim, layout, Epilogue::NONE));
        data.weight.fill(1.0);
        data.bias.fill(0.0);
        let (y, saved, _) = step(&data);
        let (mean, var) = reference::moments(y.view());
        for c in 0..dim.1 {
            let expected = 1.0 - 1e-5 * saved.invstd()[c] * saved.invstd()[c];
            prop_assert!(mean[c].abs() < 1e-13);
            prop_assert!((var[c] - expected).abs() < 1e-12);
        }
    }

    /// dx is orthogonal to what normalization removes: a constant and (but for eps) x itself.
    #[test]
    fn dx_has_no_part_along_the_constant(dim in dims(), layout in layouts()) {
        let data = Data::<f64>::new(Case { eps: 0.0, ..Case::new(dim, layout, Epilogue::NONE) });
        let (expected, dx) = (data.expected(Mode::Train), step(&data).2.dx);
        let count = (dim.0 * dim.2) as f64;
        for c in 0..dim.1 {
            let (dx, x) = (dx.index_axis(Axis(1), c), data.x.index_axis(Axis(1), c));
            let bar = 1e-13 * count * expected.scale.dx[c];
            let along: f64 = dx.iter().zip(&x).map(|(dx, x)| dx * (x - expected.mean[c])).sum();
            prop_assert!(dx.sum().abs() <= bar);
            prop_assert!(along.abs() * expected.invstd[c] <= 4.0 * bar);
        }
    }

    #[test]
    fn inference_in_place_is_inference(case in cases()) {
        in_place::<f32>(case);
        in_place::<f16>(case);
    }

    #[test]
    fn flat_calls_are_the_array_calls(case in cases()) {
        flat_calls::<f32>(case);
        flat_calls::<bf16>(case);
    }

    /// Ranks of any size, empty ones too, together give what the whole batch gives.
    #[test]
    fn the_split_form_agrees_with_the_fused_calls(
        case in cases(),
        cuts in prop::collection::vec(0.0..1.0f64, 0..4),
    ) {
        split_form::<f32>(case, &cuts);
        split_form::<f64>(case, &cuts);
    }

    /// The spatial extents' number and order do not matter: `[N, C, L]` is `[N, C, H, W]`.
    #[test]
    fn rank_does_not_matter(
        n in 1..4usize, c in 1..20usize, d in 1..4usize, h in 1..6usize, w in 2..9usize,
        layout in layouts(),
    ) {
        let data = Data::<f32>::new(Case::new((n, c, d * h * w), layout, Epilogue::NONE));
        let mut layer = data.layer(Cpu::new());
        let (y, saved) = layer.forward_train(&data.x).unwrap();
        let dx = layer.backward(&data.x, &data.dy, &saved).unwrap().dx;
        for extents in [vec![n, c, d, h, w], vec![n, c, d, 1, h * w], vec![n, c, d * h, w, 1]] {
            let [x, dy] = [&data.x, &data.dy].map(|it| split_spatial(it, &extents, layout));
            let (y_split, saved) = data.layer(Cpu::new()).forward_train(&x).unwrap();
            let gradients = layer.backward(&x, &dy, &saved).unwrap();
            prop_assert_eq!(y_split.shape(), &extents[..]);
            prop_assert!(y_split.iter().eq(&y), "y of {:?}", extents);
            prop_assert!(gradients.dx.iter().eq(&dx), "dx of {:?}", extents);
        }
    }
}

/// `[N, C, spatial]` as an array of `extents` in the same memory order.
fn split_spatial(it: &Array3<f32>, extents: &[usize], layout: Layout) -> ArrayD<f32> {
    let values: Vec<f32> = match layout {
        Layout::ChannelsFirst => it.iter().copied().collect(),
        Layout::ChannelsLast => it.view().permuted_axes([0, 2, 1]).iter().copied().collect(),
    };
    match layout {
        Layout::ChannelsFirst => ArrayD::from_shape_vec(extents, values).unwrap(),
        Layout::ChannelsLast => {
            let spatial = &extents[2..];
            let memory = [&[extents[0]], spatial, &[extents[1]]].concat();
            let last = memory.len() - 1;
            let axes: Vec<usize> = [0, last].into_iter().chain(1..last).collect();
            ArrayD::from_shape_vec(memory, values).unwrap().permuted_axes(axes)
        }
    }
}

fn in_place<E: Element>(case: Case) {
    let data = Data::<E>::new(case);
    let mut buffers = Buffers::dense(&data);
    buffers.inference(&Cpu::new()).unwrap();
    buffers.inference_inplace(&Cpu::new()).unwrap();
    assert_eq!(value_bits(&buffers.x), value_bits(&buffers.y), "{case:?}");
    let layer = data.layer(Cpu::new());
    let mut x = data.x.clone();
    let y = match data.residual() {
        None => {
            layer.forward_eval_inplace(&mut x).unwrap();
            layer.forward_eval(&data.x).unwrap()
        }
        Some(residual) => {
            layer.forward_eval_inplace_add(&mut x, residual).unwrap();
            layer.forward_eval_add(&data.x, residual).unwrap()
        }
    };
    assert_eq!(bits(&x), bits(&y), "{case:?}");
}

fn flat_calls<E: Element>(mut case: Case) {
    // Arrays that fit both layouts count as one of them; the flat calls must be told which.
    let (n, c, s) = case.dim;
    if s == 1 {
        case.layout = Layout::ChannelsLast;
    } else if c == 1 {
        case.layout = Layout::ChannelsFirst;
    }
    let data = Data::<E>::new(case);
    let mut layer = data.layer(Cpu::new());
    let (y, saved, gradients) = train(&mut layer, &data.x, data.residual(), &data.dy);
    let mut buffers = Buffers::dense(&data);
    buffers.forward_train(&Cpu::new()).unwrap();
    buffers.backward_train(&Cpu::new()).unwrap();
    assert_eq!(bits(&buffers.tensor(Operand::Y)), bits(&y), "{case:?}");
    assert_eq!(bits(&buffers.tensor(Operand::Dx)), bits(&gradients.dx), "{case:?}");
    assert_eq!(buffers.mean_lo, *saved.mean_lo());
    assert_eq!(buffers.invstd, *saved.invstd());
    assert_eq!(buffers.mask.as_ref(), saved.mask());
    assert_eq!(buffers.running_var, layer.running_var().unwrap());
    assert_eq!(buffers.dweight, gradients.dweight.map(|it| it.to_vec()));
    if let Some(dresidual) = &gradients.dresidual {
        assert_eq!(bits(&buffers.tensor(Operand::Dresidual)), bits(dresidual));
    }
    assert_eq!(y.dim(), (n, c, s));
}

fn split_form<E: Element>(case: Case, cuts: &[f64]) {
    let cpu = Cpu::new();
    let data = Data::<E>::new(case).without_gradients_at_kinks(Mode::Train);
    let (expected, bars) = (data.expected(Mode::Train), Bars::of(E::DTYPE));
    let (n, c, _) = case.dim;
    let mut ends: Vec<usize> = cuts.iter().map(|cut| (cut * (n + 1) as f64) as usize).collect();
    ends.sort();
    let starts = [0].into_iter().chain(ends.iter().copied());
    let mut ranks: Vec<_> = starts
        .clone()
        .zip(ends.iter().copied().chain([n]))
        .map(|(from, to)| Buffers::dense(&data.samples(from, to)))
        .collect();

    let mut gathered = vec![];
    for rank in &mut ranks {
        let mut moments = vec![f64::NAN; MOMENT_ROWS * c];
        rank.statistics(&cpu, &mut moments).unwrap();
        gathered.extend(moments);
    }
    for rank in &mut ranks {
        rank.merge_statistics(&cpu, &gathered).unwrap();
        rank.apply(&cpu).unwrap();
    }
    let mut gathered = vec![];
    for rank in &mut ranks {
        let mut sums = vec![f64::NAN; SUM_ROWS * c];
        rank.backward_reduce(&cpu, &mut sums).unwrap();
        gathered.extend(sums);
    }
    let mut merged = vec![f64::NAN; SUM_ROWS * c];
    cpu.merge_sums(c, (&gathered).into(), (&mut merged).into()).unwrap();
    for rank in &mut ranks {
        rank.backward_apply(&cpu, &merged).unwrap();
    }

    let (mut dweight, mut dbias) = (vec![0.0; c], vec![0.0; c]);
    for (rank, start) in ranks.iter().zip(starts) {
        let samples = Slice::from(start..start + rank.problem.batch());
        let of = |it: &Array3<f64>| it.slice_axis(Axis(0), samples).to_owned();
        let (want, scale) = (&expected.gradients, &expected.scale);
        assert_tensor("y", &rank.tensor(Operand::Y), &of(&expected.y), &scale.y, bars.y);
        assert_tensor("dx", &rank.tensor(Operand::Dx), &of(&want.dx), &scale.dx, bars.dx);
        if case.epilogue.residual {
            let dresidual = rank.tensor(Operand::Dresidual);
            let want = of(&want.dresidual);
            assert_tensor("dresidual", &dresidual, &want, &scale.dresidual, bars.dx);
        }
        for c in 0..c {
            dweight[c] += rank.dweight.as_ref().unwrap()[c].to_f64();
            dbias[c] += rank.dbias.as_ref().unwrap()[c].to_f64();
        }
        // Every rank arrives at the same bits, whatever its size.
        assert_eq!(value_bits(&rank.invstd), value_bits(&ranks[0].invstd));
        assert_eq!(value_bits(&rank.mean_lo), value_bits(&ranks[0].mean_lo));
        assert_eq!(value_bits(&rank.running_var), value_bits(&ranks[0].running_var));
        assert_eq!(rank.num_batches_tracked, [1]);
    }
    let (want, scale) = (&expected.gradients, &expected.scale);
    assert_channels("dweight", &dweight, &want.dweight, &scale.dweight, bars.y);
    assert_channels("dbias", &dbias, &want.dbias, &scale.dbias, bars.y);
    let running_var: Vec<E::Param> = ranks[0].running_var.clone();
    let want = &expected.running_var;
    assert_channels("running_var", &running_var, want, want, bars.y);
}

#[test]
fn synchronized_parts_are_the_split_form() {
    for layout in LAYOUTS {
        for epilogue in epilogues() {
            let case = Case::new((9, 13, 17), layout, epilogue);
            let data = Data::<f32>::new(case).without_gradients_at_kinks(Mode::Train);
            let expected = data.expected(Mode::Train);
            let parts: Vec<_> =
                [(0, 2), (2, 2), (2, 3), (3, 9)].map(|(from, to)| data.samples(from, to)).into();
            let mut sync = SyncBatchNorm::new(data.layer(Cpu::new()));
            let x: Vec<_> = parts.iter().map(|part| &*part.x).collect();
            let dy: Vec<_> = parts.iter().map(|part| &*part.dy).collect();
            let residual: Vec<_> = parts.iter().map(|part| &*part.residual).collect();
            let (y, gradients) = if epilogue.residual {
                let (y, saved) = sync.forward_train_add(&x, &residual).unwrap();
                let kept = epilogue.activation.is_smooth().then_some(&residual[..]);
                (y, sync.backward_add(&x, kept, &dy, &saved).unwrap())
            } else {
                let (y, saved) = sync.forward_train(&x).unwrap();
                (y, sync.backward(&x, &dy, &saved).unwrap())
            };
            let whole = |parts: Vec<&Array3<f32>>| {
                let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
                ndarray::concatenate(Axis(0), &views).unwrap()
            };
            let (want, scale) = (&expected.gradients, &expected.scale);
            assert_tensor("y", &whole(y.iter().collect()), &expected.y, &scale.y, 2e-7);
            let dx = whole(gradients.iter().map(|it| &it.dx).collect());
            assert_tensor("dx", &dx, &want.dx, &scale.dx, 4e-7);
            let dbias = gradients.iter().map(|it| it.dbias.as_ref().unwrap().mapv(f64::from));
            let dbias = dbias.reduce(|a, b| a + b).unwrap().to_vec();
            assert_channels("dbias", &dbias, &want.dbias, &scale.dbias, 2e-7);
            assert_eq!(sync.layer().num_batches_tracked(), Some(1));
        }
    }
}

/// Where a sample has one position both layouts are the same memory, and calls go through it the same way.
#[test]
fn one_position_per_sample_has_one_order() {
    for epilogue in epilogues() {
        let [first, last] = LAYOUTS.map(|layout| {
            let data = Data::<f32>::new(Case::new((300, 37, 1), layout, epilogue));
            let mut buffers = Buffers::dense(&data);
            buffers.forward_train(&Cpu::new()).unwrap();
            buffers.backward_train(&Cpu::new()).unwrap();
            buffers
        });
        assert!(first.fingerprint() == last.fingerprint(), "{epilogue:?}");
    }
}
