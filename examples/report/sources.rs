//! Reads what was measured: Criterion's folders and the files of the peers.

use crate::files::{PeerFile, PeerResult, RustFile};
use crate::id::{Id, Pass};
use crate::join::{Measured, Peer, fastest};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
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
    /// How often a benchmark was measured at most; the results are the fastest.
    pub rounds: usize,
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

/// The latest run of each of our benchmarks under Criterion's folder, or the fastest where folders of
/// several rounds lie in it; other groups are not ours.
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
        let ours =
            ours.get_or_insert(Ours { results: Vec::new(), rounds: 1, oldest: time, newest: time });
        ours.results.push(result);
        ours.oldest = ours.oldest.min(time);
        ours.newest = ours.newest.max(time);
    }
    let mut ours = ours.ok_or_else(|| {
        unusable(directory, "no benchmark results here; run `cargo bench --bench cpu` first")
    })?;
    (ours.results, ours.rounds) = fastest(ours.results);
    Ok(ours)
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

/// The peers of a file that `benches/peers` wrote, and what the Rust peers' program found beside
/// times.
pub fn read_peers(path: &Path) -> Result<(Vec<Peer>, Option<RustFile>), SourceError> {
    // Not an untagged enum: serde keeps its keys as text then, and batches are numbers.
    let json: Value = read_json(path)?;
    let (files, rust) = if json.is_array() {
        (of_json::<Vec<PeerFile>>(json, path)?, None)
    } else if json.get("peers").is_some() {
        let mut file: RustFile = of_json(json, path)?;
        (std::mem::take(&mut file.peers), Some(file))
    } else {
        (vec![of_json::<PeerFile>(json, path)?], None)
    };
    let peers = files.into_iter().map(|file| peer(file, path)).collect::<Result<_, _>>()?;
    Ok((peers, rust))
}

fn of_json<T: DeserializeOwned>(json: Value, path: &Path) -> Result<T, SourceError> {
    serde_json::from_value(json).map_err(|error| unusable(path, error))
}

fn peer(file: PeerFile, path: &Path) -> Result<Peer, SourceError> {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let mut results: Vec<Measured> = Vec::new();
    for PeerResult { id, median_ns, way } in file.results {
        let id: Id = id.parse().map_err(|reason: String| unusable(path, reason))?;
        if results.iter().any(|known| known.id == id) {
            return Err(unusable(path, format_args!("{id} is there twice")));
        }
        results.push(Measured { way, ..measured(id, median_ns, path)? });
    }
    Ok(Peer {
        name: file.peer.or(stem).unwrap_or_default(),
        devices: vec![file.device],
        versions: file.versions,
        foreign_cpu_share: file.foreign_cpu_share,
        results,
        refused: file.refused,
        refused_ways: file.refused_ways,
        resnet50_step_ns: file.resnet50_step_ns,
    })
}

/// Adds a peer to others. One that is there already has been measured on another device, on other
/// identifiers, or in another of so many `rounds`, of which the fastest counts.
pub fn add_peer(
    peers: &mut Vec<Peer>,
    peer: Peer,
    path: &Path,
    rounds: usize,
) -> Result<(), SourceError> {
    let Some(known) = peers.iter_mut().find(|known| known.name == peer.name) else {
        peers.push(peer);
        return Ok(());
    };
    let times_of = |id: &Id| known.results.iter().filter(|known| known.id == *id).count();
    if let Some(Measured { id, .. }) = peer.results.iter().find(|it| times_of(&it.id) >= rounds) {
        let found = format_args!("more times of {} for {id} than of ours: {rounds}", peer.name);
        return Err(unusable(path, found));
    }
    known.devices.extend(peer.devices);
    known.devices.dedup();
    known.versions.extend(peer.versions);
    let shares = known.foreign_cpu_share.into_iter().chain(peer.foreign_cpu_share);
    known.foreign_cpu_share = shares.reduce(f64::max);
    known.results.extend(peer.results);
    known.refused.extend(peer.refused);
    known.refused_ways.extend(peer.refused_ways);
    known.resnet50_step_ns.extend(peer.resnet50_step_ns);
    Ok(())
}

/// A file that may be missing.
pub fn read_if_there<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, SourceError> {
    if path.exists() { read_json(path).map(Some) } else { Ok(None) }
}

fn measured(id: Id, median_ns: f64, path: &Path) -> Result<Measured, SourceError> {
    if !(median_ns.is_finite() && median_ns > 0.0) {
        return Err(unusable(
            path,
            format_args!("{id}: expected a time above 0, found {median_ns}"),
        ));
    }
    Ok(Measured::new(id, median_ns))
}

pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, SourceError> {
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
        assert_eq!(ours.results, [Measured::new(ID.parse().unwrap(), 12.5)]);
    }

    #[test]
    fn of_the_rounds_in_a_folder_the_fastest_counts() {
        let folder = Folder::new("rounds");
        for (round, time) in [(1, 12.5), (2, 11.5), (3, 13.5)] {
            let run = format!("round-{round}/copy/a/new");
            folder.write(&format!("{run}/benchmark.json"), &format!(r#"{{"full_id":"{ID}"}}"#));
            let estimates = format!(r#"{{"median":{{"point_estimate":{time}}}}}"#);
            folder.write(&format!("{run}/estimates.json"), &estimates);
        }
        let ours = read_criterion(&folder.0).unwrap();
        assert_eq!(ours.results, [Measured::new(ID.parse().unwrap(), 11.5)]);
        assert_eq!(ours.rounds, 3);
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
        let (peers, _) = read_peers(&folder.write("p.json", &text)).unwrap();
        let peer = &peers[0];
        assert_eq!((peer.name.as_str(), peer.devices[0].as_str()), ("P", "D"));
        assert_eq!(peer.results, [Measured::new(ID.parse().unwrap(), 3.0)]);
    }

    #[test]
    fn a_peer_file_that_names_no_peer_is_called_after_itself() {
        let folder = Folder::new("stem");
        let path = folder.write("cudnn.json", r#"{"device":"D","versions":{},"results":[]}"#);
        assert_eq!(read_peers(&path).unwrap().0[0].name, "cudnn");
    }

    #[test]
    fn a_file_may_hold_several_peers_and_a_peer_several_files() {
        let folder = Folder::new("several");
        let other = "copy/channels-last/f32/128x100/none/gpu";
        let peer = |name: &str, id: &str| {
            let result = format!(r#"{{"id":"{id}","median_ns":3}}"#);
            format!(r#"{{"peer":"{name}","device":"{id}","results":[{result}]}}"#)
        };
        let path = folder.write("p.json", &format!("[{},{}]", peer("P", ID), peer("Q", ID)));
        let (mut peers, _) = read_peers(&path).unwrap();
        assert_eq!(peers.len(), 2);
        let (more, _) = read_peers(&folder.write("gpu.json", &peer("P", other))).unwrap();
        add_peer(&mut peers, more[0].clone(), &path, 1).unwrap();
        assert_eq!((peers.len(), peers[0].results.len(), peers[0].devices.len()), (2, 2, 2));
        let error = add_peer(&mut peers, more[0].clone(), &path, 1).unwrap_err().to_string();
        assert!(error.contains("more times of P"), "{error}");
        add_peer(&mut peers, more[0].clone(), &path, 2).unwrap();
        assert_eq!(peers[0].results.len(), 3);
    }

    #[test]
    fn the_fastest_way_and_what_others_refuse_are_kept_over_rounds() {
        let folder = Folder::new("ways");
        let read = |ns: f64, way: &str| {
            let text = format!(
                r#"{{"peer":"P","device":"D","refused_ways":{{"{ID}":"{way}: no"}},
                "results":[{{"id":"{ID}","median_ns":{ns},"way":"{way}"}}]}}"#
            );
            read_peers(&folder.write("p.json", &text)).unwrap().0.remove(0)
        };
        let mut peers = Vec::new();
        for (ns, way) in [(3.0, "A"), (2.0, "B"), (4.0, "C")] {
            add_peer(&mut peers, read(ns, way), &folder.0, 3).unwrap();
        }
        let (results, _) = fastest(peers[0].results.clone());
        assert_eq!(results[0].way.as_deref(), Some("B"));
        assert_eq!(peers[0].refused_ways.len(), 1);
    }

    #[test]
    fn steps_are_read_by_their_batch_in_every_form_of_file() {
        let folder = Folder::new("steps");
        let peer = r#"{"device":"D","results":[],"foreign_cpu_share":null,
            "resnet50_step_ns":{"64":5,"256":20.5}}"#;
        let rust = format!(r#"{{"peers":[{peer}],"allocation":[],"memory":[],"accuracy":[]}}"#);
        for text in [peer.to_owned(), format!("[{peer}]"), rust] {
            let (peers, _) = read_peers(&folder.write("p.json", &text)).unwrap();
            assert_eq!(peers[0].resnet50_step_ns, [(64, 5.0), (256, 20.5)].into());
        }
    }

    #[test]
    fn what_the_rust_peers_program_writes_is_read() {
        let folder = Folder::new("rust");
        let text = r#"{"peers":[],"allocation":[],"accuracy":[{"library":"Burn","input":"x","y":null,"dx":0.5}],
            "memory":[{"library":"candle","shape":"8x8","tensors":16.5}]}"#;
        let (peers, rust) = read_peers(&folder.write("rust.json", text)).unwrap();
        let rust = rust.unwrap();
        assert!(peers.is_empty() && rust.accuracy[0].y.0.is_infinite());
        assert_eq!(rust.memory[0].tensors, 16.5);
    }

    #[test]
    fn errors_name_the_file_and_the_reason() {
        let folder = Folder::new("errors");
        let result = |id: &str, ns: &str| format!(r#"{{"id":"{id}","median_ns":{ns}}}"#);
        for (name, results, reason) in [
            ("twice.json", format!("{},{}", result(ID, "1"), result(ID, "2")), "twice"),
            ("zero.json", result(ID, "0"), "above 0"),
            ("id.json", result("copy/x", "1"), "identifier"),
        ] {
            let text = format!(r#"{{"device":"D","versions":{{}},"results":[{results}]}}"#);
            let error = read_peers(&folder.write(name, &text)).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(reason), "{error}");
        }
        let error = read_peers(&folder.write("cut.json", "{")).unwrap_err().to_string();
        assert!(error.contains("cut.json"), "{error}");
        let error = read_peers(&folder.0.join("absent.json")).unwrap_err().to_string();
        assert!(error.contains("absent.json"), "{error}");
    }
}
