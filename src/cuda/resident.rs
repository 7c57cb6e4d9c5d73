//! Plans that keep a training pass's tensors on chip between its sweeps: which team of blocks holds
//! a group of channels.

use super::choice::Choice;
use super::launcher::{Clusters, DeviceFacts};
use super::model::resident_seconds;
use super::plan::{
    Alignment, BLOCK, Geometry, PACK_BYTES, PARTIAL_WORDS, Pass, Plan, Tier, WINDOWS, Walk,
    columns, kernel_name, pack_of, planes, share,
};
use crate::element::DType;
use crate::problem::Problem;

/// Rounds are whole batches: `Rounds` in `kernels/tile.cuh`.
pub(super) const SLOT_GRANULE: u64 = 4;

/// Blocks that a multiprocessor's registers hold: `RESIDENT_ENTRY` in `kernels/entries.h`.
pub(super) const RESIDENTS: u64 = 2;
/// Words of two sums in f64.
const SUMS_WORDS: u64 = 4;
/// What a pack's bits of mask take on chip.
const MASK_BYTES: u64 = 2;
/// Areas for partial results in shared memory, which groups use in turn: `Team` in
/// `kernels/team.cuh`.
const EXCHANGE_AREAS: u64 = 2;
/// Static shared memory of a resident kernel, at most: the report of the kernels holds them to it.
pub const STATIC_SHARED_BYTES: u32 = 512;

/// A way to spread groups of channels over the device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub tier: Tier,
    /// Blocks that a multiprocessor holds together.
    pub residents: u64,
    pub geometry: Geometry,
    pub groups: u64,
    pub channels: u64,
    pub parts: u64,
    pub teams: u64,
    pub slots: u64,
    /// The share of the inputs that does not stay.
    pub evicted: f64,
}

impl Candidate {
    /// Whether blocks that share a multiprocessor belong to different teams: one works while the other
    /// waits.
    pub fn hides_exchanges(&self) -> bool {
        self.residents > 1 && self.teams > 1
    }

    /// Nanoseconds by which the second half of the teams begins later, so that not all wait for their
    /// blocks at the same time: half of what it takes to bring all that is on chip at first. The other half
    /// of the blocks keeps memory busy. It is the second half of the blocks, which must be whole teams.
    fn late_by(&self, slot_bytes: u64, facts: &DeviceFacts) -> u32 {
        let takes_turns = matches!(self.tier, Tier::Cluster | Tier::Grid);
        if !takes_turns || !self.hides_exchanges() || !self.teams.is_multiple_of(2) {
            return 0;
        }
        let bytes = self.teams * self.parts * self.slots * slot_bytes;
        (bytes as f64 / facts.memory_bandwidth as f64 / 2.0 * 1e9) as u32
    }
}

/// What a block knows of its channels, or adds up of them before that: `Shelf` in `kernels/channel.cuh` and
/// `Scratch` in `kernels/leave.cuh`.
fn shelf_bytes(pass: Pass, dtype: DType, geometry: &Geometry, pack: u64) -> u64 {
    let item_words = match (pass, dtype) {
        (Pass::Backward, DType::F32) => 12,
        (Pass::Backward, _) => 8,
        (_, DType::F32) => 5,
        _ => 4,
    };
    let words = match *geometry {
        Geometry::Planes { .. } => item_words,
        Geometry::Columns { packs_per_tile, .. } => {
            let places = u64::from(packs_per_tile) * pack;
            // A thread's sums of two channels; those of a place, and what they are about.
            let of_threads = 2 * u64::from(BLOCK) * SUMS_WORDS;
            (places * item_words).max(of_threads + places * (SUMS_WORDS + 1))
        }
    };
    (words * 4).next_multiple_of(PACK_BYTES)
}

