//! `replay`: runs case folders and prints a line for each.

use clap::{Parser, ValueEnum};
use replay::{Device, Options, Tier, Verdict, find_cases, replay};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs batch-normalization case folders through warpnorm and scores them.
///
/// Prints `PASS|FAIL|SKIP <case> <scores>` for each case. A score is the largest error of an
/// output in units of its channel's natural magnitude. The exit status is 0 only if none failed.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// What runs the cases.
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    device: Device,
    /// How the tensors lie in memory.
    #[arg(long, value_enum, default_value_t = MemoryLayout::ChannelsFirst)]
    layout: MemoryLayout,
    /// Where the CUDA kernels are to keep a training call's tensors between its sweeps; what has no
    /// such plan streams [default: what should be fastest].
    #[arg(long, value_enum)]
    tier: Option<Tier>,
    /// Case folders, or folders of case folders.
    #[arg(required = true, value_name = "CASE_DIR")]
    folders: Vec<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum MemoryLayout {
    /// NCHW and its like.
    ChannelsFirst,
    /// NHWC and its like.
    ChannelsLast,
}

impl From<MemoryLayout> for warpnorm::Layout {
    fn from(layout: MemoryLayout) -> Self {
        match layout {
            MemoryLayout::ChannelsFirst => warpnorm::Layout::ChannelsFirst,
            MemoryLayout::ChannelsLast => warpnorm::Layout::ChannelsLast,
        }
    }
}

fn main() -> io::Result<ExitCode> {
    let arguments = Arguments::parse();
    let Arguments { device, layout, tier, .. } = arguments;
    let options = Options { device, layout: layout.into(), tier };
    let mut out = io::stdout().lock();
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for case in arguments.folders.iter().flat_map(|folder| find_cases(folder)) {
        let report = replay(&case, options);
        match report.verdict {
            Verdict::Pass => passed += 1,
            Verdict::Fail => failed += 1,
            Verdict::Skip => skipped += 1,
        }
        writeln!(out, "{report}")?;
        out.flush()?;
    }
    writeln!(out, "{passed} passed, {failed} failed, {skipped} skipped")?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
