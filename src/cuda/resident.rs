//! Plans that keep a training pass's tensors on chip between its sweeps: which team of blocks holds
//! a group of channels, and what that should cost.

use super::choice::Choice;
use super::launcher::{Clusters, DeviceFacts};
use super::plan::{
    Alignment, BLOCK, Geometry, PACK_BYTES, PARTIAL_WORDS, Pass, Plan, Tier, WINDOWS, Walk,
    columns, kernel_name, pack_of, planes, share,
};
use crate::problem::Problem;

/// Rounds are whole batches: `Rounds` in `kernels/tile.cuh`.
pub(super) const SLOT_GRANULE: u64 = 4;

/// Blocks that a multiprocessor's registers hold: `RESIDENT_ENTRY` in `kernels/entries.h`.
const RESIDENTS: u64 = 2;
/// Bytes of what memory moves at least.
const SECTOR: u64 = 32;
/// What a pack's bits of mask take on chip.
const MASK_BYTES: u64 = 2;
/// Areas for partial results in shared memory, which groups use in turn: `Team` in
/// `kernels/team.cuh`.
const EXCHANGE_AREAS: u64 = 2;
/// Partial results that every block merges for itself: `MERGED_ALONE` in `kernels/leave.cuh`.
const MERGED_ALONE: u64 = 512;

/// Seconds of a launch.
const LAUNCH: f64 = 2.5e-6;
/// Seconds of an exchange within a block, within a cluster, and by way of memory, with what a block
/// adds up before it and finishes after it: reckoned from the machine code.
const BLOCK_EXCHANGE: f64 = 0.8e-6;
const CLUSTER_EXCHANGE: f64 = 1.5e-6;
const GRID_EXCHANGE: f64 = 3.0e-6;
/// Seconds in which memory idles where nothing overlaps an exchange.
const RAMP: f64 = 1.5e-6;
/// Of the multiprocessors, what saturates memory.
const SATURATING: f64 = 0.6;
/// Seconds from a load to its bytes: as many as the bandwidth brings in that time must be under way.
const LATENCY: f64 = 0.7e-6;
/// Of the cost of memory, what a read costs that L2 serves.
const FROM_L2: f64 = 0.4;

/// Static shared memory of a resident kernel, at most: the report of the kernels holds them to it.
pub const fn static_shared_bytes(pass: Pass, walk: Walk) -> u32 {
    match (pass, walk) {
        // With what blocks leave for each other, less than a kilobyte.
        (_, Walk::Planes) => 768,
        (Pass::Backward, Walk::Columns) => 20 << 10,
        (_, Walk::Columns) => 17 << 10,
    }
}

/// A way to spread groups of channels over the device.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    tier: Tier,
    /// Blocks that a multiprocessor holds together.
    residents: u64,
    geometry: Geometry,
    groups: u64,
    channels: u64,
    parts: u64,
    teams: u64,
    slots: u64,
    /// The share of the inputs that does not stay.
    evicted: f64,
}

/// What blocks leave for each other in the shared memory of each, with a word between the channels of
/// neighbouring threads, which have a pack of them or one.
fn exchange_bytes(channels: u64, pack: u64) -> u64 {
    EXCHANGE_AREAS * (channels * PARTIAL_WORDS + channels.div_ceil(pack)) * 8
}

/// How a group is cut among blocks.
#[derive(Clone, Copy)]
struct Cut {
    groups: u64,
    /// Of a group.
    channels: u64,
    /// Windows or rows, and how many of them the threads of a block take in one step.
    whole: u64,
    per_step: u64,
    granule: u64,
    geometry: Geometry,
}

impl Cut {
    fn per_part(&self, parts: u64) -> u64 {
        share(self.whole, parts, self.granule)
    }

    /// Packs of each tensor that a thread goes through.
    fn steps(&self, parts: u64) -> u64 {
        self.per_part(parts).div_ceil(self.per_step).next_multiple_of(SLOT_GRANULE)
    }

