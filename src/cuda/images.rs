//! The kernels as a device takes them: embedded by the build script, or compiled at run time from
//! the sources it embedded, where no image fits and NVRTC is to be found.

use super::cache;
use super::compression::{self, compress, decompress};
use super::jobs::in_parallel;
use super::nvrtc::{Nvrtc, Source};
use super::search::REMEDY;
use super::target::Target;
use crate::error::{Error, Result};
use std::cmp::Reverse;
use std::num::NonZero;
use std::path::Path;
use std::{env, fs, iter, thread};

/// What the build script embeds.
struct Embedded {
    /// NVRTC's version, or why nothing was compiled.
    compiler: std::result::Result<(u32, u32), &'static str>,
    /// All files of `kernels/`.
    sources: &'static [Source<'static>],
    /// Every unit for every target.
    images: &'static [Image],
}

/// One `kernels/*.cu`, compiled for one target.
#[derive(Debug, Clone, Copy)]
pub struct Image {
    /// The file's name without `.cu`.
    pub unit: &'static str,
    /// What it runs on.
    pub target: Target,
    compressed: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// What ptxas said of each kernel: for every embedded cubin a line `# unit target` and its log.
pub const RESOURCES: &str = include_str!(concat!(env!("OUT_DIR"), "/resources.txt"));

/// All kernels, to be loaded into one device.
#[derive(Debug)]
pub struct Modules {
    /// What they are compiled for.
    pub target: Target,
    /// A cubin or PTX text for each unit.
    pub images: Vec<Vec<u8>>,
}

impl Image {
    /// What it adds to the executable.
    pub fn compressed_bytes(&self) -> usize {
        self.compressed.len()
    }

    /// The cubin, or PTX text without a final NUL.
    ///
    /// # Errors
    /// The executable is damaged.
    pub fn decompress(&self) -> Result<Vec<u8>> {
        let what = || format!("the kernels of {} for {}", self.unit, self.target);
        decompress(self.compressed).map_err(|reason| Error::system(what(), reason))
    }
}

/// The version of NVRTC that compiled what is embedded.
///
/// # Errors
/// Nothing is embedded: why, and what to do.
pub fn compiler() -> Result<(u32, u32)> {
    EMBEDDED.compiler.map_err(|reason| {
        Error::system("built without CUDA kernels", format!("{reason}. To have them: {REMEDY}"))
    })
}

/// Everything that is embedded.
pub fn images() -> &'static [Image] {
    EMBEDDED.images
}

/// Why a device did not take kernels.
#[derive(Debug)]
pub enum Refusal {
    /// They are not for it or for its driver. Others may be.
    Unfit(Error),
    /// It would take no others, either.
    Failed(Error),
}

/// What `load` makes of the first kernels for a device of compute capability `capability` (90 is 9.0)
/// that it takes: the embedded ones that fit, best first, then what NVRTC compiles now.
///
/// # Errors
/// No embedded image fits, and none could be compiled now; what the best one was refused for; that
/// loading failed.
pub fn load<T>(
    capability: u32,
    load: impl Fn(Modules) -> std::result::Result<T, Refusal>,
) -> Result<T> {
    let fitting = fitting(EMBEDDED.images.iter().map(|image| image.target), capability);
    let candidates = fitting.into_iter().map(embedded);
    first_taken(candidates.chain(iter::once_with(|| compile_now(capability))), load)
}

/// Of candidates that are all unfit, or not to be had, the first one's reason is told.
fn first_taken<T>(
    candidates: impl Iterator<Item = Result<Modules>>,
    load: impl Fn(Modules) -> std::result::Result<T, Refusal>,
) -> Result<T> {
    let mut first = None;
    for candidate in candidates {
        let error = match candidate.map_err(Refusal::Unfit).and_then(&load) {
            Ok(loaded) => return Ok(loaded),
            Err(Refusal::Failed(error)) => return Err(error),
            Err(Refusal::Unfit(error)) => error,
        };
        first.get_or_insert(error);
    }
    Err(first.expect("what is compiled now is a candidate"))
}

fn embedded(target: Target) -> Result<Modules> {
    let images = EMBEDDED.images.iter().filter(|image| image.target == target);
    Ok(Modules { target, images: images.map(Image::decompress).collect::<Result<_>>()? })
}

fn compile_now(capability: u32) -> Result<Modules> {
    let cache = cache::of_user(|name| env::var_os(name));
    compile(EMBEDDED.sources, capability, cache.as_deref()).map_err(|reason| {
        let build = match EMBEDDED.compiler {
            Ok(_) => "no image of this build fits".to_owned(),
            Err(reason) => format!("the build compiled none ({reason})"),
        };
        Error::system(
            format!("CUDA kernels for compute capability {}", decimal(capability)),
            format!("{build}, and none could be compiled now ({reason}). To have them: {REMEDY}"),
        )
    })
}

