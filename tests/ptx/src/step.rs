//! What a thread does by itself, until it waits.

use crate::machine::{Event, Machine};
use crate::memory::value_of;
use crate::program::{Address, Operand, Operation, Register, Space, Special};
use crate::thread::{PendingCopy, State, Thread};
use crate::value::{Binary, Type, fused, permute};

/// Where the spaces lie among generic addresses; global memory is above them all.
const PARAMS: u64 = 1 << 40;
const LOCAL: u64 = 2 << 40;
const SHARED: u64 = 3 << 40;
const SPACES_END: u64 = 4 << 40;
/// From one block of a cluster to the next.
const BLOCK: u64 = 1 << 24;

/// Memory that a thread reaches.
enum Place {
    Global(u64),
    /// Of a block, and where.
    Shared(usize, u64),
    Local(u64),
    Param(u64),
}

impl Machine<'_> {
    #[inline(always)]
    pub(crate) fn value(&self, thread: &Thread, operand: Operand) -> u64 {
        match operand {
            Operand::Register(register) => thread.registers[thread.base + register as usize],
            Operand::Value(value) => value,
            other => self.place_value(thread, other),
        }
    }

    /// What follows from where a thread is.
    fn place_value(&self, thread: &Thread, operand: Operand) -> u64 {
        match operand {
            Operand::Param(offset) => thread.frame().params as u64 + offset,
            Operand::Local(offset) => thread.frame().local as u64 + offset,
            Operand::Special(special) => self.special(thread, special).into(),
            Operand::Register(_) | Operand::Value(_) => unreachable!("these are known without"),
        }
    }

    fn special(&self, thread: &Thread, special: Special) -> u32 {
        let block = self.blocks[thread.block].index;
        match special {
            Special::Thread => thread.index,
            Special::Threads => self.launch.block,
            Special::Block => block,
            Special::Blocks => self.launch.grid,
            Special::Lane => thread.lane(),
            Special::ClusterBlocks => self.launch.cluster,
            Special::ClusterRank => block % self.launch.cluster,
        }
    }

    /// Until it waits, or is done.
    pub(crate) fn run_thread(&mut self, thread: &mut Thread) -> Result<Event, String> {
        let module = self.module;
        let mut function = &module.functions[thread.frame().function];
        loop {
            let instruction = &function.code[thread.at];
            thread.at += 1;
            self.budget = self.budget.checked_sub(1).ok_or("the launch takes too many steps")?;
            if let Some((register, wanted)) = instruction.guard
                && (self.value(thread, Operand::Register(register)) & 1 == 1) != wanted
            {
                continue;
            }
            match &instruction.operation {
                Operation::Branch(target) => thread.at = *target,
                Operation::Call { function: index, arguments, result } => {
                    function = &module.functions[*index];
                    thread.call(*index, function, arguments, result.clone())?;
                }
                Operation::Return => {
                    if !thread.leave(function) {
                        self.deliver(thread, 0)?;
                        thread.state = State::Ended;
                        return Ok(Event::End);
                    }
                    function = &module.functions[thread.frame().function];
                }
                Operation::Barrier => {
                    thread.state = State::Barrier;
                    return Ok(Event::Wait);
                }
                &Operation::Collective { collective, mask } => {
                    let mask = self.value(thread, mask) as u32;
                    if mask >> thread.lane() & 1 == 0 {
                        return Err(format!("it is not in its own mask {mask:#x}"));
                    }
                    thread.state = State::Collective { collective, mask };
                    return Ok(Event::Wait);
                }
                Operation::ClusterArrive => return Ok(Event::ClusterArrive),
                Operation::ClusterWait => {
                    thread.state = State::Cluster;
                    return Ok(Event::Wait);
                }
                Operation::Pause => return Ok(Event::Pause),
                Operation::Unpack { to, part, a } => self.unpack(thread, to, *part, *a),
                Operation::Load { space, of, to, address } => {
                    self.load(thread, *space, *of, to, *address)?;
                }
                Operation::Store { space, of, address, from } => {
                    self.store(thread, *space, *of, *address, from)?;
                }
                &Operation::Copy { to, from, bytes, read } => {
                    self.copy(thread, to, from, bytes, read)?;
                }
                Operation::CopyCommit => {
                    thread.copies.push(Vec::new());
                }
                Operation::CopyWait(groups) => {
                    self.deliver(thread, groups + 1)?;
                }
                Operation::Nothing => {}
                operation => {
                    let (to, result) = self.result(thread, operation)?;
                    set(thread, to, result);
                }
            }
        }
    }

    /// Splits a value into registers, from its lowest bits on.
    fn unpack(&self, thread: &mut Thread, to: &[Option<Register>], part: Type, a: Operand) {
        let mut whole = self.value(thread, a);
        for register in to {
            if let Some(register) = register {
                set(thread, *register, part.truncate(whole));
            }
            whole = whole.unbounded_shr(8 * part.bytes() as u32);
        }
    }

    /// What an operation gives, and the register that takes it.
    #[inline(always)]
    fn result(
        &mut self,
        thread: &mut Thread,
        operation: &Operation,
    ) -> Result<(Register, u64), String> {
        let undefined = || "no result is defined".to_owned();
        Ok(match operation {
            &Operation::Binary { operation, of, to, a, b } => {
                let (a, b) = (self.value(thread, a), self.value(thread, b));
                (to, operation.apply(of, a, b).ok_or_else(undefined)?)
            }
            &Operation::Unary { operation, of, to, a } => {
                (to, operation.apply(of, self.value(thread, a)).ok_or_else(undefined)?)
            }
            &Operation::Fused { of, rounding, to, operands } => {
                let operands = operands.map(|it| self.value(thread, it));
                (to, fused(of, rounding, operands).ok_or_else(undefined)?)
            }
            &Operation::MultiplyAdd { of, to, operands } => {
                let [a, b, c] = operands.map(|it| self.value(thread, it));
                let product = Binary::Mul.apply(of, a, b).ok_or_else(undefined)?;
                (to, Binary::Add.apply(of, product, c).ok_or_else(undefined)?)
            }
            &Operation::Permute { to, operands } => {
                (to, permute(operands.map(|it| self.value(thread, it))))
            }
            Operation::Pack { to, parts, part } => {
                let values = parts.iter().rev().map(|it| self.value(thread, *it));
                (*to, values.fold(0, |whole, value| whole << (8 * part.bytes()) | value))
            }
            &Operation::Select { to, a, b, predicate } => {
                let is_first = self.value(thread, predicate) & 1 == 1;
                (to, self.value(thread, if is_first { a } else { b }))
            }
            &Operation::Compare { comparison, of, to, a, b } => {
                let (a, b) = (self.value(thread, a), self.value(thread, b));
                (to, comparison.apply(of, a, b).into())
            }
            &Operation::Convert { conversion, to, a } => {
                (to, conversion.apply(self.value(thread, a)).ok_or_else(undefined)?)
            }
            &Operation::ToGeneric { space, to, a } => {
                let base = self.base(thread, space);
                (to, self.value(thread, a) + base)
            }
            &Operation::FromGeneric { space, to, a } => {
                (to, self.value(thread, a).wrapping_sub(self.base(thread, space)))
            }
            &Operation::MapShared { to, a, rank } => {
                let (a, rank) = (self.value(thread, a), self.value(thread, rank));
                if !(SHARED..SPACES_END).contains(&a) || rank >= self.launch.cluster.into() {
                    return Err(format!("block {rank} of the cluster at {a:#x}"));
                }
                (to, SHARED + rank * BLOCK + (a - SHARED) % BLOCK)
            }
            &Operation::AtomicIncrement { to, address, limit } => {
                let place = self.place_of(thread, Space::Global, address, 4)?;
                let old = value_of(self.bytes(thread, &place, 4)?) as u32;
                let limit = self.value(thread, limit) as u32;
                let new = if old >= limit { 0 } else { old + 1 };
                self.bytes_mut(thread, &place, 4)?.copy_from_slice(&new.to_le_bytes());
                (to, old.into())
            }
            other => unreachable!("{other:?} gives nothing"),
        })
    }

    /// Where a space begins among generic addresses.
    fn base(&self, thread: &Thread, space: Space) -> u64 {
        match space {
            Space::Generic | Space::Global => 0,
            Space::Param => PARAMS,
            Space::Local => LOCAL,
            Space::Shared => SHARED + BLOCK * u64::from(self.special(thread, Special::ClusterRank)),
        }
    }

    /// What an access of `len` bytes reaches, which is a multiple of them.
    #[inline]
    fn place_of(
        &self,
        thread: &Thread,
        space: Space,
        address: Address,
        len: usize,
    ) -> Result<Place, String> {
        let at = self.value(thread, address.base).wrapping_add_signed(address.offset);
        if !at.is_multiple_of(len as u64) {
            return Err(format!("{len} bytes at {at:#x}, which is no multiple of them"));
        }
        Ok(match space {
            Space::Global => Place::Global(at),
            Space::Shared => Place::Shared(thread.block, at),
            Space::Local => Place::Local(at),
            Space::Param => Place::Param(at),
            Space::Generic => match at {
                PARAMS..LOCAL => Place::Param(at - PARAMS),
                LOCAL..SHARED => Place::Local(at - LOCAL),
                SHARED..SPACES_END => {
                    let rank = (at - SHARED) / BLOCK;
                    let first = thread.block - thread.block % self.launch.cluster as usize;
                    Place::Shared(first + rank as usize, (at - SHARED) % BLOCK)
                }
                _ => Place::Global(at),
            },
        })
    }

    #[inline]
    fn bytes<'s>(
        &'s self,
        thread: &'s Thread,
        place: &Place,
        len: usize,
    ) -> Result<&'s [u8], String> {
        match *place {
            Place::Global(at) => self.memory.bytes(at, len),
            Place::Shared(block, at) => {
                let block = &self.blocks[block];
                if block.alive == 0 {
                    return Err(format!(
                        "shared memory of block {}, which has returned",
                        block.index
                    ));
                }
                part(&block.shared, at, len).ok_or_else(|| outside("shared", at, len))
            }
            Place::Local(at) => {
                part(&thread.local, at, len).ok_or_else(|| outside("local", at, len))
            }
            Place::Param(at) => {
                part(&thread.params, at, len).ok_or_else(|| outside("parameter", at, len))
            }
        }
    }

    #[inline]
    fn bytes_mut<'s>(
        &'s mut self,
        thread: &'s mut Thread,
        place: &Place,
        len: usize,
    ) -> Result<&'s mut [u8], String> {
        let (space, name, at) = match *place {
            Place::Global(at) => return self.memory.bytes_mut(at, len),
            Place::Shared(block, at) if block == thread.block => {
                (&mut self.blocks[block].shared, "shared", at)
            }
            Place::Shared(..) => return Err("a store to another block's shared memory".into()),
            Place::Local(at) => (&mut thread.local, "local", at),
            Place::Param(at) => (&mut thread.params, "parameter", at),
        };
        part_mut(space, at, len).ok_or_else(|| outside(name, at, len))
    }

    fn load(
        &mut self,
        thread: &mut Thread,
        space: Space,
        of: Type,
        to: &[Register],
        address: Address,
    ) -> Result<(), String> {
        let (size, mut values) = (of.bytes(), [0; 4]);
        let place = self.place_of(thread, space, address, size * to.len())?;
        let bytes = self.bytes(thread, &place, size * to.len())?;
        for (value, bytes) in values.iter_mut().zip(bytes.chunks(size)) {
            *value = value_of(bytes);
        }
        for (register, value) in to.iter().zip(values) {
            set(thread, *register, value);
        }
        Ok(())
    }

    fn store(
        &mut self,
        thread: &mut Thread,
        space: Space,
        of: Type,
        address: Address,
        from: &[Operand],
    ) -> Result<(), String> {
        let (size, mut values) = (of.bytes(), [0; 4]);
        for (value, operand) in values.iter_mut().zip(from) {
            *value = self.value(thread, *operand);
        }
        let place = self.place_of(thread, space, address, size * from.len())?;
        let bytes = self.bytes_mut(thread, &place, size * from.len())?;
        for (bytes, value) in bytes.chunks_mut(size).zip(values) {
            bytes.copy_from_slice(&value.to_le_bytes()[..size]);
        }
        Ok(())
    }

    /// Begins an asynchronous copy.
    fn copy(
        &mut self,
        thread: &mut Thread,
        to: Address,
        from: Address,
        bytes: u64,
        read: Operand,
    ) -> Result<(), String> {
        let (len, read) = (bytes as usize, self.value(thread, read) as usize);
        if read > len {
            return Err(format!("a copy of {len} bytes, {read} of which are there"));
        }
        let at = |address: Address| {
            let at = self.value(thread, address.base).wrapping_add_signed(address.offset);
            let is_aligned = at.is_multiple_of(bytes);
            is_aligned.then_some(at).ok_or_else(|| format!("a copy of {len} bytes at {at:#x}"))
        };
        // The source is not read where nothing of it is there.
        let copy =
            PendingCopy { to: at(to)?, from: if read > 0 { at(from)? } else { 0 }, len, read };
        match self.copies_are_late {
            true => {
                thread.copies.last_mut().expect("the one that is not committed").push(copy);
                Ok(())
            }
            false => self.arrive_copy(thread, copy),
        }
    }

    /// All copies arrive but those of the last `groups`, the one that is not committed among them.
    fn deliver(&mut self, thread: &mut Thread, groups: usize) -> Result<(), String> {
        let arriving = thread.copies.len().saturating_sub(groups);
        let copies: Vec<_> = thread.copies.drain(..arriving).flatten().collect();
        copies.into_iter().try_for_each(|copy| self.arrive_copy(thread, copy))
    }

    fn arrive_copy(&mut self, thread: &mut Thread, copy: PendingCopy) -> Result<(), String> {
        let mut bytes = [0; 16];
        if copy.read > 0 {
            bytes[..copy.read].copy_from_slice(self.memory.bytes(copy.from, copy.read)?);
        }
        let place = Place::Shared(thread.block, copy.to);
        self.bytes_mut(thread, &place, copy.len)?.copy_from_slice(&bytes[..copy.len]);
        Ok(())
    }
}

#[inline]
fn set(thread: &mut Thread, register: Register, value: u64) {
    thread.registers[thread.base + register as usize] = value;
}

#[inline]
fn part(space: &[u8], at: u64, len: usize) -> Option<&[u8]> {
    space.get(at as usize..(at as usize).checked_add(len)?)
}

#[inline]
fn part_mut(space: &mut [u8], at: u64, len: usize) -> Option<&mut [u8]> {
    space.get_mut(at as usize..(at as usize).checked_add(len)?)
}

fn outside(space: &str, at: u64, len: usize) -> String {
    format!("{len} bytes at {at} of {space} memory, which ends before")
}
