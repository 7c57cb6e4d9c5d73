//! What the kernels ask memory for: as much as their plans say, in whole sectors.
#![cfg(emulated)]

mod counted;
#[path = "../../suite/common/mod.rs"]
mod suite;

use counted::{ByTensor, pass_of, without_mask};
use emulator::{BufferTraffic, Counters, Emulator};
use half::f16;
use suite::flat::Buffers;
use suite::on_backend::{OnBackend, on_backend};
use suite::{Case, Data, Dim, LAYOUTS, Mode};
use warpnorm::cuda::{Alignment, Device, Plan};
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
    case: Case,
    mode: Mode,
    mut each: impl FnMut(&Counters, &OnBackend<'_, Device<Emulator>, E>),
) {
    let emulator = Emulator::with_seed(1);
    let device = Device::new(emulator.clone());
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

fn check_bytes<E: Element>(dim: Dim) {
    for layout in LAYOUTS {
        for epilogue in EPILOGUES {
            for mode in [Mode::Train, Mode::Eval] {
                let case = Case::new(dim, layout, epilogue);
                let mut problem = Buffers::dense(&Data::<E>::new(case)).problem;
                if mode == Mode::Eval {
                    problem = without_mask(&problem);
                }
                launches::<E>(case, mode, |counters, on| {
                    let pass = pass_of(&counters.kernel).unwrap();
                    let facts = emulator::default_facts();
                    let plan = Plan::new(pass, &problem, &facts, Alignment::ALIGNED).unwrap();
                    let expected = plan.requested_bytes(&problem);
                    let requested = ByTensor::new(counters, on).requested();
                    assert_eq!(requested, expected, "{} {dim:?}", counters.kernel);
                });
            }
        }
    }
}

/// Every byte of a tensor as often as the plan says, and no other.
#[test]
fn as_many_bytes_as_planned() {
    for dim in [(5, 16, 1), (3, 8, 49), (2, 24, 9), (2, 3, 520), (3, 5, 169), (5, 7, 3)] {
        check_bytes::<f32>(dim);
        check_bytes::<f16>(dim);
    }
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
        for mode in [Mode::Train, Mode::Eval] {
            let case =
                Case::new(dim, layout, Epilogue { activation: Activation::Relu, residual: true });
            check_sectors::<f32>(case, mode);
            // Tiles of whole channels of 7 x 7 in f16 end in the middle of a sector.
            if dim.2 != 49 {
                check_sectors::<f16>(case, mode);
            }
        }
    }
}

fn check_sectors<E: Element>(case: Case, mode: Mode) {
    launches::<E>(case, mode, |counters, on| {
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
