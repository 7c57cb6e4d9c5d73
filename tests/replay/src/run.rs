//! Running a case through the library.

use crate::case::{Case, Malformed};
use crate::meta::{Kind, Mode};
use crate::score::Output;
use crate::subject::{Input, LayerOf, Statistics, Subject};
use crate::tensor::{channel_output, lay_out, output};
use crate::{onnx, rule, sync};
use half::{bf16, f16};
use ndarray::{Array1, ArrayD, IxDyn};
use std::collections::BTreeMap;
use warpnorm::{BatchNormConfig, DType, Element, Gradients, Layout, Param, State};

/// What a case's call gave, by the names of the case format.
#[derive(Debug, Clone, Default)]
pub struct Ran {
    /// `y`, `dx`, ...
    pub outputs: BTreeMap<String, Output>,
    /// The count of batches afterwards, if the layer keeps one.
    pub num_batches_tracked: Option<u64>,
}

/// Why a case gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The folder is at fault.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The library refused the call.
    #[error(transparent)]
    Refused(#[from] warpnorm::Error),
}

/// Runs a case of any kind but [`Kind::Error`], whose refusal [`crate::refusal`] judges.
///
/// # Errors
/// The folder is malformed, or the library refuses the call.
pub fn run<S: Subject>(case: &Case, subject: &S) -> Result<Ran, RunError> {
    match case.dtype {
        DType::F32 => typed::<S, f32>(case, subject),
        DType::F64 => typed::<S, f64>(case, subject),
        DType::F16 => typed::<S, f16>(case, subject),
        DType::Bf16 => typed::<S, bf16>(case, subject),
    }
}

fn typed<S: Subject, E: Element>(case: &Case, subject: &S) -> Result<Ran, RunError> {
    match case.kind {
        Kind::Onnx => onnx::run::<S, E>(case, subject),
        Kind::Sequence => sequence::<S, E>(case, subject),
        Kind::Sync => sync::run::<S, E>(case, subject),
        Kind::Single | Kind::Error => {
            let tensors = Tensors::<E>::read(case, subject.layout())?;
            let mut bn = layer(case, subject, tensors.channels()?)?;
            Ok(call(case, subject, &mut bn, &tensors)?)
        }
    }
}

/// The tensors of a call.
#[derive(Debug, Clone)]
pub struct Tensors<E> {
    /// The input.
    pub x: ArrayD<E>,
    /// Added before the activation.
    pub residual: Option<ArrayD<E>>,
    /// The gradient of the output, where there is a backward.
    pub dy: Option<ArrayD<E>>,
}

impl<E: Element> Tensors<E> {
    /// What goes into forward.
    pub fn input(&self) -> Input<'_, E> {
        Input { x: &self.x, residual: self.residual.as_deref() }
    }

    /// `x`, `residual` and `dy` of a case.
    ///
    /// # Errors
    /// A file is missing or cannot be read, or `x` is not of the shape in `meta.json`.
    pub fn read(case: &Case, layout: Layout) -> Result<Self, Malformed> {
        let x = case.require_input("x")?;
        if let Some(shape) = case.meta.shape.as_deref().filter(|&shape| shape != x.shape()) {
            let found = x.shape();
            return Err(Malformed(format!("x.npy: meta.shape is {shape:?}, found {found:?}")));
        }
        let has_residual = case.meta.residual.unwrap_or_else(|| case.has_input("residual"));
        let residual = has_residual.then(|| case.require_input("residual")).transpose()?;
        let dy = case.input("dy")?;
        Ok(Tensors {
            x: lay_out(&x, layout),
            residual: residual.map(|residual| lay_out(&residual, layout)),
            dy: dy.map(|dy| lay_out(&dy, layout)),
        })
    }

    /// Extent of axis 1.
    ///
    /// # Errors
    /// There is none.
    pub fn channels(&self) -> Result<usize, Malformed> {
        channels(&self.x, "x")
    }
}

/// Extent of axis 1 of `values`, which were read from `name`.
///
/// # Errors
/// There is none.
pub fn channels<T>(values: &ArrayD<T>, name: &str) -> Result<usize, Malformed> {
    let shape = values.shape();
    let missing = || Malformed(format!("{name}.npy: shape {shape:?} has no channels"));
    shape.get(1).copied().ok_or_else(missing)
}

/// The layer that a case describes, with its parameters and running statistics; what the case
/// does not give stays at the layer's defaults.
///
/// # Errors
/// A file cannot be read, or the library refuses the configuration or a parameter.
pub fn layer<S: Subject, P: Param>(
    case: &Case,
    subject: &S,
    channels: usize,
) -> Result<LayerOf<S, P>, RunError> {
    let mut bn: LayerOf<S, P> = config(case, channels)?.build(subject.backend().clone())?;
    let mut state = bn.state()?;
    set(&mut state.weight, case, "weight")?;
    set(&mut state.bias, case, "bias")?;
    if case.kind != Kind::Sequence {
        set(&mut state.running_mean, case, "running_mean_in")?;
        set(&mut state.running_var, case, "running_var_in")?;
        if let (Some(count), Some(given)) =
            (&mut state.num_batches_tracked, case.meta.num_batches_tracked_in)
        {
            *count = given;
        }
    }
    bn.load_state(&state)?;
    Ok(bn)
}

fn config(case: &Case, channels: usize) -> Result<BatchNormConfig, Malformed> {
    let meta = &case.meta;
    // A layer without running statistics is what evaluates with the batch's own.
    let tracks = match trains(case) {
        true => meta.tracks(),
        false => !meta.uses_batch_stats(),
    };
    Ok(BatchNormConfig::new(channels)
        .eps(meta.eps.unwrap_or(1e-5))
        .momentum(meta.momentum)
        .affine(meta.affine.unwrap_or(true))
        .track_running_stats(tracks)
        .activation(meta.activation().map_err(Malformed)?))
}

