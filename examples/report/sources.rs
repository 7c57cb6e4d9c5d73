//! Reads what was measured: Criterion's folders and the files of the peers.

use crate::id::{Id, Pass};
use crate::join::{Measured, Peer};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A file that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct SourceError {
    path: PathBuf,
    reason: String,
}

/// `path` cannot be used because of `reason`.
pub fn unusable(path: &Path, reason: impl Display) -> SourceError {
    SourceError { path: path.to_owned(), reason: reason.to_string() }
}

/// What Criterion measured, and when.
#[derive(Debug)]
pub struct Ours {
    pub results: Vec<Measured>,
    pub oldest: SystemTime,
    pub newest: SystemTime,
}

#[derive(Deserialize)]
struct Benchmark {
    full_id: String,
}

#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
}

#[derive(Deserialize)]
struct PeerFile {
    peer: Option<String>,
    device: String,
    versions: BTreeMap<String, String>,
    foreign_cpu_share: Option<f64>,
    results: Vec<PeerResult>,
}

#[derive(Deserialize)]
struct PeerResult {
    id: String,
    median_ns: f64,
}

/// The latest run of each of our benchmarks under Criterion's folder; other groups are not ours.
pub fn read_criterion(directory: &Path) -> Result<Ours, SourceError> {
    let mut ours: Option<Ours> = None;
    for folder in latest_runs(directory)? {
        let description = folder.join("benchmark.json");
        let Benchmark { full_id } = read_json(&description)?;
        let group = full_id.split('/').next().unwrap_or_default();
        if group.parse::<Pass>().is_err() {
            continue;
        }
        let id = full_id.parse().map_err(|reason: String| unusable(&description, reason))?;
        let path = folder.join("estimates.json");
        let estimates: Estimates = read_json(&path)?;
        let time = fs::metadata(&path)
            .and_then(|metadata| metadata.modified())
            .map_err(|error| unusable(&path, error))?;
        let result = measured(id, estimates.median.point_estimate, &path)?;
        let ours = ours.get_or_insert(Ours { results: Vec::new(), oldest: time, newest: time });
        ours.results.push(result);
        ours.oldest = ours.oldest.min(time);
        ours.newest = ours.newest.max(time);
    }
    ours.ok_or_else(|| {
        unusable(directory, "no benchmark results here; run `cargo bench --bench cpu` first")
    })
}

/// Folders `new` that hold a `benchmark.json`, at any depth.
fn latest_runs(directory: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let entries = fs::read_dir(directory).map_err(|error| unusable(directory, error))?;
    let mut runs = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| unusable(directory, error))?.path();
        if !path.is_dir() {
            continue;
        }
        if path.ends_with("new") && path.join("benchmark.json").exists() {
            runs.push(path);
        } else {
            runs.extend(latest_runs(&path)?);
        }
    }
    Ok(runs)
}

/// A file of the format that `benches/peers` writes.
pub fn read_peer(path: &Path) -> Result<Peer, SourceError> {
    let file: PeerFile = read_json(path)?;
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let mut results: Vec<Measured> = Vec::new();
    for PeerResult { id, median_ns } in file.results {
        let id: Id = id.parse().map_err(|reason: String| unusable(path, reason))?;
        if results.iter().any(|known| known.id == id) {
            return Err(unusable(path, format_args!("{id} is there twice")));
        }
        results.push(measured(id, median_ns, path)?);
    }
    Ok(Peer {
        name: file.peer.or(stem).unwrap_or_default(),
        device: file.device,
        versions: file.versions,
        foreign_cpu_share: file.foreign_cpu_share,
        results,
    })
}

fn measured(id: Id, median_ns: f64, path: &Path) -> Result<Measured, SourceError> {
    if !(median_ns.is_finite() && median_ns > 0.0) {
        return Err(unusable(
            path,
            format_args!("{id}: expected a time above 0, found {median_ns}"),
        ));
    }
    Ok(Measured { id, median_ns })
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, SourceError> {
    let text = fs::read_to_string(path).map_err(|error| unusable(path, error))?;
    serde_json::from_str(&text).map_err(|error| unusable(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of its own for each test, removed at its end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("warpnorm-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            // A leftover in the temporary folder is no reason to fail.
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const ID: &str = "copy/channels-last/f32/128x100/none/1t";

    #[test]
    fn criterion_folders_are_found_and_foreign_groups_left_alone() {
        let folder = Folder::new("criterion");
        for (name, id) in [("copy/a/new", ID), ("other/b/new", "other/b"), ("copy/a/base", ID)] {
            folder.write(&format!("{name}/benchmark.json"), &format!(r#"{{"full_id":"{id}"}}"#));
            folder
                .write(&format!("{name}/estimates.json"), r#"{"median":{"point_estimate":12.5}}"#);
        }
        let ours = read_criterion(&folder.0).unwrap();
        assert_eq!(ours.results, [Measured { id: ID.parse().unwrap(), median_ns: 12.5 }]);
    }

    #[test]
    fn a_folder_without_results_says_what_to_run() {
        let folder = Folder::new("empty");
        let error = read_criterion(&folder.0).unwrap_err().to_string();
        assert!(error.contains("cargo bench") && error.contains("warpnorm-empty"), "{error}");
    }

    #[test]
    fn a_peer_file_is_read() {
        let folder = Folder::new("peer");
        let text = format!(
            r#"{{"peer":"P","device":"D","versions":{{"p":"1"}},"results":[{{"id":"{ID}","median_ns":3}}]}}"#
        );
        let peer = read_peer(&folder.write("p.json", &text)).unwrap();
        assert_eq!((peer.name.as_str(), peer.device.as_str()), ("P", "D"));
        assert_eq!(peer.results, [Measured { id: ID.parse().unwrap(), median_ns: 3.0 }]);
    }

    #[test]
    fn a_peer_file_that_names_no_peer_is_called_after_itself() {
        let folder = Folder::new("stem");
        let path = folder.write("cudnn.json", r#"{"device":"D","versions":{},"results":[]}"#);
        assert_eq!(read_peer(&path).unwrap().name, "cudnn");
    }

    #[test]
    fn errors_name_the_file_and_the_reason() {
        let folder = Folder::new("errors");
        let result = |id: &str, ns: &str| format!(r#"{{"id":"{id}","median_ns":{ns}}}"#);
        for (name, results, reason) in [
            ("twice.json", format!("{},{}", result(ID, "1"), result(ID, "2")), "twice"),
            ("zero.json", result(ID, "0"), "above 0"),
            ("id.json", result("copy/x", "1"), "identifier"),
            ("cut.json", "{".to_owned(), "line 1"),
        ] {
            let text = format!(r#"{{"device":"D","versions":{{}},"results":[{results}]}}"#);
            let error = read_peer(&folder.write(name, &text)).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(reason), "{error}");
        }
        let error = read_peer(&folder.0.join("absent.json")).unwrap_err().to_string();
        assert!(error.contains("absent.json"), "{error}");
    }
}
