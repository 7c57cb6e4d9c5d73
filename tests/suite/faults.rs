//! Every way to call wrongly: the error names the argument, what was expected and what was found,
//! and the refused call has changed nothing.

use crate::common::flat::Buffers;
use crate::common::*;
use ndarray::{
    Array1, Array2, Array3, ArrayD, ArrayRef, ArrayViewD, Axis, Ix3, IxDyn, Slice, array, s,
};
use proptest::prelude::*;
use warpnorm::*;

/// Checks the message: which argument, and both halves of the sentence.
fn assert_names(error: Error, argument: &str, expected: &str, found: &str) {
    let message = error.to_string();
    let Error::Argument { argument: name, expected: wanted, found: got } = &error else {
        panic!("not about an argument: {message}");
    };
    assert_eq!(name, argument, "{message}");
    assert!(wanted.contains(expected), "{message}");
    assert!(got.contains(found), "{message}");
    assert_eq!(message, format!("`{name}`: expected {wanted}, found {got}"));
}

// Flat calls.

const ADD_RELU: Epilogue = Epilogue { activation: Activation::Relu, residual: true };
const ADD_TANH: Epilogue = Epilogue { activation: Activation::Tanh, residual: true };

fn buffers(layout: Layout, epilogue: Epilogue) -> Buffers<f32> {
    let mut buffers = Buffers::dense(&Data::new(Case::new((4, 6, 5), layout, epilogue)));
    // What backward reads is in place, as after a forward.
    let mut before = buffers.clone();
    before.forward_train(&Cpu::new()).unwrap();
    buffers.mean_hi = before.mean_hi;
    buffers.mean_lo = before.mean_lo;
    buffers.invstd = before.invstd;
    buffers.mask = before.mask;
    buffers
}

type Call = fn(&mut Buffers<f32>) -> Result<()>;
type Spoil = fn(&mut Buffers<f32>);

const FORWARD: Call = |b| b.forward_train(&Cpu::new());
const BACKWARD: Call = |b| b.backward_train(&Cpu::new());
const INFERENCE: Call = |b| b.inference(&Cpu::new());
const INPLACE: Call = |b| b.inference_inplace(&Cpu::new());
const FROZEN: Call = |b| b.inference_backward(&Cpu::new());
const APPLY: Call = |b| b.apply(&Cpu::new());
const STATISTICS: Call = |b| b.statistics(&Cpu::new(), &mut vec![0.0; MOMENT_ROWS * 6]);
const MERGE: Call = |b| b.merge_statistics(&Cpu::new(), &[4.0; MOMENT_ROWS * 6]);
const REDUCE: Call = |b| b.backward_reduce(&Cpu::new(), &mut vec![0.0; SUM_ROWS * 6]);
const BACKWARD_APPLY: Call = |b| b.backward_apply(&Cpu::new(), &[20.0; SUM_ROWS * 6]);

#[track_caller]
fn refuse(epilogue: Epilogue, calls: &[Call], spoil: Spoil, argument: &str, wants: [&str; 2]) {
    for layout in LAYOUTS {
        for call in calls {
            let mut buffers = buffers(layout, epilogue);
            call(&mut buffers.clone()).unwrap();
            spoil(&mut buffers);
            let before = buffers.fingerprint();
            assert_names(call(&mut buffers).unwrap_err(), argument, wants[0], wants[1]);
            assert!(buffers.fingerprint() == before, "a refused call wrote something");
        }
    }
}

fn shorten<T>(values: &mut Option<Vec<T>>) {
    values.as_mut().unwrap().pop();
}

fn lengthen<T: Copy>(values: &mut Vec<T>) {
    values.push(values[0]);
}

#[test]
fn tensors_of_another_length() {
    let elements = ["120 elements", "119"];
    let with_x = [FORWARD, BACKWARD, INFERENCE, INPLACE, FROZEN, APPLY, STATISTICS, REDUCE];
    refuse(ADD_TANH, &with_x, |b| b.x.truncate(b.x.len() - 1), "x", elements);
    refuse(ADD_TANH, &with_x, |b| lengthen(&mut b.x), "x", ["120 elements", "121"]);
    refuse(ADD_TANH, &with_x, |b| b.x.clear(), "x", ["120 elements", "0"]);
    let with_y = [FORWARD, INFERENCE, APPLY];
    refuse(ADD_TANH, &with_y, |b| b.y.truncate(b.y.len() - 1), "y", elements);
    refuse(ADD_TANH, &with_y, |b| lengthen(&mut b.y), "y", ["120 elements", "121"]);
    let with_residual =
        [FORWARD, INFERENCE, INPLACE, APPLY, BACKWARD, FROZEN, REDUCE, BACKWARD_APPLY];
    refuse(ADD_TANH, &with_residual, |b| shorten(&mut b.residual), "residual", elements);
    let with_dy = [BACKWARD, FROZEN, REDUCE, BACKWARD_APPLY];
    refuse(ADD_TANH, &with_dy, |b| b.dy.truncate(b.dy.len() - 1), "dy", elements);
    let with_dx = [BACKWARD, FROZEN, BACKWARD_APPLY];
    refuse(ADD_TANH, &with_dx, |b| b.dx.truncate(b.dx.len() - 1), "dx", elements);
    refuse(ADD_TANH, &with_dx, |b| lengthen(&mut b.dx), "dx", ["120 elements", "121"]);
    refuse(ADD_TANH, &with_dx, |b| shorten(&mut b.dresidual), "dresidual", elements);
}

