//! Cases that must be refused: the error names the reason, and nothing has changed.

use crate::case::{Case, Malformed};
use crate::report::Verdict;
use crate::run::{RunError, Tensors, call, layer};
use crate::subject::{LayerOf, Subject};
use crate::sync;
use crate::tensor::lay_out;
use half::{bf16, f16};
use ndarray::ArrayD;
use warpnorm::{DType, Element, Error, Layout};

/// How the refusal came out.
///
/// # Errors
/// The folder is malformed.
pub fn judge<S: Subject>(case: &Case, subject: &S) -> Result<(Verdict, String), Malformed> {
    let outcome = match case.dtype {
        DType::F32 => typed::<S, f32>(case, subject),
        DType::F64 => typed::<S, f64>(case, subject),
        DType::F16 => typed::<S, f16>(case, subject),
        DType::Bf16 => typed::<S, bf16>(case, subject),
    };
    match outcome {
        Ok(outcome) => Ok(outcome),
        // Before the call there was a layer to build, which may be what is refused.
        Err(RunError::Refused(error)) => Ok(refused(&error, None)),
        Err(RunError::Malformed(malformed)) => Err(malformed),
    }
}

fn typed<S: Subject, E: Element>(case: &Case, subject: &S) -> Result<(Verdict, String), RunError> {
    let tensors = tensors::<E>(case, subject.layout())?;
    let channels = channels(case, &tensors)?;
    let run = |tensors: &Tensors<E>| -> Result<_, RunError> {
        let mut bn: LayerOf<S, E::Param> = layer(case, subject, channels)?;
        let before = bn.state()?;
        let outcome = if case.meta.split.is_some() {
            let split = sync::split(case, tensors)?;
            sync::call(case, &split, subject, &mut bn, tensors)
        } else {
            call(case, subject, &mut bn, tensors)
        };
        Ok((outcome, before, bn.state()?))
    };
    let (outcome, before, after) = run(&tensors)?;
    let Err(error) = outcome else {
        return Ok((Verdict::Fail, "the call was not refused".to_owned()));
    };
    // If it is backward that is refused, the forward before it has rightly moved the averages.
    let moved_by_forward = || -> Result<bool, RunError> {
        let (forward, _, moved) = run(&Tensors { dy: None, ..tensors.clone() })?;
        Ok(tensors.dy.is_some() && forward.is_ok() && after == moved)
    };
    if before != after && !moved_by_forward()? {
        let details = format!("the refused call changed the layer's state: {error}");
        return Ok((Verdict::Fail, details));
    }
    Ok(refused(&error, reason(case, &tensors)))
}

/// The case's tensors; an `x` of ones where only its shape is given.
fn tensors<E: Element>(case: &Case, layout: Layout) -> Result<Tensors<E>, Malformed> {
    match &case.meta.shape {
        Some(shape) if !case.has_input("x") => Ok(Tensors {
            x: lay_out(&ArrayD::ones(shape.as_slice()), layout),
            residual: case.input("residual")?.map(|residual| lay_out(&residual, layout)),
            dy: case.input("dy")?.map(|dy| lay_out(&dy, layout)),
        }),
        _ => Tensors::read(case, layout),
    }
}

/// What the layer is made for: its parameters decide, since `x` may be what does not fit.
fn channels<E: Element>(case: &Case, tensors: &Tensors<E>) -> Result<usize, Malformed> {
    for name in ["weight", "bias", "running_mean_in", "running_var_in"] {
        if let Some(values) = case.array(name)? {
            return Ok(values.len());
        }
    }
    Ok(tensors.channels().unwrap_or(1))
}

/// What the message must say, where it is known what is wrong with the case.
fn reason<E: Element>(case: &Case, tensors: &Tensors<E>) -> Option<&'static str> {
    let &[batch, _, ref spatial @ ..] = tensors.x.shape() else {
        return None;
    };
    let values_per_channel = batch * spatial.iter().product::<usize>();
    let too_few = case.meta.uses_batch_stats() && values_per_channel < 2;
    too_few.then_some("value per channel")
}

fn refused(error: &Error, reason: Option<&str>) -> (Verdict, String) {
    let message = error.to_string();
    if !matches!(error, Error::Argument { .. }) {
        return (Verdict::Fail, format!("failed instead of being refused: {message}"));
    }
    match reason {
        Some(reason) if !message.contains(reason) => {
            (Verdict::Fail, format!("the error does not name the reason ({reason}): {message}"))
        }
        _ => (Verdict::Pass, format!("refused: {message}")),
    }
}
