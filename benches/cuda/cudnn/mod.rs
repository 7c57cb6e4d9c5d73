//! cuDNN beside us: the same calls on the same tensors of the same stream, in every mode that it has
//! for them.

mod batch_norm;
mod describe;
mod handle;
mod loaded;

use crate::case::Case;
use crate::files::Score;
use crate::id::{Config, Id, Pass};
use crate::sampling;
use batch_norm::BatchNorm;
use cudarc::driver::CudaStream;
use handle::{Handle, Outcome};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use warpnorm::{Element, Error, Result};

/// A result that is farther off is none. Rounding to bf16 alone is 4e-3.
const WRONG: f64 = 0.1;

pub struct Cudnn {
    handle: Rc<Handle>,
}

/// What became of one identifier.
#[derive(Default)]
pub struct Measured {
    /// The fastest mode and its time.
    pub best: Option<(String, f64)>,
    /// The modes that do not count, and why.
    pub refusals: Vec<String>,
    pub errors: BTreeMap<String, Score>,
    /// Between our results and cuDNN's.
    pub between: BTreeMap<String, Score>,
    /// Of the fastest mode, where the call is so small that the host matters.
    pub host_ns: Option<f64>,
}

impl Cudnn {
    pub fn open(stream: Arc<CudaStream>) -> Outcome<Self> {
        Ok(Cudnn { handle: Handle::new(stream)? })
    }

    /// Its version and, where the system says it, its file.
    pub fn versions(&self) -> BTreeMap<String, String> {
        let file = self.handle.library.as_ref().map(|path| path.display().to_string());
        let file = file.map(|file| ("library".to_owned(), file));
        [("cudnn".to_owned(), handle::version())].into_iter().chain(file).collect()
    }

    /// Every mode, checked and timed as ours.
    pub fn measure<E: Element>(&self, case: &mut Case<'_, E>, id: &Id) -> Measured {
        let mut measured = Measured::default();
        if let Some(reason) = describe::reason_against(id.pass, id.extents[0]) {
            measured.refusals.push(reason);
            return measured;
        }
        for mode in describe::modes(id.pass, id.extents.len()) {
            let name = describe::mode_name(mode);
            let outcome = BatchNorm::new(&self.handle, id, mode, case.sets.len())
                .map_err(|reason| Error::system("cuDNN", reason))
                .and_then(|call| Way { call, id, name: &name }.measure(case, &mut measured));
            if let Err(error) = outcome {
                let reason = match error {
                    Error::System { reason, .. } => reason,
                    other => other.to_string(),
                };
                measured.refusals.push(format!("{name}: {reason}"));
            }
        }
        measured
    }
}

/// A call in one mode.
struct Way<'a> {
    call: BatchNorm,
    id: &'a Id,
    name: &'a str,
}

impl Way<'_> {
    fn run<E: Element>(&mut self, case: &mut Case<'_, E>, pass: Pass, set: usize) -> Result<()> {
        let outcome = self.call.call(pass, &mut case.sets[set], set);
        outcome.map_err(|reason| Error::system("cuDNN", reason))
    }

    fn measure<E: Element>(
        &mut self,
        case: &mut Case<'_, E>,
        measured: &mut Measured,
    ) -> Result<()> {
        let (pass, config) = (self.id.pass, self.id.config);
        if pass == Pass::TrainBackward {
            for set in 0..case.sets.len() {
                self.run(case, Pass::TrainForward, set)?;
            }
        }
        self.check(case, measured)?;
        let mut run = |case: &mut Case<'_, E>, set| self.run(case, pass, set);
        let graph = match config {
            Config::GpuGraph => Some(case.capture(&mut run)?),
            _ => None,
        };
        let ns = sampling::median_ns(|calls| match &graph {
            Some(graph) => graph.time(case.gpu, calls),
            None => case.time_calls(config, calls, &mut run),
        })?;
        if measured.best.as_ref().is_none_or(|(_, best)| ns < *best) {
            measured.best = Some((self.name.to_owned(), ns));
            measured.host_ns = match sampling::is_host_timed(self.id)? {
                true => Some(self.host_time(case)?),
                false => None,
            };
        }
        Ok(())
    }

    fn host_time<E: Element>(&mut self, case: &mut Case<'_, E>) -> Result<f64> {
        let (gpu, sets, pass) = (case.gpu, case.sets.len(), self.id.pass);
        gpu.stopwatch.host_time(&mut |index| self.run(case, pass, index as usize % sets))
    }

    /// Compares cuDNN's results with the textbook's and with ours, once for all configurations.
    fn check<E: Element>(&mut self, case: &mut Case<'_, E>, measured: &mut Measured) -> Result<()> {
        let (pass, problem) = (self.id.pass, case.problem);
        if case.compared.iter().any(|(of, mode)| (*of, &mode[..]) == (pass, self.name)) {
            return Ok(());
        }
        let ours = case.ours(pass)?;
        if pass == Pass::TrainBackward {
            // Ours has no use for y; cuDNN's backward reads its own.
            self.run(case, Pass::TrainForward, 0)?;
        }
        self.run(case, pass, 0)?;
        let theirs = case.fetch(pass)?;
        let error = case.error_of(pass, &theirs)?;
        let expected = case.expected(pass)?;
        let between = match pass {
            Pass::TrainBackward => expected.dx_difference(&problem, &theirs, &ours),
            _ => expected.y_difference(&problem, &theirs, &ours),
        };
        case.keep(pass, ours);
        measured.errors.insert(self.name.to_owned(), Score(error));
        measured.between.insert(self.name.to_owned(), Score(between));
        if error > WRONG {
            return Err(Error::system("cuDNN", format!("wrong results, an error of {error:.1e}")));
        }
        case.compared.push((pass, self.name.to_owned()));
        Ok(())
    }
}