#[test]
fn parameters_of_another_length() {
    let affine = [FORWARD, BACKWARD, INFERENCE, INPLACE, FROZEN, APPLY, REDUCE, BACKWARD_APPLY];
    let wants = ["6 elements", "5"];
    refuse(ADD_TANH, &affine, |b| shorten(&mut b.weight), "weight", wants);
    refuse(ADD_TANH, &affine, |b| shorten(&mut b.bias), "bias", wants);
    let running = [FORWARD, INFERENCE, INPLACE, FROZEN, MERGE];
    refuse(
        ADD_TANH,
        &running,
        |b| b.running_mean.truncate(b.running_mean.len() - 1),
        "running_mean",
        wants,
    );
    refuse(
        ADD_TANH,
        &running,
        |b| b.running_var.truncate(b.running_var.len() - 1),
        "running_var",
        wants,
    );
    let more = ["6 elements", "7"];
    refuse(ADD_TANH, &running, |b| lengthen(&mut b.running_var), "running_var", more);
    let tracked = [FORWARD, MERGE];
    let count = "num_batches_tracked";
    refuse(ADD_TANH, &tracked, |b| b.num_batches_tracked.clear(), count, ["1 elements", "0"]);
    refuse(ADD_TANH, &tracked, |b| b.num_batches_tracked[0] = -3, count, ["0 or more", "-3"]);
    let saved = [FORWARD, BACKWARD, APPLY, MERGE, REDUCE, BACKWARD_APPLY];
    refuse(ADD_TANH, &saved, |b| b.mean_hi.truncate(b.mean_hi.len() - 1), "saved.mean_hi", wants);
    refuse(ADD_TANH, &saved, |b| b.mean_lo.truncate(b.mean_lo.len() - 1), "saved.mean_lo", wants);
    refuse(ADD_TANH, &saved, |b| lengthen(&mut b.invstd), "saved.invstd", more);
    let sums = [BACKWARD, FROZEN, REDUCE];
    refuse(ADD_TANH, &sums, |b| shorten(&mut b.dweight), "dweight", wants);
    refuse(ADD_TANH, &sums, |b| shorten(&mut b.dbias), "dbias", wants);
}

#[test]
fn masks_and_residuals_that_are_missing_or_of_no_use() {
    let saved = [FORWARD, BACKWARD, REDUCE, BACKWARD_APPLY].map(|call| (call, "saved.mask"));
    let masked = saved.into_iter().chain([(APPLY, "mask")]);
    // 24 rows of 5 bits, or 20 of 6: a byte each.
    for (layout, bytes) in [(Layout::ChannelsFirst, 24), (Layout::ChannelsLast, 20)] {
        for (call, argument) in masked.clone() {
            for len in [None, Some(bytes - 1), Some(bytes + 1), Some(0)] {
                let mut buffers = buffers(layout, ADD_RELU);
                assert_eq!(buffers.problem.mask_len(), bytes);
                buffers.mask = len.map(|len| vec![0; len]);
                let before = buffers.fingerprint();
                let found = len.map_or("none".into(), |len| len.to_string());
                let error = call(&mut buffers).unwrap_err();
                assert_names(error, argument, &bytes.to_string(), &found);
                assert!(buffers.fingerprint() == before);
            }
        }
    }
    let plain_relu = Epilogue::activation(RELU);
    let superfluous: Spoil = |b| b.mask = Some(vec![0; 20]);
    for epilogue in [plain_relu, ADD_TANH] {
        let wants = ["no mask", "20 bytes"];
        refuse(epilogue, &saved.map(|(call, _)| call), superfluous, "saved.mask", wants);
        refuse(epilogue, &[APPLY], superfluous, "mask", wants);
    }
    let forward = [FORWARD, INFERENCE, INPLACE, APPLY];
    refuse(ADD_RELU, &forward, |b| b.residual = None, "residual", ["a tensor", "none"]);
    let backward = [BACKWARD, FROZEN, REDUCE, BACKWARD_APPLY];
    refuse(ADD_TANH, &backward, |b| b.residual = None, "residual", ["tanh", "none"]);
    // Frozen, there is no mask to read in its stead.
    refuse(ADD_RELU, &[FROZEN], |b| b.residual = None, "residual", ["relu", "none"]);
    let superfluous: Spoil = |b| b.residual = Some(b.x.clone());
    refuse(Epilogue::NONE, &forward, superfluous, "residual", ["none", "a tensor"]);
    let gradients = [BACKWARD, FROZEN, BACKWARD_APPLY];
    let superfluous: Spoil = |b| b.dresidual = Some(b.x.clone());
    refuse(Epilogue::NONE, &gradients, superfluous, "dresidual", ["none", "a tensor"]);
}

#[test]
fn settings_out_of_range() {
    let with_eps = [FORWARD, MERGE, INFERENCE, INPLACE, FROZEN];
    let wants = "0 or more";
    refuse(Epilogue::NONE, &with_eps, |b| b.norm.eps = -1e-5, "eps", [wants, "-0.00001"]);
    refuse(Epilogue::NONE, &with_eps, |b| b.norm.eps = f64::NAN, "eps", [wants, "NaN"]);
    refuse(Epilogue::NONE, &with_eps, |b| b.norm.eps = f64::INFINITY, "eps", [wants, "inf"]);
    let moving = [FORWARD, MERGE];
    for (spoil, found) in [
        ((|b| b.norm.momentum = Some(1.5)) as Spoil, "1.5"),
        (|b| b.norm.momentum = Some(-0.1), "-0.1"),
        (|b| b.norm.momentum = Some(f64::NAN), "NaN"),
    ] {
        refuse(Epilogue::NONE, &moving, spoil, "momentum", ["from 0 to 1", found]);
    }
    // Nothing moves in inference.
    for call in [INFERENCE, INPLACE, FROZEN] {
        let [expected, found] = [Some(0.1), Some(2.0)].map(|momentum| {
            let mut buffers = buffers(Layout::ChannelsFirst, Epilogue::NONE);
            buffers.norm.momentum = momentum;
            call(&mut buffers).unwrap();
            buffers.fingerprint()
        });
        assert!(expected == found);
    }
}

#[test]
fn a_workspace_of_a_smaller_problem() {
    for layout in LAYOUTS {
        let case = |dim| Case::new(dim, layout, Epilogue::NONE);
        let small = Buffers::<f32>::dense(&Data::new(case((2, 3, 1)))).workspace;
        for call in [FORWARD, BACKWARD, STATISTICS_300, FROZEN] {
            let mut buffers = Buffers::<f32>::dense(&Data::new(case((900, 300, 1))));
            buffers.forward_train(&Cpu::new()).unwrap();
            buffers.workspace = small.clone();
            let before = buffers.fingerprint();
            let error = call(&mut buffers).unwrap_err();
            assert_names(error, "workspace", "this problem", "a smaller one");
            assert!(buffers.fingerprint() == before);
        }
    }
}

