//! Blocks that wait for each other, launches that overlap, counters that must be left at zero: calls
//! right after each other in one workspace, in every tier, plain and replayed. Each has its plan or
//! fails: what the device refuses does not stream here.

use crate::graph::{capture, untracked};
use crate::{Outcome, PASSED, Test, driver, test, values};
use conformance::suite::flat::Buffers;
use conformance::suite::on_backend::{OnBackend, on_backend};
use conformance::suite::{Bars, Case, Data, Dim, LAYOUTS, Mode, value_bits};
use libtest_mimic::{Completion, Failed};
use std::mem::swap;
use warpnorm::cuda::{
    Alignment, Choice, Clusters, Cuda, GpuBuffer, Launcher, Pass, Tier, training_plans,
};
use warpnorm::{
    Activation, Backend, BatchNorm, BatchNormConfig, DType, Epilogue, Error, GradientsMut, Layout,
    Problem, Result, Saved,
};

const RELU: Epilogue = Epilogue { activation: Activation::Relu, residual: false };
const ADD_RELU: Epilogue = Epilogue { residual: true, ..RELU };

/// Planes, planes off the boundaries of packs, columns that fold, and what any block holds.
const CASES: [(Dim, Epilogue); 4] = [
    ((16, 16, 1024), ADD_RELU),
    ((6, 5, 5155), RELU),
    ((64, 32, 49), ADD_RELU),
    ((8, 32, 256), ADD_RELU),
];

/// Training steps that follow each other, each with a batch of its own.
const BATCHES: u8 = 4;
/// How often they are repeated before anybody waits, and how often that is.
const REPEATS: usize = 10;
const ROUNDS: usize = 5;

type On<'a> = OnBackend<'a, Cuda, f32>;

pub fn tests() -> Vec<Test> {
    let tiers = [
        ("streaming", Tier::Streaming),
        ("block", Tier::Block),
        ("cluster", Tier::Cluster),
        ("grid", Tier::Grid),
    ];
    let of_tier = |(name, tier)| {
        let name = format!("teams::calls_in_a_row::{name}");
        test(name, move || calls_in_a_row(tier))
    };
    let mut tests: Vec<Test> = tiers.into_iter().map(of_tier).collect();
    for layout in LAYOUTS {
        let name = format!("teams::more_than_fits_the_chip::{layout}");
        tests.push(test(name, move || more_than_fits_the_chip(layout)));
    }
    tests.push(test("teams::the_device_says_what_it_holds", what_it_holds));
    tests
}

/// What plans are made of must not be missing on a GPU that has it.
fn what_it_holds() -> Outcome {
    let facts = untracked()?.launcher().facts();
    eprintln!("{facts:?}");
    assert!(facts.multiprocessors > 0 && facts.l2_bytes > 0);
    assert!(facts.memory_bandwidth >= 10_000_000_000);
    // One block fits a multiprocessor, and so do two.
    let [one, two] = facts.cooperative_blocks;
    assert_eq!([one, two], [facts.multiprocessors, 2 * facts.multiprocessors]);
    // Some such GPUs refuse all clusters, and parts of others hold fewer.
    if facts.compute_capability >= (9, 0) && facts.multiprocessors >= 100 {
        assert!(facts.clusters.largest() >= 8, "{:?}", facts.clusters);
        assert!(facts.clusters.resident(1, 2) >= facts.multiprocessors / 4);
    }
    PASSED
}

/// Teams of several sizes, of all where they are clusters.
fn choices(gpu: &Cuda, problem: &Problem, tier: Tier) -> Vec<Choice> {
    let facts = gpu.launcher().facts();
    let most = match tier {
        Tier::Block => 1,
        Tier::Cluster => Clusters::LARGEST as u32,
        Tier::Streaming => 64,
        Tier::Grid => facts.cooperative_blocks[1],
    };
    let fits = |choice: &Choice| {
        let plan = |pass| {
            let aligned = Alignment::ALIGNED;
            training_plans(pass, problem, &facts, aligned, aligned, *choice)
        };
        plan(Pass::Forward).is_ok() && plan(Pass::Backward).is_ok()
    };
    let all = (1..=most).map(|parts| Choice::Parts(tier, parts));
    let all: Vec<Choice> = all.filter(fits).collect();
    let is_taken =
        |index: usize| tier == Tier::Cluster || [0, all.len() / 2, all.len() - 1].contains(&index);
    let taken = all.iter().enumerate().filter(|(index, _)| is_taken(*index));
    taken.map(|(_, choice)| *choice).collect()
}

