//! Where NVRTC may be. Shared by the build script and the library; opens nothing.

use std::cmp::Reverse;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

/// A library, or the directory it lies in. When set, nothing else is searched.
pub const EXPLICIT: &str = "WARPNORM_NVRTC";

const TOOLKITS: [&str; 2] = ["CUDA_HOME", "CUDA_PATH"];
const ENVIRONMENTS: [&str; 2] = ["VIRTUAL_ENV", "CONDA_PREFIX"];

/// Every environment variable that the search reads.
pub const VARIABLES: [&str; 5] =
    [EXPLICIT, TOOLKITS[0], TOOLKITS[1], ENVIRONMENTS[0], ENVIRONMENTS[1]];

/// What to tell people who have no NVRTC.
pub const REMEDY: &str = "install NVRTC in the active virtual environment \
    (pip install 'nvidia-cuda-nvrtc-cu12==12.9.*') or with the CUDA toolkit, \
    or set WARPNORM_NVRTC to libnvrtc.so or to its directory";

/// Before all others, wherever several lie beside each other: its machine code loads on drivers of
/// CUDA 12 and 13, that of NVRTC 13 is not known to load on 12.
const PREFERRED_MAJOR: u32 = 12;

/// The names that the loader's own search is asked for.
const NAMES: [&str; 3] = ["libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so"];

/// Libraries that may be NVRTC, best first: paths of files that exist, then bare names for the
/// loader. `variable` reads the environment.
pub fn candidates(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(explicit) = path(EXPLICIT) {
        return if explicit.is_dir() { libraries(&explicit) } else { vec![explicit] };
    }
    let mut directories = Vec::new();
    directories.extend(TOOLKITS.iter().filter_map(|name| path(name)).flat_map(in_toolkit));
    directories.extend(ENVIRONMENTS.iter().filter_map(|name| path(name)).flat_map(in_environment));
    directories.extend(in_toolkit("/usr/local/cuda".into()));
    let files = directories.iter().flat_map(|directory| libraries(directory));
    files.chain(NAMES.map(PathBuf::from)).collect()
}

fn in_toolkit(root: PathBuf) -> Vec<PathBuf> {
    let target = if cfg!(target_arch = "aarch64") { "sbsa-linux" } else { "x86_64-linux" };
    vec![root.join("lib64"), root.join("lib"), root.join("targets").join(target).join("lib")]
}

/// Python wheels' directories, NVRTC 12 first (see [`PREFERRED_MAJOR`]), then where conda's own packages
/// put libraries.
fn in_environment(root: PathBuf) -> Vec<PathBuf> {
    let lib = root.join("lib");
    let mut pythons = entries(&lib, "python3");
    pythons.sort();
    let wheels = pythons.iter().map(|python| python.join("site-packages/nvidia"));
    let mut directories: Vec<PathBuf> = wheels
        .flat_map(|nvidia| [nvidia.join("cuda_nvrtc/lib"), nvidia.join("cu13/lib")])
        .collect();
    directories.push(lib);
    directories
}

/// NVRTC's files in a directory: those of the preferred major, then the others, newest first.
fn libraries(directory: &Path) -> Vec<PathBuf> {
    let mut files = entries(directory, "libnvrtc.so");
    let rank = |version: Vec<u32>| (version.first() == Some(&PREFERRED_MAJOR), version);
    files.sort_by_key(|file| Reverse(rank(version(file))));
    files
}

/// Places that are there, and that change when NVRTC is installed where the search goes: for a
/// build without it to notice. Cargo looks at all that is below a directory, so none is large; and
/// it builds anew each time where a path is not there, so such places go unwatched.
#[allow(dead_code, reason = "the build script's")]
pub fn watched(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut places = Vec::new();
    match path(EXPLICIT) {
        Some(explicit) => places.push(explicit),
        None => {
            places.extend(TOOLKITS.iter().filter_map(|name| path(name)).flat_map(in_toolkit));
            let environments = ENVIRONMENTS.iter().filter_map(|name| path(name));
            places.extend(environments.flat_map(changed_by_installing));
            places.extend(in_toolkit("/usr/local/cuda".into()));
            // What the loader finds: packages of the system have it written anew.
            places.push("/etc/ld.so.cache".into());
        }
    }
    places.retain(|place| place.exists());
    places
}

