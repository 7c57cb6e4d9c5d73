//! What the calls around the kernels rest on: names that exist, memory that is told apart.
#![cfg(emulated)]

use conformance::suite::flat::Buffers;
use conformance::suite::on_backend::on_backend;
use conformance::suite::{Bars, Case, Data, LAYOUTS, Mode, epilogues};
use emulator::{Emulator, Options, clustered_facts, cramped_facts};
use std::collections::HashSet;
use warpnorm::cuda::{
    Alignment, Device, DeviceFacts, MemoryRef, Pass, Plan, Tier, profiles, training_plans,
};
use warpnorm::{Backend, DType, Epilogue, Problem};

/// A plan cannot name a kernel that does not exist, on whatever device.
#[test]
fn every_plan_names_a_kernel() {
    let kernels: HashSet<String> =
        emulator::kernels().into_iter().map(|kernel| kernel.name).collect();
    let devices = profiles::ALL.map(|(_, facts)| facts).into_iter();
    let devices: Vec<_> = devices.chain([emulator::default_facts()]).collect();
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        for (layout, epilogue) in
            LAYOUTS.into_iter().flat_map(|it| epilogues().map(move |e| (it, e)))
        {
            for extents in [[2, 8, 1], [16, 100, 1], [40, 3, 49], [2, 8, 1024], [2, 7, 1031]] {
                let problem = Problem::new(&extents, layout, dtype, epilogue).unwrap();
                for plan in devices.iter().flat_map(|facts| plans(&problem, facts)) {
                    assert!(kernels.contains(&plan.kernel), "{plan}");
                }
            }
        }
    }
}

/// Of every call, in every tier and alignment.
fn plans(problem: &Problem, facts: &DeviceFacts) -> Vec<Plan> {
    let named = [Tier::Streaming, Tier::Block, Tier::Cluster, Tier::Grid];
    let tiers = named.map(Some).into_iter().chain([None]);
    let mut plans = Vec::new();
    for all in [Alignment::ALIGNED, Alignment::MIXED] {
        for tier in tiers.clone() {
            // Statistics see x alone, which agrees with itself.
            let of = |pass, inputs| training_plans(pass, problem, facts, inputs, all, tier);
            plans.extend(of(Pass::Forward, Alignment::ALIGNED).unwrap());
            plans.extend(of(Pass::Backward, all).unwrap());
        }
        plans.push(Plan::new(Pass::Frozen, problem, facts, all).unwrap());
    }
    plans
}

/// On a GPU that others share a launch may be refused that its facts allow: the call streams.
#[test]
fn a_device_that_holds_less_than_it_said() {
    let grid = (Tier::Grid, cramped_facts(), "forward_planes_f32x4");
    let cluster = (Tier::Cluster, clustered_facts(4), "forward_planes_f32x4");
    for (tier, facts, kernel) in [grid, cluster] {
        let case = Case::new((40, 2, 1032), LAYOUTS[0], Epilogue::NONE);
        let data = Data::<f32>::new(case);
        for (granted, expected) in [
            (None, &[kernel, "backward_planes_f32x4"][..]),
            (
                Some(1),
                &[
                    "statistics_planes_f32x4",
                    "apply_planes_f32x4_identity",
                    "reduce_planes_f32x4",
                    "gradient_planes_f32x4",
                ],
            ),
        ] {
            let options = Options { facts, granted_multiprocessors: granted, ..Options::default() };
            let device = Device::new(Emulator::new(options)).with_tier(Some(tier));
            let mut buffers = Buffers::dense(&data);
            let mut workspace = device.workspace(&buffers.problem).unwrap();
            on_backend(&mut buffers, &device, &mut workspace, |on| {
                on.forward_train().and_then(|()| on.backward_train())
            })
            .unwrap();
            buffers.assert_results(&data.expected(Mode::Train), Bars::of(DType::F32));
            let counters = device.launcher().take_counters();
            let kernels: Vec<&str> = counters.iter().map(|it| it.kernel.as_str()).collect();
            assert_eq!(kernels, expected, "{tier:?}");
        }
    }
}

/// The same memory as input and output is refused by its addresses (safe code cannot borrow a
/// buffer twice; `overlaps.rs` makes such calls, and `tests/gpu` does with raw ones).
#[test]
fn memory_that_overlaps() {
    let memory = |address, bytes| MemoryRef { address, bytes, hold: () };
    let (a, b) = (memory(64, 32), memory(80, 32));
    assert!(a.overlaps(&b) && b.overlaps(&a) && a.overlaps(&a));
    assert!(!a.overlaps(&memory(96, 8)) && !a.overlaps(&memory(64, 0)));
}