fn calls_in_a_row(tier: Tier) -> Outcome {
    let gpu = untracked()?;
    let mut count = 0;
    for (dim, epilogue) in CASES {
        for layout in LAYOUTS {
            let case = Case::new(dim, layout, epilogue);
            let batches: Vec<Batch> =
                (1..=BATCHES).map(|number| Batch::new(case, number)).collect();
            for choice in choices(&gpu, &batches[0].buffers.problem, tier) {
                in_a_row(&gpu.clone().with_choice(choice), &batches)
                    .map_err(|error| format!("{case:?} {choice:?}: {error:?}"))?;
                count += 1;
            }
        }
    }
    if count == 0 {
        return Ok(Completion::ignored_with("this device has no such teams"));
    }
    PASSED
}

/// A batch, and all results of a training step with it.
struct Batch {
    data: Data<f32>,
    buffers: Buffers<f32>,
}

impl Batch {
    /// Each `number` with statistics of its own, so that those of another batch would show.
    fn new(case: Case, number: u8) -> Batch {
        let number = f64::from(number);
        let mut data = Data::new(Case { mean: number, std: 0.5 * number, ..case });
        data.dy.mapv_inplace(|dy: f32| dy * number as f32);
        let data = data.without_gradients_at_kinks(Mode::Train);
        Batch { buffers: Buffers::dense(&data), data }
    }
}

/// A batch on the device.
struct Tensors {
    x: GpuBuffer<f32>,
    dy: GpuBuffer<f32>,
    y: GpuBuffer<f32>,
    dx: GpuBuffer<f32>,
}

impl Tensors {
    fn new(gpu: &Cuda, of: &Buffers<f32>) -> Result<Tensors> {
        Ok(Tensors {
            x: gpu.upload(&of.x)?,
            dy: gpu.upload(&of.dy)?,
            y: gpu.upload(&of.y)?,
            dx: gpu.upload(&of.dx)?,
        })
    }

    /// A call with them in place of its own.
    fn with<R>(&mut self, on: &mut On, call: impl FnOnce(&mut On) -> Result<R>) -> Result<R> {
        self.swap(on);
        let result = call(on);
        self.swap(on);
        result
    }

    fn swap(&mut self, on: &mut On) {
        let Tensors { x, dy, y, dx } = self;
        swap(x, &mut on.x);
        swap(dy, &mut on.dy);
        swap(y, &mut on.y);
        swap(dx, &mut on.dx);
    }

    fn clear(&mut self, gpu: &Cuda) -> Result<()> {
        gpu.launcher().clear(&mut self.y)?;
        gpu.launcher().clear(&mut self.dx)
    }

    fn bits(&self, gpu: &Cuda) -> Result<[Vec<u64>; 2]> {
        Ok([value_bits(&gpu.download(&self.y)?), value_bits(&gpu.download(&self.dx)?)])
    }
}

fn step(on: &mut On) -> Result<()> {
    on.forward_train()?;
    on.backward_train()
}

/// A step for each batch. Workspace, statistics and mask are the same for all.
fn steps(on: &mut On, tensors: &mut [Tensors]) -> Result<()> {
    tensors.iter_mut().try_for_each(|tensors| tensors.with(on, step))
}

/// Many steps at once give the bits that each gives alone, and those agree with the textbook.
fn in_a_row(gpu: &Cuda, batches: &[Batch]) -> std::result::Result<(), Failed> {
    let mut buffers = batches[0].buffers.clone();
    let mut workspace = gpu.workspace(&buffers.problem)?;
    let tensors = batches.iter().map(|batch| Tensors::new(gpu, &batch.buffers));
    let mut tensors = tensors.collect::<Result<Vec<_>>>()?;
    let mut differs = None;
    on_backend(&mut buffers, gpu, &mut workspace, |on| {
        let mut alone = Vec::new();
        for (batch, tensors) in batches.iter().zip(&mut tensors) {
            let mut results = batch.buffers.clone();
            tensors.with(on, |on| {
                step(on)?;
                on.download(&mut results)
            })?;
            results.assert_results(&batch.data.expected(Mode::Train), Bars::of(DType::F32));
            alone.push(tensors.bits(gpu)?);
        }
        let graph = capture(gpu, || steps(on, &mut tensors))?;
        let graph = graph.ok_or_else(|| Error::system("capturing", "nothing was captured"))?;
        for round in 0..2 * ROUNDS {
            tensors.iter_mut().try_for_each(|tensors| tensors.clear(gpu))?;
            for _ in 0..REPEATS {
                match round % 2 {
                    0 => steps(on, &mut tensors)?,
                    _ => driver(graph.launch())?,
                }
            }
            for (index, (tensors, alone)) in tensors.iter().zip(&alone).enumerate() {
                if tensors.bits(gpu)? != *alone {
                    differs.get_or_insert((round, index));
                }
            }
        }
        Ok(())
    })?;
    if let Some((round, batch)) = differs {
        return Err(format!("round {round}: batch {batch} differs from itself alone").into());
    }
    let steps = batches.len() * (1 + 2 * ROUNDS * REPEATS);
    assert_eq!(buffers.num_batches_tracked, [steps as i64]);
    Ok(())
}

