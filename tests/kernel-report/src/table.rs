//! The table in `docs/kernels.md`.

use crate::{Facts, Report};
use std::collections::{BTreeMap, BTreeSet};

/// A table for each unit: a row for each kernel, a column of registers for each architecture.
pub fn markdown((major, minor): (u32, u32), report: &Report) -> String {
    let mut text = format!("Compiled by NVRTC {major}.{minor}.\n");
    for (unit, kernels) in report {
        let architectures: BTreeSet<_> = kernels.values().flat_map(BTreeMap::keys).collect();
        text += &format!("\n### {unit}.cu\n\n| kernel | shared | 16 bytes |");
        architectures.iter().for_each(|architecture| text += &format!(" sm_{architecture} |"));
        text += "\n| --- | ---: | --- |";
        text += &" ---: |".repeat(architectures.len());
        text += "\n";
        for (kernel, by_architecture) in kernels {
            let facts: Vec<_> = by_architecture.values().collect();
            text += &format!("| `{kernel}` | {} | {} |", shared(&facts), accesses(&facts));
            for architecture in &architectures {
                let facts = by_architecture.get(architecture);
                let registers = facts.map_or("-".into(), |f| f.resources.registers.to_string());
                text += &format!(" {registers} |");
            }
            text += "\n";
        }
    }
    text
}

/// Bytes, or their range where architectures differ.
fn shared(facts: &[&Facts]) -> String {
    let bytes = || facts.iter().map(|facts| facts.resources.shared);
    let (least, most) = (bytes().min().unwrap_or(0), bytes().max().unwrap_or(0));
    if least == most { most.to_string() } else { format!("{least} to {most}") }
}

/// What is done 16 bytes at a time; in parentheses, where only some architectures do it.
fn accesses(facts: &[&Facts]) -> String {
    let word = |word: &str, wide: fn(&&&Facts) -> bool| match facts.iter().filter(wide).count() {
        0 => None,
        count if count == facts.len() => Some(word.to_owned()),
        _ => Some(format!("({word})")),
    };
    let loads = word("load", |facts| facts.accesses.wide_loads);
    let stores = word("store", |facts| facts.accesses.wide_stores);
    [loads, stores].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Resources;
    use crate::machine_code::Accesses;

    fn facts(registers: u32, shared: u32, wide_loads: bool) -> Facts {
        Facts {
            resources: Resources { registers, shared, ..Resources::default() },
            accesses: Accesses { wide_loads, wide_stores: true, together: 0, word_by_word: false },
        }
    }

    #[test]
    fn rows_say_what_differs_between_architectures() {
        let kernel = BTreeMap::from([(80, facts(30, 0, false)), (90, facts(32, 16, true))]);
        let other = BTreeMap::from([(90, facts(8, 0, true))]);
        let kernels = BTreeMap::from([("k".to_owned(), kernel), ("other".to_owned(), other)]);
        let table = markdown((12, 9), &BTreeMap::from([("unit".to_owned(), kernels)]));
        let expected = "\
Compiled by NVRTC 12.9.

### unit.cu

| kernel | shared | 16 bytes | sm_80 | sm_90 |
| --- | ---: | --- | ---: | ---: |
| `k` | 0 to 16 | (load), store | 30 | 32 |
| `other` | 0 | load, store | - | 8 |
";
        assert_eq!(table, expected);
    }
}
