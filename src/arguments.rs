//! What every backend refuses of a call's arguments, in the same words.

use crate::backend::Norm;
use crate::config::{check_eps, check_momentum};
use crate::error::{Error, Result};
use crate::problem::{Operand, Problem};

pub(crate) fn check_norm(norm: &Norm) -> Result<()> {
    check_eps(norm.eps)?;
    check_momentum(norm.momentum)
}

/// A flat tensor: as long as it reaches, or part of a larger array whose samples lie apart.
pub(crate) fn check_span(problem: &Problem, operand: Operand, len: usize) -> Result<()> {
    let (span, sample) = (problem.span(operand), problem.channels() * problem.spatial());
    if len == span || (len > span && problem.batch_stride(operand) != sample) {
        return Ok(());
    }
    Err(Error::argument(operand.name(), format_args!("{span} elements ({problem})"), len))
}

/// The residual of forward: there exactly if the epilogue has one.
pub(crate) fn check_residual(problem: &Problem, is_there: bool) -> Result<()> {
    let (expected, found) = match (problem.epilogue().residual, is_there) {
        (true, false) => ("a tensor (the epilogue has a residual)", "none"),
        (false, true) => ("none (the epilogue has no residual)", "a tensor"),
        _ => return Ok(()),
    };
    Err(Error::argument("residual", expected, found))
}

/// The residual of a backward that reads it, to know the pre-activation.
pub(crate) fn missing_residual(problem: &Problem) -> Error {
    let activation = problem.epilogue().activation;
    Error::argument(
        "residual",
        format_args!("forward's, for the derivative of {activation}"),
        "none",
    )
}

/// dresidual: only if the epilogue has a residual.
pub(crate) fn check_dresidual(problem: &Problem, is_there: bool) -> Result<()> {
    if is_there && !problem.epilogue().residual {
        return Err(Error::argument(
            "dresidual",
            "none (the epilogue has no residual)",
            "a tensor",
        ));
    }
    Ok(())
}

/// The mask of a problem that has one.
pub(crate) fn missing_mask(argument: &str, problem: &Problem) -> Error {
    Error::argument(argument, format_args!("{} bytes", problem.mask_len()), "none")
}

/// No mask, or an empty one, for a problem that has none.
pub(crate) fn check_no_mask(argument: &str, found: usize) -> Result<()> {
    if found == 0 {
        return Ok(());
    }
    Err(Error::argument(argument, "none (the problem has no mask)", format_args!("{found} bytes")))
}

/// How many ranks have gathered `found` values, `len` each.
pub(crate) fn rank_count(argument: &str, len: usize, found: usize) -> Result<usize> {
    if len == 0 {
        return Err(Error::argument("channels", "at least 1", 0));
    }
    if found == 0 || !found.is_multiple_of(len) {
        let expected = format_args!("a multiple of {len} elements, one share per rank");
        return Err(Error::argument(argument, expected, found));
    }
    Ok(found / len)
}
