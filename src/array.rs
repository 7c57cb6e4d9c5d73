//! `ndarray` in and out: the layer on the CPU as most people use it.

use crate::backend::{Backend, GradientsMut};
use crate::config::Layout;
use crate::cpu::{Cpu, CpuSliceMut};
use crate::element::{Element, Param};
use crate::error::Result;
use crate::layer::BatchNorm;
use crate::problem::{Operand, Problem};
use crate::saved::Saved;
use crate::strides::{check_shape, common_layout, view, view_mut, zeros};
use ndarray::{Array, Array1, ArrayRef, Dimension};

/// Gradients of one call, in new arrays: nothing is accumulated, unlike in PyTorch's `.grad`. The
/// formulas are at [`Backend::backward_train`].
#[derive(Debug, Clone)]
pub struct Gradients<E: Element, D: Dimension> {
    /// Of `x`: its shape, layout and element type.
    pub dx: Array<E, D>,
    /// Of the residual, if there was one: the shape, layout and element type of `x`.
    pub dresidual: Option<Array<E, D>>,
    /// Of the weight, `[C]` of the layer's P, if the layer is affine.
    pub dweight: Option<Array1<E::Param>>,
    /// Of the bias, `[C]` of the layer's P, if the layer is affine.
    pub dbias: Option<Array1<E::Param>>,
}

impl<E: Element, D: Dimension> Gradients<E, D> {
    fn zeros(like: &ArrayRef<E, D>, residual: bool, affine: bool, layout: Layout) -> Result<Self> {
        let channels = like.shape()[1];
        let parameter = || affine.then(|| Array1::from_elem(channels, E::Param::default()));
        Ok(Gradients {
            dx: zeros(like, layout)?,
            dresidual: residual.then(|| zeros(like, layout)).transpose()?,
            dweight: parameter(),
            dbias: parameter(),
        })
    }

    pub(crate) fn as_mut(&mut self) -> Result<GradientsMut<'_, Cpu, E>> {
        fn flat<P>(parameter: &mut Option<Array1<P>>) -> Option<CpuSliceMut<'_, P>> {
            parameter.as_mut().and_then(|it| it.as_slice_mut()).map(CpuSliceMut::from)
        }
        Ok(GradientsMut {
            dx: view_mut(&mut self.dx)?,
            dresidual: self.dresidual.as_mut().map(|it| view_mut(it)).transpose()?,
            dweight: flat(&mut self.dweight),
            dbias: flat(&mut self.dbias),
        })
    }
}

/// A call's tensors, checked against each other.
pub(crate) struct Call {
    pub(crate) problem: Problem,
    pub(crate) layout: Layout,
}

impl<P: Param> BatchNorm<Cpu, P> {
    /// `adds_residual` says whether forward adds one; backward need not have it to hand.
    pub(crate) fn call<E: Element<Param = P>, D: Dimension>(
        &self,
        tensors: &[(Operand, &ArrayRef<E, D>)],
        adds_residual: bool,
    ) -> Result<Call> {
        let layout = common_layout(tensors)?;
        let shape = tensors[0].1.shape();
        for &(operand, array) in tensors {
            check_shape(operand, shape, array)?;
        }
        Ok(Call { problem: self.problem_of::<E>("x", shape, layout, adds_residual)?, layout })
    }

    /// gamma, `[C]`.
    pub fn weight(&self) -> Option<&[P]> {
        self.weight.as_deref()
    }

    /// gamma, `[C]`, to be trained.
    pub fn weight_mut(&mut self) -> Option<&mut [P]> {
        self.weight.as_deref_mut()
    }

    /// beta, `[C]`.
    pub fn bias(&self) -> Option<&[P]> {
        self.bias.as_deref()
    }

    /// beta, `[C]`, to be trained.
    pub fn bias_mut(&mut self) -> Option<&mut [P]> {
        self.bias.as_deref_mut()
    }

