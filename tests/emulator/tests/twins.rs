//! Per kernel a scaled twin of a real shape, for which the planner picks that kernel by itself; those
//! that keep tensors on chip once for each kind of team. Its results are held to the textbook and its
//! traffic to the plan, and docs/kernels.md shows its counters; with `WARPNORM_WRITE_COUNTERS=1` they are written there instead.
#![cfg(emulated)]

mod counted;
use conformance::document::{self, Section};
use conformance::suite;

use counted::{ByTensor, Setting, pass_of};
use emulator::{Counters, Emulator};
use half::{bf16, f16};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::{env, thread};
use suite::flat::Buffers;
use suite::on_backend::{OnBackend, on_backend};
use suite::{Bars, Case, Data, Dim, Mode};
use warpnorm::cuda::{Alignment, Device, Pass, Plan, RequestedBytes, Tier};
use warpnorm::*;

/// A layer to run the kernels on. A kernel's counters are those of the first twin that reaches it.
struct Twin {
    /// Extents of the layer that it stands for.
    of: &'static str,
    dim: Dim,
    layout: Layout,
    activation: Activation,
    residual: bool,
    /// Elements between samples. Where they differ, tensors share no boundaries of packs.
    gaps: &'static [(Operand, usize)],
    calls: &'static [Call],
}

/// Calls that are made one after the other.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Call {
    Train,
    Eval,
    /// Training in the form for several ranks, of which there is one.
    Ranks,
}

const TWIN: Twin = Twin {
    of: "",
    dim: (0, 0, 0),
    layout: Layout::ChannelsFirst,
    activation: Activation::Identity,
    residual: false,
    gaps: &[],
    calls: &[Call::Train, Call::Eval, Call::Ranks],
};
const STAGE_1: Twin = Twin { of: "32x64x112x112", dim: (4, 16, 28 * 28), ..TWIN };
const STAGE_4: Twin = Twin { of: "32x1024x14x14", dim: (8, 32, 14 * 14), ..TWIN };
const CHANNELS_LAST: Twin =
    Twin { of: "32x256x56x56", dim: (4, 64, 14 * 14), layout: Layout::ChannelsLast, ..TWIN };
/// Some of the channels of a wider tensor.
const SLICE: Twin =
    Twin { of: "32x48x55x55", dim: (3, 16, 29 * 29), gaps: &[(Operand::X, 29 * 29)], ..TWIN };
/// Images cut out of wider ones: without the gaps, several pixels abreast would make whole packs.
const IMAGE: Twin = Twin {
    of: "32x3x224x224",
    dim: (4, 3, 56 * 56),
    layout: Layout::ChannelsLast,
    gaps: &[(Operand::X, 3 * 56)],
    ..TWIN
};
/// Rows that make whole packs only several abreast.
const ABREAST: Twin =
    Twin { of: "125000x50", dim: (400, 50, 1), layout: Layout::ChannelsLast, ..TWIN };

const TWINS: [Twin; 13] = [
    STAGE_1,
    Twin { activation: Activation::Relu, ..STAGE_1 },
    Twin { activation: Activation::Relu, residual: true, ..STAGE_1 },
    Twin { activation: Activation::Silu, residual: true, ..STAGE_1 },
    CHANNELS_LAST,
    Twin { activation: Activation::Relu, ..CHANNELS_LAST },
    Twin { activation: Activation::Relu, residual: true, ..CHANNELS_LAST },
    Twin { activation: Activation::Silu, residual: true, ..CHANNELS_LAST },
    Twin { activation: Activation::Silu, ..SLICE },
    Twin { activation: Activation::Silu, ..IMAGE },
    // Kernels that are reached above, in other shapes: neighbouring columns that fold into a
    // channel, rows of features, and rows abreast.
    Twin { activation: Activation::Relu, residual: true, ..STAGE_4 },
    Twin { of: "4096x1024", dim: (256, 256, 1), layout: Layout::ChannelsLast, ..TWIN },
    ABREAST,
];

