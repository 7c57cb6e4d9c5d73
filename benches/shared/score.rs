//! How far a result is from the textbook's. Channels do not know of each other, so that a few of
//! them, whole, stand for all.

use crate::calls::{Inputs, NORM};
use ndarray::{Array1, Array3, Axis};
use rayon::prelude::*;
use warpnorm::{Element, Layout, Problem, reference};

/// Elements that the textbook is asked for, about.
const ELEMENTS: usize = 1 << 20;
/// Nearer to where a ReLU bends than this, either side may be right.
const BEND: f64 = 1e-3;

/// The textbook's results for some channels, in parts that are worked on side by side.
pub struct Expected(Vec<Part>);

/// The textbook's results for neighbours among the sampled channels.
struct Part {
    channels: Vec<usize>,
    y: Array3<f64>,
    dx: Array3<f64>,
    /// What adds up in an output, per channel.
    y_scale: Array1<f64>,
    dx_scale: Array1<f64>,
    /// Pre-activations.
    z: Array3<f64>,
}

/// Some channels, the first and the last among them: as many as come to [`ELEMENTS`].
pub fn sampled_channels(channels: usize, values_per_channel: usize) -> Vec<usize> {
    let count = (ELEMENTS / values_per_channel.max(1)).clamp(1, channels);
    let mut sampled: Vec<usize> = match count {
        1 => vec![channels - 1],
        count => (0..count).map(|index| index * (channels - 1) / (count - 1)).collect(),
    };
    sampled.dedup();
    sampled
}

/// Some channels of a flat tensor, `[N, channels, spatial]`.
fn gather<E: Element>(problem: &Problem, channels: &[usize], values: &[E]) -> Array3<f64> {
    let (all, spatial) = (problem.channels(), problem.spatial());
    Array3::from_shape_fn((problem.batch(), channels.len(), spatial), |(n, index, s)| {
        let c = channels[index];
        let at = match problem.layout() {
            Layout::ChannelsFirst => (n * all + c) * spatial + s,
            Layout::ChannelsLast => (n * spatial + s) * all + c,
        };
        values[at].to_f64()
    })
}

/// Each channel's largest magnitude.
fn largest(values: &Array3<f64>) -> Array1<f64> {
    let per_channel = values.axis_iter(Axis(1));
    per_channel.map(|channel| channel.iter().fold(0.0, |m: f64, v| m.max(v.abs()))).collect()
}

impl Expected {
    /// Of training on `inputs`.
    pub fn of<E: Element>(problem: &Problem, inputs: &Inputs<E>) -> Self {
        Self::with::<E>(problem, inputs, None)
    }

    /// Of inference, by running statistics.
    pub fn of_inference<E: Element>(
        problem: &Problem,
        inputs: &Inputs<E>,
        mean: &[E::Param],
        var: &[E::Param],
    ) -> Self {
        Self::with(problem, inputs, Some([mean, var]))
    }

    fn with<E: Element>(
        problem: &Problem,
        inputs: &Inputs<E>,
        running: Option<[&[E::Param]; 2]>,
    ) -> Self {
        let channels = sampled_channels(problem.channels(), problem.values_per_channel());
        let together = channels.len().div_ceil(rayon::current_num_threads());
        let part = |channels: &[usize]| Part::new(problem, inputs, running, channels.to_vec());
        Expected(channels.par_chunks(together).map(part).collect())
    }

    /// The largest error of a whole tensor's sampled channels.
    pub fn y_error<E: Element>(&self, problem: &Problem, y: &[E]) -> f64 {
        self.worst(|part| part.y_error(&part.gather(problem, y), &part.y))
    }

    /// The same for dx, but for elements at a ReLU's bend.
    pub fn dx_error<E: Element>(&self, problem: &Problem, dx: &[E]) -> f64 {
        self.worst(|part| part.dx_error(problem, &part.gather(problem, dx), &part.dx))
    }

    /// The largest difference of two results.
    pub fn y_difference<E: Element>(&self, problem: &Problem, a: &[E], b: &[E]) -> f64 {
        self.worst(|part| part.y_error(&part.gather(problem, a), &part.gather(problem, b)))
    }

    /// The same for dx, but for elements at a ReLU's bend.
    pub fn dx_difference<E: Element>(&self, problem: &Problem, a: &[E], b: &[E]) -> f64 {
        self.worst(|part| {
            part.dx_error(problem, &part.gather(problem, a), &part.gather(problem, b))
        })
    }