const STATISTICS_300: Call = |b| b.statistics(&Cpu::new(), &mut vec![0.0; MOMENT_ROWS * 300]);

#[test]
fn a_problem_of_another_element_type() {
    for layout in LAYOUTS {
        for call in [FORWARD, BACKWARD, INFERENCE, INPLACE, FROZEN, APPLY, STATISTICS, REDUCE] {
            let mut buffers = buffers(layout, Epilogue::NONE);
            buffers.problem = Problem::new(&[4, 6, 5], layout, DType::F16, Epilogue::NONE).unwrap();
            let before = buffers.fingerprint();
            assert_names(call(&mut buffers).unwrap_err(), "problem", "dtype f32", "f16");
            assert!(buffers.fingerprint() == before);
        }
    }
}

#[test]
fn one_value_per_channel_in_every_training_call() {
    for layout in LAYOUTS {
        for dim in [(1, 6, 1), (0, 6, 5)] {
            for call in [FORWARD, BACKWARD] {
                let mut buffers = Buffers::dense(&Data::new(Case::new(dim, layout, ADD_RELU)));
                let before = buffers.fingerprint();
                let values = if dim.0 == 0 { "0" } else { "1" };
                assert_names(call(&mut buffers).unwrap_err(), "x", "more than 1 value", values);
                assert!(buffers.fingerprint() == before);
            }
        }
    }
}

#[test]
fn gathered_moments_and_sums_that_do_not_fit() {
    let cpu = Cpu::new();
    for len in [0, 1, MOMENT_ROWS * 6 - 1, MOMENT_ROWS * 6 + 1] {
        let mut buffers = buffers(Layout::ChannelsFirst, ADD_TANH);
        let before = buffers.fingerprint();
        let error = buffers.merge_statistics(&cpu, &vec![4.0; len]).unwrap_err();
        assert_names(error, "moments", "a multiple of 24", &len.to_string());
        assert!(buffers.fingerprint() == before);
    }
    for count in [0.0, 1.0, f64::NAN] {
        // Of all channels, or of the last.
        for channels in [0..6, 5..6] {
            let mut buffers = buffers(Layout::ChannelsFirst, ADD_TANH);
            let before = buffers.fingerprint();
            let mut moments = vec![0.0; 2 * MOMENT_ROWS * 6];
            moments[..6].fill(4.0);
            moments[channels.clone()].fill(count);
            let error = buffers.merge_statistics(&cpu, &moments).unwrap_err();
            let found = format!("{count} in channel {} over 2 ranks", channels.start);
            assert_names(error, "moments", "more than 1 value", &found);
            let mut sums = vec![9.0; SUM_ROWS * 6];
            sums[channels.clone()].fill(count);
            let error = buffers.backward_apply(&cpu, &sums).unwrap_err();
            let found = format!("{count} in channel {}", channels.start);
            assert_names(error, "sums", "more than 1 value", &found);
            assert!(buffers.fingerprint() == before);
        }
    }
    let mut sums = vec![5.0; SUM_ROWS * 6];
    for len in [0, 17, 19] {
        let error = cpu.merge_sums(6, (&vec![0.0; len]).into(), (&mut sums).into()).unwrap_err();
        assert_names(error, "gathered", "a multiple of 18", &len.to_string());
    }
    let error = cpu.merge_sums(6, (&vec![0.0; 36]).into(), (&mut sums[1..]).into()).unwrap_err();
    assert_names(error, "sums", "18 elements", "17");
    let error = cpu.merge_sums(0, (&vec![0.0; 36]).into(), (&mut sums).into()).unwrap_err();
    assert_names(error, "channels", "at least 1", "0");
    // Three times as many are 2 in 64 bits.
    let error = cpu.merge_sums(usize::MAX / 3 + 1, (&vec![0.0; 36]).into(), (&mut sums).into());
    assert_names(error.unwrap_err(), "gathered", "one share per rank", "36");
    assert_eq!(sums, [5.0; SUM_ROWS * 6]);

    let mut buffers = buffers(Layout::ChannelsLast, ADD_TANH);
    let before = buffers.fingerprint();
    let error = buffers.statistics(&cpu, &mut vec![0.0; 25]).unwrap_err();
    assert_names(error, "moments", "24 elements", "25");
    let error = buffers.backward_reduce(&cpu, &mut vec![0.0; 17]).unwrap_err();
    assert_names(error, "sums", "18 elements", "17");
    let error = buffers.backward_apply(&cpu, &[9.0; 19]).unwrap_err();
    assert_names(error, "sums", "18 elements", "19");
    assert!(buffers.fingerprint() == before);
}

// Problems, configurations, backends.

#[test]
fn problems_that_cannot_be() {
    let new = |extents: &[usize]| {
        Problem::new(extents, Layout::ChannelsFirst, DType::F32, Epilogue::NONE)
    };
    assert_names(new(&[]).unwrap_err(), "extents", "at least two", "[]");
    assert_names(new(&[5]).unwrap_err(), "extents", "at least two", "[5]");
    assert_names(new(&[5, 0, 3]).unwrap_err(), "extents", "at least 1 channel", "[5, 0, 3]");
    for huge in [
        [usize::MAX, 2, 1],
        [1 << 40, 1 << 20, 8],
        [1 << 61, 1, 1],
        [0, usize::MAX, 9],
        [0, 1 << 55, 1],
    ] {
        let found = format!("{huge:?}");
        assert_names(new(&huge).unwrap_err(), "extents", "can be addressed", &found);
    }
    let problem = new(&[4, 3, 5]).unwrap();
    for stride in [0, 14, usize::MAX, isize::MAX as usize / 4] {
        let error = problem.with_batch_stride(Operand::Dx, stride).unwrap_err();
        assert_names(error, "dx", "at least 15", &stride.to_string());
    }
    let leaky = Epilogue::activation(Activation::LeakyRelu { negative_slope: f64::NAN });
    let error = Problem::new(&[2, 2], Layout::ChannelsLast, DType::F32, leaky).unwrap_err();
    assert_names(error, "negative_slope", "a finite number", "NaN");
    let error = problem.with_epilogue(leaky).unwrap_err();
    assert_names(error, "negative_slope", "a finite number", "NaN");
}