/// Replaces what the layer has by the file's values, if there is a file.
///
/// # Errors
/// The file cannot be read.
pub fn set<P: Param>(entry: &mut Option<Vec<P>>, case: &Case, file: &str) -> Result<(), Malformed> {
    if entry.is_some()
        && let Some(values) = case.array(file)?
    {
        *entry = Some(values.iter().map(|&value| P::from_f64(value)).collect());
    }
    Ok(())
}

/// Whether the call is a training one, which advances running statistics.
pub fn trains(case: &Case) -> bool {
    case.meta.mode != Some(Mode::Eval) && case.meta.uses_batch_stats()
}

/// Forward, and backward where there is a `dy`.
///
/// # Errors
/// The library refuses the call.
pub fn call<S: Subject, E: Element>(
    case: &Case,
    subject: &S,
    bn: &mut LayerOf<S, E::Param>,
    tensors: &Tensors<E>,
) -> Result<Ran, warpnorm::Error> {
    let mut ran = Ran::default();
    if trains(case) {
        training_call(subject, bn, tensors, &mut ran)?;
    } else {
        evaluation_call(subject, bn, tensors, &mut ran)?;
    }
    record_running(&mut ran, &bn.state()?, "_out");
    Ok(ran)
}

fn training_call<S: Subject, E: Element>(
    subject: &S,
    bn: &mut LayerOf<S, E::Param>,
    tensors: &Tensors<E>,
    ran: &mut Ran,
) -> Result<(), warpnorm::Error> {
    let (y, saved) = subject.forward_train(bn, tensors.input())?;
    ran.outputs.insert("y".to_owned(), output(&y));
    record_saved(ran, &Statistics::download(subject.backend(), &saved)?);
    if let Some(dy) = &tensors.dy {
        record_gradients(ran, subject.backward(bn, tensors.input(), dy, &saved)?);
    }
    Ok(())
}

fn evaluation_call<S: Subject, E: Element>(
    subject: &S,
    bn: &mut LayerOf<S, E::Param>,
    tensors: &Tensors<E>,
    ran: &mut Ran,
) -> Result<(), warpnorm::Error> {
    let y = subject.forward_eval(bn, tensors.input())?;
    ran.outputs.insert("y".to_owned(), output(&y));
    if bn.state()?.running_mean.is_none() {
        // Evaluation saves nothing; training on the same batch finds the same statistics, and
        // this layer has none of its own to advance.
        let (_, saved) = subject.forward_train(bn, tensors.input())?;
        record_saved(ran, &Statistics::download(subject.backend(), &saved)?);
    }
    if let Some(dy) = &tensors.dy {
        record_gradients(ran, subject.backward_eval(bn, tensors.input(), dy)?);
    }
    Ok(())
}

/// Training forwards one after another, then an evaluation with what they left.
fn sequence<S: Subject, E: Element>(case: &Case, subject: &S) -> Result<Ran, RunError> {
    let first = case.require_input("x_step0")?;
    let mut bn = layer::<S, E::Param>(case, subject, channels(&first, "x_step0")?)?;
    let mut ran = Ran::default();
    for step in 0..rule::steps(case) {
        let x = case.require_input(&format!("x_step{step}"))?;
        let x = lay_out::<E>(&x, subject.layout());
        let (y, _) = subject.forward_train(&mut bn, Input { x: &x, residual: None })?;
        ran.outputs.insert(format!("y_step{step}"), output(&y));
        record_running(&mut ran, &bn.state()?, &format!("_step{step}"));
    }
    if let Some(x) = case.input("x_eval")? {
        let x = lay_out::<E>(&x, subject.layout());
        let y = subject.forward_eval(&bn, Input { x: &x, residual: None })?;
        ran.outputs.insert("y_eval".to_owned(), output(&y));
    }
    Ok(ran)
}

/// `save_mean` is what backward uses: the sum of its two parts.
pub fn record_saved<P: Param>(ran: &mut Ran, statistics: &Statistics<P>) {
    let parts = statistics.mean_hi.iter().zip(&statistics.mean_lo);
    let mean: Vec<f64> = parts.map(|(hi, lo)| hi.to_f64() + lo.to_f64()).collect();
    let mean = Output { values: Array1::from(mean).into_dyn(), dtype: P::DTYPE };
    ran.outputs.insert("save_mean".to_owned(), mean);
    let invstd = channel_output(statistics.invstd.iter().copied());
    ran.outputs.insert("save_invstd".to_owned(), invstd);
}

fn record_gradients<E: Element>(ran: &mut Ran, gradients: Gradients<E, IxDyn>) {
    ran.outputs.insert("dx".to_owned(), output(&gradients.dx));
    if let Some(dresidual) = &gradients.dresidual {
        ran.outputs.insert("dresidual".to_owned(), output(dresidual));
    }
    for (name, values) in [("dweight", gradients.dweight), ("dbias", gradients.dbias)] {
        if let Some(values) = values {
            ran.outputs.insert(name.to_owned(), channel_output(values));
        }
    }
}

/// The running statistics of `state`, named with `suffix`.
pub fn record_running<P: Param>(ran: &mut Ran, state: &State<P>, suffix: &str) {
    let statistics = [("running_mean", &state.running_mean), ("running_var", &state.running_var)];
    for (name, values) in statistics {
        if let Some(values) = values {
            ran.outputs.insert(format!("{name}{suffix}"), channel_output(values.iter().copied()));
        }
    }
    ran.num_batches_tracked = state.num_batches_tracked.map(|batches| batches as u64);
}