    /// `[C]`.
    pub fn running_mean(&self) -> Option<&[P]> {
        self.running.as_ref().map(|running| running.mean.as_slice())
    }

    /// `[C]`.
    pub fn running_mean_mut(&mut self) -> Option<&mut [P]> {
        self.running.as_mut().map(|running| running.mean.as_mut_slice())
    }

    /// `[C]`; the unbiased estimate, as in PyTorch.
    pub fn running_var(&self) -> Option<&[P]> {
        self.running.as_ref().map(|running| running.var.as_slice())
    }

    /// `[C]`.
    pub fn running_var_mut(&mut self) -> Option<&mut [P]> {
        self.running.as_mut().map(|running| running.var.as_mut_slice())
    }

    /// Training batches seen.
    pub fn num_batches_tracked(&self) -> Option<u64> {
        let batches = self.running.as_ref()?.num_batches_tracked.first()?;
        u64::try_from(*batches).ok()
    }

    /// `y` by the current mode ([`train`](Self::train), [`eval`](Self::eval)): batch statistics in
    /// training (the running ones advance, and what backward needs is returned), running statistics
    /// in evaluation. Where nothing is returned for backward, the gradients are those of
    /// [`backward_eval`](Self::backward_eval).
    ///
    /// # Errors
    /// As [`forward_train`](Self::forward_train) and [`forward_eval`](Self::forward_eval).
    #[allow(clippy::type_complexity)]
    pub fn forward<E: Element<Param = P>, D: Dimension>(
        &mut self,
        x: &ArrayRef<E, D>,
    ) -> Result<(Array<E, D>, Option<Saved<Cpu, P>>)> {
        if self.is_training() {
            let (y, saved) = self.forward_train(x)?;
            Ok((y, Some(saved)))
        } else {
            Ok((self.forward_eval(x)?, None))
        }
    }

    /// [`forward`](Self::forward) with `residual` added before the activation; the gradients are those of
    /// [`backward_add`](Self::backward_add) or [`backward_eval_add`](Self::backward_eval_add).
    ///
    /// ```
    /// use ndarray::array;
    /// use warpnorm::{BatchNorm, Cpu};
    ///
    /// let mut bn: BatchNorm = BatchNorm::new(1, Cpu::new())?;
    /// let (x, residual) = (array![[1.0f32], [3.0]], array![[0.5f32], [0.5]]);
    /// let dy = array![[1.0f32], [0.0]];
    /// bn.eval();
    /// let (y, saved) = bn.forward_add(&x, &residual)?;
    /// assert_eq!(y, bn.forward_eval_add(&x, &residual)?);
    ///
    /// let gradients = match saved {
    ///     Some(saved) => bn.backward_add(&x, None, &dy, &saved)?,
    ///     None => bn.backward_eval_add(&x, &residual, &dy)?,
    /// };
    /// assert_eq!(gradients.dresidual.unwrap(), dy);
    /// # Ok::<(), warpnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`forward_train_add`](Self::forward_train_add) and
    /// [`forward_eval_add`](Self::forward_eval_add).
    #[allow(clippy::type_complexity)]
    pub fn forward_add<E: Element<Param = P>, D: Dimension>(
        &mut self,
        x: &ArrayRef<E, D>,
        residual: &ArrayRef<E, D>,
    ) -> Result<(Array<E, D>, Option<Saved<Cpu, P>>)> {
        if self.is_training() {
            let (y, saved) = self.forward_train_add(x, residual)?;
            Ok((y, Some(saved)))
        } else {
            Ok((self.forward_eval_add(x, residual)?, None))
        }
    }