/// A tensor can be addressed; three of them, in bytes, are more than `usize` counts.
#[test]
fn bytes_that_cannot_be_counted() {
    let extents = [isize::MAX as usize / 4, 1];
    for layout in LAYOUTS {
        let problem = Problem::new(&extents, layout, DType::F32, ADD_RELU).unwrap();
        assert_eq!(problem.forward_floor_bytes(), usize::MAX);
        assert_eq!(problem.backward_floor_bytes(), usize::MAX);
    }
}

/// As many channels as a problem may have, and no memory for what is kept of each.
#[test]
fn more_channels_than_fit_memory() {
    let channels = 1 << 52;
    for layout in LAYOUTS {
        let problem = Problem::new(&[0, channels], layout, DType::F32, ADD_RELU).unwrap();
        let cpu = Cpu::new();
        let refused = [
            cpu.workspace(&problem).err(),
            Saved::<Cpu, f32>::new(&cpu, &problem).err(),
            BatchNorm::<Cpu>::new(channels, cpu).err(),
        ];
        for error in refused.map(|error| error.expect("there is not so much memory").to_string()) {
            assert!(error.contains("memory for"), "{error}");
        }
    }
}

#[test]
fn configurations_that_cannot_be() {
    let refuse = |config: BatchNormConfig, argument: &str, expected: &str, found: &str| {
        let error = config.build::<Cpu, f32>(Cpu::new()).unwrap_err();
        assert_names(error, argument, expected, found);
    };
    let new = || BatchNormConfig::new(3);
    refuse(BatchNormConfig::new(0), "channels", "at least 1", "0");
    let most = usize::MAX.to_string();
    refuse(BatchNormConfig::new(usize::MAX), "channels", "can be addressed", &most);
    refuse(new().eps(-1.0), "eps", "0 or more", "-1");
    refuse(new().eps(f64::NAN), "eps", "0 or more", "NaN");
    refuse(new().eps(f64::INFINITY), "eps", "finite", "inf");
    refuse(new().momentum(Some(1.01)), "momentum", "from 0 to 1", "1.01");
    refuse(new().momentum(Some(-0.5)), "momentum", "from 0 to 1", "-0.5");
    refuse(new().momentum(Some(f64::NAN)), "momentum", "from 0 to 1", "NaN");
    let leaky = Activation::LeakyRelu { negative_slope: f64::INFINITY };
    refuse(new().activation(leaky), "negative_slope", "a finite number", "inf");
    assert_names(Cpu::with_threads(0).unwrap_err(), "threads", "at least 1", "0");
}

/// As under a limit on processes, which does not bind root.
#[test]
#[cfg(target_os = "linux")]
fn where_no_thread_can_be_started_the_calling_one_works_alone() {
    const CHILD: &str = "WARPNORM_TEST_NO_THREADS";
    if std::env::var_os(CHILD).is_some() {
        return work_without_threads();
    }
    let name = "faults::where_no_thread_can_be_started_the_calling_one_works_alone";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--test-threads=1"])
        .env(CHILD, "1")
        // A stack that no address space holds.
        .env("RUST_MIN_STACK", (1_u64 << 60).to_string())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
}

#[cfg(target_os = "linux")]
fn work_without_threads() {
    assert!(std::thread::Builder::new().spawn(|| ()).is_err());
    let error = Cpu::with_threads(2).unwrap_err().to_string();
    assert!(error.starts_with("starting threads"), "{error}");

    let x = Array2::from_shape_fn((40_000, 3), |(n, c)| (n * (c + 1) % 17) as f32);
    let on = |cpu: Cpu| BatchNorm::<Cpu>::new(3, cpu).unwrap();
    let (y, _) = on(Cpu::new()).forward_train(&x).unwrap();
    let (expected, _) = on(Cpu::with_threads(1).unwrap()).forward_train(&x).unwrap();
    assert_eq!(y, expected);
    let mut sync = SyncBatchNorm::new(on(Cpu::new()));
    let (parts, _) = sync.forward_train(&[&*x, &*x]).unwrap();
    assert_eq!(parts[0], parts[1]);
}

// Arrays.

fn layer(channels: usize) -> BatchNorm {
    BatchNorm::new(channels, Cpu::new()).unwrap()
}

/// Every array call refuses `x`, and the layer stays as it was.
#[track_caller]
fn refuse_x<D: ndarray::Dimension>(x: &mut ArrayRef<f32, D>, expected: &str, found: &str) {
    let mut layer = layer(3);
    let (_, saved) = layer.forward_train(&Array2::<f32>::ones((2, 3))).unwrap();
    let before = layer.state().unwrap();
    let (dense, values) = (x.to_owned(), x.iter().copied().collect::<Vec<f32>>());
    for error in [
        layer.forward_train(x).err(),
        layer.forward_train_add(x, x).err(),
        layer.forward_eval(x).err(),
        layer.forward_eval_add(x, x).err(),
        layer.backward(x, x, &saved).err(),
        layer.backward_add(x, Some(x), x, &saved).err(),
        layer.backward_eval(x, x).err(),
        layer.backward_eval_add(x, x, x).err(),
        layer.forward_eval_inplace(x).err(),
        layer.forward_eval_inplace_add(x, &dense).err(),
    ] {
        assert_names(error.unwrap(), "x", expected, found);
    }
    assert_eq!(layer.state().unwrap(), before);
    assert!(x.iter().eq(&values));
}

#[test]
fn arrays_of_another_shape() {
    refuse_x(&mut Array1::zeros(3), "rank 2 and up", "[3]");
    refuse_x(&mut ArrayD::zeros(IxDyn(&[])), "rank 2 and up", "[]");
    refuse_x(&mut Array3::zeros((2, 4, 5)), "3 channels", "4");
    refuse_x(&mut Array2::zeros((3, 2)), "3 channels", "2");
    refuse_x(&mut Array2::zeros((3, 0)), "at least 1 channel", "[3, 0]");
}

