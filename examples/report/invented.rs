//! Reports of machines that do not exist, for tests.

use crate::cases;
use crate::files::{
    Allocation, Errors, GpuDevice, GpuFile, HardInput, HostCost, Memory, Planned, RustFile, Score,
};
use crate::id::{Config, Pass};
use crate::join::{Measured, Peer, join};
use crate::machine::Machine;
use crate::page::Report;

fn machine() -> Machine {
    Machine {
        cpu: "CPU".into(),
        cores: 2,
        caches: vec!["L2 1M".into()],
        memory_gib: Some(4),
        system: "os".into(),
    }
}

/// One forward and its copy, beside one peer.
pub fn on_a_cpu(peer_ns: f64, peer_device: &str) -> Report {
    let measured = |id: &str, median_ns| Measured::new(id.parse().unwrap(), median_ns);
    let forward = "train_forward/channels-first/f32/8x16x4x4/none/1t";
    let copy = "copy/channels-first/f32/8x16x4x4/none/1t";
    let peers = vec![Peer {
        name: "Peer".into(),
        devices: vec![peer_device.into()],
        versions: [("peer".to_owned(), "1.2".to_owned())].into(),
        foreign_cpu_share: Some(0.0),
        results: vec![measured(forward, peer_ns)],
        ..Peer::default()
    }];
    let rows = join(&[measured(forward, 2000.0), measured(copy, 1000.0)], &peers);
    Report {
        device: "box".into(),
        machine: machine(),
        dates: ("2025-01-01".into(), "2025-01-02".into()),
        rounds: 1,
        commit: Some("abc".into()),
        version: "0.0.0".into(),
        rustc: None,
        peers,
        rows: rows.unwrap(),
        gpu: None,
        rust: None,
    }
}

/// Every case of a GPU, with all that there can be beside it.
pub fn report() -> Report {
    const BANDWIDTH: f64 = 3000.0;
    let ids = cases::gpu();
    let time = |share: f64| {
        let of = move |id: &crate::id::Id| {
            let wobble = 1.0 + 0.1 * (id.extents[1] % 7) as f64 / 7.0;
            3000.0 + id.floor_bytes().unwrap() as f64 / (BANDWIDTH * share) * wobble
        };
        ids.iter().map(move |id| Measured::new(id.clone(), of(id))).collect::<Vec<_>>()
    };
    let mut ours = time(0.9);
    for it in ours.iter_mut().filter(|it| it.id.pass == Pass::Copy) {
        it.median_ns = 2500.0 + it.id.floor_bytes().unwrap() as f64 / BANDWIDTH;
    }
    let is_plain = |it: &Measured| it.id.fused == crate::id::Fused::None;
    let mut cudnn: Vec<_> =
        time(0.5).into_iter().filter(|it| it.id.pass != Pass::Copy && is_plain(it)).collect();
    for it in &mut cudnn {
        let persists = it.id.pass == Pass::TrainForward && it.id.extents.len() == 4;
        let way = if persists { "SPATIAL_PERSISTENT" } else { "SPATIAL" };
        it.way = Some(way.to_owned());
    }
    let without = cudnn.iter().filter(|it| it.id.extents.len() == 5);
    let refused_ways = without.map(|it| (it.id.to_string(), "SPATIAL_PERSISTENT: no".to_owned()));
    let refused = ids.iter().filter(|id| id.fused != crate::id::Fused::None);
    let peers = vec![
        Peer {
            name: "cuDNN".into(),
            devices: vec!["invented GPU".into()],
            versions: [("cudnn".to_owned(), "9.0.0".to_owned())].into(),
            refused_ways: refused_ways.collect(),
            results: cudnn,
            refused: refused.map(|id| (id.to_string(), "SPATIAL: no".to_owned())).collect(),
            ..Peer::default()
        },
        Peer {
            name: "PyTorch".into(),
            devices: vec!["invented GPU".into(), "CPU".into()],
            results: time(0.4).into_iter().filter(|it| it.id.config == Config::Gpu).collect(),
            resnet50_step_ns: [(64, 1e8)].into(),
            ..Peer::default()
        },
    ];
    Report {
        device: "invented".into(),
        gpu: Some(gpu_file(&ours)),
        rows: join(&ours, &peers).unwrap(),
        peers,
        rust: Some(rust_file()),
        ..on_a_cpu(1.0, "CPU")
    }
}

fn gpu_file(ours: &[Measured]) -> GpuFile {
    let planned = |it: &Measured| Planned {
        tier: "grid".into(),
        kernels: vec!["kernel".into()],
        predicted_ns: it.median_ns * if it.id.extents[1] == 50 { 0.5 } else { 0.95 },
        hbm_bytes: 1,
    };
    let training = || ours.iter().filter(|it| it.id.pass == Pass::TrainForward);
    let score = |score| [("SPATIAL".to_owned(), Score(score))].into();
    let errors = Errors { ours: 1e-7, cudnn: score(f64::INFINITY), between: score(1e-6) };
    GpuFile {
        device: GpuDevice {
            name: "invented GPU".into(),
            compute_capability: "9.0".into(),
            multiprocessors: 132,
            memory_bytes: 80_000_000_000,
            l2_bytes: 50 << 20,
            memory_bandwidth: 3_350_000_000_000,
        },
        versions: [("driver".to_owned(), "for CUDA 12.9".to_owned())].into(),
        copy_bandwidth: 3e12,
        plans: training().map(|it| (it.id.to_string(), planned(it))).collect(),
        host: training()
            .take(3)
            .map(|it| (it.id.to_string(), HostCost { ours_ns: 4000.0, cudnn_ns: Some(6000.0) }))
            .collect(),
        accuracy: training().map(|it| (format!("{} y", it.id), errors.clone())).collect(),
        failed: [(ours[0].id.to_string(), "an error of 2|3".to_owned())].into(),
        measured: Default::default(),
        no_cudnn: None,
    }
}

fn rust_file() -> RustFile {
    let id = "train_forward/channels-first/f32/8x64x56x56/none/1t".to_owned();
    let of = |library: &str, kept_ns, fresh_ns| Allocation {
        library: library.into(),
        id: id.clone(),
        kept_ns,
        fresh_ns,
    };
    RustFile {
        peers: Vec::new(),
        allocation: vec![of("warpnorm", 1e6, 1e7), of("candle", 8e6, 5e7)],
        memory: vec![Memory { library: "candle".into(), shape: "8x64".into(), tensors: 16.0 }],
        accuracy: vec![HardInput {
            library: "Burn".into(),
            input: "f32, mean 0, std 1e20".into(),
            y: Score(f64::INFINITY),
            dx: Score(0.5),
        }],
    }
}
