//! One launch: its blocks, whose turn it is, and what threads do together. What a thread does by
//! itself is in [`step`](crate::step).

use crate::memory::Memory;
use crate::program::{Collective, Module, Program, Register, Shuffle};
use crate::thread::{State, Thread};
use std::cell::Cell;
use std::collections::VecDeque;

/// Threads of a warp.
const WARP: usize = 32;

/// One launch.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// The entry point's name.
    pub kernel: &'a str,
    /// Blocks.
    pub grid: u32,
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
    /// Whether blocks wait for each other.
    pub is_cooperative: bool,
    /// Blocks of a cluster; the grid is a whole number of them.
    pub cluster: u32,
    /// The struct that the kernel takes.
    pub params: &'a [u8],
}

/// The blocks that run at a time.
pub struct Machine<'a> {
    pub(crate) module: &'a Module,
    pub(crate) memory: &'a mut Memory,
    pub(crate) launch: Launch<'a>,
    pub(crate) threads: Vec<Thread>,
    pub(crate) blocks: Vec<Block>,
    clusters: Vec<Cluster>,
    ready: VecDeque<usize>,
    order: Order,
    /// Whether asynchronous copies arrive when they are waited for, instead of at once.
    pub(crate) copies_are_late: bool,
    /// Instructions after which the launch counts as hung.
    pub(crate) budget: u64,
}

/// A block that runs.
#[derive(Default)]
pub(crate) struct Block {
    /// Of the grid.
    pub(crate) index: u32,
    pub(crate) shared: Vec<u8>,
    /// Threads that have not returned.
    pub(crate) alive: usize,
    at_barrier: usize,
}

/// The barrier of a cluster.
struct Cluster {
    alive: usize,
    arrived: usize,
    round: u64,
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy)]
enum Order {
    FirstToLast,
    LastToFirst,
    Random(u64),
}

impl Order {
    fn of(seed: u64) -> Self {
        match seed {
            0 => Order::FirstToLast,
            1 => Order::LastToFirst,
            _ => Order::Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        }
    }

    fn take(&mut self, ready: &mut VecDeque<usize>) -> Option<usize> {
        match self {
            Order::FirstToLast => ready.pop_front(),
            Order::LastToFirst => ready.pop_back(),
            Order::Random(state) => {
                // Marsaglia's xorshift.
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                let index = *state as usize % ready.len().max(1);
                ready.swap_remove_back(index)
            }
        }
    }

    /// Behind all others.
    fn put_last(self, ready: &mut VecDeque<usize>, thread: usize) {
        match self {
            Order::LastToFirst => ready.push_front(thread),
            _ => ready.push_back(thread),
        }
    }
}

/// What a thread came to when it stopped.
pub(crate) enum Event {
    /// Others may run first.
    Pause,
    /// It waits for others, as its state says.
    Wait,
    /// It came to the cluster's barrier, and goes on.
    ClusterArrive,
    /// It has returned.
    End,
}

/// Runs a launch, and says how many instructions its threads took. `seed` is the order of its threads and
/// blocks, and when asynchronous copies arrive.
///
/// # Errors
/// What a thread did wrong, and where.
pub fn run(
    program: &Program,
    memory: &mut Memory,
    launch: Launch<'_>,
    seed: u64,
    budget: u64,
) -> Result<u64, String> {
    let (module, kernel) = program.kernel(launch.kernel).ok_or("there is no such kernel")?;
    let at_a_time = match launch.is_cooperative {
        true => launch.grid,
        false => launch.cluster * (1 + seed as u32 % 2),
    };
    let mut machine = Machine {
        module,
        memory,
        launch,
        threads: SPARE.take(),
        blocks: Vec::new(),
        clusters: Vec::new(),
        ready: VecDeque::new(),
        order: Order::of(seed),
        copies_are_late: seed % 2 == 1,
        budget,
    };
    let mut waves: Vec<u32> = (0..launch.grid).step_by(at_a_time as usize).collect();
    if seed % 2 == 1 {
        waves.reverse();
    }
    for first in waves {
        machine.start(kernel, first, at_a_time.min(launch.grid - first));
        machine.run()?;
    }
    program.has_run(launch.kernel);
    SPARE.set(machine.threads);
    Ok(budget - machine.budget)
}

thread_local! {
    /// The threads of the launch before, whose memory serves again.
    static SPARE: Cell<Vec<Thread>> = const { Cell::new(Vec::new()) };
}

