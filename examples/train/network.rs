//! A fully connected network, its hidden layers with batch normalization or without.

use crate::options::Nonlinearity;
use ndarray::{Array1, Array2, ArrayView2, Axis, NdFloat, Zip};
use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64;
use std::marker::PhantomData;
use std::time::{Duration, Instant};
use warpnorm::{Activation, BatchNorm, BatchNormConfig, Cpu, Element, Param, Result, Saved};

/// What weights are held and multiplied in: `f32` or `f64`.
pub trait Real: Param + NdFloat {}

impl<P: Param + NdFloat> Real for P {}

/// How wide a network is at each place, and what its hidden units compute.
#[derive(Debug, Clone)]
pub struct Architecture {
    pub inputs: usize,
    pub hidden: Vec<usize>,
    pub classes: usize,
    pub nonlinearity: Nonlinearity,
}

/// Tensors that go through batch normalization are made of `E`, all others of its parameter type.
pub struct Network<E: Element> {
    hidden: Vec<Hidden<E::Param>>,
    output: Linear<E::Param>,
    norm_time: Duration,
    element: PhantomData<E>,
}

struct Hidden<P: Param> {
    linear: Linear<P>,
    units: Units<P>,
}

enum Units<P: Param> {
    Plain(Nonlinearity),
    /// The nonlinearity is the batch normalization's own activation, computed in the same pass.
    Normalized(BatchNorm<Cpu, P>),
}

#[derive(Clone)]
struct Linear<P> {
    weight: Array2<P>,
    /// Absent before batch normalization, whose own bias does that job.
    bias: Option<Array1<P>>,
}

/// What a training step keeps of its way forward for its way back.
struct Trace<E: Element> {
    /// The images, then the output of each hidden layer.
    values: Vec<Array2<E::Param>>,
    /// For each hidden layer with batch normalization, its input and saved statistics.
    normalized: Vec<Option<Normalized<E>>>,
}

/// What backward through a batch normalization needs.
struct Normalized<E: Element> {
    x: Array2<E>,
    saved: Saved<Cpu, E::Param>,
}

impl<E: Element<Param: Real>> Network<E> {
    /// The weights follow from the architecture and the seed alone, not from `norm`: where batch
    /// normalization runs, if at all.
    pub fn new(architecture: &Architecture, norm: Option<&Cpu>, seed: u64) -> Result<Self> {
        let mut rng = Pcg64::seed_from_u64(seed);
        let mut inputs = architecture.inputs;
        let mut hidden = Vec::new();
        for &width in &architecture.hidden {
            let linear = Linear::new(inputs, width, norm.is_none(), &mut rng);
            let units = match norm {
                None => Units::Plain(architecture.nonlinearity),
                Some(backend) => Units::Normalized(
                    BatchNormConfig::new(width)
                        .activation(architecture.nonlinearity.activation())
                        .build(backend.clone())?,
                ),
            };
            hidden.push(Hidden { linear, units });
            inputs = width;
        }
        let output = Linear::new(inputs, architecture.classes, true, &mut rng);
        Ok(Network { hidden, output, norm_time: Duration::ZERO, element: PhantomData })
    }

    /// One step of stochastic gradient descent on the cross-entropy of a mini-batch.
    pub fn train_step(
        &mut self,
        images: Array2<E::Param>,
        labels: &[u8],
        learning_rate: f64,
    ) -> Result<()> {
        // Gradients in between are of the summed loss: those of its mean would come close to the
        // smallest numbers of f16. The rate makes up for it.
        let rate = E::Param::from_f64(learning_rate / labels.len() as f64);
        let (logits, trace) = self.forward_train(images)?;
        let gradient = cross_entropy_gradient(logits, labels);
        self.descend(gradient, trace, rate)
    }

    /// Class scores, normalized by the mini-batch's own statistics.
    fn forward_train(&mut self, images: Array2<E::Param>) -> Result<(Array2<E::Param>, Trace<E>)> {
        let mut trace = Trace { values: vec![images], normalized: Vec::new() };
        for Hidden { linear, units } in &mut self.hidden {
            let z = linear.forward(&trace.values[trace.values.len() - 1]);
            let (output, normalized) = match units {
                Units::Plain(nonlinearity) => (z.mapv(|z| activate(*nonlinearity, z)), None),
                Units::Normalized(norm) => {
                    let x: Array2<E> = cast(&z);
                    let start = Instant::now();
                    let (y, saved) = norm.forward_train(&x)?;
                    self.norm_time += start.elapsed();
                    (cast(&y), Some(Normalized { x, saved }))
                }
            };
            trace.values.push(output);
            trace.normalized.push(normalized);
        }
        let logits = self.output.forward(&trace.values[self.hidden.len()]);
        Ok((logits, trace))
    }

