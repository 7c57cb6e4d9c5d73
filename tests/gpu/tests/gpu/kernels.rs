//! The kernels of a context: loaded once, and known by name.

use crate::{Outcome, PASSED, Test, assert_refused, open, open_beside, test};
use warpnorm::cuda::Launcher;

pub fn tests() -> Vec<Test> {
    vec![
        test("kernels::unknown_ones_are_refused_by_name", unknown_ones_are_refused),
        test("kernels::are_loaded_once", are_loaded_once),
    ]
}

fn unknown_ones_are_refused() -> Outcome {
    let gpu = open()?;
    gpu.launcher().check_kernel("forward_planes_f32x4")?;
    for name in ["no_such_kernel", "nul\0"] {
        let error = format!("looking up the kernel {name:?}: there is none of this name");
        assert_refused(gpu.launcher().check_kernel(name), &error)?;
    }
    PASSED
}

/// For all streams of a context.
fn are_loaded_once() -> Outcome {
    let gpu = open()?;
    let again = open_beside(&gpu)?;
    assert!(gpu.launcher().shares_kernels(again.launcher()));
    assert_eq!(gpu.launcher().facts(), again.launcher().facts());
    PASSED
}
