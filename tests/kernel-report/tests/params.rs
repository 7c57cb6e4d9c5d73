//! `src/cuda/params.rs` is what bindgen makes of `kernels/params.h`. Needs libclang: where it is
//! not to be loaded the test is listed as ignored. With `WARPNORM_WRITE_PARAMS=1` the file is
//! written instead.

use bindgen::callbacks::{DeriveInfo, ParseCallbacks};
use libtest_mimic::{Arguments, Failed, Trial};
use std::path::Path;
use std::process::ExitCode;

/// Launches pass the struct as bytes, which it must have no gaps for.
#[derive(Debug)]
struct AsBytes;

impl ParseCallbacks for AsBytes {
    fn add_derives(&self, info: &DeriveInfo<'_>) -> Vec<String> {
        if info.name == "Params" { vec!["bytemuck::NoUninit".to_owned()] } else { vec![] }
    }
}

fn bindings(root: &Path) -> Result<String, Failed> {
    let bindings = bindgen::Builder::default()
        .header(root.join("kernels/params.h").display().to_string())
        .parse_callbacks(Box::new(AsBytes))
        .use_core()
        .derive_default(true)
        .layout_tests(false)
        .formatter(bindgen::Formatter::Prettyplease)
        .generate()?;
    Ok(bindings.to_string())
}

fn checked_in_file_is_up_to_date() -> Result<(), Failed> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (file, made) = (root.join("src/cuda/params.rs"), bindings(&root)?);
    if std::env::var_os("WARPNORM_WRITE_PARAMS").is_some() {
        std::fs::write(&file, made)?;
        return Ok(());
    }
    // The version of bindgen, in the first line, may differ.
    let body = |text: &str| text.lines().skip(1).collect::<String>();
    let found = std::fs::read_to_string(&file)?;
    if body(&found) == body(&made) {
        return Ok(());
    }
    let remedy = "WARPNORM_WRITE_PARAMS=1 cargo test -p kernel-report --test params";
    Err(format!("src/cuda/params.rs is not what bindgen makes of kernels/params.h: {remedy}")
        .into())
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let libclang = clang_sys::load();
    let name = "params_rs_is_made_of_params_h";
    let trial = Trial::test(name, checked_in_file_is_up_to_date)
        .with_ignored_flag(libclang.is_err())
        .with_kind(if libclang.is_err() { "no libclang" } else { "" });
    libtest_mimic::run(&arguments, vec![trial]).exit_code()
}
