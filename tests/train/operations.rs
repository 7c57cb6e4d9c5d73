//! The network's operations on an accelerator, one by one and all together, against the CPU's.

use crate::accelerated::{Accelerator, Gpu};
use crate::network::{Architecture, Network};
use crate::ops::{Matrix, Nonlinearity, Ops};
use half::{bf16, f16};
use ndarray::{Array1, Array2};
use warpnorm::{Backend, Cpu, Element, Result};

const NONLINEARITIES: [Nonlinearity; 3] =
    [Nonlinearity::Sigmoid, Nonlinearity::Relu, Nonlinearity::Tanh];

/// Numbers of either sign that repeat nowhere.
fn numbers(rows: usize, columns: usize, phase: f32) -> Array2<f32> {
    Array2::from_shape_fn((rows, columns), |(row, column)| {
        1.5 * (phase + 1.7 * row as f32 + 0.61 * column as f32).sin()
    })
}

/// An operation on a device, its result in host memory.
trait Operation {
    fn on<O: Ops<f32>>(&self, ops: &O) -> Result<Array2<f32>>;
}

fn up<O: Ops<f32>>(ops: &O, array: &Array2<f32>) -> Result<Matrix<O::Backend, f32>> {
    Matrix::upload(ops.backend(), array.view())
}

fn vector<O: Ops<f32>>(ops: &O, buffer: &crate::ops::Buffer<O, f32>) -> Result<Array2<f32>> {
    let values = Array1::from(ops.backend().download(buffer)?);
    Ok(values.insert_axis(ndarray::Axis(0)))
}

/// 7 rows of 5 by weights of 5 x 4, with a bias or without.
struct Forward(bool);

impl Operation for Forward {
    fn on<O: Ops<f32>>(&self, ops: &O) -> Result<Array2<f32>> {
        let bias = ops.backend().upload(&[0.25, -1.0, 3.0, 0.5])?;
        let (input, weight) = (up(ops, &numbers(7, 5, 0.0))?, up(ops, &numbers(5, 4, 1.0))?);
        ops.forward(&input, &weight, self.0.then_some(&bias))?.download(ops.backend())
    }
}

struct Backward;

impl Operation for Backward {
    fn on<O: Ops<f32>>(&self, ops: &O) -> Result<Array2<f32>> {
        let (gradient, weight) = (up(ops, &numbers(7, 4, 0.0))?, up(ops, &numbers(5, 4, 1.0))?);
        ops.backward(&gradient, &weight)?.download(ops.backend())
    }
}

struct DescendWeight;

impl Operation for DescendWeight {
    fn on<O: Ops<f32>>(&self, ops: &O) -> Result<Array2<f32>> {
        let mut weight = up(ops, &numbers(5, 4, 1.0))?;
        let (input, gradient) = (up(ops, &numbers(7, 5, 0.0))?, up(ops, &numbers(7, 4, 2.0))?);
        ops.descend_weight(&mut weight, &input, &gradient, 0.125)?;
        weight.download(ops.backend())
    }
}

/// More columns than a block has threads.
struct DescendBias;

impl Operation for DescendBias {
    fn on<O: Ops<f32>>(&self, ops: &O) -> Result<Array2<f32>> {
        let mut bias = up(ops, &numbers(1, 300, 1.0))?.values;
        ops.descend_bias(&mut bias, &up(ops, &numbers(7, 300, 2.0))?, 0.125)?;
        vector(ops, &bias)
    }
}

struct Descend;

impl Operation for Descend {
    fn on<O: Ops<f32>>(&self, ops: &O) -> Result<Array2<f32>> {
        let mut parameter = up(ops, &numbers(1, 300, 1.0))?.values;
        ops.descend(&mut parameter, &up(ops, &numbers(1, 300, 2.0))?.values, 0.125)?;
        vector(ops, &parameter)
    }
}

struct Activate(Nonlinearity);

impl Operation for Activate {
    fn on<O: Ops<f32>>(&self, ops: &O) -> Result<Array2<f32>> {
        ops.activate(self.0, &up(ops, &numbers(9, 33, 0.0))?)?.download(ops.backend())
    }
}

struct ActivationGradient(Nonlinearity);

impl Operation for ActivationGradient {
    fn on<O: Ops<f32>>(&self, ops: &O) -> Result<Array2<f32>> {
        let (y, dy) = (up(ops, &numbers(9, 33, 0.0))?, up(ops, &numbers(9, 33, 1.0))?);
        ops.activation_gradient(self.0, &y, &dy)?.download(ops.backend())
    }
}

/// More rows than a block has threads.
struct CrossEntropyGradient;

impl Operation for CrossEntropyGradient {
    fn on<O: Ops<f32>>(&self, ops: &O) -> Result<Array2<f32>> {
        let labels: Vec<u8> = (0..300).map(|row| (row % 10) as u8).collect();
        let logits = up(ops, &(numbers(300, 10, 0.0) * 40.0))?;
        ops.cross_entropy_gradient(logits, &labels)?.download(ops.backend())
    }
}

