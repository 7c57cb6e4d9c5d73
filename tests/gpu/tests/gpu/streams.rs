//! Several threads on one stream, and several streams on one GPU.

use crate::{Outcome, PASSED, Test, open, test, values};
use conformance::suite::flat::Buffers;
use conformance::suite::on_backend::on_backend;
use conformance::suite::{Case, Data, LAYOUTS};
use std::thread;
use warpnorm::cuda::{Cuda, CudaLauncher, GpuBuffer, Workspace};
use warpnorm::{
    Activation, Backend, BatchNorm, BatchNormConfig, DType, Epilogue, Layout, Problem, Result,
    Saved,
};

const THREADS: usize = 8;

pub fn tests() -> Vec<Test> {
    vec![
        test("streams::threads_with_a_workspace_each", || threads(|gpu| Ok(gpu.clone()))),
        test("streams::threads_with_a_stream_each", || threads(another_stream)),
        test("streams::one_waits_for_what_another_writes", one_waits_for_another),
    ]
}

/// The same GPU and context on a stream of its own.
fn another_stream(gpu: &Cuda) -> Result<Cuda> {
    Cuda::on_stream(crate::driver(gpu.stream().context().new_stream())?)
}

fn train(gpu: &Cuda, buffers: &mut Buffers<f32>) -> Result<()> {
    let mut workspace = gpu.workspace(&buffers.problem)?;
    on_backend(buffers, gpu, &mut workspace, |on| {
        on.forward_train()?;
        on.backward_train()
    })
}

/// Training steps side by side give what one alone gives.
fn threads(device: impl Fn(&Cuda) -> Result<Cuda> + Sync) -> Outcome {
    let gpu = open()?;
    let epilogue = Epilogue { activation: Activation::Relu, residual: true };
    for layout in LAYOUTS {
        for dim in [(70, 33, 4), (9, 8, 49), (3, 5, 1031)] {
            let untouched = Buffers::dense(&Data::<f32>::new(Case::new(dim, layout, epilogue)));
            let mut alone = untouched.clone();
            train(&gpu, &mut alone)?;
            let expected = alone.fingerprint();
            let repeat = || -> Result<bool> {
                let gpu = device(&gpu)?;
                let mut same = true;
                for _ in 0..10 {
                    let mut buffers = untouched.clone();
                    train(&gpu, &mut buffers)?;
                    same &= buffers.fingerprint() == expected;
                }
                Ok(same)
            };
            let outcomes: Vec<Result<bool>> = thread::scope(|scope| {
                let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(repeat)).collect();
                threads.into_iter().map(|it| it.join().expect("no panic")).collect()
            });
            for outcome in outcomes {
                assert!(outcome?, "{dim:?} {layout}");
            }
        }
    }
    PASSED
}

/// A layer on a stream, and what its calls need.
struct Step {
    layer: BatchNorm<Cuda>,
    saved: Saved<Cuda, f32>,
    workspace: Workspace<CudaLauncher>,
}

impl Step {
    fn new(gpu: &Cuda, problem: &Problem) -> Result<Self> {
        let config = BatchNormConfig::new(problem.channels()).activation(Activation::Relu);
        Ok(Step {
            layer: config.build(gpu.clone())?,
            saved: Saved::new(gpu, problem)?,
            workspace: gpu.workspace(problem)?,
        })
    }

    /// Enqueues y of x.
    fn run(&mut self, problem: &Problem, x: &GpuBuffer<f32>, y: &mut GpuBuffer<f32>) -> Result<()> {
        let (saved, workspace) = (&mut self.saved, &mut self.workspace);
        self.layer.forward_batch_into(problem, x.into(), None, y.into(), saved, workspace)
    }
}

/// Each call reads what the last one wrote, by turns on two streams and all on one. Nothing but
/// the events that cudarc keeps with the memory puts them in order.
fn one_waits_for_another() -> Outcome {
    let first = open()?;
    let second = another_stream(&first)?;
    // 100 MB, so that a call still runs when the next one is enqueued.
    let extents = [128, 64, 56, 56];
    let epilogue = Epilogue { activation: Activation::Relu, residual: false };
    let problem = Problem::new(&extents, Layout::ChannelsFirst, DType::F32, epilogue)?;
    let input = values(problem.elements());
    let mut results = Vec::new();
    for streams in [[&first, &first], [&first, &second]] {
        let (mut from, mut to) = (first.upload(&input)?, first.zeros(input.len())?);
        let mut steps = [Step::new(streams[0], &problem)?, Step::new(streams[1], &problem)?];
        for call in 0..6 {
            steps[call % 2].run(&problem, &from, &mut to)?;
            std::mem::swap(&mut from, &mut to);
        }
        results.push(streams[1].download(&from)?);
    }
    assert!(results[0].iter().any(|&y| y > 0.0), "nothing was written");
    assert!(results[0] == results[1]);
    PASSED
}
