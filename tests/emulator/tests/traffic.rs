//! What the kernels ask memory for: as much as their plans say, in whole sectors.
#![cfg(emulated)]

mod counted;
use conformance::suite;

use counted::{ByTensor, Setting, pass_of};
use emulator::{BufferTraffic, Counters, Emulator, Options, clustered_facts, cramped_facts};
use half::f16;
use suite::flat::Buffers;
use suite::on_backend::{OnBackend, on_backend};
use suite::{Case, Data, Dim, LAYOUTS, Mode};
use warpnorm::cuda::{Alignment, Device, Geometry, Pass, Plan, Tier, Walk};
use warpnorm::{Activation, Backend, Element, Epilogue, Layout};

const EPILOGUES: [Epilogue; 5] = [
    Epilogue::NONE,
    Epilogue { activation: Activation::Relu, residual: false },
    Epilogue { activation: Activation::Relu, residual: true },
    Epilogue { activation: Activation::Silu, residual: true },
    Epilogue { activation: Activation::Identity, residual: true },
];

/// Runs a training step or an evaluation and hands each launch's counters over.
fn launches<E: Element>(
    setting: &Setting,
    case: Case,
    mode: Mode,
    mut each: impl FnMut(&Counters, &OnBackend<'_, Device<Emulator>, E>),
) {
    // `conformance` checks.
    let device = setting.device_with(Options { seed: 1, checks: false, ..Options::default() });
    let emulator = device.launcher().clone();
    let mut buffers = Buffers::dense(&Data::<E>::new(case));
    let mut workspace = device.workspace(&buffers.problem).unwrap();
    on_backend(&mut buffers, &device, &mut workspace, |on| {
        match mode {
            Mode::Train => on.forward_train().and_then(|()| on.backward_train())?,
            Mode::Eval => on.inference().and_then(|()| on.inference_backward())?,
        }
        for counters in emulator.take_counters() {
            each(&counters, on);
        }
        Ok(())
    })
    .unwrap();
}

/// The kernels that ran.
fn check_bytes<E: Element>(setting: &Setting, dim: Dim, modes: &[Mode]) -> Vec<Plan> {
    let mut plans = Vec::new();
    for layout in LAYOUTS {
        for epilogue in EPILOGUES {
            for &mode in modes {
                let case = Case::new(dim, layout, epilogue);
                let problem = Buffers::dense(&Data::<E>::new(case)).problem;
                launches::<E>(setting, case, mode, |counters, on| {
                    let pass = pass_of(&counters.kernel, mode).unwrap();
                    let plan = setting.plan(pass, &problem, Alignment::ALIGNED);
                    let expected = plan.requested_bytes(&problem);
                    let requested = ByTensor::new(counters, on).requested();
                    assert_eq!(requested, expected, "{} {dim:?}", counters.kernel);
                    plans.push(plan);
                });
            }
        }
    }
    plans
}

/// Every byte of a tensor as often as the plan says, and no other.
#[test]
fn as_many_bytes_as_planned() {
    let setting = Setting::of(Some(Tier::Streaming));
    let modes = [Mode::Train, Mode::Eval];
    let small = [(5, 16, 1), (3, 8, 49), (2, 24, 9), (5, 7, 3)];
    for dim in small.into_iter().chain([(2, 3, 520), (3, 5, 169), (3, 8, 169), (2, 4, 514)]) {
        check_bytes::<f32>(&setting, dim, &modes);
        check_bytes::<f16>(&setting, dim, &modes);
    }
}

/// The same of what stays on chip, whole or in part: `has` holds of some plan of each kernel.
fn on_chip(setting: &Setting, dims: &[Dim], has: &[fn(&Plan) -> bool]) -> Vec<Plan> {
    let mut plans = Vec::new();
    for &dim in dims {
        plans.extend(check_bytes::<f32>(setting, dim, &[Mode::Train]));
        plans.extend(check_bytes::<f16>(setting, dim, &[Mode::Train]));
    }
    plans.retain(|plan| Some(plan.tier) == setting.tier);
    for pass in [Pass::Forward, Pass::Backward] {
        for walk in [Walk::Planes, Walk::Columns] {
            let of = plans.iter().filter(|plan| plan.pass == pass && plan.walk == walk);
            for (index, has) in has.iter().enumerate() {
                assert!(of.clone().any(has), "{pass:?} {walk:?} {index}");
            }
        }
    }
    plans
}

#[test]
fn what_stays_in_a_block_is_read_once() {
    let dims = [(3, 8, 49), (2, 24, 9), (2, 3, 520), (3, 5, 169), (3, 8, 169)];
    on_chip(&Setting::of(Some(Tier::Block)), &dims, &[|_| true]);
}

#[test]
fn what_stays_in_a_cluster_is_read_once() {
    let setting = Setting { facts: clustered_facts(3), tier: Some(Tier::Cluster) };
    let dims = [(12, 8, 49), (20, 24, 9), (5, 3, 520), (9, 5, 169), (20, 8, 169)];
    on_chip(&setting, &dims, &[|plan| plan.parts == 3]);
}

#[test]
fn what_stays_in_the_grid_is_read_once() {
    fn keeps_all(plan: &Plan) -> bool {
        let rounds = match plan.geometry {
            Geometry::Planes { windows_per_part, .. } => windows_per_part.div_ceil(256),
            Geometry::Columns { rows_per_part, packs_per_tile, .. } => {
                rows_per_part.div_ceil(256 / u64::from(packs_per_tile))
            }
        };
        rounds <= u64::from(plan.slots)
    }
    let setting = Setting { facts: cramped_facts(), tier: Some(Tier::Grid) };
    let dims = [(40, 2, 1031), (12, 4, 1032), (400, 24, 9), (50, 24, 9), (90, 8, 49), (40, 8, 169)];
    let plans =
        on_chip(&setting, &dims, &[keeps_all, |plan| !keeps_all(plan), |plan| plan.spares_cache]);
    assert!(plans.iter().any(|plan| !keeps_all(plan) && plan.grid > plan.parts), "teams in rounds");
}

/// Where rows and planes are whole sectors, every request touches as few as its bytes fill.
#[test]
fn aligned_shapes_are_fully_coalesced() {
    for (dim, layout) in [
        ((4, 8, 1024), Layout::ChannelsFirst),
        ((8, 64, 49), Layout::ChannelsFirst),
        ((16, 64, 16), Layout::ChannelsLast),
        ((512, 256, 1), Layout::ChannelsLast),
        ((64, 48, 4), Layout::ChannelsLast),
    ] {
        let case =
            Case::new(dim, layout, Epilogue { activation: Activation::Relu, residual: true });
        for (tier, mode) in [
            (Tier::Streaming, Mode::Train),
            (Tier::Streaming, Mode::Eval),
            (Tier::Block, Mode::Train),
            (Tier::Cluster, Mode::Train),
            (Tier::Grid, Mode::Train),
        ] {
            let setting = Setting::of(Some(tier));
            check_sectors::<f32>(&setting, case, mode);
            // Tiles of whole channels of 7 x 7 in f16 end in the middle of a sector.
            if dim.2 != 49 {
                check_sectors::<f16>(&setting, case, mode);
            }
        }
    }
}

fn check_sectors<E: Element>(setting: &Setting, case: Case, mode: Mode) {
    launches::<E>(setting, case, mode, |counters, on| {
        for BufferTraffic { read, written, .. } in ByTensor::new(counters, on).tensors() {
            for traffic in [read, written] {
                assert_eq!(
                    traffic.sectors * 32,
                    traffic.bytes,
                    "{} {:?} {}",
                    counters.kernel,
                    case.dim,
                    case.layout
                );
            }
        }
    });
}
