//! The build script's work: `kernels/*.cu` compiled for each target, compressed, and written to
//! `OUT_DIR` for `src/cuda/images.rs` to include. What an earlier build has compiled is not compiled
//! again.
//!
//! | variable | |
//! | --- | --- |
//! | `WARPNORM_NVRTC` | libnvrtc.so or its directory; unset: see `src/cuda/search.rs` |
//! | `WARPNORM_CUDA_ARCHS` | what to compile for, e.g. `80,90,ptx90`; unset: `target::DEFAULT` |
//! | `WARPNORM_REQUIRE_CUDA` | `1`: no NVRTC is an error, not a warning |
//! | `WARPNORM_BUILD_REPORT` | `1`: show times and sizes |

use super::cache;
use super::compression::{self, compress, decompress};
use super::jobs::in_parallel;
use super::nvrtc::{Compiled, Identity, Nvrtc, Source};
use super::search::{REMEDY, VARIABLES, watched};
use super::target::{Target, requested};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs};

const ARCHITECTURES: &str = "WARPNORM_CUDA_ARCHS";
const REQUIRE: &str = "WARPNORM_REQUIRE_CUDA";
const REPORT: &str = "WARPNORM_BUILD_REPORT";
const DOCS_RS: &str = "DOCS_RS";

/// A file of `kernels/`.
struct File {
    name: String,
    text: String,
}

impl File {
    fn source(&self) -> Source<'_> {
        Source { name: &self.name, text: &self.text }
    }

    /// A compilation unit, as opposed to a header.
    fn is_unit(&self) -> bool {
        self.name.ends_with(".cu")
    }

    /// A unit's name without `.cu`.
    fn stem(&self) -> &str {
        self.name.trim_end_matches(".cu")
    }
}

/// One unit compiled for one target.
struct Image<'a> {
    unit: &'a str,
    target: Target,
    compressed: Vec<u8>,
    bytes: usize,
    log: String,
    /// What compiling it took, if an earlier build has not done so.
    time: Option<Duration>,
}

impl Image<'_> {
    fn file_name(&self) -> String {
        format!("{}.{}.lz", self.unit, self.target)
    }
}

/// Compiles what can be compiled and writes `OUT_DIR/images.rs`.
///
/// # Errors
/// A kernel that does not compile, a request that cannot be met, no NVRTC though it is required.
pub fn embed() -> Result<(), String> {
    declare_inputs();
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let files = read_files(Path::new("kernels"))?;
    let start = Instant::now();
    match open_compiler()? {
        Ok(nvrtc) => {
            let version = nvrtc.identity().version;
            let images = compile(&nvrtc, &files, &cache::of_build(&out))?;
            warn_of(&images);
            report(&out, version, &images, start.elapsed())?;
            write_images(&out, &images)?;
            write_table(&out, &files, &images, &Ok(version))
        }
        Err(reason) => {
            write(&out.join("resources.txt"), "")?;
            write_table(&out, &files, &[], &Err(reason))
        }
    }
}

fn declare_inputs() {
    let shared = ["cache", "compression", "jobs", "nvrtc", "search", "target"];
    let shared = shared.map(|name| format!("src/cuda/{name}.rs"));
    for path in ["build", "kernels"].into_iter().chain(shared.iter().map(String::as_str)) {
        println!("cargo::rerun-if-changed={path}");
    }
    for variable in [ARCHITECTURES, REQUIRE, REPORT, DOCS_RS].iter().chain(&VARIABLES) {
        println!("cargo::rerun-if-env-changed={variable}");
    }
}

/// Units and headers, sorted by name so that nothing depends on the file system's order.
fn read_files(directory: &Path) -> Result<Vec<File>, String> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(Vec::new()) };
    let is_source = |path: &PathBuf| {
        path.extension().is_some_and(|extension| ["cu", "cuh", "h"].iter().any(|e| extension == *e))
    };
    let mut paths: Vec<_> = entries.flatten().map(|e| e.path()).filter(is_source).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(File { name, text })
    };
    paths.into_iter().map(read).collect()
}