    /// Backward through all layers, each of which takes its step once its gradients are known.
    fn descend(
        &mut self,
        gradient: Array2<E::Param>,
        trace: Trace<E>,
        rate: E::Param,
    ) -> Result<()> {
        let mut dy = gradient.dot(&self.output.weight.t());
        self.output.descend(&trace.values[self.hidden.len()], &gradient, rate);
        for (index, Hidden { linear, units }) in self.hidden.iter_mut().enumerate().rev() {
            let dz = match (units, &trace.normalized[index]) {
                (Units::Normalized(norm), Some(Normalized { x, saved })) => {
                    let dy: Array2<E> = cast(&dy);
                    let start = Instant::now();
                    let grads = norm.backward(x, &dy, saved)?;
                    self.norm_time += start.elapsed();
                    step(norm.weight_mut(), grads.dweight.as_ref(), rate);
                    step(norm.bias_mut(), grads.dbias.as_ref(), rate);
                    cast(&grads.dx)
                }
                (Units::Plain(nonlinearity), _) => {
                    let y = &trace.values[index + 1];
                    Zip::from(&dy).and(y).map_collect(|&dy, &y| dy * slope(*nonlinearity, y))
                }
                (Units::Normalized(_), None) => unreachable!("forward keeps what it normalized"),
            };
            if index > 0 {
                dy = dz.dot(&linear.weight.t());
            }
            linear.descend(&trace.values[index], &dz, rate);
        }
        Ok(())
    }

    /// Class scores for inference: normalized by the running statistics.
    pub fn forward_eval(&self, images: ArrayView2<E::Param>) -> Result<Array2<E::Param>> {
        let last = self.enter_eval(images, self.hidden.len())?;
        Ok(self.output.forward(&last))
    }

    /// What enters the nonlinearity of the last hidden layer's first unit, an image each, in
    /// inference.
    pub fn pre_activation(&self, images: ArrayView2<E::Param>) -> Result<Array1<E::Param>> {
        const UNIT: usize = 0;
        let depth = self.hidden.len() - 1;
        let Hidden { linear, units } = &self.hidden[depth];
        let z = linear.forward(&self.enter_eval(images, depth)?);
        match units {
            Units::Plain(_) => Ok(z.column(UNIT).to_owned()),
            Units::Normalized(norm) => {
                let bare = copy(norm, norm.config().activation(Activation::Identity))?;
                let y = bare.forward_eval(&cast::<_, E>(&z))?;
                Ok(cast(&y).column(UNIT).to_owned())
            }
        }
    }

    /// A copy whose running statistics are those of `images`, and the class scores of `images` in
    /// train mode: normalized as one batch by its own statistics.
    pub fn with_statistics_of(
        &self,
        images: ArrayView2<E::Param>,
    ) -> Result<(Self, Array2<E::Param>)> {
        let mut copy = Network {
            hidden: self.hidden.iter().map(Hidden::forgetful_copy).collect::<Result<_>>()?,
            output: self.output.clone(),
            norm_time: Duration::ZERO,
            element: PhantomData,
        };
        let (logits, _) = copy.forward_train(images.to_owned())?;
        Ok((copy, logits))
    }

    /// The output of the first `depth` hidden layers in inference.
    fn enter_eval(&self, images: ArrayView2<E::Param>, depth: usize) -> Result<Array2<E::Param>> {
        let mut value = images.to_owned();
        for Hidden { linear, units } in &self.hidden[..depth] {
            let z = linear.forward(&value);
            value = match units {
                Units::Plain(nonlinearity) => z.mapv(|z| activate(*nonlinearity, z)),
                Units::Normalized(norm) => cast(&norm.forward_eval(&cast::<_, E>(&z))?),
            };
        }
        Ok(value)
    }

    /// Time spent in batch normalization's training calls so far.
    pub fn norm_time(&self) -> Duration {
        self.norm_time
    }
}

impl<P: Real> Hidden<P> {
    /// A copy whose running statistics are replaced, not moved, by those of the next batch.
    fn forgetful_copy(&self) -> Result<Self> {
        let units = match &self.units {
            Units::Plain(nonlinearity) => Units::Plain(*nonlinearity),
            Units::Normalized(norm) => {
                Units::Normalized(copy(norm, norm.config().momentum(Some(1.0)))?)
            }
        };
        Ok(Hidden { linear: self.linear.clone(), units })
    }
}

/// A layer in the same state, set up in another way.
fn copy<P: Param>(norm: &BatchNorm<Cpu, P>, config: BatchNormConfig) -> Result<BatchNorm<Cpu, P>> {
    let mut copy = config.build(norm.backend().clone())?;
    copy.load_state(&norm.state()?)?;
    Ok(copy)
}

impl<P: Real> Linear<P> {
    /// Gaussian weights of standard deviation `1 / sqrt(inputs)`.
    fn new(inputs: usize, outputs: usize, bias: bool, rng: &mut Pcg64) -> Self {
        let scale = 1.0 / (inputs as f64).sqrt();
        let weight = Array2::from_shape_simple_fn((inputs, outputs), || {
            let normal: f64 = StandardNormal.sample(rng);
            P::from_f64(scale * normal)
        });
        Linear { weight, bias: bias.then(|| Array1::from_elem(outputs, P::zero())) }
    }

