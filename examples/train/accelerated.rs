//! The network's operations by kernels and matrix products that a GPU is given to do, one after
//! the other. Which GPU, and how it is given them, is an [`Accelerator`]'s.

use crate::ops::{Matrix, Nonlinearity, Ops};
use warpnorm::cuda::{Device, Launcher};
use warpnorm::{DType, Element, Error, Result, Scalar};

/// The kernels' entry points, in kernels.cu.
pub const KERNELS: [&str; 12] = [
    "train_add_bias",
    "train_activate",
    "train_activation_gradient",
    "train_cross_entropy_gradient",
    "train_descend",
    "train_descend_by_rows",
    "train_narrow_f32",
    "train_narrow_f16",
    "train_narrow_bf16",
    "train_widen_f32",
    "train_widen_f16",
    "train_widen_bf16",
];

/// The most threads that a kernel's block may have.
pub const BLOCK: usize = 256;

/// What every kernel takes: `TrainParams` of kernels.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, bytemuck::NoUninit)]
pub struct KernelParams {
    pub input: u64,
    pub output: u64,
    pub rows: u64,
    pub columns: u64,
    pub rate: f32,
    pub nonlinearity: u32,
}

/// `c = alpha * op(a) * op(b) + beta * c` as BLAS has it: matrices lie column after column, `op`
/// transposes or does not, `op(a)` is m x k and `op(b)` k x n.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gemm {
    pub a_transposed: bool,
    pub b_transposed: bool,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub alpha: f32,
    pub beta: f32,
    /// Elements from one column to the next, of `a`, `b` and `c`.
    pub lda: usize,
    pub ldb: usize,
    pub ldc: usize,
}

impl Gemm {
    /// Refuses a product that would reach beyond its buffers, which have so many elements.
    pub fn check(&self, a: usize, b: usize, c: usize) -> Result<()> {
        let needs = |transposed, rows, columns, stride| {
            let (rows, columns) = if transposed { (columns, rows) } else { (rows, columns) };
            if rows > stride { usize::MAX } else { stride * columns }
        };
        let fits = needs(self.a_transposed, self.m, self.k, self.lda) <= a
            && needs(self.b_transposed, self.k, self.n, self.ldb) <= b
            && needs(false, self.m, self.n, self.ldc) <= c;
        if fits {
            return Ok(());
        }
        let found = format!("{a}, {b} and {c} elements");
        Err(Error::argument("matrix", format!("enough for {self:?}"), found))
    }
}

/// Device memory of an accelerator.
pub type Memory<A, T> = <<A as Accelerator>::Launcher as Launcher>::Buffer<T>;

/// Does what it is given in the order it is given it, batch normalization by its launcher included.
pub trait Accelerator: Clone + Send + Sync + 'static {
    type Launcher: Launcher;

    fn launcher(&self) -> &Self::Launcher;

    /// Enqueues one of [`KERNELS`] on so many threads or a few more. The addresses in its params
    /// are held by the caller.
    fn launch(&self, kernel: &str, threads: usize, params: &KernelParams) -> Result<()>;

    /// Enqueues a product; [`Gemm::check`] says what is not one.
    fn multiply(
        &self,
        gemm: &Gemm,
        a: &Memory<Self, f32>,
        b: &Memory<Self, f32>,
        c: &mut Memory<Self, f32>,
    ) -> Result<()>;

    /// Waits until everything is done.
    fn wait(&self) -> Result<()>;
}

/// The network's operations on an accelerator.
#[derive(Clone)]
pub struct Gpu<A: Accelerator> {
    accelerator: A,
    backend: Device<A::Launcher>,
}

impl<A: Accelerator> Gpu<A> {
    pub fn new(accelerator: A) -> Self {
        let backend = Device::new(accelerator.launcher().clone());
        Gpu { accelerator, backend }
    }

