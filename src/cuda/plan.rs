//! [`Plan`]: how a pass is laid over a device. Pure: shape and device facts in, launch out.
//!
//! A tensor is walked as *planes* (channels-first: a block sees one channel) or as *columns* (a
//! matrix of rows; channels-last, and channels-first with small planes). What a walk is, stands in
//! `kernels/walk.cuh`.

use super::launcher::DeviceFacts;
use crate::config::{Activation, Layout};
use crate::element::DType;
use crate::error::{Error, Result};
use crate::problem::{Operand, Problem};
use std::fmt;

/// Threads of every block: `THREADS` in `kernels/walk.cuh`.
pub const BLOCK: u32 = 256;
/// Columns that a block covers at most: `MAX_COLUMNS` in `kernels/walk.cuh`.
const MAX_COLUMNS: u64 = 416;
/// Windows of a plane that stay together: a warp's.
pub(super) const WINDOWS: u64 = 32;
/// Bytes of a pack.
pub(super) const PACK_BYTES: u64 = 16;
/// f64 words that a block leaves per channel, at most: count, mean, M2.
pub(super) const PARTIAL_WORDS: u64 = 3;

/// One launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Mean and variance of each channel.
    Statistics,
    /// y from x, and the mask of a problem that has one.
    Apply,
    /// y from x with fixed statistics: no backward will ask for a mask.
    Inference,
    /// Backward's sums over each channel.
    Reduce,
    /// dx from x, dy and the sums.
    Gradient,
    /// Backward with fixed statistics: sums and dx in one sweep.
    Frozen,
    /// A training forward as a whole: statistics, then y from what stayed on chip.
    Forward,
    /// A training backward as a whole.
    Backward,
}

/// Where the tensors are between the two sweeps of a training pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    /// In memory: two launches.
    Streaming,
    /// On chip, a group of channels in each block.
    Block,
    /// On chip, a group of channels spread over a thread block cluster.
    Cluster,
    /// On chip, a group of channels spread over blocks that wait for each other.
    Grid,
}

impl Pass {
    /// Whether blocks finish channels together.
    fn reduces(self) -> bool {
        !matches!(self, Pass::Apply | Pass::Inference | Pass::Gradient)
    }

    /// Whether the last of the blocks that share a channel merges what all have left.
    fn leaves_partials(self) -> bool {
        matches!(self, Pass::Statistics | Pass::Reduce | Pass::Frozen)
    }

    pub(super) fn reads_dy(self) -> bool {
        matches!(self, Pass::Reduce | Pass::Gradient | Pass::Frozen | Pass::Backward)
    }

    pub(super) fn writes_dx(self) -> bool {
        matches!(self, Pass::Gradient | Pass::Frozen | Pass::Backward)
    }

    pub(super) fn writes_y(self) -> bool {
        matches!(self, Pass::Apply | Pass::Inference | Pass::Forward)
    }

    /// Whether it writes the mask of a problem that has one.
    pub(super) fn writes_mask(self) -> bool {
        matches!(self, Pass::Apply | Pass::Forward)
    }

    /// Whether it reads the mask of a problem that has one.
    pub(super) fn reads_mask(self) -> bool {
        self.reads_dy() && self != Pass::Frozen
    }

    /// Whether the problem has a mask that it reads or writes.
    fn touches_mask(self, problem: &Problem) -> bool {
        problem.epilogue().has_mask() && (self.reads_mask() || self.writes_mask())
    }
}

/// In which pattern a pass goes through memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Walk {
    /// A block sees one channel: its samples are contiguous planes.
    Planes,
    /// A thread stays at its columns of a matrix and goes down the rows.
    Columns,
}

impl Walk {
    /// Follows from the shape alone, so that forward and backward agree about the mask.
    pub fn of(problem: &Problem) -> Walk {
        match problem.layout() {
            Layout::ChannelsLast => Walk::Columns,
            Layout::ChannelsFirst => match channels_per_tile(problem.spatial() as u64) {
                Some(_) => Walk::Columns,
                None => Walk::Planes,
            },
        }
    }
}

/// The fewest channels whose small planes make whole packs and whole bytes of mask side by side,
/// if a block can cover them: one channel of them even where it takes single elements, a thread each.
fn channels_per_tile(spatial: u64) -> Option<u64> {
    let channels = 8 >> spatial.trailing_zeros().min(3);
    let covers = spatial <= u64::from(BLOCK) && (1..=MAX_COLUMNS).contains(&(channels * spatial));
    covers.then_some(channels)
}

