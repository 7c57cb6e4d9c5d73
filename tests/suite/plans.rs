//! Plans are pure: they can be checked for GPUs that are not there.

use crate::common::{LAYOUTS, epilogues};
use proptest::prelude::*;
use warpnorm::cuda::{
    Alignment, Choice, Clusters, DeviceFacts, Geometry, Pass, Plan, STATIC_SHARED_BYTES, Tier,
    Walk, predicted_seconds, profiles, training_plans,
};
use warpnorm::{Activation, DType, Epilogue, Layout, Operand, Problem};

pub const PASSES: [Pass; 6] =
    [Pass::Statistics, Pass::Apply, Pass::Inference, Pass::Reduce, Pass::Gradient, Pass::Frozen];
const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

const THREADS: u64 = 256;
const MAX_COLUMNS: u64 = 416;
/// Windows or rows of a block, which kernels count in 32 bits.
const COUNTED: u64 = 1 << 30;

fn check_plan(plan: &Plan, problem: &Problem, alignment: Alignment) {
    let what = format!("{plan} {:?} {problem}", plan.geometry);
    let teams = u64::from(plan.grid) / u64::from(plan.parts);
    assert_eq!(u64::from(plan.grid), teams * u64::from(plan.parts), "{what}");
    let takes_turns = matches!(plan.tier, Tier::Cluster | Tier::Grid) && teams < plan.groups;
    assert!(teams == plan.groups || takes_turns, "{what}");
    let any_may_be_idle = plan.tier == Tier::Cluster;
    assert!(plan.grid >= 1 && plan.grid <= i32::MAX as u32, "{what}");
    assert_eq!(plan.walk, Walk::of(problem), "{what}");
    let pack = u64::from(plan.pack);
    assert!(pack == 1 || pack == 16 / problem.dtype().size() as u64, "{what}");
    let writes_mask = matches!(plan.pass, Pass::Apply | Pass::Forward);
    let reads_mask = matches!(plan.pass, Pass::Reduce | Pass::Gradient | Pass::Backward);
    let touches_mask = problem.mask_len() > 0 && (writes_mask || reads_mask);
    match plan.geometry {
        Geometry::Planes { misalignment, boundary, windows, windows_per_part } => {
            assert_eq!(plan.groups, problem.channels() as u64, "{what}");
            let all = problem.batch() as u64 * windows;
            assert!(u64::from(plan.parts) * windows_per_part >= all, "{what}");
            let before_last = (u64::from(plan.parts) - 1) * windows_per_part;
            assert!(before_last < all.max(1) || any_may_be_idle, "{what}");
            assert_eq!(windows_per_part % 32, 0, "{what}");
            assert!(windows_per_part <= COUNTED, "{what}");
            assert!(u64::from(misalignment) < pack, "{what}");
            let has_room = !matches!(problem.spatial() % 8, 3 | 5 | 6 | 7);
            let expected = if touches_mask && has_room { 8 } else { pack };
            assert_eq!(u64::from(boundary), expected, "{what}");
            assert!(windows * pack >= problem.spatial() as u64 + u64::from(misalignment), "{what}");
        }
        Geometry::Columns {
            rows,
            columns,
            rows_per_part,
            columns_per_channel,
            packs_per_tile,
            rows_abreast,
            ..
        } => {
            let tile = u64::from(packs_per_tile) * pack;
            let values = rows * columns / u64::from(columns_per_channel);
            let all = problem.values_per_channel() * problem.channels();
            assert_eq!(values * u64::from(columns_per_channel), all as u64, "{what}");
            if rows_abreast > 1 {
                assert!(plan.groups == 1 && columns_per_channel == 1 && pack > 1, "{what}");
                let row = (problem.channels() as u64) * u64::from(rows_abreast);
                assert_eq!((row, touches_mask), (columns, false), "{what}");
            }
            assert!(u64::from(packs_per_tile) <= THREADS && tile <= MAX_COLUMNS, "{what}");
            assert!(plan.groups * tile >= columns, "{what}");
            assert_eq!(columns % pack, 0, "{what}");
            assert!(u64::from(plan.parts) * rows_per_part >= rows, "{what}");
            assert!(rows_per_part <= COUNTED, "{what}");
            let before_last = (u64::from(plan.parts) - 1) * rows_per_part;
            assert!(before_last < rows.max(1) || any_may_be_idle, "{what}");
            let folds = !matches!(plan.pass, Pass::Apply | Pass::Inference | Pass::Gradient);
            if folds {
                assert_eq!(tile % u64::from(columns_per_channel), 0, "a cut channel: {what}");
            }
            assert!(pack == 1 || alignment.offset == Some(0), "{what}");
        }
    }
}

