//! What a layer does beside its calls: its buffers, resets, copies on other backends, and folds.

use crate::common::*;
use half::bf16;
use ndarray::{Array1, Array2, Array3, Axis, Ix3, array};
use warpnorm::*;

const DIM: Dim = (6, 5, 7);

fn data(epilogue: Epilogue) -> Data<f32> {
    Data::new(Case::new(DIM, Layout::ChannelsFirst, epilogue))
}

/// A layer that has seen batches, with parameters that are not those it was built with.
fn trained() -> BatchNorm {
    let data = data(Epilogue::NONE);
    let mut layer = data.layer(Cpu::new());
    layer.forward_train(&data.x).unwrap();
    layer.eval();
    layer
}

#[test]
fn backward_does_without_a_residual_it_does_not_read() {
    for epilogue in epilogues().filter(|epilogue| epilogue.residual) {
        let Data { x, residual, dy, .. } = &data(epilogue);
        let config = BatchNormConfig::new(DIM.1).activation(epilogue.activation);
        let mut layer: BatchNorm = config.build(Cpu::new()).unwrap();
        let (_, saved) = layer.forward_train_add(x, residual).unwrap();
        let with = layer.backward_add(x, Some(residual), dy, &saved).unwrap();
        let without = layer.backward_add(x, None, dy, &saved);

        let mut sync = SyncBatchNorm::new(config.build(Cpu::new()).unwrap());
        let (parts, residuals, dys) = ([&**x], [&**residual], [&**dy]);
        let (_, saved) = sync.forward_train_add(&parts, &residuals).unwrap();
        let in_parts = sync.backward_add(&parts, None, &dys, &saved);
        if epilogue.activation.is_smooth() {
            for error in [without.unwrap_err(), in_parts.unwrap_err()] {
                let expected = format!("forward's, for the derivative of {}", epilogue.activation);
                assert_eq!(error, Error::argument("residual", expected, "none"));
            }
            continue;
        }
        same_gradients(&with, &without.unwrap());
        let with = sync.backward_add(&parts, Some(&residuals), &dys, &saved).unwrap();
        same_gradients(&with[0], &in_parts.unwrap()[0]);
    }
}

#[track_caller]
fn same_gradients(one: &Gradients<f32, Ix3>, other: &Gradients<f32, Ix3>) {
    assert_eq!(bits(&one.dx), bits(&other.dx));
    assert_eq!(one.dresidual, other.dresidual);
    assert!(one.dresidual.is_some());
    assert_eq!((&one.dweight, &one.dbias), (&other.dweight, &other.dbias));
}

#[test]
fn the_mode_chooses_what_forward_does() {
    let Data { x, residual, .. } = &data(Epilogue::NONE);
    let [mut by_mode, mut by_name] = [(); 2].map(|()| trained());
    for _ in 0..2 {
        by_mode.train();
        let (y, saved) = by_mode.forward(x).unwrap();
        let (expected, named) = by_name.forward_train(x).unwrap();
        assert_eq!((y, saved.unwrap().invstd()), (expected, named.invstd()));
        let (y, saved) = by_mode.forward_add(x, residual).unwrap();
        let (expected, named) = by_name.forward_train_add(x, residual).unwrap();
        assert_eq!((y, saved.unwrap().invstd()), (expected, named.invstd()));

        by_mode.eval();
        let (y, saved) = by_mode.forward(x).unwrap();
        assert_eq!((y, saved.is_none()), (by_name.forward_eval(x).unwrap(), true));
        let (y, saved) = by_mode.forward_add(x, residual).unwrap();
        assert_eq!((y, saved.is_none()), (by_name.forward_eval_add(x, residual).unwrap(), true));
        assert_eq!(by_mode.state().unwrap(), by_name.state().unwrap());
    }
}