/// Where tensors lie relative to the boundaries of packs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Alignment {
    /// Elements from the last boundary to the first element; `None` if the tensors of the call
    /// differ in that, or from sample to sample.
    pub offset: Option<u32>,
}

impl Alignment {
    /// Every tensor and every sample begins at a boundary.
    pub const ALIGNED: Alignment = Alignment { offset: Some(0) };
    /// Tensors lie in different ways.
    pub const MIXED: Alignment = Alignment { offset: None };

    /// Of the operands that are there: by address, 0 where absent, and batch stride.
    pub fn of(problem: &Problem, operands: &[(u64, Operand)]) -> Alignment {
        let size = problem.dtype().size() as u64;
        let mut places = operands.iter().filter(|(address, _)| *address != 0).map(|operand| {
            let stride = problem.batch_stride(operand.1) as u64 * size % PACK_BYTES;
            (operand.0 % PACK_BYTES, if problem.batch() > 1 { stride } else { 0 })
        });
        let Some(first) = places.next() else { return Alignment::ALIGNED };
        if first.0.is_multiple_of(size) && places.all(|place| place == first) {
            Alignment { offset: Some((first.0 / size) as u32) }
        } else {
            Alignment::MIXED
        }
    }
}

/// How one pass is laid over a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What it does.
    pub pass: Pass,
    /// The entry point.
    pub kernel: String,
    /// The pattern.
    pub walk: Walk,
    /// Elements per access.
    pub pack: u32,
    /// Blocks that finish channels together.
    pub groups: u64,
    /// Blocks that share a channel.
    pub parts: u32,
    /// Blocks.
    pub grid: u32,
    /// Where packs and parts begin.
    pub geometry: Geometry,
    /// Where the tensors are between the sweeps.
    pub tier: Tier,
    /// Packs of each tensor that a thread keeps on chip.
    pub slots: u32,
    /// Bytes of dynamic shared memory that tensors take in a block.
    pub tile_bytes: u32,
    /// Bytes of dynamic shared memory before what a block knows of its channels.
    pub shelf_at: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// Whether what is not read again leaves L2 to inputs that are.
    pub spares_cache: bool,
    /// Nanoseconds by which the second half of the blocks begins later.
    pub late_by: u32,
}

/// The fields of `Params` that say how a tensor is walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Geometry {
    /// [`Walk::Planes`].
    Planes {
        /// Elements from the last pack boundary to the first element.
        misalignment: u32,
        /// A plane's first window begins at its multiple: a pack, or the 8 elements of a byte of mask.
        boundary: u32,
        /// Packs that a plane may touch; with a mask, those of its row's bytes.
        windows: u64,
        /// Packs of a channel that one block walks over.
        windows_per_part: u64,
    },
    /// [`Walk::Columns`].
    Columns {
        /// Of the matrix.
        rows: u64,
        /// Of the matrix.
        columns: u64,
        /// After so many rows a sample's stride is due.
        rows_per_sample: u64,
        /// Rows that one block walks over.
        rows_per_part: u64,
        /// Neighbours that fold into one channel.
        columns_per_channel: u32,
        /// Packs of a row that one block covers.
        packs_per_tile: u32,
        /// Rows of the tensor that one of the matrix holds, side by side.
        rows_abreast: u32,
    },
}

impl Plan {
    /// Lays `pass` over a device.
    ///
    /// # Errors
    /// f64, which is for the CPU only; a tensor that needs more blocks than a grid has.
    pub fn new(
        pass: Pass,
        problem: &Problem,
        facts: &DeviceFacts,
        alignment: Alignment,
    ) -> Result<Plan> {
        let dtype = match problem.dtype() {
            DType::F64 => {
                return Err(Error::argument("x", "f32, f16 or bf16 on a GPU", DType::F64));
            }
            dtype => dtype,
        };
        let walk = Walk::of(problem);
        let pack = pack_of(walk, pass, problem, alignment);
        let (groups, geometry) = match walk {
            Walk::Planes => planes(pass, problem, facts, alignment, pack),
            Walk::Columns => columns(pass, problem, facts, pack),
        };
        let parts = geometry.parts(problem);
        let grid = groups
            .checked_mul(parts)
            .and_then(|blocks| i32::try_from(blocks).ok())
            .ok_or_else(|| Error::argument("x", "channels that fit one grid", problem))?
            as u32;
        let kernel = kernel_name(pass, walk, dtype, pack, problem);
        let parts = parts as u32;
        let (tier, slots, tile_bytes, shelf_at, shared_bytes) = (Tier::Streaming, 0, 0, 0, 0);
        let (spares_cache, late_by) = (false, 0);
        Ok(Plan {
            pass,
            kernel,
            walk,
            pack,
            groups,
            parts,
            grid,
            geometry,
            tier,
            slots,
            tile_bytes,
            shelf_at,
            shared_bytes,
            spares_cache,
            late_by,
        })
    }
}