impl Machine<'_> {
    /// Begins some blocks; the memory of those before serves again.
    fn start(&mut self, kernel: usize, first: u32, blocks: u32) {
        let Launch { block: threads, cluster, shared_bytes, params, .. } = self.launch;
        let function = &self.module.functions[kernel];
        self.threads.resize_with((blocks * threads) as usize, Thread::default);
        self.blocks.resize_with(blocks as usize, Block::default);
        for (index, block) in self.blocks.iter_mut().enumerate() {
            block.index = first + index as u32;
            block.shared.clear();
            block.shared.resize(self.module.shared_bytes + shared_bytes as usize, u8::MAX);
            (block.alive, block.at_barrier) = (threads as usize, 0);
        }
        for (index, thread) in self.threads.iter_mut().enumerate() {
            let (block, index) = (index / threads as usize, index as u32 % threads);
            thread.start(index, block, (kernel, function), params);
        }
        let clusters = (0..blocks).step_by(cluster as usize);
        self.clusters = clusters
            .map(|_| Cluster { alive: (threads * cluster) as usize, arrived: 0, round: 0 })
            .collect();
        self.ready = (0..self.threads.len()).collect();
    }

    fn run(&mut self) -> Result<(), String> {
        while let Some(index) = self.order.take(&mut self.ready) {
            let mut thread = std::mem::take(&mut self.threads[index]);
            let event =
                self.run_thread(&mut thread).map_err(|error| self.place(&thread, &error))?;
            let block = thread.block;
            self.threads[index] = thread;
            match event {
                Event::Pause => self.order.put_last(&mut self.ready, index),
                Event::ClusterArrive => {
                    self.arrive(index);
                    self.ready.push_back(index);
                }
                Event::Wait => self.wait(index)?,
                Event::End => {
                    self.blocks[block].alive -= 1;
                    self.clusters[block / self.launch.cluster as usize].alive -= 1;
                    self.finish_barrier(block);
                    self.finish_cluster(block);
                    self.finish_collective(index)?;
                }
            }
        }
        match self.threads.iter().find(|thread| thread.state != State::Ended) {
            Some(thread) => Err(self.place(thread, "it waits for others forever")),
            None => Ok(()),
        }
    }

    /// An error with its place.
    fn place(&self, thread: &Thread, error: &str) -> String {
        let block = self.blocks[thread.block].index;
        let place = thread.frames.last().map_or(String::new(), |frame| {
            let function = &self.module.functions[frame.function];
            let line = function.lines.get(thread.at.saturating_sub(1)).copied().unwrap_or(0);
            format!(" in {}, PTX line {line}", function.name)
        });
        format!("block {block} thread {}{place}: {error}", thread.index)
    }

    fn wait(&mut self, index: usize) -> Result<(), String> {
        let block = self.threads[index].block;
        match self.threads[index].state {
            State::Barrier => {
                self.blocks[block].at_barrier += 1;
                self.finish_barrier(block);
            }
            State::Collective { .. } => self.finish_collective(index)?,
            State::Cluster => {
                let cluster = &self.clusters[block / self.launch.cluster as usize];
                if cluster.round > self.threads[index].cluster_round {
                    self.wake(index);
                }
            }
            State::Ready | State::Ended => unreachable!("it waits"),
        }
        Ok(())
    }

    fn wake(&mut self, index: usize) {
        self.threads[index].state = State::Ready;
        self.ready.push_back(index);
    }

    /// Wakes all of so many threads that are in a state.
    fn wake_all(&mut self, first: usize, count: usize, state: State) {
        for index in first..first + count {
            if self.threads[index].state == state {
                self.wake(index);
            }
        }
    }

    fn finish_barrier(&mut self, block: usize) {
        let it = &mut self.blocks[block];
        if it.at_barrier > 0 && it.at_barrier == it.alive {
            it.at_barrier = 0;
            let threads = self.launch.block as usize;
            self.wake_all(block * threads, threads, State::Barrier);
        }
    }

    fn arrive(&mut self, index: usize) {
        let block = self.threads[index].block;
        let cluster = &mut self.clusters[block / self.launch.cluster as usize];
        cluster.arrived += 1;
        self.threads[index].cluster_round = cluster.round;
        self.finish_cluster(block);
    }

    fn finish_cluster(&mut self, block: usize) {
        let index = block / self.launch.cluster as usize;
        let cluster = &mut self.clusters[index];
        if cluster.arrived > 0 && cluster.arrived == cluster.alive {
            cluster.arrived = 0;
            cluster.round += 1;
            let threads = (self.launch.block * self.launch.cluster) as usize;
            self.wake_all(index * threads, threads, State::Cluster);
        }
    }

    /// Does what a warp does together, once all of its lanes have come that are to and have not
    /// returned.
    fn finish_collective(&mut self, index: usize) -> Result<(), String> {
        let first = index / WARP * WARP;
        let lanes = first..(first + WARP).min(self.threads.len());
        let Some((mask, collective)) = self.threads[lanes.clone()].iter().find_map(collective_of)
        else {
            return Ok(());
        };
        let is_alive = |lane: &usize| self.threads[*lane].state != State::Ended;
        let wanted = |lane: &usize| mask >> (lane - first) & 1 == 1;
        let members = || lanes.clone().filter(wanted).filter(is_alive);
        let waits = |index: usize| collective_of(&self.threads[index]).is_some();
        if !members().all(waits) {
            return Ok(());
        }
        let members: Vec<usize> = members().collect();
        let place = |thread: &Thread| (thread.frame().function, thread.at);
        let here = place(&self.threads[members[0]]);
        for &member in &members {
            let thread = &self.threads[member];
            if collective_of(thread).map(|it| it.0) != Some(mask) || place(thread) != here {
                return Err(self.place(thread, "its warp's lanes meet at different instructions"));
            }
        }
        match collective {
            Collective::Barrier => {}
            Collective::Ballot { to, predicate } => {
                let is_set =
                    |&&member: &&usize| self.value(&self.threads[member], predicate) & 1 == 1;
                let bits =
                    members.iter().filter(is_set).map(|member| 1_u64 << (member - first)).sum();
                members.iter().for_each(|member| self.set(*member, to, bits));
            }
            Collective::Shuffle { .. } => self.shuffle(first, mask, &members)?,
        }
        members.into_iter().for_each(|member| self.wake(member));
        Ok(())
    }

    fn shuffle(&mut self, first: usize, mask: u32, members: &[usize]) -> Result<(), String> {
        let mut results = Vec::with_capacity(members.len());
        for &member in members {
            let thread = &self.threads[member];
            let Some((_, Collective::Shuffle { mode, to, in_range, value, lane, clamp })) =
                collective_of(thread)
            else {
                unreachable!("all lanes are at the same instruction");
            };
            let (lane, clamp) = (self.value(thread, lane) as u32, self.value(thread, clamp) as u32);
            let (source, is_in_range) = source_lane(mode, thread.lane(), lane, clamp);
            let source = first + source as usize;
            if mask >> (source - first) & 1 == 0 || !members.contains(&source) {
                return Err(self.place(thread, "it reads a lane that takes no part"));
            }
            results.push((
                member,
                to,
                self.value(&self.threads[source], value),
                in_range,
                is_in_range,
            ));
        }
        for (member, to, value, in_range, is_in_range) in results {
            self.set(member, to, value);
            if let Some(in_range) = in_range {
                self.set(member, in_range, is_in_range.into());
            }
        }
        Ok(())
    }

    fn set(&mut self, index: usize, register: Register, value: u64) {
        let thread = &mut self.threads[index];
        thread.registers[thread.base + register as usize] = value;
    }
}

