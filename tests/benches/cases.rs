//! What the benchmarks measure.

use crate::cases::{CPU_SAMPLED, CPU_SHAPES, GROWTH, RESNET_50, STEP_BATCHES, gpu};
use crate::id::{Config, Id};
use std::collections::HashSet;

#[test]
fn resnet_50_has_53_layers() {
    let uses = RESNET_50.iter().flat_map(|layer| layer.uses);
    assert_eq!(uses.map(|(_, count)| count).sum::<usize>(), 53);
}

#[test]
fn every_layer_of_a_step_is_measured() {
    let ids: HashSet<String> = gpu().iter().map(Id::to_string).collect();
    for (layer, batch) in RESNET_50.iter().flat_map(|layer| STEP_BATCHES.map(|n| (layer, n))) {
        let [c, h, w] = layer.sample;
        for (fused, _) in layer.uses {
            for pass in ["train_forward", "train_backward"] {
                for slot in ["channels-first", "channels-last"] {
                    let id = format!("{pass}/{slot}/f16/{batch}x{c}x{h}x{w}/{fused}/gpu");
                    assert!(ids.contains(&id), "{id}");
                }
            }
        }
    }
}

#[test]
fn inference_has_the_epilogues_of_the_network() {
    let ids: HashSet<String> = gpu().iter().map(Id::to_string).collect();
    for layer in &RESNET_50 {
        let [c, h, w] = layer.sample;
        for (fused, _) in layer.uses {
            for slot in ["channels-first", "channels-last"] {
                let id = format!("inference/{slot}/f16/64x{c}x{h}x{w}/{fused}/gpu");
                assert!(ids.contains(&id), "{id}");
            }
        }
    }
}

#[test]
fn every_case_is_listed_once_and_has_its_yardstick() {
    let ids = gpu();
    let names: HashSet<String> = ids.iter().map(Id::to_string).collect();
    assert_eq!(names.len(), ids.len());
    for id in ids.iter().filter(|id| id.config == Config::Gpu) {
        assert!(names.contains(&id.yardstick().to_string()), "{id}");
    }
    assert!((400..1200).contains(&ids.len()), "{}", ids.len());
}

#[test]
fn every_growing_series_is_measured() {
    let names: HashSet<String> = gpu().iter().map(Id::to_string).collect();
    for (_, shapes) in GROWTH {
        for shape in shapes {
            let extents: Vec<_> = shape.iter().map(usize::to_string).collect();
            let id = format!("train_forward/channels-last/f16/{}/none/gpu", extents.join("x"));
            assert!(names.contains(&id), "{id}");
        }
    }
}

/// The peers' programs read this list.
#[test]
fn the_peers_list_is_the_benchmarks() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/gpu-ids.txt");
    let ids: String = gpu().iter().map(|id| format!("{id}\n")).collect();
    if std::env::var_os("WARPNORM_BLESS").is_some() {
        std::fs::write(path, &ids).unwrap();
    }
    let listed = std::fs::read_to_string(path).unwrap();
    assert!(listed == ids, "{path} is out of date; WARPNORM_BLESS=1 cargo test --test benches");
}

/// The peers' programs for the CPU, which have lists of their own.
#[test]
fn the_peers_shapes_on_the_cpu_are_the_benchmarks() {
    let programs = [
        include_str!("../../benches/peers/torch_bn.py"),
        include_str!("../../benches/peers/onednn_bn.cpp"),
    ];
    let ours = CPU_SHAPES.iter().chain(&CPU_SAMPLED);
    let ours: Vec<_> = ours
        .map(|shape| shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x"))
        .collect();
    for program in programs {
        let is_shape = |text: &&str| {
            text.contains('x') && text.split('x').all(|extent| extent.parse::<usize>().is_ok())
        };
        let listed: Vec<_> = program.split('"').filter(is_shape).collect();
        // Others follow that are no lists.
        assert_eq!(listed[..ours.len()], ours);
    }
}