impl Geometry {
    /// Windows or rows that the blocks of a channel share.
    fn whole(&self, problem: &Problem) -> u64 {
        match *self {
            Geometry::Planes { windows, .. } => problem.batch() as u64 * windows,
            Geometry::Columns { rows, .. } => rows,
        }
    }

    fn parts(&self, problem: &Problem) -> u64 {
        let (Geometry::Planes { windows_per_part: part, .. }
        | Geometry::Columns { rows_per_part: part, .. }) = *self;
        self.whole(problem).div_ceil(part).max(1)
    }

    /// The same with so many windows or rows for each block.
    pub(super) fn with_share(mut self, share: u64) -> Geometry {
        let (Geometry::Planes { windows_per_part: part, .. }
        | Geometry::Columns { rows_per_part: part, .. }) = &mut self;
        *part = share;
        self
    }
}

impl Plan {
    /// A streaming plan with so many blocks to a channel. `None`: not all of them would have a part,
    /// or a grid has not so many.
    pub(super) fn with_parts(&self, parts: u32, problem: &Problem) -> Option<Plan> {
        let granule = match self.geometry {
            Geometry::Planes { .. } => WINDOWS,
            Geometry::Columns { packs_per_tile, .. } => u64::from(BLOCK / packs_per_tile),
        };
        let share = share(self.geometry.whole(problem), parts.into(), granule);
        let geometry = self.geometry.with_share(share);
        let grid = u32::try_from(self.groups).ok()?.checked_mul(parts)?;
        let is_possible =
            geometry.parts(problem) == u64::from(parts) && i32::try_from(grid).is_ok();
        is_possible.then(|| Plan { parts, grid, geometry, ..self.clone() })
    }
}

/// Whole packs wherever tensors and mask allow, else single elements.
pub(super) fn pack_of(walk: Walk, pass: Pass, problem: &Problem, alignment: Alignment) -> u32 {
    let pack = PACK_BYTES / problem.dtype().size() as u64;
    let row = match walk {
        Walk::Planes => problem.spatial() as u64,
        Walk::Columns => columns_of(problem) * rows_abreast(pass, problem),
    };
    let fits = match (walk, alignment.offset) {
        (_, None) => false,
        // Planes may begin anywhere; with a mask, samples may not.
        (Walk::Planes, Some(offset)) => {
            !pass.touches_mask(problem)
                || (offset == 0 && has_room_in_mask(row) && samples_are_aligned(problem, pack))
        }
        (Walk::Columns, Some(offset)) => {
            let is_matrix = problem.layout() == Layout::ChannelsLast && is_gapless(problem);
            let rows_are_aligned = is_matrix || samples_are_aligned(problem, pack);
            offset == 0 && row.is_multiple_of(pack) && rows_are_aligned
        }
    };
    if fits { pack as u32 } else { 1 }
}

/// Whether a plane's row of mask can begin as many bits into its first byte as the plane begins
/// elements after a multiple of 8 of its sample, and take no byte more for it: planes begin at multiples
/// of `rest`, if that is a power of two, so at most 8 - `rest` bits into a byte.
fn has_room_in_mask(spatial: u64) -> bool {
    let rest = spatial % 8;
    rest == 0 || rest.is_power_of_two()
}

/// Whether every operand's batch stride keeps whole packs.
fn samples_are_aligned(problem: &Problem, pack: u64) -> bool {
    problem.batch() <= 1
        || Operand::ALL
            .iter()
            .all(|&operand| (problem.batch_stride(operand) as u64).is_multiple_of(pack))
}

/// Of one row.
fn columns_of(problem: &Problem) -> u64 {
    match problem.layout() {
        Layout::ChannelsFirst => (problem.channels() * problem.spatial()) as u64,
        Layout::ChannelsLast => problem.channels() as u64,
    }
}

/// Rows of a channels-last tensor that are whole packs side by side, where one is not: if a block can
/// cover them, none is left over, and no mask begins with each.
fn rows_abreast(pass: Pass, problem: &Problem) -> u64 {
    let pack = PACK_BYTES / problem.dtype().size() as u64;
    let (rows, columns) = (problem.values_per_channel() as u64, columns_of(problem));
    let missing = pack >> columns.trailing_zeros().min(pack.trailing_zeros());
    let is_possible = problem.layout() == Layout::ChannelsLast
        && !pass.touches_mask(problem)
        && is_gapless(problem)
        && missing * columns <= MAX_COLUMNS
        && rows.is_multiple_of(missing);
    if is_possible { missing } else { 1 }
}

