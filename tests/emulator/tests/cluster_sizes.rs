//! Training on clusters of every size: tensors that fill their blocks, that leave the last ones with
//! little, and that leave some with nothing.
#![cfg(emulated)]

mod counted;
use conformance::suite;

use counted::Setting;
use emulator::{Options, clustered_facts};
use half::{bf16, f16};
use suite::flat::Buffers;
use suite::on_backend::on_backend;
use suite::{Bars, Case, Data, Dim, LAYOUTS, Mode};
use warpnorm::cuda::{Alignment, Clusters, Pass, Tier};
use warpnorm::{Activation, Backend, Element, Epilogue};

const ADD_RELU: Epilogue = Epilogue { activation: Activation::Relu, residual: true };

fn check<E: Element>(size: u32, case: Case, seed: u64) {
    let setting = Setting { facts: clustered_facts(size), tier: Some(Tier::Cluster) };
    let data = Data::<E>::new(case).without_gradients_at_kinks(Mode::Train);
    let mut buffers = Buffers::dense(&data);
    for pass in [Pass::Forward, Pass::Backward] {
        let plan = setting.plan(pass, &buffers.problem, Alignment::ALIGNED);
        assert_eq!((plan.tier, plan.parts), (Tier::Cluster, size), "{plan}");
    }
    let device = setting.device_with(Options { seed, counters: false, ..Options::default() });
    let mut workspace = device.workspace(&buffers.problem).unwrap();
    on_backend(&mut buffers, &device, &mut workspace, |on| {
        on.forward_train().and_then(|()| on.backward_train())
    })
    .unwrap_or_else(|error| panic!("clusters of {size}, seed {seed}, {case:?}: {error}"));
    let bars = Bars::in_f32(E::DTYPE, case.epilogue.activation);
    buffers.assert_results(&data.expected(Mode::Train), bars);
}

/// Each size with a seed of its own, and element types in turn.
fn every_size(dim: Dim) {
    for size in 2..=Clusters::LARGEST as u32 {
        for (layout, epilogue) in LAYOUTS.into_iter().zip([ADD_RELU, Epilogue::NONE]) {
            let case = Case::new(dim, layout, epilogue);
            let seed = u64::from(size);
            match seed % 3 {
                0 => check::<f32>(size, case, seed),
                1 => check::<f16>(size, case, seed),
                _ => check::<bf16>(size, case, seed),
            }
        }
    }
}

#[test]
fn planes() {
    every_size((5, 8, 520));
}

#[test]
fn columns_that_are_channels() {
    every_size((61, 16, 1));
}

#[test]
fn columns_that_fold_into_channels() {
    every_size((40, 8, 49));
}

/// So many partial results that blocks share their merging and meet a second time.
#[test]
fn many_channels() {
    for (size, seed) in [(4, 2), (16, 3)] {
        let case = Case::new((70, 256, 1), LAYOUTS[1], Epilogue::NONE);
        check::<f32>(size, case, seed);
        check::<f16>(size, case, seed);
    }
}
