//! The CPU backend: every call of [`Backend`] on host memory, vectorised and split over threads.
//! What holds of its results is said at [`Cpu`].
//!
//! # How a call goes through the files
//! - `compiled` has [`Backend`]'s methods; each passes its arguments to a function of `calls`, which is
//!   compiled here for every element type.
//! - `calls` has a function for each call. It has `bind` check everything that can be refused (tensors
//!   by `tensor`), and `bind` asks `runs` what loops will run along: planes, rows or whole samples. Then
//!   it makes its `passes`: statistics, apply, reduce, gradients.
//! - A pass goes `by_planes` or `by_rows`. `planes` and `rows` cut the tensors into parts and tasks, and
//!   `parallel` shares these out over threads.
//! - A task goes along memory in tiles (`tile`), in groups of small planes (`neighbours`) or in strips of
//!   rows (`strips`), and along those in chunks (`run`). What is known of a channel is made by `channel`,
//!   of every lane of a row by `lanes`.
//! - Identity and ReLU go from tensor to tensor by the loops of `direct`; all else, and channels whose
//!   coefficients these cannot hold, by `block`s of f64, with activations by `epilogue` and `math`.
//! - `moments` measures and merges, `sums` adds up along a run and `row_sums` down the columns of rows,
//!   `convert` loads and stores elements, `simd` has dispatch and all `unsafe`.
//!
//! # To change a loop
//! What a [`vectorized!`](simd::vectorized) function calls must be `#[inline(always)]`, or it stays
//! compiled for the baseline. What holds the digits: in `tests/suite` `oracle.rs` (the textbook),
//! `rules.rs` (each numerical rule, and the same bits on any number of threads) and `gradients.rs`
//! (finite differences through every activation), the tests in `math.rs`, and `tests/replay` (other
//! frameworks' results). `cargo bench --bench cpu -- train_forward/channels-last/f32` times a pass and
//! compares it with its last run.

mod bind;
mod block;
mod by_planes;
mod by_rows;
mod calls;
mod channel;
mod compiled;
mod convert;
mod direct;
mod epilogue;
mod lanes;
mod math;
mod moments;
mod neighbours;
mod parallel;
mod passes;
mod planes;
mod row_sums;
mod rows;
mod run;
mod runs;
mod simd;
mod strips;
mod sums;
mod tensor;
mod tile;

pub(crate) use channel::invstd;
pub use tensor::{CpuSlice, CpuSliceMut};

use crate::config::Layout;
use crate::element::DType;
use crate::error::{Error, Result};
use crate::memory::filled;
use crate::problem::Problem;
use channel::Sums;
pub(crate) use compiled::Compiled;
use convert::Convert;
use lanes::Panel;
use moments::Moments;
use rayon::prelude::*;
use runs::Runs;
use std::error::Error as _;
use std::sync::{Arc, OnceLock};

/// The CPU: any target of Rust's, with AVX-512 or AVX2 where the processor has it.
///
/// - **Arithmetic** is f64, rounded once on the way out; identity and ReLU of 16-bit tensors are
///   computed in f32 where its range suffices (forward over a residual in f64).
/// - **Deterministic**: a tensor is cut by its shape, by whether its samples lie apart and by whether
///   there is a mask, never by the number of threads, so that results are the same bits on any number of
///   them. Layouts and instruction sets agree within the error bounds, not bit for bit.
/// - **Threads**: tensors of fewer than 65,536 elements are worked on by the calling thread alone (the
///   parts of a [`SyncBatchNorm`](crate::SyncBatchNorm) are shared out whatever their size), and so are
///   all where the process may not start threads.
///
/// ```
/// use warpnorm::{Cpu, BatchNorm, BatchNormConfig};
///
/// let on_all_cores: BatchNorm<Cpu> = BatchNormConfig::new(8).build(Cpu::new())?;
/// let on_one: BatchNorm<Cpu> = BatchNormConfig::new(8).build(Cpu::with_threads(1)?)?;
/// # Ok::<(), warpnorm::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Cpu {
    threads: Threads,
}

#[derive(Debug, Clone, Default)]
enum Threads {
    /// Those of the rayon pool that the caller is in, or of the global one.
    #[default]
    Ambient,
    /// The caller's own.
    One,
    Pool(Arc<rayon::ThreadPool>),
}

impl Cpu {
    /// Works on the threads of the rayon pool that a call is made in: by default the global one,
    /// with a thread per core. What they share out, and what not, is said at [`Cpu`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Works on `threads` threads of its own; 1 means the calling thread.
    ///
    /// # Errors
    /// 0 threads, or more than the system gives.
    pub fn with_threads(threads: usize) -> Result<Self> {
        let threads = match threads {
            0 => return Err(Error::argument("threads", "at least 1", 0)),
            1 => Threads::One,
            _ => {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .map_err(|error| Error::system("starting threads", error))?;
                Threads::Pool(Arc::new(pool))
            }
        };
        Ok(Cpu { threads })
    }

    /// The threads that a call is shared out over; 1 is the caller's alone.
    fn threads(&self, problem: &Problem) -> usize {
        /// Below this the hand-over to another thread costs more than it brings.
        const MIN_ELEMENTS: usize = 1 << 16;
        match &self.threads {
            _ if problem.elements() < MIN_ELEMENTS => 1,
            _ => self.all_threads(),
        }
    }

    fn all_threads(&self) -> usize {
        match &self.threads {
            Threads::Ambient => ambient_threads(),
            Threads::One => 1,
            Threads::Pool(pool) => pool.current_num_threads(),
        }
    }

