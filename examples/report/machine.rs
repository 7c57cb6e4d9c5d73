//! What it was measured on, and what: processor, memory, date, commit, versions.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// The machine, as far as it tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub caches: Vec<String>,
    pub memory_gib: Option<u64>,
    pub system: String,
}

impl Machine {
    /// This machine; `cpu` replaces the processor's own name for itself.
    pub fn here(cpu: Option<String>) -> Self {
        let from_proc = || field_of("/proc/cpuinfo", "model name");
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Machine {
            cpu: cpu.or_else(from_proc).unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            caches: caches(),
            memory_gib: field_of("/proc/meminfo", "MemTotal").and_then(|text| gib(&text)),
            system: format!("{} {}", std::env::consts::OS, kernel.trim()).trim().to_owned(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} cores", self.cpu, self.cores)?;
        for cache in &self.caches {
            write!(f, ", {cache}")?;
        }
        if let Some(gib) = self.memory_gib {
            write!(f, ", {gib} GiB of memory")?;
        }
        write!(f, ", {}", self.system)
    }
}

fn field_of(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// `MemTotal` is given in kB that are KiB.
fn gib(text: &str) -> Option<u64> {
    let kib: u64 = text.strip_suffix(" kB")?.parse().ok()?;
    Some((kib + (1 << 19)) >> 20)
}

/// Data caches of the first core, `L2 2 MiB`; none where Linux does not list them.
fn caches() -> Vec<String> {
    let root = Path::new("/sys/devices/system/cpu/cpu0/cache");
    let read = |index: usize, file: &str| {
        let path = root.join(format!("index{index}")).join(file);
        fs::read_to_string(path).map(|text| text.trim().to_owned()).ok()
    };
    let cache = |index| Some((read(index, "type")?, read(index, "level")?, read(index, "size")?));
    (0..)
        .map_while(cache)
        .filter(|(kind, ..)| kind != "Instruction")
        .map(|(_, level, size)| format!("L{level} {}", cache_size(&size)))
        .collect()
}

/// Linux writes `2048K`.
fn cache_size(text: &str) -> String {
    match text.strip_suffix('K').map(str::parse::<u64>) {
        Some(Ok(kib)) if kib >= 1024 && kib.is_multiple_of(1024) => format!("{} MiB", kib / 1024),
        Some(Ok(kib)) => format!("{kib} KiB"),
        _ => text.to_owned(),
    }
}

/// The checked-out commit, marked where what is measured has been changed since.
pub fn commit() -> Option<String> {
    let root = env!("CARGO_MANIFEST_DIR");
    let head = output("git", &["-C", root, "rev-parse", "--short=12", "HEAD"])?;
    let measured = ["src", "kernels", "Cargo.toml", "benches", ":!benches/results"];
    let status = ["-C", root, "status", "--porcelain", "--"];
    let changes = output("git", &[&status[..], &measured[..]].concat())?;
    Some(if changes.is_empty() { head } else { format!("{head} with changes") })
}

/// What the compiler calls itself.
pub fn rustc() -> Option<String> {
    output("rustc", &["--version"])
}

fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// `YYYY-MM-DD` in UTC.
pub fn date(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut day = seconds / 86_400;
    let mut year = 1970;
    while day >= days_of_year(year) {
        day -= days_of_year(year);
        year += 1;
    }
    let february = if days_of_year(year) == 366 { 29 } else { 28 };
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", day + 1)
}

fn days_of_year(year: u64) -> u64 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    if leap { 366 } else { 365 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_follow_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_709_251_199, "2024-02-29"),
            (1_767_225_599, "2025-12-31"),
            (1_767_225_600, "2026-01-01"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(date(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn caches_are_given_in_the_largest_whole_unit() {
        assert_eq!(cache_size("48K"), "48 KiB");
        assert_eq!(cache_size("2048K"), "2 MiB");
        assert_eq!(cache_size("1280K"), "1280 KiB");
        assert_eq!(cache_size("odd"), "odd");
    }

    #[test]
    fn memory_is_rounded_to_whole_gib() {
        assert_eq!(gib("24623456 kB"), Some(23));
        assert_eq!(gib("16777216 kB"), Some(16));
        assert_eq!(gib("many"), None);
    }
}
