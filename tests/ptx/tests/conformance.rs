//! Every kernel as NVRTC compiled it: checks that the emulator runs on their source, and a GPU on their
//! machine code. The emulator is thorough; here they are so many that every kernel runs.

use conformance::devices::{clustered_facts, cramped_facts, default_facts};
use conformance::{Check, Subject, checks};
use libtest_mimic::{Arguments, Failed, Trial};
use ptx_machine::{Buffer, Program, PtxMachine, Slice, SliceMut, program};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use warpnorm::Scalar;
use warpnorm::cuda::images::images;
use warpnorm::cuda::target::Target;
use warpnorm::cuda::{Device, DeviceFacts, Tier};

/// A device of its own for every check: they run side by side.
#[derive(Clone, Copy)]
struct Compiled {
    tier: Tier,
    facts: DeviceFacts,
}

impl Subject for Compiled {
    type Launcher = PtxMachine;

    fn tier(&self) -> Tier {
        self.tier
    }

    /// No multiple of how many there are of anything.
    fn one_in(&self) -> usize {
        11
    }

    fn device(&self, seed: u64) -> Device<PtxMachine> {
        let program = kernels().expect("checks are ignored where there are none");
        let machine = PtxMachine::new(Arc::clone(program), self.facts, seed);
        Device::new(machine).with_tier(Some(self.tier))
    }

    fn part<T: Scalar>(buffer: &Buffer<T>, start: usize) -> Slice<'_, T> {
        buffer.from(start)
    }

    fn part_mut<T: Scalar>(buffer: &mut Buffer<T>, start: usize) -> SliceMut<'_, T> {
        buffer.from_mut(start)
    }
}

/// What the build embeds as PTX for compute capability 9.0; `None`: it embeds none.
fn kernels() -> Option<&'static Arc<Program>> {
    static KERNELS: OnceLock<Option<Arc<Program>>> = OnceLock::new();
    let kernels = KERNELS.get_or_init(|| {
        let units = images().iter().filter(|image| image.target == Target::Ptx(90));
        let texts: Vec<_> = units.map(|unit| unit.decompress().expect("it is whole")).collect();
        let texts = texts.iter().map(|text| str::from_utf8(text).expect("PTX is text"));
        let program = program(texts).unwrap_or_else(|error| panic!("{error}"));
        (!program.is_empty()).then(|| Arc::new(program))
    });
    kernels.as_ref()
}

/// What they are called that are run here.
const CHECKS: [&str; 5] =
    ["::every_epilogue", "::a_stride_for", "::a_mean_far", "views::", "calls::"];

fn trials_of(name: &str, subject: Compiled) -> impl Iterator<Item = Trial> + use<> {
    let name = name.to_owned();
    let wanted = move |check: &Check<_>| {
        check.concerns(subject.tier) && CHECKS.iter().any(|part| check.name.contains(part))
    };
    checks().into_iter().filter(wanted).map(move |check| {
        Trial::test(format!("{name}::{}", check.name), move || {
            (check.run)(&subject);
            Ok::<(), Failed>(())
        })
    })
}

fn main() -> ExitCode {
    let facts = default_facts();
    let streaming = Compiled { tier: Tier::Streaming, facts };
    let block = Compiled { tier: Tier::Block, facts };
    let grid = Compiled { tier: Tier::Grid, facts: cramped_facts() };
    let cluster = Compiled { tier: Tier::Cluster, facts: clustered_facts(3) };
    let trials = trials_of("streaming", streaming)
        .chain(trials_of("block", block))
        .chain(trials_of("grid", grid))
        .chain(trials_of("cluster_3", cluster));
    let is_missing = kernels().is_none();
    let trials = trials.map(|trial| trial.with_ignored_flag(is_missing)).collect();
    if is_missing {
        println!("nothing to run: the build holds no PTX for 9.0, as without NVRTC");
    }
    let arguments = Arguments::from_args();
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Where all checks were run, all kernels must have been.
    let is_all = arguments.filter.is_none() && arguments.skip.is_empty() && !arguments.list;
    let missed = kernels().filter(|_| is_all).map_or(Vec::new(), |program| program.never_run());
    if !missed.is_empty() {
        println!("no check has run {missed:?}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}