    fn forward(&self, input: &Array2<P>) -> Array2<P> {
        let mut output = input.dot(&self.weight);
        if let Some(bias) = &self.bias {
            output += bias;
        }
        output
    }

    fn descend(&mut self, input: &Array2<P>, gradient: &Array2<P>, rate: P) {
        self.weight.scaled_add(-rate, &input.t().dot(gradient));
        if let Some(bias) = &mut self.bias {
            bias.scaled_add(-rate, &gradient.sum_axis(Axis(0)));
        }
    }
}

/// A step on batch normalization's weight or bias.
fn step<P: Real>(parameter: Option<&mut [P]>, gradient: Option<&Array1<P>>, rate: P) {
    for (value, &gradient) in parameter.into_iter().flatten().zip(gradient.into_iter().flatten()) {
        *value -= rate * gradient;
    }
}

fn activate<P: Real>(nonlinearity: Nonlinearity, z: P) -> P {
    match nonlinearity {
        Nonlinearity::Sigmoid => P::one() / (P::one() + (-z).exp()),
        Nonlinearity::Relu => {
            if z < P::zero() {
                P::zero()
            } else {
                z
            }
        }
        Nonlinearity::Tanh => z.tanh(),
    }
}

/// The derivative of [`activate`] where its value is `y`.
fn slope<P: Real>(nonlinearity: Nonlinearity, y: P) -> P {
    match nonlinearity {
        Nonlinearity::Sigmoid => y * (P::one() - y),
        Nonlinearity::Relu => {
            if y > P::zero() {
                P::one()
            } else {
                P::zero()
            }
        }
        Nonlinearity::Tanh => P::one() - y * y,
    }
}

/// The probability of each class, a row for each image.
pub fn softmax<P: Real>(mut logits: Array2<P>) -> Array2<P> {
    for mut row in logits.rows_mut() {
        let largest = row.fold(P::neg_infinity(), |largest, &logit| largest.max(logit));
        row.mapv_inplace(|logit| (logit - largest).exp());
        let sum = row.sum();
        row /= sum;
    }
    logits
}

/// The gradient of the summed cross-entropy with respect to the logits.
fn cross_entropy_gradient<P: Real>(logits: Array2<P>, labels: &[u8]) -> Array2<P> {
    let mut gradient = softmax(logits);
    for (mut row, &label) in gradient.rows_mut().into_iter().zip(labels) {
        row[usize::from(label)] -= P::one();
    }
    gradient
}

fn cast<A: Element, B: Element>(values: &Array2<A>) -> Array2<B> {
    values.mapv(|value| B::from_f64(value.to_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABELS: [u8; 7] = [0, 2, 1, 1, 0, 2, 2];

    fn network(nonlinearity: Nonlinearity, norm: Option<&Cpu>) -> Network<f64> {
        let architecture = Architecture { inputs: 5, hidden: vec![4, 6], classes: 3, nonlinearity };
        Network::new(&architecture, norm, 3).unwrap()
    }

    fn images() -> Array2<f64> {
        Array2::from_shape_fn((LABELS.len(), 5), |(row, column)| {
            (1.0 + 7.0 * row as f64 + 3.0 * column as f64).sin()
        })
    }

    fn loss(network: &mut Network<f64>) -> f64 {
        let (logits, _) = network.forward_train(images()).unwrap();
        let probabilities = softmax(logits);
        let losses = probabilities
            .rows()
            .into_iter()
            .zip(LABELS)
            .map(|(row, label)| -row[label as usize].ln());
        losses.sum::<f64>() / LABELS.len() as f64
    }

    fn weight(network: &mut Network<f64>, layer: usize) -> &mut Array2<f64> {
        match network.hidden.get_mut(layer) {
            Some(hidden) => &mut hidden.linear.weight,
            None => &mut network.output.weight,
        }
    }

    /// The step of rate 1 is the gradient, which finite differences of the loss give as well.
    fn check_gradients(nonlinearity: Nonlinearity, norm: Option<&Cpu>) {
        const H: f64 = 1e-5;
        let mut stepped = network(nonlinearity, norm);
        stepped.train_step(images(), &LABELS, 1.0).unwrap();
        for layer in 0..3 {
            for at in [(0, 0), (3, 2)] {
                let mut probe = network(nonlinearity, norm);
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
        let backend = Cpu::new();
        for nonlinearity in [Nonlinearity::Sigmoid, Nonlinearity::Tanh, Nonlinearity::Relu] {
            check_gradients(nonlinearity, None);
            check_gradients(nonlinearity, Some(&backend));
        }
    }

    #[test]
    fn both_networks_start_from_the_same_weights() {
        let backend = Cpu::new();
        let mut plain = network(Nonlinearity::Sigmoid, None);
        let mut normalized = network(Nonlinearity::Sigmoid, Some(&backend));
        for layer in 0..3 {
            assert_eq!(weight(&mut plain, layer), weight(&mut normalized, layer));
        }
        assert!(normalized.hidden.iter().all(|hidden| hidden.linear.bias.is_none()));
    }
}