    /// Runs `f` on every item, on this backend's threads.
    pub(crate) fn for_each<T: Send>(
        &self,
        items: impl Iterator<Item = T>,
        f: impl Fn(T) -> Result<()> + Send + Sync,
    ) -> Result<()> {
        let mut items = items;
        if self.all_threads() == 1 {
            return items.try_for_each(f);
        }
        let items: Vec<T> = items.collect();
        self.run(true, || items.into_par_iter().try_for_each(f))
    }

    /// Runs `f`, on this backend's threads if `parallel`.
    fn run<R: Send>(&self, parallel: bool, f: impl FnOnce() -> R + Send) -> R {
        match &self.threads {
            Threads::Pool(pool) if parallel => pool.install(f),
            _ => f(),
        }
    }
}

/// Threads of the pool that the caller is in, or of rayon's global one: 1 where that cannot be started,
/// since rayon would panic.
fn ambient_threads() -> usize {
    static REFUSED: OnceLock<bool> = OnceLock::new();
    let is_refused = || {
        let started = rayon::ThreadPoolBuilder::new().build_global();
        // An error without a source says that somebody has started it already.
        started.is_err_and(|error| error.source().is_some())
    };
    // Without threads of its own WebAssembly has rayon's makeshift, which starting it here would miss.
    let has_threads = !cfg!(target_family = "wasm");
    if has_threads && rayon::current_thread_index().is_none() && *REFUSED.get_or_init(is_refused) {
        return 1;
    }
    rayon::current_num_threads()
}

/// Scratch of the CPU's calls: from [`Backend::workspace`](crate::Backend::workspace). Grows with
/// the channels, not with the tensor.
#[derive(Debug, Clone, Default)]
pub struct CpuWorkspace {
    moments: Vec<Moments>,
    sums: Vec<Sums>,
    partials: Vec<f64>,
    lanes: LaneTables,
}

/// Where calls that go by rows keep the coefficients of every lane.
#[derive(Debug, Clone, Default)]
struct LaneTables {
    double: Vec<Panel<f64>>,
    single: Vec<Panel<f32>>,
}

/// Lengths of a workspace's parts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct WorkspaceSize {
    moments: usize,
    sums: usize,
    partials: usize,
    panels: usize,
    single_panels: usize,
}

impl WorkspaceSize {
    /// Whatever strides and masks the calls on `problem` may have.
    fn of(problem: &Problem) -> Self {
        let positions = problem.spatial();
        match problem.layout() {
            Layout::ChannelsFirst if Runs::may_be_samples(problem) => {
                let rows = Self::of_rows(problem, problem.batch(), positions);
                rows.and_also(Self::of_planes(problem))
            }
            Layout::ChannelsFirst if positions != 1 => Self::of_planes(problem),
            _ => Self::of_rows(problem, problem.values_per_channel(), 1),
        }
    }

    fn of_planes(problem: &Problem) -> Self {
        let (batch, channels) = (problem.batch(), problem.channels());
        let partition = planes::Partition::new(batch, channels, problem.spatial(), 1);
        let each = channels * partition.parts();
        WorkspaceSize { moments: each, sums: channels + each, ..WorkspaceSize::default() }
    }

    fn of_rows(problem: &Problem, rows: usize, positions: usize) -> Self {
        let batch = problem.batch().max(1);
        let gaps = [batch, rows / batch];
        let partitions =
            [([1, rows], true), ([1, rows], false), (gaps, false)].map(|(rows, dense)| {
                let lanes = [problem.channels(), positions];
                rows::Partition::new(rows, lanes, dense, false, false)
            });
        let most = |f: fn(&rows::Partition) -> usize| partitions.iter().map(f).max().unwrap_or(0);
        let sixteen_bits = matches!(problem.dtype(), DType::F16 | DType::Bf16);
        let panels = most(|p| Panel::<f64>::count(p.lanes()));
        WorkspaceSize {
            moments: 0,
            sums: problem.channels(),
            partials: most(rows::Partition::partials_len),
            panels,
            single_panels: if sixteen_bits { panels } else { 0 },
        }
    }

    fn and_also(self, other: Self) -> Self {
        WorkspaceSize {
            moments: self.moments.max(other.moments),
            sums: self.sums.max(other.sums),
            partials: self.partials.max(other.partials),
            panels: self.panels.max(other.panels),
            single_panels: self.single_panels.max(other.single_panels),
        }
    }
}

impl CpuWorkspace {
    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.moments[..])
            + size_of_val(&self.sums[..])
            + size_of_val(&self.partials[..])
            + size_of_val(&self.lanes.double[..])
            + size_of_val(&self.lanes.single[..])
    }

    fn new(size: WorkspaceSize) -> Result<Self> {
        Ok(CpuWorkspace {
            moments: filled(size.moments, Moments::default())?,
            sums: filled(size.sums, Sums::default())?,
            partials: filled(size.partials, 0.0)?,
            lanes: LaneTables {
                double: Panel::filled(size.panels)?,
                single: Panel::filled(size.single_panels)?,
            },
        })
    }

    fn check(&self, problem: &Problem) -> Result<()> {
        let size = WorkspaceSize::of(problem);
        let found = WorkspaceSize {
            moments: self.moments.len(),
            sums: self.sums.len(),
            partials: self.partials.len(),
            panels: self.lanes.double.len(),
            single_panels: self.lanes.single.len(),
        };
        let fits = found.moments >= size.moments
            && found.sums >= size.sums
            && found.partials >= size.partials
            && found.panels >= size.panels
            && found.single_panels >= size.single_panels;
        if fits {
            return Ok(());
        }
        Err(Error::argument(
            "workspace",
            format_args!("one made for this problem ({problem})"),
            "a smaller one",
        ))
    }
}
