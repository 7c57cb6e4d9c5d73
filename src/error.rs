//! Errors: what was passed, what was expected, what was found.

use std::fmt::Display;

/// What every fallible call of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call failed.
///
/// After [`Error::Argument`] nothing has changed: outputs, parameters and running statistics are as
/// they were. After [`Error::OutOfMemory`] and [`Error::System`] that holds on the CPU, too, where the
/// latter means that threads were not to be had. On a GPU the fault may have come in the middle of the
/// call or from an earlier one: the contents of outputs, [`Saved`](crate::Saved) and running
/// statistics are then undefined.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument does not fit the call.
    #[error("`{argument}`: expected {expected}, found {found}")]
    Argument {
        /// The argument's name as it stands in the signature or in a struct that is passed, e.g. `x`
        /// or `running_mean`; or that of the layer's setting which does not go with the call, e.g.
        /// `track_running_stats`.
        argument: String,
        /// What would have been accepted.
        expected: String,
        /// What was passed.
        found: String,
    },
    /// There was no memory left: on the device, or on the host.
    #[error("{what}: {reason}")]
    OutOfMemory {
        /// What it was for.
        what: String,
        /// What the system said.
        reason: String,
    },
    /// The device, or a file, failed to do its part.
    #[error("{what}: {reason}")]
    System {
        /// What was being done.
        what: String,
        /// Why it failed.
        reason: String,
    },
}

impl Error {
    /// An [`Error::Argument`].
    pub fn argument(
        argument: impl Into<String>,
        expected: impl Display,
        found: impl Display,
    ) -> Self {
        Error::Argument {
            argument: argument.into(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// The same of an argument that the caller knows by another name.
    pub(crate) fn renamed(self, name: &str) -> Self {
        match self {
            Error::Argument { expected, found, .. } => {
                Error::Argument { argument: name.into(), expected, found }
            }
            other => other,
        }
    }

    /// An [`Error::OutOfMemory`].
    pub fn out_of_memory(what: impl Into<String>, reason: impl Display) -> Self {
        Error::OutOfMemory { what: what.into(), reason: reason.to_string() }
    }

    /// An [`Error::System`].
    pub fn system(what: impl Into<String>, reason: impl Display) -> Self {
        Error::System { what: what.into(), reason: reason.to_string() }
    }
}

/// Refuses a buffer whose length is not `expected`.
pub(crate) fn check_len(argument: &str, expected: usize, found: usize) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::argument(argument, format_args!("{expected} elements"), format_args!("{found}")))
}
