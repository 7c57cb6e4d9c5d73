//! The calls around the kernels: names, the split form, and what is refused.
#![cfg(emulated)]

#[path = "../../suite/common/mod.rs"]
mod suite;

use emulator::{Buffer, Emulator};
use half::{bf16, f16};
use suite::flat::Buffers;
use suite::on_backend::on_backend;
use suite::{Bars, Case, Data, LAYOUTS, Mode, epilogues};
use warpnorm::cuda::{Alignment, Device, Pass, Plan};
use warpnorm::*;

type Gpu = Device<Emulator>;

const ADD_RELU: Epilogue = Epilogue { activation: Activation::Relu, residual: true };

fn gpu() -> Gpu {
    Device::new(Emulator::with_seed(2))
}

/// A plan cannot name a kernel that does not exist.
#[test]
fn every_plan_names_a_kernel() {
    let kernels: Vec<String> = emulator::kernels().into_iter().map(|kernel| kernel.name).collect();
    let facts = emulator::default_facts();
    for pass in [Pass::Statistics, Pass::Apply, Pass::Reduce, Pass::Gradient, Pass::Frozen] {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            for (layout, epilogue) in
                LAYOUTS.into_iter().flat_map(|it| epilogues().map(move |e| (it, e)))
            {
                for spatial in [1, 49, 1024, 1031] {
                    for alignment in [Alignment::ALIGNED, Alignment::MIXED] {
                        let problem =
                            Problem::new(&[2, 8, spatial], layout, dtype, epilogue).unwrap();
                        let plan = Plan::new(pass, &problem, &facts, alignment).unwrap();
                        assert!(kernels.contains(&plan.kernel), "{plan}");
                    }
                }
            }
        }
    }
}

/// The rows of one rank.
fn rank_of<E: Element>(data: &Data<E>, from: usize, to: usize) -> Data<E> {
    let (_, c, s) = data.case.dim;
    let rows = |tensor: &ndarray::Array3<E>| {
        suite::to_layout(&tensor.slice(ndarray::s![from..to, .., ..]), data.case.layout)
    };
    Data {
        case: Case { dim: (to - from, c, s), ..data.case },
        x: rows(&data.x),
        residual: rows(&data.residual),
        dy: rows(&data.dy),
        weight: data.weight.clone(),
        bias: data.bias.clone(),
        running_mean: data.running_mean.clone(),
        running_var: data.running_var.clone(),
    }
}

