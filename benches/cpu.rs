//! Times the CPU backend's stateless calls, and the copies they are held against.
//!
//! `cargo bench --bench cpu`; benches/README.md says what the names and the yardsticks are.
//! Outputs are allocated and touched before anything is timed.

#[path = "shared/calls.rs"]
#[allow(dead_code, reason = "some is for GPUs")]
mod calls;
#[path = "shared/cases.rs"]
#[allow(dead_code, reason = "some is for GPUs")]
mod cases;
#[path = "../examples/report/id.rs"]
#[allow(dead_code, reason = "the report reads identifiers, the benchmarks only write them")]
mod id;

use calls::{Inputs, Tensors};
use criterion::{Criterion, SamplingMode, Throughput};
use half::{bf16, f16};
use id::{Config, Id, Pass, Slot};
use rayon::prelude::*;
use std::time::Duration;
use warpnorm::{Backend, Cpu, Element};

/// Copies of less than this are not split over threads: waking them takes longer.
const SPLIT_BYTES: usize = 256 << 10;

/// A number of threads, and what runs on them.
struct Team {
    threads: usize,
    backend: Cpu,
    pool: rayon::ThreadPool,
}

impl Team {
    /// `to = from` by the team's threads, each with a run of its own.
    fn copy<E: Element>(&self, to: &mut [E], from: &[E], copy: impl Fn(&mut [E], &[E]) + Sync) {
        if self.threads == 1 || size_of_val(from) < SPLIT_BYTES {
            return copy(to, from);
        }
        let run = from.len().div_ceil(self.threads);
        let runs = to.par_chunks_mut(run).zip(from.par_chunks(run));
        self.pool.install(|| runs.for_each(|(to, from)| copy(to, from)));
    }
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
    tensors: &mut Option<Tensors<Cpu, E>>,
) {
    const FITS: &str = "the arguments fit the problem";
    let problem = id.problem().expect("a shape that exists");
    let floor = id.floor_bytes().expect("a shape that exists");
    let mut group = criterion.benchmark_group(id.pass.to_string());
    group.sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Bytes(floor as u64));
    let name = id.to_string();
    let (_, rest) = name.split_once('/').expect("a pass and more");
    group.bench_function(rest, |bencher| {
        let backend = &team.backend;
        let made = || Tensors::new(backend, &problem, &Inputs::random(&problem)).expect(FITS);
        let tensors = tensors.get_or_insert_with(made);
        let mut workspace = backend.workspace(&problem).expect("memory for the workspace");
        let workspace = &mut workspace;
        match (id.pass, id.slot) {
            (Pass::TrainForward, _) => {
                let mut call = || tensors.forward_train(backend, &problem, workspace);
                bencher.iter(|| call().expect(FITS));
            }
            (Pass::TrainBackward, _) => {
                tensors.forward_train(backend, &problem, workspace).expect(FITS);
                let mut call = || tensors.backward_train(backend, &problem, workspace);
                bencher.iter(|| call().expect(FITS));
            }
            (Pass::Inference, _) => {
                let mut call = || tensors.inference(backend, &problem, workspace);
                bencher.iter(|| call().expect(FITS));
            }
            #[cfg(target_arch = "x86_64")]
            (Pass::Copy, Slot::NonTemporal) => {
                bencher.iter(|| team.copy(&mut tensors.y, &tensors.x, copy_past_cache));
            }
            (Pass::Copy, _) => {
                bencher.iter(|| team.copy(&mut tensors.y, &tensors.x, <[E]>::copy_from_slice));
            }
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
    for fused in cases::FUSED {
        let mut tensors = None;
        for pass in cases::PASSES {
            for team in teams {
                let config = Config::Threads(team.threads);
                let extents = extents.to_vec();
                let id = Id { pass, slot, element, extents, fused, config };
                let exists = slot != Slot::NonTemporal || cfg!(target_arch = "x86_64");
                if exists && cases::is_cpu_case(&id) {
                    bench::<E>(criterion, &id, team, &mut tensors);
                }
            }
        }
    }
}

fn bench_all(criterion: &mut Criterion) {
    let teams = teams();
    for extents in cases::CPU_SHAPES {
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
