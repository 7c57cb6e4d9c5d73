//! The tables printed at the end.

use crate::agreement::Agreement;
use crate::sweep::Outcome;
use crate::training::Curve;
use crate::twin::Deviation;
use comfy_table::{Cell, CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

/// The two networks' courses side by side.
pub fn courses(plain: &Curve, normalized: &Curve) -> Table {
    let mut table = table(["", "without batch norm", "with batch norm"]);
    for index in rows_of(plain.points.len()) {
        let accuracy = |curve: &Curve| percent(curve.points[index].accuracy);
        let label = format!("test accuracy after {} steps", grouped(plain.points[index].step));
        table.add_row(row(label, [accuracy(plain), accuracy(normalized)]));
    }
    for threshold in [0.90, 0.95] {
        let reached = |curve: &Curve| match steps_to(curve, threshold) {
            Some(step) => grouped(step),
            None => "not reached".to_owned(),
        };
        let label = format!("steps to {:.0} %", 100.0 * threshold);
        table.add_row(row(label, [reached(plain), reached(normalized)]));
    }
    let seconds = |curve: &Curve| format!("{:.2} s", curve.time.as_secs_f64());
    table.add_row(row("time in training steps", [seconds(plain), seconds(normalized)]));
    let share = match normalized.norm_time {
        Some(time) => percent(time.as_secs_f64() / normalized.time.as_secs_f64()),
        None => "not measured".to_owned(),
    };
    table.add_row(row("of it in batch norm", ["none".to_owned(), share]));
    table
}

/// The first look that found this accuracy.
pub fn steps_to(curve: &Curve, accuracy: f64) -> Option<usize> {
    curve.points.iter().find(|point| point.accuracy >= accuracy).map(|point| point.step)
}

/// Final accuracies over the learning rates, each the median of its runs.
pub fn sweep(outcomes: &[Outcome]) -> Table {
    let mut table = table(["learning rate", "without batch norm", "with batch norm"]);
    for outcome in outcomes {
        let cells = [&outcome.plain, &outcome.normalized].map(|runs| {
            let (low, middle, high) = (runs[0], runs[runs.len() / 2], runs[runs.len() - 1]);
            format!("{} ({:.1} to {:.1})", percent(middle), 100.0 * low, 100.0 * high)
        });
        table.add_row(row(outcome.learning_rate.to_string(), cells));
    }
    table
}

/// What the trained network finds under different statistics.
pub fn agreement(agreement: &Agreement) -> Table {
    let header = ["statistics", "test accuracy", "other class", "largest change of a probability"];
    let mut table = table(header);
    for (index, found) in agreement.rows.iter().enumerate() {
        let compared = if index == 0 {
            ["".to_owned(), "".to_owned()]
        } else {
            [found.other_class.to_string(), format!("{:.3}", found.difference)]
        };
        let [other_class, difference] = compared;
        table.add_row(row(found.statistics, [percent(found.accuracy), other_class, difference]));
    }
    table
}

/// How far the two networks' courses are from what the CPU makes of them.
pub fn deviations([plain, normalized]: &[Deviation; 2]) -> String {
    let line = |name: &str, found: &Deviation| {
        let (accuracy, loss) = (100.0 * found.accuracy, found.loss);
        format!("{name}: test accuracy by up to {accuracy:.2} points, loss by {loss:.1e} of itself")
    };
    format!(
        "The first {} steps differ from the CPU's\n  {}\n  {}",
        grouped(plain.steps),
        line("without batch norm", plain),
        line("with batch norm", normalized),
    )
}

/// About equally far apart on a logarithmic scale, the last among them.
fn rows_of(points: usize) -> Vec<usize> {
    let last = points - 1;
    let parts = [100, 50, 20, 10, 5, 2, 1];
    let mut rows: Vec<usize> = parts.iter().map(|part| last.div_ceil(*part)).collect();
    rows.dedup();
    rows
}

fn table<const COLUMNS: usize>(header: [&str; COLUMNS]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(header);
    table
}

fn row<const COLUMNS: usize>(label: impl ToString, values: [String; COLUMNS]) -> Vec<Cell> {
    let aligned = |value: &String| Cell::new(value).set_alignment(CellAlignment::Right);
    let mut cells = vec![Cell::new(label)];
    cells.extend(values.iter().map(aligned));
    cells
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// With a comma between thousands.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