/// Statistics, merge and apply over uneven and empty ranks give what the whole batch gives.
fn check_ranks<E: Element<Param = f32>>(case: Case) {
    let gpu = gpu();
    let data = Data::<E>::new(case).without_gradients_at_kinks(Mode::Train);
    let expected = data.expected(Mode::Train);
    let (n, c, _) = case.dim;
    let cuts = [0, 1, 1, n];
    let mut ranks: Vec<Buffers<E>> =
        cuts.windows(2).map(|cut| Buffers::dense(&rank_of(&data, cut[0], cut[1]))).collect();
    let mut spaces: Vec<_> =
        ranks.iter().map(|rank| gpu.workspace(&rank.problem).unwrap()).collect();

    let mut gathered = Vec::new();
    for (rank, space) in ranks.iter_mut().zip(&mut spaces) {
        let mut moments = vec![f64::NAN; MOMENT_ROWS * c];
        on_backend(rank, &gpu, space, |on| on.statistics(&mut moments)).unwrap();
        gathered.extend(moments);
    }
    let mut gathered_sums = Vec::new();
    for (rank, space) in ranks.iter_mut().zip(&mut spaces) {
        let mut sums = vec![f64::NAN; SUM_ROWS * c];
        on_backend(rank, &gpu, space, |on| {
            on.merge_statistics(&gathered)?;
            on.apply()?;
            on.backward_reduce(&mut sums)
        })
        .unwrap();
        gathered_sums.extend(sums);
    }
    let sums = {
        let all = gpu.upload(&gathered_sums).unwrap();
        let mut sums: Buffer<f64> = gpu.zeros(SUM_ROWS * c).unwrap();
        gpu.merge_sums(c, Gpu::slice(&all), Gpu::slice_mut(&mut sums)).unwrap();
        gpu.download(&sums).unwrap()
    };
    for (index, (rank, space)) in ranks.iter_mut().zip(&mut spaces).enumerate() {
        on_backend(rank, &gpu, space, |on| on.backward_apply(&sums)).unwrap();
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

#[test]
fn ranks_give_what_the_whole_batch_gives() {
    for layout in LAYOUTS {
        for dim in [(5, 7, 1), (6, 8, 49), (4, 3, 520)] {
            check_ranks::<f32>(Case::new(dim, layout, ADD_RELU));
            check_ranks::<bf16>(Case::new(dim, layout, Epilogue::NONE));
            check_ranks::<f32>(Case {
                mean: 1e4,
                std: 1e-2,
                ..Case::new(dim, layout, Epilogue::NONE)
            });
        }
    }
}

/// Without a batch, inference has nothing to do, and its gradients are zero.
#[test]
fn a_batch_of_nothing() {
    for layout in LAYOUTS {
        for dim in [(0, 600, 4), (3, 5, 0)] {
            let mut buffers =
                Buffers::<f16>::dense(&Data::new(Case::new(dim, layout, Epilogue::NONE)));
            let gpu = gpu();
            let mut workspace = gpu.workspace(&buffers.problem).unwrap();
            on_backend(&mut buffers, &gpu, &mut workspace, |on| {
                on.inference()?;
                on.inference_backward()
            })
            .unwrap();
            assert!(buffers.dweight.unwrap().iter().all(|&it| it == 0.0), "{dim:?} {layout}");
            assert!(buffers.dbias.unwrap().iter().all(|&it| it == 0.0), "{dim:?} {layout}");
        }
    }
}

type Spoil = fn(&mut Buffers<f32>);

/// A refused call names the argument and changes nothing.
#[test]
fn refused_calls_change_nothing() {
    let spoiled: [(&str, Spoil); 12] = [
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
        ("eps", |it| it.norm.eps = -1.0),
    ];
    for (argument, spoil) in spoiled {
        refused(argument, ADD_RELU, spoil, |it, gpu| {
            let mut workspace = gpu.workspace(&it.problem).unwrap();
            on_backend(it, gpu, &mut workspace, |on| on.forward_train())
        });
    }
    let spoiled: [(&str, Spoil); 7] = [
        ("dy", |it| it.dy.truncate(10)),
        ("dx", |it| it.dx.truncate(10)),
        ("dresidual", |it| it.dresidual.as_mut().unwrap().truncate(1)),
        ("dweight", |it| it.dweight.as_mut().unwrap().truncate(1)),
        ("dbias", |it| it.dbias.as_mut().unwrap().push(0.0)),
        ("saved.invstd", |it| it.invstd.truncate(1)),
        ("saved.mask", |it| it.mask.as_mut().unwrap().truncate(1)),
    ];
    for (argument, spoil) in spoiled {
        refused(argument, ADD_RELU, spoil, |it, gpu| {
            let mut workspace = gpu.workspace(&it.problem).unwrap();
            on_backend(it, gpu, &mut workspace, |on| on.backward_train())
        });
    }
}

fn refused(
    argument: &str,
    epilogue: Epilogue,
    spoil: Spoil,
    call: impl Fn(&mut Buffers<f32>, &Gpu) -> Result<()>,
) {
    let data = Data::new(Case::new((3, 5, 9), Layout::ChannelsFirst, epilogue));
    let mut buffers = Buffers::<f32>::dense(&data);
    spoil(&mut buffers);
    let before = buffers.fingerprint();
    let error = call(&mut buffers, &gpu()).expect_err(argument);
    assert!(error.to_string().contains(&format!("`{argument}`")), "{argument}: {error}");
    assert!(buffers.fingerprint() == before, "{argument}");
}

/// A workspace of another problem is refused.
#[test]
fn a_workspace_of_a_smaller_problem() {
    let gpu = gpu();
    let small = Buffers::<f32>::dense(&Data::new(Case::new((2, 3, 1), LAYOUTS[1], Epilogue::NONE)));
    let mut workspace = gpu.workspace(&small.problem).unwrap();
    let mut large =
        Buffers::<f32>::dense(&Data::new(Case::new((900, 300, 1), LAYOUTS[1], Epilogue::NONE)));
    let error = on_backend(&mut large, &gpu, &mut workspace, |on| on.forward_train()).unwrap_err();
    assert!(error.to_string().contains("`workspace`"), "{error}");
}

/// One value per channel has no variance; f64 is for the CPU.
#[test]
fn what_a_gpu_does_not_do() {
    let gpu = gpu();
    let mut one =
        Buffers::<f32>::dense(&Data::new(Case::new((1, 3, 1), LAYOUTS[0], Epilogue::NONE)));
    let mut workspace = gpu.workspace(&one.problem).unwrap();
    let error = on_backend(&mut one, &gpu, &mut workspace, |on| on.forward_train()).unwrap_err();
    assert!(error.to_string().contains("more than 1 value per channel"), "{error}");
    let wide = Problem::new(&[4, 3], LAYOUTS[0], DType::F64, Epilogue::NONE).unwrap();
    let error = gpu.workspace(&wide).err().unwrap();
    assert!(error.to_string().contains("f32, f16 or bf16"), "{error}");
}

/// The same memory as input and output, where that is not what the call is for.
#[test]
fn a_buffer_given_twice() {
    use warpnorm::cuda::MemoryRef;
    let memory = |address, bytes| MemoryRef { address, bytes, hold: () };
    // Safe code cannot borrow a buffer twice; addresses can say the same.
    let (a, b) = (memory(64, 32), memory(80, 32));
    assert!(a.overlaps(&b) && b.overlaps(&a) && a.overlaps(&a));
    assert!(!a.overlaps(&memory(96, 8)) && !a.overlaps(&memory(64, 0)));
}

/// Calls made one after another in one workspace, whose counters every call leaves at zero.
#[test]
fn a_used_workspace_changes_no_bit() {
    for layout in LAYOUTS {
        let data = Data::<f32>::new(Case::new((700, 5, 3), layout, Epilogue::NONE));
        let gpu = gpu();
        let mut first = Buffers::dense(&data);
        let mut workspace = gpu.workspace(&first.problem).unwrap();
        let mut again = Buffers::dense(&data);
        for buffers in [&mut first, &mut again] {
            on_backend(buffers, &gpu, &mut workspace, |on| {
                on.forward_train().and_then(|()| on.backward_train())
            })
            .unwrap();
        }
        assert!(first.fingerprint() == again.fingerprint(), "{layout}");
    }
}

/// The cumulative average, with its count on the device.
#[test]
fn the_cumulative_average() {
    let gpu = gpu();
    let mut layer: BatchNorm<Gpu> =
        BatchNormConfig::new(2).momentum(None).build(gpu.clone()).unwrap();
    let problem = layer.problem::<f32>(&[2, 2], Layout::ChannelsLast, false).unwrap();
    let (mut saved, mut workspace) =
        (Saved::new(&gpu, &problem).unwrap(), gpu.workspace(&problem).unwrap());
    let mut y: Buffer<f32> = gpu.zeros(4).unwrap();
    for values in [[0.0, 10.0, 2.0, 14.0], [4.0, 0.0, 8.0, 4.0], [1.0, 1.0, 1.0, 1.0f32]] {
        let x = gpu.upload(&values).unwrap();
        let (x, y) = (Gpu::slice(&x), Gpu::slice_mut(&mut y));
        layer.forward_train_into::<f32>(&problem, x, None, y, &mut saved, &mut workspace).unwrap();
    }
    let state = layer.state().unwrap();
    assert_eq!(state.num_batches_tracked, Some(3));
    let mean = state.running_mean.unwrap();
    assert!((mean[0] - (1.0 + 6.0 + 1.0) / 3.0).abs() < 1e-6, "{mean:?}");
    assert!((mean[1] - (12.0 + 2.0 + 1.0) / 3.0).abs() < 1e-6, "{mean:?}");
}
