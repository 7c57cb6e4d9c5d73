//! ptxas's log.

use std::collections::BTreeMap;

/// What a kernel takes; bytes but for the registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    /// Per thread.
    pub registers: u32,
    /// Static shared memory per block.
    pub shared: u32,
    /// Local memory per thread.
    pub stack: u32,
    /// Of which written for want of registers.
    pub spill_stores: u32,
    /// And read back.
    pub spill_loads: u32,
}

/// Resources by architecture (`sm_90`) and kernel.
///
/// # Errors
/// A log that does not read as expected.
pub fn parse(log: &str) -> Result<BTreeMap<(String, String), Resources>, String> {
    let mut kernels = BTreeMap::new();
    let mut current = None;
    // Warnings repeat the numbers, before the kernel's own lines or after them.
    for line in log.lines().filter(|line| !line.contains("warning")) {
        if let Some(entry) = line.split_once("Compiling entry function ") {
            let mut quoted = entry.1.split('\'').skip(1).step_by(2);
            let (kernel, architecture) = (quoted.next(), quoted.next());
            let (Some(kernel), Some(architecture)) = (kernel, architecture) else {
                return Err(format!("no kernel and architecture in {line:?}"));
            };
            let key = (architecture.to_owned(), kernel.to_owned());
            current = Some(kernels.entry(key).or_insert_with(Resources::default));
        } else if let Some(resources) = &mut current {
            let read = |field: &mut u32, unit| *field = before(line, unit).unwrap_or(*field);
            read(&mut resources.registers, " registers");
            read(&mut resources.shared, " bytes smem");
            read(&mut resources.stack, " bytes stack frame");
            read(&mut resources.spill_stores, " bytes spill stores");
            read(&mut resources.spill_loads, " bytes spill loads");
        }
    }
    match kernels.iter().find(|(_, resources)| resources.registers == 0) {
        Some((key, _)) => Err(format!("no registers in the log of {key:?}")),
        None => Ok(kernels),
    }
}

/// The number that stands before a unit.
fn before(line: &str, unit: &str) -> Option<u32> {
    let (text, _) = line.split_once(unit)?;
    text.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
# unit sm_80
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_80'
ptxas info    : Function properties for first
ptxas         .     48 bytes stack frame, 44 bytes spill stores, 40 bytes spill loads
ptxas info    : Used 22 registers, used 1 barriers, 1024 bytes smem, 384 bytes cmem[0]
ptxas info    : Compiling entry function 'second' for 'sm_80'
ptxas warning : Registers are spilled to local memory in function 'first', 44 bytes spill stores, 40 bytes spill loads
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers, 384 bytes cmem[0]
";

    #[test]
    fn each_kernel_has_its_own_numbers() {
        let kernels = parse(LOG).unwrap();
        let of = |kernel: &str| kernels[&("sm_80".to_owned(), kernel.to_owned())];
        let first =
            Resources { registers: 22, shared: 1024, stack: 48, spill_stores: 44, spill_loads: 40 };
        assert_eq!(of("first"), first);
        assert_eq!(of("second"), Resources { registers: 12, ..Resources::default() });
    }

    #[test]
    fn a_log_without_registers_is_refused() {
        let log = "ptxas info    : Compiling entry function 'k' for 'sm_80'\n";
        assert!(parse(log).is_err());
    }
}