/// Where pip puts packages, and what conda writes down each time.
fn changed_by_installing(root: PathBuf) -> Vec<PathBuf> {
    let packages = entries(&root.join("lib"), "python3").into_iter().map(|python| {
        let packages = python.join("site-packages");
        let nvidia = packages.join("nvidia");
        if nvidia.exists() { nvidia } else { packages }
    });
    packages.chain([root.join("conda-meta/history")]).collect()
}

/// `libnvrtc-builtins` beside NVRTC. NVRTC looks for it by bare name when it first compiles, and
/// finds it only if it is in the loader's path, or loaded already.
pub fn builtins(nvrtc: &Path) -> Option<PathBuf> {
    let directory = nvrtc.parent().filter(|directory| !directory.as_os_str().is_empty())?;
    let major = version(nvrtc).first().copied();
    let mut files = entries(directory, "libnvrtc-builtins.so");
    files.sort_by_key(|file| Reverse(version(file)));
    let fitting =
        files.iter().find(|file| major.is_none() || version(file).first().copied() == major);
    fitting.or(files.first()).cloned()
}

fn entries(directory: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.filter(|path| name(path).starts_with(prefix)).collect()
}

/// `[12, 9]` of `libnvrtc.so.12.9`; empty without a version.
fn version(file: &Path) -> Vec<u32> {
    let name = name(file);
    let (_, digits) = name.split_once(".so.").unwrap_or_default();
    digits.split('.').map_while(|part| part.parse().ok()).collect()
}

