//! What is kept beside Criterion's results, for the report.

use crate::cudnn::{Cudnn, Measured};
use crate::files::{
    CUDNN_FILE, Errors, GPU_FILE, GpuFile, HostCost, PeerFile, Planned, criterion_home,
};
use crate::gpu::Gpu;
use crate::id::{Id, Pass};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use warpnorm::Result;
use warpnorm::cuda::{Alignment, Pass as Call, Plan, predicted_seconds, training_plans};

const ENDED: &str = "the run ended before it was measured";
const ENDED_TWICE: &str = "two runs ended before it was measured";

/// Both files, with what earlier runs on the same device left in them.
pub struct Record {
    folder: PathBuf,
    gpu: GpuFile,
    cudnn: PeerFile,
}

impl Record {
    pub fn open(gpu: &Gpu) -> Self {
        let folder = criterion_home();
        let mut now = gpu.file();
        let name = now.device.name.clone();
        let before = read::<GpuFile>(&folder.join(GPU_FILE));
        let before = before.filter(|file| file.device.name == name).unwrap_or_default();
        let theirs = read::<PeerFile>(&folder.join(CUDNN_FILE));
        let theirs = theirs.filter(|file| file.device == name).unwrap_or_default();
        let no_cudnn = now.no_cudnn.take().filter(|_| theirs.results.is_empty());
        let versions = gpu.cudnn.as_ref().map(Cudnn::versions).unwrap_or_default();
        Record {
            gpu: GpuFile {
                plans: before.plans,
                host: before.host,
                accuracy: before.accuracy,
                failed: before.failed,
                measured: before.measured,
                no_cudnn,
                ..now
            },
            cudnn: PeerFile { peer: Some("cuDNN".to_owned()), device: name, versions, ..theirs },
            folder,
        }
    }

    /// It is about to be measured: all that is known of it if the run ends in the midst of it.
    pub fn begun(&mut self, id: &Id) {
        let ended_before = self.gpu.failed.get(&id.to_string()).is_some_and(|why| why == ENDED);
        self.failed(id, if ended_before { ENDED_TWICE } else { ENDED }.to_owned());
        self.write();
    }

    /// Whether it was measured, or failed. One in which a run was ended gets a second chance.
    pub fn is_known(&self, id: &Id) -> bool {
        let name = id.to_string();
        self.gpu.measured.contains(&name)
            || self.gpu.failed.get(&name).is_some_and(|why| why != ENDED)
    }

    /// It could not be measured, and why.
    pub fn failed(&mut self, id: &Id, reason: String) {
        self.gpu.measured.remove(&id.to_string());
        self.gpu.failed.insert(id.to_string(), reason);
    }

    /// It was measured, whatever came of it before.
    pub fn succeeded(&mut self, id: &Id) {
        self.gpu.failed.remove(&id.to_string());
        self.gpu.measured.insert(id.to_string());
    }

    /// How a call is laid over the device, and what that should take.
    pub fn plan(&mut self, gpu: &Gpu, id: &Id) -> Result<()> {
        let problem = id.problem()?;
        let aligned = Alignment::ALIGNED;
        let facts = &gpu.planned_with;
        let training = |pass| training_plans(pass, &problem, facts, aligned, aligned, None);
        let (pass, plans) = match id.pass {
            Pass::Copy => return Ok(()),
            Pass::TrainForward => (Call::Forward, training(Call::Forward)?),
            Pass::TrainBackward => (Call::Backward, training(Call::Backward)?),
            Pass::Inference => {
                (Call::Inference, vec![Plan::new(Call::Inference, &problem, facts, aligned)?])
            }
        };
        let seconds = predicted_seconds(pass, &problem, &gpu.facts, Some(plans[0].tier))?;
        let bytes = |(index, plan): (usize, &Plan)| plan.hbm_bytes(&problem, facts, index == 1);
        let planned = Planned {
            tier: format!("{:?}", plans[0].tier).to_lowercase(),
            kernels: plans.iter().map(|plan| plan.kernel.clone()).collect(),
            predicted_ns: seconds * 1e9,
            hbm_bytes: plans.iter().enumerate().map(bytes).sum(),
        };
        self.gpu.plans.insert(id.to_string(), planned);
        Ok(())
    }

    pub fn host_cost(&mut self, id: &Id, ours_ns: f64, cudnn_ns: Option<f64>) {
        self.gpu.host.insert(id.to_string(), HostCost { ours_ns, cudnn_ns });
    }

    /// Our error against the textbook, and cuDNN's where it is there.
    pub fn accuracy(&mut self, id: &Id, ours: f64, cudnn: Option<&Measured>) {
        let output = match id.pass {
            Pass::TrainBackward => "dx",
            Pass::Inference => "y of inference",
            _ => "y",
        };
        let errors = Errors {
            ours,
            cudnn: cudnn.map(|measured| measured.errors.clone()).unwrap_or_default(),
            between: cudnn.map(|measured| measured.between.clone()).unwrap_or_default(),
        };
        self.gpu.accuracy.insert(format!("{id} {output}"), errors);
    }

    /// cuDNN's time, or that it refuses.
    pub fn cudnn(&mut self, id: &Id, measured: &Measured) {
        let best = measured.best.clone();
        self.cudnn.replace(&id.to_string(), best, &measured.refusals);
    }

    /// As results come in: a run may be ended at any time.
    pub fn write(&self) {
        if let Err(reason) = self.try_write() {
            eprintln!("what is kept beside Criterion's results: {reason}");
        }
    }

    fn try_write(&self) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        write(&self.folder.join(GPU_FILE), &self.gpu)?;
        if !self.cudnn.versions.is_empty() {
            write(&self.folder.join(CUDNN_FILE), &self.cudnn)?;
        }
        Ok(())
    }
}

/// A file that is not there or not ours is as none.
fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
}

/// All of it or nothing: a run may be ended at any time.
fn write(path: &Path, value: &impl Serialize) -> std::io::Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(std::io::Error::other)?;
    let unfinished = path.with_extension("unfinished");
    std::fs::write(&unfinished, text + "\n")?;
    std::fs::rename(unfinished, path)
}