#[test]
fn running_buffers_are_what_evaluation_reads() {
    let data = data(Epilogue::NONE);
    let mut layer: BatchNorm = BatchNorm::new(DIM.1, Cpu::new()).unwrap();
    let (mean, var) = (vec![2.0; DIM.1], vec![4.0; DIM.1]);
    *layer.running_mean_buffer_mut().unwrap() = mean.clone();
    *layer.running_var_buffer_mut().unwrap() = var.clone();
    layer.num_batches_tracked_buffer_mut().unwrap()[0] = 41;
    assert_eq!(layer.running_mean_buffer(), Some(&mean));
    assert_eq!(layer.running_var_buffer(), Some(&var));
    let y = layer.forward_eval(&data.x).unwrap();
    let expected = data.x.mapv(|x| (x - 2.0) / (4.0f32 + 1e-5).sqrt());
    assert!(y.iter().zip(&expected).all(|(y, expected)| (y - expected).abs() < 1e-6));
    layer.forward_train(&data.x).unwrap();
    assert_eq!(layer.num_batches_tracked_buffer(), Some(&vec![42]));
    assert_eq!(layer.num_batches_tracked(), Some(42));

    let config = BatchNormConfig::new(DIM.1).track_running_stats(false);
    let mut layer: BatchNorm = config.build(Cpu::new()).unwrap();
    assert!(layer.running_mean_buffer().is_none() && layer.running_var_buffer().is_none());
    assert!(layer.num_batches_tracked_buffer_mut().is_none());
    assert!(layer.running_mut::<f32>().is_none());
}

#[test]
fn running_buffers_of_another_length_are_refused() {
    type Spoil = fn(&mut BatchNorm);
    let spoilt: [(&str, Spoil); 3] = [
        ("running_mean", |layer| layer.running_mean_buffer_mut().unwrap().truncate(3)),
        ("running_var", |layer| layer.running_var_buffer_mut().unwrap().truncate(3)),
        ("num_batches_tracked", |layer| layer.num_batches_tracked_buffer_mut().unwrap().clear()),
    ];
    let x = data(Epilogue::NONE).x;
    for (name, spoil) in spoilt {
        let mut layer = trained();
        spoil(&mut layer);
        let before = layer.state().unwrap();
        let mut errors = vec![layer.forward_train(&x).err().unwrap()];
        if name != "num_batches_tracked" {
            errors.push(layer.forward_eval(&x).unwrap_err());
            errors.push(layer.fold_into(&Array2::ones((DIM.1, 2)), None, 0).unwrap_err());
        }
        let mut sync = SyncBatchNorm::new(layer);
        errors.push(sync.forward_train(&[&*x]).err().unwrap());
        assert_eq!(sync.layer().state().unwrap(), before);
        for error in errors {
            assert!(error.to_string().starts_with(&format!("`{name}`: expected ")), "{error}");
        }
    }
    let mut layer = trained();
    layer.num_batches_tracked_buffer_mut().unwrap()[0] = -1;
    assert_eq!(layer.num_batches_tracked(), None);
    assert!(layer.forward_train(&x).is_err());
}

#[test]
fn resets_are_pytorchs() {
    let mut layer = trained();
    let before = layer.state().unwrap();
    layer.reset_running_stats().unwrap();
    let (mean, var) = (Some(vec![0.0; DIM.1]), Some(vec![1.0; DIM.1]));
    let reset = State {
        running_mean: mean,
        running_var: var,
        num_batches_tracked: Some(0),
        ..before.clone()
    };
    assert_eq!(layer.state().unwrap(), reset);
    assert_ne!(before.weight, Some(vec![1.0; DIM.1]));

    let mut layer = trained();
    layer.reset_parameters().unwrap();
    let (weight, bias) = (Some(vec![1.0; DIM.1]), Some(vec![0.0; DIM.1]));
    assert_eq!(layer.state().unwrap(), State { weight, bias, ..reset });
    assert!(!layer.is_training());

    let config = BatchNormConfig::new(DIM.1).affine(false).track_running_stats(false);
    let mut bare: BatchNorm = config.build(Cpu::new()).unwrap();
    bare.reset_parameters().unwrap();
    assert_eq!(bare.state().unwrap(), State::default());
}