fn name(path: &Path) -> String {
    path.file_name().map(OsStr::to_string_lossy).unwrap_or_default().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    /// A directory tree of empty files.
    fn tree(files: &[&str]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        root
    }

    /// What is found below `root` with some variables set to folders in it.
    fn found(root: &TempDir, variables: &[(&str, &str)]) -> Vec<String> {
        let set = |name: &str| {
            let (_, folder) = variables.iter().find(|(variable, _)| *variable == name)?;
            Some(root.path().join(folder).into_os_string())
        };
        let paths = candidates(set);
        let below = paths.iter().filter_map(|path| path.strip_prefix(root.path()).ok());
        below.map(|path| path.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn an_explicit_directory_is_all_that_is_searched() {
        let root = tree(&["here/libnvrtc.so.12", "toolkit/lib64/libnvrtc.so.13"]);
        let variables = [("WARPNORM_NVRTC", "here"), ("CUDA_HOME", "toolkit")];
        assert_eq!(found(&root, &variables), ["here/libnvrtc.so.12"]);
    }

    #[test]
    fn an_explicit_file_is_taken_though_it_is_not_there() {
        let set = |name: &str| (name == EXPLICIT).then(|| OsString::from("/no/such/file.so"));
        assert_eq!(candidates(set), [PathBuf::from("/no/such/file.so")]);
    }

    #[test]
    fn an_explicit_directory_without_nvrtc_has_nothing() {
        let root = tree(&["here/libother.so", "toolkit/lib64/libnvrtc.so.13"]);
        let variables = [("WARPNORM_NVRTC", "here"), ("CUDA_HOME", "toolkit")];
        assert!(found(&root, &variables).is_empty());
    }

    #[test]
    fn toolkits_come_before_environments() {
        let wheel = "venv/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13";
        let root = tree(&["toolkit/lib64/libnvrtc.so.12", "path/lib/libnvrtc.so.12", wheel]);
        let variables = [("VIRTUAL_ENV", "venv"), ("CUDA_PATH", "path"), ("CUDA_HOME", "toolkit")];
        let expected = ["toolkit/lib64/libnvrtc.so.12", "path/lib/libnvrtc.so.12", wheel];
        assert_eq!(found(&root, &variables), expected);
    }

    #[test]
    fn both_layouts_of_wheels_are_found_and_twelve_is_preferred() {
        let nvidia = "venv/lib/python3.11/site-packages/nvidia";
        let thirteen = format!("{nvidia}/cu13/lib/libnvrtc.so.13");
        let twelve = format!("{nvidia}/cuda_nvrtc/lib/libnvrtc.so.12");
        let root = tree(&[&thirteen, &twelve]);
        assert_eq!(found(&root, &[("VIRTUAL_ENV", "venv")]), [twelve, thirteen]);
    }

    #[test]
    fn conda_packages_are_found_and_twelve_is_preferred() {
        let files = ["libnvrtc.so.12.9.86", "libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so"];
        let files = files.map(|file| format!("conda/lib/{file}"));
        let root = tree(&[&files[3], &files[0], &files[2], &files[1]]);
        assert_eq!(found(&root, &[("CONDA_PREFIX", "conda")]), files);
    }

    /// What is watched below `root` with some variables set to folders in it.
    fn watched_in(root: &TempDir, variables: &[(&str, &str)]) -> Vec<String> {
        let set = |name: &str| {
            let (_, folder) = variables.iter().find(|(variable, _)| *variable == name)?;
            Some(root.path().join(folder).into_os_string())
        };
        let places = watched(set);
        assert!(places.iter().all(|place| place.exists()), "{places:?}");
        let below = places.iter().filter_map(|path| path.strip_prefix(root.path()).ok());
        below.map(|path| path.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn where_it_may_be_installed_is_watched_as_far_as_it_is_there() {
        let variables = [("CUDA_HOME", "cuda"), ("VIRTUAL_ENV", "venv"), ("CONDA_PREFIX", "conda")];
        let packages = "venv/lib/python3.12/site-packages";
        let root = tree(&[&format!("{packages}/pip/__init__.py"), "conda/conda-meta/history"]);
        assert_eq!(watched_in(&root, &variables), [packages, "conda/conda-meta/history"]);
        let nvidia = format!("{packages}/nvidia");
        let root = tree(&[&format!("{nvidia}/cublas/lib/libcublas.so"), "cuda/lib64/other.so"]);
        assert_eq!(watched_in(&root, &variables), ["cuda/lib64", &nvidia]);
        let explicit = [("WARPNORM_NVRTC", "cuda/lib64"), variables[1]];
        assert_eq!(watched_in(&root, &explicit), ["cuda/lib64"]);
        assert!(watched_in(&root, &[("WARPNORM_NVRTC", "nowhere")]).is_empty());
    }

    #[test]
    fn only_nvrtc_itself_counts_newest_first() {
        let root = tree(&[
            "lib/libnvrtc.so",
            "lib/libnvrtc.so.9",
            "lib/libnvrtc.so.12",
            "lib/libnvrtc.alt.so.12",
            "lib/libnvrtc-builtins.so.12.9",
        ]);
        let expected = ["lib/libnvrtc.so.12", "lib/libnvrtc.so.9", "lib/libnvrtc.so"];
        assert_eq!(found(&root, &[("WARPNORM_NVRTC", "lib")]), expected);
    }

    #[test]
    fn the_loader_is_asked_last() {
        let paths = candidates(|_| None);
        assert_eq!(paths[paths.len() - NAMES.len()..], NAMES.map(PathBuf::from));
    }

    #[test]
    fn builtins_lie_beside_nvrtc_and_fit_it() {
        let root = tree(&[
            "libnvrtc.so.12",
            "libnvrtc-builtins.so.13.0",
            "libnvrtc-builtins.so.12.9",
            "libnvrtc-builtins.so.12.10",
        ]);
        let builtins = builtins(&root.path().join("libnvrtc.so.12"));
        assert_eq!(builtins, Some(root.path().join("libnvrtc-builtins.so.12.10")));
    }

    #[test]
    fn a_bare_name_has_no_neighbours() {
        assert_eq!(builtins(Path::new("libnvrtc.so.12")), None);
    }
}
