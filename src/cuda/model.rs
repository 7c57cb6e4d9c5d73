//! What a call should take: the small model of time that plans are chosen by. Its numbers are
//! predicted, not measured.

use super::launcher::DeviceFacts;
use super::plan::{BLOCK, Geometry, PACK_BYTES, Pass, Plan, Tier};
use super::resident::{Candidate, RESIDENTS};
use crate::problem::Problem;

/// Bytes of what memory moves at least.
const SECTOR: u64 = 32;
/// Seconds of a launch.
const LAUNCH: f64 = 2.5e-6;
/// Seconds of an exchange within a block, within a cluster, and by way of memory, with what a block
/// finishes after it: reckoned from the machine code.
const BLOCK_EXCHANGE: f64 = 0.8e-6;
const CLUSTER_EXCHANGE: f64 = 1.5e-6;
const GRID_EXCHANGE: f64 = 3.0e-6;
/// Seconds more for columns, whose rows of threads are added up before that.
const ADDING_COLUMNS: f64 = 1.5e-6;
/// Seconds in which memory idles where nothing overlaps an exchange.
const RAMP: f64 = 1.5e-6;
/// Of the multiprocessors, what saturates memory.
const SATURATING: f64 = 0.6;
/// Seconds from a load to its bytes: as many as the bandwidth brings in that time must be under way.
const LATENCY: f64 = 0.7e-6;
/// Of the cost of memory, what a read costs that L2 serves.
const FROM_L2: f64 = 0.6;
/// Partial results that every block merges for itself, as `kernels/leave.cuh` has it.
const MERGED_IN_CLUSTER: u64 = 512;
const MERGED_ALONE: u64 = 2048;

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

/// Seconds in which a block adds up what its threads have found.
fn adding(geometry: &Geometry) -> f64 {
    match geometry {
        Geometry::Planes { .. } => 0.0,
        Geometry::Columns { .. } => ADDING_COLUMNS,
    }
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

/// What a call should take in two launches, where L2 serves the second read of what it holds: the second
/// one begins where the first one ends. Between them memory idles, while the first one's blocks leave
/// each other what they have found.
pub(super) fn streaming_seconds(
    pass: Pass,
    problem: &Problem,
    facts: &DeviceFacts,
    plans: &[Plan; 2],
) -> f64 {
    let Sweeps { both, second } = Sweeps::of(pass, problem);
    let again = both - both.min(facts.held_by_l2() as f64) * (1.0 - FROM_L2);
    let [first_rate, second_rate] =
        [0, 1].map(|index| reached_streaming(&plans[index], problem, facts));
    let exchange = if plans[0].parts > 1 { GRID_EXCHANGE } else { BLOCK_EXCHANGE };
    let sweeps = both / first_rate + (again + second) / second_rate;
    2.0 * LAUNCH + sweeps + adding(&plans[0].geometry) + exchange + RAMP
}

/// What inference should take.
pub(super) fn inference_seconds(problem: &Problem, facts: &DeviceFacts, plan: &Plan) -> f64 {
    let bytes = plan.requested_bytes(problem).total();
    LAUNCH + bytes as f64 / reached_streaming(plan, problem, facts)
}

/// What a launch should take that keeps tensors on chip: bytes over the bandwidth that its blocks reach,
/// and the time in which memory idles, because all that a multiprocessor holds waits for an exchange.
pub(super) fn resident_seconds(
    pass: Pass,
    problem: &Problem,
    facts: &DeviceFacts,
    slot_bytes: u64,
    candidate: &Candidate,
) -> f64 {
    let &Candidate { residents, groups, channels, parts, teams, slots, .. } = candidate;
    let Sweeps { both, second } = Sweeps::of(pass, problem);

    let at_once = if parts == 1 { residents * u64::from(facts.multiprocessors) } else { teams };
    let waves = groups.div_ceil(at_once) as f64;
    let again = both * candidate.evicted;
    let from_l2 = again.min(facts.held_by_l2() as f64 * waves);
    let bytes = both + again - from_l2 * (1.0 - FROM_L2) + second;

    let size = problem.dtype().size();
    let sectors = sectors(&candidate.geometry, PACK_BYTES / size as u64, size);
    let bandwidth = reached(facts, at_once.min(groups) * parts, slots * slot_bytes) / sectors;
    let balance = groups as f64 / (waves * at_once as f64);
    let balance = if waves > 1.0 { balance.max(0.5) } else { 1.0 };

    let (meeting, merged_alone) = match candidate.tier {
        Tier::Cluster => (CLUSTER_EXCHANGE, MERGED_IN_CLUSTER),
        Tier::Grid => (GRID_EXCHANGE, MERGED_ALONE),
        _ => (BLOCK_EXCHANGE, u64::MAX),
    };
    // Where there is much to merge they meet once more.
    let meetings = if parts * channels > merged_alone { 2.0 } else { 1.0 };
    let turns = if candidate.hides_exchanges() { 1.0 } else { waves };
    let idle = turns * (adding(&candidate.geometry) + meetings * meeting + RAMP);
    LAUNCH + bytes / bandwidth / balance + idle
}
