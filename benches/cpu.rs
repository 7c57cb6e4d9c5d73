//! Times the CPU backend's stateless calls, and the copies they are held against.
//!
//! `cargo bench --bench cpu`; benches/README.md says what the names and the yardsticks are.
//! Outputs are allocated and touched before anything is timed.

#[path = "../examples/report/id.rs"]
#[allow(dead_code, reason = "the report reads identifiers, the benchmarks only write them")]
mod id;

use criterion::{Criterion, SamplingMode, Throughput};
use half::{bf16, f16};
use id::{Config, Fused, Id, Pass, Slot};
use rand::{RngExt, SeedableRng};
use rayon::prelude::*;
use std::time::Duration;
use warpnorm::{
    Affine, Backend, BackwardTrain, Cpu, Element, ForwardTrain, GradientsMut, Inference, Norm,
    Problem, Running, RunningMut, SavedMut, SavedRef,
};

const SHAPES: [&[usize]; 8] = [
    &[32, 64, 112, 112],
    &[32, 256, 56, 56],
    &[32, 512, 28, 28],
    &[32, 1024, 14, 14],
    &[32, 2048, 7, 7],
    &[8, 64, 56, 56],
    &[4096, 1024],
    &[128, 100],
];

/// Other element types and epilogues are measured on these.
const SAMPLED_SHAPES: [&[usize]; 2] = [&[32, 256, 56, 56], &[4096, 1024]];

const PASSES: [Pass; 3] = [Pass::TrainForward, Pass::TrainBackward, Pass::Inference];

const NORM: Norm = Norm { eps: 1e-5, momentum: Some(0.1) };

/// Copies of less than this are not split over threads: waking them takes longer.
const SPLIT_BYTES: usize = 256 << 10;

type Workspace = <Cpu as Backend>::Workspace;

/// A number of threads, and what runs on them.
struct Team {
    threads: usize,
    backend: Cpu,
    pool: rayon::ThreadPool,
}

/// What a call borrows, all of it written to at least once.
struct Tensors<E: Element> {
    x: Vec<E>,
    residual: Vec<E>,
    dy: Vec<E>,
    y: Vec<E>,
    dx: Vec<E>,
    dresidual: Vec<E>,
    mask: Vec<u8>,
    weight: Vec<E::Param>,
    bias: Vec<E::Param>,
    running_mean: Vec<E::Param>,
    running_var: Vec<E::Param>,
    num_batches_tracked: Vec<i64>,
    mean_hi: Vec<E::Param>,
    mean_lo: Vec<E::Param>,
    invstd: Vec<E::Param>,
    dweight: Vec<E::Param>,
    dbias: Vec<E::Param>,
}

impl<E: Element> Tensors<E> {
    fn new(extents: &[usize]) -> Self {
        let elements = extents.iter().product();
        let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(1);
        let mut tensor = || {
            let value = |_| E::from_f64(random.random_range(-2.0..2.0));
            (0..elements).map(value).collect()
        };
        let vector = |value| vec![E::Param::from_f64(value); extents[1]];
        Tensors {
            x: tensor(),
            residual: tensor(),
            dy: tensor(),
            y: tensor(),
            dx: tensor(),
            dresidual: tensor(),
            mask: Vec::new(),
            weight: vector(1.5),
            bias: vector(0.25),
            running_mean: vector(0.0),
            running_var: vector(1.0),
            num_batches_tracked: vec![0],
            mean_hi: vector(1.0),
            mean_lo: vector(1.0),
            invstd: vector(1.0),
            dweight: vector(1.0),
            dbias: vector(1.0),
        }
    }
}

impl<E: Element> Tensors<E> {
    fn forward_train(&mut self, team: &Team, problem: &Problem, workspace: &mut Workspace) {
        let epilogue = problem.epilogue();
        let args = ForwardTrain {
            x: (&self.x).into(),
            residual: epilogue.residual.then(|| (&self.residual).into()),
            affine: affine(&self.weight, &self.bias),
            running: Some(RunningMut {
                mean: (&mut self.running_mean).into(),
                var: (&mut self.running_var).into(),
                num_batches_tracked: (&mut self.num_batches_tracked).into(),
            }),
            y: (&mut self.y).into(),
            saved: SavedMut {
                mean_hi: (&mut self.mean_hi).into(),
                mean_lo: (&mut self.mean_lo).into(),
                invstd: (&mut self.invstd).into(),
                mask: epilogue.has_mask().then(|| (&mut self.mask).into()),
            },
            workspace,
        };
        let result = team.backend.forward_train(problem, &NORM, args);
        result.expect("the arguments fit the problem");
    }

