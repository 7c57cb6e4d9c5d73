//! How long a training pass takes that allocates its outputs.

use crate::cases::{CPU_SHAPES, gpu};
use crate::id::{Config, Element, Fused, Id, Pass, Slot};
use crate::library::{Device, Host, Layer, Library};
use rand::{RngExt, SeedableRng};
use std::time::{Duration, Instant};
use warpnorm::DType;

/// So many samples at least, over so much time.
pub struct Effort {
    pub samples: usize,
    pub time: Duration,
}

/// One library on one shape: medians of forward and backward, nanoseconds.
pub struct Timed {
    pub library: &'static str,
    pub forward: Id,
    pub backward: Id,
    pub forward_ns: f64,
    pub backward_ns: f64,
}

pub fn host(extents: &[usize]) -> Host {
    let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(1);
    let elements = extents.iter().product();
    Host {
        x: (0..elements).map(|_| random.random_range(-2.0..2.0)).collect(),
        dy: Vec::new(),
        weight: vec![1.5; extents[1]],
        bias: vec![0.25; extents[1]],
        extents: extents.to_vec(),
        dtype: DType::F32,
    }
}

/// Bytes of a forward that a GPU's L2 holds next to nothing of until the next, and that take so long
/// that waiting for them does not count.
const LARGE: usize = 256 << 20;

/// On a GPU the large ones that its own benchmarks measure in f32.
fn shapes(device: Device) -> Vec<Vec<usize>> {
    if device != Device::Cuda {
        return CPU_SHAPES.map(<[usize]>::to_vec).into();
    }
    let is_large = |floor: Result<usize, _>| floor.is_ok_and(|bytes| bytes >= LARGE);
    let ids = gpu().into_iter();
    let ids = ids.filter(|it| *it == id(Pass::TrainForward, &it.extents, device));
    ids.filter(|it| is_large(it.floor_bytes())).map(|it| it.extents).collect()
}

/// Every library on every shape whose identifier contains `filter`.
pub fn measure(libraries: &[Library], device: Device, filter: &str, effort: &Effort) -> Vec<Timed> {
    let mut timed = Vec::new();
    for extents in shapes(device) {
        let ids = [Pass::TrainForward, Pass::TrainBackward].map(|pass| id(pass, &extents, device));
        if !ids.iter().any(|id| id.to_string().contains(filter)) {
            continue;
        }
        let host = host(&extents);
        for library in libraries {
            let mut layer = (library.layer)(&host, device);
            let (forward_ns, backward_ns) = medians(&mut *layer, effort);
            let [forward, backward] = ids.clone();
            eprintln!(
                "{:10} {extents:?}: forward {:.2} ms, backward {:.2} ms",
                library.name,
                forward_ns / 1e6,
                backward_ns / 1e6
            );
            let library = library.name;
            timed.push(Timed { library, forward, backward, forward_ns, backward_ns });
        }
    }
    timed
}

/// Neither candle nor Burn knows another layout than channels-first.
fn id(pass: Pass, extents: &[usize], device: Device) -> Id {
    let slot = if extents.len() == 2 { Slot::ChannelsLast } else { Slot::ChannelsFirst };
    let config = match device {
        Device::Cpu { threads } => Config::Threads(threads),
        Device::Cuda => Config::Gpu,
    };
    let (element, fused) = (Element::F32, Fused::None);
    Id { pass, slot, element, extents: extents.to_vec(), fused, config }
}

fn medians(layer: &mut dyn Layer, effort: &Effort) -> (f64, f64) {
    let (mut forward, mut backward) = (Vec::new(), Vec::new());
    layer.forward();
    layer.backward();
    let start = Instant::now();
    while forward.len() < effort.samples || start.elapsed() < effort.time {
        forward.push(clock(layer, |layer| layer.forward()));
        backward.push(clock(layer, |layer| layer.backward()));
    }
    (median(forward), median(backward))
}

fn clock(layer: &mut dyn Layer, call: impl FnOnce(&mut dyn Layer)) -> f64 {
    layer.wait();
    let start = Instant::now();
    call(layer);
    layer.wait();
    start.elapsed().as_secs_f64() * 1e9
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
