//! Finding case folders.

use std::fs;
use std::path::{Path, PathBuf};

/// Deeper than anyone nests cases, and an end to links that lead back up.
const MAX_DEPTH: usize = 16;

/// The case folders at or below `path`, in alphabetical order. A path without any is returned
/// itself, so that running it says what is missing.
pub fn find_cases(path: &Path) -> Vec<PathBuf> {
    if path.file_name().is_some_and(|name| name == "meta.json") && path.is_file() {
        return vec![Path::new(".").join(path).with_file_name("")];
    }
    let mut cases = Vec::new();
    collect(path, 0, &mut cases);
    if cases.is_empty() {
        cases.push(path.to_owned());
    }
    cases
}

fn collect(folder: &Path, depth: usize, cases: &mut Vec<PathBuf>) {
    if is_case(folder) {
        cases.push(folder.to_owned());
        return;
    }
    if depth == MAX_DEPTH {
        return;
    }
    for child in children(folder) {
        if child.is_dir() && !is_hidden(&child) {
            collect(&child, depth + 1, cases);
        }
    }
}

/// A folder with arrays and no `meta.json` is a case too: a broken one, and should be told.
fn is_case(folder: &Path) -> bool {
    let is_array = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "npy");
    folder.join("meta.json").exists() || children(folder).iter().any(is_array)
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}
