//! What a layer keeps from call to call: a backend for each kind of device, and its workspaces.

use crate::backend::CandleBackend;
use candle_core::{Error, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use warpnorm::{Cpu, Problem};

/// The engines of a layer.
#[derive(Default)]
pub struct Engines {
    cpu: Slot<Cpu>,
    #[cfg(feature = "cuda")]
    cuda: Slot<warpnorm::cuda::Cuda>,
}

/// The engine of the last call on a kind of device.
type Slot<B> = Mutex<Option<Arc<Engine<B>>>>;

/// A backend that [`Engines`] have a place for.
pub trait Kept: CandleBackend {
    #[allow(private_interfaces)]
    fn slot(engines: &Engines) -> &Slot<Self>;
}

impl Kept for Cpu {
    fn slot(engines: &Engines) -> &Slot<Self> {
        &engines.cpu
    }
}

#[cfg(feature = "cuda")]
impl Kept for warpnorm::cuda::Cuda {
    fn slot(engines: &Engines) -> &Slot<Self> {
        &engines.cuda
    }
}

impl Engines {
    /// The one that works where a storage lies.
    pub fn at<B: Kept>(&self, storage: &B::Storage) -> Result<Arc<Engine<B>>> {
        let mut slot = lock(B::slot(self));
        if let Some(engine) = slot.as_ref().filter(|it| it.backend.is_of(storage)) {
            return Ok(engine.clone());
        }
        let engine = Arc::new(Engine { backend: B::of(storage)?, idle: Mutex::default() });
        *slot = Some(engine.clone());
        Ok(engine)
    }
}

/// A training loop has a few problems: whole batches, the last one, those of evaluation.
const KEPT: usize = 8;
/// Of all owners together: threads that have ended come back for nothing.
const KEPT_IN_ALL: usize = 32;

/// A backend and its scratch.
pub struct Engine<B: CandleBackend> {
    pub backend: B,
    /// What no call has at the moment, and [whose](CandleBackend::owner) it is; what was used last is at
    /// the end. candle's CUDA stream is another one in each thread.
    idle: Mutex<Vec<(Option<ThreadId>, Scratch<B>)>>,
}

/// What a call needs beside its tensors.
pub struct Scratch<B: CandleBackend> {
    problem: Problem,
    pub workspace: B::Workspace,
    /// candle's layers do not count their batches.
    pub num_batches_tracked: B::Buffer<i64>,
}

impl<B: CandleBackend> Engine<B> {
    /// Scratch for a call, which gives it back when it has succeeded: what an aborted kernel leaves is
    /// of no use to another.
    pub fn take(&self, problem: &Problem) -> Result<Scratch<B>> {
        let (mut idle, me) = (lock(&self.idle), B::owner());
        let fits = |(owner, scratch): &(_, Scratch<B>)| *owner == me && scratch.problem == *problem;
        if let Some(at) = idle.iter().rposition(fits) {
            return Ok(idle.remove(at).1);
        }
        drop(idle);
        Scratch::new(&self.backend, problem).map_err(Error::wrap)
    }

    /// Keeps it for calls to come, and drops what has waited longest where there is more than enough.
    pub fn give_back(&self, scratch: Scratch<B>) -> Result<()> {
        let (mut idle, me) = (lock(&self.idle), B::owner());
        idle.push((me, scratch));
        let own = idle.iter().filter(|(owner, _)| *owner == me).count();
        let surplus = match idle.len() {
            _ if own > KEPT => idle.iter().position(|(owner, _)| *owner == me),
            len if len > KEPT_IN_ALL => Some(0),
            _ => None,
        };
        let surplus = surplus.map(|at| idle.remove(at));
        drop(idle);
        match surplus {
            // Memory is freed in the order of this thread's stream.
            Some((owner, _scratch)) if owner != me => self.backend.wait_for_all(),
            _ => Ok(()),
        }
    }
}

impl<B: CandleBackend> Scratch<B> {
    fn new(backend: &B, problem: &Problem) -> warpnorm::Result<Self> {
        Ok(Scratch {
            problem: *problem,
            workspace: backend.workspace(problem)?,
            num_batches_tracked: backend.zeros(1)?,
        })
    }
}

/// What a panic leaves behind such a lock is whole.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use warpnorm::{DType, Epilogue, Layout};

    /// Threads that end, as those of a data loader do, one after another.
    #[test]
    fn what_threads_leave_is_used_again_and_is_not_piled_up() {
        let engine = Engine { backend: Cpu::new(), idle: Mutex::default() };
        let problem =
            |n| Problem::new(&[n, 3], Layout::ChannelsLast, DType::F32, Epilogue::NONE).unwrap();
        let on_a_thread = |problem: &Problem| {
            std::thread::scope(|scope| {
                let call = || engine.give_back(engine.take(problem).unwrap());
                scope.spawn(call).join().unwrap().unwrap();
            });
            lock(&engine.idle).len()
        };
        for _ in 0..5 {
            assert_eq!(on_a_thread(&problem(2)), 1);
        }
        for n in 0..40 {
            assert!(on_a_thread(&problem(2 + n)) <= KEPT);
        }
    }
}
