//! Rule 10: tensors of more than 2^31 elements.

use crate::{Outcome, PASSED, Test, driver, open, test};
use conformance::suite::flat::Buffers;
use conformance::suite::{Bars, Case, Data, Mode, assert_tensor};
use half::f16;
use libtest_mimic::Completion;
use std::sync::{Mutex, PoisonError};
use warpnorm::cuda::{Cuda, GpuBuffer};
use warpnorm::{
    Activation, Backend, BatchNorm, BatchNormConfig, DType, Epilogue, GradientsMut, Layout,
    Operand, Problem, Result, Saved,
};

const CHANNELS: usize = 64;
const SPATIAL: usize = 256 * 256;
/// Of 2^22 elements each: the last one begins at element 2^31.
const SAMPLES: usize = 513;
const RELU: Epilogue = Epilogue { activation: Activation::Relu, residual: false };

pub fn tests() -> Vec<Test> {
    let name = "large::more_than_2_to_the_31_elements";
    vec![
        test(format!("{name}::channels_first"), || where_there_is_room(Layout::ChannelsFirst)),
        test(format!("{name}::channels_last"), || where_there_is_room(Layout::ChannelsLast)),
    ]
}

fn where_there_is_room(layout: Layout) -> Outcome {
    // One at a time: together they may need more than there is.
    static ROOM: Mutex<()> = Mutex::new(());
    let _room = ROOM.lock().unwrap_or_else(PoisonError::into_inner);
    let gpu = open()?;
    let problem = Problem::new(&[SAMPLES, CHANNELS, SPATIAL], layout, DType::F16, RELU)?;
    assert!(problem.elements() > 1 << 31);
    // x, dy, and y or dx; and a GB for the rest.
    let needed = 3 * problem.elements() * size_of::<f16>() + 1_000_000_000;
    let (free, _) = gpu.launcher().context().mem_get_info()?;
    if free < needed {
        let [free, needed] = [free, needed].map(|bytes| bytes as f64 / 1e9);
        return Ok(Completion::ignored_with(format!("{free:.1} GB free, {needed:.1} needed")));
    }
    train(&gpu, &problem)?;
    // Memory is free for others only then.
    gpu.launcher().synchronize()?;
    PASSED
}

/// Every sample is the same one, so that the textbook's results for it hold for all.
fn train(gpu: &Cuda, problem: &Problem) -> Result<()> {
    let case = Case::new((1, CHANNELS, SPATIAL), problem.layout(), RELU);
    let data = Data::<f16>::new(case).without_gradients_at_kinks(Mode::Train);
    let (expected, bars) = (data.expected(Mode::Train), Bars::of(DType::F16));
    let mut sample = Buffers::dense(&data);
    let layer = layer(gpu, &sample)?;
    let (mut saved, mut workspace) = (Saved::new(gpu, problem)?, gpu.workspace(problem)?);
    let x = repeated(gpu, &sample.x)?;

    let mut y = gpu.zeros::<f16>(problem.elements())?;
    let to = (&mut y).into();
    layer.forward_batch_into(problem, (&x).into(), None, to, &mut saved, &mut workspace)?;
    sample.y = the_one_sample(gpu, &y)?;
    assert_tensor("y", &sample.tensor(Operand::Y), &expected.y, &expected.scale.y, bars.y);
    drop(y);

    let dy = repeated(gpu, &sample.dy)?;
    let mut dx = gpu.zeros::<f16>(problem.elements())?;
    let gradients =
        GradientsMut { dx: (&mut dx).into(), dresidual: None, dweight: None, dbias: None };
    let (x, dy) = ((&x).into(), (&dy).into());
    layer.backward_into(problem, x, None, dy, &saved, gradients, &mut workspace)?;
    sample.dx = the_one_sample(gpu, &dx)?;
    let (dx, scale) = (sample.tensor(Operand::Dx), &expected.scale.dx);
    assert_tensor("dx", &dx, &expected.gradients.dx, scale, bars.dx);
    Ok(())
}

/// A layer with the parameters of `sample`.
fn layer(gpu: &Cuda, sample: &Buffers<f16>) -> Result<BatchNorm<Cuda>> {
    let config = BatchNormConfig::new(CHANNELS).eps(sample.norm.eps).activation(RELU.activation);
    let mut layer = config.build(gpu.clone())?;
    let mut state = layer.state()?;
    (state.weight, state.bias) = (sample.weight.clone(), sample.bias.clone());
    layer.load_state(&state)?;
    Ok(layer)
}

/// A tensor of this sample again and again.
fn repeated(gpu: &Cuda, sample: &[f16]) -> Result<GpuBuffer<f16>> {
    let stream = gpu.launcher().stream();
    let one = gpu.upload(sample)?;
    let mut all = gpu.zeros(SAMPLES * sample.len())?;
    for start in (0..SAMPLES).map(|index| index * sample.len()) {
        let mut view = all.view_mut();
        let mut to = view.slice_mut(start..start + sample.len());
        driver(stream.memcpy_dtod(&one.view(), &mut to))?;
    }
    Ok(all)
}

/// The first sample of a tensor; all others must equal it.
fn the_one_sample(gpu: &Cuda, tensor: &GpuBuffer<f16>) -> Result<Vec<f16>> {
    let view = tensor.view();
    let sample = |index: usize| {
        let range = index * CHANNELS * SPATIAL..(index + 1) * CHANNELS * SPATIAL;
        let sample = driver(gpu.launcher().stream().clone_dtoh(&view.slice(range)))?;
        gpu.synchronize()?;
        Ok::<_, warpnorm::Error>(sample)
    };
    let first = sample(0)?;
    for index in 1..SAMPLES {
        assert!(sample(index)? == first, "sample {index} differs from the first");
    }
    Ok(first)
}