/// Whether the samples of every tensor follow each other directly.
fn is_gapless(problem: &Problem) -> bool {
    Operand::ALL.iter().all(|&operand| problem.is_gapless(operand))
}

/// Blocks to each of so many groups: reductions want few, so that the last block has little to merge, and
/// what makes outputs not too many either, each of which makes its channels' coefficients first. No more
/// than whole waves: a last one of few blocks takes as long as any.
fn parts_of(pass: Pass, facts: &DeviceFacts, groups: u64) -> u64 {
    /// Blocks of a multiprocessor at a time, as registers allow.
    const RESIDENT: u64 = 2;
    let waves = if pass.leaves_partials() { 2 } else { 4 };
    (waves * RESIDENT * u64::from(facts.multiprocessors) / groups.max(1)).max(1)
}

/// Windows or rows of a block at most: kernels count them in 32 bits.
const LARGEST_SHARE: u64 = 1 << 30;

/// The share of one of `parts` among `whole`, in whole `granules`. Where that would be too large, there
/// are more parts.
pub(super) fn share(whole: u64, parts: u64, granule: u64) -> u64 {
    let most = LARGEST_SHARE / granule * granule;
    whole.div_ceil(parts.max(1)).next_multiple_of(granule).clamp(granule, most)
}

pub(super) fn planes(
    pass: Pass,
    problem: &Problem,
    facts: &DeviceFacts,
    alignment: Alignment,
    pack: u32,
) -> (u64, Geometry) {
    let (channels, spatial) = (problem.channels() as u64, problem.spatial() as u64);
    let pack = u64::from(pack);
    let stride_is_whole =
        problem.batch() <= 1 || (problem.batch_stride(Operand::X) as u64).is_multiple_of(pack);
    let misalignment = if pack == 1 { 0 } else { alignment.offset.unwrap_or(0) };
    let touches_mask = pass.touches_mask(problem);
    let boundary = if touches_mask && has_room_in_mask(spatial) { 8 } else { pack };
    let windows = if touches_mask {
        // Whole bytes; where lanes are bits, a warp sees 32 of one plane.
        let bits = if pack == 1 { 32 } else { 8 };
        spatial.next_multiple_of(bits) / pack
    } else if spatial.is_multiple_of(pack) && misalignment == 0 && stride_is_whole {
        spatial / pack
    } else {
        (spatial + pack - 1).div_ceil(pack)
    }
    .max(1);
    let whole = problem.batch() as u64 * windows;
    let parts = parts_of(pass, facts, channels).min(whole.div_ceil(u64::from(BLOCK)));
    let windows_per_part = share(whole, parts, WINDOWS);
    let boundary = boundary as u32;
    (channels, Geometry::Planes { misalignment, boundary, windows, windows_per_part })
}

pub(super) fn columns(
    pass: Pass,
    problem: &Problem,
    facts: &DeviceFacts,
    pack: u32,
) -> (u64, Geometry) {
    // Single elements fit any row.
    let abreast = if pack > 1 { rows_abreast(pass, problem) } else { 1 };
    let columns = columns_of(problem) * abreast;
    let (rows, rows_per_sample, columns_per_channel) = match problem.layout() {
        Layout::ChannelsFirst => (problem.batch() as u64, 1, problem.spatial() as u64),
        Layout::ChannelsLast => {
            let rows = problem.values_per_channel() as u64 / abreast;
            let rows_per_sample = if is_gapless(problem) { rows } else { problem.spatial() as u64 };
            (rows, rows_per_sample, 1)
        }
    };
    let writes_mask = pass.writes_mask() && problem.epilogue().has_mask();
    let tile = match (writes_mask, pack) {
        // Lanes are bits: a warp sees 32 columns of one row.
        (true, 1) => 32,
        // All of a channel's columns.
        _ if abreast > 1 => columns / u64::from(pack),
        _ if pass.leaves_partials() && pack > 1 => {
            // Whole sectors, and of a mask not too small a piece: the last block of each of many groups
            // has little to merge.
            let reads_mask = pass.reads_mask() && problem.epilogue().has_mask();
            let widest = if reads_mask { 8 } else { 4 };
            packs_per_tile(columns, u64::from(pack), columns_per_channel, widest)
        }
        _ => packs_per_tile(columns, u64::from(pack), columns_per_channel, WARP),
    };
    let groups = columns.div_ceil(tile * u64::from(pack));
    let height = u64::from(BLOCK) / tile;
    let parts = parts_of(pass, facts, groups).min(rows.div_ceil(height * 8));
    let geometry = Geometry::Columns {
        rows,
        columns,
        rows_per_sample,
        rows_per_part: share(rows, parts, height),
        columns_per_channel: columns_per_channel as u32,
        packs_per_tile: tile as u32,
        rows_abreast: abreast as u32,
    };
    (groups, geometry)
}

