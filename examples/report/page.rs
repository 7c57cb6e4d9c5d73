//! What people read: `README.md`.

use crate::files::{GpuFile, RustFile};
use crate::gpu_page;
use crate::id::{Id, Pass, Slot};
use crate::join::{self, Peer, Row};
use crate::machine::Machine;
use crate::plots::Picture;
use crate::rust_page;
use crate::summary::{Line, Ratios, summarize};
use crate::table::{Table, cell, percent, ratio, time};
use crate::ways;
use std::fmt::Write;

/// Everything that is known about a machine.
#[derive(Debug)]
pub struct Report {
    pub device: String,
    pub machine: Machine,
    /// First and last day of our measurements.
    pub dates: (String, String),
    /// How often everything was measured; of each case the fastest time of each library is here.
    pub rounds: usize,
    pub commit: Option<String>,
    /// Of this crate.
    pub version: String,
    pub rustc: Option<String>,
    pub peers: Vec<Peer>,
    pub rows: Vec<Row>,
    /// `None` where there is no GPU.
    pub gpu: Option<GpuFile>,
    pub rust: Option<RustFile>,
}

/// Above this share of a core used by other processes, a measurement is called disturbed.
const QUIET: f64 = 0.05;

impl Report {
    /// What makes a comparison doubtful.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let gpu = self.gpu.as_ref().map(|gpu| &gpu.device.name);
        for peer in &self.peers {
            let is_known = |device: &&String| **device == self.machine.cpu || Some(*device) == gpu;
            if let Some(device) = peer.devices.iter().find(|device| !is_known(device)) {
                warnings.push(format!(
                    "{} was measured on another device, {device}: its ratios mean nothing here.",
                    peer.name
                ));
            }
            if let Some(share) = peer.foreign_cpu_share.filter(|&share| share > QUIET) {
                warnings.push(format!(
                    "While {} was measured, other processes used {} of a core: measure again.",
                    peer.name,
                    percent(share)
                ));
            }
        }
        warnings
    }
}

/// The contents of `README.md`, with the pictures that lie beside it.
pub fn markdown(report: &Report, pictures: &[Picture]) -> String {
    let mut page = format!("# Batch normalization on {}\n\n", report.device);
    write_header(report, &mut page);
    write_slower(report, &mut page);
    write_summary(report, &mut page);
    ways::write(report, &mut page);
    for Picture { name, caption } in pictures {
        let _ = writeln!(page, "![{caption}]({name}.png)\n\n{caption}\n");
    }
    gpu_page::write(report, &mut page);
    if let Some(rust) = &report.rust {
        rust_page::write(rust, &mut page);
    }
    page.push_str(LEGEND);
    let same_table = |a: &Row, b: &Row| table_of(&a.id) == table_of(&b.id);
    for rows in report.rows.chunk_by(same_table) {
        write_table(report, rows, &mut page);
    }
    page
}

fn table_of(id: &Id) -> (bool, Pass, Slot) {
    (id.is_gpu(), id.pass, id.slot)
}

fn write_header(report: &Report, page: &mut String) {
    let (first, last) = &report.dates;
    let date = if first == last { last.clone() } else { format!("{first} to {last}") };
    let unknown = || "unknown".to_owned();
    let mut header = Table::new(&["", ""], 2);
    header.row(vec!["machine".into(), report.machine.to_string()]);
    if let Some(gpu) = &report.gpu {
        header.row(vec!["GPU".into(), gpu_page::device(gpu)]);
    }
    let measured = match report.rounds {
        1 => date,
        rounds => format!("{date}, in {rounds} rounds, of which each library's fastest counts"),
    };
    header.row(vec!["measured".into(), measured]);
    header.row(vec!["commit".into(), report.commit.clone().unwrap_or_else(unknown)]);
    let rustc = report.rustc.clone().unwrap_or_else(unknown);
    header.row(vec!["warpnorm".into(), format!("{}, {rustc}", report.version)]);
    for peer in &report.peers {
        let versions: Vec<_> =
            peer.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        header.row(vec![peer.name.clone(), versions.join(", ")]);
    }
    header.write(page);
    for warning in report.warnings() {
        let _ = writeln!(page, "**{warning}**\n");
    }
    if report.gpu.is_none() {
        page.push_str("No GPU was there: this is the CPU part, and there is no GPU part.\n\n");
    }
}

