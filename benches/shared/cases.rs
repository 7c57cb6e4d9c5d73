//! What the benchmarks measure: one list for them, for the peers' programs (by way of
//! `benches/peers/gpu-ids.txt`) and for the test that looks for recorded identifiers in it.

use crate::id::{Config, Element, Fused, Id, Pass, Slot};

pub const PASSES: [Pass; 4] =
    [Pass::TrainForward, Pass::TrainBackward, Pass::Inference, Pass::Copy];
pub const FUSED: [Fused; 3] = [Fused::None, Fused::Relu, Fused::AddRelu];

/// The CPU's shapes. The peers' programs repeat them, which a test compares.
pub const CPU_SHAPES: [&[usize]; 8] = [
    &[32, 64, 112, 112],
    &[32, 256, 56, 56],
    &[32, 512, 28, 28],
    &[32, 1024, 14, 14],
    &[32, 2048, 7, 7],
    &[8, 64, 56, 56],
    &[4096, 1024],
    &[128, 100],
];

/// Other element types and epilogues are measured on these.
pub const CPU_SAMPLED: [&[usize]; 2] = [&[32, 256, 56, 56], &[4096, 1024]];

/// f32 without an epilogue everywhere; the rest on two shapes, so that a full run stays bearable.
pub fn is_cpu_case(id: &Id) -> bool {
    let plain = (id.element, id.fused) == (Element::F32, Fused::None);
    let measured = match id.slot {
        Slot::NonTemporal => id.pass == Pass::Copy && plain,
        _ => {
            let sampled = CPU_SAMPLED.contains(&&id.extents[..])
                && (id.element == Element::F32 || id.fused == Fused::None);
            is_distinct(id) && (plain || sampled)
        }
    };
    measured && matches!(id.config, Config::Threads(_)) && CPU_SHAPES.contains(&&id.extents[..])
}

/// A 2-D tensor has one layout, and a copy no epilogue.
fn is_distinct(id: &Id) -> bool {
    let layout_exists = id.slot == Slot::ChannelsLast || id.extents.len() > 2;
    layout_exists && (id.pass != Pass::Copy || id.fused == Fused::None)
}

/// A shape of ResNet-50's batch norms, `[channels, height, width]`, and how many of its 53 layers
/// have it with which epilogue.
pub struct Layer {
    pub sample: [usize; 3],
    pub uses: &'static [(Fused, usize)],
}

/// He et al. 2016, with the stride in a block's first convolution.
pub const RESNET_50: [Layer; 9] = [
    Layer { sample: [64, 112, 112], uses: &[(Fused::Relu, 1)] },
    Layer { sample: [64, 56, 56], uses: &[(Fused::Relu, 6)] },
    Layer { sample: [256, 56, 56], uses: &[(Fused::None, 1), (Fused::AddRelu, 3)] },
    Layer { sample: [128, 28, 28], uses: &[(Fused::Relu, 8)] },
    Layer { sample: [512, 28, 28], uses: &[(Fused::None, 1), (Fused::AddRelu, 4)] },
    Layer { sample: [256, 14, 14], uses: &[(Fused::Relu, 12)] },
    Layer { sample: [1024, 14, 14], uses: &[(Fused::None, 1), (Fused::AddRelu, 6)] },
    Layer { sample: [512, 7, 7], uses: &[(Fused::Relu, 6)] },
    Layer { sample: [2048, 7, 7], uses: &[(Fused::None, 1), (Fused::AddRelu, 3)] },
];

/// Batches of which a whole ResNet-50 step is added up, in f16.
pub const STEP_BATCHES: [usize; 2] = [64, 256];

/// The batch at which every element type is measured.
pub const BATCH: usize = 64;

/// Beside ResNet-50's: extents that are no multiples of anything, two dimensions and three, and
/// tensors of one launch's cost.
const OTHER_SHAPES: [&[usize]; 10] = [
    &[64, 24, 56, 56],
    &[64, 96, 27, 27],
    &[64, 40, 13, 13],
    &[8192, 1024],
    &[65536, 256],
    &[125_000, 50],
    &[512, 4096],
    &[70, 32, 20, 100, 100],
    &[32, 64, 8, 8],
    &[128, 100],
];

/// Epilogues in every element type are measured on these.
const SAMPLED: [&[usize]; 2] = [&[64, 256, 56, 56], &[8192, 1024]];

/// Series in which one extent grows.
pub const GROWTH: [(&str, [&[usize]; 5]); 3] = [
    (
        "N",
        [
            &[4, 256, 28, 28],
            &[16, 256, 28, 28],
            &[64, 256, 28, 28],
            &[256, 256, 28, 28],
            &[1024, 256, 28, 28],
        ],
    ),
    (
        "C",
        [
            &[64, 16, 28, 28],
            &[64, 64, 28, 28],
            &[64, 256, 28, 28],
            &[64, 1024, 28, 28],
            &[64, 4096, 28, 28],
        ],
    ),
    (
        "spatial",
        [
            &[64, 256, 7, 7],
            &[64, 256, 14, 14],
            &[64, 256, 28, 28],
            &[64, 256, 56, 56],
            &[64, 256, 112, 112],
        ],
    ),
];

