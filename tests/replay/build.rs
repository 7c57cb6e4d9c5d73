//! Sets `emulated` where the crate `emulator` is not empty.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("DEP_WARPNORM_EMULATOR_EMULATED").is_some() {
        println!("cargo::rustc-cfg=emulated");
    }
}
