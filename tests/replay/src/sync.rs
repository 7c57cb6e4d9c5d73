//! Cases over several ranks, each with some rows of the batch.

use crate::case::{Case, Malformed};
use crate::run::{Ran, RunError, Tensors, layer, record_running, record_saved};
use crate::subject::{Input, LayerOf, Subject, Tensor};
use crate::tensor::{channel_output, concatenated};
use ndarray::{ArrayD, ArrayViewD, Axis, IxDyn};
use warpnorm::{Element, Error, Gradients};

/// Runs a case of kind `sync`.
///
/// # Errors
/// The folder is malformed, or the library refuses the call.
pub fn run<S: Subject, E: Element>(case: &Case, subject: &S) -> Result<Ran, RunError> {
    let tensors = Tensors::<E>::read(case, subject.layout())?;
    let split = split(case, &tensors)?;
    let mut bn = layer(case, subject, tensors.channels()?)?;
    Ok(call(case, &split, subject, &mut bn, &tensors)?)
}

/// The rows of each rank, which must add up to those of all tensors.
///
/// # Errors
/// They do not, or are not given.
pub fn split<E: Element>(case: &Case, tensors: &Tensors<E>) -> Result<Vec<usize>, Malformed> {
    let missing = || Malformed::new("meta.split: the rows of each rank are missing");
    let split = case.meta.split.clone().ok_or_else(missing)?;
    let total = split.iter().try_fold(0usize, |total, &rows| total.checked_add(rows));
    for (name, tensor) in [
        ("x", Some(&tensors.x)),
        ("residual", tensors.residual.as_ref()),
        ("dy", tensors.dy.as_ref()),
    ] {
        let rows = tensor.map(|tensor| tensor.shape().first().copied());
        if rows.is_some_and(|rows| rows != total) {
            return Err(Malformed(format!(
                "meta.split: {split:?} does not add up to the rows of {name}"
            )));
        }
    }
    Ok(split)
}

/// Forward, and backward where there is a `dy`; `split` fits the tensors.
///
/// # Errors
/// The library refuses the call.
pub fn call<S: Subject, E: Element>(
    case: &Case,
    split: &[usize],
    subject: &S,
    bn: &mut LayerOf<S, E::Param>,
    Tensors { x, residual, dy }: &Tensors<E>,
) -> Result<Ran, Error> {
    let x = parts(x, split);
    let residual = residual.as_ref().map(|residual| parts(residual, split));
    let dy = dy.as_ref().map(|dy| parts(dy, split));
    let input = |rank: usize| Input {
        x: &*x[rank],
        residual: residual.as_ref().map(|residual| &*residual[rank]),
    };
    let inputs: Vec<Input<'_, E>> = (0..x.len()).map(input).collect();
    let dy: Option<Vec<&Tensor<E>>> = dy.as_ref().map(|dy| dy.iter().map(|dy| &**dy).collect());
    let mut ran = Ran::default();
    let (y, gradients) = if case.meta.uses_batch_stats() {
        let together = subject.synchronized(bn, &inputs, dy.as_deref())?;
        record_saved(&mut ran, &together.statistics);
        (together.y, together.gradients)
    } else {
        each_alone(subject, bn, &inputs, dy.as_deref())?
    };
    ran.outputs.insert("y".to_owned(), concatenated(&y));
    if let Some(gradients) = gradients {
        record_gradients(&mut ran, gradients);
    }
    record_running(&mut ran, &bn.state()?, "_out");
    Ok(ran)
}

/// A `y` and the gradients of each rank.
type Parts<E> = (Vec<ArrayD<E>>, Option<Vec<Gradients<E, IxDyn>>>);

/// With running statistics, which leave nothing to synchronize.
fn each_alone<S: Subject, E: Element>(
    subject: &S,
    bn: &LayerOf<S, E::Param>,
    inputs: &[Input<'_, E>],
    dy: Option<&[&Tensor<E>]>,
) -> Result<Parts<E>, Error> {
    let y = inputs.iter().map(|&input| subject.forward_eval(bn, input));
    let y = y.collect::<Result<_, _>>()?;
    let Some(dy) = dy else {
        return Ok((y, None));
    };
    let ranks = inputs.iter().zip(dy);
    let gradients = ranks.map(|(&input, dy)| subject.backward_eval(bn, input, dy));
    Ok((y, Some(gradients.collect::<Result<_, _>>()?)))
}

/// Each rank's own sums, and what adding them up gives.
fn record_gradients<E: Element>(ran: &mut Ran, gradients: Vec<Gradients<E, IxDyn>>) {
    let dx: Vec<ArrayD<E>> = gradients.iter().map(|rank| rank.dx.clone()).collect();
    ran.outputs.insert("dx".to_owned(), concatenated(&dx));
    let dresidual = gradients.iter().map(|rank| rank.dresidual.clone());
    if let Some(dresidual) = dresidual.collect::<Option<Vec<_>>>() {
        ran.outputs.insert("dresidual".to_owned(), concatenated(&dresidual));
    }
    let dweight = gradients.iter().map(|rank| rank.dweight.as_ref()).collect::<Option<Vec<_>>>();
    let dbias = gradients.iter().map(|rank| rank.dbias.as_ref()).collect::<Option<Vec<_>>>();
    for (name, ranks) in [("dweight", dweight), ("dbias", dbias)] {
        let Some(ranks) = ranks else { continue };
        let channels = ranks.first().map_or(0, |sums| sums.len());
        let total = |channel| ranks.iter().map(|sums| sums[channel].to_f64()).sum();
        let totals = (0..channels).map(|channel| E::Param::from_f64(total(channel)));
        ran.outputs.insert(name.to_owned(), channel_output(totals));
        for (rank, sums) in ranks.iter().enumerate() {
            let own = channel_output(sums.iter().copied());
            ran.outputs.insert(format!("{name}_rank{rank}"), own);
        }
    }
}

/// Each rank's rows, as views of the whole.
fn parts<'a, E>(tensor: &'a ArrayD<E>, split: &[usize]) -> Vec<ArrayViewD<'a, E>> {
    let mut start = 0;
    let rows = split.iter().map(|&rows| {
        let part = tensor.slice_axis(Axis(0), (start..start + rows).into());
        start += rows;
        part
    });
    rows.collect()
}