#[test]
fn arrays_of_neither_layout() {
    let strides = "strides";
    let x = || Array3::<f32>::zeros((4, 6, 10));
    // Steps along the positions, and along the channels.
    refuse_x(&mut x().slice_mut(s![.., ..3, ..;2]), strides, "[60, 10, 2]");
    refuse_x(&mut x().slice_mut(s![.., ..;2, ..]), strides, "[60, 20, 1]");
    // Backwards, along each axis.
    refuse_x(&mut x().slice_mut(s![..;-1, ..3, ..]), strides, "[-60, 10, 1]");
    refuse_x(&mut x().slice_mut(s![.., ..3;-1, ..]), strides, "[60, -10, 1]");
    refuse_x(&mut x().slice_mut(s![.., ..3, ..;-1]), strides, "[60, 10, -1]");
    // A window of positions of a channels-first array.
    refuse_x(&mut x().slice_mut(s![.., ..3, 2..5]), strides, "[60, 10, 1]");
    // Channels outermost; and a transposed matrix.
    let swapped = Array3::<f32>::zeros((3, 4, 5)).permuted_axes([1, 0, 2]);
    refuse_x(&mut { swapped }, strides, "[5, 20, 1]");
    refuse_x(&mut Array2::<f32>::zeros((3, 4)).reversed_axes(), strides, "[1, 4]");
    // A window of the channels of NHWC: its rows are no longer next to each other.
    let mut last = Array3::<f32>::zeros((4, 10, 6)).permuted_axes([0, 2, 1]);
    refuse_x(&mut last.slice_mut(s![.., ..3, ..]), strides, "[60, 1, 6]");
    // H and W swapped.
    let volume = ndarray::Array4::<f32>::zeros((2, 3, 4, 5)).permuted_axes([0, 1, 3, 2]);
    refuse_x(&mut { volume }, strides, "[60, 20, 1, 5]");
}

#[test]
fn broadcast_gradients_are_refused_not_misread() {
    let (x, row) = (Array3::<f32>::ones((4, 3, 5)), Array3::<f32>::ones((1, 3, 5)));
    let layer = layer(3);
    for dy in [
        row.broadcast((4, 3, 5)).unwrap(),
        row.slice(s![.., ..1, ..]).broadcast((4, 3, 5)).unwrap(),
        row.slice(s![.., .., ..1]).broadcast((4, 3, 5)).unwrap(),
    ] {
        assert_names(layer.backward_eval(&x, &dy).unwrap_err(), "dy", "strides", "strides");
    }
}

#[test]
fn tensors_of_one_call_share_shape_and_layout() {
    let first = Data::<f32>::new(Case::new((4, 3, 5), Layout::ChannelsFirst, Epilogue::NONE)).x;
    let last = in_layout(&first, Layout::ChannelsLast);
    let mut layer = layer(3);
    let (_, saved) = layer.forward_train(&first).unwrap();
    let before = layer.state().unwrap();
    let (expected, copies) = ("channels-first strides", "`to_layout` copies");
    for (argument, error) in [
        ("residual", layer.forward_train_add(&first, &last).err().unwrap()),
        ("residual", layer.forward_eval_add(&first, &last).unwrap_err()),
        ("dy", layer.backward(&first, &last, &saved).unwrap_err()),
        ("dy", layer.backward_eval(&first, &last).unwrap_err()),
        ("residual", layer.backward_add(&first, Some(&last), &first, &saved).unwrap_err()),
        ("dy", layer.backward_eval_add(&first, &first, &last).unwrap_err()),
    ] {
        assert!(error.to_string().contains(copies), "{error}");
        assert_names(error, argument, expected, "strides [15, 1, 3]");
    }
    let error = layer.forward_eval_add(&last, &first).unwrap_err();
    assert_names(error, "residual", "channels-last strides", "strides [15, 5, 1]");

    let other = Array3::<f32>::ones((4, 3, 6));
    let expected = "shape [4, 3, 5], as x";
    for (argument, error) in [
        ("residual", layer.forward_train_add(&first, &other).err().unwrap()),
        ("dy", layer.backward(&first, &other, &saved).unwrap_err()),
        ("dy", layer.backward_eval(&first, &other).unwrap_err()),
        ("residual", layer.backward_add(&first, Some(&other), &first, &saved).unwrap_err()),
    ] {
        assert_names(error, argument, expected, "[4, 3, 6]");
    }
    assert_eq!(layer.state().unwrap(), before);
}

#[test]
fn saved_statistics_of_another_call() {
    let x = Array3::<f32>::ones((4, 3, 5));
    let wide = Array3::<f32>::ones((4, 7, 5));
    let (_, of_seven) = layer(7).forward_train(&wide).unwrap();
    let error = layer(3).backward(&x, &x, &of_seven).unwrap_err();
    assert_names(error, "saved.mean_hi", "3 elements", "7");

    let config = BatchNormConfig::new(3).activation(RELU);
    let mut relu: BatchNorm = config.build(Cpu::new()).unwrap();
    let (_, maskless) = relu.forward_train(&x).unwrap();
    let error = relu.backward_add(&x, Some(&x), &x, &maskless).unwrap_err();
    assert_names(error, "saved", "of a forward with a residual", "one without");
    let short = Array3::<f32>::ones((2, 3, 5));
    let (_, of_two) = relu.forward_train_add(&short, &short).unwrap();
    let error = relu.backward_add(&x, None, &x, &of_two).unwrap_err();
    assert_names(error, "saved.mask", "12", "6");

    let mut buffers = [Array3::<f32>::zeros((4, 3, 5)), x.clone()];
    let problem = relu.problem::<f32>(&[4, 3, 5], Layout::ChannelsFirst, false).unwrap();
    let mut workspace = Cpu::new().workspace(&problem).unwrap();
    let other = Problem::new(&[4, 3, 5], Layout::ChannelsFirst, DType::F32, Epilogue::NONE);
    let [y, x] = &mut buffers;
    let (y, x) = (y.as_slice_mut().unwrap(), x.as_slice().unwrap());
    let error = relu
        .forward_eval_into::<f32>(&other.unwrap(), x.into(), None, y.into(), &mut workspace)
        .unwrap_err();
    assert_names(error, "problem", "relu", "identity");
}

