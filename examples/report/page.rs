//! What is written: `results.json` for programs, `README.md` for people.

use crate::id::{Id, Pass, Slot};
use crate::join::{self, Against, Peer, Row};
use crate::machine::Machine;
use serde_json::{Value, json};
use std::fmt::Write;

/// Everything that is known about a run.
#[derive(Debug)]
pub struct Report {
    pub device: String,
    pub machine: Machine,
    /// First and last day of our measurements.
    pub dates: (String, String),
    pub commit: Option<String>,
    pub rustc: Option<String>,
    pub peers: Vec<Peer>,
    pub rows: Vec<Row>,
}

/// Above this share of a core used by other processes, a measurement is called disturbed.
const QUIET: f64 = 0.05;

impl Report {
    /// The contents of `results.json`.
    pub fn json(&self) -> Value {
        let peers: Vec<_> = self.peers.iter().map(peer_json).collect();
        let results: Vec<_> = self.rows.iter().map(|row| self.row_json(row)).collect();
        json!({
            "device": self.device,
            "machine": self.machine,
            "date": self.dates.1,
            "commit": self.commit,
            "versions": { "warpnorm": env!("CARGO_PKG_VERSION"), "rustc": self.rustc },
            "peers": peers,
            "results": results,
        })
    }

    fn row_json(&self, row: &Row) -> Value {
        let named = self.peers.iter().zip(&row.peers);
        let peers: serde_json::Map<_, _> = named
            .filter_map(|(peer, against)| {
                let Against { median_ns, ratio } = (*against)?;
                Some((peer.name.clone(), json!({ "median_ns": median_ns, "ratio": ratio })))
            })
            .collect();
        json!({
            "id": row.id.to_string(),
            "median_ns": row.median_ns,
            "floor_bytes": row.floor_bytes,
            "share_of_copy": row.share_of_copy,
            "peers": peers,
        })
    }

    /// The contents of `README.md`.
    pub fn markdown(&self) -> String {
        let mut page = format!("# Batch normalization on {}\n\n", self.device);
        self.write_header(&mut page);
        self.write_slower(&mut page);
        page.push_str(LEGEND);
        let mut rest = &self.rows[..];
        while let Some(first) = rest.first() {
            let table = (first.id.pass, first.id.slot);
            let same = rest.iter().take_while(|row| (row.id.pass, row.id.slot) == table).count();
            let (rows, after) = rest.split_at(same);
            self.write_table(&mut page, rows);
            rest = after;
        }
        page
    }

    fn write_header(&self, page: &mut String) {
        let (first, last) = &self.dates;
        let date = if first == last { last.clone() } else { format!("{first} to {last}") };
        let unknown = || "unknown".to_owned();
        let mut header = Table::new(&["", ""], 2);
        header.row(vec!["machine".into(), self.machine.to_string()]);
        header.row(vec!["measured".into(), date]);
        header.row(vec!["commit".into(), self.commit.clone().unwrap_or_else(unknown)]);
        let rustc = self.rustc.clone().unwrap_or_else(unknown);
        header.row(vec!["warpnorm".into(), format!("{}, {rustc}", env!("CARGO_PKG_VERSION"))]);
        for peer in &self.peers {
            let versions: Vec<_> =
                peer.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
            header.row(vec![peer.name.clone(), versions.join(", ")]);
        }
        header.write(page);
        for warning in self.warnings() {
            let _ = writeln!(page, "**{warning}**\n");
        }
    }

