//! The calls around the kernels: the split form, what is refused, workspaces.

use crate::suite::flat::Buffers;
use crate::suite::on_backend::{OnBackend, on_backend};
use crate::suite::{self, Bars, Case, Data, LAYOUTS, Mode};
use crate::{ADD_RELU, BufferOf, DeviceOf, Subject};
use half::f16;
use warpnorm::cuda::{Device, Launcher};
use warpnorm::*;

/// Runs calls on `buffers` in a workspace of their problem.
fn call<E: Element, L: Launcher>(
    buffers: &mut Buffers<E>,
    device: &Device<L>,
    calls: impl FnOnce(&mut OnBackend<'_, Device<L>, E>) -> Result<()>,
) -> Result<()> {
    let mut workspace = device.workspace(&buffers.problem).unwrap();
    on_backend(buffers, device, &mut workspace, calls)
}

/// Statistics, merge and apply over uneven and empty ranks give what the whole batch gives.
fn check_ranks<S: Subject, E: Element<Param = f32>>(subject: &S, case: Case) {
    let device = subject.device(2);
    let data = Data::<E>::new(case).without_gradients_at_kinks(Mode::Train);
    let expected = data.expected(Mode::Train);
    let (n, c, _) = case.dim;
    let cuts = [0, 0, 1, 1, n];
    let mut ranks: Vec<Buffers<E>> =
        cuts.windows(2).map(|cut| Buffers::dense(&data.samples(cut[0], cut[1]))).collect();
    let mut spaces: Vec<_> =
        ranks.iter().map(|rank| device.workspace(&rank.problem).unwrap()).collect();

    let mut gathered = Vec::new();
    for (rank, space) in ranks.iter_mut().zip(&mut spaces) {
        let mut moments = vec![f64::NAN; MOMENT_ROWS * c];
        on_backend(rank, &device, space, |on| on.statistics(&mut moments)).unwrap();
        gathered.extend(moments);
    }
    let mut gathered_sums = Vec::new();
    for (rank, space) in ranks.iter_mut().zip(&mut spaces) {
        let mut sums = vec![f64::NAN; SUM_ROWS * c];
        on_backend(rank, &device, space, |on| {
            on.merge_statistics(&gathered)?;
            on.apply()?;
            on.backward_reduce(&mut sums)
        })
        .unwrap();
        gathered_sums.extend(sums);
    }
    let sums = {
        let all = device.upload(&gathered_sums).unwrap();
        let mut sums: BufferOf<S, f64> = device.zeros(SUM_ROWS * c).unwrap();
        let (all, merged) = (DeviceOf::<S>::slice(&all), DeviceOf::<S>::slice_mut(&mut sums));
        device.merge_sums(c, all, merged).unwrap();
        device.download(&sums).unwrap()
    };
    for (index, (rank, space)) in ranks.iter_mut().zip(&mut spaces).enumerate() {
        on_backend(rank, &device, space, |on| on.backward_apply(&sums)).unwrap();
        assert_eq!(rank.num_batches_tracked, [1]);
        let bars = Bars::of(E::DTYPE);
        let rows = |tensor: &ndarray::Array3<f64>| {
            tensor.slice(ndarray::s![cuts[index]..cuts[index + 1], .., ..]).to_owned()
        };
        let (y, dx) = (rank.tensor(Operand::Y), rank.tensor(Operand::Dx));
        suite::assert_tensor("y", &y, &rows(&expected.y), &expected.scale.y, bars.y);
        suite::assert_tensor("dx", &dx, &rows(&expected.gradients.dx), &expected.scale.dx, bars.dx);
        let var = &expected.running_var;
        suite::assert_channels("running_var", &rank.running_var, var, var, bars.y);
    }
}

pub(crate) fn ranks<S: Subject, E: Element<Param = f32>>(subject: &S) {
    for layout in LAYOUTS {
        for dim in [(5, 7, 1), (6, 8, 49), (4, 3, 520)] {
            check_ranks::<S, E>(subject, Case::new(dim, layout, ADD_RELU));
            let plain = Case::new(dim, layout, Epilogue::NONE);
            check_ranks::<S, E>(subject, Case { mean: 1e4, std: 1e-2, ..plain });
            check_ranks::<S, E>(subject, plain);
        }
    }
}

/// Nobody can refuse it before it is too late: the count is in the device's memory.
pub(crate) fn one_value_over_all_ranks<S: Subject>(subject: &S) {
    let case = Case::new((1, 3, 1), LAYOUTS[0], Epilogue::NONE);
    let mut rank = Buffers::<f32>::dense(&Data::new(case));
    let running = |it: &Buffers<f32>| {
        (it.running_mean.clone(), it.running_var.clone(), it.num_batches_tracked.clone())
    };
    let before = running(&rank);
    call(&mut rank, &subject.device(2), |on| {
        let mut moments = vec![f64::NAN; MOMENT_ROWS * 3];
        on.statistics(&mut moments)?;
        on.merge_statistics(&moments)
    })
    .unwrap();
    assert_eq!(running(&rank), before);
    assert!(rank.mean_hi.iter().all(|mean| mean.is_finite()));
}

/// In the input's place inference gives the bits that it gives elsewhere, whatever the momentum.
pub(crate) fn inference_in_place<S: Subject, E: Element>(subject: &S) {
    for layout in LAYOUTS {
        for dim in [(5, 7, 1), (3, 8, 49), (2, 3, 520), (2, 4, 1031)] {
            let device = subject.device(4);
            let data = Data::<E>::new(Case::new(dim, layout, ADD_RELU));
            let (mut beside, mut within) = (Buffers::dense(&data), Buffers::dense(&data));
            (beside.norm.momentum, within.norm.momentum) = (Some(2.0), Some(-1.0));
            call(&mut beside, &device, |on| on.inference()).unwrap();
            call(&mut within, &device, |on| on.inference_inplace()).unwrap();
            assert_eq!(
                suite::value_bits(&beside.y),
                suite::value_bits(&within.x),
                "{dim:?} {layout}"
            );
        }
    }
}

/// Without a batch, inference has nothing to do, and its gradients are zero.
pub(crate) fn a_batch_of_nothing<S: Subject>(subject: &S) {
    for layout in LAYOUTS {
        for dim in [(0, 600, 4), (3, 5, 0)] {
            let mut buffers =
                Buffers::<f16>::dense(&Data::new(Case::new(dim, layout, Epilogue::NONE)));
            buffers.norm.momentum = Some(2.0);
            call(&mut buffers, &subject.device(2), |on| {
                on.inference()?;
                on.inference_backward()
            })
            .unwrap();
            assert!(buffers.dweight.unwrap().iter().all(|&it| it == 0.0), "{dim:?} {layout}");
            assert!(buffers.dbias.unwrap().iter().all(|&it| it == 0.0), "{dim:?} {layout}");
        }
    }
}

/// A last batch of one sample, in a slice of a larger array whose samples lie apart.
pub(crate) fn one_sample_of_a_larger_array<S: Subject>(subject: &S) {
    for layout in LAYOUTS {
        let data = Data::<f32>::new(Case::new((1, 5, 9), layout, ADD_RELU));
        let data = data.without_gradients_at_kinks(Mode::Train);
        let mut buffers = Buffers::with_gaps(&data, &[(Operand::X, 8), (Operand::Dy, 8)]);
        buffers.x.extend([f32::NAN; 8]);
        buffers.dy.extend([f32::NAN; 20]);
        call(&mut buffers, &subject.device(2), |on| {
            on.forward_train()?;
            on.backward_train()
        })
        .unwrap();
        buffers.x.truncate(5 * 9);
        buffers.dy.truncate(5 * 9);
        buffers.assert_results(&data.expected(Mode::Train), Bars::of(DType::F32));
    }
}

type Spoil = fn(&mut Buffers<f32>);

/// A refused call names the argument and changes nothing.
pub(crate) fn refused_calls_change_nothing<S: Subject>(subject: &S) {
    let device = subject.device(2);
    let maskless: Spoil = |it| {
        let relu = Epilogue::activation(Activation::Relu);
        it.problem = it.problem.with_epilogue(relu).unwrap();
        (it.residual, it.dresidual) = (None, None);
    };
    let spoiled: [(&str, Spoil); 13] = [
        ("x", |it| it.x.truncate(10)),
        ("residual", |it| it.residual = None),
        ("residual", |it| it.residual.as_mut().unwrap().truncate(1)),
        ("y", |it| it.y.push(0.0)),
        ("weight", |it| it.weight.as_mut().unwrap().truncate(2)),
        ("bias", |it| it.bias.as_mut().unwrap().push(1.0)),
        ("running_mean", |it| it.running_mean.truncate(1)),
        ("running_var", |it| it.running_var.truncate(1)),
        ("num_batches_tracked", |it| it.num_batches_tracked.clear()),
        ("saved.mean_hi", |it| it.mean_hi.truncate(1)),
        ("saved.mask", |it| it.mask = None),
        ("saved.mask", maskless),
        ("eps", |it| it.norm.eps = -1.0),
    ];
    for (argument, spoil) in spoiled {
        refused(argument, spoil, |it| call(it, &device, |on| on.forward_train()));
    }
    let spoiled: [(&str, Spoil); 8] = [
        ("dy", |it| it.dy.truncate(10)),
        ("dx", |it| it.dx.truncate(10)),
        ("dresidual", |it| it.dresidual.as_mut().unwrap().truncate(1)),
        ("dweight", |it| it.dweight.as_mut().unwrap().truncate(1)),
        ("dbias", |it| it.dbias.as_mut().unwrap().push(0.0)),
        ("saved.invstd", |it| it.invstd.truncate(1)),
        ("saved.mask", |it| it.mask.as_mut().unwrap().truncate(1)),
        ("saved.mask", maskless),
    ];
    for (argument, spoil) in spoiled {
        refused(argument, spoil, |it| call(it, &device, |on| on.backward_train()));
    }
    let spoiled: [Spoil; 3] =
        [|it| it.mask = None, |it| it.mask.as_mut().unwrap().truncate(1), maskless];
    for spoil in spoiled {
        refused("mask", spoil, |it| call(it, &device, |on| on.apply()));
    }
}

fn refused(argument: &str, spoil: Spoil, call: impl Fn(&mut Buffers<f32>) -> Result<()>) {
    let data = Data::new(Case::new((3, 5, 9), Layout::ChannelsFirst, ADD_RELU));
    let mut buffers = Buffers::<f32>::dense(&data);
    spoil(&mut buffers);
    let before = buffers.fingerprint();
    let error = call(&mut buffers).expect_err(argument);
    assert!(error.to_string().contains(&format!("`{argument}`")), "{argument}: {error}");
    assert!(buffers.fingerprint() == before, "{argument}");
}

/// A workspace of another problem is refused.
pub(crate) fn a_workspace_of_a_smaller_problem<S: Subject>(subject: &S) {
    let device = subject.device(2);
    let small = Buffers::<f32>::dense(&Data::new(Case::new((2, 3, 1), LAYOUTS[1], Epilogue::NONE)));
    let mut workspace = device.workspace(&small.problem).unwrap();
    assert_eq!(device.workspace_bytes(&small.problem).unwrap(), workspace.bytes());
    let mut large =
        Buffers::<f32>::dense(&Data::new(Case::new((900, 300, 1), LAYOUTS[1], Epilogue::NONE)));
    let result = on_backend(&mut large, &device, &mut workspace, |on| on.forward_train());
    let error = result.unwrap_err();
    assert!(error.to_string().contains("`workspace`"), "{error}");
}

/// A workspace in the caller's memory, whatever that holds, serves as one that was allocated.
pub(crate) fn a_workspace_in_memory_of_the_caller_s<S: Subject>(subject: &S) {
    let device = subject.device(2);
    let data = Data::<f32>::new(Case::new((700, 5, 3), LAYOUTS[1], Epilogue::NONE));
    let (mut one, mut other) = (Buffers::dense(&data), Buffers::dense(&data));
    let words = device.workspace_bytes(&one.problem).unwrap() as usize / size_of::<f64>();
    let memory = |len: usize| device.upload(&vec![f64::NAN; len]).unwrap();
    let mut theirs = device.workspace_in(&one.problem, memory(words + 7)).unwrap();
    let mut own = device.workspace(&one.problem).unwrap();
    assert_eq!(theirs.bytes(), own.bytes());
    for (buffers, workspace) in [(&mut one, &mut theirs), (&mut other, &mut own)] {
        on_backend(buffers, &device, workspace, |on| {
            on.forward_train().and_then(|()| on.backward_train())
        })
        .unwrap();
    }
    assert!(one.fingerprint() == other.fingerprint());
    assert_eq!(DeviceOf::<S>::len(&theirs.into_memory()), words + 7);

    *own.buffer_mut() = memory(words - 1);
    let result = on_backend(&mut other, &device, &mut own, |on| on.forward_train());
    let error = result.unwrap_err().to_string();
    assert!(error.starts_with("`workspace`: expected at least"), "{error}");
    let error = device.workspace_in(&one.problem, memory(words - 1)).unwrap_err().to_string();
    assert!(error.starts_with("`memory`: expected at least"), "{error}");
    let wide = Problem::new(&[4, 3], LAYOUTS[0], DType::F64, Epilogue::NONE).unwrap();
    assert!(device.workspace_in(&wide, memory(words)).is_err());
}

/// One value per channel has no variance; f64 is for the CPU.
pub(crate) fn what_a_gpu_does_not_do<S: Subject>(subject: &S) {
    let device = subject.device(2);
    let mut one =
        Buffers::<f32>::dense(&Data::new(Case::new((1, 3, 1), LAYOUTS[0], Epilogue::NONE)));
    let error = call(&mut one, &device, |on| on.forward_train()).unwrap_err();
    assert!(error.to_string().contains("more than 1 value per channel"), "{error}");
    let wide = Problem::new(&[4, 3], LAYOUTS[0], DType::F64, Epilogue::NONE).unwrap();
    for error in [device.workspace(&wide).err(), device.workspace_bytes(&wide).err()] {
        let error = error.unwrap().to_string();
        assert!(error.starts_with("`problem`: expected f32, f16 or bf16"), "{error}");
    }
    let mut saved = Saved::<_, f64>::new(&device, &wide).unwrap();
    let moments = device.upload(&[1.0; MOMENT_ROWS * 3]).unwrap();
    let args = MergeStatistics {
        moments: DeviceOf::<S>::slice(&moments),
        running: None,
        saved: saved.as_mut(),
    };
    let norm = Norm { eps: 1e-5, momentum: None };
    let error = device.merge_statistics::<f64>(3, &norm, args).unwrap_err();
    assert!(error.to_string().starts_with("`saved`: expected f32, f16 or bf16"), "{error}");
    let error = BatchNorm::<_, f64>::new(3, device).unwrap_err();
    assert!(error.to_string().starts_with("`P`: expected f32, f16 or bf16"), "{error}");
}

/// Calls made one after another in one workspace, whose counters every call leaves at zero, as does
/// resetting it.
pub(crate) fn a_used_workspace_changes_no_bit<S: Subject>(subject: &S) {
    for layout in LAYOUTS {
        let data = Data::<f32>::new(Case::new((700, 5, 3), layout, Epilogue::NONE));
        let device = subject.device(2);
        let mut first = Buffers::dense(&data);
        let mut workspace = device.workspace(&first.problem).unwrap();
        let mut again = [Buffers::dense(&data), Buffers::dense(&data)];
        let train = |buffers: &mut Buffers<f32>, workspace: &mut _| {
            on_backend(buffers, &device, workspace, |on| {
                on.forward_train().and_then(|()| on.backward_train())
            })
            .unwrap();
        };
        train(&mut first, &mut workspace);
        train(&mut again[0], &mut workspace);
        // As an aborted launch leaves it: counters that are not zero, sums of no use.
        let spoiled = vec![f64::from_bits(0x0000_0003_0000_0003); workspace.bytes() as usize / 8];
        *workspace.buffer_mut() = device.upload(&spoiled).unwrap();
        workspace.reset(&device).unwrap();
        train(&mut again[1], &mut workspace);
        for again in again {
            assert!(first.fingerprint() == again.fingerprint(), "{layout}");
        }
    }
}

/// What one of two layers learns is nothing to the other.
pub(crate) fn a_duplicate_has_buffers_of_its_own<S: Subject>(subject: &S) {
    let buffers =
        Buffers::<f32>::dense(&Data::new(Case::new((4, 3, 1), LAYOUTS[0], Epilogue::NONE)));
    let device = subject.device(2);
    let mut layer: BatchNorm<DeviceOf<S>> = BatchNorm::new(3, device.clone()).unwrap();
    let (copy, before) = (layer.duplicate().unwrap(), layer.state().unwrap());
    let mut workspace = device.workspace(&buffers.problem).unwrap();
    let mut saved = Saved::new(&device, &buffers.problem).unwrap();
    let x = device.upload(&buffers.x).unwrap();
    let mut y = device.upload(&buffers.y).unwrap();
    let (input, output) = (DeviceOf::<S>::slice(&x), DeviceOf::<S>::slice_mut(&mut y));
    let problem = &buffers.problem;
    layer
        .forward_train_into::<f32>(problem, input, None, output, &mut saved, &mut workspace)
        .unwrap();
    assert_ne!(layer.state().unwrap(), before);
    assert_eq!(copy.state().unwrap(), before);
}

/// The cumulative average, with its count on the device.
pub(crate) fn the_cumulative_average<S: Subject>(subject: &S) {
    let device = subject.device(2);
    let mut layer: BatchNorm<DeviceOf<S>> =
        BatchNormConfig::new(2).momentum(None).build(device.clone()).unwrap();
    let problem = layer.problem::<f32>(&[2, 2], Layout::ChannelsLast, false).unwrap();
    let mut saved = Saved::new(&device, &problem).unwrap();
    let mut workspace = device.workspace(&problem).unwrap();
    let mut y: BufferOf<S, f32> = device.zeros(4).unwrap();
    for values in [[0.0, 10.0, 2.0, 14.0], [4.0, 0.0, 8.0, 4.0], [1.0, 1.0, 1.0, 1.0f32]] {
        let x = device.upload(&values).unwrap();
        let (x, y) = (DeviceOf::<S>::slice(&x), DeviceOf::<S>::slice_mut(&mut y));
        layer.forward_train_into::<f32>(&problem, x, None, y, &mut saved, &mut workspace).unwrap();
    }
    let state = layer.state().unwrap();
    assert_eq!(state.num_batches_tracked, Some(3));
    let mean = state.running_mean.unwrap();
    assert!((mean[0] - (1.0 + 6.0 + 1.0) / 3.0).abs() < 1e-6, "{mean:?}");
    assert!((mean[1] - (12.0 + 2.0 + 1.0) / 3.0).abs() < 1e-6, "{mean:?}");
}
