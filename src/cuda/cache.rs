//! What NVRTC has compiled before, in files that can be made again. Shared by the build script and
//! the library.

// Each side uses its part.
#![allow(dead_code)]

use super::nvrtc::{self, Identity, Source};
use super::target::Target;
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::{fs, io, process};

/// The user's directory, for what is compiled at run time.
pub fn of_user(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let directory =
        |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let user = if cfg!(windows) {
        directory("LOCALAPPDATA")
    } else {
        directory("XDG_CACHE_HOME").or_else(|| directory("HOME").map(|home| home.join(".cache")))
    };
    user.map(|user| user.join("warpnorm"))
}

/// Cargo's target directory, for what the build compiles, so that profiles share it; the build
/// script's own directory `out` where that is not below one that cargo has marked as its own.
pub fn of_build(out: &Path) -> PathBuf {
    let target = out.ancestors().find(|directory| directory.join("CACHEDIR.TAG").is_file());
    target.unwrap_or(out).join("warpnorm-kernels")
}

/// The name of a unit's image for one target, which changes with whatever the image depends on.
pub fn name(
    unit: Source<'_>,
    headers: &[Source<'_>],
    target: Target,
    compiler: &Identity,
) -> String {
    let mut hasher = DefaultHasher::new();
    for source in headers.iter().chain([&unit]) {
        (source.name, source.text).hash(&mut hasher);
    }
    (nvrtc::options(target), compiler).hash(&mut hasher);
    format!("{}.{target}.{:016x}.lz", unit.name.trim_end_matches(".cu"), hasher.finish())
}

/// Written beside its place and moved there, so that another process sees all of it or nothing.
///
/// # Errors
/// The file system's.
pub fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)?;
    }
    let unfinished = file.with_extension(format!("{}.tmp", process::id()));
    fs::write(&unfinished, bytes)?;
    fs::rename(&unfinished, file).inspect_err(|_| drop(fs::remove_file(&unfinished)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Target::{Ptx, Sm};

    #[test]
    fn the_cache_gives_back_what_was_put_in() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("below/image.lz");
        write(&file, b"an image").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"an image");
        let left: Vec<_> = fs::read_dir(file.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_an_error_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let occupied = directory.path().join("occupied");
        fs::write(&occupied, "a file").unwrap();
        assert!(write(&occupied.join("image.lz"), b"an image").is_err());
    }

    const UNIT: Source<'static> = Source { name: "unit.cu", text: "#include \"header.h\"" };
    const HEADER: Source<'static> = Source { name: "header.h", text: "struct Params {};" };

    #[test]
    fn names_tell_what_they_depend_on_apart() {
        let compiler = Identity { version: (12, 9), file: None };
        let of = |unit, header, target| name(unit, &[header], target, &compiler);
        let mine = of(UNIT, HEADER, Sm(90));
        assert!(mine.starts_with("unit.sm_90."), "{mine}");
        let edited = "struct Params { int *out; };";
        let others = [
            of(Source { name: "other.cu", ..UNIT }, HEADER, Sm(90)),
            of(Source { text: "", ..UNIT }, HEADER, Sm(90)),
            of(UNIT, Source { text: edited, ..HEADER }, Sm(90)),
            of(UNIT, HEADER, Ptx(90)),
            name(UNIT, &[], Sm(90), &compiler),
            name(UNIT, &[HEADER], Sm(90), &Identity { version: (13, 0), file: None }),
        ];
        assert!(!others.contains(&mine));
        assert_eq!(of(UNIT, HEADER, Sm(90)), mine);
    }

    #[test]
    fn profiles_share_a_cache_where_cargo_has_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        let out = |profile: &str| target.join(profile).join("build/warpnorm-0123456789abcdef/out");
        assert_eq!(of_build(&out("debug")), out("debug").join("warpnorm-kernels"));
        fs::create_dir_all(&target).unwrap();
        fs::write(target.join("CACHEDIR.TAG"), "").unwrap();
        assert_eq!(of_build(&out("debug")), target.join("warpnorm-kernels"));
        assert_eq!(of_build(&out("debug")), of_build(&out("x86_64-unknown-linux-gnu/release")));
    }

    #[cfg(unix)]
    #[test]
    fn the_users_cache_lies_where_users_expect_it() {
        let of = |set: &'static str, to: &'static str| {
            of_user(move |name| (name == set).then(|| to.into()))
        };
        assert_eq!(of("XDG_CACHE_HOME", "/cache"), Some("/cache/warpnorm".into()));
        assert_eq!(of("HOME", "/home/me"), Some("/home/me/.cache/warpnorm".into()));
        assert_eq!(of("XDG_CACHE_HOME", "relative"), None);
        assert_eq!(of("OTHER", "/x"), None);
    }
}
