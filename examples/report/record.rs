//! `results.json`: everything that a report is made of, so that it can be made again.

use crate::files::{GpuFile, RustFile};
use crate::join::{self, Measured, Peer};
use crate::machine::Machine;
use crate::page::Report;
use crate::sources::{SourceError, read_json, unusable};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    device: String,
    machine: Machine,
    /// Of the newest measurement of ours.
    date: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first_date: Option<String>,
    /// Nothing where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rounds: Option<usize>,
    commit: Option<String>,
    versions: Versions,
    peers: Vec<RecordedPeer>,
    results: Vec<RecordedRow>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gpu: Option<GpuFile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rust: Option<RustFile>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Versions {
    warpnorm: String,
    rustc: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct RecordedPeer {
    name: String,
    device: OneOrMany,
    versions: BTreeMap<String, String>,
    foreign_cpu_share: Option<f64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    refused: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    refused_ways: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    resnet50_step_ns: BTreeMap<usize, f64>,
}

/// Peers are mostly measured on one device.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn of(devices: &[String]) -> Self {
        match devices {
            [one] => OneOrMany::One(one.clone()),
            many => OneOrMany::Many(many.to_vec()),
        }
    }

    fn devices(self) -> Vec<String> {
        match self {
            OneOrMany::One(device) => vec![device],
            OneOrMany::Many(devices) => devices,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct RecordedRow {
    id: String,
    median_ns: f64,
    floor_bytes: usize,
    share_of_copy: Option<f64>,
    peers: BTreeMap<String, RecordedTime>,
}

#[derive(Debug, Serialize, Deserialize)]
struct RecordedTime {
    median_ns: f64,
    ratio: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    way: Option<String>,
}

/// The contents of `results.json`.
pub fn write(report: &Report) -> Result<String, serde_json::Error> {
    let (first, last) = &report.dates;
    let record = Record {
        device: report.device.clone(),
        machine: report.machine.clone(),
        date: last.clone(),
        first_date: (first != last).then(|| first.clone()),
        rounds: (report.rounds != 1).then_some(report.rounds),
        commit: report.commit.clone(),
        versions: Versions { warpnorm: report.version.clone(), rustc: report.rustc.clone() },
        peers: report.peers.iter().map(recorded_peer).collect(),
        results: report.rows.iter().map(|row| recorded_row(report, row)).collect(),
        gpu: report.gpu.clone(),
        rust: report.rust.clone(),
    };
    Ok(serde_json::to_string_pretty(&record)? + "\n")
}

fn recorded_peer(peer: &Peer) -> RecordedPeer {
    RecordedPeer {
        name: peer.name.clone(),
        device: OneOrMany::of(&peer.devices),
        versions: peer.versions.clone(),
        foreign_cpu_share: peer.foreign_cpu_share,
        refused: peer.refused.clone(),
        refused_ways: peer.refused_ways.clone(),
        resnet50_step_ns: peer.resnet50_step_ns.clone(),
    }
}

fn recorded_row(report: &Report, row: &join::Row) -> RecordedRow {
    let named = report.peers.iter().zip(&row.peers);
    let times = named.filter_map(|(peer, against)| {
        let join::Against { median_ns, ratio, way } = against.clone()?;
        Some((peer.name.clone(), RecordedTime { median_ns, ratio, way }))
    });
    RecordedRow {
        id: row.id.to_string(),
        median_ns: row.median_ns,
        floor_bytes: row.floor_bytes,
        share_of_copy: row.share_of_copy,
        peers: times.collect(),
    }
}

/// A report from its `results.json`. Ratios and shares are computed anew.
pub fn read(path: &Path) -> Result<Report, SourceError> {
    let record: Record = read_json(path)?;
    let mut ours = Vec::new();
    let mut peers: Vec<Peer> = record.peers.into_iter().map(peer).collect();
    for RecordedRow { id, median_ns, peers: times, .. } in record.results {
        let id: crate::id::Id = id.parse().map_err(|reason: String| unusable(path, reason))?;
        for (name, RecordedTime { median_ns, way, .. }) in times {
            let peer = peers.iter_mut().find(|peer| peer.name == name);
            let peer = peer.ok_or_else(|| unusable(path, format_args!("no peer {name:?}")))?;
            peer.results.push(Measured { id: id.clone(), median_ns, way });
        }
        ours.push(Measured::new(id, median_ns));
    }
    let rows = join::join(&ours, &peers).map_err(|error| unusable(path, error))?;
    Ok(Report {
        device: record.device,
        machine: record.machine,
        dates: (record.first_date.unwrap_or_else(|| record.date.clone()), record.date),
        rounds: record.rounds.unwrap_or(1),
        commit: record.commit,
        version: record.versions.warpnorm,
        rustc: record.versions.rustc,
        rows,
        peers,
        gpu: record.gpu,
        rust: record.rust,
    })
}

fn peer(recorded: RecordedPeer) -> Peer {
    Peer {
        name: recorded.name,
        devices: recorded.device.devices(),
        versions: recorded.versions,
        foreign_cpu_share: recorded.foreign_cpu_share,
        results: Vec::new(),
        refused: recorded.refused,
        refused_ways: recorded.refused_ways,
        resnet50_step_ns: recorded.resnet50_step_ns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invented;
    use crate::{cases, page};
    use serde_json::Value;
    use std::fs;
    use std::path::PathBuf;

    /// Of every machine that was measured.
    fn recorded() -> Vec<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results");
        let Ok(folders) = fs::read_dir(folder) else { return Vec::new() };
        let paths = folders.map(|entry| entry.unwrap().path().join("results.json"));
        paths.filter(|path| path.exists()).collect()
    }

    /// Everything in a record that should be an identifier and is none of the benchmarks'.
    fn unknown(report: &Report) -> Vec<String> {
        let rows = report.rows.iter().map(|row| row.id.to_string());
        // Whole steps of a network have no identifier.
        let refused = report.peers.iter().flat_map(|peer| {
            let whole = peer.refused.keys().filter(|id| !id.starts_with("step/"));
            whole.chain(peer.refused_ways.keys()).cloned()
        });
        let gpu = report.gpu.iter().flat_map(|gpu| {
            // Behind the identifier is the output.
            let compared = gpu.accuracy.keys().map(|key| key.split(' ').next().unwrap_or(key));
            let ids = gpu.plans.keys().chain(gpu.host.keys()).chain(gpu.failed.keys());
            ids.chain(&gpu.measured).map(String::as_str).chain(compared).map(str::to_owned)
        });
        let is_unknown = |text: &String| {
            let id: Result<crate::id::Id, _> = text.parse();
            !id.is_ok_and(|id| cases::is_cpu_case(&id) || cases::is_gpu_case(&id))
        };
        rows.chain(refused).chain(gpu).filter(is_unknown).collect()
    }

    #[test]
    fn recorded_identifiers_are_those_of_the_benchmarks() {
        for path in recorded() {
            assert_eq!(unknown(&read(&path).unwrap()), [""; 0], "{}", path.display());
        }
        assert_eq!(unknown(&invented::report()), [""; 0]);
    }

    #[test]
    fn identifiers_of_no_benchmark_are_found_wherever_they_are() {
        let mut report = invented::report();
        let id = |fused| format!("train_forward/channels-last/f16/64x256x56x57/{fused}/gpu");
        report.peers[0].refused.insert(id("none"), "no".to_owned());
        report.peers[1].refused_ways.insert(id("relu"), "no".to_owned());
        report.peers[1].refused.insert("step/64".to_owned(), "no".to_owned());
        let gpu = report.gpu.as_mut().unwrap();
        let plan = gpu.plans.values().next().unwrap().clone();
        gpu.plans.insert("nothing".to_owned(), plan);
        gpu.failed.insert("a/b".to_owned(), "no".to_owned());
        gpu.accuracy.insert(format!("{} y", id("add_relu")), Default::default());
        let expected = [&id("none"), &id("relu"), "nothing", "a/b", &id("add_relu")];
        assert_eq!(unknown(&report), expected);
    }

    #[test]
    fn a_record_that_is_read_and_written_is_the_same() {
        for path in recorded() {
            let text = fs::read_to_string(&path).unwrap();
            let written = write(&read(&path).unwrap()).unwrap();
            same(&parsed(&text), &parsed(&written), &path.display().to_string());
        }
        let written = write(&invented::report()).unwrap();
        let path = std::env::temp_dir().join(format!("warpnorm-record-{}", std::process::id()));
        fs::write(&path, &written).unwrap();
        let again = write(&read(&path).unwrap()).unwrap();
        fs::remove_file(&path).unwrap();
        same(&parsed(&written), &parsed(&again), "invented");
    }

    fn parsed(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    /// Ratios are computed anew, and differ in their last digits.
    fn same(a: &Value, b: &Value, at: &str) {
        match (a, b) {
            (Value::Object(a), Value::Object(b)) => {
                assert!(a.keys().eq(b.keys()), "{at}: {:?} {:?}", a.keys(), b.keys());
                a.iter().for_each(|(key, value)| same(value, &b[key], &format!("{at}/{key}")));
            }
            (Value::Array(a), Value::Array(b)) => {
                assert_eq!(a.len(), b.len(), "{at}");
                let pairs = a.iter().zip(b).enumerate();
                pairs.for_each(|(index, (a, b))| same(a, b, &format!("{at}/{index}")));
            }
            (Value::Number(x), Value::Number(y)) => {
                let (x, y) = (x.as_f64().unwrap(), y.as_f64().unwrap());
                assert!((x - y).abs() <= 1e-12 * x.abs(), "{at}: {x} {y}");
            }
            _ => assert_eq!(a, b, "{at}"),
        }
    }

    #[test]
    fn every_record_makes_a_page() {
        for path in recorded() {
            let report = read(&path).unwrap();
            let page = page::markdown(&report, &[]);
            assert!(page.contains(&report.device), "{}", path.display());
            let says = page.contains("no GPU part");
            assert_eq!(says, report.gpu.is_none(), "{}", path.display());
        }
    }
}
