//! Batch normalization of matrices: a row is an image, a column a unit and so a channel.

use crate::ops::Matrix;
use warpnorm::{
    Backend, BatchNorm, BatchNormConfig, Element, GradientsMut, Layout, Param, Problem, Result,
    Saved,
};

/// What backward needs of forward.
pub struct Trace<B: Backend, E: Element> {
    x: Matrix<B, E>,
    saved: Saved<B, E::Param>,
}

/// What backward gives.
pub struct Gradients<B: Backend, E: Element> {
    pub dx: Matrix<B, E>,
    pub dweight: B::Buffer<E::Param>,
    pub dbias: B::Buffer<E::Param>,
}

/// Normalized by the statistics of these very rows; the running ones advance.
pub fn forward_train<B: Backend, E: Element>(
    norm: &mut BatchNorm<B, E::Param>,
    x: Matrix<B, E>,
) -> Result<(Matrix<B, E>, Trace<B, E>)> {
    let problem = problem(norm, &x)?;
    let backend = norm.backend().clone();
    let mut y = Matrix::zeros(&backend, x.rows, x.columns)?;
    let mut saved = Saved::new(&backend, &problem)?;
    let mut workspace = backend.workspace(&problem)?;
    let (from, to) = (B::slice(&x.values), B::slice_mut(&mut y.values));
    norm.forward_train_into::<E>(&problem, from, None, to, &mut saved, &mut workspace)?;
    Ok((y, Trace { x, saved }))
}

pub fn backward<B: Backend, E: Element>(
    norm: &BatchNorm<B, E::Param>,
    dy: &Matrix<B, E>,
    trace: &Trace<B, E>,
) -> Result<Gradients<B, E>> {
    let Trace { x, saved } = trace;
    let problem = problem(norm, x)?;
    let backend = norm.backend();
    let mut workspace = backend.workspace(&problem)?;
    let mut gradients = Gradients {
        dx: Matrix::zeros(backend, x.rows, x.columns)?,
        dweight: backend.zeros(x.columns)?,
        dbias: backend.zeros(x.columns)?,
    };
    let written = GradientsMut {
        dx: B::slice_mut(&mut gradients.dx.values),
        dresidual: None,
        dweight: Some(B::slice_mut(&mut gradients.dweight)),
        dbias: Some(B::slice_mut(&mut gradients.dbias)),
    };
    let (x, dy) = (B::slice(&x.values), B::slice(&dy.values));
    norm.backward_into::<E>(&problem, x, None, dy, saved, written, &mut workspace)?;
    Ok(gradients)
}

/// Normalized by the running statistics.
pub fn forward_eval<B: Backend, E: Element>(
    norm: &BatchNorm<B, E::Param>,
    x: &Matrix<B, E>,
) -> Result<Matrix<B, E>> {
    let problem = problem(norm, x)?;
    let backend = norm.backend();
    let mut workspace = backend.workspace(&problem)?;
    let mut y = Matrix::zeros(backend, x.rows, x.columns)?;
    let (from, to) = (B::slice(&x.values), B::slice_mut(&mut y.values));
    norm.forward_eval_into::<E>(&problem, from, None, to, &mut workspace)?;
    Ok(y)
}

fn problem<B: Backend, E: Element>(
    norm: &BatchNorm<B, E::Param>,
    x: &Matrix<B, E>,
) -> Result<Problem> {
    norm.problem::<E>(&[x.rows, x.columns], Layout::ChannelsLast, false)
}

/// A layer in the same state, set up in another way.
pub fn copy<B: Backend, P: Param>(
    norm: &BatchNorm<B, P>,
    config: BatchNormConfig,
) -> Result<BatchNorm<B, P>> {
    let mut copy = config.build(norm.backend().clone())?;
    copy.load_state(&norm.state()?)?;
    Ok(copy)
}
