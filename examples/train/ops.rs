//! [`Ops`]: what a network needs of a device beside batch normalization.

use clap::ValueEnum;
use ndarray::{Array2, ArrayView2, NdFloat};
use warpnorm::{Activation, Backend, Element, Param, Result, Scalar};

/// What weights are held and multiplied in: `f32` or `f64`.
pub trait Real: Param + NdFloat {}

impl<P: Param + NdFloat> Real for P {}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Nonlinearity {
    Sigmoid,
    Relu,
    Tanh,
}

impl Nonlinearity {
    pub fn activation(self) -> Activation {
        match self {
            Nonlinearity::Sigmoid => Activation::Sigmoid,
            Nonlinearity::Relu => Activation::Relu,
            Nonlinearity::Tanh => Activation::Tanh,
        }
    }
}

/// A matrix in the memory of a backend's device, row after row.
pub struct Matrix<B: Backend, T: Scalar> {
    pub rows: usize,
    pub columns: usize,
    pub values: B::Buffer<T>,
}

impl<B: Backend, T: Scalar> Matrix<B, T> {
    pub fn zeros(backend: &B, rows: usize, columns: usize) -> Result<Self> {
        Ok(Matrix { rows, columns, values: backend.zeros(rows * columns)? })
    }

    pub fn upload(backend: &B, array: ArrayView2<T>) -> Result<Self> {
        let (rows, columns) = array.dim();
        let array = array.as_standard_layout();
        let values = array.as_slice().expect("row after row, as just made");
        Ok(Matrix { rows, columns, values: backend.upload(values)? })
    }

    pub fn download(&self, backend: &B) -> Result<Array2<T>> {
        let values = backend.download(&self.values)?;
        Ok(Array2::from_shape_vec((self.rows, self.columns), values)
            .expect("as many values as the matrix has"))
    }

    pub fn duplicate(&self, backend: &B) -> Result<Self> {
        let Matrix { rows, columns, .. } = *self;
        Ok(Matrix { rows, columns, values: backend.duplicate(&self.values)? })
    }
}

/// A device that the network runs on, weights being of type `P`. Batch normalization is its
/// backend's; the rest of the network is here.
pub trait Ops<P: Param>: Clone + Send + Sync {
    /// Where batch normalization runs, and in whose memory everything is.
    type Backend: Backend;
    /// Whether a call returns when its work is done, so that a clock around it measures the work.
    const SYNCHRONOUS: bool;

    fn backend(&self) -> &Self::Backend;

    /// Waits until everything that was asked for is done.
    fn wait(&self) -> Result<()>;

    /// `input * weight + bias`, the bias added to every row.
    fn forward(
        &self,
        input: &Matrix<Self::Backend, P>,
        weight: &Matrix<Self::Backend, P>,
        bias: Option<&Buffer<Self, P>>,
    ) -> Result<Matrix<Self::Backend, P>>;

    /// `gradient * transposed(weight)`: what [`forward`](Self::forward)'s input gets of the
    /// gradient of its output.
    fn backward(
        &self,
        gradient: &Matrix<Self::Backend, P>,
        weight: &Matrix<Self::Backend, P>,
    ) -> Result<Matrix<Self::Backend, P>>;

    /// `weight -= rate * transposed(input) * gradient`.
    fn descend_weight(
        &self,
        weight: &mut Matrix<Self::Backend, P>,
        input: &Matrix<Self::Backend, P>,
        gradient: &Matrix<Self::Backend, P>,
        rate: P,
    ) -> Result<()>;

    /// `bias -= rate * ` the sum of the gradient's rows.
    fn descend_bias(
        &self,
        bias: &mut Buffer<Self, P>,
        gradient: &Matrix<Self::Backend, P>,
        rate: P,
    ) -> Result<()>;

    /// `parameter -= rate * gradient`.
    fn descend(
        &self,
        parameter: &mut Buffer<Self, P>,
        gradient: &Buffer<Self, P>,
        rate: P,
    ) -> Result<()>;

    fn activate(
        &self,
        nonlinearity: Nonlinearity,
        z: &Matrix<Self::Backend, P>,
    ) -> Result<Matrix<Self::Backend, P>>;

    /// dz of dy, given [`activate`](Self::activate)'s `y`.
    fn activation_gradient(
        &self,
        nonlinearity: Nonlinearity,
        y: &Matrix<Self::Backend, P>,
        dy: &Matrix<Self::Backend, P>,
    ) -> Result<Matrix<Self::Backend, P>>;

    /// The gradient of the summed cross-entropy with respect to the logits.
    fn cross_entropy_gradient(
        &self,
        logits: Matrix<Self::Backend, P>,
        labels: &[u8],
    ) -> Result<Matrix<Self::Backend, P>>;

    /// Rounded to what goes through batch normalization.
    fn narrow<E: Element<Param = P>>(
        &self,
        values: &Matrix<Self::Backend, P>,
    ) -> Result<Matrix<Self::Backend, E>>;

    /// What comes out of batch normalization, exactly.
    fn widen<E: Element<Param = P>>(
        &self,
        values: &Matrix<Self::Backend, E>,
    ) -> Result<Matrix<Self::Backend, P>>;
}

/// Values in the memory of a device.
pub type Buffer<O, P> = <<O as Ops<P>>::Backend as Backend>::Buffer<P>;
