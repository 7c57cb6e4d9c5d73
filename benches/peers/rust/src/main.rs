//! Times, memory and accuracy of batch normalization in candle and Burn, and in this crate's layer,
//! which allocates its outputs as theirs do.
//!
//!     cargo run --release -- --output ../../../target/rust.json
//!
//! The identifiers are those of `cargo bench --bench cpu`. Times are taken twice: with freed memory
//! given back to the system, and with it kept. ../README.md says what for.

mod allocator;
mod burn;
#[path = "../../../shared/calls.rs"]
#[allow(dead_code, reason = "its inputs are used here, its calls are not")]
mod calls;
mod candle;
#[path = "../../../shared/cases.rs"]
#[allow(dead_code, reason = "the shapes are used here")]
mod cases;
#[path = "../../../../examples/report/files.rs"]
#[allow(dead_code, reason = "some is for GPUs")]
mod files;
mod hard;
#[path = "../../../../examples/report/id.rs"]
#[allow(dead_code, reason = "written here, and read by the report")]
mod id;
mod library;
mod ours;
#[path = "../../../shared/score.rs"]
#[allow(dead_code, reason = "differences are of interest elsewhere")]
mod score;
mod times;

use allocator::{Freed, peak_of, set_freed};
use clap::{Parser, ValueEnum};
use files::{Allocation, Memory, PeerFile, PeerResult, RustFile};
use library::{Device, Library};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use times::{Effort, Timed};

#[global_allocator]
static ALLOCATOR: allocator::Counting = allocator::Counting;

/// Not in the first-level caches, and quick.
const MEMORY_SHAPE: [usize; 4] = [8, 64, 56, 56];

/// Measures candle and Burn beside warpnorm.
#[derive(Parser)]
struct Args {
    /// Where results go.
    #[arg(long, value_name = "FILE.json")]
    output: PathBuf,

    #[arg(long, value_enum, default_value_t = DeviceName::Cpu)]
    device: DeviceName,

    /// Threads, on the CPU.
    #[arg(long, default_value_t = 1)]
    threads: usize,

    /// Only shapes whose identifier contains this text.
    #[arg(long, default_value = "")]
    filter: String,

    /// A few repetitions: to try the program, not to quote.
    #[arg(long)]
    quick: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DeviceName {
    Cpu,
    Cuda,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    let device = match args.device {
        DeviceName::Cpu => Device::Cpu { threads: args.threads },
        DeviceName::Cuda if cfg!(feature = "cuda") => Device::Cuda,
        DeviceName::Cuda => return Err("--device cuda: build with --features cuda".into()),
    };
    limit_threads(args.threads)?;
    let peers = [candle::LIBRARY, burn::LIBRARY];
    let all = [ours::LIBRARY, candle::LIBRARY, burn::LIBRARY];
    let on_cpu = device != Device::Cuda;
    let libraries = if on_cpu { &all[..] } else { &peers[..] };
    let effort = match args.quick {
        true => Effort { samples: 3, time: Duration::from_millis(20) },
        false => Effort { samples: 5, time: Duration::from_secs(1) },
    };
    let accuracy = hard::measure(libraries, device);
    let memory =
        if on_cpu { libraries.iter().map(|it| memory(it, device)).collect() } else { Vec::new() };
    // What is kept is never given back, so that this comes last.
    let returned = set_freed(Freed::Returned);
    let fresh = times::measure(libraries, device, &args.filter, &effort);
    let kept = set_freed(Freed::Kept);
    if on_cpu && !(returned && kept) {
        eprintln!("warning: no mallopt here: the allocator does as it does");
    }
    let kept = times::measure(libraries, device, &args.filter, &effort);
    let file = RustFile {
        peers: peers.iter().map(|library| peer(library, device, &kept)).collect(),
        allocation: if on_cpu { allocation(&kept, &fresh) } else { Vec::new() },
        memory,
        accuracy,
    };
    std::fs::write(&args.output, serde_json::to_string_pretty(&file)? + "\n")?;
    Ok(())
}

/// candle reads the environment, Burn takes rayon's global pool.
fn limit_threads(threads: usize) -> Result<(), Box<dyn std::error::Error>> {
    // SAFETY: no other thread is running yet.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    Ok(())
}

/// Peak of a training forward and backward, input and all.
fn memory(library: &Library, device: Device) -> Memory {
    let host = times::host(&MEMORY_SHAPE);
    // What is made once is not of interest: threads, tables.
    let step = || {
        let mut layer = (library.layer)(&host, device);
        peak_of(|| {
            layer.forward();
            layer.backward();
        })
    };
    step();
    let tensor = host.x.len() * size_of::<f32>();
    let tensors = step() as f64 / tensor as f64 + library_inputs(library);
    let shape = MEMORY_SHAPE.map(|extent| extent.to_string()).join("x");
    Memory { library: library.name.to_owned(), shape, tensors }
}

/// Tensors that are there before the step: x, and for us dy, which the others make.
fn library_inputs(library: &Library) -> f64 {
    if library.name == ours::LIBRARY.name { 2.0 } else { 1.0 }
}

fn peer(library: &Library, device: Device, timed: &[Timed]) -> PeerFile {
    let own = timed.iter().filter(|timed| timed.library == library.name);
    let results = own.flat_map(|timed| {
        let of = |id: &id::Id, median_ns| PeerResult { id: id.to_string(), median_ns, way: None };
        [of(&timed.forward, timed.forward_ns), of(&timed.backward, timed.backward_ns)]
    });
    PeerFile {
        peer: Some(library.name.to_owned()),
        device: device_name(device),
        versions: [(library.name.to_lowercase(), library.version.to_owned())].into(),
        results: results.collect(),
        ..PeerFile::default()
    }
}

/// As the driver or Linux has it.
fn device_name(device: Device) -> String {
    if device == Device::Cuda {
        // nvidia-smi does not read the variable. It counts by the bus, CUDA the fastest first: of
        // unlike GPUs a number is the same to both with CUDA_DEVICE_ORDER=PCI_BUS_ID only.
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
        let first = visible.split(',').next().filter(|first| !first.is_empty()).unwrap_or("0");
        let first = format!("--id={first}");
        let ask = [first.as_str(), "--query-gpu=name", "--format=csv,noheader"];
        let answer = std::process::Command::new("nvidia-smi").args(ask).output();
        let name = answer.ok().filter(|answer| answer.status.success());
        let name = name.map(|answer| String::from_utf8_lossy(&answer.stdout).trim().to_owned());
        return name.unwrap_or_else(|| "CUDA device 0".to_owned());
    }
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(':'));
    name.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_owned()
}

fn allocation(kept: &[Timed], fresh: &[Timed]) -> Vec<Allocation> {
    let pairs = kept.iter().zip(fresh);
    let rows = pairs.flat_map(|(kept, fresh)| {
        let row = |id: &id::Id, kept_ns, fresh_ns| Allocation {
            library: kept.library.to_owned(),
            id: id.to_string(),
            kept_ns,
            fresh_ns,
        };
        [
            row(&kept.forward, kept.forward_ns, fresh.forward_ns),
            row(&kept.backward, kept.backward_ns, fresh.backward_ns),
        ]
    });
    rows.collect()
}
