//! The scorer can fail: an expected value slightly more than the bar away from the library's
//! fails its output, slightly less passes.

use crate::support::{Copy, npy_f64};
use ndarray::ArrayD;
use replay::arrays::Arrays;
use replay::case::Case;
use replay::run::run;
use replay::{Options, Verdict, replay};
use warpnorm::{DType, Layout};

/// One of the page's rules, in its own words: an error is allowed up to `bar` times `scale`, plus
/// `rounding` times the expected value.
struct Allowance {
    absolute: f64,
    relative: f64,
}

fn allowance(case: &Case, output: &str, channel: usize, factor: f64) -> Allowance {
    let rounding = match case.dtype {
        DType::F16 => 1.0 / 2048.0,
        DType::Bf16 => 1.0 / 256.0,
        DType::F32 | DType::F64 => 0.0,
    };
    let scale = |file: &str| case.array(file).unwrap().unwrap()[[channel]];
    let (absolute, relative) = match output {
        "y" => (2e-7 * factor * scale("scale_y"), rounding),
        "dx" => (4e-7 * factor * scale("scale_dx"), rounding),
        "dresidual" => {
            let dy = case.input("dy").unwrap().unwrap();
            let largest = dy.iter().fold(0.0f64, |largest, dy| largest.max(dy.abs()));
            (4e-7 * factor * largest, rounding)
        }
        output if output.starts_with("dweight") => (2e-7 * factor * scale("scale_dweight"), 0.0),
        output if output.starts_with("dbias") => (2e-7 * factor * scale("scale_dbias"), 0.0),
        output if output.starts_with("y_") => {
            let y = case.require(output).unwrap();
            let y = y.index_axis(ndarray::Axis(1), channel);
            let largest = y.iter().fold(1.0f64, |largest, y| largest.max(y.abs()));
            (2e-7 * factor * largest, 0.0)
        }
        _ => (0.0, 2e-7 * factor),
    };
    Allowance { absolute: absolute + 3e-44, relative }
}

/// Moves one expected value `factor` times the allowance away from what the library gives.
fn verdict_at(case: &str, output: &str, channel: usize, factor: f64) -> replay::Report {
    let copy = Copy::of(case);
    let opened = Case::open(&copy.folder).unwrap();
    let ran = run(&opened, &Arrays::new(Layout::ChannelsFirst)).unwrap();
    let got = &ran.outputs[output].values;
    let mut expected = opened.require(output).unwrap();
    let axis = ndarray::Axis(usize::from(got.ndim() > 1));
    let of_channel = got.index_axis(axis, channel);
    // Half the largest: further from zero than rounding reaches, and no channel's scale moves.
    let half = of_channel.iter().fold(0.0f64, |largest, value| largest.max(value.abs())) / 2.0;
    let nearest = |value: &f64| (value.abs() - half).abs();
    let place = of_channel.iter().enumerate().min_by(|a, b| nearest(a.1).total_cmp(&nearest(b.1)));
    let (place, &value) = place.unwrap();
    let Allowance { absolute, relative } = allowance(&opened, output, channel, factor);
    let moved = (value.abs() + absolute) / (1.0 - relative);
    let mut expected_channel = expected.index_axis_mut(axis, channel);
    *expected_channel.iter_mut().nth(place).unwrap() = moved.copysign(value);
    copy.write(&format!("{output}.npy"), npy_f64(&expected));
    replay(&copy.folder, Options::default())
}

const MOVED: [(&str, &[&str]); 10] = [
    ("pytorch/addrelu_f32", &["y", "dx", "dresidual", "dweight", "dbias", "save_mean"]),
    ("pytorch/train_2d_29x11", &["y", "dx", "save_invstd", "running_mean_out", "running_var_out"]),
    ("pytorch/addrelu_f16", &["y", "dx", "dresidual", "dweight", "dbias"]),
    ("pytorch/addrelu_bf16", &["y", "dx", "dresidual", "dweight", "save_invstd"]),
    ("pytorch/eval_4d_2x7x5x9", &["y", "dx", "dweight", "dbias", "running_var_out"]),
    ("pytorch/huge_1e29", &["y", "dx", "dweight", "running_mean_out", "save_invstd"]),
    ("pytorch/large_mean_1e4_1em2", &["y", "dx", "save_mean"]),
    ("pytorch/nan_in_channel_1", &["y", "dx", "dweight", "dbias", "save_mean"]),
    (
        "pytorch/sequence_momentum_0p1",
        &["y_step2", "y_eval", "running_mean_step3", "running_var_step0"],
    ),
    ("pytorch/sync3_4_0_2", &["y", "dx", "dweight", "dweight_rank2", "dbias_rank0", "save_mean"]),
];

#[test]
fn slightly_more_than_the_bar_fails_and_names_the_output() {
    for (case, outputs) in MOVED {
        for output in outputs {
            let report = verdict_at(case, output, 0, 1.02);
            assert_eq!(report.verdict, Verdict::Fail, "{output} of {report}");
            let named = format!("{output}=");
            let failing = report.details.split(" above the bar ").next().unwrap();
            let last = failing.rsplit(' ').next().unwrap();
            assert!(last.starts_with(&named), "{output} of {report}");
        }
    }
}

