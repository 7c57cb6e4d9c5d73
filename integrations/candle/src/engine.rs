//! What a layer keeps from call to call: a backend for each kind of device, and its workspaces.

use crate::backend::CandleBackend;
use candle_core::{Error, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
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

/// A backend and its scratch.
pub struct Engine<B: CandleBackend> {
    pub backend: B,
    /// What no call has at the moment; what was used last is at the end. Each thread has its own: candle's
    /// CUDA stream is another one in each, so that what one has enqueued may still run.
    idle: Mutex<Vec<(ThreadId, Scratch<B>)>>,
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
        let (mut idle, me) = (lock(&self.idle), thread::current().id());
        if let Some(at) =
            idle.iter().rposition(|(it, scratch)| *it == me && scratch.problem == *problem)
        {
            return Ok(idle.remove(at).1);
        }
        drop(idle);
        Scratch::new(&self.backend, problem).map_err(Error::wrap)
    }

    pub fn give_back(&self, scratch: Scratch<B>) {
        /// A training loop has a few problems: whole batches, the last one, those of evaluation.
        const KEPT: usize = 4;
        let (mut idle, me) = (lock(&self.idle), thread::current().id());
        idle.push((me, scratch));
        let mut own = (0..idle.len()).filter(|&at| idle[at].0 == me);
        if let (Some(oldest), KEPT..) = (own.next(), own.count()) {
            idle.remove(oldest);
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