    /// What makes a comparison doubtful.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for peer in &self.peers {
            if peer.device != self.machine.cpu {
                warnings.push(format!(
                    "{} was measured on another device, {}: its ratios mean nothing here.",
                    peer.name, peer.device
                ));
            }
            if let Some(share) = peer.foreign_cpu_share.filter(|&share| share > QUIET) {
                warnings.push(format!(
                    "While {} was measured, other processes used {:.0} % of a core: measure again.",
                    peer.name,
                    share * 100.0
                ));
            }
        }
        warnings
    }

    fn write_slower(&self, page: &mut String) {
        if self.peers.is_empty() {
            return;
        }
        page.push_str("## Slower than a peer\n\n");
        for (index, peer) in self.peers.iter().enumerate() {
            let (all, won) = join::score(&self.rows, index);
            let _ = writeln!(page, "At least as fast as {} in {won} of {all} cases.  ", peer.name);
        }
        page.push('\n');
        let slower = join::slower(&self.rows);
        if slower.is_empty() {
            page.push_str("Nothing is.\n\n");
            return;
        }
        let mut table = Table::new(&["case", "peer", "ours", "peer's", "ratio"], 2);
        for (row, peer, against) in slower {
            table.row(vec![
                format!("`{}`", row.id),
                self.peers[peer].name.clone(),
                time(row.median_ns),
                time(against.median_ns),
                ratio(against.ratio),
            ]);
        }
        table.write(page);
    }

    fn write_table(&self, page: &mut String, rows: &[Row]) {
        let Some(first) = rows.first() else { return };
        let _ = writeln!(page, "## {}\n", title(&first.id));
        let mut columns = vec!["tensor", "dtype", "epilogue", "config", "time", "GB/s"];
        let copy = first.id.pass == Pass::Copy;
        if !copy {
            columns.push("of copy");
        }
        columns.extend(self.peers.iter().map(|peer| peer.name.as_str()));
        let mut table = Table::new(&columns, 4);
        for row in rows {
            let mut cells = vec![
                row.id.shape(),
                row.id.element.to_string(),
                row.id.fused.to_string(),
                row.id.config.to_string(),
                time(row.median_ns),
                format!("{:.1}", row.floor_bytes as f64 / row.median_ns),
            ];
            if !copy {
                cells.push(cell(row.share_of_copy, |share| format!("{:.0} %", share * 100.0)));
            }
            cells.extend(row.peers.iter().map(|peer| cell(peer.map(|peer| peer.ratio), ratio)));
            table.row(cells);
        }
        table.write(page);
    }
}

const LEGEND: &str = "## How to read the tables\n\n\
    Medians of warm calls into preallocated outputs. **GB/s**: the bytes of the floor (every \
    tensor read or written once) over the time. **of copy**: the time that a plain copy by the \
    same threads would take to move the floor's bytes, over our time; 100 % is copying speed. \
    **Peers**: their time over ours; above 1 we are faster, **bold** below. A dash: not measured, \
    or the peer cannot do it.\n\n";

fn peer_json(peer: &Peer) -> Value {
    json!({
        "name": peer.name,
        "device": peer.device,
        "versions": peer.versions,
        "foreign_cpu_share": peer.foreign_cpu_share,
    })
}

fn title(id: &Id) -> String {
    let pass = match id.pass {
        Pass::TrainForward => "Training forward",
        Pass::TrainBackward => "Training backward",
        Pass::Inference => "Inference",
        Pass::Copy if id.slot == Slot::NonTemporal => return "Copy, non-temporal stores".into(),
        Pass::Copy => "Copy",
    };
    format!("{pass}, {}", id.slot)
}

fn time(ns: f64) -> String {
    match ns {
        ns if ns < 1e4 => format!("{:.2} µs", ns / 1e3),
        ns if ns < 1e6 => format!("{:.1} µs", ns / 1e3),
        ns => format!("{:.2} ms", ns / 1e6),
    }
}

fn ratio(ratio: f64) -> String {
    // Never rounds what is slower up to 1.00.
    let text = if ratio < 1.0 { (ratio * 100.0).floor() / 100.0 } else { ratio };
    if ratio < 1.0 { format!("**{text:.2}**") } else { format!("{text:.2}") }
}

fn cell(value: Option<f64>, show: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| "–".to_owned(), show)
}

/// A Markdown table: the first `left` columns are text, the others numbers.
struct Table {
    text: String,
}

