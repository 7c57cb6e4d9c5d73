//! Times the CUDA backend, and cuDNN beside it: `cargo bench --bench cuda`.
//!
//! Times are the device's, by events in its stream, of calls that follow each other. Their tensors
//! take turns, so that the L2 serves nothing it should not (`gpu`), or are the same each time
//! (`gpu-in-cache`); small calls are also replayed from a graph (`gpu-graph`). What a call computes is
//! compared with the textbook before it is timed. docs/benchmarking.md says why.
//!
//! Criterion keeps our times. All else goes to `gpu.json` and `cudnn.json` in its folder.

#[path = "../shared/calls.rs"]
mod calls;
#[allow(dead_code, reason = "some is for the tuning harness")]
mod case;
#[path = "../shared/cases.rs"]
#[allow(dead_code, reason = "some is for the CPU, some for the report")]
mod cases;
mod cudnn;
#[path = "../../examples/report/files.rs"]
#[allow(dead_code, reason = "some is for the Rust peers")]
mod files;
mod gpu;
#[path = "../../examples/report/id.rs"]
#[allow(dead_code, reason = "the report reads identifiers, the benchmarks only write them")]
mod id;
mod record;
mod sampling;
#[path = "../shared/score.rs"]
mod score;
mod timing;

use case::Case;
use criterion::{Criterion, SamplingMode, Throughput};
use gpu::Gpu;
use half::{bf16, f16};
use id::{Config, Element as Type, Id, Pass};
use record::Record;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use warpnorm::{Element, Result};

fn main() -> ExitCode {
    let mut criterion = Criterion::default()
        .sample_size(sampling::SAMPLES)
        .warm_up_time(sampling::WARM_UP)
        .measurement_time(sampling::MEASUREMENT)
        .nresamples(2000)
        .without_plots()
        .configure_from_args();
    let gpu = match Gpu::open() {
        Ok(gpu) => gpu,
        Err(reason) => {
            println!("no GPU, nothing measured: {reason}");
            return ExitCode::SUCCESS;
        }
    };
    let file = gpu.file();
    println!("{}, copy at {:.0} GB/s", file.device.name, file.copy_bandwidth / 1e9);
    match &gpu.cudnn {
        Ok(cudnn) => {
            let versions: Vec<_> =
                cudnn.versions().iter().map(|(of, version)| format!("{of} {version}")).collect();
            println!("cuDNN: {}", versions.join(", "));
        }
        Err(reason) => println!("no cuDNN: {reason}"),
    }
    let goes_on = std::env::var_os("BENCH_RESUME").is_some_and(|value| !value.is_empty());
    let record = Record::open(&gpu);
    let failures = Run { criterion: &mut criterion, record, goes_on, gpu: &gpu }.all();
    criterion.final_summary();
    match failures {
        0 => ExitCode::SUCCESS,
        failures => {
            eprintln!("{failures} benchmarks failed");
            ExitCode::FAILURE
        }
    }
}

struct Run<'r> {
    criterion: &'r mut Criterion,
    record: Record,
    /// What earlier runs have measured, or failed at, is left out.
    goes_on: bool,
    gpu: &'r Gpu,
}

