//! Joins what the benchmarks and the peers measured into a page of tables.
//!
//! `cargo run --release --example report -- --help` explains the whole way.

#[path = "../../benches/shared/cases.rs"]
#[allow(dead_code, reason = "some is for the benchmarks")]
mod cases;
#[allow(dead_code, reason = "some is for the benchmarks")]
mod files;
mod gpu_page;
mod id;
#[cfg(test)]
mod invented;
mod join;
mod machine;
mod model;
mod page;
#[path = "../pictures/mod.rs"]
#[allow(unused_imports, reason = "some is for the example `train`")]
mod pictures;
mod plots;
mod record;
mod resnet;
mod rust_page;
mod sources;
mod summary;
mod table;
mod ways;

use clap::Parser;
use files::{CUDNN_FILE, GPU_FILE, GpuFile, criterion_home};
use machine::Machine;
use page::Report;
use sources::{SourceError, add_peer, read_if_there, read_peers, unusable};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Joins Criterion's results and the peers' files into tables of ratios.
#[derive(Parser)]
#[command(name = "report", after_long_help = WORKFLOW)]
struct Args {
    /// Measurements of peers, as benches/peers writes them; may be given several times.
    #[arg(long = "peer", value_name = "FILE.json")]
    peers: Vec<PathBuf>,

    /// What to call the device: the folder under --output, and the page's title.
    #[arg(long, value_name = "NAME", value_parser = folder_name, required_unless_present = "again")]
    device: Option<String>,

    /// Writes page and pictures anew beside a results.json, from what is in it.
    #[arg(long, value_name = "results.json", conflicts_with_all = ["device", "peers"])]
    again: Option<PathBuf>,

    /// Where the device's folder is made.
    #[arg(long, value_name = "DIR", default_value = "benches/results")]
    output: PathBuf,

    /// Where Criterion left its results; or those of several rounds, a folder each: then of every
    /// benchmark the fastest round counts, ours and the peers'.
    #[arg(long, value_name = "DIR", default_value_os_t = criterion_home())]
    criterion: PathBuf,

    /// The processor's name, where /proc/cpuinfo does not tell it.
    #[arg(long, value_name = "TEXT")]
    cpu: Option<String>,

    /// The commit that was measured [default: the one checked out].
    #[arg(long, value_name = "HASH")]
    commit: Option<String>,

    /// What compiled it [default: the rustc that is here].
    #[arg(long, value_name = "TEXT")]
    rustc: Option<String>,
}

const WORKFLOW: &str = "\
The whole way, on an idle machine:

  1. cargo bench --bench cpu
     cargo bench --bench cuda
       measure this crate, and cuDNN; Criterion keeps the results under target/criterion.
       `cargo bench --bench cpu -- FILTER` measures some; the rest stays as it was.
  2. python benches/peers/torch_bn.py --device cpu --output target/torch.json
     g++ -O2 -std=c++17 -fopenmp benches/peers/onednn_bn.cpp -ldnnl -o target/onednn_bn
     target/onednn_bn --output target/onednn.json
       measure peers under the same identifiers (benches/peers/README.md).
  3. cargo run --release --example report -- --device my-machine \\
         --peer target/torch.json --peer target/onednn.json
       writes benches/results/my-machine/results.json, README.md and the pictures in it.

  cargo run --release --example report -- --again benches/results/my-machine/results.json
       writes page and pictures anew.

A peer file may come from any program:
  {\"peer\": NAME, \"device\": TEXT, \"versions\": {NAME: TEXT},
   \"results\": [{\"id\": \"<pass>/<layout>/<dtype>/<extents>/<epilogue>/<config>\", \"median_ns\": NUMBER}]}";

fn folder_name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !text.is_empty() && !text.starts_with('.') && text.chars().all(allowed) {
        return Ok(text.to_owned());
    }
    Err("expected a folder's name of letters, digits, '-', '_' and '.'".to_owned())
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    let (report, folder) = match (&args.again, &args.device) {
        (Some(path), _) => (record::read(path)?, path.parent().unwrap_or(Path::new(".")).into()),
        (None, Some(device)) => (gather(args, device)?, args.output.join(device)),
        (None, None) => return Err("--device or --again".into()),
    };
    fs::create_dir_all(&folder).map_err(|error| unusable(&folder, error))?;
    write(&folder.join("results.json"), &record::write(&report)?)?;
    let pictures = plots::draw(&report, &folder).map_err(|error| error.to_string())?;
    write(&folder.join("README.md"), &page::markdown(&report, &pictures))?;
    println!("{}: {} results, {} pictures", folder.display(), report.rows.len(), pictures.len());
    for (index, peer) in report.peers.iter().enumerate() {
        let (all, won) = join::score(&report.rows, index);
        println!("at least as fast as {} in {won} of {all} cases", peer.name);
    }
    for warning in report.warnings() {
        eprintln!("warning: {warning}");
    }
    Ok(())
}

fn gather(args: &Args, device: &str) -> Result<Report, Box<dyn std::error::Error>> {
    let ours = sources::read_criterion(&args.criterion)?;
    let (mut peers, mut rust) = (Vec::new(), None);
    let cudnn = args.criterion.join(CUDNN_FILE);
    let beside = [cudnn].into_iter().filter(|path| path.exists());
    for path in beside.chain(args.peers.iter().cloned()) {
        let (of_file, beside_times) = read_peers(&path)?;
        let mut of_file = of_file.into_iter();
        of_file.try_for_each(|peer| add_peer(&mut peers, peer, &path, ours.rounds))?;
        rust = beside_times.or(rust);
    }
    for peer in &mut peers {
        (peer.results, _) = join::fastest(std::mem::take(&mut peer.results));
    }
    let mut gpu = read_if_there::<GpuFile>(&args.criterion.join(GPU_FILE))?;
    if let Some(gpu) = &mut gpu {
        // The report's rows say it.
        gpu.measured.clear();
    }
    Ok(Report {
        device: device.to_owned(),
        machine: Machine::here(args.cpu.clone()),
        dates: (machine::date(ours.oldest), machine::date(ours.newest)),
        rounds: ours.rounds,
        commit: args.commit.clone().or_else(machine::commit),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        rustc: args.rustc.clone().or_else(machine::rustc),
        rows: join::join(&ours.results, &peers)?,
        peers,
        gpu,
        rust,
    })
}

fn write(path: &Path, text: &str) -> Result<(), SourceError> {
    fs::write(path, text).map_err(|error| unusable(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_device_is_one_folder() {
        assert!(folder_name("xeon-2c").is_ok());
        for bad in ["", "..", "a/b", ".hidden", "a b"] {
            assert!(folder_name(bad).is_err(), "{bad}");
        }
    }
}