    fn backward_train(&mut self, team: &Team, problem: &Problem, workspace: &mut Workspace) {
        let epilogue = problem.epilogue();
        let args = BackwardTrain {
            x: (&self.x).into(),
            residual: None,
            dy: (&self.dy).into(),
            affine: affine(&self.weight, &self.bias),
            saved: SavedRef {
                mean_hi: (&self.mean_hi).into(),
                mean_lo: (&self.mean_lo).into(),
                invstd: (&self.invstd).into(),
                mask: epilogue.has_mask().then(|| (&self.mask).into()),
            },
            gradients: GradientsMut {
                dx: (&mut self.dx).into(),
                dresidual: epilogue.residual.then(|| (&mut self.dresidual).into()),
                dweight: Some((&mut self.dweight).into()),
                dbias: Some((&mut self.dbias).into()),
            },
            workspace,
        };
        let result = team.backend.backward_train(problem, args);
        result.expect("the arguments fit the problem");
    }

    fn inference(&mut self, team: &Team, problem: &Problem, workspace: &mut Workspace) {
        let args = Inference {
            x: (&self.x).into(),
            residual: problem.epilogue().residual.then(|| (&self.residual).into()),
            affine: affine(&self.weight, &self.bias),
            running: Running { mean: (&self.running_mean).into(), var: (&self.running_var).into() },
            y: (&mut self.y).into(),
            workspace,
        };
        let result = team.backend.inference(problem, &NORM, args);
        result.expect("the arguments fit the problem");
    }

    /// `y = x` by the team's threads, each with a run of its own.
    fn copy(&mut self, team: &Team, copy: impl Fn(&mut [E], &[E]) + Sync) {
        if team.threads == 1 || size_of_val(&self.x[..]) < SPLIT_BYTES {
            return copy(&mut self.y, &self.x);
        }
        let run = self.x.len().div_ceil(team.threads);
        let runs = self.y.par_chunks_mut(run).zip(self.x.par_chunks(run));
        team.pool.install(|| runs.for_each(|(y, x)| copy(y, x)));
    }
}

fn affine<'a, E: Element>(weight: &'a [E::Param], bias: &'a [E::Param]) -> Affine<'a, Cpu, E> {
    Affine { weight: Some(weight.into()), bias: Some(bias.into()) }
}

/// Copies without reading the destination into the cache. Baseline x86-64 has the instruction.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "streaming stores exist as intrinsics on raw pointers only")]
fn copy_past_cache<E: Element>(to: &mut [E], from: &[E]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    // SAFETY: elements are plain numbers; any 16 bytes of them are a valid __m128i and back.
    let (head, body, tail) = unsafe { to.align_to_mut::<__m128i>() };
    let per_vector = size_of::<__m128i>() / size_of::<E>();
    let (from_head, rest) = from.split_at(head.len());
    let (from_body, from_tail) = rest.split_at(body.len() * per_vector);
    head.copy_from_slice(from_head);
    for (to, from) in body.iter_mut().zip(from_body.chunks_exact(per_vector)) {
        // SAFETY: `from` holds 16 bytes, of any alignment; `to` is an aligned vector.
        unsafe { _mm_stream_si128(to, _mm_loadu_si128(from.as_ptr().cast())) };
    }
    tail.copy_from_slice(from_tail);
    // SAFETY: always available; it orders the stores above before whatever reads `to`.
    unsafe { _mm_sfence() };
}

/// Times one identifier. The tensors are made when a first one passes the filter.
fn bench<E: Element>(
    criterion: &mut Criterion,
    id: &Id,
    team: &Team,
    tensors: &mut Option<Tensors<E>>,
) {
    let problem = id.problem().expect("a shape that exists");
    let floor = id.floor_bytes().expect("a shape that exists");
    let mut group = criterion.benchmark_group(id.pass.to_string());
    group.sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Bytes(floor as u64));
    let name = id.to_string();
    let (_, rest) = name.split_once('/').expect("a pass and more");
    group.bench_function(rest, |bencher| {
        let tensors = tensors.get_or_insert_with(|| Tensors::new(&id.extents));
        tensors.mask.resize(problem.mask_len(), 0);
        let workspace = team.backend.workspace(&problem);
        let mut workspace = workspace.expect("memory for the workspace");
        match (id.pass, id.slot) {
            (Pass::TrainForward, _) => {
                bencher.iter(|| tensors.forward_train(team, &problem, &mut workspace));
            }
            (Pass::TrainBackward, _) => {
                tensors.forward_train(team, &problem, &mut workspace);
                bencher.iter(|| tensors.backward_train(team, &problem, &mut workspace));
            }
            (Pass::Inference, _) => {
                bencher.iter(|| tensors.inference(team, &problem, &mut workspace));
            }
            #[cfg(target_arch = "x86_64")]
            (Pass::Copy, Slot::NonTemporal) => {
                bencher.iter(|| tensors.copy(team, copy_past_cache));
            }
            (Pass::Copy, _) => bencher.iter(|| tensors.copy(team, <[E]>::copy_from_slice)),
        }
    });
}

