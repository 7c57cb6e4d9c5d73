//! Which files a process has of cuDNN, a library of many that load each other by name.

use std::path::{Path, PathBuf};

/// Of what `/proc/self/maps` says, each once.
pub fn files(maps: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    // Of a line's fields the last alone has a slash.
    for path in maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..]))) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("libcudnn") && !files.iter().any(|known| known == path) {
            files.push(path.to_owned());
        }
    }
    files
}

/// The one that calls go to, where there is but one and the others lie beside it: what two versions do
/// together is no measure of either. `None` where nothing is known of files.
pub fn library(files: &[PathBuf]) -> Result<Option<&Path>, String> {
    let is_entry = |path: &&PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libcudnn.so"))
    };
    let Some(entry) = files.iter().find(is_entry) else { return Ok(None) };
    let is_other =
        |path: &&PathBuf| *path != entry && (is_entry(path) || path.parent() != entry.parent());
    match files.iter().find(is_other) {
        None => Ok(Some(entry)),
        Some(other) => Err(format!(
            "{} and {} are of different installations: LD_LIBRARY_PATH must begin with a directory \
             that has all of one, as libcudnn.so too",
            entry.display(),
            other.display()
        )),
    }
}
