//! A fully connected network, its hidden layers with batch normalization or without.

use crate::norm;
use crate::ops::{Buffer, Matrix, Nonlinearity, Ops, Real};
use ndarray::{Array1, Array2, ArrayView2};
use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64;
use std::marker::PhantomData;
use std::time::{Duration, Instant};
use warpnorm::{Activation, Backend, BatchNorm, BatchNormConfig, Element, Result};

/// How wide a network is at each place, and what its hidden units compute.
#[derive(Debug, Clone)]
pub struct Architecture {
    pub inputs: usize,
    pub hidden: Vec<usize>,
    pub classes: usize,
    pub nonlinearity: Nonlinearity,
}

/// Tensors that go through batch normalization are made of `E`, all others of its parameter type.
pub struct Network<E: Element<Param: Real>, O: Ops<E::Param>> {
    ops: O,
    hidden: Vec<Hidden<E::Param, O>>,
    output: Linear<E::Param, O>,
    norm_time: Duration,
    element: PhantomData<E>,
}

struct Hidden<P: Real, O: Ops<P>> {
    linear: Linear<P, O>,
    units: Units<P, O>,
}

enum Units<P: Real, O: Ops<P>> {
    Plain(Nonlinearity),
    /// The nonlinearity is the batch normalization's own activation, computed in the same pass.
    Normalized(BatchNorm<O::Backend, P>),
}

struct Linear<P: Real, O: Ops<P>> {
    weight: Matrix<O::Backend, P>,
    /// Absent before batch normalization, whose own bias does that job.
    bias: Option<Buffer<O, P>>,
}

/// A matrix of weights, or of what they are multiplied with.
type Values<E, O> = Matrix<<O as Ops<<E as Element>::Param>>::Backend, <E as Element>::Param>;

/// What a training step keeps of its way forward for its way back.
struct Trace<E: Element, O: Ops<E::Param>> {
    /// The images, then the output of each hidden layer.
    values: Vec<Values<E, O>>,
    /// For each hidden layer with batch normalization, its input and saved statistics.
    normalized: Vec<Option<norm::Trace<O::Backend, E>>>,
}

impl<E: Element<Param: Real>, O: Ops<E::Param>> Network<E, O> {
    /// The weights follow from the architecture and the seed alone, not from where the network
    /// runs nor from whether its layers are `normalized`.
    pub fn new(architecture: &Architecture, ops: &O, normalized: bool, seed: u64) -> Result<Self> {
        let mut rng = Pcg64::seed_from_u64(seed);
        let mut inputs = architecture.inputs;
        let mut hidden = Vec::new();
        for &width in &architecture.hidden {
            let linear = Linear::new(ops, inputs, width, !normalized, &mut rng)?;
            let config =
                BatchNormConfig::new(width).activation(architecture.nonlinearity.activation());
            let units = match normalized {
                false => Units::Plain(architecture.nonlinearity),
                true => Units::Normalized(config.build(ops.backend().clone())?),
            };
            hidden.push(Hidden { linear, units });
            inputs = width;
        }
        let output = Linear::new(ops, inputs, architecture.classes, true, &mut rng)?;
        let (ops, norm_time) = (ops.clone(), Duration::ZERO);
        Ok(Network { ops, hidden, output, norm_time, element: PhantomData })
    }

    /// One step of stochastic gradient descent on the cross-entropy of a mini-batch.
    pub fn train_step(
        &mut self,
        images: ArrayView2<E::Param>,
        labels: &[u8],
        learning_rate: f64,
    ) -> Result<()> {
        // Gradients in between are of the summed loss: those of its mean would come close to the
        // smallest numbers of f16. The rate makes up for it.
        let rate = E::Param::from_f64(learning_rate / labels.len() as f64);
        let (logits, trace) = self.forward_train(images)?;
        let gradient = self.ops.cross_entropy_gradient(logits, labels)?;
        self.descend(gradient, trace, rate)
    }

    /// Class scores, normalized by the mini-batch's own statistics.
    fn forward_train(
        &mut self,
        images: ArrayView2<E::Param>,
    ) -> Result<(Values<E, O>, Trace<E, O>)> {
        let ops = &self.ops;
        let images = Matrix::upload(ops.backend(), images)?;
        let mut trace = Trace { values: vec![images], normalized: Vec::new() };
        for Hidden { linear, units } in &mut self.hidden {
            let z = linear.forward(ops, &trace.values[trace.values.len() - 1])?;
            let (output, normalized) = match units {
                Units::Plain(nonlinearity) => (ops.activate(*nonlinearity, &z)?, None),
                Units::Normalized(norm) => {
                    let x = ops.narrow::<E>(&z)?;
                    let start = Instant::now();
                    let (y, trace) = norm::forward_train(norm, x)?;
                    self.norm_time += start.elapsed();
                    (ops.widen(&y)?, Some(trace))
                }
            };
            trace.values.push(output);
            trace.normalized.push(normalized);
        }
        let logits = self.output.forward(ops, &trace.values[self.hidden.len()])?;
        Ok((logits, trace))
    }

