//! What the calls around the kernels rest on: names that exist, memory that is told apart.
#![cfg(emulated)]

use conformance::suite::{LAYOUTS, epilogues};
use warpnorm::cuda::{Alignment, MemoryRef, Pass, Plan, Tier, training_plans};
use warpnorm::{DType, Problem};

/// A plan cannot name a kernel that does not exist.
#[test]
fn every_plan_names_a_kernel() {
    let kernels: Vec<String> = emulator::kernels().into_iter().map(|kernel| kernel.name).collect();
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        for (layout, epilogue) in
            LAYOUTS.into_iter().flat_map(|it| epilogues().map(move |e| (it, e)))
        {
            for spatial in [1, 49, 1024, 1031] {
                let problem = Problem::new(&[2, 8, spatial], layout, dtype, epilogue).unwrap();
                for plan in plans(&problem) {
                    assert!(kernels.contains(&plan.kernel), "{plan}");
                }
            }
        }
    }
}

/// Of every call, in every tier and alignment.
fn plans(problem: &Problem) -> Vec<Plan> {
    let facts = emulator::default_facts();
    let named = [Tier::Streaming, Tier::Block, Tier::Cluster, Tier::Grid];
    let tiers = named.map(Some).into_iter().chain([None]);
    let mut plans = Vec::new();
    for all in [Alignment::ALIGNED, Alignment::MIXED] {
        for tier in tiers.clone() {
            // Statistics see x alone, which agrees with itself.
            let of = |pass, inputs| training_plans(pass, problem, &facts, inputs, all, tier);
            plans.extend(of(Pass::Forward, Alignment::ALIGNED).unwrap());
            plans.extend(of(Pass::Backward, all).unwrap());
        }
        plans.push(Plan::new(Pass::Frozen, problem, &facts, all).unwrap());
    }
    plans
}

/// The same memory as input and output is refused by its addresses (safe code cannot borrow a
/// buffer twice; `tests/gpu` makes such calls with raw ones).
#[test]
fn memory_that_overlaps() {
    let memory = |address, bytes| MemoryRef { address, bytes, hold: () };
    let (a, b) = (memory(64, 32), memory(80, 32));
    assert!(a.overlaps(&b) && b.overlaps(&a) && a.overlaps(&a));
    assert!(!a.overlaps(&memory(96, 8)) && !a.overlaps(&memory(64, 0)));
}
