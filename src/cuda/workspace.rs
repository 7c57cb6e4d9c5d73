//! [`Workspace`]: scratch of a GPU call.

use super::choice::{Choice, training_plans};
use super::device::Device;
use super::launcher::{DeviceFacts, Launcher};
use super::plan::{Alignment, Pass, Plan, Tier};
use super::remembered::Remembered;
use super::resident::resident;
use crate::backend::SUM_ROWS;
use crate::error::{Error, Result};
use crate::problem::Problem;
use std::fmt;

/// Scratch of the GPU's calls: from [`Backend::workspace`](crate::Backend::workspace). Holds the
/// partial results of blocks that share a channel, and counters that every call leaves at zero, so
/// that a captured call can be replayed; and, on the host, how the latest calls were laid over the
/// device. One per concurrent call.
pub struct Workspace<L: Launcher> {
    pub(super) buffer: L::Buffer<f64>,
    pub(super) size: Size,
    pub(super) remembered: Remembered,
}

/// f64 words of each part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) counters: u64,
    pub(super) partials: u64,
    pub(super) sums: u64,
}

impl Size {
    /// Enough for any call on `problem`, wherever its tensors lie: in any tier, or as `choice` says.
    pub(super) fn of(problem: &Problem, facts: &DeviceFacts, choice: Choice) -> Result<Size> {
        let sums = (SUM_ROWS * problem.channels()) as u64;
        let mut size = Size { counters: 0, partials: 0, sums };
        let mut hold = |plan: &Plan| {
            // Two counters a word; partial results begin at a multiple of 16 bytes.
            size.counters = size.counters.max(plan.counters().div_ceil(2).next_multiple_of(2));
            size.partials = size.partials.max(plan.partial_words(problem));
        };
        let offsets = [Alignment::ALIGNED, Alignment { offset: Some(1) }, Alignment::MIXED];
        for pass in [Pass::Statistics, Pass::Reduce, Pass::Frozen] {
            for alignment in offsets {
                hold(&Plan::new(pass, problem, facts, alignment)?);
            }
        }
        for pass in [Pass::Forward, Pass::Backward] {
            for alignment in offsets {
                for tier in [None, Some(Tier::Block), Some(Tier::Cluster), Some(Tier::Grid)] {
                    if let Some((plan, _)) = resident(pass, problem, facts, alignment, tier.into())
                    {
                        hold(&plan);
                    }
                }
                // Whether there are such plans is for the call to say, which knows its tensors.
                let plans = training_plans(pass, problem, facts, alignment, alignment, choice);
                plans.iter().flatten().for_each(&mut hold);
            }
        }
        Ok(size)
    }

    pub(super) fn words(&self) -> u64 {
        self.counters + self.partials + self.sums
    }

    pub(super) fn bytes(&self) -> u64 {
        self.words() * size_of::<f64>() as u64
    }

    /// Refuses a workspace that was made for a smaller problem.
    pub(super) fn check(&self, problem: &Problem, plans: &[Plan]) -> Result<()> {
        let fits = plans.iter().all(|plan| {
            plan.counters().div_ceil(2) <= self.counters
                && plan.partial_words(problem) <= self.partials
        });
        if fits && (SUM_ROWS * problem.channels()) as u64 <= self.sums {
            return Ok(());
        }
        Err(Error::argument(
            "workspace",
            format_args!("one made for this problem ({problem})"),
            "one made for a smaller problem",
        ))
    }
}

impl<L: Launcher> fmt::Debug for Workspace<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workspace").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

impl<L: Launcher> Workspace<L> {
    pub(super) fn new(launcher: &L, problem: &Problem, choice: Choice) -> Result<Self> {
        let size = Size::of(problem, &launcher.facts(), choice)?;
        let buffer = launcher.zeros(size.words() as usize)?;
        Ok(Workspace { buffer, size, remembered: Remembered::default() })
    }

    /// [`new`](Self::new) in memory that is there.
    pub(super) fn within(
        launcher: &L,
        problem: &Problem,
        choice: Choice,
        mut buffer: L::Buffer<f64>,
    ) -> Result<Self> {
        let size = Size::of(problem, &launcher.facts(), choice)?;
        let refused = |expected: fmt::Arguments<'_>, found: fmt::Arguments<'_>| {
            Err(Error::argument("memory", expected, found))
        };
        let (words, len) = (size.words(), L::len(&buffer));
        if (len as u64) < words {
            return refused(
                format_args!("at least {words} f64 ({problem})"),
                format_args!("{len}"),
            );
        }
        let address = launcher.memory(&L::slice(&buffer))?.address;
        if !address.is_multiple_of(16) {
            return refused(format_args!("a multiple of 16 bytes"), format_args!("{address:#x}"));
        }
        launcher.clear(&mut buffer).map_err(|error| error.renamed("memory"))?;
        Ok(Workspace { buffer, size, remembered: Remembered::default() })
    }

    /// The memory, for instance to give it back to where it came from.
    pub fn into_memory(self) -> L::Buffer<f64> {
        self.buffer
    }

    /// Makes the workspace usable again after a launch was aborted half-way. It stays where it is,
    /// so that captured calls may go on with it.
    ///
    /// # Errors
    /// The backend is of another context, or its device has failed for good.
    pub fn reset(&mut self, backend: &Device<L>) -> Result<()> {
        backend.launcher().clear(&mut self.buffer).map_err(|error| error.renamed("workspace"))
    }

    /// The memory itself, for tests to leave there what an aborted launch may.
    #[doc(hidden)]
    pub fn buffer_mut(&mut self) -> &mut L::Buffer<f64> {
        &mut self.buffer
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.size.bytes()
    }
}
