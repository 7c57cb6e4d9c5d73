//! Kernels as the machine takes them: names resolved to numbers, opcodes to what they do.

use crate::value::{Binary, Comparison, Conversion, Rounding, Type, Unary};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// All units of a target.
#[derive(Debug, Default)]
pub struct Program {
    /// A unit each.
    pub(crate) modules: Vec<Module>,
    /// Where kernels are: module and function.
    pub(crate) kernels: HashMap<String, (usize, usize)>,
    have_run: Mutex<HashSet<String>>,
}

impl Program {
    /// A kernel and its module.
    pub(crate) fn kernel(&self, name: &str) -> Option<(&Module, usize)> {
        self.kernels.get(name).map(|&(module, function)| (&self.modules[module], function))
    }

    /// Whether there is nothing to launch.
    pub fn is_empty(&self) -> bool {
        self.kernels.is_empty()
    }

    /// Kernels that no launch has run to its end, by name.
    pub fn never_run(&self) -> Vec<&str> {
        let have_run = self.have_run.lock().unwrap_or_else(PoisonError::into_inner);
        let names = self.kernels.keys().map(String::as_str);
        let mut names: Vec<&str> = names.filter(|name| !have_run.contains(*name)).collect();
        names.sort_unstable();
        names
    }

    pub(crate) fn has_run(&self, kernel: &str) {
        let mut have_run = self.have_run.lock().unwrap_or_else(PoisonError::into_inner);
        if !have_run.contains(kernel) {
            have_run.insert(kernel.to_owned());
        }
    }
}

/// A unit.
#[derive(Debug)]
pub struct Module {
    /// Kernels and what they call.
    pub functions: Vec<Function>,
    /// Shared memory that its functions declare, rounded up to where a launch's own begins.
    pub shared_bytes: usize,
}

/// A kernel or a function.
#[derive(Debug, Default)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Of a kernel: the most threads of a block.
    pub max_threads: u32,
    /// What it takes, in its part of the parameter space.
    pub params: Vec<Range<usize>>,
    /// What it gives, there too.
    pub result: Option<Range<usize>>,
    /// Of that part, with what it passes to others.
    pub param_bytes: usize,
    /// Of its local memory.
    pub local_bytes: usize,
    /// How many.
    pub registers: usize,
    /// What it does.
    pub code: Vec<Instruction>,
    /// The text's line of each.
    pub lines: Vec<u32>,
}

/// One step.
#[derive(Debug, Clone)]
pub struct Instruction {
    /// The predicate that it depends on, and the value that lets it happen.
    pub guard: Option<(Register, bool)>,
    /// What happens.
    pub operation: Operation,
}

/// A register's number in its function.
pub type Register = u32;

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// A register.
    Register(Register),
    /// A literal, or an address that is the same in each call.
    Value(u64),
    /// The address of the function's own part of the parameter space, and so many bytes.
    Param(u64),
    /// The same of local memory.
    Local(u64),
    /// What a thread is.
    Special(Special),
}

/// Registers that cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    Thread,
    Threads,
    Block,
    Blocks,
    Lane,
    ClusterBlocks,
    ClusterRank,
}

/// An operand and an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// What the offset counts from.
    pub base: Operand,
    /// In bytes.
    pub offset: i64,
}

/// What an address counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Param,
}

/// Which lane a shuffle reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// What a warp does together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collective {
    /// Meets.
    Barrier,
    /// Passes values from lane to lane; `in_range` says whether the other lane is there.
    Shuffle {
        mode: Shuffle,
        to: Register,
        in_range: Option<Register>,
        value: Operand,
        lane: Operand,
        clamp: Operand,
    },
    /// A bit for each lane.
    Ballot { to: Register, predicate: Operand },
}

/// What an instruction does.
#[derive(Debug, Clone)]
pub enum Operation {
    Binary {
        operation: Binary,
        of: Type,
        to: Register,
        a: Operand,
        b: Operand,
    },
    Unary {
        operation: Unary,
        of: Type,
        to: Register,
        a: Operand,
    },
    Fused {
        of: Type,
        rounding: Rounding,
        to: Register,
        operands: [Operand; 3],
    },
    MultiplyAdd {
        of: Type,
        to: Register,
        operands: [Operand; 3],
    },
    Permute {
        to: Register,
        operands: [Operand; 3],
    },
    /// A word's parts, the lowest first; `_` takes none.
    Unpack {
        to: Vec<Option<Register>>,
        part: Type,
        a: Operand,
    },
    Pack {
        to: Register,
        parts: Vec<Operand>,
        part: Type,
    },
    Select {
        to: Register,
        a: Operand,
        b: Operand,
        predicate: Operand,
    },
    Compare {
        comparison: Comparison,
        of: Type,
        to: Register,
        a: Operand,
        b: Operand,
    },
    Convert {
        conversion: Conversion,
        to: Register,
        a: Operand,
    },
    /// An address of a space as a generic one.
    ToGeneric {
        space: Space,
        to: Register,
        a: Operand,
    },
    FromGeneric {
        space: Space,
        to: Register,
        a: Operand,
    },
    /// A generic address of shared memory, in another block of the cluster.
    MapShared {
        to: Register,
        a: Operand,
        rank: Operand,
    },
    Load {
        space: Space,
        of: Type,
        to: Vec<Register>,
        address: Address,
    },
    Store {
        space: Space,
        of: Type,
        address: Address,
        from: Vec<Operand>,
    },
    /// `old >= limit ? 0 : old + 1`.
    AtomicIncrement {
        to: Register,
        address: Address,
        limit: Operand,
    },
    Branch(usize),
    Call {
        function: usize,
        arguments: Vec<Range<usize>>,
        result: Option<Range<usize>>,
    },
    Return,
    Barrier,
    Collective {
        collective: Collective,
        mask: Operand,
    },
    /// `bytes` from global to shared memory, of which the first `read` are there: zeros for the rest.
    Copy {
        to: Address,
        from: Address,
        bytes: u64,
        read: Operand,
    },
    CopyCommit,
    /// For all but the latest so many groups.
    CopyWait(usize),
    ClusterArrive,
    ClusterWait,
    /// Others may run first.
    Pause,
    Nothing,
}
