//! Machine code, as NVIDIA's disassembler shows it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// Whether a kernel reads or writes 16 bytes of global memory at a time, or more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Accesses {
    /// Loads into registers, and asynchronous copies to shared memory.
    pub wide_loads: bool,
    /// Stores.
    pub wide_stores: bool,
}

/// The accesses of every kernel of a cubin.
///
/// # Errors
/// No disassembler, or one that does not take this file.
pub fn accesses(nvdisasm: &Path, cubin: &[u8]) -> Result<BTreeMap<String, Accesses>, String> {
    let mut file = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
    file.write_all(cubin).map_err(|error| error.to_string())?;
    let output =
        Command::new(nvdisasm).arg("--print-code").arg(file.path()).output().map_err(|error| {
            format!("{}: {error}; pip install nvidia-cuda-nvdisasm has it", nvdisasm.display())
        })?;
    if !output.status.success() {
        return Err(format!("nvdisasm: {}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

fn parse(disassembly: &str) -> BTreeMap<String, Accesses> {
    let mut kernels = BTreeMap::new();
    let mut current = None;
    for line in disassembly.lines() {
        if let Some((_, section)) = line.split_once(".section\t") {
            let name = section.split(',').next().unwrap_or_default();
            let kernel = name.strip_prefix(".text.");
            current = kernel
                .map(|kernel| kernels.entry(kernel.to_owned()).or_insert_with(Accesses::default));
        } else if let Some(accesses) = &mut current {
            for opcode in line.split_whitespace().filter(|word| is_wide(word)) {
                accesses.wide_loads |= opcode.starts_with("LDG");
                accesses.wide_stores |= opcode.starts_with("STG");
            }
        }
    }
    kernels
}

/// `LDG.E.128`, `LDG.E.128.CONSTANT`, `LDGSTS.E.BYPASS.128`, `LDG.E.ENL2.256`.
fn is_wide(opcode: &str) -> bool {
    opcode.split('.').skip(1).any(|modifier| modifier == "128" || modifier == "256")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: &str = "\
\t.section\t.nv.info,\"\",@\"SHT_CUDA_INFO\"
\t.section\t.text.narrow,\"ax\",@progbits
        /*0060*/                   LDG.E R0, desc[UR6][R2.64] ;
        /*1560*/                   STG.E.64 desc[UR6][R2.64], R5 ;
        /*1570*/                   LDS.128 R4, [R5] ;
\t.section\t.text.wide,\"ax\",@progbits
        /*0180*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR6][R4.64] ;
\t.section\t.text.copy,\"ax\",@progbits
        /*0180*/                   LDGSTS.E.BYPASS.128 [R4], desc[UR6][R4.64] ;
        /*0230*/                   STG.E.128 desc[UR6][R2.64], R12 ;
";

    #[test]
    fn accesses_are_those_of_global_memory() {
        let kernels = parse(CODE);
        let of = |wide_loads, wide_stores| Accesses { wide_loads, wide_stores };
        assert_eq!(kernels["narrow"], of(false, false));
        assert_eq!(kernels["wide"], of(true, false));
        assert_eq!(kernels["copy"], of(true, true));
        assert_eq!(kernels.len(), 3);
    }
}