#[test]
fn slightly_less_than_the_bar_passes() {
    for (case, outputs) in MOVED {
        for output in outputs {
            let report = verdict_at(case, output, 0, 0.98);
            assert_eq!(report.verdict, Verdict::Pass, "{output} of {report}");
        }
    }
}

#[test]
fn only_the_nonfinite_channel_is_let_off() {
    let copy = Copy::of("pytorch/nan_in_channel_1");
    let mut dbias = Case::open(&copy.folder).unwrap().require("dbias").unwrap();
    dbias[[1]] += 1.0;
    copy.write("dbias.npy", npy_f64(&dbias));
    assert_eq!(replay(&copy.folder, Options::default()).verdict, Verdict::Pass);
    dbias[[2]] += 1.0;
    copy.write("dbias.npy", npy_f64(&dbias));
    assert_eq!(replay(&copy.folder, Options::default()).verdict, Verdict::Fail);
    copy.edit_meta("\"nonfinite_channels\": [\n  1\n ]", "\"nonfinite_channels\": [2]");
    let report = replay(&copy.folder, Options::default());
    assert_eq!(report.verdict, Verdict::Fail, "channel 1 has no scale: {report}");
}

#[test]
fn a_constant_channel_of_zeros_must_give_zero() {
    for (moved, verdict) in [(0.0, Verdict::Pass), (1e-44, Verdict::Fail)] {
        let copy = Copy::of("pytorch/constant_channels");
        let mut running_mean =
            Case::open(&copy.folder).unwrap().require("running_mean_in").unwrap();
        running_mean[[3]] = moved;
        copy.write("running_mean_in.npy", npy_f64(&running_mean));
        let mut expected = Case::open(&copy.folder).unwrap().require("running_mean_out").unwrap();
        expected[[3]] = 0.0;
        copy.write("running_mean_out.npy", npy_f64(&expected));
        let report = replay(&copy.folder, Options::default());
        assert_eq!(report.verdict, verdict, "{report}");
    }
}

#[test]
fn the_count_of_batches_is_checked() {
    for case in ["pytorch/momentum_none", "pytorch/sequence_momentum_none", "pytorch/sync2_6_3"] {
        let copy = Copy::of(case);
        let meta = std::fs::read_to_string(copy.folder.join("meta.json")).unwrap();
        let (_, after) = meta.split_once("\"num_batches_tracked_out\": ").unwrap();
        let count = after.split(',').next().unwrap();
        copy.edit_meta(
            &format!("\"num_batches_tracked_out\": {count}"),
            "\"num_batches_tracked_out\": 77",
        );
        let report = replay(&copy.folder, Options::default());
        assert_eq!(report.verdict, Verdict::Fail, "{report}");
        assert!(report.details.contains("num_batches_tracked_out="), "{report}");
    }
}

#[test]
fn a_call_that_should_be_refused_and_is_not_fails() {
    let copy = Copy::of("pytorch/refuse_train_1x5x1x1");
    copy.edit_meta("\"mode\": \"train\"", "\"mode\": \"eval\"");
    let report = replay(&copy.folder, Options::default());
    assert_eq!(report.verdict, Verdict::Fail);
    assert!(report.details.contains("not refused"), "{report}");
}

/// Forward has moved the running statistics before backward is refused.
#[test]
fn a_backward_that_is_refused_passes() {
    let copy = Copy::of("pytorch/refuse_train_1x5x1x1");
    let meta = r#"{"kind": "error", "shape": [2, 5, 1, 1], "mode": "train"}"#;
    copy.write("meta.json", meta);
    copy.write("x.npy", npy_f64(&ArrayD::from_elem(vec![2, 5, 1, 1], 3.0)));
    copy.write("dy.npy", npy_f64(&ArrayD::zeros(vec![2, 5, 1, 2])));
    let refused = || {
        let report = replay(&copy.folder, Options::default());
        assert_eq!(report.verdict, Verdict::Pass, "{report}");
        assert!(report.details.contains("`dy`"), "{report}");
    };
    refused();
    copy.edit_meta(r#""kind": "error""#, r#""kind": "error", "split": [1, 1]"#);
    refused();
}

#[test]
fn onnx_values_beyond_the_tolerance_fail() {
    for output in ["y", "running_mean", "running_var"] {
        for (factor, verdict) in [(0.95, Verdict::Pass), (1.05, Verdict::Fail)] {
            let copy = Copy::of("onnx/test_batchnorm_example_training_mode");
            let case = Case::open(&copy.folder).unwrap();
            let got = run(&case, &Arrays::new(Layout::ChannelsFirst)).unwrap().outputs[output]
                .values
                .clone();
            let mut expected = case.require(output).unwrap();
            let first = got.first().unwrap();
            *expected.first_mut().unwrap() = first + factor * 1e-5 * (1.0 + first.abs());
            copy.write(&format!("{output}.npy"), npy_f64(&expected));
            let report = replay(&copy.folder, Options::default());
            assert_eq!(report.verdict, verdict, "{report}");
        }
    }
}