    /// Backward through all layers, each of which takes its step once its gradients are known.
    fn descend(
        &mut self,
        gradient: Values<E, O>,
        trace: Trace<E, O>,
        rate: E::Param,
    ) -> Result<()> {
        let ops = &self.ops;
        let mut dy = ops.backward(&gradient, &self.output.weight)?;
        self.output.descend(ops, &trace.values[self.hidden.len()], &gradient, rate)?;
        for (index, Hidden { linear, units }) in self.hidden.iter_mut().enumerate().rev() {
            let dz = match (units, &trace.normalized[index]) {
                (Units::Normalized(norm), Some(normalized)) => {
                    let dy = ops.narrow::<E>(&dy)?;
                    let start = Instant::now();
                    let gradients = norm::backward(norm, &dy, normalized)?;
                    self.norm_time += start.elapsed();
                    if let Some(weight) = norm.weight_buffer_mut() {
                        ops.descend(weight, &gradients.dweight, rate)?;
                    }
                    if let Some(bias) = norm.bias_buffer_mut() {
                        ops.descend(bias, &gradients.dbias, rate)?;
                    }
                    ops.widen(&gradients.dx)?
                }
                (Units::Plain(nonlinearity), _) => {
                    ops.activation_gradient(*nonlinearity, &trace.values[index + 1], &dy)?
                }
                (Units::Normalized(_), None) => unreachable!("forward keeps what it normalized"),
            };
            if index > 0 {
                dy = ops.backward(&dz, &linear.weight)?;
            }
            linear.descend(ops, &trace.values[index], &dz, rate)?;
        }
        Ok(())
    }

    /// Class scores for inference: normalized by the running statistics.
    pub fn forward_eval(&self, images: ArrayView2<E::Param>) -> Result<Array2<E::Param>> {
        let last = self.enter_eval(images, self.hidden.len())?;
        self.output.forward(&self.ops, &last)?.download(self.ops.backend())
    }

    /// What enters the nonlinearity of the last hidden layer's first unit, an image each, in
    /// inference.
    pub fn pre_activation(&self, images: ArrayView2<E::Param>) -> Result<Array1<E::Param>> {
        const UNIT: usize = 0;
        let (ops, depth) = (&self.ops, self.hidden.len() - 1);
        let Hidden { linear, units } = &self.hidden[depth];
        let mut z = linear.forward(ops, &self.enter_eval(images, depth)?)?;
        if let Units::Normalized(norm) = units {
            let bare = norm::copy(norm, norm.config().activation(Activation::Identity))?;
            z = ops.widen(&norm::forward_eval::<_, E>(&bare, &ops.narrow(&z)?)?)?;
        }
        Ok(z.download(ops.backend())?.column(UNIT).to_owned())
    }

    /// A copy whose running statistics are those of `images`, and the class scores of `images` in
    /// train mode: normalized as one batch by its own statistics.
    pub fn with_statistics_of(
        &self,
        images: ArrayView2<E::Param>,
    ) -> Result<(Self, Array2<E::Param>)> {
        let ops = &self.ops;
        let hidden = self.hidden.iter().map(|hidden| hidden.forgetful_copy(ops));
        let mut copy = Network {
            ops: ops.clone(),
            hidden: hidden.collect::<Result<_>>()?,
            output: self.output.copy(ops)?,
            norm_time: Duration::ZERO,
            element: PhantomData,
        };
        let (logits, _) = copy.forward_train(images)?;
        Ok((copy, logits.download(ops.backend())?))
    }

    /// The output of the first `depth` hidden layers in inference.
    fn enter_eval(&self, images: ArrayView2<E::Param>, depth: usize) -> Result<Values<E, O>> {
        let ops = &self.ops;
        let mut value = Matrix::upload(ops.backend(), images)?;
        for Hidden { linear, units } in &self.hidden[..depth] {
            let z = linear.forward(ops, &value)?;
            value = match units {
                Units::Plain(nonlinearity) => ops.activate(*nonlinearity, &z)?,
                Units::Normalized(norm) => {
                    ops.widen(&norm::forward_eval::<_, E>(norm, &ops.narrow(&z)?)?)?
                }
            };
        }
        Ok(value)
    }

    /// Waits until all steps are done.
    pub fn wait(&self) -> Result<()> {
        self.ops.wait()
    }

    /// Time spent in batch normalization's training calls so far, if that can be told.
    pub fn norm_time(&self) -> Option<Duration> {
        O::SYNCHRONOUS.then_some(self.norm_time)
    }
}

