//! Joins what the benchmarks and the peers measured into a page of tables.
//!
//! `cargo run --release --example report -- --help` explains the whole way.

mod id;
mod join;
mod machine;
mod page;
mod sources;

use clap::Parser;
use machine::Machine;
use page::Report;
use sources::{SourceError, unusable};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Joins Criterion's results and the peers' files into tables of ratios.
#[derive(Parser)]
#[command(name = "report", after_long_help = WORKFLOW)]
struct Args {
    /// Measurements of a peer, as benches/peers writes them; may be given several times.
    #[arg(long = "peer", value_name = "FILE.json")]
    peers: Vec<PathBuf>,

    /// What to call the device: the folder under --output, and the page's title.
    #[arg(long, value_name = "NAME", value_parser = folder_name)]
    device: String,

    /// Where the device's folder is made.
    #[arg(long, value_name = "DIR", default_value = "benches/results")]
    output: PathBuf,

    /// Where Criterion left its results.
    #[arg(long, value_name = "DIR", default_value_os_t = criterion_home())]
    criterion: PathBuf,

    /// The processor's name, where /proc/cpuinfo does not tell it.
    #[arg(long, value_name = "TEXT")]
    cpu: Option<String>,

    /// The commit that was measured [default: the one checked out].
    #[arg(long, value_name = "HASH")]
    commit: Option<String>,
}

const WORKFLOW: &str = "\
The whole way, on an idle machine:

  1. cargo bench --bench cpu
       measures this crate; Criterion keeps the results under target/criterion.
       `cargo bench --bench cpu -- FILTER` measures some; the rest stays as it was.
  2. python benches/peers/torch_bn.py --device cpu --output target/torch.json
     g++ -O2 -std=c++17 -fopenmp benches/peers/onednn_bn.cpp -ldnnl -o target/onednn_bn
     target/onednn_bn --output target/onednn.json
       measure peers under the same identifiers (benches/peers/README.md).
  3. cargo run --release --example report -- --device my-machine \\
         --peer target/torch.json --peer target/onednn.json
       writes benches/results/my-machine/results.json and README.md.

A peer file may come from any program:
  {\"peer\": NAME, \"device\": TEXT, \"versions\": {NAME: TEXT},
   \"results\": [{\"id\": \"<pass>/<layout>/<dtype>/<extents>/<epilogue>/<config>\", \"median_ns\": NUMBER}]}";

/// Criterion's own rule for where its results go.
fn criterion_home() -> PathBuf {
    let target =
        || std::env::var_os("CARGO_TARGET_DIR").map(|dir| Path::new(&dir).join("criterion"));
    let home = std::env::var_os("CRITERION_HOME").map(PathBuf::from);
    home.or_else(target).unwrap_or_else(|| "target/criterion".into())
}

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
    let report = gather(args)?;
    let folder = args.output.join(&args.device);
    fs::create_dir_all(&folder).map_err(|error| unusable(&folder, error))?;
    write(&folder.join("results.json"), &format!("{:#}\n", report.json()))?;
    write(&folder.join("README.md"), &report.markdown())?;
    println!("{}: {} results", folder.display(), report.rows.len());
    for (index, peer) in report.peers.iter().enumerate() {
        let (all, won) = join::score(&report.rows, index);
        println!("at least as fast as {} in {won} of {all} cases", peer.name);
    }
    for warning in report.warnings() {
        eprintln!("warning: {warning}");
    }
    Ok(())
}

fn gather(args: &Args) -> Result<Report, Box<dyn std::error::Error>> {
    let ours = sources::read_criterion(&args.criterion)?;
    let mut peers: Vec<join::Peer> = Vec::new();
    for path in &args.peers {
        let peer = sources::read_peer(path)?;
        if peers.iter().any(|known| known.name == peer.name) {
            return Err(unusable(path, format_args!("a second file of {}", peer.name)).into());
        }
        peers.push(peer);
    }
    Ok(Report {
        device: args.device.clone(),
        machine: Machine::here(args.cpu.clone()),
        dates: (machine::date(ours.oldest), machine::date(ours.newest)),
        commit: args.commit.clone().or_else(machine::commit),
        rustc: machine::rustc(),
        rows: join::join(&ours.results, &peers)?,
        peers,
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