/// A group of channels that neither the chip nor L2 holds goes through a team of all blocks in rounds,
/// of which all but the last are read again.
fn more_than_fits_the_chip(layout: Layout) -> Outcome {
    let gpu = untracked()?;
    let facts = gpu.launcher().facts();
    let chip = u64::from(facts.multiprocessors * facts.shared_bytes_per_multiprocessor);
    // Two planes' channels, or as many columns as the narrowest tile has.
    let channels = if layout == Layout::ChannelsFirst { 2 } else { 16 };
    let spatial = 112 * 112;
    let sample = (channels * spatial * size_of::<f32>()) as u64;
    let samples = (4 * chip.max(facts.l2_bytes)).div_ceil(sample) as usize;
    let problem = Problem::new(&[samples, channels, spatial], layout, DType::F32, Epilogue::NONE)?;
    let plan = |pass| {
        let (aligned, grid) = (Alignment::ALIGNED, Choice::Tier(Tier::Grid));
        training_plans(pass, &problem, &facts, aligned, aligned, grid).map(|mut it| it.remove(0))
    };
    let mut on_chip = Vec::new();
    for plan in [plan(Pass::Forward)?, plan(Pass::Backward)?] {
        assert!(plan.tier == Tier::Grid && plan.spares_cache, "{plan}");
        on_chip.push(gpu.clone().with_choice(Choice::Parts(Tier::Grid, plan.parts)));
    }
    let streaming = gpu.clone().with_tier(Some(Tier::Streaming));
    let expected = results(&streaming, &streaming, &problem)?;
    let found = results(&on_chip[0], &on_chip[1], &problem)?;
    for (name, expected, found) in [("y", &expected[0], &found[0]), ("dx", &expected[1], &found[1])]
    {
        let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        assert!(largest > 0.0, "{name}: nothing was written");
        // Sums are added up in another order.
        let differs = |(a, b): (&f32, &f32)| (a - b).abs() > 1e-5 * largest;
        let first = expected.iter().zip(found).position(differs);
        assert_eq!(first, None, "{name}");
    }
    PASSED
}

/// y and dx of a training step.
fn results(forward: &Cuda, backward: &Cuda, problem: &Problem) -> Result<[Vec<f32>; 2]> {
    let x = values(problem.elements());
    let dy: Vec<f32> = x.iter().rev().map(|value| value - 0.4).collect();
    let (x, dy) = (forward.upload(&x)?, forward.upload(&dy)?);
    let (mut y, mut dx) = (forward.zeros(problem.elements())?, forward.zeros(problem.elements())?);
    let mut saved = Saved::new(forward, problem)?;
    let config = BatchNormConfig::new(problem.channels());

    let layer: BatchNorm<Cuda> = config.build(forward.clone())?;
    let mut workspace = forward.workspace(problem)?;
    let (from, to) = ((&x).into(), (&mut y).into());
    layer.forward_batch_into(problem, from, None, to, &mut saved, &mut workspace)?;

    let layer: BatchNorm<Cuda> = config.build(backward.clone())?;
    let mut workspace = backward.workspace(problem)?;
    let gradients =
        GradientsMut { dx: (&mut dx).into(), dresidual: None, dweight: None, dbias: None };
    let (x, dy) = ((&x).into(), (&dy).into());
    layer.backward_into(problem, x, None, dy, &saved, gradients, &mut workspace)?;
    Ok([forward.download(&y)?, forward.download(&dx)?])
}