/// Everything on tensors of one shape, layout and element type.
fn bench_tensors<E: Element>(
    criterion: &mut Criterion,
    teams: &[Team],
    extents: &[usize],
    slot: Slot,
    element: id::Element,
) {
    let mut tensors = None;
    for pass in PASSES.into_iter().chain([Pass::Copy]) {
        for fused in [Fused::None, Fused::Relu, Fused::AddRelu] {
            for team in teams {
                let config = Config::Threads(team.threads);
                let extents = extents.to_vec();
                let id = Id { pass, slot, element, extents, fused, config };
                if wanted(&id) {
                    bench::<E>(criterion, &id, team, &mut tensors);
                }
            }
        }
    }
}

/// f32 without an epilogue everywhere; the rest on two shapes, so that a full run stays bearable.
fn wanted(id: &Id) -> bool {
    let plain = (id.element, id.fused) == (id::Element::F32, Fused::None);
    if id.slot == Slot::NonTemporal {
        return cfg!(target_arch = "x86_64") && id.pass == Pass::Copy && plain;
    }
    let layout_exists = id.slot == Slot::ChannelsLast || id.extents.len() > 2;
    let copies_plainly = id.pass != Pass::Copy || id.fused == Fused::None;
    let sampled = SAMPLED_SHAPES.contains(&&id.extents[..])
        && (id.element == id::Element::F32 || id.fused == Fused::None);
    layout_exists && copies_plainly && (plain || sampled)
}

fn bench_all(criterion: &mut Criterion) {
    let teams = teams();
    for extents in SHAPES {
        for slot in [Slot::ChannelsFirst, Slot::ChannelsLast, Slot::NonTemporal] {
            bench_tensors::<f32>(criterion, &teams, extents, slot, id::Element::F32);
            bench_tensors::<f64>(criterion, &teams, extents, slot, id::Element::F64);
            bench_tensors::<f16>(criterion, &teams, extents, slot, id::Element::F16);
            bench_tensors::<bf16>(criterion, &teams, extents, slot, id::Element::Bf16);
        }
    }
}

/// One thread, two, and as many as there are cores.
fn teams() -> Vec<Team> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut counts = vec![1, 2, cores];
    counts.retain(|&threads| threads <= cores);
    counts.dedup();
    let team = |threads| Team {
        threads,
        backend: Cpu::with_threads(threads).expect("threads for the backend"),
        pool: rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("threads for the copies"),
    };
    counts.into_iter().map(team).collect()
}

/// Processor time used so far, in the kernel's ticks.
struct Ticks {
    everyone: u64,
    own: u64,
    elapsed_per_core: f64,
}

impl Ticks {
    /// From Linux's /proc; `None` elsewhere.
    fn now() -> Option<Self> {
        let machine = std::fs::read_to_string("/proc/stat").ok()?;
        let first: Option<Vec<u64>> = machine
            .lines()
            .next()?
            .split_whitespace()
            .skip(1)
            .map(|field| field.parse().ok())
            .collect();
        let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = first?[..] else {
            return None;
        };
        let everyone = user + nice + system + irq + softirq + steal;
        let cores = machine.lines().skip(1).take_while(|line| line.starts_with("cpu")).count();
        Some(Ticks {
            everyone,
            own: own_ticks()?,
            elapsed_per_core: (everyone + idle + iowait) as f64 / cores as f64,
        })
    }

    /// What other processes used since `start`, as a share of one core.
    fn foreign_share_since(&self, start: &Ticks) -> f64 {
        let own = self.own.saturating_sub(start.own);
        let foreign = (self.everyone - start.everyone).saturating_sub(own);
        foreign as f64 / (self.elapsed_per_core - start.elapsed_per_core)
    }
}

/// User and system time of this process: the 12th and 13th field behind its name, which may itself
/// hold anything.
fn own_ticks() -> Option<u64> {
    let process = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<_> = process.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field)?.parse::<u64>().ok();
    Some(ticks(11)? + ticks(12)?)
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .without_plots()
        .configure_from_args();
    let start = Ticks::now();
    bench_all(&mut criterion);
    criterion.final_summary();
    let share = start.zip(Ticks::now()).map(|(start, end)| end.foreign_share_since(&start));
    if let Some(share) = share.filter(|&share| share > 0.05) {
        let percent = 100.0 * share;
        eprintln!("warning: other processes used {percent:.0} % of a core; measure again");
    }
}
