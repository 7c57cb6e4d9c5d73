//! What a layer and its data should give, by the textbook, and the magnitude that errors are measured
//! against.

use super::data::{Data, MOMENTUM};
use super::tensors::wide;
use ndarray::{Array1, Array3, Axis, s};
use warpnorm::{Activation, Element, reference};

/// Which statistics a call normalizes with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    Train,
    Eval,
}

/// The textbook's results.
pub struct Expected {
    pub y: Array3<f64>,
    pub gradients: reference::Gradients,
    pub mean: Array1<f64>,
    pub invstd: Array1<f64>,
    pub running_mean: Array1<f64>,
    pub running_var: Array1<f64>,
    pub scale: Scales,
}

/// Per channel, the magnitude that errors are measured against.
pub struct Scales {
    pub y: Array1<f64>,
    pub dx: Array1<f64>,
    pub dresidual: Array1<f64>,
    pub dweight: Array1<f64>,
    pub dbias: Array1<f64>,
}

/// x less `shift` per channel, and the statistics of that.
struct Observed {
    shift: Array1<f64>,
    x: Array3<f64>,
    mean: Array1<f64>,
    var: Array1<f64>,
    invstd: Array1<f64>,
}

impl<E: Element> Data<E> {
    /// Takes dy to 0 where the pre-activation is so close to a kink that rounding may put it on
    /// either side.
    pub fn without_gradients_at_kinks(mut self, mode: Mode) -> Self {
        let kinks: &[f64] = match self.case.epilogue.activation {
            Activation::Relu | Activation::LeakyRelu { .. } => &[0.0],
            Activation::Relu6 => &[0.0, 6.0],
            _ => return self,
        };
        let z = self.pre_activation(&self.observed(mode));
        for (dy, &z) in self.dy.iter_mut().zip(&z) {
            if kinks.iter().any(|kink| (z - kink).abs() < 1e-5) {
                *dy = E::from_f64(0.0);
            }
        }
        self
    }

    /// What the reference normalizes: x, and the mean and variance to do it with. In training a
    /// value of each channel is taken off x, which changes nothing but the mean: the reference's
    /// own is one f64, whose rounding would show where the values of a channel nearly coincide.
    fn observed(&self, mode: Mode) -> Observed {
        let (n, c, s) = self.case.dim;
        let shift = match mode {
            Mode::Train if n * s > 0 => self.x.slice(s![0, .., 0]).mapv(Element::to_f64),
            _ => Array1::zeros(c),
        };
        let x = wide(&self.x) - shift.view().insert_axis(Axis(1));
        let (mean, var) = match mode {
            Mode::Train => reference::moments(x.view()),
            Mode::Eval => (self.running_mean.clone(), self.running_var.clone()),
        };
        let invstd = reference::invstd(var.view(), self.case.eps);
        Observed { shift, x, mean, var, invstd }
    }

    fn pre_activation(&self, observed: &Observed) -> Array3<f64> {
        let residual = self.residual().map(wide);
        reference::normalize(
            observed.x.view(),
            residual.as_ref().map(|residual| residual.view()),
            observed.mean.view(),
            observed.invstd.view(),
            self.weight.view(),
            self.bias.view(),
        )
    }

    pub fn expected(&self, mode: Mode) -> Expected {
        let observed = self.observed(mode);
        let activation = self.case.epilogue.activation;
        let residual = self.residual().map(wide);
        let dy = wide(&self.dy);
        let z = self.pre_activation(&observed);
        let y = z.mapv(|z| reference::activate(activation, z));
        let gradients = reference::backward(
            observed.x.view(),
            residual.as_ref().map(|residual| residual.view()),
            dy.view(),
            observed.mean.view(),
            observed.invstd.view(),
            self.weight.view(),
            self.bias.view(),
            activation,
            mode == Mode::Train,
        );
        let scale = self.scales(&observed, &y, &dy, &gradients, mode);
        let Observed { shift, x, mean, var, invstd } = observed;
        let mean = mean + shift;
        let count = (x.len_of(Axis(0)) * x.len_of(Axis(2))) as f64;
        let unbiased = &var * (count / (count - 1.0));
        let blend = |old: &Array1<f64>, new: &Array1<f64>| old * (1.0 - MOMENTUM) + new * MOMENTUM;
        Expected {
            y,
            gradients,
            running_mean: blend(&self.running_mean, &mean),
            running_var: blend(&self.running_var, &unbiased),
            mean,
            invstd,
            scale,
        }
    }

    /// What is added up in each result, before anything cancels.
    ///
    /// The derivative of a smooth activation is conditioned by its second derivative (1.1 at
    /// most): half an ulp of invstd moves it by half an ulp of `weight * xhat`, which is added.
    fn scales(
        &self,
        observed: &Observed,
        y: &Array3<f64>,
        dy: &Array3<f64>,
        gradients: &reference::Gradients,
        mode: Mode,
    ) -> Scales {
        let Observed { x, mean, invstd, .. } = observed;
        let residual = self.residual().map(wide);
        let smooth = f64::from(u8::from(self.case.epilogue.activation.is_smooth()));
        let count = (x.len_of(Axis(0)) * x.len_of(Axis(2))) as f64;
        let per_channel = |f: &dyn Fn(usize) -> f64| Array1::from_shape_fn(x.dim().1, f);
        let lane = |a: &Array3<f64>, c: usize| a.index_axis(Axis(1), c).to_owned();
        let largest = |a: &Array3<f64>, c| lane(a, c).iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let xhat = |c: usize| lane(x, c).mapv(|x| (x - mean[c]) * invstd[c]);
        let largest_xhat = |c: usize| xhat(c).iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let spread = per_channel(&|c| self.weight[c].abs() * largest_xhat(c));
        let g = |c: usize| {
            let conditioned = lane(dy, c).mapv(f64::abs) * (smooth * spread[c]);
            lane(&gradients.dresidual, c).mapv(f64::abs) + conditioned
        };
        let through_statistics = f64::from(u8::from(mode == Mode::Train)) / count;
        Scales {
            y: per_channel(&|c| {
                let residual = residual.as_ref().map_or(0.0, |residual| largest(residual, c));
                (spread[c] + self.bias[c].abs() + residual).max(largest(y, c))
            }),
            dresidual: per_channel(&|c| largest(dy, c) * (1.0 + smooth * spread[c])),
            // The rounding of the reference's mean moves an xhat close to 0 by more than its share.
            dweight: per_channel(&|c| {
                let hair = 1e-3 * largest_xhat(c);
                (g(c) * xhat(c).mapv(|xhat| xhat.abs() + hair)).sum()
            }),
            dbias: per_channel(&|c| g(c).sum()),
            dx: per_channel(&|c| {
                let statistics =
                    gradients.dbias[c].abs() + largest_xhat(c) * gradients.dweight[c].abs();
                let largest_g = g(c).iter().fold(0.0f64, |m, &v| m.max(v));
                let sum = largest_g + through_statistics * statistics;
                (self.weight[c] * invstd[c]).abs() * sum
            }),
        }
    }
}