    fn worst(&self, error: impl Fn(&Part) -> f64 + Sync + Send) -> f64 {
        self.0.par_iter().map(error).reduce(|| 0.0, f64::max)
    }
}

impl Part {
    fn new<E: Element>(
        problem: &Problem,
        inputs: &Inputs<E>,
        running: Option<[&[E::Param]; 2]>,
        channels: Vec<usize>,
    ) -> Self {
        let epilogue = problem.epilogue();
        let tensor = |values: &[E]| gather(problem, &channels, values);
        let vector = |values: &[E::Param]| -> Array1<f64> {
            channels.iter().map(|&c| values[c].to_f64()).collect()
        };
        let (x, dy) = (tensor(&inputs.x), tensor(&inputs.dy));
        let residual = epilogue.residual.then(|| tensor(&inputs.residual));
        let residual = residual.as_ref().map(|residual| residual.view());
        let (weight, bias) = (vector(&inputs.weight), vector(&inputs.bias));
        let (mean, var) = match running {
            Some([mean, var]) => (vector(mean), vector(var)),
            None => reference::moments(x.view()),
        };
        let invstd = reference::invstd(var.view(), NORM.eps);
        let statistics = (mean.view(), invstd.view(), weight.view(), bias.view());
        let (mean, invstd, weight, bias) = statistics;
        let z = reference::normalize(x.view(), residual, mean, invstd, weight, bias);
        let y = z.mapv(|z| reference::activate(epilogue.activation, z));
        let gradients = reference::backward(
            x.view(),
            residual,
            dy.view(),
            mean,
            invstd,
            weight,
            bias,
            epilogue.activation,
            running.is_none(),
        );
        let column =
            |values: &Array1<f64>| values.clone().insert_axis(Axis(0)).insert_axis(Axis(2));
        let xhat = largest(&(&x - &column(&mean.to_owned()))) * invstd;
        let added = residual.map_or(Array1::zeros(channels.len()), |r| largest(&r.to_owned()));
        let count = problem.values_per_channel() as f64;
        let through_statistics =
            (gradients.dbias.mapv(f64::abs) + &xhat * &gradients.dweight.mapv(f64::abs)) / count;
        let dx_scale = (&weight * &invstd).mapv(f64::abs)
            * (largest(&gradients.dresidual) + through_statistics);
        Part {
            y_scale: weight.mapv(f64::abs) * &xhat + bias.mapv(f64::abs) + added,
            dx_scale,
            dx: gradients.dx,
            channels,
            y,
            z,
        }
    }

    fn gather<E: Element>(&self, problem: &Problem, values: &[E]) -> Array3<f64> {
        gather(problem, &self.channels, values)
    }

    fn y_error(&self, got: &Array3<f64>, expected: &Array3<f64>) -> f64 {
        self.error(got, expected, &self.y_scale, false)
    }

    fn dx_error(&self, problem: &Problem, got: &Array3<f64>, expected: &Array3<f64>) -> f64 {
        let bends = problem.epilogue().activation != warpnorm::Activation::Identity;
        self.error(got, expected, &self.dx_scale, bends)
    }

    fn error(
        &self,
        got: &Array3<f64>,
        expected: &Array3<f64>,
        scale: &Array1<f64>,
        skip_bends: bool,
    ) -> f64 {
        let mut worst = 0.0_f64;
        for ((n, c, s), got) in got.indexed_iter() {
            if skip_bends && self.z[[n, c, s]].abs() < BEND {
                continue;
            }
            let (difference, scale) = ((got - expected[[n, c, s]]).abs(), scale[c]);
            if difference == 0.0 {
                continue;
            }
            // Not a number is as wrong as can be.
            let error = difference / scale;
            worst = worst.max(if error.is_nan() { f64::INFINITY } else { error });
        }
        worst
    }
}

/// Beyond this a training call's result is wrong: its own rounding, and some of what adds up.
pub fn bar(dtype: warpnorm::DType) -> f64 {
    match dtype {
        warpnorm::DType::F64 => 1e-12,
        warpnorm::DType::F32 => 1e-6,
        warpnorm::DType::F16 => 1e-3,
        warpnorm::DType::Bf16 => 8e-3,
    }
}
