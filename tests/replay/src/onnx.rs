//! ONNX's cases: its names, and its conventions turned into ours at this edge only.

use crate::case::{Case, Malformed};
use crate::meta::Mode;
use crate::run::{Ran, RunError, channels};
use crate::subject::{Input, LayerOf, Subject};
use crate::tensor::{channel_output, lay_out, output};
use warpnorm::{BatchNormConfig, Element, Param, State};

/// ONNX's default: nine tenths of the old value are kept.
const DEFAULT_MOMENTUM: f64 = 0.9;

/// Runs a `BatchNormalization` node.
///
/// # Errors
/// The folder is malformed, or the library refuses the call.
pub fn run<S: Subject, E: Element>(case: &Case, subject: &S) -> Result<Ran, RunError> {
    let x = case.require_input("x")?;
    let channels = channels(&x, "x")?;
    let x = lay_out::<E>(&x, subject.layout());
    let config = BatchNormConfig::new(channels)
        .eps(case.meta.eps.unwrap_or(1e-5))
        .momentum(Some(1.0 - kept(case)));
    let mut bn: LayerOf<S, E::Param> = config.build(subject.backend().clone())?;
    let running_var = required(case, "var")?;
    bn.load_state(&State {
        weight: Some(required(case, "scale")?),
        bias: Some(required(case, "bias")?),
        running_mean: Some(required(case, "mean")?),
        running_var: Some(running_var.clone()),
        num_batches_tracked: None,
    })?;
    let (mut ran, input) = (Ran::default(), Input { x: &x, residual: None });
    if !is_training(case) {
        ran.outputs.insert("y".to_owned(), output(&subject.forward_eval(&bn, input)?));
        return Ok(ran);
    }
    let (y, _) = subject.forward_train(&mut bn, input)?;
    ran.outputs.insert("y".to_owned(), output(&y));
    let values_per_channel = x.len() / channels;
    let state = bn.state()?;
    let mean = state.running_mean.unwrap_or_default();
    let var = state.running_var.unwrap_or_default();
    let biased = var.iter().zip(&running_var).map(|(updated, old)| {
        let kept = kept(case) * old.to_f64();
        E::Param::from_f64(biased(updated.to_f64(), kept, values_per_channel))
    });
    ran.outputs.insert("running_var".to_owned(), channel_output(biased));
    ran.outputs.insert("running_mean".to_owned(), channel_output(mean));
    Ok(ran)
}

/// The weight of the old value.
fn kept(case: &Case) -> f64 {
    case.meta.momentum_onnx.unwrap_or(DEFAULT_MOMENTUM)
}

fn is_training(case: &Case) -> bool {
    let given = case.meta.training_mode.map(|training| training != 0);
    let given = given.or(case.meta.mode.map(|mode| mode == Mode::Train));
    given.unwrap_or_else(|| case.has("running_mean"))
}

/// The running variance had the layer averaged biased estimates: of what it added to the part
/// `kept`, `(m - 1) / m` of the unbiased estimate.
fn biased(updated: f64, kept: f64, values_per_channel: usize) -> f64 {
    let m = values_per_channel as f64;
    kept + (updated - kept) * (m - 1.0) / m
}

fn required<P: Param>(case: &Case, name: &str) -> Result<Vec<P>, Malformed> {
    let values = case.require(name)?;
    Ok(values.iter().map(|&value| P::from_f64(value)).collect())
}
