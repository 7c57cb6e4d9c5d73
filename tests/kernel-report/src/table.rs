//! The table in `docs/kernels.md`.

use crate::{Facts, Report};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::Path;

const BEGIN: &str = "<!-- kernel-report: begin -->\n";
const END: &str = "<!-- kernel-report: end -->";
const REMEDY: &str = "cargo run --release --bin kernel-report -- --write";

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

/// Puts the table between the document's markers.
///
/// # Errors
/// A document that cannot be read or written, or has no markers.
pub fn write(document: &Path, table: &str) -> Result<(), String> {
    let mut text = read(document)?;
    let between = between_markers(&text)?;
    text.replace_range(between, table);
    fs::write(document, text).map_err(|error| format!("{}: {error}", document.display()))
}

/// Compares the table with what stands between the document's markers.
///
/// # Errors
/// They differ: how to bring the document up to date.
pub fn check(document: &Path, table: &str) -> Result<(), String> {
    let text = read(document)?;
    if text[between_markers(&text)?] == *table {
        return Ok(());
    }
    Err(format!("{} is out of date: run {REMEDY}", document.display()))
}

fn read(document: &Path) -> Result<String, String> {
    fs::read_to_string(document).map_err(|error| format!("{}: {error}", document.display()))
}

fn between_markers(text: &str) -> Result<Range<usize>, String> {
    let begin = text.find(BEGIN).map(|at| at + BEGIN.len());
    let end = text.find(END);
    match (begin, end) {
        (Some(begin), Some(end)) if begin <= end => Ok(begin..end),
        _ => Err(format!("the document needs the lines {BEGIN}{END}")),
    }
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

    #[test]
    fn what_was_written_passes_the_check_and_the_rest_stays() {
        let directory = tempfile::tempdir().unwrap();
        let document = directory.path().join("kernels.md");
        fs::write(&document, format!("before\n{BEGIN}old\n{END}\nafter\n")).unwrap();
        let refusal = check(&document, "new\n").unwrap_err();
        assert!(refusal.contains("--write"), "{refusal}");
        write(&document, "new\n").unwrap();
        check(&document, "new\n").unwrap();
        let text = fs::read_to_string(&document).unwrap();
        assert_eq!(text, format!("before\n{BEGIN}new\n{END}\nafter\n"));
    }

    #[test]
    fn a_document_without_markers_is_refused() {
        assert!(between_markers("text").is_err());
        assert!(between_markers(&format!("{END}\n{BEGIN}")).is_err());
    }
}