/// The worst are named, all are in the tables.
const NAMED: usize = 25;

fn write_slower(report: &Report, page: &mut String) {
    if report.peers.is_empty() {
        return;
    }
    page.push_str("## Slower than a peer\n\n");
    for (index, peer) in report.peers.iter().enumerate() {
        let (all, won) = join::score(&report.rows, index);
        let _ = writeln!(page, "At least as fast as {} in {won} of {all} cases.  ", peer.name);
    }
    page.push('\n');
    let slower = join::slower(&report.rows);
    if slower.is_empty() {
        page.push_str("Nothing is.\n\n");
        return;
    }
    let mut table = Table::new(&["case", "peer", "ours", "peer's", "ratio"], 2);
    for (row, peer, against) in slower.iter().take(NAMED) {
        table.row(vec![
            format!("`{}`", row.id),
            report.peers[*peer].name.clone(),
            time(row.median_ns),
            time(against.median_ns),
            ratio(against.ratio),
        ]);
    }
    table.write(page);
    if slower.len() > NAMED {
        let _ = writeln!(page, "And {} more, bold in the tables below.\n", slower.len() - NAMED);
    }
}

fn write_summary(report: &Report, page: &mut String) {
    let lines = summarize(&report.rows, &report.peers);
    if lines.is_empty() {
        return;
    }
    page.push_str(
        "## Ratios in short\n\nA peer's time over ours: the geometric mean of all cases, and the \
         least.\n\n",
    );
    let columns = [
        "pass", "layout", "dtype", "config", "peer", "least at", "cases", "refused", "mean",
        "least",
    ];
    let mut table = Table::new(&columns, 6);
    for Line { kind, peer, cases, ratios, refused } in lines {
        let worst = |it: &Ratios| format!("{} {}", it.worst.shape(), it.worst.fused);
        table.row(vec![
            kind.pass.to_string(),
            kind.slot.to_string(),
            kind.element.to_string(),
            kind.config.to_string(),
            report.peers[peer].name.clone(),
            cell(ratios.as_ref(), worst),
            cases.to_string(),
            if refused == 0 { String::new() } else { refused.to_string() },
            cell(ratios.as_ref(), |it| ratio(it.mean)),
            cell(ratios.as_ref(), |it| ratio(it.least)),
        ]);
    }
    table.write(page);
}

fn write_table(report: &Report, rows: &[Row], page: &mut String) {
    let Some(first) = rows.first() else { return };
    let _ = writeln!(page, "## {}\n", title(&first.id));
    let is_copy = first.id.pass == Pass::Copy;
    // Those that were measured on the same processors.
    let is_there = |index: &usize| {
        let (index, refused) = (*index, &report.peers[*index].refused);
        rows.iter()
            .any(|row| row.peers[index].is_some() || refused.contains_key(&row.id.to_string()))
    };
    let peers: Vec<usize> = (0..report.peers.len()).filter(is_there).collect();
    let mut columns = vec!["tensor", "dtype", "epilogue", "config", "time", "GB/s"];
    if !is_copy {
        columns.push("of copy");
    }
    columns.extend(peers.iter().map(|&peer| report.peers[peer].name.as_str()));
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
        if !is_copy {
            cells.push(cell(row.share_of_copy, percent));
        }
        cells.extend(peers.iter().map(|&peer| peer_cell(row, peer, &report.peers[peer])));
        table.row(cells);
    }
    table.write(page);
}

fn peer_cell(row: &Row, index: usize, peer: &Peer) -> String {
    match &row.peers[index] {
        None if peer.refused.contains_key(&row.id.to_string()) => "refused".to_owned(),
        against => cell(against.as_ref(), |against| match &against.way {
            Some(way) => format!("{} {}", ratio(against.ratio), ways::letters(way)),
            None => ratio(against.ratio),
        }),
    }
}

const LEGEND: &str = "## How to read the tables\n\n\
    Medians of warm calls into preallocated outputs. **GB/s**: the bytes of the floor (every \
    tensor read or written once) over the time. **of copy**: the time that a plain copy by the \
    same processors would take to move the floor's bytes, over our time; 100 % is copying speed. \
    **Peers**: their time over ours; above 1 we are faster, **bold** below. A dash: not measured. \
    **refused**: the peer does not do it, and says so. **gpu**: on tensors that take turns, so \
    that no cache holds them; **gpu-in-cache**: on the same ones each time; **gpu-graph**: \
    replayed from a CUDA graph.\n\n";

