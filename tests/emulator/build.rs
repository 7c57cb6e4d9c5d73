//! Compiles the emulator and, with the compiler's hooks for its checker, the kernels.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// The example's own kernels.
const TRAIN: &str = "../../examples/train/kernels.cu";

fn main() {
    for path in ["runtime", "kernels", "../../kernels", TRAIN] {
        println!("cargo::rerun-if-changed={path}");
    }
    let target = |what: &str| env::var(format!("CARGO_CFG_TARGET_{what}")).unwrap_or_default();
    let (os, processor) = (target("OS"), target("ARCH"));
    if os != "linux" || !["x86_64", "aarch64"].contains(&processor.as_str()) {
        println!("cargo::warning=no kernel emulator on {os} {processor}: its tests are skipped");
        return;
    }
    println!("cargo::rustc-cfg=emulated");
    println!("cargo::metadata=emulated=true");

    // Above the kernels: a static library is searched for what those before it lack.
    let mut kernels = compiler(1);
    kernels
        .define("WARPNORM_EMULATOR", None)
        .include("../../kernels")
        .include("runtime")
        .flag("-fsanitize=thread")
        .flag("-fsanitize-coverage=trace-pc")
        // Nobody listens to those.
        .flag_if_supported("--param=tsan-instrument-func-entry-exit=0")
        .flag("-fno-exceptions")
        .flag("-Wno-unknown-pragmas")
        // Else nobody asks for them: they make themselves known in static initialisers.
        .link_lib_modifier("+whole-archive")
        .flag("-Wno-unused-function")
        .files(sources("../../kernels", "cu").iter().map(|path| wrapped(path)))
        .files(sources("kernels", "cu").iter().map(|path| wrapped(path)))
        .file(wrapped(Path::new(TRAIN)))
        .compile("warpnorm_kernels");
    println!("cargo::rustc-env=EMULATOR_CXX={}", kernels.get_compiler().path().display());

    compiler(2).files(sources("runtime", "cpp")).compile("warpnorm_emulator");
}

/// A source file that holds a kernel file in a namespace of its own. NVRTC compiles each kernel file
/// by itself; here they meet in one program, where two functions of one name would be taken for the
/// same, silently if they are templates.
fn wrapped(kernels: &Path) -> PathBuf {
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("Cargo sets it"));
    let path = kernels.canonicalize().expect("it was just listed");
    let stem = path.file_stem().expect("a file has one").to_string_lossy();
    let wrapper = folder.join(format!("{stem}.cpp"));
    let text =
        format!("#include \"device.cuh\"\nnamespace {{\n#include \"{}\"\n}}\n", path.display());
    fs::write(&wrapper, text).expect("the build's own folder");
    wrapper
}

/// Optimisation levels do not follow Cargo's profile: counters would change with it.
fn compiler(optimisation: u32) -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(optimisation)
        // Lines for addr2line; all the rest takes twice their space on top.
        .debug(true)
        .flag("-g1")
        .flag("-x")
        .flag("c++")
        .flag("-ffp-contract=off")
        .flag("-Wall")
        .flag("-Wextra");
    build
}

fn sources(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = Path::new(folder).read_dir().expect("the folder is part of the repository");
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a folder that can be read").path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}
