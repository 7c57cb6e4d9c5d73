//! Tables that programs write into `docs/kernels.md`, and hold it to.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// `docs/kernels.md`.
pub const KERNELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/kernels.md");

/// What stands in a document between the lines `<!-- NAME: begin -->` and `<!-- NAME: end -->`.
pub struct Section {
    path: PathBuf,
    text: String,
    shown: Range<usize>,
}

impl Section {
    /// A section as the document has it.
    ///
    /// # Errors
    /// A document that cannot be read, or has no such section.
    pub fn open(path: impl AsRef<Path>, name: &str) -> Result<Self, String> {
        let path = path.as_ref().to_path_buf();
        let text = fs::read_to_string(&path).map_err(|it| format!("{}: {it}", path.display()))?;
        let [begin, end] = [format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->")];
        let start = text.find(&begin).map(|at| at + begin.len());
        match (start, text.find(&end)) {
            (Some(start), Some(end)) if start <= end => {
                Ok(Section { path, text, shown: start..end })
            }
            _ => Err(format!("{} needs the lines {begin}{end}", path.display())),
        }
    }

    /// What stands there.
    pub fn shown(&self) -> &str {
        &self.text[self.shown.clone()]
    }

    /// Puts a table in its place.
    ///
    /// # Errors
    /// A document that cannot be written.
    pub fn write(mut self, table: &str) -> Result<(), String> {
        self.text.replace_range(self.shown, table);
        fs::write(&self.path, self.text).map_err(|it| format!("{}: {it}", self.path.display()))
    }

    /// Holds what stands there to a table, line by line.
    ///
    /// # Errors
    /// They differ by what `agree` says: where first, and how to bring the document up to date.
    pub fn check(
        &self,
        table: &str,
        agree: impl Fn(&str, &str) -> bool,
        remedy: &str,
    ) -> Result<(), String> {
        let [shown, found] = [self.shown(), table].map(|it| it.lines().collect::<Vec<_>>());
        let stale = shown.iter().zip(&found).find(|(shown, found)| !agree(shown, found));
        if stale.is_none() && shown.len() == found.len() {
            return Ok(());
        }
        let stale = match stale {
            Some((shown, found)) => format!("it has\n{shown}\nfor\n{found}"),
            None => format!("it has {} lines for {}", shown.len(), found.len()),
        };
        Err(format!("{} is out of date: {remedy}\n{stale}", self.path.display()))
    }
}