#[test]
fn momentum_can_be_changed_and_is_checked() {
    let x = array![[1.0f32], [3.0]];
    let mut layer: BatchNorm = BatchNorm::new(1, Cpu::new()).unwrap();
    layer.set_momentum(Some(1.0)).unwrap();
    layer.forward_train(&x).unwrap();
    assert_eq!(layer.running_mean().unwrap(), [2.0]);
    layer.set_momentum(None).unwrap();
    layer.forward_train(&(x + 2.0)).unwrap();
    assert_eq!(layer.running_mean().unwrap(), [3.0]); // half of 2 and 4
    for momentum in [-0.1, 1.5, f64::NAN] {
        let error = layer.set_momentum(Some(momentum)).unwrap_err();
        assert_eq!(error, Error::argument("momentum", "a number from 0 to 1", momentum));
        assert_eq!(layer.config().momentum, None);
    }
}

#[test]
fn a_layer_on_another_backend_is_the_same() {
    let mut layer = trained();
    layer.set_momentum(Some(0.5)).unwrap();
    let mut copy = layer.to_backend(Cpu::with_threads(1).unwrap()).unwrap();
    assert_eq!(copy.state().unwrap(), layer.state().unwrap());
    assert_eq!((copy.config(), copy.is_training()), (layer.config(), false));
    // It has buffers of its own.
    copy.reset_parameters().unwrap();
    assert_ne!(copy.state().unwrap(), layer.state().unwrap());
    layer.bias_buffer_mut().unwrap().clear();
    assert!(layer.to_backend(Cpu::new()).unwrap_err().to_string().starts_with("`bias`"));
}

/// A linear layer and then this one are the folded layer and then the activation.
fn check_fold<E: Element<Param = E> + Param>(activation: Activation, bias: bool) {
    let data = Data::<E>::new(Case::new(
        DIM,
        Layout::ChannelsFirst,
        Epilogue { activation, residual: false },
    ));
    let layer = data.layer(Cpu::new());
    let mut random = Random::new(3);
    let mut values = |len| Array1::from_shape_fn(len, |_| E::from_f64(random.normal()));
    let (inputs, count) = (4, 9);
    let weight = values(DIM.1 * inputs).into_shape_with_order((DIM.1, inputs)).unwrap();
    let bias = bias.then(|| values(DIM.1));
    let input = values(count * inputs).into_shape_with_order((count, inputs)).unwrap();
    let linear = |weight: &Array2<E>, bias: Option<&Array1<E>>| {
        Array2::from_shape_fn((count, DIM.1), |(n, c)| {
            let products = (0..inputs).map(|i| input[[n, i]].to_f64() * weight[[c, i]].to_f64());
            products.sum::<f64>() + bias.map_or(0.0, |bias| bias[c].to_f64())
        })
    };

    let Folded { weight: folded, bias: folded_bias, activation: remaining } =
        layer.fold_into(&weight, bias.as_deref(), 0).unwrap();
    assert_eq!(remaining, activation);
    let apart = layer.forward_eval(&linear(&weight, bias.as_ref()).mapv(E::from_f64)).unwrap();
    let together = linear(&folded, Some(&folded_bias)).mapv(|z| reference::activate(remaining, z));
    let bar = if E::DTYPE == DType::F64 { 1e-12 } else { 1e-5 };
    for (apart, together) in apart.iter().zip(&together) {
        assert!((apart.to_f64() - together).abs() < bar, "{activation}: {apart:?} {together}");
    }

    // Channels on another axis.
    let turned = weight.reversed_axes();
    let folded_again = layer.fold_into(&turned, bias.as_deref(), 1).unwrap();
    assert_eq!(folded_again.weight, folded.reversed_axes());
    assert_eq!(folded_again.bias, folded_bias);
}

