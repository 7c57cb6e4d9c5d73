//! Markdown tables and what stands in their cells.

use std::fmt::Write;

/// The first `left` columns are text, the others numbers.
pub struct Table {
    text: String,
    rows: usize,
}

impl Table {
    pub fn new(columns: &[&str], left: usize) -> Self {
        let rules: Vec<_> =
            (0..columns.len()).map(|column| if column < left { "---" } else { "---:" }).collect();
        let text = format!("| {} |\n| {} |\n", columns.join(" | "), rules.join(" | "));
        Table { text, rows: 0 }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        let _ = writeln!(self.text, "| {} |", cells.join(" | "));
        self.rows += 1;
    }

    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    pub fn write(self, page: &mut String) {
        page.push_str(&self.text);
        page.push('\n');
    }
}

pub fn time(ns: f64) -> String {
    match ns {
        ns if ns < 1e4 => format!("{:.2} µs", ns / 1e3),
        ns if ns < 1e6 => format!("{:.1} µs", ns / 1e3),
        ns => format!("{:.2} ms", ns / 1e6),
    }
}

pub fn ratio(ratio: f64) -> String {
    // Never rounds what is slower up to 1.00.
    let text = if ratio < 1.0 { (ratio * 100.0).floor() / 100.0 } else { ratio };
    if ratio < 1.0 { format!("**{text:.2}**") } else { format!("{text:.2}") }
}

pub fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// An error as a share; what is not finite where it should be is said to be so.
pub fn error(error: f64) -> String {
    if error.is_finite() { format!("{error:.1e}") } else { "not finite".to_owned() }
}

pub fn cell<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "–".to_owned(), show)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_below_one_never_reads_as_one() {
        assert_eq!(ratio(0.9999), "**0.99**");
        assert_eq!(ratio(1.0), "1.00");
    }

    #[test]
    fn errors_and_missing_values_are_words() {
        assert_eq!((error(1.25e-7), error(f64::INFINITY)), ("1.2e-7".into(), "not finite".into()));
        assert_eq!(cell(None, percent), "–");
        assert_eq!(cell(Some(0.5), percent), "50 %");
    }
}
