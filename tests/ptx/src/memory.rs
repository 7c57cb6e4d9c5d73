//! Global memory, and bytes as values.

/// Where allocations begin: far from every other space's addresses.
const FIRST_ADDRESS: u64 = 1 << 46;
/// As on a GPU, allocations begin at multiples of this; at least so many bytes lie between them.
const ALIGN: u64 = 512;

/// What a device has allocated.
#[derive(Debug)]
pub struct Memory {
    /// In order of their addresses, which are never given out again.
    allocations: Vec<Allocation>,
    next: u64,
}

#[derive(Debug)]
struct Allocation {
    address: u64,
    bytes: Vec<u8>,
}

impl Default for Memory {
    fn default() -> Self {
        Memory { allocations: Vec::new(), next: FIRST_ADDRESS }
    }
}

impl Memory {
    /// Zeros, which cost nothing until they are touched. `None`: no memory.
    pub fn allocate(&mut self, bytes: usize) -> Option<u64> {
        if bytes > 1 << 44 {
            return None;
        }
        let address = self.next;
        self.next = (address + bytes as u64 + ALIGN).next_multiple_of(ALIGN);
        self.allocations.push(Allocation { address, bytes: vec![0; bytes] });
        Some(address)
    }

    /// Gives an allocation back.
    pub fn free(&mut self, address: u64) {
        self.allocations.retain(|it| it.address != address);
    }

    /// So many bytes from an address on.
    ///
    /// # Errors
    /// They are not all of one allocation.
    #[inline]
    pub fn bytes(&self, address: u64, len: usize) -> Result<&[u8], String> {
        let (index, start) = self.find(address, len)?;
        Ok(&self.allocations[index].bytes[start..start + len])
    }

    /// The same, to write.
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn bytes_mut(&mut self, address: u64, len: usize) -> Result<&mut [u8], String> {
        let (index, start) = self.find(address, len)?;
        Ok(&mut self.allocations[index].bytes[start..start + len])
    }

    fn find(&self, address: u64, len: usize) -> Result<(usize, usize), String> {
        let index = self.allocations.partition_point(|it| it.address <= address).wrapping_sub(1);
        let allocation = self.allocations.get(index);
        let start = allocation.map(|it| (address - it.address) as usize);
        match (allocation, start) {
            (Some(it), Some(start)) if start + len <= it.bytes.len() => Ok((index, start)),
            (Some(it), Some(start)) => {
                Err(format!("{len} bytes at {start} of an allocation of {}", it.bytes.len()))
            }
            _ => Err(format!("{len} bytes at {address:#x}, where nothing is allocated")),
        }
    }
}

/// The value in a few bytes.
#[inline]
pub fn value_of(bytes: &[u8]) -> u64 {
    match *bytes {
        [a] => a.into(),
        [a, b] => u16::from_le_bytes([a, b]).into(),
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).into(),
        [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => unreachable!("no type has so many bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_outside_is_refused() {
        let mut memory = Memory::default();
        let (a, b) = (memory.allocate(12).unwrap(), memory.allocate(0).unwrap());
        memory.bytes_mut(a + 8, 4).unwrap().copy_from_slice(&7_u32.to_le_bytes());
        assert_eq!(value_of(memory.bytes(a + 8, 4).unwrap()), 7);
        assert!(
            memory.bytes(a + 9, 4).unwrap_err().contains("4 bytes at 9 of an allocation of 12")
        );
        assert!(memory.bytes(b, 1).is_err());
        assert!(memory.bytes(a - 1, 1).unwrap_err().contains("nothing is allocated"));
        memory.free(a);
        assert!(memory.bytes(a, 4).is_err());
    }
}
