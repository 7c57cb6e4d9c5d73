//! Folders of the same format that look different, and folders that are broken.

use crate::support::{Copy, npy, npy_f64, public_case};
use replay::case::Case;
use replay::magnitude::before_cancellation;
use replay::{Options, Report, Verdict, replay};
use std::fs;

fn verdict(copy: &Copy) -> Report {
    replay(&copy.folder, Options::default())
}

#[track_caller]
fn assert_passes(copy: &Copy) {
    let report = verdict(copy);
    assert_eq!(report.verdict, Verdict::Pass, "{report}");
}

#[track_caller]
fn assert_malformed(copy: &Copy, reason: &str) {
    let report = verdict(copy);
    assert_eq!(report.verdict, Verdict::Fail, "{report}");
    assert!(report.details.starts_with("malformed: "), "{report}");
    assert!(report.details.contains(reason), "expected `{reason}` in {report}");
    assert_eq!(report.to_string().lines().count(), 1);
}

#[test]
fn arrays_may_be_of_any_width_and_order() {
    let copy = Copy::of("pytorch/train_4d_5x6x7x3");
    let case = Case::open(&copy.folder).unwrap();
    for name in ["x", "dy"] {
        let values = case.require(name).unwrap();
        let reversed = values.view().reversed_axes();
        let data: Vec<u8> = reversed.iter().flat_map(|value| value.to_le_bytes()).collect();
        copy.write(&format!("{name}.npy"), npy("<f8", true, values.shape(), &data));
    }
    let weight = case.require("weight").unwrap();
    let data: Vec<u8> = weight.iter().flat_map(|&value| (value as f32).to_be_bytes()).collect();
    copy.write("weight.npy", npy(">f4", false, weight.shape(), &data));
    assert_passes(&copy);
}

#[test]
fn sixteen_bit_inputs_may_be_numbers_or_signed_patterns() {
    let copy = Copy::of("pytorch/addrelu_f16");
    let case = Case::open(&copy.folder).unwrap();
    let x = case.require_input("x").unwrap();
    let bits: Vec<u8> = case
        .require("x_f16_bits")
        .unwrap()
        .iter()
        .flat_map(|&pattern| (pattern as u16).to_le_bytes())
        .collect();
    copy.write("x_f16_bits.npy", npy("<i2", false, x.shape(), &bits));
    assert_passes(&copy);
    copy.remove("x_f16_bits.npy");
    copy.write("x.npy", npy("<f2", false, x.shape(), &bits));
    assert_passes(&copy);
    copy.write("x.npy", npy_f64(&x));
    assert_passes(&copy);
}

#[test]
fn a_case_in_f64_runs_in_f64() {
    let copy = Copy::of("pytorch/train_4d_5x6x7x3");
    copy.edit_meta("\"io_dtype\": \"f32\"", "\"io_dtype\": \"torch.float64\"");
    let report = verdict(&copy);
    assert_eq!(report.verdict, Verdict::Pass, "{report}");
    let y = report.details.split(' ').next().unwrap().strip_prefix("y=").unwrap();
    assert!(y.parse::<f64>().unwrap() < 1e-13, "{report}");
}