/// To 16 bits and back.
struct Convert<E>(std::marker::PhantomData<E>);

impl<E: Element<Param = f32>> Operation for Convert<E> {
    fn on<O: Ops<f32>>(&self, ops: &O) -> Result<Array2<f32>> {
        let narrow = ops.narrow::<E>(&up(ops, &numbers(9, 33, 0.0))?)?;
        ops.widen(&narrow)?.download(ops.backend())
    }
}

/// The largest difference, the CPU's values being `expected`.
fn difference(found: &Array2<f32>, expected: &Array2<f32>) -> f32 {
    assert_eq!(found.dim(), expected.dim());
    let differences = found.iter().zip(expected).map(|(found, expected)| (found - expected).abs());
    differences.fold(0.0, |a, b| if a > b || a.is_nan() { a } else { b })
}

fn agrees<A: Accelerator>(gpu: &Gpu<A>, operation: &impl Operation, name: &str, bound: f32) {
    let expected = operation.on(&Cpu::new()).unwrap();
    let found = operation.on(gpu).unwrap_or_else(|error| panic!("{name}: {error}"));
    let difference = difference(&found, &expected);
    assert!(difference <= bound, "{name}: off by {difference:e}");
}

/// Each by itself. Sums may be rounded in another order and exp and tanh by another library;
/// conversions are exact.
pub fn each_is_the_cpus<A: Accelerator>(gpu: &Gpu<A>) {
    agrees(gpu, &Forward(false), "forward", 4e-6);
    agrees(gpu, &Forward(true), "forward with a bias", 4e-6);
    agrees(gpu, &Backward, "backward", 4e-6);
    agrees(gpu, &DescendWeight, "descend_weight", 4e-6);
    agrees(gpu, &DescendBias, "descend_bias", 4e-6);
    agrees(gpu, &Descend, "descend", 4e-7);
    for nonlinearity in NONLINEARITIES {
        agrees(gpu, &Activate(nonlinearity), &format!("{nonlinearity:?}"), 4e-7);
        let name = format!("the gradient of {nonlinearity:?}");
        agrees(gpu, &ActivationGradient(nonlinearity), &name, 1e-6);
    }
    agrees(gpu, &CrossEntropyGradient, "cross_entropy_gradient", 1e-6);
    agrees(gpu, &Convert::<f32>(Default::default()), "to f32 and back", 0.0);
    agrees(gpu, &Convert::<f16>(Default::default()), "to f16 and back", 0.0);
    agrees(gpu, &Convert::<bf16>(Default::default()), "to bf16 and back", 0.0);
}

/// The class scores of a network after a few steps, in train mode and eval mode.
fn trained<E: Element<Param = f32>, O: Ops<f32>>(
    ops: &O,
    nonlinearity: Nonlinearity,
    normalized: bool,
) -> Result<[Array2<f32>; 2]> {
    const LABELS: [u8; 12] = [0, 2, 1, 1, 0, 2, 2, 0, 1, 2, 0, 1];
    let architecture = Architecture { inputs: 9, hidden: vec![12, 10], classes: 3, nonlinearity };
    let mut network = Network::<E, O>::new(&architecture, ops, normalized, 5)?;
    let images = numbers(LABELS.len(), 9, 0.5);
    for _ in 0..6 {
        network.train_step(images.view(), &LABELS, 0.1)?;
    }
    let eval = network.forward_eval(images.view())?;
    Ok([network.with_statistics_of(images.view())?.1, eval])
}

fn training_agrees<E: Element<Param = f32>, A: Accelerator>(gpu: &Gpu<A>, bound: f32) {
    for (nonlinearity, normalized) in
        NONLINEARITIES.into_iter().flat_map(|it| [(it, false), (it, true)])
    {
        let name = format!("{}, {nonlinearity:?}, normalized: {normalized}", E::DTYPE);
        let expected = trained::<E, _>(&Cpu::new(), nonlinearity, normalized).unwrap();
        let found = trained::<E, _>(gpu, nonlinearity, normalized)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        for (found, expected) in found.iter().zip(&expected) {
            let difference = difference(found, expected);
            assert!(difference <= bound, "{name}: off by {difference:e}");
        }
    }
}

/// A few steps of every kind of network. A value that is rounded to another 16-bit neighbour is
/// off by a last place of its type.
pub fn training_is_the_cpus<A: Accelerator>(gpu: &Gpu<A>) {
    training_agrees::<f32, A>(gpu, 2e-5);
    training_agrees::<f16, A>(gpu, 5e-3);
    training_agrees::<bf16, A>(gpu, 4e-2);
}

/// What does not fit is refused before it is launched.
pub fn refusals<A: Accelerator>(gpu: &Gpu<A>) {
    let (left, right) = (up(gpu, &numbers(3, 4, 0.0)), up(gpu, &numbers(5, 2, 0.0)));
    let error = gpu.forward(&left.unwrap(), &right.unwrap(), None).err().unwrap().to_string();
    let text = "`matrix`: expected factors of 3 x 2, found 3 x 4 times 5 x 2";
    assert_eq!(error, text);
}
