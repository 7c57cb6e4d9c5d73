//! What no public case asks of a device that has its own memory and no f64.

use crate::support::Copy;
use replay::{Device, Options, Report, Verdict, replay};
use warpnorm::Layout;

fn emulated(copy: &Copy, layout: Layout) -> Report {
    replay(&copy.folder, Options { device: Device::Emulator, layout, tier: None })
}

#[test]
fn f64_is_skipped() {
    let copy = Copy::of("pytorch/relu_f32");
    copy.edit_meta(r#""io_dtype": "f32""#, r#""io_dtype": "f64""#);
    let report = emulated(&copy, Layout::ChannelsFirst);
    assert_eq!(report.verdict, Verdict::Skip, "{report}");
    assert_eq!(report.details, "f64: the device knows f32, f16, bf16 only");
}

/// With a mask and a residual, and an empty rank.
#[test]
fn a_batch_in_parts_is_that_batch() {
    for case in ["pytorch/addrelu_f32", "pytorch/addrelu_bf16", "pytorch/eval_4d_2x7x5x9"] {
        let copy = Copy::of(case);
        let split = if case.contains("eval") { "[1, 0, 1]" } else { "[2, 0, 2]" };
        copy.edit_meta(r#""kind": "single""#, &format!(r#""kind": "sync", "split": {split}"#));
        for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
            let report = emulated(&copy, layout);
            assert_eq!(report.verdict, Verdict::Pass, "{report}");
        }
    }
}

/// The count is in the device's memory, where the host cannot see it.
#[test]
fn one_value_in_all_parts_is_refused() {
    let copy = Copy::of("pytorch/refuse_train_1x5x1x1");
    copy.edit_meta(r#""kind": "error""#, r#""kind": "error", "split": [0, 1]"#);
    let report = emulated(&copy, Layout::ChannelsFirst);
    assert_eq!(report.verdict, Verdict::Pass, "{report}");
    assert!(report.details.contains("more than 1 value per channel"), "{report}");
}
