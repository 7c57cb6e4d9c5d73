//! The page's sections of a machine with a GPU.

use crate::files::{Errors, GpuFile, Score};
use crate::id::{Id, Pass};
use crate::model::{Compared, TOLERANCE, compare, growth};
use crate::page::Report;
use crate::resnet::{self, Step};
use crate::table::{Table, cell, error, percent, ratio, time};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Rows of a list of the worst.
const NAMED: usize = 25;

pub fn write(report: &Report, page: &mut String) {
    let Some(gpu) = &report.gpu else { return };
    write_failed(gpu, page);
    write_step(report, page);
    write_predictions(report, gpu, page);
    write_growth(report, page);
    write_accuracy(gpu, page);
    write_host(gpu, page);
}

/// A line of the header.
pub fn device(gpu: &GpuFile) -> String {
    let device = &gpu.device;
    let versions: Vec<_> =
        gpu.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    format!(
        "{}, compute capability {}, {} multiprocessors, L2 {} MiB, {:.0} GB, memory {:.0} GB/s by \
         its clock, {:.0} GB/s copying, {}",
        device.name,
        device.compute_capability,
        device.multiprocessors,
        device.l2_bytes >> 20,
        device.memory_bytes as f64 / 1e9,
        device.memory_bandwidth as f64 / 1e9,
        gpu.copy_bandwidth / 1e9,
        versions.join(", "),
    )
}

fn write_failed(gpu: &GpuFile, page: &mut String) {
    if let Some(reason) = &gpu.no_cudnn {
        let _ = writeln!(page, "**cuDNN was not measured: {reason}.**\n");
    }
    if gpu.failed.is_empty() {
        return;
    }
    page.push_str("## Failed\n\nNot measured, or wrong:\n\n");
    let mut table = Table::new(&["case", "reason"], 2);
    for (id, reason) in &gpu.failed {
        table.row(vec![format!("`{id}`"), reason.replace('|', "/")]);
    }
    table.write(page);
}

fn write_step(report: &Report, page: &mut String) {
    let steps = resnet::steps(&report.rows, &report.peers);
    if steps.is_empty() {
        return;
    }
    page.push_str(
        "## ResNet-50\n\nAll batch norms of a training step in f16: 53 layers, forward and \
         backward, with ReLU and residual where the network has them. In brackets the share of a \
         whole step in PyTorch, where that was measured: the rest of the step is PyTorch's in \
         every column.\n\n",
    );
    let mut columns = vec!["batch", "layout", "ours"];
    columns.extend(report.peers.iter().map(|peer| peer.name.as_str()));
    let mut table = Table::new(&columns, 2);
    for step in &steps {
        let rest = rest_of_step(report, step);
        let shown = |ns: f64| match rest {
            Some(rest) => format!("{} ({})", time(ns), percent(ns / (ns + rest))),
            None => time(ns),
        };
        let mut cells = vec![step.batch.to_string(), step.slot.to_string(), shown(step.ours_ns)];
        cells.extend(step.peers_ns.iter().map(|ns| cell(*ns, shown)));
        table.row(cells);
    }
    table.write(page);
}

/// What a step takes beside its batch norms, by the peer that was timed at both.
fn rest_of_step(report: &Report, step: &Step) -> Option<f64> {
    if step.slot != crate::id::Slot::ChannelsLast {
        return None;
    }
    let timed = report.peers.iter().zip(&step.peers_ns);
    let mut rests = timed.filter_map(|(peer, ns)| {
        let rest = peer.resnet50_step_ns.get(&step.batch)? - (*ns)?;
        (rest > 0.0).then_some(rest)
    });
    rests.next()
}

fn write_predictions(report: &Report, gpu: &GpuFile, page: &mut String) {
    let compared = compare(&report.rows, gpu);
    if compared.is_empty() {
        return;
    }
    let off: Vec<&Compared> =
        compared.iter().filter(|it| it.deviation().abs() > TOLERANCE).collect();
    let _ = write!(
        page,
        "## Measured against the plans' predictions\n\nPlans predict a time from bytes at copying \
         speed, launches and exchanges. {} of {} calls are within {} of it.",
        compared.len() - off.len(),
        compared.len(),
        percent(TOLERANCE),
    );
    page.push_str(if off.is_empty() { "\n\n" } else { " The others, farthest off first:\n\n" });
    let mut table = Table::new(&["case", "tier", "predicted", "measured", "off"], 2);
    for it in off.iter().take(NAMED) {
        table.row(vec![
            format!("`{}`", it.id),
            it.tier.clone(),
            time(it.predicted_ns),
            time(it.measured_ns),
            format!("{:+.0} %", 100.0 * it.deviation()),
        ]);
    }
    if !table.is_empty() {
        table.write(page);
    }
    if off.len() > NAMED {
        let _ = writeln!(page, "And {} more.\n", off.len() - NAMED);
    }
}