/// A gate computed without the residual would be another one, and so would a slope.
#[test]
fn saved_statistics_of_a_forward_with_a_residual_and_without() {
    let x = Array3::<f32>::from_shape_fn((4, 3, 5), |(n, c, s)| (n * s) as f32 - c as f32);
    let with = ["of a forward with a residual", "of one without"];
    let without = ["of a forward without a residual", "of one with"];
    for activation in ACTIVATIONS {
        let config = BatchNormConfig::new(3).activation(activation);
        let mut bn: BatchNorm = config.build(Cpu::new()).unwrap();
        let (_, plain) = bn.forward_train(&x).unwrap();
        let (_, added) = bn.forward_train_add(&x, &x).unwrap();
        let error = bn.backward(&x, &x, &added).unwrap_err();
        assert_names(error, "saved", without[0], without[1]);
        let error = bn.backward_add(&x, Some(&x), &x, &plain).unwrap_err();
        assert_names(error, "saved", with[0], with[1]);

        let mut sync = SyncBatchNorm::new(bn);
        let parts = [&*x, &*x];
        let (_, plain) = sync.forward_train(&parts).unwrap();
        let (_, added) = sync.forward_train_add(&parts, &parts).unwrap();
        let error = sync.backward(&parts, &parts, &added).unwrap_err();
        assert_names(error, "saved", without[0], without[1]);
        let error = sync.backward_add(&parts, Some(&parts), &parts, &plain).unwrap_err();
        assert_names(error, "saved", with[0], with[1]);
    }
}

/// It is for one kind of forward, and so always tells which the latest was.
#[test]
fn saved_statistics_are_not_overwritten_by_another_kind_of_forward() {
    let mut bn = layer(3);
    let before = bn.state().unwrap();
    let (x, mut y) = ([1.0f32; 12], [7.0f32; 12]);
    for residual in [false, true] {
        let problem = |residual| bn.problem::<f32>(&[4, 3], Layout::ChannelsLast, residual);
        let (made_for, other) = (problem(residual).unwrap(), problem(!residual).unwrap());
        let mut saved = Saved::new(&Cpu::new(), &made_for).unwrap();
        let mut workspace = Cpu::new().workspace(&other).unwrap();
        let (from, added) = (x[..].into(), (!residual).then(|| x[..].into()));
        let to = (&mut y[..]).into();
        let error = bn.forward_train_into(&other, from, added, to, &mut saved, &mut workspace);
        assert_names(error.unwrap_err(), "saved", "of a forward with", "of one with");
        let (from, added) = (x[..].into(), (!residual).then(|| x[..].into()));
        let to = (&mut y[..]).into();
        let error = bn.forward_batch_into(&other, from, added, to, &mut saved, &mut workspace);
        assert_names(error.unwrap_err(), "saved", "of a forward with", "of one with");
        assert_eq!((saved.invstd(), y), (&vec![0.0; 3], [7.0; 12]));
    }
    assert_eq!(bn.state().unwrap(), before);
}

/// A call with `ndarray` views in place of flat memory, as `spoil` makes them of right ones: `[x, y]`
/// of [4, 3, 5] in the layout's memory order. The bias is every `step`-th value of an array.
#[track_caller]
fn refuse_views(
    layout: Layout,
    step: usize,
    spoil: impl Fn([Array3<f32>; 2]) -> [Array3<f32>; 2],
    [argument, expected, found]: [&str; 3],
) {
    let dim = (4, 3, 5);
    let tensors = [(); 2].map(|()| array::<f32>(dim, layout, |n, c, s| (n + 2 * c + s) as f64));
    let ([x, mut y], bias) = (spoil(tensors), Array1::<f32>::ones(3 * step));
    let problem = Problem::new(&[4, 3, 5], layout, DType::F32, Epilogue::NONE).unwrap();
    let cpu = Cpu::new();
    let mut workspace = cpu.workspace(&problem).unwrap();
    let (ones, before) = (vec![1.0f32; 3], bits(&y));
    let bias = bias.slice(s![..; step]).insert_axis(Axis(0)).insert_axis(Axis(0));
    let args = Inference::<Cpu, f32> {
        x: CpuSlice::View(x.view()),
        residual: None,
        affine: Affine { weight: Some((&ones).into()), bias: Some(CpuSlice::View(bias)) },
        running: Running { mean: (&ones).into(), var: (&ones).into() },
        y: CpuSliceMut::View(y.view_mut()),
        workspace: &mut workspace,
    };
    let error = cpu.inference::<f32>(&problem, &Norm { eps: 1e-5, momentum: None }, args);
    assert_names(error.unwrap_err(), argument, expected, found);
    assert_eq!(bits(&y), before);
}

#[test]
fn views_of_another_shape_or_layout() {
    for layout in LAYOUTS {
        refuse_views(layout, 2, |tensors| tensors, ["bias", "contiguous memory", "strided"]);
        // The other layout's strides, and another shape of as many elements.
        let other = LAYOUTS.into_iter().find(|other| *other != layout).unwrap();
        let turned = |[x, y]: [Array3<f32>; 2]| [in_layout(&x, other), y];
        refuse_views(layout, 1, turned, ["x", "`to_layout` copies", "["]);
        let reshaped = |[x, _]: [Array3<f32>; 2]| [x, array((4, 5, 3), layout, |_, _, _| 0.0)];
        refuse_views(layout, 1, reshaped, ["y", "[N, C, spatial] = (4, 3, 5)", "(4, 5, 3)"]);
    }
}

