//! A layer and its data.

use super::tensors::{Dim, Random, array, in_layout};
use ndarray::{Array1, Array3, ArrayRef, Ix3, s};
use warpnorm::{BatchNorm, BatchNormConfig, Cpu, Element, Epilogue, Layout, Param};

/// A layer and its data.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub dim: Dim,
    pub layout: Layout,
    pub epilogue: Epilogue,
    /// About the mean and standard deviation of x; both vary with the channel.
    pub mean: f64,
    pub std: f64,
    pub eps: f64,
}

impl Case {
    pub fn new(dim: Dim, layout: Layout, epilogue: Epilogue) -> Self {
        Case { dim, layout, epilogue, mean: 1.0, std: 1.0, eps: 1e-5 }
    }
}

pub const MOMENTUM: f64 = 0.25;

#[derive(Clone)]
pub struct Data<E> {
    pub case: Case,
    pub x: Array3<E>,
    pub residual: Array3<E>,
    pub dy: Array3<E>,
    pub weight: Array1<f64>,
    pub bias: Array1<f64>,
    pub running_mean: Array1<f64>,
    pub running_var: Array1<f64>,
}

impl<E: Element> Data<E> {
    pub fn new(case: Case) -> Self {
        let (n, c, s) = case.dim;
        let mut random = Random::new((n * 1_000_003 + c * 1009 + s) as u64);
        // Values of f32, so that parameters are exact.
        let mut parameter = |f: &mut dyn FnMut(usize, &mut Random) -> f64| {
            Array1::from_shape_fn(c, |channel| f64::from(f(channel, &mut random) as f32))
        };
        let mean = parameter(&mut |_, random| case.mean * random.uniform(0.5, 1.5));
        let std = parameter(&mut |_, random| case.std * random.uniform(0.5, 2.0));
        // A weight of 0 now and then: y is the bias then, and dx 0.
        let weight = parameter(&mut |channel, random| match channel % 6 {
            4 => 0.0,
            _ => random.uniform(0.5, 2.0) * if random.uniform(0.0, 1.0) < 0.3 { -1.0 } else { 1.0 },
        });
        let bias = parameter(&mut |_, random| random.uniform(-0.5, 0.5));
        let running_mean =
            parameter(&mut |channel, random| mean[channel] + case.std * random.uniform(-0.5, 0.5));
        let running_var =
            parameter(&mut |_, random| case.std * case.std * random.uniform(0.2, 3.0));
        let x = array(case.dim, case.layout, |_, c, _| mean[c] + std[c] * random.normal());
        let residual = array(case.dim, case.layout, |_, _, _| random.normal());
        let dy = array(case.dim, case.layout, |_, _, _| random.normal());
        Data { case, x, residual, dy, weight, bias, running_mean, running_var }
    }

    pub fn residual(&self) -> Option<&ArrayRef<E, Ix3>> {
        self.case.epilogue.residual.then_some(&*self.residual)
    }

    /// The layer with this data's parameters and running statistics.
    pub fn layer(&self, cpu: Cpu) -> BatchNorm<Cpu, E::Param> {
        let mut layer: BatchNorm<Cpu, E::Param> = BatchNormConfig::new(self.case.dim.1)
            .eps(self.case.eps)
            .momentum(Some(MOMENTUM))
            .activation(self.case.epilogue.activation)
            .build(cpu)
            .unwrap();
        fill(layer.weight_mut(), &self.weight);
        fill(layer.bias_mut(), &self.bias);
        fill(layer.running_mean_mut(), &self.running_mean);
        fill(layer.running_var_mut(), &self.running_var);
        layer
    }

    /// The data of samples `from..to`, as a rank has it.
    pub fn samples(&self, from: usize, to: usize) -> Self {
        let (_, c, s) = self.case.dim;
        let rows =
            |tensor: &Array3<E>| in_layout(&tensor.slice(s![from..to, .., ..]), self.case.layout);
        Data {
            case: Case { dim: (to - from, c, s), ..self.case },
            x: rows(&self.x),
            residual: rows(&self.residual),
            dy: rows(&self.dy),
            weight: self.weight.clone(),
            bias: self.bias.clone(),
            running_mean: self.running_mean.clone(),
            running_var: self.running_var.clone(),
        }
    }
}

pub fn fill<P: Param>(parameter: Option<&mut [P]>, values: &Array1<f64>) {
    for (parameter, &value) in parameter.unwrap().iter_mut().zip(values) {
        *parameter = P::from_f64(value);
    }
}