impl<P: Real, O: Ops<P>> Hidden<P, O> {
    /// A copy whose running statistics are replaced, not moved, by those of the next batch.
    fn forgetful_copy(&self, ops: &O) -> Result<Self> {
        let units = match &self.units {
            Units::Plain(nonlinearity) => Units::Plain(*nonlinearity),
            Units::Normalized(norm) => {
                Units::Normalized(norm::copy(norm, norm.config().momentum(Some(1.0)))?)
            }
        };
        Ok(Hidden { linear: self.linear.copy(ops)?, units })
    }
}

impl<P: Real, O: Ops<P>> Linear<P, O> {
    /// Gaussian weights of standard deviation `1 / sqrt(inputs)`.
    fn new(ops: &O, inputs: usize, outputs: usize, bias: bool, rng: &mut Pcg64) -> Result<Self> {
        let scale = 1.0 / (inputs as f64).sqrt();
        let weight = Array2::from_shape_simple_fn((inputs, outputs), || {
            let normal: f64 = StandardNormal.sample(rng);
            P::from_f64(scale * normal)
        });
        let bias = bias.then(|| ops.backend().zeros(outputs)).transpose()?;
        Ok(Linear { weight: Matrix::upload(ops.backend(), weight.view())?, bias })
    }

    fn copy(&self, ops: &O) -> Result<Self> {
        let bias = self.bias.as_ref().map(|bias| ops.backend().duplicate(bias)).transpose()?;
        Ok(Linear { weight: self.weight.duplicate(ops.backend())?, bias })
    }

    fn forward(&self, ops: &O, input: &Matrix<O::Backend, P>) -> Result<Matrix<O::Backend, P>> {
        ops.forward(input, &self.weight, self.bias.as_ref())
    }

    fn descend(
        &mut self,
        ops: &O,
        input: &Matrix<O::Backend, P>,
        gradient: &Matrix<O::Backend, P>,
        rate: P,
    ) -> Result<()> {
        ops.descend_weight(&mut self.weight, input, gradient, rate)?;
        match &mut self.bias {
            Some(bias) => ops.descend_bias(bias, gradient, rate),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::softmax;
    use warpnorm::Cpu;

    const LABELS: [u8; 7] = [0, 2, 1, 1, 0, 2, 2];

    fn network(nonlinearity: Nonlinearity, normalized: bool) -> Network<f64, Cpu> {
        let architecture = Architecture { inputs: 5, hidden: vec![4, 6], classes: 3, nonlinearity };
        Network::new(&architecture, &Cpu::new(), normalized, 3).unwrap()
    }

    fn images() -> Array2<f64> {
        Array2::from_shape_fn((LABELS.len(), 5), |(row, column)| {
            (1.0 + 7.0 * row as f64 + 3.0 * column as f64).sin()
        })
    }

    fn loss(network: &mut Network<f64, Cpu>) -> f64 {
        let (logits, _) = network.forward_train(images().view()).unwrap();
        let probabilities = softmax(logits.download(&Cpu::new()).unwrap());
        let losses = probabilities
            .rows()
            .into_iter()
            .zip(LABELS)
            .map(|(row, label)| -row[label as usize].ln());
        losses.sum::<f64>() / LABELS.len() as f64
    }

    /// Row after row.
    fn weight(network: &mut Network<f64, Cpu>, layer: usize) -> &mut [f64] {
        match network.hidden.get_mut(layer) {
            Some(hidden) => &mut hidden.linear.weight.values,
            None => &mut network.output.weight.values,
        }
    }

    /// The step of rate 1 is the gradient, which finite differences of the loss give as well.
    fn check_gradients(nonlinearity: Nonlinearity, normalized: bool) {
        const H: f64 = 1e-5;
        let mut stepped = network(nonlinearity, normalized);
        stepped.train_step(images().view(), &LABELS, 1.0).unwrap();
        for layer in 0..3 {
            for at in [0, 11] {
                let mut probe = network(nonlinearity, normalized);
                let before = weight(&mut probe, layer)[at];
                let mut shifted = |h: f64| {
                    weight(&mut probe, layer)[at] = before + h;
                    loss(&mut probe)
                };
                let expected = (shifted(H) - shifted(-H)) / (2.0 * H);
                let found = before - weight(&mut stepped, layer)[at];
                assert!(
                    (found - expected).abs() < 1e-8,
                    "{nonlinearity:?}, layer {layer}, {at:?}: {found} for {expected}"
                );
            }
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        for nonlinearity in [Nonlinearity::Sigmoid, Nonlinearity::Tanh, Nonlinearity::Relu] {
            check_gradients(nonlinearity, false);
            check_gradients(nonlinearity, true);
        }
    }

    #[test]
    fn both_networks_start_from_the_same_weights() {
        let mut plain = network(Nonlinearity::Sigmoid, false);
        let mut normalized = network(Nonlinearity::Sigmoid, true);
        for layer in 0..3 {
            assert_eq!(weight(&mut plain, layer), weight(&mut normalized, layer));
        }
        assert!(normalized.hidden.iter().all(|hidden| hidden.linear.bias.is_none()));
    }
}