    /// `y = activation(weight * (x - mean) * invstd + bias)` with the statistics of this batch;
    /// the running statistics advance.
    ///
    /// ```
    /// use ndarray::array;
    /// use warpnorm::{BatchNorm, Cpu};
    ///
    /// let mut bn: BatchNorm = BatchNorm::new(2, Cpu::new())?;
    /// let x = array![[1.0f32, 10.0], [3.0, 30.0]];
    /// let (y, saved) = bn.forward_train(&x)?;
    /// assert!((y[[1, 0]] - 1.0).abs() < 1e-5);
    ///
    /// let dy = array![[1.0f32, 0.0], [0.0, 0.0]];
    /// let gradients = bn.backward(&x, &dy, &saved)?;
    /// assert_eq!(gradients.dbias.unwrap()[0], 1.0);
    /// # Ok::<(), warpnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// A rank below 2, other than C channels, strides of neither layout, one value per channel or
    /// none.
    pub fn forward_train<E: Element<Param = P>, D: Dimension>(
        &mut self,
        x: &ArrayRef<E, D>,
    ) -> Result<(Array<E, D>, Saved<Cpu, P>)> {
        self.train_forward(x, None)
    }

    /// [`forward_train`](Self::forward_train) with `residual` added before the activation.
    ///
    /// # Errors
    /// As there; a residual of another shape or layout.
    pub fn forward_train_add<E: Element<Param = P>, D: Dimension>(
        &mut self,
        x: &ArrayRef<E, D>,
        residual: &ArrayRef<E, D>,
    ) -> Result<(Array<E, D>, Saved<Cpu, P>)> {
        self.train_forward(x, Some(residual))
    }

    fn train_forward<E: Element<Param = P>, D: Dimension>(
        &mut self,
        x: &ArrayRef<E, D>,
        residual: Option<&ArrayRef<E, D>>,
    ) -> Result<(Array<E, D>, Saved<Cpu, P>)> {
        let Call { problem, layout } = self.call(&inputs(x, residual, None), residual.is_some())?;
        let mut y = zeros(x, layout)?;
        let mut saved = Saved::new(&self.backend, &problem)?;
        let mut workspace = self.backend.workspace(&problem)?;
        self.forward_train_into(
            &problem,
            view(x)?,
            residual.map(view).transpose()?,
            view_mut(&mut y)?,
            &mut saved,
            &mut workspace,
        )?;
        Ok((y, saved))
    }

    /// `y` with running statistics; with the batch's own if the layer keeps none.
    ///
    /// # Errors
    /// As [`forward_train`](Self::forward_train); one value per channel is fine with running
    /// statistics.
    pub fn forward_eval<E: Element<Param = P>, D: Dimension>(
        &self,
        x: &ArrayRef<E, D>,
    ) -> Result<Array<E, D>> {
        self.eval_forward(x, None).map(|(y, _)| y)
    }

    /// [`forward_eval`](Self::forward_eval) with `residual` added before the activation.
    ///
    /// # Errors
    /// As there; a residual of another shape or layout.
    pub fn forward_eval_add<E: Element<Param = P>, D: Dimension>(
        &self,
        x: &ArrayRef<E, D>,
        residual: &ArrayRef<E, D>,
    ) -> Result<Array<E, D>> {
        self.eval_forward(x, Some(residual)).map(|(y, _)| y)
    }

    #[allow(clippy::type_complexity)]
    fn eval_forward<E: Element<Param = P>, D: Dimension>(
        &self,
        x: &ArrayRef<E, D>,
        residual: Option<&ArrayRef<E, D>>,
    ) -> Result<(Array<E, D>, Option<Saved<Cpu, P>>)> {
        let Call { problem, layout } = self.call(&inputs(x, residual, None), residual.is_some())?;
        let mut y = zeros(x, layout)?;
        let mut workspace = self.backend.workspace(&problem)?;
        let residual = residual.map(view).transpose()?;
        let saved = if self.running.is_some() {
            self.forward_eval_into(
                &problem,
                view(x)?,
                residual,
                view_mut(&mut y)?,
                &mut workspace,
            )?;
            None
        } else {
            let mut saved = Saved::new(&self.backend, &problem)?;
            let (x, y) = (view(x)?, view_mut(&mut y)?);
            self.forward_batch_into(&problem, x, residual, y, &mut saved, &mut workspace)?;
            Some(saved)
        };
        Ok((y, saved))
    }