impl Table {
    fn new(columns: &[&str], left: usize) -> Self {
        let rules: Vec<_> =
            (0..columns.len()).map(|column| if column < left { "---" } else { "---:" }).collect();
        Table { text: format!("| {} |\n| {} |\n", columns.join(" | "), rules.join(" | ")) }
    }

    fn row(&mut self, cells: Vec<String>) {
        let _ = writeln!(self.text, "| {} |", cells.join(" | "));
    }

    fn write(self, page: &mut String) {
        page.push_str(&self.text);
        page.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join::Measured;

    fn report(peer_ns: f64, peer_device: &str) -> Report {
        let measured = |id: &str, median_ns| Measured { id: id.parse().unwrap(), median_ns };
        let forward = "train_forward/channels-first/f32/8x16x4x4/none/1t";
        let copy = "copy/channels-first/f32/8x16x4x4/none/1t";
        let peers = vec![Peer {
            name: "Peer".into(),
            device: peer_device.into(),
            versions: [("peer".to_owned(), "1.2".to_owned())].into(),
            foreign_cpu_share: Some(0.0),
            results: vec![measured(forward, peer_ns)],
        }];
        let rows = join::join(&[measured(forward, 2000.0), measured(copy, 1000.0)], &peers);
        Report {
            device: "box".into(),
            machine: Machine {
                cpu: "CPU".into(),
                cores: 2,
                caches: vec!["L2 1M".into()],
                memory_gib: Some(4),
                system: "os".into(),
            },
            dates: ("2025-01-01".into(), "2025-01-02".into()),
            commit: Some("abc".into()),
            rustc: None,
            peers,
            rows: rows.unwrap(),
        }
    }

    #[test]
    fn what_is_slower_comes_before_the_tables() {
        let page = report(1990.0, "CPU").markdown();
        let slower = page.find("| `train_forward/channels-first/f32/8x16x4x4/none/1t` | Peer | 2.00 µs | 1.99 µs | **0.99** |");
        let table = page.find("## Training forward, channels-first");
        assert!(slower.is_some() && slower < table, "{page}");
        assert!(page.contains("At least as fast as Peer in 0 of 1 cases."), "{page}");
    }

    #[test]
    fn a_table_has_time_bandwidth_share_and_ratio() {
        let page = report(3000.0, "CPU").markdown();
        let row = "| 8x16x4x4 | f32 | none | 1t | 2.00 µs | 8.2 | 50 % | 1.50 |";
        assert!(page.contains(row) && page.contains("Nothing is."), "{page}");
    }

    #[test]
    fn the_header_names_machine_dates_commit_and_versions() {
        let page = report(3000.0, "CPU").markdown();
        for part in ["CPU, 2 cores, L2 1M, 4 GiB", "2025-01-01 to 2025-01-02", "abc", "peer 1.2"] {
            assert!(page.contains(part), "{part} in {page}");
        }
    }

    #[test]
    fn doubtful_comparisons_are_called_so() {
        assert!(report(1.0, "CPU").warnings().is_empty());
        assert!(
            report(1.0, "another").markdown().contains("**Peer was measured on another device")
        );
        let mut disturbed = report(1.0, "CPU");
        disturbed.peers[0].foreign_cpu_share = Some(0.5);
        assert!(disturbed.markdown().contains("used 50 % of a core"));
    }

    #[test]
    fn the_json_holds_every_figure() {
        let json = report(3000.0, "CPU").json();
        let forward = &json["results"][0];
        assert_eq!(forward["id"], "train_forward/channels-first/f32/8x16x4x4/none/1t");
        assert_eq!(forward["share_of_copy"], 0.5);
        assert_eq!(forward["peers"]["Peer"]["ratio"], 1.5);
        assert_eq!(json["machine"]["cpu"], "CPU");
        assert_eq!(json["date"], "2025-01-02");
    }

    #[test]
    fn a_ratio_below_one_never_reads_as_one() {
        assert_eq!(ratio(0.9999), "**0.99**");
        assert_eq!(ratio(1.0), "1.00");
    }
}
