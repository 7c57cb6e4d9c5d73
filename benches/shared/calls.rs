//! The stateless calls as the benchmarks make them, on any backend: all memory is there, and has
//! been written to, before a call.

use rand::{RngExt, SeedableRng};
use warpnorm::{
    Affine, Backend, BackwardTrain, Element, ForwardTrain, GradientsMut, Inference, Norm, Problem,
    Result, Running, RunningMut, SavedMut, SavedRef,
};

pub const NORM: Norm = Norm { eps: 1e-5, momentum: Some(0.1) };

/// Values repeat after so many, a prime: random enough for any channel, and quick to make for
/// tensors of any size.
const PERIOD: usize = 1_000_003;

/// What the inputs hold.
pub struct Inputs<E: Element> {
    pub x: Vec<E>,
    pub dy: Vec<E>,
    /// Empty where the problem has none.
    pub residual: Vec<E>,
    pub weight: Vec<E::Param>,
    pub bias: Vec<E::Param>,
}

impl<E: Element> Inputs<E> {
    /// The same for every call on the same shape.
    pub fn random(problem: &Problem) -> Self {
        let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(1);
        let mut tensor = |elements: usize| -> Vec<E> {
            let value = |_| E::from_f64(random.random_range(-2.0..2.0));
            let values: Vec<E> = (0..elements.min(PERIOD)).map(value).collect();
            values.iter().copied().cycle().take(elements).collect()
        };
        let elements = problem.elements();
        let channel = |values: [f64; 3]| {
            (0..problem.channels()).map(|c| E::Param::from_f64(values[c % 3])).collect()
        };
        Inputs {
            x: tensor(elements),
            dy: tensor(elements),
            residual: tensor(if problem.epilogue().residual { elements } else { 0 }),
            weight: channel([1.5, -0.75, 1.0]),
            bias: channel([0.25, -0.5, 0.0]),
        }
    }
}

/// Bytes of what a call borrows: so many tensors, a mask, and vectors.
pub fn bytes(problem: &Problem) -> u64 {
    let tensors = if problem.epilogue().residual { 6 } else { 4 };
    let vectors = VECTORS * problem.channels() * problem.dtype().size().max(size_of::<f32>());
    tensors * tensor_bytes(problem) + (problem.mask_len() + vectors) as u64
}

/// Bytes that are taken at most at a time, while [`Tensors::new`] makes them.
pub fn most_bytes(problem: &Problem) -> u64 {
    bytes(problem) + SPACERS * (tensor_bytes(problem) / 2)
}

fn tensor_bytes(problem: &Problem) -> u64 {
    problem.elements() as u64 * problem.dtype().size() as u64
}

/// Parameters, statistics and their gradients.
const VECTORS: usize = 9;
/// Halves of tensors between whole ones.
const SPACERS: u64 = 3;

/// What a call borrows.
pub struct Tensors<B: Backend, E: Element> {
    pub x: B::Buffer<E>,
    pub dy: B::Buffer<E>,
    pub residual: Option<B::Buffer<E>>,
    pub y: B::Buffer<E>,
    pub dx: B::Buffer<E>,
    pub dresidual: Option<B::Buffer<E>>,
    pub weight: B::Buffer<E::Param>,
    pub bias: B::Buffer<E::Param>,
    mask: Option<B::Buffer<u8>>,
    pub running_mean: B::Buffer<E::Param>,
    pub running_var: B::Buffer<E::Param>,
    num_batches_tracked: B::Buffer<i64>,
    mean_hi: B::Buffer<E::Param>,
    mean_lo: B::Buffer<E::Param>,
    invstd: B::Buffer<E::Param>,
    dweight: B::Buffer<E::Param>,
    dbias: B::Buffer<E::Param>,
}

impl<B: Backend, E: Element> Tensors<B, E> {
    /// Outputs hold what inputs do: their pages are there, too.
    pub fn new(backend: &B, problem: &Problem, inputs: &Inputs<E>) -> Result<Self> {
        let ones = vec![E::Param::from_f64(1.0); problem.channels()];
        let vector = || backend.upload(&ones);
        let mask = vec![0_u8; problem.mask_len()];
        let residual = || match problem.epilogue().residual {
            true => backend.upload(&inputs.residual).map(Some),
            false => Ok(None),
        };
        // Until all are there, half a tensor here and there keeps those of one call from lying an even
        // number of tensors apart: of 16 MiB, such are slower on some machines.
        let half = || backend.upload(&inputs.x[..inputs.x.len() / 2]);
        let (x, y, _after_y) = (backend.upload(&inputs.x)?, backend.upload(&inputs.x)?, half()?);
        let (dy, dx, _after_dx) =
            (backend.upload(&inputs.dy)?, backend.upload(&inputs.x)?, half()?);
        let (dresidual, _after_dresidual) = (residual()?, half()?);
        Ok(Tensors {
            x,
            y,
            dy,
            dx,
            dresidual,
            residual: residual()?,
            weight: backend.upload(&inputs.weight)?,
            bias: backend.upload(&inputs.bias)?,
            mask: (!mask.is_empty()).then(|| backend.upload(&mask)).transpose()?,
            running_mean: vector()?,
            running_var: vector()?,
            num_batches_tracked: backend.upload(&[0])?,
            mean_hi: vector()?,
            mean_lo: vector()?,
            invstd: vector()?,
            dweight: vector()?,
            dbias: vector()?,
        })
    }