#[test]
fn problems_of_other_channels_than_a_layers() {
    let bn = layer(3);
    let error = bn.problem::<f32>(&[4, 7, 5], Layout::ChannelsFirst, false).unwrap_err();
    assert_names(error, "extents", "3 channels", "7");

    let problem =
        Problem::new(&[4, 7, 5], Layout::ChannelsFirst, DType::F32, Epilogue::NONE).unwrap();
    let mut workspace = Cpu::new().workspace(&problem).unwrap();
    let (x, mut y) = (vec![1.0; 140], vec![2.0; 140]);
    let error = bn
        .forward_eval_into::<f32>(&problem, (&x).into(), None, (&mut y).into(), &mut workspace)
        .unwrap_err();
    assert_names(error, "problem", "3 channels", "7");
    assert_eq!(y, [2.0; 140]);
}

#[test]
fn slopes_that_differ_are_both_named() {
    let leaky = |negative_slope| Activation::LeakyRelu { negative_slope };
    let layer: BatchNorm =
        BatchNormConfig::new(3).activation(leaky(0.2)).build(Cpu::new()).unwrap();
    let problem = layer.problem::<f32>(&[4, 3], Layout::ChannelsLast, false).unwrap();
    let other = problem.with_epilogue(Epilogue::activation(leaky(0.1))).unwrap();
    let mut workspace = Cpu::new().workspace(&problem).unwrap();
    let (x, mut y) = ([1.0f32; 12], [0.0f32; 12]);
    let (x, y) = (x[..].into(), (&mut y[..]).into());
    let error = layer.forward_eval_into::<f32>(&other, x, None, y, &mut workspace).unwrap_err();
    assert_names(error, "problem", "leaky_relu(0.2)", "leaky_relu(0.1)");
}

#[test]
fn an_array_alone_is_not_compared_with_others() {
    let transposed = Array2::<f32>::ones((3, 4)).reversed_axes();
    let error = layer(3).forward_train(&transposed).err().unwrap();
    assert!(!error.to_string().contains("other tensors"), "{error}");
}

/// A fold and the parts of a batch have lengths of their own to check before they begin.
#[test]
fn replaced_parameters_are_refused_before_anything_is_done() {
    let x = Array2::from_shape_fn((4, 3), |(n, c)| (n * c) as f32);
    let replaced = |weight: usize, bias: usize| {
        let mut layer = layer(3);
        *layer.weight_buffer_mut().unwrap() = vec![1.0; weight];
        *layer.bias_buffer_mut().unwrap() = vec![0.0; bias];
        layer
    };
    for (argument, found, layer) in [("weight", "2", replaced(2, 3)), ("bias", "4", replaced(3, 4))]
    {
        let error = layer.fold_into(&Array2::ones((3, 5)), None, 0).unwrap_err();
        assert_names(error, argument, "3 elements", found);
        let before = layer.state().unwrap();
        let mut sync = SyncBatchNorm::new(layer);
        let error = sync.forward_train(&[&*x, &*x]).err().unwrap();
        assert_names(error, argument, "3 elements", found);
        assert_eq!(sync.layer().state().unwrap(), before);
    }
}

#[test]
fn a_layer_without_running_statistics_cannot_evaluate_in_place() {
    let config = BatchNormConfig::new(3).track_running_stats(false);
    let layer: BatchNorm = config.build(Cpu::new()).unwrap();
    let mut x = Array2::<f32>::ones((4, 3));
    let error = layer.forward_eval_inplace(&mut x).unwrap_err();
    assert_names(error, "track_running_stats", "with running statistics", "without");
    assert_eq!(x, Array2::<f32>::ones((4, 3)));
    // It evaluates with the batch's own, of which one value is not enough.
    let error = layer.forward_eval(&array![[1.0f32, 2.0, 3.0]]).unwrap_err();
    assert_names(error, "x", "more than 1 value", "1");
}

#[test]
fn parameters_replaced_by_others_of_another_length() {
    let x = Array2::<f32>::zeros((4, 3));
    let mut bn = layer(3);
    lengthen(bn.weight_buffer_mut().unwrap());
    assert_names(bn.forward_eval(&x).unwrap_err(), "weight", "3 elements", "4");
    *bn.weight_buffer_mut().unwrap() = vec![2.0; 3];
    bn.bias_buffer_mut().unwrap().clear();
    assert_names(bn.forward_eval(&x).unwrap_err(), "bias", "3 elements", "0");
    *bn.bias_buffer_mut().unwrap() = vec![0.5; 3];
    assert_eq!(bn.forward_eval(&x).unwrap(), Array2::from_elem((4, 3), 0.5));
}

#[test]
fn states_that_do_not_fit() {
    let values = || Some(vec![5.0f32; 3]);
    let full = || State {
        weight: values(),
        bias: values(),
        running_mean: values(),
        running_var: values(),
        num_batches_tracked: Some(9),
    };
    let config = BatchNormConfig::new(3);
    let check = |config: BatchNormConfig, state: State<f32>, wants: [&str; 3]| {
        let mut layer: BatchNorm = config.build(Cpu::new()).unwrap();
        let before = layer.state().unwrap();
        assert_names(layer.load_state(&state).unwrap_err(), wants[0], wants[1], wants[2]);
        assert_eq!(layer.state().unwrap(), before);
    };
    let short = || Some(vec![1.0]);
    for (name, state) in [
        ("weight", State { weight: short(), ..full() }),
        ("bias", State { bias: short(), ..full() }),
        ("running_mean", State { running_mean: short(), ..full() }),
        ("running_var", State { running_var: short(), ..full() }),
    ] {
        check(config, state, [name, "3 elements", "1"]);
    }
    for (name, state) in [
        ("weight", State { weight: None, ..full() }),
        ("bias", State { bias: None, ..full() }),
        ("running_mean", State { running_mean: None, ..full() }),
        ("running_var", State { running_var: None, ..full() }),
    ] {
        check(config, state, [name, "3 elements", "none"]);
    }
    check(config.affine(false), full(), ["weight", "none", "some"]);
    let bias_alone = State { weight: None, ..full() };
    check(config.affine(false), bias_alone, ["bias", "none", "some"]);
    check(config.track_running_stats(false), full(), ["running_mean", "none", "some"]);
    let count_alone = State { running_mean: None, running_var: None, ..full() };
    check(config.track_running_stats(false), count_alone, ["num_batches_tracked", "none", "9"]);
    let negative = State { num_batches_tracked: Some(-1), ..full() };
    check(config, negative, ["num_batches_tracked", "0 or more", "-1"]);

    let mut layer: BatchNorm = config.build(Cpu::new()).unwrap();
    layer.load_state(&State { num_batches_tracked: None, ..full() }).unwrap();
    assert_eq!(layer.state().unwrap(), State { num_batches_tracked: Some(0), ..full() });
}

