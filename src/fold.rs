//! Folding: a trained batch norm taken into the linear map before it.

use crate::element::Param;
use crate::error::{Error, Result, check_len};
use crate::layer::{BatchNorm, RunningBuffers};
use crate::{Activation, Cpu};
use ndarray::{Array, Array1, ArrayRef, ArrayRef1, Axis, Dimension, RemoveAxis};

/// A convolution or linear layer that holds a batch norm: see [`BatchNorm::fold_into`].
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct Folded<P: Param, D: Dimension> {
    /// The new weight; shape and layout of the one before.
    pub weight: Array<P, D>,
    /// The new bias, `[C]`.
    pub bias: Array1<P>,
    /// What remains to be applied to the folded layer's output, after the residual if there is one:
    /// the batch norm's activation.
    pub activation: Activation,
}

impl<P: Param> BatchNorm<Cpu, P> {
    /// Weight and bias of a convolution or linear layer that does in evaluation what that layer
    /// followed by this batch norm does, up to the activation: `weight * s` and
    /// `(bias - running_mean) * s + beta`, with `s = gamma / sqrt(running_var + eps)` per output
    /// channel. Computed in f64, rounded once.
    ///
    /// `weight` has any rank; `channel_axis` is that of the output channels: 0 for a convolution
    /// `[C, in / groups, kernel...]` or linear layer `[C, in]`, 1 for a transposed convolution
    /// `[in, C / groups, kernel...]` of one group. `bias` is `[C]`; none counts as 0. The same
    /// holds of PyTorch's `torch.nn.utils.fusion.fuse_conv_bn_eval`. An activation cannot be
    /// folded: [`Folded::activation`] says what is still to be applied.
    ///
    /// ```
    /// use ndarray::{arr1, arr2};
    /// use warpnorm::{Activation, BatchNorm, BatchNormConfig, Cpu, Folded, reference};
    ///
    /// let config = BatchNormConfig::new(2).activation(Activation::Relu);
    /// let mut bn: BatchNorm = config.build(Cpu::new())?;
    /// bn.forward_train(&arr2(&[[1.0f32, 2.0], [3.0, 6.0]]))?;
    ///
    /// let (weight, bias) = (arr2(&[[1.0f32, 2.0], [3.0, 4.0]]), arr1(&[0.5f32, -0.5]));
    /// let folded = bn.fold_into(&weight, Some(&bias), 0)?;
    ///
    /// let input = arr2(&[[0.1f32, 0.2]]);
    /// let apart = bn.forward_eval(&(input.dot(&weight.t()) + &bias))?;
    /// let Folded { weight, bias, activation } = folded;
    /// let together = (input.dot(&weight.t()) + &bias)
    ///     .mapv(|z| reference::activate(activation, z.into()) as f32);
    /// assert!((apart - together).iter().all(|difference| difference.abs() < 1e-6));
    /// # Ok::<(), warpnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// No running statistics; an axis that `weight` has not, or whose extent is not C; a bias that
    /// is not `[C]`.
    pub fn fold_into<D: RemoveAxis>(
        &self,
        weight: &ArrayRef<P, D>,
        bias: Option<&ArrayRef1<P>>,
        channel_axis: usize,
    ) -> Result<Folded<P, D>> {
        let channels = self.channels();
        if weight.shape().get(channel_axis) != Some(&channels) {
            return Err(Error::argument(
                "weight",
                format_args!("{channels} channels on axis {channel_axis}"),
                format_args!("shape {:?}", weight.shape()),
            ));
        }
        if let Some(bias) = bias {
            check_len("bias", channels, bias.len())?;
        }
        let running = self.running_to_fold()?;

        let at = |values: &Option<Vec<P>>, channel: usize, default: f64| {
            values.as_ref().map_or(default, |values| values[channel].to_f64())
        };
        let scale = |channel: usize| {
            let var = running.var[channel].to_f64();
            at(&self.weight, channel, 1.0) * crate::cpu::invstd(var, self.config.eps)
        };
        let mut folded_weight = weight.to_owned();
        for (channel, mut slice) in folded_weight.axis_iter_mut(Axis(channel_axis)).enumerate() {
            let scale = scale(channel);
            slice.mapv_inplace(|weight| P::from_f64(weight.to_f64() * scale));
        }
        let folded_bias = (0..channels).map(|channel| {
            let bias = bias.map_or(0.0, |bias| bias[channel].to_f64());
            let centered = bias - running.mean[channel].to_f64();
            P::from_f64(centered * scale(channel) + at(&self.bias, channel, 0.0))
        });
        Ok(Folded {
            weight: folded_weight,
            bias: folded_bias.collect(),
            activation: self.config.activation,
        })
    }

    /// The running statistics; they and the parameters are `[C]`, also if their buffers were
    /// replaced.
    fn running_to_fold(&self) -> Result<&RunningBuffers<Cpu, P>> {
        let running = self.running.as_ref().ok_or_else(|| {
            Error::argument("track_running_stats", "a layer with running statistics", "one without")
        })?;
        check_len("running_mean", self.channels(), running.mean.len())?;
        check_len("running_var", self.channels(), running.var.len())?;
        self.check_affine()?;
        Ok(running)
    }
}
