//! Every kernel as NVRTC compiled it: checks that the emulator runs on their source, and a GPU on their
//! machine code. The emulator is thorough; here they are so many that every kernel runs.

use conformance::devices::{clustered_facts, cramped_facts, default_facts};
use conformance::{Check, Subject, checks};
use libtest_mimic::{Arguments, Failed, Trial};
use ptx_machine::{Buffer, CAPABILITIES, PtxMachine, Slice, SliceMut, embedded};
use std::process::ExitCode;
use std::sync::Arc;
use warpnorm::Scalar;
use warpnorm::cuda::{Device, DeviceFacts, Tier};

/// A device of its own for every check: they run side by side.
#[derive(Clone, Copy)]
struct Compiled {
    /// The compute capability that NVRTC compiled for: 90 is 9.0.
    capability: u32,
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
        let program = embedded(self.capability).expect("else checks are ignored");
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

/// What they are called that are run here.
const CHECKS: [&str; 6] =
    ["::every_epilogue", "::a_stride_for", "::a_mean_far", "::rows_abreast", "views::", "calls::"];

/// A tier's checks, ignored where there are no kernels.
fn trials_of(name: &str, subject: Compiled) -> impl Iterator<Item = Trial> + use<> {
    let name = format!("{}::{name}", subject.capability);
    let is_missing = embedded(subject.capability).is_none();
    let wanted = move |check: &Check<_>| {
        check.concerns(subject.tier) && CHECKS.iter().any(|part| check.name.contains(part))
    };
    checks().into_iter().filter(wanted).map(move |check| {
        let run = move || {
            (check.run)(&subject);
            Ok::<(), Failed>(())
        };
        Trial::test(format!("{name}::{}", check.name), run).with_ignored_flag(is_missing)
    })
}

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for capability in CAPABILITIES {
        let compute_capability = (capability / 10, capability % 10);
        let of = |tier, facts: DeviceFacts| {
            let facts = DeviceFacts { compute_capability, ..facts };
            Compiled { capability, tier, facts }
        };
        trials.extend(trials_of("streaming", of(Tier::Streaming, default_facts())));
        trials.extend(trials_of("block", of(Tier::Block, default_facts())));
        trials.extend(trials_of("grid", of(Tier::Grid, cramped_facts())));
        if capability >= 90 {
            trials.extend(trials_of("cluster_3", of(Tier::Cluster, clustered_facts(3))));
        }
        if embedded(capability).is_none() {
            println!("nothing to run: no PTX for {capability} in the build, as without NVRTC");
        }
    }
    let arguments = Arguments::from_args();
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Where all checks were run, all kernels must have been.
    let is_all = arguments.filter.is_none() && arguments.skip.is_empty() && !arguments.list;
    let programs = CAPABILITIES.into_iter().filter_map(embedded).filter(|_| is_all);
    let missed: Vec<_> = programs.flat_map(|program| program.never_run()).collect();
    if !missed.is_empty() {
        println!("no check has run {missed:?}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}