/// What blocks leave for each other in the shared memory of each, with a word between the channels of
/// neighbouring threads, which have a pack of them or one.
fn exchange_bytes(channels: u64, pack: u64) -> u64 {
    let words = EXCHANGE_AREAS * (channels * PARTIAL_WORDS + channels.div_ceil(pack));
    (words * 8).next_multiple_of(PACK_BYTES)
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
        let shelf = shelf_bytes(pass, problem.dtype(), &cut.geometry, pack.into());
        // Of two that should take as long, the one with more threads.
        (1..=RESIDENTS).rev().flat_map(move |residents| {
            let slots = |exchange| slots_of(facts, residents, shelf + exchange, slot_bytes);
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
        .map(|candidate| {
            (candidate, resident_seconds(pass, problem, facts, slot_bytes, &candidate))
        })
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

/// Slots of a block that shares its multiprocessor with others; `reserved` bytes of dynamic shared
/// memory are for something else.
fn slots_of(facts: &DeviceFacts, residents: u64, reserved: u64, slot_bytes: u64) -> u64 {
    if residents * u64::from(BLOCK) > facts.threads_per_multiprocessor.into() {
        return 0;
    }
    let share = (u64::from(facts.shared_bytes_per_multiprocessor) / residents)
        .saturating_sub(facts.shared_bytes_reserved.into());
    let reserved = reserved + u64::from(STATIC_SHARED_BYTES);
    let bytes = share.min(facts.shared_bytes_per_block.into()).saturating_sub(reserved);
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

/// The same for teams that meet in memory: as many of them as hold a group each, fewer and larger ones,
/// and a few whose groups need not fit, which go through their share in rounds.
fn far_candidates(
    cut: &Cut,
    facts: &DeviceFacts,
    residents: u64,
    slots: u64,
    only: Option<u64>,
) -> impl Iterator<Item = Candidate> {
    let blocks = u64::from(facts.cooperative_blocks[residents as usize - 1]);
    let of = move |parts: u64| {
        let parts = cut.whole.div_ceil(cut.per_part(parts)).max(1);
        let (steps, teams) = (cut.steps(parts), cut.groups.min(blocks / parts));
        (parts > 1 && teams > 0).then(|| Candidate {
            tier: Tier::Grid,
            residents,
            geometry: cut.geometry(parts),
            groups: cut.groups,
            channels: cut.channels,
            parts,
            teams,
            slots: steps.min(slots),
            evicted: 1.0 - (slots as f64 / steps as f64).min(1.0),
        })
    };
    // What as many turns leave to each team, with all blocks at it.
    let of_teams = move |teams: u64| {
        let turns = cut.groups.div_ceil(teams);
        let parts = blocks / cut.groups.div_ceil(turns);
        of(parts.min(cut.whole.div_ceil(cut.per_step)))
    };
    let counts = match only {
        _ if slots == 0 || blocks == 0 => [0; 7],
        Some(_) => [1, 0, 0, 0, 0, 0, 0],
        None => {
            let holds = |teams: &u64| cut.steps((blocks / teams).max(1)) <= slots;
            let most = (1..=blocks.min(cut.groups)).rev().find(holds).unwrap_or(0);
            let even = (1..=most).rev().find(|teams| cut.groups.is_multiple_of(*teams));
            [most, even.unwrap_or(0), most / 2, most / 4, 1, 2, 4]
        }
    };
    counts
        .into_iter()
        .filter(move |teams| (1..=blocks).contains(teams))
        .filter_map(move |teams| only.map_or_else(|| of_teams(teams), of))
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
    let shelf_at = tile_bytes + exchange_bytes;
    let shelf_bytes = shelf_bytes(pass, problem.dtype(), &candidate.geometry, pack.into());
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
        shelf_at: shelf_at as u32,
        shared_bytes: (shelf_at + shelf_bytes) as u32,
        spares_cache: candidate.evicted > 0.0 && exceeds_cache(problem, facts),
        late_by: candidate.late_by(slot_bytes, facts),
    }
}
