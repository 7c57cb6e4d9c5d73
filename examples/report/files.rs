//! The files that benchmarks and peers' programs leave for the report. Shared with them.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What another library took: an object of a peer's file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerFile {
    /// The library's name; by default the file's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// What it ran on, as the device calls itself.
    pub device: String,
    #[serde(default)]
    pub versions: BTreeMap<String, String>,
    /// What other processes used of a core meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign_cpu_share: Option<f64>,
    pub results: Vec<PeerResult>,
    /// What the library does not do, by identifier, and what it says to that.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, String>,
    /// The same of single ways, where the library has another that does it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused_ways: BTreeMap<String, String>,
    /// A whole training step of ResNet-50 in f16, channels-last, by its batch; nanoseconds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resnet50_step_ns: BTreeMap<usize, f64>,
}

impl PeerFile {
    /// Sets down what has become of an identifier: the fastest way and its time, and what the others
    /// say to it.
    pub fn replace(&mut self, id: &str, best: Option<(String, f64)>, refusals: &[String]) {
        self.results.retain(|result| result.id != id);
        self.refused.remove(id);
        self.refused_ways.remove(id);
        let refused = if best.is_some() { &mut self.refused_ways } else { &mut self.refused };
        if best.is_none() || !refusals.is_empty() {
            refused.insert(id.to_owned(), refusals.join("; "));
        }
        if let Some((way, median_ns)) = best {
            self.results.push(PeerResult { id: id.to_owned(), median_ns, way: Some(way) });
        }
    }
}

/// One measurement of a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerResult {
    pub id: String,
    pub median_ns: f64,
    /// Which of the library's ways it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way: Option<String>,
}

/// What `cargo bench --bench cuda` writes beside Criterion's times, as [`GPU_FILE`] in Criterion's
/// folder; everything is kept by identifier, so that a later run of some adds to it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuFile {
    pub device: GpuDevice,
    /// Driver, and what else took part.
    pub versions: BTreeMap<String, String>,
    /// Bytes a second that copying a large tensor on the device reads and writes.
    pub copy_bandwidth: f64,
    /// How our calls are laid over the device.
    pub plans: BTreeMap<String, Planned>,
    /// What a call takes on the host until it is enqueued, nanoseconds.
    pub host: BTreeMap<String, HostCost>,
    /// Errors against the textbook, by identifier and output: `<identifier> y`.
    pub accuracy: BTreeMap<String, Errors>,
    /// What could not be measured, or was wrong, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failed: BTreeMap<String, String>,
    /// What is among Criterion's results: a run that goes on where another ended leaves it out.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub measured: BTreeSet<String>,
    /// Why cuDNN was not there, if it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_cudnn: Option<String>,
}

/// Criterion's own rule for where its results go.
pub fn criterion_home() -> PathBuf {
    let target =
        || std::env::var_os("CARGO_TARGET_DIR").map(|dir| Path::new(&dir).join("criterion"));
    let home = std::env::var_os("CRITERION_HOME").map(PathBuf::from);
    home.or_else(target).unwrap_or_else(|| "target/criterion".into())
}

/// The name of the [`GpuFile`], and of cuDNN's [`PeerFile`] beside it.
pub const GPU_FILE: &str = "gpu.json";
pub const CUDNN_FILE: &str = "cudnn.json";

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuDevice {
    pub name: String,
    pub compute_capability: String,
    pub multiprocessors: u32,
    pub memory_bytes: u64,
    pub l2_bytes: u64,
    /// Bytes a second by clock and width of the memory.
    pub memory_bandwidth: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    pub tier: String,
    pub kernels: Vec<String>,
    /// What the plan predicts with the measured copy bandwidth.
    pub predicted_ns: f64,
    /// Bytes that should reach memory.
    pub hbm_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostCost {
    pub ours_ns: f64,
    pub cudnn_ns: Option<f64>,
}

/// Largest errors as shares of what adds up in an output's channel; infinite for what is not finite
/// where it should be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Errors {
    #[serde(with = "maybe_infinite")]
    pub ours: f64,
    /// cuDNN's, by its mode.
    pub cudnn: BTreeMap<String, Score>,
    /// The largest difference between ours and cuDNN's, by its mode.
    pub between: BTreeMap<String, Score>,
}

/// JSON has no infinity: it is written as null.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Score(#[serde(with = "maybe_infinite")] pub f64);

/// What the Rust peers' program finds beside times: `rust.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RustFile {
    pub peers: Vec<PeerFile>,
    /// Times of a training pass with outputs allocated by each call.
    pub allocation: Vec<Allocation>,
    /// Peak memory of a training forward and backward.
    pub memory: Vec<Memory>,
    pub accuracy: Vec<HardInput>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Allocation {
    pub library: String,
    pub id: String,
    /// With freed memory kept by the allocator.
    pub kept_ns: f64,
    /// With freed memory given back, so that every large output is pages never touched.
    pub fresh_ns: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    pub library: String,
    pub shape: String,
    /// Peak over a tensor's size; x, y, dy and dx are 4.
    pub tensors: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HardInput {
    pub library: String,
    pub input: String,
    pub y: Score,
    pub dx: Score,
}

mod maybe_infinite {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        value.is_finite().then_some(*value).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::deserialize(deserializer)?.unwrap_or(f64::INFINITY))
    }
}