// Synchronized parts.

#[test]
fn parts_that_do_not_belong_together() {
    let parts = [Array3::<f32>::ones((2, 3, 5)), Array3::<f32>::ones((1, 3, 5))];
    let [a, b] = parts.each_ref().map(|part| &**part);
    let mut sync = SyncBatchNorm::new(layer(3));
    let (_, saved) = sync.forward_train(&[a, b]).unwrap();
    let before = sync.layer().state().unwrap();
    let none: [&ArrayRef<f32, Ix3>; 0] = [];
    let error = sync.forward_train(&none).err().unwrap();
    assert_names(error, "x", "at least one part", "0");
    let error = sync.forward_train_add(&[a, b], &[a]).err().unwrap();
    assert_names(error, "residual", "2 parts", "1");
    assert_names(sync.backward(&[a, b], &[a], &saved).unwrap_err(), "dy", "2 parts", "1");
    assert_names(sync.backward(&[a], &[a], &saved).unwrap_err(), "saved", "1 parts", "2");
    let error = sync.backward(&[a, b], &[b, a], &saved).unwrap_err();
    assert_names(error, "dy", "shape [2, 3, 5]", "[1, 3, 5]");
    let wide = Array3::<f32>::ones((2, 4, 5));
    assert_names(sync.forward_train(&[a, &wide]).err().unwrap(), "x", "3 channels", "4 (part 1)");
    let flipped = b.slice(s![.., .., ..;-1]);
    assert_names(sync.forward_train(&[a, &flipped]).err().unwrap(), "x", "strides", "-1");
    // One value per channel in all, in one part of two.
    let (one, empty) = (Array3::<f32>::ones((1, 3, 1)), Array3::<f32>::ones((0, 3, 1)));
    let error = sync.forward_train(&[&*empty, &*one]).err().unwrap();
    assert_names(error, "x", "more than 1 value", "1 over 2 parts");
    assert_eq!(sync.layer().state().unwrap(), before);
}

// Anything at all.

/// A slicing of one axis of extent 4: start, end, step.
type Cut = (usize, usize, isize);

fn cuts() -> impl Strategy<Value = Cut> {
    let step = prop::sample::select(vec![1isize, 1, 1, 1, 2, 3, -1]);
    prop_oneof![
        Just((0, 4, 1)),
        (0..5usize, 0..5usize, step).prop_map(|(a, b, step)| (a.min(b), a.max(b), step)),
    ]
}

/// Slicings of every axis, and an order of the axes.
fn slicings() -> impl Strategy<Value = (Vec<Cut>, Vec<usize>)> {
    (1..5usize).prop_flat_map(|rank| {
        let order: Vec<usize> = (0..rank).collect();
        let orders = prop_oneof![Just(order.clone()), Just(order).prop_shuffle()];
        (prop::collection::vec(cuts(), rank), orders)
    })
}

fn slice<'a, E>(
    memory: &'a ArrayD<E>,
    (cuts, order): &(Vec<Cut>, Vec<usize>),
) -> ArrayViewD<'a, E> {
    let mut view = memory.view();
    for (axis, &(start, end, step)) in cuts.iter().enumerate() {
        let slice = Slice::new(start as isize, Some(end as isize), step);
        view.slice_axis_inplace(Axis(axis), slice);
    }
    view.permuted_axes(order.clone())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..Default::default() })]

    /// Whatever the shapes and strides: a right result or an `Err`, never a panic.
    #[test]
    fn no_slicing_makes_a_call_panic(one in slicings(), other in slicings(), same: bool) {
        let memory = |rank: usize| {
            let mut random = Random::new(rank as u64);
            ArrayD::from_shape_simple_fn(vec![4; rank], || random.normal() as f32)
        };
        let other = if same { &one } else { &other };
        let (x_memory, dy_memory) = (memory(one.0.len()), memory(other.0.len()));
        call_all(&slice(&x_memory, &one), &slice(&dy_memory, other));
    }
}

/// Where a call accepts views, it gives what it gives for dense copies of them.
fn call_all(x: &ArrayRef<f32, IxDyn>, dy: &ArrayRef<f32, IxDyn>) {
    let channels = x.shape().get(1).copied().unwrap_or(1).max(1);
    let layer = || -> BatchNorm {
        BatchNormConfig::new(channels).activation(RELU).build(Cpu::new()).unwrap()
    };
    let dense = |it: &ArrayRef<f32, IxDyn>| it.as_standard_layout().to_owned();
    let close = |a: &ArrayD<f32>, b: &ArrayD<f32>| {
        assert_eq!(a.shape(), b.shape());
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5 * (1.0 + b.abs())), "{a} {b}");
    };
    let mut first = layer();
    if let Ok((y, saved)) = first.forward_train(x) {
        close(&y, &layer().forward_train(&dense(x)).unwrap().0);
        let _ = first.backward(x, dy, &saved);
    }
    if let Ok(y) = layer().forward_eval(x) {
        close(&y, &layer().forward_eval(&dense(x)).unwrap());
    }
    if let Ok((y, saved)) = first.forward_train_add(x, dy) {
        close(&y, &layer().forward_train_add(&dense(x), &dense(dy)).unwrap().0);
        first.backward_add(x, Some(dy), dy, &saved).unwrap();
    }
    if let Ok(gradients) = layer().backward_eval(x, dy) {
        close(&gradients.dx, &layer().backward_eval(&dense(x), &dense(dy)).unwrap().dx);
    }
    let _ = layer().forward_eval_inplace(&mut x.to_owned());
}