/// A pack for each lane of a warp: 512 bytes of a row.
const WARP: u64 = 32;

/// Packs of a row for one block, `widest` at most: whole channels, and pairs (two packs of f32 share a
/// byte of mask).
fn packs_per_tile(columns: u64, pack: u64, columns_per_channel: u64, widest: u64) -> u64 {
    if columns_per_channel == 1 {
        let packs = columns.div_ceil(pack);
        let tiles = packs.div_ceil(widest).max(1);
        return packs.div_ceil(tiles).next_multiple_of(2);
    }
    // Found to exist when the walk was chosen; single elements need no whole packs.
    let least = match pack {
        1 => columns_per_channel,
        _ => channels_per_tile(columns_per_channel).unwrap_or(8) * columns_per_channel,
    };
    let limit = MAX_COLUMNS.min(u64::from(BLOCK) * pack);
    let times = (widest * pack / least).clamp(1, (limit / least).max(1));
    least * times / pack
}

impl Plan {
    /// f64 words of scratch that this plan's blocks leave results in.
    pub(super) fn partial_words(&self, problem: &Problem) -> u64 {
        if !self.pass.reduces() || matches!(self.tier, Tier::Block | Tier::Cluster) {
            return 0;
        }
        problem.channels() as u64 * u64::from(self.parts) * PARTIAL_WORDS
    }

    /// Two counters for each group of blocks that finish together, and one for all blocks.
    pub(super) fn counters(&self) -> u64 {
        if self.pass.reduces() { 2 * self.groups + 1 } else { 0 }
    }
}

pub(super) fn kernel_name(
    pass: Pass,
    walk: Walk,
    dtype: DType,
    pack: u32,
    problem: &Problem,
) -> String {
    let pass_name = match pass {
        Pass::Statistics => "statistics",
        Pass::Apply | Pass::Inference => "apply",
        Pass::Reduce => "reduce",
        Pass::Gradient => "gradient",
        Pass::Frozen => "frozen",
        Pass::Forward => "forward",
        Pass::Backward => "backward",
    };
    let walk = match walk {
        Walk::Planes => "planes",
        Walk::Columns => "columns",
    };
    // What streams 16-bit elements is told which kind it gets.
    let keeps = matches!(pass, Pass::Forward | Pass::Backward);
    let element = match dtype {
        DType::F16 if keeps => "f16",
        DType::Bf16 if keeps => "bf16",
        DType::F16 | DType::Bf16 => "b16",
        DType::F32 | DType::F64 => "f32",
    };
    match kind(pass, pack, problem) {
        None => format!("{pass_name}_{walk}_{element}x{pack}"),
        Some(kind) => format!("{pass_name}_{walk}_{element}x{pack}_{kind}"),
    }
}

/// Which of a pass's entry points serves the epilogue.
fn kind(pass: Pass, pack: u32, problem: &Problem) -> Option<&'static str> {
    let epilogue = problem.epilogue();
    match (pass, epilogue.activation) {
        // Those that keep tensors on chip know all epilogues.
        (Pass::Statistics | Pass::Forward | Pass::Backward, _) => None,
        _ if pack == 1 => Some("any"),
        (Pass::Reduce | Pass::Gradient, Activation::Identity | Activation::Relu) => None,
        // Leaky ReLU, which has a mask too, multiplies.
        (Pass::Reduce | Pass::Gradient, Activation::Relu6) if epilogue.has_mask() => None,
        (Pass::Apply | Pass::Inference, Activation::Relu) => Some("relu"),
        (_, Activation::Identity) => Some("identity"),
        _ => Some("any"),
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { kernel, grid, parts, .. } = self;
        write!(f, "{kernel}: {grid} blocks of {BLOCK} threads, {parts} per channel")?;
        match self.tier {
            Tier::Streaming => Ok(()),
            Tier::Block | Tier::Grid => write!(f, ", {} B of each on chip", self.tile_bytes),
            Tier::Cluster => write!(f, " in a cluster, {} B of each on chip", self.tile_bytes),
        }
    }
}
