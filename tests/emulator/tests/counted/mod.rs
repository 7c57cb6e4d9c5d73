//! What the tests of counters share: the counters of every launch of a call, and what the launch's
//! plan says of them.

#![allow(dead_code, reason = "no test file uses all of it")]

use crate::suite::Mode;
use crate::suite::on_backend::OnBackend;
use emulator::{BufferTraffic, Counters, Emulator, Options, default_facts};
use warpnorm::cuda::{
    Alignment, Device, DeviceFacts, Pass, Plan, RequestedBytes, Tier, training_plans,
};
use warpnorm::{Element, Problem};

/// The pass that a kernel is of in a call of some mode; `None`: it goes through no tensor.
pub fn pass_of(kernel: &str, mode: Mode) -> Option<Pass> {
    match kernel.split('_').next() {
        Some("statistics") => Some(Pass::Statistics),
        Some("apply") if mode == Mode::Eval => Some(Pass::Inference),
        Some("apply") => Some(Pass::Apply),
        Some("reduce") => Some(Pass::Reduce),
        Some("gradient") => Some(Pass::Gradient),
        Some("frozen") => Some(Pass::Frozen),
        Some("forward") => Some(Pass::Forward),
        Some("backward") => Some(Pass::Backward),
        _ => None,
    }
}

/// A device, and where its training passes are to keep their tensors.
#[derive(Clone, Copy)]
pub struct Setting {
    pub facts: DeviceFacts,
    pub tier: Option<Tier>,
}

impl Setting {
    pub fn of(tier: Option<Tier>) -> Setting {
        Setting { facts: default_facts(), tier }
    }

    /// One that checks and counts.
    pub fn device(&self) -> Device<Emulator> {
        self.device_with(Options { seed: 1, ..Options::default() })
    }

    pub fn device_with(&self, options: Options) -> Device<Emulator> {
        let options = Options { facts: self.facts, ..options };
        Device::new(Emulator::new(options)).with_tier(self.tier)
    }

    /// The plan of a launch.
    pub fn plan(&self, pass: Pass, problem: &Problem, alignment: Alignment) -> Plan {
        match pass {
            Pass::Forward | Pass::Backward => {
                let plans =
                    training_plans(pass, problem, &self.facts, alignment, alignment, self.tier);
                plans.unwrap().remove(0)
            }
            _ => Plan::new(pass, problem, &self.facts, alignment).unwrap(),
        }
    }
}

/// What a launch did with each tensor, and with the mask.
pub struct ByTensor {
    pub x: BufferTraffic,
    pub residual: BufferTraffic,
    pub dy: BufferTraffic,
    pub y: BufferTraffic,
    pub dx: BufferTraffic,
    pub dresidual: BufferTraffic,
    pub mask: BufferTraffic,
}

impl ByTensor {
    pub fn new<E: Element>(counters: &Counters, on: &OnBackend<'_, Device<Emulator>, E>) -> Self {
        let optional = |buffer: &Option<emulator::Buffer<E>>| {
            buffer.as_ref().map_or(BufferTraffic::default(), |buffer| counters.of(buffer))
        };
        ByTensor {
            x: counters.of(&on.x),
            residual: optional(&on.residual),
            dy: counters.of(&on.dy),
            y: counters.of(&on.y),
            dx: counters.of(&on.dx),
            dresidual: optional(&on.dresidual),
            mask: on.mask.as_ref().map_or(BufferTraffic::default(), |mask| counters.of(mask)),
        }
    }

    /// To be compared with `Plan::requested_bytes`.
    pub fn requested(&self) -> RequestedBytes {
        RequestedBytes {
            x: self.x.read.bytes,
            residual: self.residual.read.bytes,
            dy: self.dy.read.bytes,
            y: self.y.written.bytes,
            dx: self.dx.written.bytes,
            dresidual: self.dresidual.written.bytes,
            mask_read: self.mask.read.bytes,
            mask_written: self.mask.written.bytes,
        }
    }

    /// Without the mask, whose bytes are too few to fill sectors.
    pub fn tensors(&self) -> [BufferTraffic; 6] {
        [self.x, self.residual, self.dy, self.y, self.dx, self.dresidual]
    }
}