    /// [`forward_eval`](Self::forward_eval) with the output in the input's place.
    ///
    /// # Errors
    /// As there; a layer without running statistics.
    pub fn forward_eval_inplace<E: Element<Param = P>, D: Dimension>(
        &self,
        x: &mut ArrayRef<E, D>,
    ) -> Result<()> {
        self.eval_in_place(x, None)
    }

    /// [`forward_eval_inplace`](Self::forward_eval_inplace) with `residual` added before the
    /// activation.
    ///
    /// # Errors
    /// As there; a residual of another shape or layout.
    pub fn forward_eval_inplace_add<E: Element<Param = P>, D: Dimension>(
        &self,
        x: &mut ArrayRef<E, D>,
        residual: &ArrayRef<E, D>,
    ) -> Result<()> {
        self.eval_in_place(x, Some(residual))
    }

    fn eval_in_place<E: Element<Param = P>, D: Dimension>(
        &self,
        x: &mut ArrayRef<E, D>,
        residual: Option<&ArrayRef<E, D>>,
    ) -> Result<()> {
        let Call { problem, .. } = self.call(&inputs(x, residual, None), residual.is_some())?;
        let mut workspace = self.backend.workspace(&problem)?;
        let residual = residual.map(view).transpose()?;
        self.forward_eval_inplace_into(&problem, view_mut(x)?, residual, &mut workspace)
    }

    /// The gradients of [`forward_train`](Self::forward_train).
    ///
    /// `x` and `saved` must be those of that call, and weight and bias must not change in between:
    /// backward computes the pre-activation from them again. A `saved` of another call of
    /// `forward_train` on the same shape cannot be told apart, and gives other gradients.
    ///
    /// # Errors
    /// As there; tensors that differ in shape or layout; a `saved` with another number of channels,
    /// or of [`forward_train_add`](Self::forward_train_add).
    pub fn backward<E: Element<Param = P>, D: Dimension>(
        &self,
        x: &ArrayRef<E, D>,
        dy: &ArrayRef<E, D>,
        saved: &Saved<Cpu, P>,
    ) -> Result<Gradients<E, D>> {
        let call = self.call(&inputs(x, None, Some(dy)), false)?;
        self.train_backward(call, x, None, dy, saved)
    }

    /// The gradients of [`forward_train_add`](Self::forward_train_add), `dresidual` among them.
    ///
    /// Only the derivative of a smooth activation (sigmoid, tanh, SiLU, GELU) needs the residual
    /// again. For the others pass `None`, and do not keep it: ReLU, leaky ReLU and ReLU6 read the
    /// mask in `saved`, the identity reads neither.
    ///
    /// ```
    /// use ndarray::array;
    /// use warpnorm::{Activation, BatchNormConfig, BatchNorm, Cpu};
    ///
    /// let config = BatchNormConfig::new(1).activation(Activation::Relu);
    /// let mut bn: BatchNorm = config.build(Cpu::new())?;
    /// let (x, residual) = (array![[-1.0f32], [1.0]], array![[0.5f32], [0.5]]);
    /// let (y, saved) = bn.forward_train_add(&x, &residual)?;
    /// assert_eq!(y[[0, 0]], 0.0);
    ///
    /// let gradients = bn.backward_add(&x, None, &array![[1.0f32], [1.0]], &saved)?;
    /// assert_eq!(gradients.dresidual.unwrap(), array![[0.0f32], [1.0]]);
    /// # Ok::<(), warpnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`forward_train_add`](Self::forward_train_add); tensors that differ in shape or layout; a
    /// `saved` with another number of channels or another mask, or of
    /// [`forward_train`](Self::forward_train); no residual where the activation is smooth.
    pub fn backward_add<E: Element<Param = P>, D: Dimension>(
        &self,
        x: &ArrayRef<E, D>,
        residual: Option<&ArrayRef<E, D>>,
        dy: &ArrayRef<E, D>,
        saved: &Saved<Cpu, P>,
    ) -> Result<Gradients<E, D>> {
        let call = self.call(&inputs(x, residual, Some(dy)), true)?;
        self.train_backward(call, x, residual, dy, saved)
    }