/// What a launch that keeps tensors on chip must hold to on a device.
fn check_resident(plan: &Plan, problem: &Problem, facts: &DeviceFacts) {
    let what = format!("{plan} {:?} {problem} {facts:?}", plan.geometry);
    let shared = plan.shared_bytes + STATIC_SHARED_BYTES;
    // Registers are for two blocks.
    let by_shared = facts.shared_bytes_per_multiprocessor / (shared + facts.shared_bytes_reserved);
    let residents = by_shared.min(2);
    assert!(shared <= facts.shared_bytes_per_block, "{what}");
    assert!(plan.tile_bytes <= plan.shelf_at && plan.shelf_at < plan.shared_bytes, "{what}");
    assert!(plan.shelf_at.is_multiple_of(16), "{what}");
    let even = (plan.grid / plan.parts).is_multiple_of(2);
    assert!(plan.late_by == 0 || even && plan.tier != Tier::Block, "{what}");
    assert!(plan.slots > 0 && plan.slots.is_multiple_of(4), "{what}");
    match plan.tier {
        Tier::Streaming => panic!("{what}"),
        Tier::Block => assert_eq!(plan.parts, 1, "{what}"),
        Tier::Cluster => {
            assert!((2..=16).contains(&plan.parts), "{what}");
            assert!(facts.compute_capability >= (9, 0), "{what}");
            let resident = facts.clusters.resident(residents, plan.parts) * plan.parts;
            assert!(plan.grid <= resident, "{resident} resident: {what}");
            assert_eq!(plan.evicted_elements(problem), 0, "{what}");
        }
        Tier::Grid => {
            assert!(plan.parts > 1, "{what}");
            let resident = facts.cooperative_blocks[residents as usize - 1];
            assert!(plan.grid <= resident, "{resident} resident: {what}");
        }
    }
    let floor = (problem.elements() * problem.dtype().size()) as u64;
    let bytes = plan.requested_bytes(problem);
    let keeps_all = plan.evicted_elements(problem) == 0;
    assert_eq!(keeps_all, bytes.x == floor, "{what}");
    assert!(bytes.x < 2 * floor, "it keeps nothing: {what}");
}