#[test]
fn folds_do_what_the_layers_do_apart() {
    for activation in ACTIVATIONS {
        check_fold::<f32>(activation, true);
        check_fold::<f64>(activation, false);
    }
}

/// `[N, in, L]` with `[C, in / groups, K]`, without padding, in f64.
fn convolution(x: &Array3<f64>, weight: &Array3<f64>, bias: &Array1<f64>) -> Array3<f64> {
    let ((n, inputs, len), (c, per_group, taps)) = (x.dim(), weight.dim());
    let groups = inputs / per_group;
    Array3::from_shape_fn((n, c, len - taps + 1), |(n, c, at)| {
        let first = c / (weight.len_of(Axis(0)) / groups) * per_group;
        let products = (0..per_group * taps).map(|i| {
            let (input, tap) = (i / taps, i % taps);
            x[[n, first + input, at + tap]] * weight[[c, input, tap]]
        });
        products.sum::<f64>() + bias[c]
    })
}

/// `[N, in, L]` with `[in, C, K]`.
fn transposed_convolution(
    x: &Array3<f64>,
    weight: &Array3<f64>,
    bias: &Array1<f64>,
) -> Array3<f64> {
    let ((n, inputs, len), (_, c, taps)) = (x.dim(), weight.dim());
    let mut y = Array3::from_shape_fn((n, c, len + taps - 1), |(_, c, _)| bias[c]);
    for ((n, i, at), &x) in x.indexed_iter() {
        for (c, tap) in (0..c).flat_map(|c| (0..taps).map(move |tap| (c, tap))) {
            y[[n, c, at + tap]] += x * weight[[i, c, tap]];
        }
    }
    assert_eq!(inputs, weight.len_of(Axis(0)));
    y
}

#[test]
fn folds_into_convolutions() {
    let (channels, inputs) = (6, 4);
    let data = Data::<f64>::new(Case::new((3, channels, 5), Layout::ChannelsFirst, Epilogue::NONE));
    let layer = data.layer(Cpu::new());
    let mut random = Random::new(5);
    let mut values = |dim: Dim| Array3::from_shape_fn(dim, |_| random.normal());
    let x = values((3, inputs, 9));
    let bias = values((1, 1, channels)).into_shape_with_order(channels).unwrap();
    type Run = fn(&Array3<f64>, &Array3<f64>, &Array1<f64>) -> Array3<f64>;
    let kinds: [(&str, Dim, usize, Run); 4] = [
        ("of one group", (channels, inputs, 3), 0, convolution),
        ("of two groups", (channels, inputs / 2, 3), 0, convolution),
        ("of a channel each", (channels, 1, 2), 0, convolution),
        ("transposed", (inputs, channels, 3), 1, transposed_convolution),
    ];
    for (name, dim, axis, run) in kinds {
        // Depthwise, as many channels come in as go out.
        let x = if dim.1 == 1 { values((3, channels, 9)) } else { x.clone() };
        let weight = values(dim);
        let apart = layer.forward_eval(&run(&x, &weight, &bias)).unwrap();
        let folded = layer.fold_into(&weight, Some(&bias), axis).unwrap();
        let together = run(&x, &folded.weight, &folded.bias);
        let furthest = apart.iter().zip(&together).map(|(one, other)| (one - other).abs());
        assert!(furthest.fold(0.0, f64::max) < 1e-12, "{name}");
    }
}

#[test]
fn folds_that_do_not_fit_are_refused() {
    let layer = trained();
    let weight = Array3::<f32>::ones((DIM.1, 2, 2));
    let refused = |axis: usize, bias: Option<&Array1<f32>>| {
        layer.fold_into(&weight, bias.map(|bias| &**bias), axis).unwrap_err().to_string()
    };
    let expected = "`weight`: expected 5 channels on axis";
    assert!(refused(1, None).starts_with(expected));
    assert!(refused(3, None).starts_with(expected));
    assert!(refused(0, Some(&Array1::ones(4))).starts_with("`bias`: expected 5 elements"));
    let config = BatchNormConfig::new(DIM.1).track_running_stats(false);
    let bare: BatchNorm = config.build(Cpu::new()).unwrap();
    let error = bare.fold_into(&weight, None, 0).unwrap_err();
    assert!(error.to_string().starts_with("`track_running_stats`"), "{error}");
}