    fn geometry(&self, parts: u64) -> Geometry {
        self.geometry.with_share(self.per_part(parts))
    }
}

/// The best plan of those that `choice` allows, and its predicted seconds. `None`: none of them keeps
/// anything on chip.
pub(super) fn resident(
    pass: Pass,
    problem: &Problem,
    facts: &DeviceFacts,
    alignment: Alignment,
    choice: Choice,
) -> Option<(Plan, f64)> {
    let walk = Walk::of(problem);
    let pack = pack_of(walk, pass, problem, alignment);
    if pack == 1 || problem.elements() == 0 {
        return None;
    }
    let slot_bytes = slot_bytes(pass, problem);
    let cuts = cuts(walk, pass, problem, facts, alignment, pack);
    let all = cuts.iter().flat_map(|cut| {
        (1..=RESIDENTS).flat_map(move |residents| {
            let slots = |reserved| slots_of(pass, walk, facts, residents, reserved, slot_bytes);
            let (near, far) = (slots(exchange_bytes(cut.channels, pack.into())), slots(0));
            near_candidates(cut, facts, residents, near, choice.parts()).chain(far_candidates(
                cut,
                facts,
                residents,
                far,
                choice.parts(),
            ))
        })
    });
    let (best, time) = all
        .filter(|candidate| choice.allows(candidate.tier, candidate.parts))
        .map(|candidate| (candidate, seconds(pass, problem, facts, slot_bytes, &candidate)))
        .min_by(|(_, a), (_, b)| a.total_cmp(b))?;
    Some((plan_of(pass, problem, facts, walk, pack, slot_bytes, &best), time))
}

/// Whether a tensor is so large that whoever goes through it from its beginning finds nothing of it in
/// L2, even where all of L2 was for it.
fn exceeds_cache(problem: &Problem, facts: &DeviceFacts) -> bool {
    (problem.elements() * problem.dtype().size()) as u64 > facts.l2_bytes
}

/// What a thread's slot takes in every tensor that stays, for all threads of a block.
fn slot_bytes(pass: Pass, problem: &Problem) -> u64 {
    let epilogue = problem.epilogue();
    let tensors = match pass {
        Pass::Backward => 2 + u64::from(epilogue.backward_reads_residual()),
        _ => 1,
    };
    let mask = if pass.reads_mask() && epilogue.has_mask() { MASK_BYTES } else { 0 };
    u64::from(BLOCK) * (tensors * PACK_BYTES + mask)
}

/// Slots of a block that shares its multiprocessor with others; `reserved` bytes are for something
/// else.
fn slots_of(
    pass: Pass,
    walk: Walk,
    facts: &DeviceFacts,
    residents: u64,
    reserved: u64,
    slot_bytes: u64,
) -> u64 {
    if residents * u64::from(BLOCK) > facts.threads_per_multiprocessor.into() {
        return 0;
    }
    let share = (u64::from(facts.shared_bytes_per_multiprocessor) / residents)
        .saturating_sub(facts.shared_bytes_reserved.into());
    let bytes = share
        .min(facts.shared_bytes_per_block.into())
        .saturating_sub(u64::from(static_shared_bytes(pass, walk)) + reserved);
    bytes / slot_bytes / SLOT_GRANULE * SLOT_GRANULE
}