fn problem_strategy() -> impl Strategy<Value = (Problem, Alignment)> {
    let extent = |largest: usize| prop_oneof![1..20usize, 1..largest];
    let offset = prop_oneof![Just(None), Just(Some(0u32)), (1..8u32).prop_map(Some)];
    let epilogues: Vec<Epilogue> = epilogues().collect();
    (
        (extent(3000), extent(5000), extent(200_000)),
        prop::sample::select(LAYOUTS.to_vec()),
        prop::sample::select(DTYPES.to_vec()),
        prop::sample::select(epilogues),
        (0..40usize, 0..40usize),
        offset,
    )
        .prop_map(|((n, c, s), layout, dtype, epilogue, gaps, offset)| {
            let problem = Problem::new(&[n, c, s], layout, dtype, epilogue)
                .and_then(|it| it.with_batch_stride(Operand::X, c * s + gaps.0))
                .and_then(|it| it.with_batch_stride(Operand::Y, c * s + gaps.1))
                .unwrap();
            let pack = 16 / dtype.size() as u32;
            // Strides that differ modulo a pack never share an offset.
            let alike = n == 1 || gaps.0 % pack as usize == gaps.1 % pack as usize;
            let offset = offset.filter(|_| alike).map(|offset| offset % pack);
            (problem, Alignment { offset })
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any shape, stride and alignment, on every device: a launch that the device takes, parts that
    /// cover everything once, whole channels where they are reduced.
    #[test]
    fn plans_cover_every_shape((problem, alignment) in problem_strategy()) {
        for (_, facts) in profiles::ALL {
            for pass in PASSES {
                let plan = Plan::new(pass, &problem, &facts, alignment).unwrap();
                check_plan(&plan, &problem, alignment);
            }
            for (pass, tier) in TRAINING {
                let plans = training_plans(pass, &problem, &facts, alignment, alignment, tier);
                for plan in plans.unwrap() {
                    check_plan(&plan, &problem, alignment);
                    if plan.tier != Tier::Streaming {
                        check_resident(&plan, &problem, &facts);
                    }
                }
            }
        }
    }

    /// With blocks to a channel as they are asked for, a launch that the device takes, or an error.
    #[test]
    fn plans_with_so_many_parts(
        (problem, alignment) in problem_strategy(),
        parts in prop_oneof![0..40u32, any::<u32>()],
    ) {
        for (_, facts) in profiles::ALL {
            for (pass, tier) in [Pass::Forward, Pass::Backward]
                .into_iter()
                .flat_map(|pass| TIERS.map(|tier| (pass, tier)))
            {
                let choice = Choice::Parts(tier, parts);
                match training_plans(pass, &problem, &facts, alignment, alignment, choice) {
                    Ok(plans) => for plan in plans {
                        prop_assert_eq!((plan.tier, plan.parts), (tier, parts));
                        check_plan(&plan, &problem, alignment);
                        if tier != Tier::Streaming {
                            check_resident(&plan, &problem, &facts);
                        }
                    },
                    Err(error) => prop_assert!(error.to_string().contains("parts"), "{error}"),
                }
            }
        }
    }
}

/// Planes of 257 to 416 positions are more than a block has threads, and single elements take one
/// each.
#[test]
fn single_elements_of_planes_wider_than_a_block() {
    let (_, facts) = &profiles::ALL[0];
    for spatial in [256, 264, 304, 400, 416, 424] {
        for offset in [None, Some(0), Some(1)] {
            let extents = [3, 2, spatial];
            let layout = Layout::ChannelsFirst;
            let problem = Problem::new(&extents, layout, DType::F32, Epilogue::NONE).unwrap();
            for pass in PASSES {
                let plan = Plan::new(pass, &problem, facts, Alignment { offset }).unwrap();
                check_plan(&plan, &problem, Alignment { offset });
            }
        }
    }
}

const TIERS: [Tier; 4] = [Tier::Streaming, Tier::Block, Tier::Cluster, Tier::Grid];

const TRAINING: [(Pass, Option<Tier>); 8] = [
    (Pass::Forward, None),
    (Pass::Forward, Some(Tier::Block)),
    (Pass::Forward, Some(Tier::Cluster)),
    (Pass::Forward, Some(Tier::Grid)),
    (Pass::Backward, None),
    (Pass::Backward, Some(Tier::Block)),
    (Pass::Backward, Some(Tier::Cluster)),
    (Pass::Backward, Some(Tier::Grid)),
];

/// The layers and matrices that are trained in practice, and odd ones.
fn shapes() -> impl Iterator<Item = (Vec<usize>, Layout)> {
    let layers = [
        [64, 112, 112],
        [64, 56, 56],
        [256, 56, 56],
        [128, 28, 28],
        [512, 28, 28],
        [256, 14, 14],
        [1024, 14, 14],
        [512, 7, 7],
        [2048, 7, 7],
        [24, 56, 56],
        [96, 27, 27],
        [40, 13, 13],
    ];
    let images = [32, 64, 256]
        .into_iter()
        .flat_map(move |n| layers.map(|[c, h, w]| vec![n, c, h, w]))
        .chain([vec![32, 64, 8, 8], vec![70, 32, 20, 100, 100]])
        .flat_map(|extents| LAYOUTS.map(|layout| (extents.clone(), layout)));
    let matrices = [[8192, 1024], [65_536, 256], [125_000, 50], [512, 4096], [128, 100]];
    images.chain(matrices.map(|extents| (extents.to_vec(), Layout::ChannelsLast)))
}

/// Every training call on [`shapes`], in every type, without an epilogue and with ReLU, before which a
/// residual may be added.
fn training_calls() -> impl Iterator<Item = (Pass, Problem)> {
    let relu = |residual| Epilogue { activation: Activation::Relu, residual };
    let epilogues = [Epilogue::NONE, relu(false), relu(true)];
    shapes().flat_map(move |(extents, layout)| {
        let problem =
            move |(dtype, epilogue)| Problem::new(&extents, layout, dtype, epilogue).unwrap();
        DTYPES
            .into_iter()
            .flat_map(move |dtype| epilogues.map(|it| (dtype, it)))
            .map(problem)
            .flat_map(|problem| [Pass::Forward, Pass::Backward].map(|pass| (pass, problem)))
    })
}

/// A plan asks for each tensor once exactly where it claims to keep all on chip; and for no more than
/// a second read of inputs where it does not.
#[test]
fn what_stays_on_chip_costs_the_floor() {
    for (name, facts) in profiles::ALL {
        for (pass, problem) in training_calls() {
            let plans = plans_for(pass, &problem, &facts, None);
            let what = format!("{name} {pass:?} {problem}: {}", plans[0]);
            let (mut tensors, mut masks) = (0, 0);
            for bytes in plans.iter().map(|plan| plan.requested_bytes(&problem)) {
                masks += bytes.mask_read + bytes.mask_written;
                tensors += bytes.total() - bytes.mask_read - bytes.mask_written;
            }
            let floor = match pass {
                Pass::Forward => problem.forward_floor_bytes(),
                _ => problem.backward_floor_bytes(),
            };
            let floor = (floor - problem.mask_len()) as u64;
            let stays = plans.len() == 1 && plans[0].evicted_elements(&problem) == 0;
            assert_eq!(tensors == floor, stays, "{what}");
            assert!(tensors < 2 * floor, "{what}");
            assert_eq!(masks > 0, problem.mask_len() > 0, "{what}");
        }
    }
}

/// Whether the narrowest coalesced group of channels fits on the chip: one channel, 64 bytes of them, or
/// all, beside what kernels need of shared memory for other things.
fn fits(pass: Pass, problem: &Problem, facts: &DeviceFacts) -> bool {
    let residual = usize::from(problem.epilogue().backward_reads_residual());
    let tensors = if pass == Pass::Backward { 2 + residual } else { 1 };
    let width = match problem.layout() {
        Layout::ChannelsFirst => problem.dtype().size(),
        Layout::ChannelsLast => match problem.channels() * problem.dtype().size() {
            row if row.is_multiple_of(16) => row.min(64),
            // Whole packs only in rows abreast, which are not cut.
            row => row,
        },
    };
    let group = tensors * problem.values_per_channel() * width;
    let chip =
        facts.multiprocessors as usize * (facts.shared_bytes_per_block as usize - (48 << 10));
    group <= chip
}

/// On the devices of data centers that have clusters what fits takes one launch and what memory must move,
/// or a fifth more; but for channels-last rows of which a mask makes no whole bytes. What does not stay
/// on chip, because fewer turns should take less time, L2 serves.
#[test]
fn what_fits_stays_on_chip() {
    for (name, facts) in [("H100", profiles::H100), ("H200", profiles::H200)] {
        for (pass, problem) in training_calls().filter(|(pass, it)| fits(*pass, it, &facts)) {
            let plans = plans_for(pass, &problem, &facts, None);
            let what = format!("{name} {pass:?} {problem} {:?}: {}", problem.epilogue(), plans[0]);
            let is_last = problem.layout() == Layout::ChannelsLast;
            let has_ragged_mask =
                is_last && problem.mask_len() > 0 && !problem.channels().is_multiple_of(8);
            if has_ragged_mask {
                continue;
            }
            assert_eq!(plans.len(), 1, "{what}");
            let floor = match pass {
                Pass::Backward => problem.backward_floor_bytes(),
                _ => problem.forward_floor_bytes(),
            };
            let bytes = plans[0].hbm_bytes(&problem, &facts, false);
            assert!(bytes as f64 <= 1.2 * floor as f64, "{what} {bytes}");
        }
    }
}

/// What is small costs one launch on any device.
#[test]
fn small_tensors_cost_one_launch() {
    let is_small = |it: &Problem| matches!(it.elements(), 12_800 | 131_072);
    let has_whole_bytes = |it: &Problem| it.mask_len() == 0 || it.channels().is_multiple_of(8);
    let calls = training_calls().filter(|(_, it)| is_small(it) && has_whole_bytes(it));
    let calls: Vec<_> = calls.collect();
    assert_eq!(calls.len(), 6 * (2 * 3 + 2));
    for (name, facts) in profiles::ALL {
        for &(pass, problem) in &calls {
            let plans = plans_for(pass, &problem, &facts, None);
            assert_eq!(plans.len(), 1, "{name} {pass:?} {problem}: {}", plans[0]);
        }
    }
}

/// Fewer blocks than saturate memory, single elements, and rows that are no whole sectors take longer
/// for as many bytes.
#[test]
fn predictions_count_blocks_packs_and_sectors() {
    let seconds = |extents: &[usize], layout, residual| {
        let epilogue = Epilogue { activation: Activation::Relu, residual };
        let problem = Problem::new(extents, layout, DType::F16, epilogue).unwrap();
        predicted_seconds(Pass::Forward, &problem, &profiles::H200, Some(Tier::Streaming)).unwrap()
    };
    let [first, last] = LAYOUTS;
    // 399 positions: their mask has no room to begin as planes do.
    assert!(
        seconds(&[64, 96, 19, 21], first, true) > 2.0 * seconds(&[64, 96, 20, 20], first, true)
    );
    // Rows of 200 bytes.
    assert!(seconds(&[1 << 17, 1004], last, false) > 1.05 * seconds(&[1 << 17, 1008], last, false));
    // One block's worth of rows.
    let [few, many] = [8, 8192].map(|rows| seconds(&[rows, 4096], last, false));
    assert!(many < 100.0 * few, "{few} {many}");
}

fn plans_for(pass: Pass, problem: &Problem, facts: &DeviceFacts, tier: Option<Tier>) -> Vec<Plan> {
    let aligned = Alignment::ALIGNED;
    training_plans(pass, problem, facts, aligned, aligned, tier).unwrap()
}

/// An epilogue adds the time of its bytes, as often as they are moved: a backward that streams reads
/// mask and residual twice.
#[test]
fn predictions_count_what_an_epilogue_moves() {
    let facts = profiles::H200;
    let plain = Problem::new(&[256, 64, 112, 112], LAYOUTS[0], DType::F16, Epilogue::NONE).unwrap();
    let tensor = (plain.elements() * plain.dtype().size()) as f64;
    let mask = plain.elements() as f64 / 8.0;
    let [streaming, grid] = [Tier::Streaming, Tier::Grid].map(Some);
    for (pass, tier, activation, bytes) in [
        (Pass::Inference, None, Activation::Relu, tensor),
        (Pass::Forward, streaming, Activation::Identity, tensor),
        (Pass::Forward, streaming, Activation::Relu, tensor + mask),
        (Pass::Forward, grid, Activation::Relu, tensor + mask),
        (Pass::Forward, grid, Activation::Silu, tensor),
        (Pass::Backward, streaming, Activation::Identity, tensor),
        (Pass::Backward, streaming, Activation::Relu, tensor + 2.0 * mask),
        (Pass::Backward, streaming, Activation::Silu, 3.0 * tensor),
        (Pass::Backward, grid, Activation::Identity, tensor),
    ] {
        let fused = plain.with_epilogue(Epilogue { activation, residual: true }).unwrap();
        let [with, without] =
            [fused, plain].map(|it| predicted_seconds(pass, &it, &facts, tier).unwrap());
        let found = (with - without) * facts.memory_bandwidth as f64;
        assert!((found / bytes - 1.0).abs() < 1e-6, "{pass:?} {tier:?} {activation:?}: {found}");
    }
}

/// No tier that has a plan should take less time than the one that is chosen, with whatever epilogue.
#[test]
fn the_chosen_tier_should_take_the_least_time() {
    for (name, facts) in profiles::ALL {
        for (extents, layout) in [[32, 256, 56, 56], [32, 64, 112, 112], [8, 512, 28, 28]]
            .into_iter()
            .flat_map(|it| LAYOUTS.map(|layout| (it, layout)))
        {
            for epilogue in epilogues() {
                let problem = Problem::new(&extents, layout, DType::F16, epilogue).unwrap();
                for pass in [Pass::Forward, Pass::Backward] {
                    let seconds = |tier| predicted_seconds(pass, &problem, &facts, tier).unwrap();
                    let tier = plans_for(pass, &problem, &facts, None)[0].tier;
                    let least = TIERS.map(|tier| seconds(Some(tier))).into_iter().reduce(f64::min);
                    let chosen = [Some(seconds(None)), Some(seconds(Some(tier)))];
                    assert_eq!(chosen, [least; 2], "{name} {pass:?} {problem}: {tier:?}");
                }
            }
        }
    }
}

/// 128 channels of 28 x 28 leave blocks without work in their last turn, which costs the more the more
/// bytes there are: with a residual, grids that meet in memory should be faster.
#[test]
fn a_residual_decides_between_tiers() {
    let tier = |residual| {
        let epilogue = Epilogue { activation: Activation::Identity, residual };
        let problem = Problem::new(&[4, 128, 28, 28], LAYOUTS[0], DType::F32, epilogue).unwrap();
        plans_for(Pass::Forward, &problem, &profiles::T4, None)[0].tier
    };
    assert_eq!([false, true].map(tier), [Tier::Block, Tier::Grid]);
}

/// Outputs leave L2 to inputs where these are read again, and only where L2 could not hold the outputs
/// for whoever reads them next.
#[test]
fn outputs_leave_the_cache_to_inputs_that_are_read_again() {
    let spares = |facts: &DeviceFacts, n, tier| {
        let extents = [n, 64, 112, 112];
        let problem = Problem::new(&extents, LAYOUTS[1], DType::F16, Epilogue::NONE).unwrap();
        let plans =
            [Pass::Forward, Pass::Backward].map(|pass| plans_for(pass, &problem, facts, tier));
        plans.map(|plans| plans.iter().any(|plan| plan.spares_cache))
    };
    let grid = Some(Tier::Grid);
    assert_eq!(spares(&profiles::H200, 256, grid), [true; 2]);
    // All of it stays on chip.
    assert_eq!(spares(&profiles::H200, 8, grid), [false; 2]);
    // 51 MB: more than stays on chip, less than L2 holds.
    assert_eq!(spares(&profiles::RTX_4090, 32, grid), [false; 2]);
    assert_eq!(spares(&profiles::RTX_4090, 64, grid), [true; 2]);
    assert_eq!(spares(&profiles::H200, 256, Some(Tier::Streaming)), [false; 2]);
}

/// Where one team would take all multiprocessors, both blocks of each would wait for the same meeting: two
/// teams take turns, and L2 has what they read again. They do not begin together.
#[test]
fn a_group_that_takes_all_multiprocessors_shares_them_with_another() {
    for dtype in [DType::F32, DType::F16] {
        let problem = Problem::new(&[64, 256, 56, 56], LAYOUTS[1], dtype, Epilogue::NONE).unwrap();
        let plans = plans_for(Pass::Backward, &problem, &profiles::H200, None);
        let [plan] = &plans[..] else { panic!("{plans:?}") };
        assert!(plan.tier == Tier::Grid && plan.grid >= 2 * plan.parts, "{plan}");
        assert!(plan.evicted_elements(&problem) > 0 && plan.late_by > 0, "{plan:?}");
        let floor = problem.backward_floor_bytes() as u64;
        assert_eq!(plan.hbm_bytes(&problem, &profiles::H200, false), floor, "{plan}");
    }
}

/// A second launch begins where the first one has ended, with what L2 still has: half of it.
#[test]
fn a_second_launch_finds_half_of_the_cache() {
    let problem =
        Problem::new(&[64, 64, 112, 112], LAYOUTS[0], DType::F32, Epilogue::NONE).unwrap();
    let facts = profiles::H200;
    let plans = plans_for(Pass::Forward, &problem, &facts, Some(Tier::Streaming));
    let bytes = |index: usize| plans[index].hbm_bytes(&problem, &facts, index == 1);
    let tensor = (problem.elements() * problem.dtype().size()) as u64;
    assert_eq!([bytes(0), bytes(1)], [tensor, 2 * tensor - facts.l2_bytes / 2]);
}

/// No launch that streams has a last wave of few blocks: it would take as long as any.
#[test]
fn streaming_launches_have_whole_waves() {
    let facts = profiles::H200;
    let at_once = 2 * facts.multiprocessors;
    for channels in [64, 128, 256] {
        let extents = [32, channels, 112, 112];
        let problem = Problem::new(&extents, LAYOUTS[0], DType::F16, Epilogue::NONE).unwrap();
        let plans = plans_for(Pass::Forward, &problem, &facts, Some(Tier::Streaming));
        let grids: Vec<_> = plans.iter().map(|plan| plan.grid).collect();
        let whole = [2, 4].map(|waves| waves * at_once);
        assert!(grids.iter().zip(whole).all(|(grid, most)| *grid <= most), "{grids:?}");
        assert!(grids.iter().zip(whole).all(|(grid, most)| 4 * grid > 3 * most), "{grids:?}");
    }
}

/// Clusters are for what one block cannot hold and as many as a cluster has can, on devices that
/// have them.
#[test]
fn clusters_hold_what_a_block_cannot() {
    let stage_1 =
        Problem::new(&[32, 64, 112, 112], LAYOUTS[0], DType::F16, Epilogue::NONE).unwrap();
    for (name, facts) in profiles::ALL {
        let has_clusters = facts.compute_capability >= (9, 0);
        assert_eq!(facts.clusters.largest() > 0, has_clusters, "{name}");
        let plans = plans_for(Pass::Forward, &stage_1, &facts, None);
        assert_eq!(plans[0].tier == Tier::Cluster, has_clusters, "{name}: {}", plans[0]);
        for pass in [Pass::Forward, Pass::Backward] {
            let forced = plans_for(pass, &stage_1, &facts, Some(Tier::Cluster));
            let tier = if has_clusters { Tier::Cluster } else { Tier::Streaming };
            assert_eq!(forced[0].tier, tier, "{name}");
        }
    }
}

/// A device that holds clusters of one size only gets those, whole or with blocks that have nothing.
#[test]
fn clusters_of_every_size() {
    for size in 2..=Clusters::LARGEST as u32 {
        let facts = DeviceFacts { clusters: profiles::H200.clusters.only(size), ..profiles::H200 };
        assert_eq!(facts.clusters.largest(), size);
        for layout in LAYOUTS {
            for extents in [[32, 64, 14, 14], [3, 5, 9, 31], [70, 24, 1, 1]] {
                let problem = Problem::new(&extents, layout, DType::F16, Epilogue::NONE).unwrap();
                let plans = plans_for(Pass::Forward, &problem, &facts, Some(Tier::Cluster));
                let is_whole = plans[0].tier == Tier::Cluster && plans[0].parts == size;
                // Some rows hold no whole packs.
                let streams = plans[0].pack == 1;
                assert!(is_whole || streams, "{} {problem}", plans[0]);
            }
        }
    }
}

/// Teams as large as they are asked for, and what a device has not.
#[test]
fn parts_are_as_many_as_asked_for() {
    let problem = Problem::new(&[32, 64, 56, 56], LAYOUTS[0], DType::F16, Epilogue::NONE).unwrap();
    let plans = |facts, tier, parts| {
        let (choice, aligned) = (Choice::Parts(tier, parts), Alignment::ALIGNED);
        training_plans(Pass::Forward, &problem, facts, aligned, aligned, choice)
    };
    for (tier, possible, impossible) in [
        (Tier::Streaming, &[1, 2, 7, 392][..], &[0, 393, u32::MAX][..]),
        (Tier::Block, &[1], &[0, 2]),
        (Tier::Cluster, &[2, 3, 16], &[0, 1, 17]),
        // Not all of 250 would have a part.
        (Tier::Grid, &[2, 7, 16, 196], &[0, 1, 250, 265]),
    ] {
        for &parts in possible {
            for plan in plans(&profiles::H200, tier, parts).unwrap() {
                assert_eq!((plan.tier, plan.parts), (tier, parts), "{plan}");
            }
        }
        for &parts in impossible {
            let error = plans(&profiles::H200, tier, parts).unwrap_err().to_string();
            assert!(error.contains("parts") && error.contains(&parts.to_string()), "{error}");
        }
    }
    let error = plans(&profiles::A100, Tier::Cluster, 2).unwrap_err().to_string();
    assert!(error.contains("cluster") && error.contains("at most 0"), "{error}");
}

#[test]
fn a_block_counts_its_share_in_32_bits() {
    let aligned = Alignment::ALIGNED;
    for (batch, spatial) in [(1, 1_usize << 37), (1 << 36, 1), (3, (1 << 35) + 1)] {
        for layout in LAYOUTS {
            let problem =
                Problem::new(&[batch, 1, spatial], layout, DType::F16, Epilogue::NONE).unwrap();
            let plans = |parts| {
                let choice = Choice::Parts(Tier::Streaming, parts);
                training_plans(Pass::Forward, &problem, &profiles::T4, aligned, aligned, choice)
            };
            assert!(plans(1).is_err(), "{problem}");
            for plan in plans(1000).unwrap() {
                check_plan(&plan, &problem, aligned);
            }
        }
    }
}

/// How clusters fit groups of multiprocessors.
#[test]
fn clusters_stay_within_a_group() {
    let clusters = Clusters::of_gpcs(&[16, 18]);
    let of = |residents| [1, 2, 3, 5, 16].map(|size| clusters.resident(residents, size));
    assert_eq!(of(1), [34, 17, 11, 6, 2]);
    assert_eq!(of(2), [68, 34, 22, 13, 4]);
    assert_eq!(
        [clusters.resident(0, 2), clusters.resident(3, 2), clusters.resident(1, 17)],
        [0; 3]
    );
    assert_eq!(clusters.resident(1, 0), 0);
}

/// The shapes of the benchmarks get whole packs and enough blocks to fill the device.
#[test]
fn benchmark_shapes_use_the_device() {
    for extents in [
        [32, 64, 112, 112],
        [32, 256, 56, 56],
        [32, 512, 28, 28],
        [32, 1024, 14, 14],
        [32, 2048, 7, 7],
    ] {
        for layout in LAYOUTS {
            for dtype in DTYPES {
                let problem = Problem::new(&extents, layout, dtype, Epilogue::NONE).unwrap();
                for (_, facts) in profiles::ALL {
                    for pass in PASSES {
                        let plan = Plan::new(pass, &problem, &facts, Alignment::ALIGNED).unwrap();
                        assert_eq!(plan.pack as usize, 16 / dtype.size(), "{plan} {problem}");
                        assert!(plan.grid >= facts.multiprocessors, "{plan} {problem}");
                    }
                }
            }
        }
    }
}

/// Channels-first planes that are whole packs are never cut into single elements by a mask, nor the
/// 7 x 7 and 14 x 14 planes of the last stages of a ResNet.
#[test]
fn residual_stages_keep_whole_packs() {
    let epilogue = Epilogue { activation: Activation::Relu, residual: true };
    for spatial in [49, 196, 784, 3136, 12544] {
        for dtype in DTYPES {
            let problem =
                Problem::new(&[32, 64, spatial], Layout::ChannelsFirst, dtype, epilogue).unwrap();
            for pass in PASSES {
                let plan = Plan::new(pass, &problem, &profiles::H200, Alignment::ALIGNED).unwrap();
                assert!(plan.pack > 1, "{plan} {problem}");
            }
        }
    }
}

/// f64 is for the CPU; a grid has its limits.
#[test]
fn what_no_launch_can_do_is_refused() {
    let f64_problem = Problem::new(&[2, 3], Layout::ChannelsLast, DType::F64, Epilogue::NONE);
    let plan = Plan::new(Pass::Apply, &f64_problem.unwrap(), &profiles::T4, Alignment::ALIGNED);
    assert!(plan.unwrap_err().to_string().contains("f32, f16 or bf16"));
    let wide = Problem::new(&[1, 1 << 31, 1000], Layout::ChannelsFirst, DType::F16, Epilogue::NONE);
    let plan = Plan::new(Pass::Apply, &wide.unwrap(), &profiles::T4, Alignment::ALIGNED);
    assert!(plan.unwrap_err().to_string().contains("one grid"));
}