fn write_growth(report: &Report, page: &mut String) {
    let series = growth(&report.rows);
    if series.is_empty() {
        return;
    }
    page.push_str(
        "## Growth\n\nTimes in f16 as one extent grows; in brackets how they grow beside the \
         tensor: 1.00 is in step with it, less is a cost that does not grow.\n\n",
    );
    let mut table = Table::new(&["pass", "layout", "growing", "times"], 4);
    for it in series {
        let slopes = it.slopes();
        let points = it.points.iter().enumerate().map(|(index, (shape, _, ns))| match index {
            0 => format!("{shape}: {}", time(*ns)),
            index => format!("{shape}: {} ({:.2})", time(*ns), slopes[index - 1]),
        });
        let points: Vec<_> = points.collect();
        let (pass, slot) = (it.pass.to_string(), it.slot.to_string());
        table.row(vec![pass, slot, it.extent.to_owned(), points.join(", ")]);
    }
    table.write(page);
}

fn write_accuracy(gpu: &GpuFile, page: &mut String) {
    if gpu.accuracy.is_empty() {
        return;
    }
    page.push_str(
        "## Accuracy\n\nThe largest error of all shapes, as a share of what adds up in an output's \
         channel, against the textbook in f64; and the largest difference between our results and \
         cuDNN's. Rounding to the element type is in it: 6e-8 for f32, 5e-4 for f16, 4e-3 for \
         bf16.\n\n",
    );
    let mut worst: BTreeMap<(String, String), Errors> = BTreeMap::new();
    for (key, errors) in &gpu.accuracy {
        let Some((id, output)) = key.split_once(' ') else { continue };
        let Ok(id) = id.parse::<Id>() else { continue };
        let kind = (format!("{} {} {}", id.slot, id.element, id.fused), output.to_owned());
        let found = worst.entry(kind).or_default();
        found.ours = found.ours.max(errors.ours);
        raise(&mut found.cudnn, &errors.cudnn);
        raise(&mut found.between, &errors.between);
    }
    let mut table = Table::new(&["calls", "output", "ours", "cuDNN", "between"], 2);
    for ((calls, output), errors) in worst {
        let cudnn = by_mode(&errors.cudnn);
        table.row(vec![calls, output, error(errors.ours), cudnn, by_mode(&errors.between)]);
    }
    table.write(page);
}

fn raise(found: &mut BTreeMap<String, Score>, scores: &BTreeMap<String, Score>) {
    for (mode, Score(score)) in scores {
        let Score(worst) = found.entry(mode.clone()).or_insert(Score(0.0));
        *worst = worst.max(*score);
    }
}

fn by_mode(scores: &BTreeMap<String, Score>) -> String {
    let scores: Vec<_> =
        scores.iter().map(|(mode, Score(score))| format!("{mode} {}", error(*score))).collect();
    cell((!scores.is_empty()).then_some(scores), |scores| scores.join(", "))
}

fn write_host(gpu: &GpuFile, page: &mut String) {
    if gpu.host.is_empty() {
        return;
    }
    page.push_str(
        "## What a call takes on the host\n\nUntil it is enqueued; small tensors cost no less than \
         that, unless a graph replays them.\n\n",
    );
    let mut table = Table::new(&["case", "ours", "cuDNN", "ratio"], 1);
    let is_plain = |id: &str| id.parse::<Id>().is_ok_and(|id| id.pass != Pass::Copy);
    for (id, cost) in gpu.host.iter().filter(|(id, _)| is_plain(id)) {
        let against = cost.cudnn_ns.map(|ns| ns / cost.ours_ns);
        table.row(vec![
            format!("`{id}`"),
            time(cost.ours_ns),
            cell(cost.cudnn_ns, time),
            cell(against, ratio),
        ]);
    }
    table.write(page);
}