/// Tiles of several widths, down to 64 bytes of a row: what is narrower leaves memory's bursts
/// unused.
fn cuts(
    walk: Walk,
    pass: Pass,
    problem: &Problem,
    facts: &DeviceFacts,
    alignment: Alignment,
    pack: u32,
) -> Vec<Cut> {
    match walk {
        Walk::Planes => {
            let (groups, geometry) = planes(pass, problem, facts, alignment, pack);
            let Geometry::Planes { windows, .. } = geometry else { return Vec::new() };
            let whole = problem.batch() as u64 * windows;
            let per_step = BLOCK.into();
            vec![Cut { groups, channels: 1, whole, per_step, granule: WINDOWS, geometry }]
        }
        Walk::Columns => {
            let (_, widest) = columns(pass, problem, facts, pack);
            let Geometry::Columns {
                columns_per_channel,
                packs_per_tile,
                columns,
                rows_abreast,
                ..
            } = widest
            else {
                return Vec::new();
            };
            let row = columns / u64::from(pack);
            let is_narrower = |width: &u32| {
                columns_per_channel * rows_abreast == 1
                    && *width < packs_per_tile
                    && u64::from(*width) < row
            };
            let narrower = [4, 8, 16].into_iter().filter(is_narrower);
            narrower.chain([packs_per_tile]).map(|width| columns_cut(widest, width, pack)).collect()
        }
    }
}

fn columns_cut(geometry: Geometry, width: u32, pack: u32) -> Cut {
    let Geometry::Columns {
        rows, columns, rows_per_sample, columns_per_channel, rows_abreast, ..
    } = geometry
    else {
        unreachable!("only columns are cut so")
    };
    let height = u64::from(BLOCK / width);
    Cut {
        groups: columns.div_ceil(u64::from(width * pack)),
        channels: u64::from(width * pack / (columns_per_channel * rows_abreast)),
        whole: rows,
        per_step: height,
        granule: height,
        geometry: Geometry::Columns {
            rows,
            columns,
            rows_per_sample,
            rows_per_part: rows,
            columns_per_channel,
            packs_per_tile: width,
            rows_abreast,
        },
    }
}

/// With so many slots a thread, teams whose blocks reach each other's shared memory: one block, and
/// clusters of every size that gives a block less to hold than smaller ones do. The smallest need not
/// give each of its blocks anything. Where `only` says how many blocks, teams of so many.
fn near_candidates(
    cut: &Cut,
    facts: &DeviceFacts,
    residents: u64,
    slots: u64,
    only: Option<u64>,
) -> impl Iterator<Item = Candidate> {
    let sizes = only.map_or(1..=Clusters::LARGEST as u64, |parts| parts..=parts);
    let mut held = u64::MAX;
    sizes.filter_map(move |parts| {
        let (tier, at_once) = match parts {
            1 => (Tier::Block, cut.groups),
            _ => {
                let clusters = facts.clusters.resident(residents as u32, parts as u32);
                (Tier::Cluster, clusters.into())
            }
        };
        let (share, steps) = (cut.per_part(parts), cut.steps(parts));
        if at_once == 0 || steps > slots || share >= held {
            return None;
        }
        if tier == Tier::Cluster {
            held = share;
        }
        Some(Candidate {
            tier,
            residents,
            geometry: cut.geometry(parts),
            groups: cut.groups,
            channels: cut.channels,
            parts,
            teams: cut.groups.min(at_once),
            slots: steps,
            evicted: 0.0,
        })
    })
}

/// The same for teams that meet in memory: as many of them as hold a group each, fewer and larger
/// ones, and where a group does not fit, all blocks on one.
fn far_candidates(
    cut: &Cut,
    facts: &DeviceFacts,
    residents: u64,
    slots: u64,
    only: Option<u64>,
) -> impl Iterator<Item = Candidate> {
    let blocks = u64::from(facts.cooperative_blocks[residents as usize - 1]);
    let of = move |parts: u64, slots: u64| {
        let parts = cut.whole.div_ceil(cut.per_part(parts)).max(1);
        (parts > 1).then(|| Candidate {
            tier: Tier::Grid,
            residents,
            geometry: cut.geometry(parts),
            groups: cut.groups,
            channels: cut.channels,
            parts,
            teams: cut.groups.min(blocks / parts),
            slots,
            evicted: 1.0 - (slots as f64 / cut.steps(parts) as f64).min(1.0),
        })
    };
    // What as many turns leave to each team, with all blocks at it.
    let of_teams = move |teams: u64, least: u64| {
        let turns = cut.groups.div_ceil(teams);
        let parts = blocks / cut.groups.div_ceil(turns);
        let parts = parts.min(cut.whole.div_ceil(cut.per_step)).max(least);
        of(parts, cut.steps(parts))
    };
    let mut found = [None; 4];
    if slots > 0 && blocks > 0 {
        let least = cut.whole.div_ceil(slots * cut.per_step).max(1);
        let least = (least..=least + 1).find(|parts| cut.steps(*parts) <= slots);
        found = match (only, least) {
            (Some(parts), _) if parts > blocks => [None; 4],
            (Some(parts), _) => [of(parts, cut.steps(parts).min(slots)), None, None, None],
            (None, Some(least)) if least <= blocks => {
                let most = (blocks / least).min(cut.groups);
                [1, 2, 4, most].map(|divisor| of_teams((most / divisor).max(1), least))
            }
            _ => [of(blocks, slots), None, None, None],
        };
    }
    found.into_iter().flatten()
}

