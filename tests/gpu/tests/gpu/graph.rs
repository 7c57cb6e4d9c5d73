//! A training step captured in a CUDA graph and replayed.

use crate::{Outcome, PASSED, Test, alone_in_the_context, driver, test};
use conformance::suite::flat::Buffers;
use conformance::suite::on_backend::{OnBackend, on_backend};
use conformance::suite::{Case, Data, Dim, LAYOUTS};
use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use libtest_mimic::Failed;
use warpnorm::cuda::Cuda;
use warpnorm::{Activation, Backend, Epilogue, Error, Layout, Result};

/// One block a channel and many, planes and columns.
const DIMS: [Dim; 5] = [(6, 16, 1), (70, 33, 4), (9, 8, 49), (3, 5, 1031), (900, 24, 1)];

const REPLAYS: u8 = 3;

type On<'a> = OnBackend<'a, Cuda, f32>;

pub fn tests() -> Vec<Test> {
    let of_momentum = |name, momentum| {
        test(name, move || {
            for layout in LAYOUTS {
                for dim in DIMS {
                    replays_give_what_calls_give(dim, layout, momentum)?;
                }
            }
            PASSED
        })
    };
    vec![
        of_momentum("graph::replays_give_what_calls_give::momentum", Some(0.25)),
        of_momentum("graph::replays_give_what_calls_give::cumulative_average", None),
        test("graph::a_call_that_is_refused_captures_nothing", refused_while_captured),
        test("graph::memory_is_refused_while_captured", memory_while_captured),
    ]
}

/// A GPU whose memory cudarc does not order between streams, as a capture needs it.
pub fn untracked() -> std::result::Result<Cuda, Failed> {
    let first = Cuda::open(0)?;
    // SAFETY: of the streams of this `CudaContext` only the one below is used.
    unsafe { first.stream().context().disable_event_tracking() };
    Ok(Cuda::on_stream(first.stream().context().new_stream()?)?)
}

/// A training step's buffers, with another batch for every step.
fn batches(dim: Dim, layout: Layout, momentum: Option<f64>) -> Vec<Buffers<f32>> {
    let epilogue = Epilogue { activation: Activation::Relu, residual: true };
    let batch = |step| {
        let scale = f64::from(step) + 1.0;
        let mut data = Data::new(Case { mean: scale, ..Case::new(dim, layout, epilogue) });
        data.dy.mapv_inplace(|dy: f32| dy * scale as f32);
        let mut buffers = Buffers::dense(&data);
        buffers.norm.momentum = momentum;
        buffers
    };
    (0..REPLAYS).map(batch).collect()
}

fn step(on: &mut On) -> Result<()> {
    on.forward_train()?;
    on.backward_train()
}

pub fn capture(gpu: &Cuda, calls: impl FnOnce() -> Result<()>) -> Result<Option<CudaGraph>> {
    let stream = gpu.stream();
    let _alone = alone_in_the_context();
    // Other tests allocate meanwhile, which a global capture would not let them.
    driver(stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))?;
    let outcome = calls();
    let graph = driver(stream.end_capture(CUgraphInstantiate_flags(0)));
    outcome.and(graph)
}

/// New inputs where the old ones are.
fn replace_inputs(gpu: &Cuda, on: &mut On, batch: &Buffers<f32>) -> Result<()> {
    let stream = gpu.launcher().stream();
    driver(stream.memcpy_htod(&batch.x, &mut on.x.view_mut()))?;
    driver(stream.memcpy_htod(&batch.dy, &mut on.dy.view_mut()))
}

/// All buffers after each step, made by calls or by replays of one that was captured.
fn train(gpu: &Cuda, batches: &[Buffers<f32>], captured: bool) -> Result<Vec<Buffers<f32>>> {
    let mut buffers = batches[0].clone();
    let mut workspace = gpu.workspace(&buffers.problem)?;
    let mut steps = Vec::new();
    on_backend(&mut buffers, gpu, &mut workspace, |on| {
        let graph = if captured { capture(gpu, || step(on))? } else { None };
        if captured && graph.is_none() {
            return Err(Error::system("capturing a training step", "nothing was captured"));
        }
        for batch in batches {
            replace_inputs(gpu, on, batch)?;
            match &graph {
                Some(graph) => driver(graph.launch())?,
                None => step(on)?,
            }
            let mut after = batch.clone();
            on.download(&mut after)?;
            steps.push(after);
        }
        Ok(())
    })?;
    Ok(steps)
}

fn replays_give_what_calls_give(
    dim: Dim,
    layout: Layout,
    momentum: Option<f64>,
) -> std::result::Result<(), Failed> {
    let gpu = untracked()?;
    let batches = batches(dim, layout, momentum);
    let called = train(&gpu, &batches, false)?;
    let replayed = train(&gpu, &batches, true)?;
    let mut running_mean = &batches[0].running_mean;
    for (count, (called, replayed)) in (1..).zip(called.iter().zip(&replayed)) {
        assert!(called.fingerprint() == replayed.fingerprint(), "{dim:?} {layout}: step {count}");
        assert_eq!(replayed.num_batches_tracked, [count], "{dim:?} {layout}");
        assert_ne!(&replayed.running_mean, running_mean, "{dim:?} {layout}: step {count}");
        running_mean = &replayed.running_mean;
    }
    PASSED.map(drop)
}

/// What would be gone, or another's, when the graph is replayed is refused and leaves the capture
/// intact.
fn memory_while_captured() -> Outcome {
    let gpu = untracked()?;
    let buffer = gpu.upload(&[1.0_f32, 2.0])?;
    capture(&gpu, || {
        let outcomes = [
            gpu.zeros::<f32>(2).map(drop),
            gpu.upload(&[3.0_f32]).map(drop),
            gpu.download(&buffer).map(drop),
            gpu.duplicate(&buffer).map(drop),
        ];
        for outcome in outcomes {
            let refusal = outcome.expect_err("the stream is being captured").to_string();
            assert!(refusal.contains("the stream is being captured"), "{refusal}");
        }
        Ok(())
    })?;
    assert_eq!(gpu.download(&buffer)?, [1.0, 2.0]);
    PASSED
}

/// A refusal leaves a capture intact: it comes before anything is launched.
fn refused_while_captured() -> Outcome {
    let gpu = untracked()?;
    let mut buffers = batches(DIMS[0], Layout::ChannelsFirst, None).remove(0);
    buffers.y.truncate(1);
    let mut workspace = gpu.workspace(&buffers.problem)?;
    on_backend(&mut buffers, &gpu, &mut workspace, |on| {
        let graph = capture(&gpu, || {
            let refusal = on.forward_train().expect_err("y is too short").to_string();
            assert!(refusal.contains("`y`"), "{refusal}");
            Ok(())
        })?;
        graph.map_or(Ok(()), |graph| driver(graph.launch()))
    })?;
    assert_eq!(buffers.num_batches_tracked, [0]);
    PASSED
}
