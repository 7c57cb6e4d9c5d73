//! [`Arrays`]: the CPU, by the calls that take `ndarray` arrays as they are.

use crate::subject::{Input, Statistics, Subject, Synchronized, Tensor, Trained};
use ndarray::{ArrayD, IxDyn};
use std::mem;
use warpnorm::{BatchNorm, Cpu, Element, Gradients, Layout, Result, Saved, SyncBatchNorm};

/// The CPU backend's array calls, which read shapes and layout off the arrays' views.
#[derive(Debug, Clone)]
pub struct Arrays {
    backend: Cpu,
    layout: Layout,
}

impl Arrays {
    /// On all cores.
    pub fn new(layout: Layout) -> Self {
        Arrays { backend: Cpu::new(), layout }
    }
}

impl Subject for Arrays {
    type Backend = Cpu;

    fn backend(&self) -> &Cpu {
        &self.backend
    }

    fn layout(&self) -> Layout {
        self.layout
    }

    fn forward_train<E: Element>(
        &self,
        bn: &mut BatchNorm<Cpu, E::Param>,
        Input { x, residual }: Input<'_, E>,
    ) -> Result<Trained<Cpu, E>> {
        match residual {
            Some(residual) => bn.forward_train_add(x, residual),
            None => bn.forward_train(x),
        }
    }

    fn backward<E: Element>(
        &self,
        bn: &BatchNorm<Cpu, E::Param>,
        Input { x, residual }: Input<'_, E>,
        dy: &Tensor<E>,
        saved: &Saved<Cpu, E::Param>,
    ) -> Result<Gradients<E, IxDyn>> {
        match residual {
            Some(residual) => bn.backward_add(x, Some(residual), dy, saved),
            None => bn.backward(x, dy, saved),
        }
    }

    fn forward_eval<E: Element>(
        &self,
        bn: &BatchNorm<Cpu, E::Param>,
        Input { x, residual }: Input<'_, E>,
    ) -> Result<ArrayD<E>> {
        match residual {
            Some(residual) => bn.forward_eval_add(x, residual),
            None => bn.forward_eval(x),
        }
    }

    fn backward_eval<E: Element>(
        &self,
        bn: &BatchNorm<Cpu, E::Param>,
        Input { x, residual }: Input<'_, E>,
        dy: &Tensor<E>,
    ) -> Result<Gradients<E, IxDyn>> {
        match residual {
            Some(residual) => bn.backward_eval_add(x, residual, dy),
            None => bn.backward_eval(x, dy),
        }
    }

    fn synchronized<E: Element>(
        &self,
        bn: &mut BatchNorm<Cpu, E::Param>,
        parts: &[Input<'_, E>],
        dy: Option<&[&Tensor<E>]>,
    ) -> Result<Synchronized<E>> {
        // It owns its layer: lend it ours.
        let stand_in = bn.config().build(self.backend.clone())?;
        let mut sync = SyncBatchNorm::new(mem::replace(bn, stand_in));
        let outcome = synchronized(&mut sync, parts, dy);
        *bn = sync.into_layer();
        outcome
    }
}

fn synchronized<E: Element>(
    bn: &mut SyncBatchNorm<E::Param>,
    parts: &[Input<'_, E>],
    dy: Option<&[&Tensor<E>]>,
) -> Result<Synchronized<E>> {
    let x: Vec<&Tensor<E>> = parts.iter().map(|part| part.x).collect();
    // A part without a residual leaves them one too few, which the library refuses.
    let residual: Vec<&Tensor<E>> = parts.iter().filter_map(|part| part.residual).collect();
    let residual = (!residual.is_empty()).then_some(residual);
    let (y, saved) = match &residual {
        Some(residual) => bn.forward_train_add(&x, residual)?,
        None => bn.forward_train(&x)?,
    };
    let gradients = dy.map(|dy| match &residual {
        Some(residual) => bn.backward_add(&x, Some(residual), dy, &saved),
        None => bn.backward(&x, dy, &saved),
    });
    // There is a first one: forward refuses to run without parts.
    let statistics = Statistics::download(bn.layer().backend(), &saved.parts()[0])?;
    Ok(Synchronized { y, statistics, gradients: gradients.transpose()? })
}