fn plan_of(
    pass: Pass,
    problem: &Problem,
    facts: &DeviceFacts,
    walk: Walk,
    pack: u32,
    slot_bytes: u64,
    candidate: &Candidate,
) -> Plan {
    let tile_bytes = candidate.slots * slot_bytes;
    let exchange_bytes = match candidate.tier {
        Tier::Block | Tier::Cluster => exchange_bytes(candidate.channels, pack.into()),
        _ => 0,
    };
    Plan {
        pass,
        kernel: kernel_name(pass, walk, problem.dtype(), pack, problem),
        walk,
        pack,
        groups: candidate.groups,
        parts: candidate.parts as u32,
        grid: (candidate.teams * candidate.parts) as u32,
        geometry: candidate.geometry,
        tier: candidate.tier,
        slots: candidate.slots as u32,
        tile_bytes: tile_bytes as u32,
        shared_bytes: (tile_bytes + exchange_bytes) as u32,
        spares_cache: candidate.evicted > 0.0 && exceeds_cache(problem, facts),
    }
}

/// Bytes that the sweeps of a training pass move.
struct Sweeps {
    /// What both go through, unless it stays on chip.
    both: f64,
    /// What only the second reads, or writes.
    second: f64,
}

impl Sweeps {
    fn of(pass: Pass, problem: &Problem) -> Sweeps {
        let tensor = problem.elements() * problem.dtype().size();
        let (all, both) = match pass {
            Pass::Backward => {
                let outputs = 1 + usize::from(problem.epilogue().residual);
                let all = problem.backward_floor_bytes();
                (all, all - outputs * tensor)
            }
            // A forward's residual waits for the second.
            _ => (problem.forward_floor_bytes(), tensor),
        };
        Sweeps { both: both as f64, second: (all - both) as f64 }
    }
}

/// Bytes a second that so many blocks move which are there together, with so many bytes under way for
/// each.
fn reached(facts: &DeviceFacts, blocks: u64, under_way: u64) -> f64 {
    let (multiprocessors, bandwidth) = (facts.multiprocessors, facts.memory_bandwidth as f64);
    let busy = blocks.min(multiprocessors.into()) as f64;
    let by_multiprocessors = busy / (SATURATING * f64::from(multiprocessors));
    let by_latency = (blocks * under_way) as f64 / (LATENCY * bandwidth);
    bandwidth * by_multiprocessors.min(by_latency).min(1.0)
}

/// Bytes of the sectors that a plan's blocks touch, over those that they ask for: tiles of rows that
/// are no whole sectors touch half of one more, on average.
fn sectors(geometry: &Geometry, pack: u64, size: usize) -> f64 {
    let &Geometry::Columns { columns, packs_per_tile, .. } = geometry else { return 1.0 };
    let size = size as u64;
    let (row, tile) = (columns * size, u64::from(packs_per_tile) * pack * size);
    let is_whole = row.is_multiple_of(SECTOR) && tile.is_multiple_of(SECTOR);
    if is_whole || tile >= row { 1.0 } else { 1.0 + (SECTOR / 2) as f64 / tile as f64 }
}