impl Run<'_> {
    /// Everything; how much of it failed.
    fn all(&mut self) -> usize {
        let ids = cases::gpu();
        let key = |id: &Id| (id.extents.clone(), id.slot, id.element, id.fused);
        let mut failures = 0;
        for group in ids.chunk_by(|a, b| key(a) == key(b)) {
            if !self.fits(&group[0]) {
                println!("{}: larger than this GPU's memory", group[0]);
                continue;
            }
            failures += match group[0].element {
                Type::F16 => self.group::<f16>(group),
                Type::Bf16 => self.group::<bf16>(group),
                Type::F32 | Type::F64 => self.group::<f32>(group),
            };
            // Whatever came after it would only say so again.
            if let Err(reason) = self.gpu.cuda.synchronize() {
                eprintln!("{}, or what shares its tensors: the device is lost: {reason}", group[0]);
                return failures + 1;
            }
        }
        failures
    }

    /// Whether the tensors of one call fit.
    fn fits(&self, id: &Id) -> bool {
        let memory = self.gpu.file().device.memory_bytes / 10 * 9;
        id.problem().is_ok_and(|problem| calls::most_bytes(&problem) <= memory)
    }

    /// What shares tensors.
    fn group<E: Element>(&mut self, ids: &[Id]) -> usize {
        let mut case = None;
        let mut failures = 0;
        for id in ids {
            let floor = id.floor_bytes().unwrap_or(usize::MAX) as u64;
            let l2_bytes = self.gpu.facts.l2_bytes;
            if id.config == Config::GpuInCache && !sampling::stays_in_cache(floor, l2_bytes) {
                continue;
            }
            if self.goes_on && self.record.is_known(id) {
                continue;
            }
            // A wrong result ends one benchmark, not all.
            let outcome = catch_unwind(AssertUnwindSafe(|| self.bench::<E>(id, &mut case)));
            if let Err(panic) = outcome {
                let reason = reason(&*panic);
                eprintln!("{id}: failed, left out: {reason}");
                failures += 1;
                self.record.failed(id, reason);
                self.record.write();
            }
        }
        failures
    }

    /// One identifier, if the filter lets it pass.
    fn bench<'g, E: Element>(&mut self, id: &Id, case: &mut Option<Case<'g, E>>)
    where
        Self: 'g,
    {
        let name = id.to_string();
        let (_, rest) = name.split_once('/').expect("a pass and more");
        let (gpu, record) = (self.gpu, &mut self.record);
        let mut passed = false;
        let mut group = self.criterion.benchmark_group(id.pass.to_string());
        group.sampling_mode(SamplingMode::Flat);
        let floor = id.floor_bytes().expect("a shape that exists");
        group.throughput(Throughput::Bytes(floor as u64));
        group.bench_function(rest, |bencher| {
            // Criterion comes here for each sample.
            if !passed {
                record.begun(id);
            }
            passed = true;
            let problem = id.problem().expect("a shape that exists");
            let case = case.get_or_insert_with(|| required(Case::new(gpu, problem)));
            required(case.check(id.pass));
            bencher.iter_custom(|calls| required(case.time(id.pass, id.config, calls)));
        });
        group.finish();
        if let (true, Some(case)) = (passed, case) {
            self.record.succeeded(id);
            required(self.beside(id, case));
            self.record.write();
        }
    }

    /// What is wanted of a call beside its time.
    fn beside<E: Element>(&mut self, id: &Id, case: &mut Case<'_, E>) -> Result<()> {
        if id.pass == Pass::Copy {
            return Ok(());
        }
        let gpu = self.gpu;
        self.record.plan(gpu, id)?;
        let cudnn = gpu.cudnn.as_ref().ok().map(|cudnn| cudnn.measure(case, id));
        if let Some(measured) = &cudnn {
            self.record.cudnn(id, measured);
        }
        if id.config != Config::Gpu {
            return Ok(());
        }
        if let Some(error) = case.check(id.pass)? {
            self.record.accuracy(id, error, cudnn.as_ref());
        }
        if sampling::is_host_timed(id)? {
            let sets = case.sets.len();
            let ours =
                gpu.stopwatch.host_time(&mut |index| case.call(id.pass, index as usize % sets))?;
            self.record.host_cost(id, ours, cudnn.and_then(|measured| measured.host_ns));
        }
        Ok(())
    }
}

/// Criterion's closures return nothing: an error is a panic, which [`Run::group`] catches.
fn required<T>(outcome: Result<T>) -> T {
    outcome.unwrap_or_else(|error| panic!("{error}"))
}

/// What a panic says.
fn reason(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}