#[test]
fn a_residual_is_added_in_place_too() {
    for epilogue in epilogues().filter(|epilogue| epilogue.residual) {
        for layout in LAYOUTS {
            let data = Data::<bf16>::new(Case::new(DIM, layout, epilogue));
            let layer = data.layer(Cpu::new());
            let mut x = data.x.clone();
            layer.forward_eval_inplace_add(&mut x, &data.residual).unwrap();
            let y = layer.forward_eval_add(&data.x, &data.residual).unwrap();
            assert_eq!(bits(&x), bits(&y), "{epilogue:?} {layout}");
        }
    }
    let mut x = data(Epilogue::NONE).x;
    let (before, layer) = (x.clone(), trained());
    let error = layer.forward_eval_inplace_add(&mut x, &before.slice(ndarray::s![..2, .., ..]));
    assert!(error.unwrap_err().to_string().starts_with("`residual`: expected shape [6, 5, 7]"));
    assert_eq!(x, before);
}

/// A layer's own statistics advance in the split form as in the whole call.
#[test]
fn the_split_form_takes_a_layers_buffers() {
    let data = data(Epilogue::NONE);
    let mut whole = data.layer(Cpu::new());
    let (y, saved) = whole.forward_train(&data.x).unwrap();

    let mut layer = data.layer(Cpu::new());
    let problem =
        layer.problem::<f32>(&[DIM.0, DIM.1, DIM.2], Layout::ChannelsFirst, false).unwrap();
    let (cpu, norm) = (layer.backend().clone(), layer.norm());
    let mut workspace = cpu.workspace(&problem).unwrap();
    let mut merged = Saved::new(&cpu, &problem).unwrap();
    let x = data.x.as_slice().unwrap();
    let mut moments = vec![0.0; MOMENT_ROWS * DIM.1];
    cpu.statistics::<f32>(&problem, x.into(), (&mut moments).into(), &mut workspace).unwrap();
    let (moments, running) = ((&moments).into(), layer.running_mut());
    let merge = MergeStatistics { moments, running, saved: merged.as_mut() };
    cpu.merge_statistics::<f32>(DIM.1, &norm, merge).unwrap();
    let mut split = Array3::<f32>::zeros(DIM);
    let (statistics, mask) = merged.split_mask();
    let apply = Apply {
        x: x.into(),
        residual: None,
        affine: layer.affine(),
        y: split.as_slice_mut().unwrap().into(),
        saved: statistics,
        mask,
        workspace: &mut workspace,
    };
    cpu.apply::<f32>(&problem, apply).unwrap();

    assert_eq!(merged.invstd(), saved.invstd());
    assert_eq!(layer.state().unwrap(), whole.state().unwrap());
    assert!(split.iter().zip(&y).all(|(split, y)| (split - y).abs() < 1e-6));
}

#[test]
fn what_is_saved_can_be_printed() {
    let data = data(Epilogue { activation: RELU, residual: true });
    let mut layer = data.layer(Cpu::new());
    let (_, saved) = layer.forward_train_add(&data.x, &data.residual).unwrap();
    assert_eq!(format!("{saved:?}"), "Saved { channels: 5, mask_bytes: Some(30), .. }");
    let mut sync = SyncBatchNorm::new(layer);
    let parts: Vec<_> = data.x.axis_chunks_iter(Axis(0), 3).collect();
    let (_, saved) = sync.forward_train(&[&*parts[0], &*parts[1]]).unwrap();
    assert!(format!("{saved:?}").contains("Saved { channels: 5, mask_bytes: None, .. }"));
}
