//! In which of its ways a peer was the fastest.

use crate::join::{Against, Row};
use crate::page::Report;
use crate::table::Table;
use std::collections::BTreeMap;
use std::fmt::Write;

/// What stands behind a ratio: the initials, `SP` of `SPATIAL_PERSISTENT`.
pub fn letters(way: &str) -> String {
    way.split('_').filter_map(|word| word.chars().next()).collect()
}

/// How often each way was a peer's fastest.
fn counts(rows: &[Row], peer: usize) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    let against = rows.iter().filter_map(|row| row.peers[peer].as_ref());
    for way in against.filter_map(|Against { way, .. }| way.as_deref()) {
        *counts.entry(way).or_insert(0) += 1;
    }
    counts
}

/// Nothing where no peer has several.
pub fn write(report: &Report, page: &mut String) {
    let mut table = Table::new(&["peer", "letters", "way", "cases"], 3);
    let mut refusals = String::new();
    for (index, peer) in report.peers.iter().enumerate() {
        for (way, count) in counts(&report.rows, index) {
            let (name, count) = (peer.name.clone(), count.to_string());
            table.row(vec![name, letters(way), format!("`{way}`"), count]);
        }
        let refused = peer.refused_ways.len();
        if refused > 0 {
            let _ = writeln!(
                refusals,
                "In {refused} cases {} refuses some of its ways; `results.json` has the reasons.\n",
                peer.name
            );
        }
    }
    if !table.is_empty() {
        page.push_str(
            "## Ways\n\nWhere a peer has several ways to do the same, each was measured and the \
             fastest counts: its letters stand behind the ratio in the tables.\n\n",
        );
        table.write(page);
        page.push_str(&refusals);
    }
}

#[cfg(test)]
mod tests {
    use crate::{invented, page};

    #[test]
    fn the_fastest_way_is_counted_and_stands_behind_the_ratio() {
        let mut report = invented::on_a_cpu(3000.0, "CPU");
        assert!(!page::markdown(&report, &[]).contains("Ways"));
        report.rows[0].peers[0].as_mut().unwrap().way = Some("SPATIAL_PERSISTENT".to_owned());
        report.peers[0].refused_ways.insert(report.rows[0].id.to_string(), "SPATIAL: no".into());
        let page = page::markdown(&report, &[]);
        for part in [
            "| 50 % | 1.50 SP |",
            "| Peer | SP | `SPATIAL_PERSISTENT` | 1 |",
            "In 1 cases Peer refuses some of its ways",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
    }
}