/// What a kernel did for its twin.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    twin: String,
    /// The blocks that share a channel on chip.
    team: String,
    /// By tensor and element: what is read, what is written.
    bytes: [Vec<(&'static str, f64)>; 2],
    /// 32-byte sectors of the tensors, and as few as could hold what was asked for.
    sectors: (u64, u64),
    /// Bytes of what is kept per channel and per block.
    beside: u64,
    /// Wavefronts of shared memory that bank conflicts add, in percent of its requests. Not the
    /// requests themselves: compilers merge and repeat some.
    conflicts: Option<u64>,
    barriers: u64,
}

impl Row {
    /// Holds the launch to its plan.
    fn new<E: Element>(
        twin: &Twin,
        plan: Option<&Plan>,
        problem: &Problem,
        counters: &Counters,
        on: &OnBackend<'_, Device<Emulator>, E>,
    ) -> Row {
        let by_tensor = ByTensor::new(counters, on);
        let requested = by_tensor.requested();
        let kernel = &counters.kernel;
        let planned = plan.map(|plan| plan.requested_bytes(problem));
        assert_eq!(requested, planned.unwrap_or_default(), "{kernel}");
        let tensors = by_tensor.tensors().map(|it| [it.read, it.written]);
        let sectors = tensors.iter().flatten().map(|it| it.sectors).sum();
        let shared = counters.shared;
        let whole = tensors.iter().flatten().map(|it| it.bytes.div_ceil(32)).sum();
        let (n, c, s) = twin.dim;
        Row {
            twin: format!("{n}x{c}x{s} for {}", twin.of),
            team: plan.map_or("-".into(), team),
            bytes: per_element(&requested, problem.elements() as f64),
            sectors: (sectors, whole),
            beside: counters.read.bytes + counters.written.bytes - requested.total(),
            conflicts: (shared.requests > 0).then(|| {
                (100.0 * shared.extra_wavefronts as f64 / shared.requests as f64).round() as u64
            }),
            barriers: counters.barriers_per_block,
        }
    }
}

fn team(plan: &Plan) -> String {
    match plan.tier {
        Tier::Streaming => "-".into(),
        Tier::Block => "a block".into(),
        Tier::Cluster => format!("a cluster of {}", plan.parts),
        Tier::Grid => format!("{} of a grid", plan.parts),
    }
}

/// The plan of a kernel that goes through tensors.
fn plan(
    twin: &Twin,
    setting: &Setting,
    problem: &Problem,
    kernel: &str,
    mode: Mode,
) -> Option<Plan> {
    let pass = pass_of(kernel, mode)?;
    // Statistics see x alone, which agrees with itself about where packs begin.
    let alike = twin.gaps.is_empty() || pass == Pass::Statistics;
    let alignment = if alike { Alignment::ALIGNED } else { Alignment::MIXED };
    let plan = setting.plan(pass, problem, alignment);
    assert_eq!(plan.kernel, kernel);
    Some(plan)
}

fn per_element(bytes: &RequestedBytes, elements: f64) -> [Vec<(&'static str, f64)>; 2] {
    let read =
        [("x", bytes.x), ("residual", bytes.residual), ("dy", bytes.dy), ("mask", bytes.mask_read)];
    let written = [
        ("y", bytes.y),
        ("dx", bytes.dx),
        ("dresidual", bytes.dresidual),
        ("mask", bytes.mask_written),
    ];
    [read, written].map(|way| {
        let some = way.into_iter().filter(|(_, bytes)| *bytes > 0);
        some.map(|(name, bytes)| (name, bytes as f64 / elements)).collect()
    })
}

/// By kernel and the tier of its plan.
type Rows = BTreeMap<(String, &'static str), Row>;

/// On chip.
const TEAMS: [Tier; 3] = [Tier::Block, Tier::Cluster, Tier::Grid];

fn tier_name(plan: Option<&Plan>) -> &'static str {
    match plan.map(|plan| plan.tier) {
        None | Some(Tier::Streaming) => "streaming",
        Some(Tier::Block) => "block",
        Some(Tier::Cluster) => "cluster",
        Some(Tier::Grid) => "grid",
    }
}

/// Of f32, f16 and bf16; streaming kernels for 16-bit elements serve the latter two.
static BY_ELEMENT: LazyLock<[Rows; 3]> = LazyLock::new(|| {
    thread::scope(|scope| {
        let narrow = [scope.spawn(rows::<f16>), scope.spawn(rows::<bf16>)];
        let wide = rows::<f32>();
        let [half, brain] = narrow.map(|rows| rows.join().expect("a twin failed"));
        [wide, half, brain]
    })
});

static ROWS: LazyLock<Rows> = LazyLock::new(|| {
    let rows = BY_ELEMENT.iter().flatten();
    rows.map(|(key, row)| (key.clone(), row.clone())).collect()
});

fn rows<E: Element>() -> Rows {
    let mut rows = Rows::new();
    for twin in &TWINS {
        let chosen = twin.calls.iter().map(|call| (*call, None));
        let forced = TEAMS.map(|tier| (Call::Train, Some(tier)));
        for (call, tier) in chosen.chain(forced) {
            for (key, row) in run::<E>(twin, call, tier) {
                rows.entry(key).or_insert(row);
            }
        }
    }
    rows
}

/// Makes a call, holds its results to the textbook, and says what its kernels did.
fn run<E: Element>(
    twin: &Twin,
    call: Call,
    tier: Option<Tier>,
) -> Vec<((String, &'static str), Row)> {
    let mode = if call == Call::Eval { Mode::Eval } else { Mode::Train };
    let epilogue = Epilogue { activation: twin.activation, residual: twin.residual };
    let case = Case::new(twin.dim, twin.layout, epilogue);
    let data = Data::<E>::new(case).without_gradients_at_kinks(mode);
    let mut buffers = Buffers::with_gaps(&data, twin.gaps);
    let problem = buffers.problem;
    let setting = Setting::of(tier);
    let device = setting.device();
    let emulator = device.launcher().clone();
    let mut workspace = device.workspace(&problem).unwrap();
    let mut rows = Vec::new();
    on_backend(&mut buffers, &device, &mut workspace, |on| {
        match call {
            Call::Train => on.forward_train().and_then(|()| on.backward_train())?,
            Call::Eval => on.inference().and_then(|()| on.inference_backward())?,
            Call::Ranks => train_as_one_rank(&device, on, problem.channels())?,
        }
        let row = |it: Counters| {
            let plan = plan(twin, &setting, &problem, &it.kernel, mode);
            let key = (it.kernel.clone(), tier_name(plan.as_ref()));
            (key, Row::new(twin, plan.as_ref(), &problem, &it, on))
        };
        rows.extend(emulator.take_counters().into_iter().map(row));
        Ok(())
    })
    .unwrap();
    buffers.assert_results(&data.expected(mode), Bars::in_f32(E::DTYPE, twin.activation));
    rows
}

fn train_as_one_rank<E: Element>(
    device: &Device<Emulator>,
    on: &mut OnBackend<'_, Device<Emulator>, E>,
    channels: usize,
) -> Result<()> {
    let mut moments = vec![f64::NAN; MOMENT_ROWS * channels];
    on.statistics(&mut moments)?;
    on.merge_statistics(&moments)?;
    on.apply()?;
    let mut sums = vec![f64::NAN; SUM_ROWS * channels];
    on.backward_reduce(&mut sums)?;
    let gathered = device.upload(&sums)?;
    let mut merged = device.zeros::<f64>(sums.len())?;
    device.merge_sums(channels, gathered.slice_range(..), merged.slice_range_mut(..))?;
    on.backward_apply(&device.download(&merged)?)
}

/// Breaks if a kernel has no twin, or is none that any plan names; one that keeps tensors on chip, a
/// twin for each kind of team.
#[test]
fn every_kernel_has_a_twin() {
    let all: Vec<String> = emulator::kernels().into_iter().map(|kernel| kernel.name).collect();
    let ours: Vec<&str> = all
        .iter()
        .map(String::as_str)
        .filter(|name| !name.starts_with("test_") && !name.starts_with("train_"))
        .collect();
    let is_on_chip = |name: &str| name.starts_with("forward_") || name.starts_with("backward_");
    let mut wanted = BTreeSet::new();
    for name in ours {
        let tiers =
            if is_on_chip(name) { &["block", "cluster", "grid"][..] } else { &["streaming"] };
        wanted.extend(tiers.iter().map(|tier| (name.to_owned(), *tier)));
    }
    let found: BTreeSet<_> = ROWS.keys().cloned().collect();
    let missing: Vec<_> = wanted.symmetric_difference(&found).collect();
    assert!(missing.is_empty(), "without a twin, or without a name: {missing:?}");
}

/// The table shows f16 only.
#[test]
fn bf16_counts_as_f16_does() {
    let [_, half, brain] = &*BY_ELEMENT;
    assert_eq!(half.len(), brain.len());
    for ((kernel, tier), row) in brain {
        assert_eq!(*row, half[&(kernel.replace("_bf16x", "_f16x"), *tier)], "{kernel}");
    }
}

/// Neither packs on chip nor what blocks leave for each other. What remains, and is rounded up to a
/// percent in places, is what a block writes once for each channel.
#[test]
fn on_chip_banks_do_not_conflict() {
    for ((kernel, tier), row) in ROWS.iter().filter(|((_, tier), _)| *tier != "streaming") {
        assert!(row.conflicts <= Some(2), "percent: {:?}, {kernel}, {tier}", row.conflicts);
    }
}

/// Their banks do conflict: rows of threads are no whole quarters of a warp.
#[test]
fn rows_abreast_are_coalesced() {
    for tier in TEAMS {
        let calls = run::<f16>(&ABREAST, Call::Train, Some(tier));
        assert_eq!(calls.len(), 2, "{tier:?}: a launch each");
        for ((kernel, _), row) in calls {
            assert_eq!(row.sectors.0, row.sectors.1, "{kernel}, {tier:?}");
        }
    }
}

#[test]
fn twins_are_small() {
    for Twin { dim: (n, c, s), .. } in TWINS {
        assert!(n * c * s <= 300_000);
    }
}

fn table(rows: &Rows) -> String {
    let mut table = String::from(
        "| kernel | team | twin | bytes per element | sectors | beside | conflicts | barriers |\n\
         | --- | --- | --- | --- | ---: | ---: | ---: | ---: |\n",
    );
    for ((kernel, _), row) in rows.iter().filter(|((kernel, _), _)| !kernel.contains("_bf16x")) {
        let Row { twin, team, beside, barriers, .. } = row;
        let [read, written] = row.bytes.each_ref().map(|way| {
            let words: Vec<_> = way.iter().map(|(name, bytes)| format!("{name} {bytes}")).collect();
            words.join(", ")
        });
        let sectors = match row.sectors {
            (_, 0) => "-".into(),
            (found, whole) => format!("{:.2}", found as f64 / whole as f64),
        };
        let conflicts = row.conflicts.map_or("-".into(), |percent| format!("{percent} %"));
        table += &format!(
            "| `{kernel}` | {team} | {twin} | {read} -> {written} | {sectors} | {beside} | {conflicts} | \
             {barriers} |\n"
        );
    }
    table
}

const REMEDY: &str = "WARPNORM_WRITE_COUNTERS=1 cargo test -p emulator --test twins";

#[test]
fn the_document_shows_their_counters() {
    let section = Section::open(document::KERNELS, "counters").unwrap();
    let table = table(&ROWS);
    if env::var_os("WARPNORM_WRITE_COUNTERS").is_some() {
        section.write(&table).unwrap();
    } else {
        section.check(&table, |shown, counted| shown == counted, REMEDY).unwrap();
    }
}
