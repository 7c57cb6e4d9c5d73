//! Training with as many blocks to a channel as are asked for, as `cargo bench --bench tune` does it:
//! the launches are of that size, their results those of the textbook.
#![cfg(emulated)]

use conformance::suite;

use emulator::{Emulator, Options, clustered_facts, cramped_facts, default_facts};
use suite::flat::Buffers;
use suite::on_backend::on_backend;
use suite::{Bars, Case, Data, LAYOUTS, Mode};
use warpnorm::cuda::{Alignment, Choice, Device, DeviceFacts, Pass, Tier, training_plans};
use warpnorm::{Activation, Backend, DType, Epilogue, Problem, Result};

const ADD_RELU: Epilogue = Epilogue { activation: Activation::Relu, residual: true };

/// Threads of each launch.
fn train(options: Options, choice: Choice, case: Case) -> Result<Vec<u64>> {
    let device = Device::new(Emulator::new(options)).with_choice(choice);
    let data = Data::<f32>::new(case).without_gradients_at_kinks(Mode::Train);
    let mut buffers = Buffers::dense(&data);
    let mut workspace = device.workspace(&buffers.problem)?;
    on_backend(&mut buffers, &device, &mut workspace, |on| {
        on.forward_train().and_then(|()| on.backward_train())
    })?;
    buffers.assert_results(&data.expected(Mode::Train), Bars::of(DType::F32));
    Ok(device.launcher().take_counters().iter().map(|counters| counters.threads).collect())
}

fn planned(problem: &Problem, facts: &DeviceFacts, choice: Choice) -> Vec<u64> {
    let aligned = Alignment::ALIGNED;
    let plans = |pass| training_plans(pass, problem, facts, aligned, aligned, choice).unwrap();
    let all = [Pass::Forward, Pass::Backward].into_iter().flat_map(plans);
    let check = |plan: &warpnorm::cuda::Plan| {
        assert_eq!(Choice::Parts(plan.tier, plan.parts), choice, "{plan}");
    };
    all.inspect(check).map(|plan| u64::from(plan.grid) * 256).collect()
}

#[test]
fn as_many_as_asked_for() {
    let fits = (8, 4, 512);
    let half = (4, 4, 512);
    for (facts, dim, tier, sizes) in [
        (default_facts(), fits, Tier::Streaming, &[1, 3, 16][..]),
        // More than a warp merges in one go.
        (default_facts(), (1, 4, 25_600), Tier::Streaming, &[200]),
        (default_facts(), half, Tier::Block, &[1]),
        (clustered_facts(5), fits, Tier::Cluster, &[5]),
        (default_facts(), fits, Tier::Cluster, &[2, 3]),
        (default_facts(), fits, Tier::Grid, &[2, 5, 8]),
        // Too few to keep all of it.
        (cramped_facts(), (40, 4, 520), Tier::Grid, &[2]),
    ] {
        for (seed, &parts) in (2..).zip(sizes) {
            let choice = Choice::Parts(tier, parts);
            for layout in LAYOUTS {
                let case = Case::new(dim, layout, ADD_RELU);
                let problem = Buffers::dense(&Data::<f32>::new(case)).problem;
                let options = Options { seed, facts, ..Options::default() };
                let threads = train(options, choice, case).unwrap();
                assert_eq!(threads, planned(&problem, &facts, choice), "{choice:?} {layout}");
            }
        }
    }
}

/// What was asked for is refused where it cannot be, and never streams instead.
#[test]
fn what_cannot_be_is_refused() {
    let case = Case::new((8, 4, 512), LAYOUTS[0], Epilogue::NONE);
    for (choice, granted, expected) in [
        (Choice::Parts(Tier::Cluster, 9), None, "parts"),
        (Choice::Parts(Tier::Grid, 9), None, "parts"),
        (Choice::Parts(Tier::Grid, 8), Some(1), "too large"),
    ] {
        let options = Options { granted_multiprocessors: granted, ..Options::default() };
        let error = train(options, choice, case).unwrap_err().to_string();
        assert!(error.contains(expected), "{choice:?}: {error}");
    }
}