    fn train_backward<E: Element<Param = P>, D: Dimension>(
        &self,
        call: Call,
        x: &ArrayRef<E, D>,
        residual: Option<&ArrayRef<E, D>>,
        dy: &ArrayRef<E, D>,
        saved: &Saved<Cpu, P>,
    ) -> Result<Gradients<E, D>> {
        let mut workspace = self.backend.workspace(&call.problem)?;
        let mut gradients = self.gradients(&call, x)?;
        self.backward_into(
            &call.problem,
            view(x)?,
            residual.map(view).transpose()?,
            view(dy)?,
            saved,
            gradients.as_mut()?,
            &mut workspace,
        )?;
        Ok(gradients)
    }

    /// The gradients of [`forward_eval`](Self::forward_eval): frozen batch norm, whose statistics
    /// are constants. In a layer without running statistics they are the batch's, and the gradient
    /// goes through them.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    pub fn backward_eval<E: Element<Param = P>, D: Dimension>(
        &self,
        x: &ArrayRef<E, D>,
        dy: &ArrayRef<E, D>,
    ) -> Result<Gradients<E, D>> {
        self.eval_backward(x, None, dy)
    }

    /// The gradients of [`forward_eval_add`](Self::forward_eval_add).
    ///
    /// # Errors
    /// As [`backward_eval`](Self::backward_eval).
    pub fn backward_eval_add<E: Element<Param = P>, D: Dimension>(
        &self,
        x: &ArrayRef<E, D>,
        residual: &ArrayRef<E, D>,
        dy: &ArrayRef<E, D>,
    ) -> Result<Gradients<E, D>> {
        self.eval_backward(x, Some(residual), dy)
    }

    fn eval_backward<E: Element<Param = P>, D: Dimension>(
        &self,
        x: &ArrayRef<E, D>,
        residual: Option<&ArrayRef<E, D>>,
        dy: &ArrayRef<E, D>,
    ) -> Result<Gradients<E, D>> {
        let call = self.call(&inputs(x, residual, Some(dy)), residual.is_some())?;
        if self.running.is_none() {
            // Only forward can tell the statistics and the mask.
            let (_, saved) = self.eval_forward(x, residual)?;
            let saved = saved.expect("a layer without running statistics saves the batch's");
            return self.train_backward(call, x, residual, dy, &saved);
        }
        let mut workspace = self.backend.workspace(&call.problem)?;
        let mut gradients = self.gradients(&call, x)?;
        self.backward_eval_into(
            &call.problem,
            view(x)?,
            residual.map(view).transpose()?,
            view(dy)?,
            gradients.as_mut()?,
            &mut workspace,
        )?;
        Ok(gradients)
    }

    /// Room for the gradients of a call.
    pub(crate) fn gradients<E: Element<Param = P>, D: Dimension>(
        &self,
        call: &Call,
        x: &ArrayRef<E, D>,
    ) -> Result<Gradients<E, D>> {
        let residual = call.problem.epilogue().residual;
        Gradients::zeros(x, residual, self.config.affine, call.layout)
    }
}

/// The tensors of a call under their names.
pub(crate) fn inputs<'a, E, D: Dimension>(
    x: &'a ArrayRef<E, D>,
    residual: Option<&'a ArrayRef<E, D>>,
    dy: Option<&'a ArrayRef<E, D>>,
) -> Vec<(Operand, &'a ArrayRef<E, D>)> {
    let residual = residual.map(|residual| (Operand::Residual, residual));
    let dy = dy.map(|dy| (Operand::Dy, dy));
    [(Operand::X, x)].into_iter().chain(residual).chain(dy).collect()
}