    /// Others of the same contents, in memory of their own.
    pub fn duplicate(&self, backend: &B) -> Result<Self> {
        let tensor = |buffer| backend.duplicate::<E>(buffer);
        let vector = |buffer| backend.duplicate::<E::Param>(buffer);
        Ok(Tensors {
            x: tensor(&self.x)?,
            dy: tensor(&self.dy)?,
            residual: self.residual.as_ref().map(tensor).transpose()?,
            y: tensor(&self.y)?,
            dx: tensor(&self.dx)?,
            dresidual: self.dresidual.as_ref().map(tensor).transpose()?,
            weight: vector(&self.weight)?,
            bias: vector(&self.bias)?,
            mask: self.mask.as_ref().map(|mask| backend.duplicate(mask)).transpose()?,
            running_mean: vector(&self.running_mean)?,
            running_var: vector(&self.running_var)?,
            num_batches_tracked: backend.duplicate(&self.num_batches_tracked)?,
            mean_hi: vector(&self.mean_hi)?,
            mean_lo: vector(&self.mean_lo)?,
            invstd: vector(&self.invstd)?,
            dweight: vector(&self.dweight)?,
            dbias: vector(&self.dbias)?,
        })
    }

    pub fn forward_train(
        &mut self,
        backend: &B,
        problem: &Problem,
        workspace: &mut B::Workspace,
    ) -> Result<()> {
        let args = ForwardTrain {
            x: B::slice(&self.x),
            residual: self.residual.as_ref().map(B::slice),
            affine: affine::<B, E>(&self.weight, &self.bias),
            running: Some(RunningMut {
                mean: B::slice_mut(&mut self.running_mean),
                var: B::slice_mut(&mut self.running_var),
                num_batches_tracked: B::slice_mut(&mut self.num_batches_tracked),
            }),
            y: B::slice_mut(&mut self.y),
            saved: SavedMut {
                mean_hi: B::slice_mut(&mut self.mean_hi),
                mean_lo: B::slice_mut(&mut self.mean_lo),
                invstd: B::slice_mut(&mut self.invstd),
                mask: self.mask.as_mut().map(B::slice_mut),
            },
            workspace,
        };
        backend.forward_train::<E>(problem, &NORM, args)
    }

    pub fn backward_train(
        &mut self,
        backend: &B,
        problem: &Problem,
        workspace: &mut B::Workspace,
    ) -> Result<()> {
        let args = BackwardTrain {
            x: B::slice(&self.x),
            residual: None,
            dy: B::slice(&self.dy),
            affine: affine::<B, E>(&self.weight, &self.bias),
            saved: SavedRef {
                mean_hi: B::slice(&self.mean_hi),
                mean_lo: B::slice(&self.mean_lo),
                invstd: B::slice(&self.invstd),
                mask: self.mask.as_ref().map(B::slice),
            },
            gradients: GradientsMut {
                dx: B::slice_mut(&mut self.dx),
                dresidual: self.dresidual.as_mut().map(B::slice_mut),
                dweight: Some(B::slice_mut(&mut self.dweight)),
                dbias: Some(B::slice_mut(&mut self.dbias)),
            },
            workspace,
        };
        backend.backward_train::<E>(problem, args)
    }

    pub fn inference(
        &mut self,
        backend: &B,
        problem: &Problem,
        workspace: &mut B::Workspace,
    ) -> Result<()> {
        let args = Inference {
            x: B::slice(&self.x),
            residual: self.residual.as_ref().map(B::slice),
            affine: affine::<B, E>(&self.weight, &self.bias),
            running: Running {
                mean: B::slice(&self.running_mean),
                var: B::slice(&self.running_var),
            },
            y: B::slice_mut(&mut self.y),
            workspace,
        };
        backend.inference::<E>(problem, &NORM, args)
    }
}

fn affine<'a, B: Backend, E: Element>(
    weight: &'a B::Buffer<E::Param>,
    bias: &'a B::Buffer<E::Param>,
) -> Affine<'a, B, E> {
    Affine { weight: Some(B::slice(weight)), bias: Some(B::slice(bias)) }
}
