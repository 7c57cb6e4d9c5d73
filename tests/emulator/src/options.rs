//! How an emulator is to behave.

use crate::devices::default_facts;
use warpnorm::cuda::DeviceFacts;

/// Steps that a launch may take: less than a minute.
const DEFAULT_BUDGET: u64 = 1_000_000_000;

/// How an [`Emulator`](crate::Emulator) is to behave.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The order in which blocks, warps and lanes run. 0 is first to last, one block at a time;
    /// 1 is last to first; all others are random.
    pub seed: u64,
    /// Whether accesses are checked. Without, an access out of bounds is undefined behaviour.
    pub checks: bool,
    /// Whether accesses are counted.
    pub counters: bool,
    /// Memory accesses, basic blocks and switches after which a launch counts as hung.
    pub budget: u64,
    /// The device to be. It decides what launches are refused; blocks that run at a time are two
    /// for each multiprocessor, at most.
    pub facts: DeviceFacts,
    /// Multiprocessors that launches get where these are fewer than the facts say, as in a part of a
    /// GPU that others share.
    pub granted_multiprocessors: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            seed: 0,
            checks: true,
            counters: true,
            budget: DEFAULT_BUDGET,
            facts: default_facts(),
            granted_multiprocessors: None,
        }
    }
}
