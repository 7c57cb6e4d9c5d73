//! The network's operations on the CPU, by ndarray.

use crate::ops::{Matrix, Nonlinearity, Ops, Real};
use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis};
use warpnorm::{Cpu, Element, Result, Scalar};

impl<P: Real> Ops<P> for Cpu {
    type Backend = Cpu;
    const SYNCHRONOUS: bool = true;

    fn backend(&self) -> &Cpu {
        self
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }

    fn forward(
        &self,
        input: &Matrix<Cpu, P>,
        weight: &Matrix<Cpu, P>,
        bias: Option<&Vec<P>>,
    ) -> Result<Matrix<Cpu, P>> {
        let mut output = view(input).dot(&view(weight));
        if let Some(bias) = bias {
            output += &ArrayView1::from(bias.as_slice());
        }
        Ok(matrix(output))
    }

    fn backward(
        &self,
        gradient: &Matrix<Cpu, P>,
        weight: &Matrix<Cpu, P>,
    ) -> Result<Matrix<Cpu, P>> {
        Ok(matrix(view(gradient).dot(&view(weight).t())))
    }

    fn descend_weight(
        &self,
        weight: &mut Matrix<Cpu, P>,
        input: &Matrix<Cpu, P>,
        gradient: &Matrix<Cpu, P>,
        rate: P,
    ) -> Result<()> {
        view_mut(weight).scaled_add(-rate, &view(input).t().dot(&view(gradient)));
        Ok(())
    }

    fn descend_bias(&self, bias: &mut Vec<P>, gradient: &Matrix<Cpu, P>, rate: P) -> Result<()> {
        let sums = view(gradient).sum_axis(Axis(0));
        ArrayViewMut1::from(bias.as_mut_slice()).scaled_add(-rate, &sums);
        Ok(())
    }

    fn descend(&self, parameter: &mut Vec<P>, gradient: &Vec<P>, rate: P) -> Result<()> {
        for (value, &gradient) in parameter.iter_mut().zip(gradient) {
            *value -= rate * gradient;
        }
        Ok(())
    }

    fn activate(&self, nonlinearity: Nonlinearity, z: &Matrix<Cpu, P>) -> Result<Matrix<Cpu, P>> {
        Ok(map(z, |z| activate(nonlinearity, z)))
    }

    fn activation_gradient(
        &self,
        nonlinearity: Nonlinearity,
        y: &Matrix<Cpu, P>,
        dy: &Matrix<Cpu, P>,
    ) -> Result<Matrix<Cpu, P>> {
        let pairs = dy.values.iter().zip(&y.values);
        let values = pairs.map(|(&dy, &y)| dy * slope(nonlinearity, y)).collect();
        Ok(Matrix { values, ..*dy })
    }

    fn cross_entropy_gradient(
        &self,
        mut logits: Matrix<Cpu, P>,
        labels: &[u8],
    ) -> Result<Matrix<Cpu, P>> {
        let mut gradient = view_mut(&mut logits);
        softmax_inplace(&mut gradient);
        for (mut row, &label) in gradient.rows_mut().into_iter().zip(labels) {
            row[usize::from(label)] -= P::one();
        }
        Ok(logits)
    }

    fn narrow<E: Element<Param = P>>(&self, values: &Matrix<Cpu, P>) -> Result<Matrix<Cpu, E>> {
        Ok(map(values, |value| E::from_f64(Element::to_f64(value))))
    }

    fn widen<E: Element<Param = P>>(&self, values: &Matrix<Cpu, E>) -> Result<Matrix<Cpu, P>> {
        Ok(map(values, |value| P::from_f64(value.to_f64())))
    }
}

fn view<P: Real>(matrix: &Matrix<Cpu, P>) -> ArrayView2<'_, P> {
    let shape = (matrix.rows, matrix.columns);
    ArrayView2::from_shape(shape, &matrix.values).expect("as many values as the matrix has")
}

fn view_mut<P: Real>(matrix: &mut Matrix<Cpu, P>) -> ArrayViewMut2<'_, P> {
    let shape = (matrix.rows, matrix.columns);
    ArrayViewMut2::from_shape(shape, &mut matrix.values).expect("as many values as the matrix has")
}

fn matrix<P: Real>(array: Array2<P>) -> Matrix<Cpu, P> {
    let (rows, columns) = array.dim();
    // A product of transposed matrices may come column after column.
    let array =
        if array.is_standard_layout() { array } else { array.as_standard_layout().into_owned() };
    Matrix { rows, columns, values: array.into_raw_vec_and_offset().0 }
}

fn map<A: Scalar, B: Scalar>(values: &Matrix<Cpu, A>, f: impl Fn(A) -> B) -> Matrix<Cpu, B> {
    let Matrix { rows, columns, .. } = *values;
    Matrix { rows, columns, values: values.values.iter().map(|&value| f(value)).collect() }
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
    softmax_inplace(&mut logits.view_mut());
    logits
}

fn softmax_inplace<P: Real>(logits: &mut ArrayViewMut2<P>) {
    for mut row in logits.rows_mut() {
        let largest = row.fold(P::neg_infinity(), |largest, &logit| largest.max(logit));
        row.mapv_inplace(|logit| (logit - largest).exp());
        let sum = row.sum();
        row /= sum;
    }
}
