//! [`Buffers`]: any backend, by the calls on flat buffers.

use crate::split_form;
use crate::subject::{Input, Subject, Synchronized, Tensor, Trained};
use crate::tensor::{flat, from_flat};
use ndarray::{Array1, ArrayD, IxDyn};
use warpnorm::{
    Backend, BatchNorm, Element, Error, Gradients, GradientsMut, Layout, Operand, Problem, Result,
    Saved,
};

/// A backend's calls on flat buffers: tensors go up in the layout's memory order before a call,
/// and come back after it.
#[derive(Debug, Clone)]
pub struct Buffers<B> {
    backend: B,
    layout: Layout,
}

impl<B: Backend> Buffers<B> {
    /// On `backend`.
    pub fn new(backend: B, layout: Layout) -> Self {
        Buffers { backend, layout }
    }

    /// A tensor that a call has written.
    pub(crate) fn download<E: Element>(
        &self,
        buffer: &B::Buffer<E>,
        shape: &[usize],
    ) -> Result<ArrayD<E>> {
        Ok(from_flat(self.backend.download(buffer)?, shape, self.layout))
    }

    /// Room for `len` elements, NaN until they are written.
    pub(crate) fn unwritten<E: Element>(&self, len: usize) -> Result<B::Buffer<E>> {
        self.backend.upload(&vec![E::from_f64(f64::NAN); len])
    }

    /// With the statistics of the batch; the running ones stay.
    fn forward_batch<E: Element>(
        &self,
        bn: &BatchNorm<B, E::Param>,
        input: Input<'_, E>,
    ) -> Result<Trained<B, E>> {
        let Call { problem, x, residual, mut workspace, .. } = Call::new(self, bn, input, None)?;
        let mut saved = Saved::new(&self.backend, &problem)?;
        let mut y = self.unwritten::<E>(input.x.len())?;
        bn.forward_batch_into::<E>(
            &problem,
            B::slice(&x),
            residual.as_ref().map(B::slice),
            B::slice_mut(&mut y),
            &mut saved,
            &mut workspace,
        )?;
        Ok((self.download(&y, input.x.shape())?, saved))
    }
}

impl<B: Backend> Subject for Buffers<B> {
    type Backend = B;

    fn backend(&self) -> &B {
        &self.backend
    }

    fn layout(&self) -> Layout {
        self.layout
    }

    fn forward_train<E: Element>(
        &self,
        bn: &mut BatchNorm<B, E::Param>,
        input: Input<'_, E>,
    ) -> Result<Trained<B, E>> {
        let Call { problem, x, residual, mut workspace, .. } = Call::new(self, bn, input, None)?;
        let mut saved = Saved::new(&self.backend, &problem)?;
        let mut y = self.unwritten::<E>(input.x.len())?;
        bn.forward_train_into::<E>(
            &problem,
            B::slice(&x),
            residual.as_ref().map(B::slice),
            B::slice_mut(&mut y),
            &mut saved,
            &mut workspace,
        )?;
        Ok((self.download(&y, input.x.shape())?, saved))
    }

    fn backward<E: Element>(
        &self,
        bn: &BatchNorm<B, E::Param>,
        input: Input<'_, E>,
        dy: &Tensor<E>,
        saved: &Saved<B, E::Param>,
    ) -> Result<Gradients<E, IxDyn>> {
        let mut call = Call::new(self, bn, input, Some(dy))?;
        let mut gradients = GradientBuffers::new(self, bn, input)?;
        bn.backward_into::<E>(
            &call.problem,
            B::slice(&call.x),
            call.residual.as_ref().map(B::slice),
            B::slice(call.dy.as_ref().expect("it was given")),
            saved,
            gradients.as_mut(),
            &mut call.workspace,
        )?;
        gradients.download(self, input.x.shape())
    }

    fn forward_eval<E: Element>(
        &self,
        bn: &BatchNorm<B, E::Param>,
        input: Input<'_, E>,
    ) -> Result<ArrayD<E>> {
        if bn.running_mean_buffer().is_none() {
            return Ok(self.forward_batch(bn, input)?.0);
        }
        let Call { problem, x, residual, mut workspace, .. } = Call::new(self, bn, input, None)?;
        let mut y = self.unwritten::<E>(input.x.len())?;
        bn.forward_eval_into::<E>(
            &problem,
            B::slice(&x),
            residual.as_ref().map(B::slice),
            B::slice_mut(&mut y),
            &mut workspace,
        )?;
        self.download(&y, input.x.shape())
    }