/// Bytes a second that a launch moves which streams, of those that it asks for.
fn reached_streaming(plan: &Plan, problem: &Problem, facts: &DeviceFacts) -> f64 {
    // Four packs of a tensor, or single elements, whose kernels take fewer registers; entries.h has fewer
    // packs of each where there are two tensors or a smooth activation.
    let (loads, residents) = if plan.pack > 1 { (4, RESIDENTS) } else { (1, 2 * RESIDENTS) };
    let tensors = if plan.pass.reads_dy() { 2 } else { 1 };
    let bytes = u64::from(plan.pack) * problem.dtype().size() as u64;
    let blocks = u64::from(plan.grid).min(residents * u64::from(facts.multiprocessors));
    let sectors = sectors(&plan.geometry, plan.pack.into(), problem.dtype().size());
    reached(facts, blocks, u64::from(BLOCK) * loads * tensors * bytes) / sectors
}

/// What a call should take in two launches, where L2 serves the second read of what it holds. Between
/// them memory idles, while the first one's blocks leave each other what they have found.
pub(super) fn streaming_seconds(
    pass: Pass,
    problem: &Problem,
    facts: &DeviceFacts,
    plans: &[Plan; 2],
) -> f64 {
    let Sweeps { both, second } = Sweeps::of(pass, problem);
    let fits_l2 = both <= facts.l2_bytes as f64 / 2.0;
    let again = if fits_l2 { FROM_L2 } else { 1.0 };
    let [first_rate, second_rate] =
        [0, 1].map(|index| reached_streaming(&plans[index], problem, facts));
    let exchange = if plans[0].parts > 1 { GRID_EXCHANGE } else { BLOCK_EXCHANGE };
    let sweeps = both / first_rate + (both * again + second) / second_rate;
    2.0 * LAUNCH + sweeps + exchange + RAMP
}

/// What inference should take.
pub(super) fn inference_seconds(problem: &Problem, facts: &DeviceFacts, plan: &Plan) -> f64 {
    let bytes = plan.requested_bytes(problem).total();
    LAUNCH + bytes as f64 / reached_streaming(plan, problem, facts)
}

/// What a launch should take: bytes over the bandwidth that its blocks reach, and exchanges where
/// nothing hides them.
fn seconds(
    pass: Pass,
    problem: &Problem,
    facts: &DeviceFacts,
    slot_bytes: u64,
    candidate: &Candidate,
) -> f64 {
    let Candidate { residents, groups, channels, parts, teams, slots, evicted, .. } = *candidate;
    let Sweeps { both, second } = Sweeps::of(pass, problem);
    let bytes = both * (1.0 + evicted) + second;

    let at_once = if parts == 1 { residents * u64::from(facts.multiprocessors) } else { teams };
    let waves = groups.div_ceil(at_once) as f64;
    let size = problem.dtype().size();
    let sectors = sectors(&candidate.geometry, PACK_BYTES / size as u64, size);
    let bandwidth = reached(facts, at_once.min(groups) * parts, slots * slot_bytes) / sectors;
    let balance = groups as f64 / (waves * at_once as f64);
    let balance = if waves > 1.0 { balance.max(0.5) } else { 1.0 };
    let meeting = match candidate.tier {
        Tier::Cluster => CLUSTER_EXCHANGE,
        Tier::Grid => GRID_EXCHANGE,
        _ => BLOCK_EXCHANGE,
    };
    // Where there is much to merge they meet once more.
    let meetings = if parts > 1 && parts * channels > MERGED_ALONE { 2.0 } else { 1.0 };
    let exchange = meetings * meeting;
    // A block that shares its multiprocessor works while the other waits, but for the first time.
    let turns = if residents > 1 { 1.0 } else { waves };
    LAUNCH + bytes / bandwidth / balance + turns * (exchange + RAMP)
}
