//! Reads off the compiler what it made of each kernel embedded in `warpnorm`: registers, shared
//! memory, spills and local memory off ptxas's log, the width of memory accesses and what is under way
//! together off the machine code. Spills, local memory and packs that are loaded one by one are
//! failures. The table is kept in `docs/kernels.md`.

mod log;
mod machine_code;
mod table;

use clap::Parser;
use conformance::document::{self, Section};
use log::Resources;
use machine_code::Accesses;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use warpnorm::cuda::{STATIC_SHARED_BYTES, images, target};

/// Prints a table of all CUDA kernels; fails where one spills or uses local memory.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Fail where docs/kernels.md differs.
    #[arg(long, conflicts_with = "write")]
    check: bool,
    /// Bring docs/kernels.md up to date.
    #[arg(long)]
    write: bool,
    /// NVIDIA's disassembler (pip install nvidia-cuda-nvdisasm).
    #[arg(long, env = "NVDISASM", default_value = "nvdisasm")]
    nvdisasm: PathBuf,
    /// The document.
    #[arg(long, default_value = document::KERNELS)]
    document: PathBuf,
}

/// A kernel on one architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// What ptxas said.
    pub resources: Resources,
    /// What its machine code does.
    pub accesses: Accesses,
}

/// Unit, then kernel, then compute capability.
pub type Report = BTreeMap<String, BTreeMap<String, BTreeMap<u32, Facts>>>;

const REMEDY: &str = "cargo run --release --bin kernel-report -- --write";

/// What the kernels together may come to: see docs/kernels.md.
const MOST_KERNELS: usize = 300;
const MOST_BYTES: usize = 8_000_000;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    let compiler = images::compiler().map_err(|error| error.to_string())?;
    refuse_missing_targets()?;
    let report = report(options)?;
    let markdown = table::markdown(compiler, &report);
    print!("{markdown}");
    refuse_local_memory(&report)?;
    refuse_unplanned_shared_memory(&report)?;
    refuse_lone_loads(&report)?;
    refuse_words(&report)?;
    refuse_excess(&report)?;
    let section = || Section::open(&options.document, "kernel-report");
    if options.write {
        section()?.write(&markdown)?;
    } else if options.check {
        section()?.check(&markdown, |shown, found| shown == found, REMEDY)?;
    }
    Ok(())
}

fn refuse_missing_targets() -> Result<(), String> {
    let embedded: BTreeSet<_> = images::images().iter().map(|image| image.target).collect();
    match target::DEFAULT.iter().find(|target| !embedded.contains(target)) {
        Some(missing) if !embedded.is_empty() => {
            Err(format!("no kernels for {missing}: unset WARPNORM_CUDA_ARCHS and build again"))
        }
        _ => Ok(()),
    }
}

fn report(options: &Options) -> Result<Report, String> {
    let logs = log::parse(images::RESOURCES)?;
    let cubins = images::images().par_iter().filter(|image| !image.target.is_ptx());
    let disassembled = cubins.map(|image| {
        let cubin = image.decompress().map_err(|error| error.to_string())?;
        Ok((image, machine_code::accesses(&options.nvdisasm, &cubin)?))
    });
    let mut report = Report::new();
    for (image, kernels) in disassembled.collect::<Result<Vec<_>, String>>()? {
        for (kernel, accesses) in kernels {
            let key = (image.target.to_string(), kernel.clone());
            let resources = *logs.get(&key).ok_or_else(|| format!("no log of {key:?}"))?;
            let unit = report.entry(image.unit.to_owned()).or_default();
            let facts = Facts { resources, accesses };
            unit.entry(kernel).or_default().insert(image.target.capability(), facts);
        }
    }
    Ok(report)
}

fn refuse_local_memory(report: &Report) -> Result<(), String> {
    let mut refused = String::new();
    for (kernel, architectures) in report.values().flatten() {
        for (architecture, facts) in architectures {
            let Resources { stack, spill_stores, spill_loads, .. } = facts.resources;
            if stack + spill_stores + spill_loads > 0 {
                refused += &format!(
                    "{kernel} on sm_{architecture}: {stack} bytes of local memory, \
                     {spill_stores} spilled, {spill_loads} loaded back\n"
                );
            }
        }
    }
    if refused.is_empty() { Ok(()) } else { Err(refused) }
}

/// Plans fill what kernels that keep tensors on chip leave of the shared memory.
fn refuse_unplanned_shared_memory(report: &Report) -> Result<(), String> {
    for (kernel, architectures) in report.values().flatten() {
        if !kernel.starts_with("forward_") && !kernel.starts_with("backward_") {
            continue;
        }
        let most = architectures.values().map(|facts| facts.resources.shared).max();
        if most > Some(STATIC_SHARED_BYTES) {
            return Err(format!(
                "{kernel}: {most:?} bytes of shared memory, {STATIC_SHARED_BYTES} planned"
            ));
        }
    }
    Ok(())
}

/// A thread that streams packs and waits for each before it asks for the next leaves memory idle. Where
/// any activation may follow, a pack is all that it works on at a time.
fn refuse_lone_loads(report: &Report) -> Result<(), String> {
    let mut refused = String::new();
    for (kernel, architectures) in report.values().flatten() {
        let keeps = kernel.starts_with("forward_") || kernel.starts_with("backward_");
        let has_batches = !keeps && !kernel.ends_with("_any");
        for (architecture, Facts { accesses, .. }) in architectures {
            if has_batches && accesses.wide_loads && accesses.together < 2 {
                refused += &format!("{kernel} on sm_{architecture}: a load at a time\n");
            }
        }
    }
    if refused.is_empty() { Ok(()) } else { Err(refused) }
}

/// Packs move as a whole: the compiler takes some apart where branches meet.
fn refuse_words(report: &Report) -> Result<(), String> {
    let mut refused = String::new();
    for (kernel, architectures) in report.values().flatten() {
        for (architecture, Facts { accesses, .. }) in architectures {
            if accesses.word_by_word {
                refused += &format!("{kernel} on sm_{architecture}: a pack word by word\n");
            }
        }
    }
    if refused.is_empty() { Ok(()) } else { Err(refused) }
}

fn refuse_excess(report: &Report) -> Result<(), String> {
    let kernels = report.values().flatten().count();
    let bytes = images::images().iter().map(|image| image.compressed_bytes()).sum::<usize>();
    println!("{kernels} kernels, {bytes} bytes compressed for all architectures");
    if kernels > MOST_KERNELS || bytes > MOST_BYTES {
        return Err(format!("more than {MOST_KERNELS} kernels or {MOST_BYTES} bytes"));
    }
    Ok(())
}