#[test]
fn what_meta_leaves_out_has_defaults() {
    let copy = Copy::of("pytorch/train_2d_29x11");
    copy.write("meta.json", "{}");
    assert_passes(&copy);
    let copy = Copy::of("pytorch/relu_f16");
    copy.write("meta.json", r#"{"activation": "ReLU", "unheard_of": {"of": [1, NaN, -Infinity]}}"#);
    assert_passes(&copy);
    let copy = Copy::of("pytorch/sequence_momentum_0p1");
    copy.write("meta.json", r#"{"kind": "sequence"}"#);
    assert_passes(&copy);
    let copy = Copy::of("onnx/test_batchnorm_example_training_mode");
    copy.write("meta.json", "{}");
    assert_passes(&copy);
}

#[test]
fn a_null_momentum_is_not_a_missing_one() {
    let copy = Copy::of("pytorch/momentum_none");
    assert_passes(&copy);
    copy.edit_meta("\"momentum\": null,", "");
    let report = verdict(&copy);
    assert_eq!(report.verdict, Verdict::Fail, "{report}");
    assert!(report.details.contains("running_mean_out="), "{report}");
}

#[test]
fn what_is_not_listed_is_not_looked_at() {
    let copy = Copy::of("pytorch/noaffine_notrack");
    copy.write("dweight.npy", "no array");
    copy.write("notes.npy", "no array");
    assert_passes(&copy);
}

#[test]
fn evaluation_without_running_statistics_uses_the_batch() {
    let copy = Copy::of("pytorch/noaffine_notrack");
    copy.edit_meta("\"mode\": \"train\"", "\"mode\": \"eval\"");
    assert_passes(&copy);
    copy.edit_meta("\"uses_batch_stats\": true,", "");
    assert_passes(&copy);
}

#[test]
fn missing_scales_are_computed() {
    for name in ["train_4d_5x6x7x3", "eval_2d_13x21", "noaffine_notrack", "sync3_4_0_2"] {
        let copy = Copy::of(&format!("pytorch/{name}"));
        let case = Case::open(&copy.folder).unwrap();
        for output in ["y", "dx", "dweight", "dbias"] {
            let file = format!("scale_{output}");
            let given = case.require(&file).unwrap();
            let computed = before_cancellation(&case, output).unwrap();
            for (given, computed) in given.iter().zip(&computed) {
                assert!((given / computed - 1.0).abs() < 1e-12, "{name} {output}");
            }
            copy.remove(&format!("{file}.npy"));
        }
        assert_passes(&copy);
    }
}

#[test]
fn other_activations_are_known_by_name() {
    for name in [
        "leaky_relu",
        "LeakyReLU",
        "relu6",
        "sigmoid",
        "tanh",
        "silu",
        "swish",
        "gelu",
        "gelu_tanh",
    ] {
        let copy = Copy::of("pytorch/train_2d_29x11");
        copy.edit_meta("\"activation\": \"none\"", &format!("\"activation\": \"{name}\""));
        let report = verdict(&copy);
        assert!(report.details.contains("y="), "runs, with other values: {report}");
    }
    let copy = Copy::of("pytorch/train_2d_29x11");
    copy.edit_meta("\"activation\": \"none\"", "\"activation\": \"wavelet\"");
    assert_malformed(&copy, "unknown activation `wavelet`");
}

#[test]
fn broken_meta_is_told() {
    let copy = Copy::of("pytorch/train_2d_29x11");
    copy.remove("meta.json");
    assert_malformed(&copy, "meta.json");
    for (text, reason) in [
        ("", "meta.json"),
        ("[1, 2]", "meta.json"),
        ("{\"eps\": 1e-5", "meta.json"),
        ("{\"eps\": \"small\"}", "meta.json"),
        ("{\"kind\": \"double\"}", "meta.json"),
        ("{\"mode\": \"dream\"}", "meta.json"),
        ("{\"io_dtype\": \"f12\"}", "unknown io_dtype `f12`"),
        ("{\"outputs\": [\"z\"]}", "unknown output `z`"),
        ("{\"outputs\": []}", "no expected output"),
        ("{\"outputs\": [\"dresidual\"]}", "dresidual.npy is missing"),
        ("{\"residual\": true}", "residual.npy is missing"),
        ("{\"shape\": [29, 12]}", "meta.shape is [29, 12], found [29, 11]"),
        ("{\"kind\": \"sequence\", \"steps\": 18446744073709551615}", "x_step0.npy is missing"),
        ("{\"kind\": \"sequence\"}", "no expected output"),
        ("{\"kind\": \"sync\"}", "split"),
        ("{\"kind\": \"sync\", \"split\": [20, 8]}", "split"),
        ("{\"kind\": \"sync\", \"split\": [18446744073709551615, 30]}", "split"),
        ("{\"kind\": \"onnx\"}", "npy is missing"),
        ("{\"io_dtype\": \"bf16\", \"outputs\": [\"save_mean\"], \"affine\": 3}", "meta.json"),
    ] {
        copy.write("meta.json", text);
        assert_malformed(&copy, reason);
    }
    copy.write("meta.json", [0xff, 0xfe, 0x00]);
    assert_malformed(&copy, "meta.json");
}

#[test]
fn missing_arrays_are_told() {
    for (case, file) in [
        ("pytorch/train_2d_29x11", "x.npy"),
        ("pytorch/train_2d_29x11", "dy.npy"),
        ("pytorch/train_2d_29x11", "y.npy"),
        ("pytorch/addrelu_f16", "x_f16_bits.npy"),
        ("pytorch/addrelu_f16", "residual_f16_bits.npy"),
        ("pytorch/sync2_6_3", "dweight_rank1.npy"),
        ("pytorch/sequence_momentum_none", "x_step1.npy"),
        ("pytorch/sequence_momentum_none", "y_step2.npy"),
        ("pytorch/sequence_momentum_none", "x_eval.npy"),
        ("onnx/test_batchnorm_epsilon", "var.npy"),
    ] {
        let copy = Copy::of(case);
        copy.remove(file);
        let report = verdict(&copy);
        assert_eq!(report.verdict, Verdict::Fail, "{case} without {file}: {report}");
        assert!(report.details.starts_with("malformed: "), "{report}");
    }
}

#[test]
fn broken_arrays_are_told() {
    let zeros = vec![0; 29 * 11 * 8];
    let huge = npy("<f8", false, &[1 << 40, 1 << 40], &[0; 64]);
    let large = npy("<f8", false, &[1 << 40], &[0; 64]);
    let mut truncated = npy("<f8", false, &[29, 11], &zeros);
    truncated.truncate(200);
    for bytes in [
        Vec::new(),
        b"no array".to_vec(),
        b"\x93NUMPY\x01\x00\xff\xff".to_vec(),
        npy("<f8", false, &[29, 12], &zeros),
        npy("<f8", false, &[29, 10], &zeros),
        npy("<f8", false, &[0, 1 << 62, 1 << 62], &[]),
        npy("<f8", false, &[], &[0; 8]),
        npy("<f8", false, &[319], &zeros),
        npy("<c16", false, &[29, 11], &[0; 29 * 11 * 16]),
        npy("<U2", false, &[29, 11], &zeros),
        npy("|O", false, &[29, 11], &zeros),
        npy("<f16", false, &[29, 11], &[0; 29 * 11 * 16]),
        huge,
        large,
        truncated,
    ] {
        for file in ["x.npy", "y.npy", "weight.npy", "save_mean.npy", "scale_y.npy"] {
            let copy = Copy::of("pytorch/train_2d_29x11");
            copy.write(file, &bytes);
            assert_eq!(
                verdict(&copy).verdict,
                Verdict::Fail,
                "{file}: {:?}",
                &bytes[..bytes.len().min(80)]
            );
        }
    }
}

#[test]
fn scales_must_be_numbers() {
    let copy = Copy::of("pytorch/train_2d_29x11");
    let mut scale = Case::open(&copy.folder).unwrap().require("scale_y").unwrap();
    scale[[4]] = f64::NAN;
    copy.write("scale_y.npy", npy_f64(&scale));
    assert_malformed(&copy, "channel 4");
}

#[test]
fn arrays_that_do_not_fit_each_other_fail() {
    let copy = Copy::of("pytorch/train_2d_29x11");
    copy.write("dy.npy", npy_f64(&ndarray::ArrayD::zeros(vec![28, 11])));
    let report = verdict(&copy);
    assert_eq!(report.verdict, Verdict::Fail);
    assert!(report.details.contains("dy"), "{report}");
}

#[test]
fn no_folder_and_an_empty_one_fail() {
    let empty = tempfile::tempdir().unwrap();
    for folder in
        [empty.path().to_owned(), empty.path().join("nowhere"), public_case("pytorch/README.md")]
    {
        let report = replay(&folder, Options::default());
        assert_eq!(report.verdict, Verdict::Fail, "{report}");
    }
    fs::remove_dir(empty.path()).unwrap();
}