fn title(id: &Id) -> String {
    let pass = match id.pass {
        Pass::TrainForward => "Training forward",
        Pass::TrainBackward => "Training backward",
        Pass::Inference => "Inference",
        Pass::Copy if id.slot == Slot::NonTemporal => return "Copy, non-temporal stores".into(),
        Pass::Copy => "Copy",
    };
    match (id.pass, id.is_gpu()) {
        (Pass::Copy, true) => "Copy on the GPU".to_owned(),
        (_, true) => format!("{pass} on the GPU, {}", id.slot),
        (_, false) => format!("{pass}, {}", id.slot),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invented;

    #[test]
    fn what_is_slower_comes_before_the_tables() {
        let page = markdown(&invented::on_a_cpu(1990.0, "CPU"), &[]);
        let slower = page.find("| `train_forward/channels-first/f32/8x16x4x4/none/1t` | Peer | 2.00 µs | 1.99 µs | **0.99** |");
        let table = page.find("## Training forward, channels-first");
        assert!(slower.is_some() && slower < table, "{page}");
        assert!(page.contains("At least as fast as Peer in 0 of 1 cases."), "{page}");
    }

    #[test]
    fn a_table_has_time_bandwidth_share_and_ratio() {
        let page = markdown(&invented::on_a_cpu(3000.0, "CPU"), &[]);
        let row = "| 8x16x4x4 | f32 | none | 1t | 2.00 µs | 8.2 | 50 % | 1.50 |";
        assert!(page.contains(row) && page.contains("Nothing is."), "{page}");
        assert!(page.contains("there is no GPU part"), "{page}");
    }

    #[test]
    fn the_header_names_machine_dates_commit_and_versions() {
        let page = markdown(&invented::on_a_cpu(3000.0, "CPU"), &[]);
        for part in ["CPU, 2 cores, L2 1M, 4 GiB", "2025-01-01 to 2025-01-02", "abc", "peer 1.2"] {
            assert!(page.contains(part), "{part} in {page}");
        }
    }

    #[test]
    fn rounds_are_told_where_there_were_several() {
        let mut report = invented::on_a_cpu(3000.0, "CPU");
        assert!(!markdown(&report, &[]).contains("rounds"));
        report.rounds = 3;
        assert!(markdown(&report, &[]).contains("2025-01-02, in 3 rounds, of which"));
    }

    #[test]
    fn doubtful_comparisons_are_called_so() {
        assert!(invented::on_a_cpu(1.0, "CPU").warnings().is_empty());
        let elsewhere = markdown(&invented::on_a_cpu(1.0, "another"), &[]);
        assert!(elsewhere.contains("**Peer was measured on another device"));
        let mut disturbed = invented::on_a_cpu(1.0, "CPU");
        disturbed.peers[0].foreign_cpu_share = Some(0.5);
        assert!(markdown(&disturbed, &[]).contains("used 50 % of a core"));
    }

    #[test]
    fn refusals_are_written_out() {
        let mut report = invented::on_a_cpu(1.0, "CPU");
        let id = report.rows[0].id.to_string();
        report.rows[0].peers[0] = None;
        report.peers[0].refused.insert(id, "no".to_owned());
        assert!(markdown(&report, &[]).contains("| 50 % | refused |"));
    }

    #[test]
    fn a_missing_cudnn_is_said() {
        let mut report = invented::report();
        report.gpu.as_mut().unwrap().no_cudnn = Some("no library".to_owned());
        assert!(markdown(&report, &[]).contains("**cuDNN was not measured: no library.**"));
    }

    #[test]
    fn a_gpus_report_has_every_section() {
        let page = markdown(&invented::report(), &[]);
        for part in [
            "## Training forward on the GPU, channels-last",
            "## Ways",
            "## Copy on the GPU",
            "## Measured against the plans' predictions",
            "## Growth",
            "## ResNet-50",
            "## Accuracy",
            "## What a call takes on the host",
            "## Beside candle and Burn",
            "## Failed",
            "an error of 2/3",
            "refused",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
        assert!(!page.contains("no GPU part"));
    }
}
