//! Every public case, in both layouts, as a test of its own.

use libtest_mimic::{Arguments, Failed, Trial};
use replay::{Device, Options, Verdict, find_cases, replay};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use warpnorm::Layout;

fn main() -> ExitCode {
    let cases = find_cases(&Path::new(env!("CARGO_MANIFEST_DIR")).join("cases"));
    assert_eq!(cases.len(), 35, "the 26 cases of PyTorch and the 9 of ONNX");
    let layouts = [Layout::ChannelsFirst, Layout::ChannelsLast];
    let trials =
        layouts.iter().flat_map(|&layout| cases.iter().map(move |case| trial(case, layout)));
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

fn trial(case: &Path, layout: Layout) -> Trial {
    let case: PathBuf = case.to_owned();
    let name = case.file_name().unwrap_or_default().to_string_lossy();
    Trial::test(format!("{layout}::{name}"), move || {
        let report = replay(&case, Options { device: Device::Cpu, layout });
        match report.verdict {
            Verdict::Pass => Ok(()),
            Verdict::Fail | Verdict::Skip => Err(Failed::from(report.to_string())),
        }
    })
}