    fn run<T: Scalar, U: Scalar>(
        &self,
        kernel: &str,
        threads: usize,
        input: &Memory<A, T>,
        output: &mut Memory<A, U>,
        params: KernelParams,
    ) -> Result<()> {
        let launcher = self.accelerator.launcher();
        let input = A::Launcher::slice(input);
        let input = launcher.memory(&input)?;
        let mut output = A::Launcher::slice_mut(output);
        let output = launcher.memory_mut(&mut output)?;
        let params = KernelParams { input: input.address, output: output.address, ..params };
        self.accelerator.launch(kernel, threads, &params)
    }

    /// A kernel with a thread for each element.
    fn run_elements<T: Scalar, U: Scalar>(
        &self,
        kernel: &str,
        input: &Memory<A, T>,
        output: &mut Matrix<Device<A::Launcher>, U>,
        params: KernelParams,
    ) -> Result<()> {
        let (rows, columns) = (output.rows, output.columns);
        let params = KernelParams { rows: rows as u64, columns: columns as u64, ..params };
        self.run(kernel, rows * columns, input, &mut output.values, params)
    }

    /// `c = alpha * left * right + beta * c`, the factors transposed or not.
    fn multiply(
        &self,
        (left, left_transposed): (&Floats<A>, bool),
        (right, right_transposed): (&Floats<A>, bool),
        c: &mut Floats<A>,
        (alpha, beta): (f32, f32),
    ) -> Result<()> {
        let (rows, inner) = extents::<A>(left, left_transposed);
        let (inner_too, columns) = extents::<A>(right, right_transposed);
        if inner != inner_too || (rows, columns) != (c.rows, c.columns) {
            let found = format!("{rows} x {inner} times {inner_too} x {columns}");
            let expected = format!("factors of {} x {}", c.rows, c.columns);
            return Err(Error::argument("matrix", expected, found));
        }
        // Row after row is column after column of the transposed: c' = right' * left'.
        let gemm = Gemm {
            a_transposed: right_transposed,
            b_transposed: left_transposed,
            m: c.columns,
            n: c.rows,
            k: inner,
            alpha,
            beta,
            lda: right.columns,
            ldb: left.columns,
            ldc: c.columns,
        };
        self.accelerator.multiply(&gemm, &right.values, &left.values, &mut c.values)
    }

    fn convert<T: Scalar, U: Scalar>(
        &self,
        kernel: &str,
        values: &Matrix<Device<A::Launcher>, T>,
    ) -> Result<Matrix<Device<A::Launcher>, U>> {
        let mut converted = Matrix::zeros(&self.backend, values.rows, values.columns)?;
        self.run_elements(kernel, &values.values, &mut converted, KernelParams::default())?;
        Ok(converted)
    }
}

type Floats<A> = Matrix<Device<<A as Accelerator>::Launcher>, f32>;

/// Rows and columns of a factor.
fn extents<A: Accelerator>(matrix: &Floats<A>, transposed: bool) -> (usize, usize) {
    match transposed {
        false => (matrix.rows, matrix.columns),
        true => (matrix.columns, matrix.rows),
    }
}

/// As kernels.cu numbers them.
fn number(nonlinearity: Nonlinearity) -> u32 {
    match nonlinearity {
        Nonlinearity::Sigmoid => 0,
        Nonlinearity::Relu => 1,
        Nonlinearity::Tanh => 2,
    }
}

/// The kernel that converts from or to the element type of batch normalization.
fn converter<E: Element>(narrow: bool) -> Result<&'static str> {
    match (E::DTYPE, narrow) {
        (DType::F32, true) => Ok("train_narrow_f32"),
        (DType::F16, true) => Ok("train_narrow_f16"),
        (DType::Bf16, true) => Ok("train_narrow_bf16"),
        (DType::F32, false) => Ok("train_widen_f32"),
        (DType::F16, false) => Ok("train_widen_f16"),
        (DType::Bf16, false) => Ok("train_widen_bf16"),
        (DType::F64, _) => Err(Error::argument("dtype", "f32, f16 or bf16 on a GPU", DType::F64)),
    }
}