    fn backward_eval<E: Element>(
        &self,
        bn: &BatchNorm<B, E::Param>,
        input: Input<'_, E>,
        dy: &Tensor<E>,
    ) -> Result<Gradients<E, IxDyn>> {
        if bn.running_mean_buffer().is_none() {
            let (_, saved) = self.forward_batch(bn, input)?;
            return self.backward(bn, input, dy, &saved);
        }
        let mut call = Call::new(self, bn, input, Some(dy))?;
        let mut gradients = GradientBuffers::new(self, bn, input)?;
        bn.backward_eval_into::<E>(
            &call.problem,
            B::slice(&call.x),
            call.residual.as_ref().map(B::slice),
            B::slice(call.dy.as_ref().expect("it was given")),
            gradients.as_mut(),
            &mut call.workspace,
        )?;
        gradients.download(self, input.x.shape())
    }

    fn synchronized<E: Element>(
        &self,
        bn: &mut BatchNorm<B, E::Param>,
        parts: &[Input<'_, E>],
        dy: Option<&[&Tensor<E>]>,
    ) -> Result<Synchronized<E>> {
        split_form::run(self, bn, parts, dy)
    }
}

/// A call's problem and inputs in the backend's memory.
pub(crate) struct Call<B: Backend, E: Element> {
    pub(crate) problem: Problem,
    pub(crate) x: B::Buffer<E>,
    pub(crate) residual: Option<B::Buffer<E>>,
    pub(crate) dy: Option<B::Buffer<E>>,
    pub(crate) workspace: B::Workspace,
}

impl<B: Backend, E: Element> Call<B, E> {
    pub(crate) fn new(
        on: &Buffers<B>,
        bn: &BatchNorm<B, E::Param>,
        Input { x, residual }: Input<'_, E>,
        dy: Option<&Tensor<E>>,
    ) -> Result<Self> {
        let problem = bn.problem::<E>(x.shape(), on.layout, residual.is_some())?;
        let upload = |operand, tensor: &Tensor<E>| {
            check_shape(operand, x, tensor)?;
            on.backend.upload(&flat(tensor, on.layout))
        };
        Ok(Call {
            problem,
            x: upload(Operand::X, x)?,
            residual: residual.map(|it| upload(Operand::Residual, it)).transpose()?,
            dy: dy.map(|it| upload(Operand::Dy, it)).transpose()?,
            workspace: on.backend.workspace(&problem)?,
        })
    }
}

/// The library sees the buffer's length, and refuses another one itself; not the shape.
fn check_shape<E>(operand: Operand, x: &Tensor<E>, tensor: &Tensor<E>) -> Result<()> {
    if tensor.shape() == x.shape() || tensor.len() != x.len() {
        return Ok(());
    }
    let expected = format!("shape {:?}, as x", x.shape());
    Err(Error::argument(operand.name(), expected, format_args!("{:?}", tensor.shape())))
}

/// Gradients in the backend's memory.
pub(crate) struct GradientBuffers<B: Backend, E: Element> {
    pub(crate) dx: B::Buffer<E>,
    pub(crate) dresidual: Option<B::Buffer<E>>,
    pub(crate) dweight: Option<B::Buffer<E::Param>>,
    pub(crate) dbias: Option<B::Buffer<E::Param>>,
}

impl<B: Backend, E: Element> GradientBuffers<B, E> {
    /// Room for all gradients that the call has.
    pub(crate) fn new(
        on: &Buffers<B>,
        bn: &BatchNorm<B, E::Param>,
        Input { x, residual }: Input<'_, E>,
    ) -> Result<Self> {
        let parameter = |_| on.unwritten::<E::Param>(bn.channels());
        Ok(GradientBuffers {
            dx: on.unwritten(x.len())?,
            dresidual: residual.map(|_| on.unwritten(x.len())).transpose()?,
            dweight: bn.weight_buffer().map(parameter).transpose()?,
            dbias: bn.bias_buffer().map(parameter).transpose()?,
        })
    }

    fn as_mut(&mut self) -> GradientsMut<'_, B, E> {
        GradientsMut {
            dx: B::slice_mut(&mut self.dx),
            dresidual: self.dresidual.as_mut().map(B::slice_mut),
            dweight: self.dweight.as_mut().map(B::slice_mut),
            dbias: self.dbias.as_mut().map(B::slice_mut),
        }
    }

    pub(crate) fn download(self, on: &Buffers<B>, shape: &[usize]) -> Result<Gradients<E, IxDyn>> {
        let parameter = |buffer: &Option<B::Buffer<E::Param>>| {
            let values = buffer.as_ref().map(|buffer| on.backend.download(buffer)).transpose()?;
            Ok(values.map(Array1::from))
        };
        let dresidual = self.dresidual.as_ref().map(|buffer| on.download(buffer, shape));
        Ok(Gradients {
            dx: on.download(&self.dx, shape)?,
            dresidual: dresidual.transpose()?,
            dweight: parameter(&self.dweight)?,
            dbias: parameter(&self.dbias)?,
        })
    }
}
