//! Everything on a GPU, each test on a stream of its own. Where there is no GPU, all are ignored;
//! where there is one that cannot be used, all fail, with the reason.

mod addresses;
mod checks;
mod graph;
mod kernels;
mod large;
mod memory;
mod streams;
mod teams;

use cudarc::driver::DriverError;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use warpnorm::cuda::{Cuda, GpuBuffer, expects_gpu};
use warpnorm::{Backend, Error};

/// How a test ends that does not panic: it passed, it is ignored, it failed.
type Outcome = Result<Completion, Failed>;

const PASSED: Outcome = Ok(Completion::Completed);

/// A test and its name.
struct Test {
    name: String,
    run: Box<dyn FnOnce() -> Outcome + Send>,
}

fn test(name: impl Into<String>, run: impl FnOnce() -> Outcome + Send + 'static) -> Test {
    Test { name: name.into(), run: Box::new(run) }
}

fn main() -> ExitCode {
    let has_gpu = expects_gpu();
    if let Err(error) = Cuda::open(0) {
        eprintln!("{}: {error}", if has_gpu { "a GPU that cannot be used" } else { "no GPU" });
    }
    let tests = [
        kernels::tests(),
        memory::tests(),
        checks::tests(),
        addresses::tests(),
        graph::tests(),
        streams::tests(),
        teams::tests(),
        large::tests(),
    ];
    let trial = |test: Test| {
        let trial = Trial::ignorable_test(test.name, test.run);
        trial.with_ignored_flag(!has_gpu).with_kind(if has_gpu { "" } else { "no GPU" })
    };
    let trials = tests.into_iter().flatten().map(trial).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Held while a stream is captured in a graph, and while a whole context is waited for, which CUDA
/// does not allow meanwhile: cudarc does so for the first stream that it makes in a context.
static CONTEXT: Mutex<()> = Mutex::new(());

fn alone_in_the_context() -> MutexGuard<'static, ()> {
    CONTEXT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first GPU on a new stream, with cudarc's order between streams.
fn open() -> Result<Cuda, Failed> {
    open_beside(&Cuda::open(0)?)
}

/// The same GPU and context on a new stream.
fn open_beside(gpu: &Cuda) -> Result<Cuda, Failed> {
    let guard = alone_in_the_context();
    let stream = gpu.stream().context().new_stream()?;
    drop(guard);
    Ok(Cuda::on_stream(stream)?)
}

/// cudarc's errors as this crate's.
fn driver<T>(result: Result<T, DriverError>) -> warpnorm::Result<T> {
    result.map_err(|error| Error::system("calling CUDA's driver", error))
}

/// 0, 0.01, 0.02, ... in an order that no stride repeats.
fn values(len: usize) -> Vec<f32> {
    (0..len).map(|index| ((index * 37) % 101) as f32 * 0.01).collect()
}

fn upload(gpu: &Cuda, len: usize) -> Result<GpuBuffer<f32>, Failed> {
    Ok(gpu.upload(&values(len))?)
}

/// Fails unless the call was refused with an error that contains `part`.
fn assert_refused(result: warpnorm::Result<()>, part: &str) -> Result<(), Failed> {
    match result {
        Ok(()) => Err(format!("not refused; expected {part:?}").into()),
        Err(error) if error.to_string().contains(part) => Ok(()),
        Err(error) => Err(format!("expected {part:?}, found: {error}").into()),
    }
}
