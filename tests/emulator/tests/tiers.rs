//! Training passes that keep their tensors on chip, run by the emulator with its checker on,
//! against the textbook.
#![cfg(emulated)]

#[path = "../../suite/common/mod.rs"]
mod suite;

use emulator::{Emulator, Options, default_facts};
use half::{bf16, f16};
use suite::flat::Buffers;
use suite::on_backend::on_backend;
use suite::{Bars, Case, Data, Dim, LAYOUTS, Mode, epilogues};
use warpnorm::cuda::{Device, DeviceFacts, Tier};
use warpnorm::{Backend, Element, Operand};

/// A device with so few slots a thread that small tensors need several blocks, or rounds.
fn cramped(multiprocessors: u32, slots: u32) -> DeviceFacts {
    let shared = (25 << 10) + slots * 256 * 34;
    DeviceFacts {
        multiprocessors,
        shared_bytes_per_block: shared,
        shared_bytes_per_multiprocessor: shared + (1 << 10),
        ..default_facts()
    }
}

fn device(facts: DeviceFacts, tier: Tier, seed: u64) -> Device<Emulator> {
    let options = Options { seed, facts, ..Options::default() };
    Device::new(Emulator::new(options)).with_tier(Some(tier))
}

/// Whether the device has a plan of its tier for the case; if so, its results are right.
fn check<E: Element>(device: &Device<Emulator>, case: Case, gaps: &[(Operand, usize)]) -> bool {
    let data = Data::<E>::new(case).without_gradients_at_kinks(Mode::Train);
    let mut buffers = Buffers::with_gaps(&data, gaps);
    let mut workspace = device.workspace(&buffers.problem).unwrap();
    let outcome = on_backend(&mut buffers, device, &mut workspace, |on| {
        on.forward_train().and_then(|()| on.backward_train())
    });
    if let Err(error) = outcome {
        assert!(error.to_string().contains("tier"), "{} {error}", buffers.problem);
        return false;
    }
    let bars = Bars::in_f32(E::DTYPE, case.epilogue.activation);
    buffers.assert_results(&data.expected(Mode::Train), bars);
    true
}

const DIMS: [Dim; 8] = [
    (6, 16, 1),
    (70, 32, 4),
    (3, 8, 49),
    (2, 24, 9),
    (3, 5, 169),
    (2, 3, 520),
    (2, 4, 1031),
    (900, 24, 1),
];

fn check_epilogues<E: Element>(facts: DeviceFacts, tier: Tier) {
    let mut checked = 0;
    for (seed, dim) in (0..).zip(DIMS) {
        let device = device(facts, tier, seed);
        for layout in LAYOUTS {
            for epilogue in epilogues() {
                checked += u32::from(check::<E>(&device, Case::new(dim, layout, epilogue), &[]));
            }
        }
    }
    assert!(checked > 100, "{checked}");
}

#[test]
fn a_block_in_every_type() {
    check_epilogues::<f32>(default_facts(), Tier::Block);
    check_epilogues::<f16>(default_facts(), Tier::Block);
    check_epilogues::<bf16>(default_facts(), Tier::Block);
}

#[test]
fn a_grid_in_every_type() {
    check_epilogues::<f32>(cramped(4, 4), Tier::Grid);
    check_epilogues::<f16>(cramped(4, 4), Tier::Grid);
    check_epilogues::<bf16>(cramped(4, 4), Tier::Grid);
}