/// NVRTC, or the reason why there is none; an error only where it is required.
fn open_compiler() -> Result<Result<Nvrtc, String>, String> {
    if flag(DOCS_RS) {
        return Ok(Err("docs.rs compiles no kernels".into()));
    }
    let reason = match Nvrtc::open(|name| env::var_os(name)) {
        Ok(nvrtc) => {
            // A path that is not there would have cargo build anew each time.
            if nvrtc.path().exists() {
                println!("cargo::rerun-if-changed={}", nvrtc.path().display());
            }
            return Ok(Ok(nvrtc));
        }
        Err(reason) => reason,
    };
    for place in watched(|name| env::var_os(name)) {
        println!("cargo::rerun-if-changed={}", place.display());
    }
    if flag(REQUIRE) {
        return Err(format!("{REQUIRE} is set: {reason}. Remedy: {REMEDY}"));
    }
    println!("cargo::warning=built without CUDA kernels: {reason}. To have them: {REMEDY}");
    Ok(Err(reason))
}

fn flag(variable: &str) -> bool {
    env::var_os(variable).is_some_and(|value| !value.is_empty() && value != "0")
}

/// Every unit for every target, on as many threads as cargo grants. In the order of their names,
/// whichever is ready first.
fn compile<'a>(nvrtc: &Nvrtc, files: &'a [File], cache: &Path) -> Result<Vec<Image<'a>>, String> {
    let request = env::var(ARCHITECTURES).ok().filter(|request| !request.is_empty());
    let targets = requested(request.as_deref(), &nvrtc.capabilities()?)
        .map_err(|error| format!("{ARCHITECTURES}: {error}"))?;
    let (units, headers): (Vec<_>, Vec<_>) = files.iter().partition(|file| file.is_unit());
    let headers: Vec<_> = headers.into_iter().map(File::source).collect();
    let compiler = Compiler { nvrtc, identity: nvrtc.identity(), headers: &headers, cache };
    let capabilities: BTreeSet<_> = targets.iter().map(|target| target.capability()).collect();
    // The last names are of the longest units, whose end would else be waited for.
    let jobs: Vec<_> = units
        .iter()
        .rev()
        .flat_map(|unit| capabilities.iter().map(move |capability| (*unit, *capability)))
        .collect();
    let threads = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let compiled = in_parallel(&jobs, threads, |(unit, capability)| {
        // One compilation gives both: machine code, which is first, is made of PTX.
        let of_it = targets.iter().copied().filter(|target| target.capability() == *capability);
        compiler.images(unit, &of_it.collect::<Vec<_>>())
    });
    let mut images: Vec<_> =
        compiled.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
    images.sort_by_key(|image| (image.unit, image.target));
    Ok(images)
}

/// NVRTC, what it needs beside a unit, and what it has compiled before.
struct Compiler<'a> {
    nvrtc: &'a Nvrtc,
    identity: Identity,
    headers: &'a [Source<'a>],
    cache: &'a Path,
}

impl Compiler<'_> {
    /// A unit for targets of one compute capability.
    fn images<'a>(&self, unit: &'a File, targets: &[Target]) -> Result<Vec<Image<'a>>, String> {
        let known: Option<Vec<_>> =
            targets.iter().map(|target| self.known(unit, *target)).collect();
        match known {
            Some(images) => Ok(images),
            None => self.compile(unit, targets),
        }
    }

    fn compile<'a>(&self, unit: &'a File, targets: &[Target]) -> Result<Vec<Image<'a>>, String> {
        let start = Instant::now();
        let first = targets[0];
        let compiled = self
            .nvrtc
            .compile(unit.source(), self.headers, first)
            .map_err(|error| format!("kernels/{} for {first}: {error}", unit.name))?;
        let Compiled { image, ptx, log } = compiled;
        let image_of = |target: Target| {
            let (image, log) =
                if target == first { (&image, log.clone()) } else { (&ptx, String::new()) };
            let compressed = compress(image, compression::BEST)
                .map_err(|error| format!("compressing {}: {error}", unit.name))?;
            let (bytes, time) = (image.len(), Some(start.elapsed()));
            let image = Image { unit: unit.stem(), target, compressed, bytes, log, time };
            self.remember(unit, &image);
            Ok(image)
        };
        targets.iter().copied().map(image_of).collect()
    }

    /// Where an image is kept; what the compilers said of it lies beside.
    fn place(&self, unit: &File, target: Target) -> PathBuf {
        self.cache.join(cache::name(unit.source(), self.headers, target, &self.identity))
    }

    /// What an earlier build has left, if it is whole.
    fn known<'a>(&self, unit: &'a File, target: Target) -> Option<Image<'a>> {
        let place = self.place(unit, target);
        let log = fs::read_to_string(place.with_extension("log")).ok()?;
        let compressed = fs::read(place).ok()?;
        let bytes = decompress(&compressed).ok()?.len();
        Some(Image { unit: unit.stem(), target, compressed, bytes, log, time: None })
    }

    fn remember(&self, unit: &File, image: &Image<'_>) {
        let place = self.place(unit, image.target);
        // What cannot be kept only costs the next build this time again.
        let _ = cache::write(&place.with_extension("log"), image.log.as_bytes())
            .and_then(|()| cache::write(&place, &image.compressed));
    }
}