fn collective_of(thread: &Thread) -> Option<(u32, Collective)> {
    match thread.state {
        State::Collective { mask, collective } => Some((mask, collective)),
        _ => None,
    }
}

/// The lane that `lane` reads, and whether it is within its segment: PTX's own definition.
fn source_lane(mode: Shuffle, lane: u32, operand: u32, clamp: u32) -> (u32, bool) {
    let (operand, limit, segment) = (operand & 31, clamp & 31, clamp >> 8 & 31);
    let first = lane & segment;
    let last = first | (limit & !segment);
    let (source, is_in_range) = match mode {
        Shuffle::Up => (lane.wrapping_sub(operand), lane >= last + operand),
        Shuffle::Down => (lane + operand, lane + operand <= last),
        Shuffle::Butterfly => (lane ^ operand, lane ^ operand <= last),
        Shuffle::Index => {
            let source = first | (operand & !segment);
            (source, source <= last)
        }
    };
    if is_in_range { (source, true) } else { (lane, false) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `__shfl_*_sync(mask, value, operand)` compiles to: clamp 31, and 0 for up.
    #[test]
    fn lanes_of_a_whole_warp() {
        assert_eq!(source_lane(Shuffle::Butterfly, 5, 4, 31), (1, true));
        assert_eq!(source_lane(Shuffle::Down, 30, 1, 31), (31, true));
        assert_eq!(source_lane(Shuffle::Down, 30, 2, 31), (30, false));
        assert_eq!(source_lane(Shuffle::Up, 1, 2, 0), (1, false));
        assert_eq!(source_lane(Shuffle::Up, 2, 2, 0), (0, true));
        assert_eq!(source_lane(Shuffle::Index, 9, 33, 31), (1, true));
    }

    /// A width of 8: segments of 8 lanes.
    #[test]
    fn lanes_of_segments() {
        let clamp = 0x181f;
        assert_eq!(source_lane(Shuffle::Index, 9, 2, clamp), (10, true));
        assert_eq!(source_lane(Shuffle::Down, 14, 1, clamp), (15, true));
        assert_eq!(source_lane(Shuffle::Down, 15, 1, clamp), (15, false));
        assert_eq!(source_lane(Shuffle::Butterfly, 9, 8, clamp), (1, true));
    }
}
