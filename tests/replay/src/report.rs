//! One case in, one line out.

use crate::arrays::Arrays;
use crate::buffers::Buffers;
use crate::case::{Case, Malformed};
#[cfg(emulated)]
use crate::emulated;
use crate::gpu;
use crate::meta::Kind;
use crate::refusal;
use crate::rule::{expected_outputs, rule};
use crate::run::{Ran, RunError, run};
use crate::score::{Score, score};
use crate::subject::Subject;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use warpnorm::{DType, Layout};

/// What runs the cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Device {
    /// The CPU backend, on all cores.
    #[default]
    Cpu,
    /// The CUDA kernels, run on the CPU by `tests/emulator` with checks for races and accesses out
    /// of bounds. Slow.
    #[cfg(emulated)]
    Emulator,
    /// The first NVIDIA GPU.
    Cuda,
}

impl Device {
    /// The element types it knows; cases of others are skipped.
    pub fn dtypes(self) -> &'static [DType] {
        match self {
            Device::Cpu => &[DType::F32, DType::F64, DType::F16, DType::Bf16],
            #[cfg(emulated)]
            Device::Emulator => &[DType::F32, DType::F16, DType::Bf16],
            Device::Cuda => &[DType::F32, DType::F16, DType::Bf16],
        }
    }
}

/// Where a GPU keeps a training call's tensors between its two sweeps: see `docs/kernels.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Tier {
    /// In memory.
    Streaming,
    /// In the shared memory of a block.
    Block,
    /// In that of a thread block cluster.
    Cluster,
    /// In that of blocks which wait for each other.
    Grid,
}

impl From<Tier> for warpnorm::cuda::Tier {
    fn from(tier: Tier) -> Self {
        match tier {
            Tier::Streaming => warpnorm::cuda::Tier::Streaming,
            Tier::Block => warpnorm::cuda::Tier::Block,
            Tier::Cluster => warpnorm::cuda::Tier::Cluster,
            Tier::Grid => warpnorm::cuda::Tier::Grid,
        }
    }
}

/// How the cases are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// On what.
    pub device: Device,
    /// How the tensors lie in memory.
    pub layout: Layout,
    /// Where the CUDA kernels are to keep tensors; what has no such plan streams. `None`: what should
    /// be fastest.
    pub tier: Option<Tier>,
}

impl Default for Options {
    /// On the CPU, channels-first.
    fn default() -> Self {
        Options { device: Device::default(), layout: Layout::ChannelsFirst, tier: None }
    }
}

/// How a case came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Every output is within its bar.
    Pass,
    /// An output is not, the library refused the call, or the folder is malformed.
    Fail,
    /// The device cannot run such a case.
    Skip,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Pass => "PASS",
            Verdict::Fail => "FAIL",
            Verdict::Skip => "SKIP",
        })
    }
}

/// The line of one case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The folder's name.
    pub case: String,
    /// How it came out.
    pub verdict: Verdict,
    /// Scores, or a reason, on one line.
    pub details: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.verdict, self.case, self.details)
    }
}

/// Runs and scores the case in `folder`. Whatever is wrong with it becomes a report.
pub fn replay(folder: &Path, options: Options) -> Report {
    let judged = catch_unwind(AssertUnwindSafe(|| judge(folder, options)));
    let (verdict, details) = match judged {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(Malformed(reason))) => (Verdict::Fail, format!("malformed: {reason}")),
        Err(payload) => (Verdict::Fail, format!("panicked: {}", panic_message(&*payload))),
    };
    let details = details.split_whitespace().collect::<Vec<_>>().join(" ");
    Report { case: name(folder), verdict, details }
}

fn judge(folder: &Path, options: Options) -> Result<(Verdict, String), Malformed> {
    if !folder.is_dir() {
        return Err(Malformed(format!("{} is not a folder", folder.display())));
    }
    let case = Case::open(folder)?;
    if !options.device.dtypes().contains(&case.dtype) {
        let known: Vec<String> = options.device.dtypes().iter().map(DType::to_string).collect();
        let reason = format!("{}: the device knows {} only", case.dtype, known.join(", "));
        return Ok((Verdict::Skip, reason));
    }
    match options.device {
        Device::Cpu => judge_on(&case, &Arrays::new(options.layout)),
        #[cfg(emulated)]
        Device::Emulator => judge_on(&case, &emulated::subject(options)),
        Device::Cuda => match gpu::first() {
            Ok(gpu) => {
                let gpu = gpu.with_tier(options.tier.map(Into::into));
                judge_on(&case, &Buffers::new(gpu, options.layout))
            }
            Err(error) => Ok((Verdict::Fail, format!("no GPU: {error}"))),
        },
    }
}

fn judge_on<S: Subject>(case: &Case, subject: &S) -> Result<(Verdict, String), Malformed> {
    if case.kind == Kind::Error {
        return refusal::judge(case, subject);
    }
    let names = expected_outputs(case)?;
    let ran = match run(case, subject) {
        Ok(ran) => ran,
        Err(RunError::Malformed(malformed)) => return Err(malformed),
        Err(RunError::Refused(error)) => {
            return Ok((Verdict::Fail, format!("refused by the library: {error}")));
        }
    };
    let scores = scores(case, &names, &ran)?;
    let passed = scores.iter().all(Score::passed);
    let lines: Vec<String> = scores.iter().map(Score::to_string).collect();
    let verdict = if passed { Verdict::Pass } else { Verdict::Fail };
    Ok((verdict, lines.join(" ")))
}

/// The scores of the outputs `names`, and of the count of batches if the case has one.
///
/// # Errors
/// The library has no such output in this mode, or an expected array is malformed.
pub fn scores(case: &Case, names: &[String], ran: &Ran) -> Result<Vec<Score>, Malformed> {
    let nonfinite = case.meta.nonfinite_channels.as_deref().unwrap_or_default();
    let mut scores = Vec::new();
    for name in names {
        let Some(output) = ran.outputs.get(name) else {
            return Err(Malformed(format!("{name}: this call has no such output")));
        };
        let expected = case.require(name)?;
        let rule = rule(case, name, &expected)?;
        scores.push(score(name, output, &expected, &rule, nonfinite)?);
    }
    if let (Some(expected), Some(got)) =
        (case.meta.num_batches_tracked_out, ran.num_batches_tracked)
    {
        scores.push(Score {
            output: "num_batches_tracked_out".to_owned(),
            score: got.abs_diff(expected) as f64,
            bar: 0.0,
            worst: None,
        });
    }
    Ok(scores)
}

fn name(folder: &Path) -> String {
    let full = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let name = folder.file_name().or(full.file_name()).unwrap_or(folder.as_os_str());
    name.to_string_lossy().into_owned()
}

fn panic_message(payload: &(dyn std::any::Any + Send)) -> &str {
    let literal = payload.downcast_ref::<&str>().copied();
    literal
        .or(payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("for no stated reason")
}
