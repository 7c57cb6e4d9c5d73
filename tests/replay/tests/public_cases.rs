//! Every public case, in both layouts, with the CPU backend, and with the emulated kernels and a GPU in
//! every tier (what has no plan there streams), as a test of its own. Where there is no GPU its tests are
//! listed as ignored; one that cannot be used fails them.

use libtest_mimic::{Arguments, Failed, Trial};
use replay::{Device, Options, Tier, Verdict, find_cases, replay};
use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use warpnorm::Layout;
use warpnorm::cuda::expects_gpu;

const DEVICES: &[Device] = &[
    Device::Cpu,
    #[cfg(emulated)]
    Device::Emulator,
    Device::Cuda,
];

/// Of the CUDA kernels.
const TIERS: [Tier; 4] = [Tier::Streaming, Tier::Block, Tier::Cluster, Tier::Grid];

fn main() -> ExitCode {
    let cases = find_cases(&folder());
    assert_eq!(cases.len(), 35, "the 26 cases of PyTorch and the 9 of ONNX");
    let mut trials = Vec::new();
    for &device in DEVICES {
        let tiers = if device == Device::Cpu { &[] } else { &TIERS[..] };
        for tier in tiers.iter().copied().map(Some).chain([None]) {
            for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
                let options = Options { device, layout, tier };
                trials.extend(cases.iter().map(|case| trial(case, options)));
            }
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// The crate's own cases; `REPLAY_CASES` says where they are if this program was taken elsewhere.
fn folder() -> PathBuf {
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    env::var_os("REPLAY_CASES").map_or_else(here, PathBuf::from)
}

fn trial(case: &Path, options: Options) -> Trial {
    let case: PathBuf = case.to_owned();
    let name = case.file_name().unwrap_or_default().to_string_lossy();
    let Options { device, layout, tier } = options;
    let tier = tier.map_or(String::new(), |tier| format!("::{tier:?}"));
    let has_device = device != Device::Cuda || expects_gpu();
    let name = format!("{device:?}{tier}::{layout}::{name}").to_lowercase();
    let trial = Trial::test(name, move || {
        let report = replay(&case, options);
        match report.verdict {
            Verdict::Pass => Ok(()),
            Verdict::Fail | Verdict::Skip => Err(Failed::from(report.to_string())),
        }
    });
    trial.with_ignored_flag(!has_device).with_kind(if has_device { "" } else { "no GPU" })
}
