//! [`Target`]: what kernels are compiled for. Shared by the build script and the library.

use std::fmt;
use std::str::FromStr;

/// One output of NVRTC. Compute capabilities are one number: 90 is 9.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Machine code (a cubin): runs on this capability and later ones of the same major.
    Sm(u32),
    /// PTX, which the driver compiles: runs on this capability and every later one.
    Ptx(u32),
}

/// What is compiled unless asked otherwise: 89 runs the machine code of 86, and what is newer than
/// this list is served by PTX.
pub const DEFAULT: [Target; 8] = [
    Target::Sm(75),
    Target::Sm(80),
    Target::Sm(86),
    Target::Sm(90),
    Target::Sm(100),
    Target::Sm(120),
    Target::Ptx(75),
    Target::Ptx(90),
];

impl Target {
    /// The compute capability it is compiled for.
    pub fn capability(self) -> u32 {
        match self {
            Target::Sm(capability) | Target::Ptx(capability) => capability,
        }
    }

    /// Whether the driver still has to compile it.
    pub fn is_ptx(self) -> bool {
        matches!(self, Target::Ptx(_))
    }
}

/// NVIDIA's name: `sm_90`, `compute_90`.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Sm(capability) => write!(f, "sm_{capability}"),
            Target::Ptx(capability) => write!(f, "compute_{capability}"),
        }
    }
}

/// `90` or `sm_90`; `ptx90` or `compute_90`.
impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ptx = text.strip_prefix("ptx").or_else(|| text.strip_prefix("compute_"));
        let digits = ptx.unwrap_or_else(|| text.strip_prefix("sm_").unwrap_or(text));
        let known = (digits.len() >= 2).then(|| digits.parse().ok()).flatten();
        let capability = known.ok_or_else(|| {
            format!("`{text}` is no architecture; write 90 for machine code, ptx90 for PTX")
        })?;
        Ok(if ptx.is_some() { Target::Ptx(capability) } else { Target::Sm(capability) })
    }
}

/// The targets of a build with a compiler that supports the capabilities `supported`: those
/// of `request` (comma-separated), by default what it supports of [`DEFAULT`].
///
/// # Errors
/// An entry that is no target, or one that this compiler cannot compile for.
pub fn requested(request: Option<&str>, supported: &[u32]) -> Result<Vec<Target>, String> {
    let supports = |target: &Target| supported.contains(&target.capability());
    let Some(request) = request else {
        return Ok(DEFAULT.into_iter().filter(supports).collect());
    };
    let mut targets = Vec::new();
    for entry in request.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let target: Target = entry.parse()?;
        if !supports(&target) {
            return Err(format!("this NVRTC compiles for {supported:?} only, not for {target}"));
        }
        targets.push(target);
    }
    targets.sort();
    targets.dedup();
    if targets.is_empty() {
        return Err("the list names no architecture; unset it for all".into());
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_read_what_they_write() {
        for target in DEFAULT {
            assert_eq!(target.to_string().parse(), Ok(target));
        }
        assert_eq!("90".parse(), Ok(Target::Sm(90)));
        assert_eq!("ptx120".parse(), Ok(Target::Ptx(120)));
    }

    #[test]
    fn what_is_no_target_is_refused_by_name() {
        for text in ["9", "sm90", "ninety", "90a", "ptx", "-90", "sm_"] {
            let refusal = text.parse::<Target>().unwrap_err();
            assert!(refusal.contains(&format!("`{text}`")), "{refusal}");
        }
    }

    #[test]
    fn by_default_what_the_compiler_supports() {
        let targets = requested(None, &[75, 80, 90]).unwrap();
        let expected = [75, 80, 90].map(Target::Sm).into_iter().chain([75, 90].map(Target::Ptx));
        let expected: Vec<_> = expected.collect();
        assert_eq!(targets, expected);
    }

    #[test]
    fn a_request_is_taken_as_it_is() {
        let targets = requested(Some(" ptx90, 90,80,,90 "), &[75, 80, 90]).unwrap();
        assert_eq!(targets, [Target::Sm(80), Target::Sm(90), Target::Ptx(90)]);
    }

    #[test]
    fn a_request_that_cannot_be_met_is_refused() {
        assert!(requested(Some("120"), &[75, 90]).unwrap_err().contains("not for sm_120"));
        assert!(requested(Some("all"), &[75, 90]).unwrap_err().contains("`all`"));
        assert!(requested(Some(" , "), &[75, 90]).is_err());
    }
}
