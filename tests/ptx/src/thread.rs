//! A thread: its registers, its own memory, and where it is.

use crate::program::{Collective, Function};
use std::ops::Range;

/// One thread of a launch.
#[derive(Debug, Default)]
pub struct Thread {
    /// Of its block.
    pub index: u32,
    /// Of those that run at the time.
    pub block: usize,
    /// The next instruction, in the innermost frame's function.
    pub at: usize,
    /// Those that it is in, outermost first.
    pub frames: Vec<Frame>,
    /// Of all frames.
    pub registers: Vec<u64>,
    /// Where those of the innermost frame begin.
    pub base: usize,
    /// The parameter space of all frames.
    pub params: Vec<u8>,
    /// The same of local memory.
    pub local: Vec<u8>,
    /// Asynchronous copies that have not arrived, a list for each group; the last is not committed.
    pub copies: Vec<Vec<PendingCopy>>,
    /// The round of the cluster's barrier that it came to last.
    pub cluster_round: u64,
    /// What it waits for.
    pub state: State,
}

/// A call that has not returned.
#[derive(Debug, Clone, Default)]
pub struct Frame {
    /// Of the module.
    pub function: usize,
    /// Where the caller goes on.
    pub return_to: usize,
    /// Where its registers begin.
    pub registers: usize,
    /// Where its parameters begin.
    pub params: usize,
    /// Where its local memory begins.
    pub local: usize,
    /// Where in the caller's parameters the result goes.
    pub result: Option<Range<usize>>,
}

/// `len` bytes for shared memory, the first `read` of them from global memory.
#[derive(Debug, Clone, Copy)]
pub struct PendingCopy {
    pub to: u64,
    pub from: u64,
    pub len: usize,
    pub read: usize,
}

/// What a thread waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum State {
    /// For its turn.
    #[default]
    Ready,
    /// For its block.
    Barrier,
    /// For the lanes of the mask.
    Collective {
        /// To do what.
        collective: Collective,
        /// A bit for each lane.
        mask: u32,
    },
    /// For its cluster.
    Cluster,
    /// It has returned.
    Ended,
}

/// What registers and memory hold before they are written: NaN, and no address.
const UNWRITTEN: u64 = u64::MAX;

/// What a variable's address is a multiple of, at most.
const MOST_ALIGNED: usize = 16;

impl Thread {
    /// Goes to the head of a kernel, as a thread that has just begun.
    pub fn start(&mut self, index: u32, block: usize, kernel: (usize, &Function), params: &[u8]) {
        let (number, function) = kernel;
        (self.index, self.block) = (index, block);
        (self.cluster_round, self.state) = (0, State::Ready);
        self.registers.clear();
        self.params.clear();
        self.local.clear();
        self.copies.clear();
        self.copies.push(Vec::new());
        self.enter(Frame { function: number, ..Frame::default() }, function);
        self.params[..params.len()].copy_from_slice(params);
    }

    /// Its lane.
    pub fn lane(&self) -> u32 {
        self.index % 32
    }

    /// The innermost frame.
    #[inline]
    pub fn frame(&self) -> &Frame {
        self.frames.last().expect("a thread that runs has one")
    }

    /// Makes room for a frame and goes to its function's head.
    pub fn enter(&mut self, frame: Frame, function: &Function) {
        self.registers.resize(frame.registers + function.registers, UNWRITTEN);
        self.params.resize(frame.params + function.param_bytes, u8::MAX);
        self.local.resize(frame.local + function.local_bytes, u8::MAX);
        self.at = 0;
        self.base = frame.registers;
        self.frames.push(frame);
    }

    /// Calls `function`, number `index` of the module.
    pub fn call(
        &mut self,
        index: usize,
        function: &Function,
        arguments: &[Range<usize>],
        result: Option<Range<usize>>,
    ) -> Result<(), String> {
        let caller = self.frame().clone();
        let frame = Frame {
            function: index,
            return_to: self.at,
            registers: self.registers.len(),
            params: self.params.len().next_multiple_of(MOST_ALIGNED),
            local: self.local.len().next_multiple_of(MOST_ALIGNED),
            result,
        };
        let base = frame.params;
        self.enter(frame, function);
        if arguments.len() != function.params.len() {
            return Err(format!("{} arguments for {}", arguments.len(), function.name));
        }
        for (from, to) in arguments.iter().zip(&function.params) {
            if from.len() != to.len() {
                return Err(format!("an argument of {} bytes for {}", from.len(), function.name));
            }
            let from = caller.params + from.start..caller.params + from.end;
            self.params.copy_within(from, base + to.start);
        }
        Ok(())
    }

    /// Returns from the innermost frame; whether there is another.
    pub fn leave(&mut self, function: &Function) -> bool {
        let frame = self.frames.pop().expect("a thread that runs has one");
        if let (Some(to), Some(from), Some(caller)) =
            (&frame.result, &function.result, self.frames.last())
        {
            let from = frame.params + from.start..frame.params + from.end;
            self.params.copy_within(from, caller.params + to.start);
        }
        self.registers.truncate(frame.registers);
        self.params.truncate(frame.params);
        self.local.truncate(frame.local);
        self.at = frame.return_to;
        self.base = self.frames.last().map_or(0, |frame| frame.registers);
        !self.frames.is_empty()
    }
}
