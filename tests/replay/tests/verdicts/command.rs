//! The binary: its lines, its summary and its exit status.

use crate::support::{Copy, public_case};
use std::path::Path;
use std::process::{Command, Output};

fn replay(arguments: &[&str], folders: &[&Path]) -> (Output, Vec<String>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replay"));
    let output = command.args(arguments).args(folders).output().unwrap();
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    let lines = stdout.lines().map(str::to_owned).collect();
    (output, lines)
}

#[test]
fn a_folder_of_cases_is_walked_in_either_layout() {
    for layout in ["channels-first", "channels-last"] {
        let arguments = ["--device", "cpu", "--layout", layout];
        let (output, lines) = replay(&arguments, &[&public_case("onnx")]);
        assert_eq!(lines.len(), 10, "{lines:?}");
        assert!(lines[..9].iter().all(|line| line.starts_with("PASS test_")), "{lines:?}");
        assert_eq!(lines[9], "9 passed, 0 failed, 0 skipped");
        assert_eq!(output.status.code(), Some(0));
    }
}

#[test]
fn one_failure_among_many_is_the_exit_status() {
    let copy = Copy::of("pytorch/relu_f32");
    copy.remove("x.npy");
    let folders = [public_case("pytorch/train_2d_29x11"), copy.folder.clone()];
    let (output, lines) = replay(&[], &[&folders[0], &folders[1]]);
    assert!(lines[0].starts_with("PASS train_2d_29x11 y="), "{lines:?}");
    assert_eq!(lines[1], "FAIL relu_f32 malformed: x.npy is missing");
    assert_eq!(lines[2], "1 passed, 1 failed, 0 skipped");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_failing_output_is_named_with_score_and_bar() {
    let copy = Copy::of("pytorch/relu_f32");
    copy.edit_meta("\"activation\": \"relu\"", "\"activation\": \"none\"");
    let (output, lines) = replay(&[], &[&copy.folder]);
    assert!(lines[0].starts_with("FAIL relu_f32 y="), "{lines:?}");
    assert!(lines[0].contains(" above the bar 2.0e-7 (at ["), "{lines:?}");
    assert!(lines[0].contains(" above the bar 4.0e-7 (at ["), "{lines:?}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn no_case_is_an_error() {
    let empty = tempfile::tempdir().unwrap();
    for folder in [empty.path(), &empty.path().join("nowhere")] {
        let (output, lines) = replay(&[], &[folder]);
        assert!(lines[0].starts_with("FAIL "), "{lines:?}");
        assert_eq!(lines[1], "0 passed, 1 failed, 0 skipped");
        assert_eq!(output.status.code(), Some(1));
    }
    assert_eq!(replay(&[], &[]).0.status.code(), Some(2));
    let wrong = replay(&["--layout", "sideways"], &[&public_case("onnx")]).0;
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn the_path_of_a_meta_json_stands_for_its_folder() {
    let (output, lines) = replay(&[], &[&public_case("pytorch/eps_1em2/meta.json")]);
    assert!(lines[0].starts_with("PASS eps_1em2 "), "{lines:?}");
    assert_eq!(output.status.code(), Some(0));
}
