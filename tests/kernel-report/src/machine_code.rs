//! Machine code, as NVIDIA's disassembler shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// How a kernel reads and writes global memory 16 bytes at a time, or more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Accesses {
    /// Whether it loads so into registers, or copies asynchronously to shared memory.
    pub wide_loads: bool,
    /// Whether it stores so.
    pub wide_stores: bool,
    /// Such loads into registers that a thread has under way before it waits for one of them, at
    /// most.
    pub together: u32,
    /// Whether it moves 16 bytes word by word, one after the other, where one instruction could.
    pub word_by_word: bool,
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
    let mut under_way = UnderWay::default();
    let mut words = Words::default();
    for line in disassembly.lines() {
        if let Some((_, section)) = line.split_once(".section\t") {
            let name = section.split(',').next().unwrap_or_default();
            let kernel = name.strip_prefix(".text.");
            current = kernel
                .map(|kernel| kernels.entry(kernel.to_owned()).or_insert_with(Accesses::default));
            under_way = UnderWay::default();
        } else if let Some(accesses) = &mut current {
            for opcode in line.split_whitespace().filter(|word| is_wide(word)) {
                accesses.wide_loads |= opcode.starts_with("LDG");
                accesses.wide_stores |= opcode.starts_with("STG");
            }
            under_way.see(line);
            accesses.together = accesses.together.max(under_way.loads);
            accesses.word_by_word |= words.are_a_pack_with(line);
        }
    }
    kernels
}

/// Wide loads that no instruction has needed yet, as the code lies: branches are not followed.
#[derive(Default)]
struct UnderWay {
    loads: u32,
    registers: BTreeSet<u32>,
}

impl UnderWay {
    fn see(&mut self, line: &str) {
        // `/*0180*/ @!P0 LDG.E.128 R4, desc[UR6][R4.64] ;`
        let words = line.split_whitespace().skip_while(|word| word.starts_with(['/', '@']));
        let instruction: Vec<&str> = words.collect();
        let Some((opcode, operands)) = instruction.split_first() else { return };
        let operands = operands.join(" ");
        let stores = opcode.starts_with("ST");
        let (first, others) = operands.split_once(',').unwrap_or((&operands, ""));
        let read = if stores { operands.as_str() } else { others };
        if registers(read).any(|register| self.registers.contains(&register)) {
            *self = UnderWay::default();
        }
        if opcode.starts_with("LDG.") && is_wide(opcode) {
            self.loads += 1;
            let target = registers(first).next();
            self.registers.extend(target.into_iter().flat_map(|target| target..target + 4));
        }
    }
}

const WORD_ACCESSES: [&str; 5] = ["LDG.E", "LDG.E.CONSTANT", "LDG.E.SYS", "STG.E", "STG.E.SYS"];

/// Accesses to words that follow one another in the code and in memory.
#[derive(Default)]
struct Words {
    /// Predicate, instruction and address of the first.
    first: String,
    bytes: u32,
}

impl Words {
    fn are_a_pack_with(&mut self, line: &str) -> bool {
        // `/*0190*/ @!P5 STG.E desc[UR10][R30.64+0x4], R25 ;`
        let (_, code) = line.split_once("*/").unwrap_or_default();
        let (before, after) = code.split_once(']').unwrap_or_default();
        let (before, address) = match after.split_once(']') {
            Some((address, _)) => (before, address.trim_start_matches('[')),
            None => before.split_once('[').unwrap_or((before, "")),
        };
        let (register, offset) = address.split_once("+0x").unwrap_or((address, "0"));
        let opcode = code.split_whitespace().find(|word| !word.starts_with('@'));
        let is_word = opcode.is_some_and(|opcode| WORD_ACCESSES.contains(&opcode));
        let offset = u32::from_str_radix(offset, 16).ok();
        // A load's target, which differs, comes before its address.
        let predicate = before.split_whitespace().next().unwrap_or_default();
        let access = format!("{predicate} {opcode:?} {register}");
        *self = match offset.filter(|_| is_word) {
            Some(offset) if access == self.first && offset == self.bytes => {
                Words { bytes: offset + 4, first: access }
            }
            Some(0) => Words { bytes: 4, first: access },
            _ => Words::default(),
        };
        self.bytes == 16
    }
}

/// The numbers of the general registers in some operands.
fn registers(operands: &str) -> impl Iterator<Item = u32> {
    let words = operands.split(|letter: char| !letter.is_ascii_alphanumeric());
    words.filter_map(|word| word.strip_prefix('R')?.parse().ok())
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
        let of = |wide_loads, wide_stores, together| Accesses {
            wide_loads,
            wide_stores,
            together,
            word_by_word: false,
        };
        assert_eq!(kernels["narrow"], of(false, false, 0));
        assert_eq!(kernels["wide"], of(true, false, 1));
        assert_eq!(kernels["copy"], of(true, true, 0));
        assert_eq!(kernels.len(), 3);
    }

    #[test]
    fn words_of_a_pack_are_found() {
        let store = |predicate: &str, register: u32, offset: &str| {
            format!("  /*10*/  {predicate} STG.E desc[UR10][R{register}.64{offset}], R4 ;\n")
        };
        let word_by_word =
            |code: String| parse(&format!("\t.section\t.text.k,\n{code}"))["k"].word_by_word;
        let all = ["", "+0x4", "+0x8", "+0xc"];
        let pack = |predicates: [&str; 4]| -> String {
            predicates
                .iter()
                .zip(all)
                .map(|(predicate, offset)| store(predicate, 30, offset))
                .collect()
        };
        assert!(word_by_word(pack(["@!P5"; 4])));
        assert!(!word_by_word(pack(["@P0", "@P1", "@P2", "@P3"])));
        assert!(!word_by_word(store("", 2, "") + &store("", 4, "+0x4") + &store("", 4, "+0x8")));
        let loads = all.map(|offset| format!("  /*10*/  LDG.E R9, desc[UR4][R2.64{offset}] ;\n"));
        assert!(word_by_word(loads.concat()));
    }

    #[test]
    fn loads_are_under_way_together_until_one_is_needed() {
        let load =
            |register: u32| format!("  /*10*/  @!P0 LDG.E.128 R{register}, desc[UR6][R2.64] ;\n");
        let together = |code: String| parse(&format!("\t.section\t.text.k,\n{code}"))["k"].together;
        let unpack = "  /*20*/  @!P0 PRMT R40, R11, 0x7610, R40 ;\n";
        let store = "  /*30*/  STG.E.128 desc[UR6][R2.64], R8 ;\n";
        let other = "  /*40*/  IMAD R8, R4, R6.reuse, RZ ;\n";
        assert_eq!(together(load(8) + &load(12)), 2);
        assert_eq!(together(load(8) + other + &load(12)), 2);
        assert_eq!(together(load(8) + unpack + &load(12) + unpack), 1);
        assert_eq!(together(load(8) + store + &load(12) + &load(16) + &load(20)), 3);
    }
}