/// Tensors of more elements are measured in f16 only: what they are made of and held against takes the
/// host longer than all else together.
const MOST_ELEMENTS: usize = 1 << 28;

/// The element types of the GPU.
pub const GPU_ELEMENTS: [Element; 3] = [Element::F16, Element::Bf16, Element::F32];

/// Plain calls in f16 that move at most so much are also measured on tensors that stay in L2, where
/// it is large enough, and as a replayed graph.
const IN_CACHE_BYTES: usize = 64 << 20;
const GRAPH_BYTES: usize = 4 << 20;

fn layer_of(id: &Id) -> Option<&'static Layer> {
    RESNET_50.iter().find(|layer| id.extents[1..] == layer.sample)
}

pub fn is_gpu_case(id: &Id) -> bool {
    let floor = id.floor_bytes().unwrap_or(usize::MAX);
    let is_plain_half = (id.element, id.fused) == (Element::F16, Fused::None);
    let config_fits = match id.config {
        Config::Threads(_) => false,
        Config::Gpu => true,
        Config::GpuInCache => is_plain_half && floor <= IN_CACHE_BYTES,
        Config::GpuGraph => is_plain_half && floor <= GRAPH_BYTES,
    };
    let measured = match id.pass {
        // One for all that move as many bytes: see `Id::yardstick`.
        Pass::Copy => *id == id.yardstick() && gpu_shapes().contains(&id.extents),
        Pass::Inference => is_gpu_shape_of(id) && (id.fused != Fused::AddRelu || is_inferred(id)),
        _ => is_gpu_shape_of(id),
    };
    config_fits && is_distinct(id) && measured
}

/// Inference has a residual where the network has it, at one batch.
fn is_inferred(id: &Id) -> bool {
    let in_network = |layer: &Layer| layer.uses.iter().any(|(fused, _)| *fused == id.fused);
    id.element == Element::F16 && id.extents[0] == BATCH && layer_of(id).is_some_and(in_network)
}

/// Whether the shape is measured with this element type and epilogue.
fn is_gpu_shape_of(id: &Id) -> bool {
    let batch = id.extents[0];
    let is_listed = |shapes: &[&[usize]]| shapes.contains(&&id.extents[..]);
    let half = id.element == Element::F16;
    let plain = id.fused == Fused::None && GPU_ELEMENTS.contains(&id.element);
    let is_large = id.extents.iter().product::<usize>() > MOST_ELEMENTS;
    let listed = is_listed(&OTHER_SHAPES) && (half || !is_large);
    let all_types = layer_of(id).is_some() && batch == BATCH || listed;
    let other_batches = layer_of(id).is_some() && half && [32, 64, 256].contains(&batch);
    let growth = half && GROWTH.iter().any(|(_, shapes)| is_listed(shapes));
    let in_step = half
        && STEP_BATCHES.contains(&batch)
        && layer_of(id).is_some_and(|layer| layer.uses.iter().any(|(fused, _)| *fused == id.fused));
    let sampled = GPU_ELEMENTS.contains(&id.element) && is_listed(&SAMPLED);
    plain && (all_types || other_batches || growth) || in_step || sampled
}

/// Every shape of the GPU, once: those of whole steps first, for a run that is cut short.
pub fn gpu_shapes() -> Vec<Vec<usize>> {
    let of_layers = [64, 256, 32].into_iter().flat_map(|batch| {
        RESNET_50.iter().map(move |layer| [&[batch], &layer.sample[..]].concat())
    });
    let growth = GROWTH.iter().flat_map(|(_, shapes)| shapes.map(<[usize]>::to_vec));
    let others = OTHER_SHAPES.map(<[usize]>::to_vec);
    let mut shapes = Vec::new();
    for shape in of_layers.chain(others).chain(growth) {
        if !shapes.contains(&shape) {
            shapes.push(shape);
        }
    }
    shapes
}

/// All that the GPU is measured on, what shares tensors side by side.
pub fn gpu() -> Vec<Id> {
    let mut ids = Vec::new();
    for extents in gpu_shapes() {
        for slot in [Slot::ChannelsFirst, Slot::ChannelsLast] {
            for element in GPU_ELEMENTS {
                for fused in FUSED {
                    for pass in PASSES {
                        for config in [Config::Gpu, Config::GpuInCache, Config::GpuGraph] {
                            let extents = extents.clone();
                            ids.push(Id { pass, slot, element, extents, fused, config });
                        }
                    }
                }
            }
        }
    }
    ids.retain(is_gpu_case);
    ids
}