impl<A: Accelerator> Ops<f32> for Gpu<A> {
    type Backend = Device<A::Launcher>;
    const SYNCHRONOUS: bool = false;

    fn backend(&self) -> &Self::Backend {
        &self.backend
    }

    fn wait(&self) -> Result<()> {
        self.accelerator.wait()
    }

    fn forward(
        &self,
        input: &Floats<A>,
        weight: &Floats<A>,
        bias: Option<&Memory<A, f32>>,
    ) -> Result<Floats<A>> {
        let mut output = Matrix::zeros(&self.backend, input.rows, weight.columns)?;
        self.multiply((input, false), (weight, false), &mut output, (1.0, 0.0))?;
        if let Some(bias) = bias {
            self.run_elements("train_add_bias", bias, &mut output, KernelParams::default())?;
        }
        Ok(output)
    }

    fn backward(&self, gradient: &Floats<A>, weight: &Floats<A>) -> Result<Floats<A>> {
        let mut output = Matrix::zeros(&self.backend, gradient.rows, weight.rows)?;
        self.multiply((gradient, false), (weight, true), &mut output, (1.0, 0.0))?;
        Ok(output)
    }

    fn descend_weight(
        &self,
        weight: &mut Floats<A>,
        input: &Floats<A>,
        gradient: &Floats<A>,
        rate: f32,
    ) -> Result<()> {
        self.multiply((input, true), (gradient, false), weight, (-rate, 1.0))
    }

    fn descend_bias(
        &self,
        bias: &mut Memory<A, f32>,
        gradient: &Floats<A>,
        rate: f32,
    ) -> Result<()> {
        let (rows, columns) = (gradient.rows as u64, gradient.columns as u64);
        let params = KernelParams { rows, columns, rate, ..KernelParams::default() };
        self.run("train_descend_by_rows", gradient.columns, &gradient.values, bias, params)
    }

    fn descend(
        &self,
        parameter: &mut Memory<A, f32>,
        gradient: &Memory<A, f32>,
        rate: f32,
    ) -> Result<()> {
        let len = A::Launcher::len(parameter);
        let params = KernelParams { rows: 1, columns: len as u64, rate, ..KernelParams::default() };
        self.run("train_descend", len, gradient, parameter, params)
    }

    fn activate(&self, nonlinearity: Nonlinearity, z: &Floats<A>) -> Result<Floats<A>> {
        let mut y = Matrix::zeros(&self.backend, z.rows, z.columns)?;
        let params = KernelParams { nonlinearity: number(nonlinearity), ..KernelParams::default() };
        self.run_elements("train_activate", &z.values, &mut y, params)?;
        Ok(y)
    }

    fn activation_gradient(
        &self,
        nonlinearity: Nonlinearity,
        y: &Floats<A>,
        dy: &Floats<A>,
    ) -> Result<Floats<A>> {
        let mut dz = dy.duplicate(&self.backend)?;
        let params = KernelParams { nonlinearity: number(nonlinearity), ..KernelParams::default() };
        self.run_elements("train_activation_gradient", &y.values, &mut dz, params)?;
        Ok(dz)
    }

    fn cross_entropy_gradient(&self, mut logits: Floats<A>, labels: &[u8]) -> Result<Floats<A>> {
        let labels = self.accelerator.launcher().upload(labels)?;
        let (rows, columns) = (logits.rows as u64, logits.columns as u64);
        let params = KernelParams { rows, columns, ..KernelParams::default() };
        let kernel = "train_cross_entropy_gradient";
        self.run(kernel, logits.rows, &labels, &mut logits.values, params)?;
        Ok(logits)
    }

    fn narrow<E: Element<Param = f32>>(
        &self,
        values: &Floats<A>,
    ) -> Result<Matrix<Self::Backend, E>> {
        self.convert(converter::<E>(true)?, values)
    }

    fn widen<E: Element<Param = f32>>(
        &self,
        values: &Matrix<Self::Backend, E>,
    ) -> Result<Floats<A>> {
        self.convert(converter::<E>(false)?, values)
    }
}