/// Kernels of one's own for a device of compute capability `capability` (90 is 9.0), compiled now
/// and cached as those of this library: files ending in `.cu`, and what they include.
///
/// # Errors
/// No NVRTC, or one that does not know the device; a file that does not compile: NVRTC's log.
pub fn compile_sources(sources: &[Source<'_>], capability: u32) -> Result<Modules> {
    let cache = cache::of_user(|name| env::var_os(name));
    compile(sources, capability, cache.as_deref()).map_err(|reason| {
        let what = format!("compiling kernels for compute capability {}", decimal(capability));
        Error::system(what, format!("{reason}. If NVRTC is missing: {REMEDY}"))
    })
}

/// What a device of `capability` may run, best first: machine code for it, machine code for an
/// earlier minor of its major (which NVIDIA does not promise to run on Jetson and DRIVE), PTX; of
/// each the latest.
fn fitting(available: impl Iterator<Item = Target>, capability: u32) -> Vec<Target> {
    let fits = |target: &Target| match *target {
        Target::Sm(of) => of / 10 == capability / 10 && of <= capability,
        Target::Ptx(of) => of <= capability,
    };
    let mut targets: Vec<Target> = available.filter(fits).collect();
    targets.sort_by_key(|target| Reverse((!target.is_ptx(), *target)));
    targets.dedup();
    targets
}

/// `9.0` of 90.
fn decimal(capability: u32) -> String {
    format!("{}.{}", capability / 10, capability % 10)
}

/// Compiles every unit of `sources`, or finds it in the cache.
fn compile(
    sources: &[Source<'_>],
    capability: u32,
    cache: Option<&Path>,
) -> std::result::Result<Modules, String> {
    let nvrtc = Nvrtc::open(|name| env::var_os(name))?;
    let target = best_of(&nvrtc.capabilities()?, capability)
        .ok_or_else(|| format!("this NVRTC does not know {}", decimal(capability)))?;
    let compiler = nvrtc.identity();
    let (units, headers): (Vec<Source<'_>>, Vec<_>) =
        sources.iter().partition(|source| source.name.ends_with(".cu"));
    let image = |unit: &Source<'_>| {
        let file = cache.map(|cache| cache.join(cache::name(*unit, &headers, target, &compiler)));
        if let Some(image) = file.as_deref().and_then(read_cache) {
            return Ok(image);
        }
        let image = nvrtc.compile(*unit, &headers, target)?.image;
        if let Some(file) = &file {
            // A cache that cannot be written only costs the next start this time again.
            let _ = write_cache(file, &image);
        }
        Ok(image)
    };
    // The last names are of the longest units, whose end would else be waited for.
    let units: Vec<_> = units.into_iter().rev().collect();
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let images = in_parallel(&units, threads, image).into_iter().rev();
    Ok(Modules { target, images: images.collect::<std::result::Result<_, String>>()? })
}

/// Machine code for the very device, or where a compiler does not know it, its latest PTX.
fn best_of(supported: &[u32], capability: u32) -> Option<Target> {
    if supported.contains(&capability) {
        return Some(Target::Sm(capability));
    }
    fitting(supported.iter().map(|capability| Target::Ptx(*capability)), capability)
        .first()
        .copied()
}

/// A whole image, or nothing.
fn read_cache(file: &Path) -> Option<Vec<u8>> {
    decompress(&fs::read(file).ok()?).ok()
}

fn write_cache(file: &Path, image: &[u8]) -> std::io::Result<()> {
    cache::write(file, &compress(image, compression::FAST)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Target::{Ptx, Sm};

    fn of(available: &[Target], capability: u32) -> Vec<Target> {
        fitting(available.iter().copied(), capability)
    }

    #[test]
    fn machine_code_for_the_very_device_is_best() {
        let available = [Ptx(90), Sm(80), Sm(90), Sm(80), Sm(90), Ptx(75)];
        assert_eq!(of(&available, 90), [Sm(90), Ptx(90), Ptx(75)]);
    }

    #[test]
    fn an_earlier_minor_of_the_same_major_is_next() {
        assert_eq!(of(&[Sm(80), Sm(86), Sm(89), Ptx(75)], 87), [Sm(86), Sm(80), Ptx(75)]);
        assert_eq!(of(&[Sm(100), Ptx(90)], 103), [Sm(100), Ptx(90)]);
    }

    #[test]
    fn another_major_needs_ptx_the_newest_that_is_not_above() {
        assert_eq!(of(&[Sm(90), Sm(100), Ptx(75), Ptx(90)], 120), [Ptx(90), Ptx(75)]);
        assert_eq!(of(&[Sm(80), Sm(90), Ptx(75), Ptx(90)], 75), [Ptx(75)]);
        assert_eq!(of(&[Sm(89), Ptx(75), Ptx(90)], 86), [Ptx(75)]);
    }

    #[test]
    fn nothing_fits_an_older_device() {
        assert_eq!(of(&[Sm(80), Sm(90), Ptx(75), Ptx(90)], 70), []);
        assert_eq!(of(&[Sm(89)], 86), []);
        assert_eq!(of(&[], 90), []);
    }

    /// As a device refuses machine code that is for its capability, but not for its kind.
    #[test]
    fn what_is_refused_is_followed_by_the_next_best() {
        let refuse_cubins = |modules: Modules| match modules.target {
            Sm(_) => Err(Refusal::Unfit(Error::system("loading", "refused"))),
            target => Ok(target),
        };
        let fit = fitting(images().iter().map(|image| image.target), 90);
        let loaded = load(90, refuse_cubins);
        match (fit.iter().any(|target| target.is_ptx()), fit.is_empty()) {
            (true, _) => assert!(loaded.unwrap().is_ptx()),
            // Then NVRTC is asked, which gives machine code; the first reason is the one to tell.
            (false, false) => assert!(loaded.unwrap_err().to_string().contains("refused")),
            (false, true) => assert!(loaded.is_err()),
        }
    }

    #[test]
    fn only_what_is_unfit_is_followed_by_another() {
        let candidates = || {
            let of = |target| Ok(Modules { target, images: Vec::new() });
            let missing = Err(Error::system("compiling", "no NVRTC"));
            [of(Sm(90)), of(Ptx(90)), of(Ptx(75)), missing].into_iter()
        };
        let unfit = |target| Refusal::Unfit(Error::system(format!("{target}"), "unfit"));
        let outcome = first_taken(candidates(), |modules| match modules.target {
            Ptx(75) => Ok("loaded"),
            target => Err(unfit(target)),
        });
        assert_eq!(outcome, Ok("loaded"));
        let outcome = first_taken(candidates(), |modules| Err::<(), _>(unfit(modules.target)));
        assert_eq!(outcome, Err(Error::system("sm_90", "unfit")));
        let full = Error::out_of_memory("loading", "full");
        let outcome = first_taken(candidates(), |modules| match modules.target {
            Ptx(90) => Err(Refusal::Failed(full.clone())),
            Ptx(75) => Ok(()),
            target => Err(unfit(target)),
        });
        assert_eq!(outcome, Err(full));
    }

    #[test]
    fn a_compiler_that_does_not_know_the_device_gives_ptx() {
        assert_eq!(best_of(&[75, 80, 90], 90), Some(Sm(90)));
        assert_eq!(best_of(&[75, 80, 90], 100), Some(Ptx(90)));
        assert_eq!(best_of(&[75, 80, 90], 70), None);
    }

    #[test]
    fn images_are_whole_or_missing_with_a_reason() {
        match compiler() {
            Ok(_) => {
                images().iter().for_each(|image| assert!(!image.decompress().unwrap().is_empty()))
            }
            Err(error) => {
                assert!(images().is_empty());
                assert!(error.to_string().contains("WARPNORM_NVRTC"), "{error}");
            }
        }
    }

    #[test]
    fn a_damaged_cache_is_no_cache() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("image.lz");
        assert_eq!(read_cache(&file), None);
        write_cache(&file, &[7; 1000]).unwrap();
        assert_eq!(read_cache(&file).unwrap(), [7; 1000]);
        let whole = fs::read(&file).unwrap();
        fs::write(&file, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(read_cache(&file), None);
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        fs::write(&file, flipped).unwrap();
        assert_eq!(read_cache(&file), None);
    }

    const SOURCES: [Source<'static>; 2] = [
        Source { name: "header.h", text: "struct Params { int* out; };" },
        Source {
            name: "unit.cu",
            text: "#include \"header.h\"\n\
                extern \"C\" __global__ void kernel(Params p) { *p.out = 1; }",
        },
    ];

    /// Where there is NVRTC; elsewhere, that its absence is said.
    #[test]
    fn what_is_compiled_at_run_time_is_compiled_once() {
        let cache = tempfile::tempdir().unwrap();
        let modules = match compile(&SOURCES, 90, Some(cache.path())) {
            Ok(modules) => modules,
            Err(reason) => return assert!(reason.contains("no NVRTC"), "{reason}"),
        };
        assert_eq!(modules.target, Sm(90));
        assert!(modules.images[0].starts_with(b"\x7fELF"));
        let [entry] = &fs::read_dir(cache.path()).unwrap().collect::<Vec<_>>()[..] else {
            panic!("not one file in the cache")
        };
        write_cache(&entry.as_ref().unwrap().path(), b"from the cache").unwrap();
        let again = compile(&SOURCES, 90, Some(cache.path())).unwrap();
        assert_eq!(again.images, [b"from the cache"]);
        let unwritable = Path::new("/dev/null/cache");
        assert_eq!(compile(&SOURCES, 90, Some(unwritable)).unwrap().images, modules.images);
    }

    #[test]
    fn without_kernels_the_error_says_why_and_what_to_do() {
        let error = load(10, |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("compute capability 1.0"), "{error}");
        assert!(error.contains("pip install"), "{error}");
    }
}