/// What the compilers complain of, spilled registers above all; once, not for each target.
fn warn_of(images: &[Image<'_>]) {
    let lines = images.iter().flat_map(|image| image.log.lines());
    let warnings: BTreeSet<_> = lines.filter(|line| line.contains("warning")).collect();
    for warning in warnings {
        println!("cargo::warning={warning}");
    }
}

/// Times and sizes in `report.txt`, which differ from build to build; in `resources.txt` what
/// ptxas says of each kernel, which does not.
fn report(
    out: &Path,
    (major, minor): (u32, u32),
    images: &[Image<'_>],
    time: Duration,
) -> Result<(), String> {
    let bytes: usize = images.iter().map(|image| image.bytes).sum();
    let compressed: usize = images.iter().map(|image| image.compressed.len()).sum();
    let mut report = format!(
        "NVRTC {major}.{minor}: {} images in {:.2} s, {bytes} bytes, {compressed} compressed\n",
        images.len(),
        time.as_secs_f64()
    );
    let mut resources = String::new();
    for Image { unit, target, compressed, bytes, log, time } in images {
        let time = time.map_or("as before".into(), |time| format!("{:.2} s", time.as_secs_f64()));
        let compressed = compressed.len();
        let _ = writeln!(report, "{unit} {target}: {time}, {bytes} bytes, {compressed} compressed");
        let _ = writeln!(resources, "# {unit} {target}");
        for line in log.lines().filter(|line| !line.contains("Compile time")) {
            let _ = writeln!(resources, "{line}");
        }
    }
    if flag(REPORT) {
        report.lines().for_each(|line| println!("cargo::warning={line}"));
    }
    write(&out.join("report.txt"), &report)?;
    write(&out.join("resources.txt"), &resources)
}

fn write_images(out: &Path, images: &[Image<'_>]) -> Result<(), String> {
    images.iter().try_for_each(|image| write(&out.join(image.file_name()), &image.compressed))
}

/// `images.rs`: the constant that `src/cuda/images.rs` declares the types of.
fn write_table(
    out: &Path,
    files: &[File],
    images: &[Image<'_>],
    compiler: &Result<(u32, u32), String>,
) -> Result<(), String> {
    let mut table = format!("static EMBEDDED: Embedded = Embedded {{\ncompiler: {compiler:?},\n");
    table += "sources: &[\n";
    for File { name, .. } in files {
        let path = format!("concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/kernels/{name}\")");
        let _ = writeln!(table, "Source {{ name: {name:?}, text: include_str!({path}) }},");
    }
    table += "],\nimages: &[\n";
    for image in images {
        let (unit, target, file) = (image.unit, image.target, image.file_name());
        let _ = writeln!(
            table,
            "Image {{ unit: {unit:?}, target: Target::{target:?}, compressed: include_bytes!({file:?}) }},"
        );
    }
    table += "],\n};\n";
    write(&out.join("images.rs"), &table)
}

fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<(), String> {
    fs::write(path, contents).map_err(|error| format!("{}: {error}", path.display()))
}
