//! Stateless calls on flat buffers that are all the test's own, outputs in larger buffers whose
//! gaps must stay as they were.

use super::{Case, Data, MOMENTUM, value_bits};
use ndarray::{Array3, ArrayRef, Ix3};
use warpnorm::*;

/// Fills outputs before a call, and the gaps of tensors for good.
pub const SENTINEL: f64 = 77.0;

/// Every buffer of every call.
#[derive(Clone)]
pub struct Buffers<E: Element> {
    pub problem: Problem,
    pub norm: Norm,
    pub x: Vec<E>,
    pub residual: Option<Vec<E>>,
    pub dy: Vec<E>,
    pub y: Vec<E>,
    pub dx: Vec<E>,
    pub dresidual: Option<Vec<E>>,
    pub weight: Option<Vec<E::Param>>,
    pub bias: Option<Vec<E::Param>>,
    pub dweight: Option<Vec<E::Param>>,
    pub dbias: Option<Vec<E::Param>>,
    pub running_mean: Vec<E::Param>,
    pub running_var: Vec<E::Param>,
    pub num_batches_tracked: Vec<i64>,
    pub mean_hi: Vec<E::Param>,
    pub mean_lo: Vec<E::Param>,
    pub invstd: Vec<E::Param>,
    pub mask: Option<Vec<u8>>,
    pub workspace: CpuWorkspace,
}

fn params<P: Param>(values: impl IntoIterator<Item = f64>) -> Vec<P> {
    values.into_iter().map(P::from_f64).collect()
}

impl<E: Element> Buffers<E> {
    /// Dense tensors, each element in the layout's memory order.
    pub fn dense(data: &Data<E>) -> Self {
        Self::with_gaps(data, &[])
    }

    /// With `gap` elements between the samples of each operand listed.
    pub fn with_gaps(data: &Data<E>, gaps: &[(Operand, usize)]) -> Self {
        let Case { dim, layout, epilogue, eps, .. } = data.case;
        let (n, c, s) = dim;
        let mut problem = Problem::new(&[n, c, s], layout, E::DTYPE, epilogue).unwrap();
        for &(operand, gap) in gaps {
            problem = problem.with_batch_stride(operand, c * s + gap).unwrap();
        }
        let input = |operand, tensor: &Array3<E>| flatten(&problem, operand, tensor);
        let output = |operand| vec![E::from_f64(SENTINEL); problem.span(operand)];
        let unset = || params(vec![SENTINEL; c]);
        let residual = epilogue.residual;
        Buffers {
            norm: Norm { eps, momentum: Some(MOMENTUM) },
            x: input(Operand::X, &data.x),
            residual: residual.then(|| input(Operand::Residual, &data.residual)),
            dy: input(Operand::Dy, &data.dy),
            y: output(Operand::Y),
            dx: output(Operand::Dx),
            dresidual: residual.then(|| output(Operand::Dresidual)),
            weight: Some(params(data.weight.iter().copied())),
            bias: Some(params(data.bias.iter().copied())),
            dweight: Some(unset()),
            dbias: Some(unset()),
            running_mean: params(data.running_mean.iter().copied()),
            running_var: params(data.running_var.iter().copied()),
            num_batches_tracked: vec![0],
            mean_hi: unset(),
            mean_lo: unset(),
            invstd: unset(),
            mask: epilogue.has_mask().then(|| vec![0; problem.mask_len()]),
            workspace: Cpu::new().workspace(&problem).unwrap(),
            problem,
        }
    }

    pub fn forward_train(&mut self, cpu: &Cpu) -> Result<()> {
        let args = ForwardTrain::<'_, Cpu, E> {
            x: (&self.x).into(),
            residual: self.residual.as_ref().map(CpuSlice::from),
            affine: affine(&self.weight, &self.bias),
            running: Some(RunningMut {
                mean: (&mut self.running_mean).into(),
                var: (&mut self.running_var).into(),
                num_batches_tracked: (&mut self.num_batches_tracked).into(),
            }),
            y: (&mut self.y).into(),
            saved: SavedMut {
                mean_hi: (&mut self.mean_hi).into(),
                mean_lo: (&mut self.mean_lo).into(),
                invstd: (&mut self.invstd).into(),
                mask: self.mask.as_mut().map(CpuSliceMut::from),
            },
            workspace: &mut self.workspace,
        };
        cpu.forward_train(&self.problem, &self.norm, args)
    }

    pub fn backward_train(&mut self, cpu: &Cpu) -> Result<()> {
        let args = BackwardTrain::<'_, Cpu, E> {
            x: (&self.x).into(),
            residual: self.residual.as_ref().map(CpuSlice::from),
            dy: (&self.dy).into(),
            affine: affine(&self.weight, &self.bias),
            saved: SavedRef {
                mean_hi: (&self.mean_hi).into(),
                mean_lo: (&self.mean_lo).into(),
                invstd: (&self.invstd).into(),
                mask: self.mask.as_ref().map(CpuSlice::from),
            },
            gradients: GradientsMut {
                dx: (&mut self.dx).into(),
                dresidual: self.dresidual.as_mut().map(CpuSliceMut::from),
                dweight: self.dweight.as_mut().map(CpuSliceMut::from),
                dbias: self.dbias.as_mut().map(CpuSliceMut::from),
            },
            workspace: &mut self.workspace,
        };
        cpu.backward_train(&self.problem, args)
    }

    pub fn inference(&mut self, cpu: &Cpu) -> Result<()> {
        let args = Inference::<'_, Cpu, E> {
            x: (&self.x).into(),
            residual: self.residual.as_ref().map(CpuSlice::from),
            affine: affine(&self.weight, &self.bias),
            running: running(&self.running_mean, &self.running_var),
            y: (&mut self.y).into(),
            workspace: &mut self.workspace,
        };
        cpu.inference(&self.problem, &self.norm, args)
    }

    pub fn inference_inplace(&mut self, cpu: &Cpu) -> Result<()> {
        let args = InferenceInplace::<'_, Cpu, E> {
            x: (&mut self.x).into(),
            residual: self.residual.as_ref().map(CpuSlice::from),
            affine: affine(&self.weight, &self.bias),
            running: running(&self.running_mean, &self.running_var),
            workspace: &mut self.workspace,
        };
        cpu.inference_inplace(&self.problem, &self.norm, args)
    }

    pub fn inference_backward(&mut self, cpu: &Cpu) -> Result<()> {
        let args = InferenceBackward::<'_, Cpu, E> {
            x: (&self.x).into(),
            residual: self.residual.as_ref().map(CpuSlice::from),
            dy: (&self.dy).into(),
            affine: affine(&self.weight, &self.bias),
            running: running(&self.running_mean, &self.running_var),
            gradients: GradientsMut {
                dx: (&mut self.dx).into(),
                dresidual: self.dresidual.as_mut().map(CpuSliceMut::from),
                dweight: self.dweight.as_mut().map(CpuSliceMut::from),
                dbias: self.dbias.as_mut().map(CpuSliceMut::from),
            },
            workspace: &mut self.workspace,
        };
        cpu.inference_backward(&self.problem, &self.norm, args)
    }

    pub fn statistics(&mut self, cpu: &Cpu, moments: &mut Vec<f64>) -> Result<()> {
        cpu.statistics(&self.problem, CpuSlice::from(&self.x), moments.into(), &mut self.workspace)
    }

    /// Merges the moments of all ranks into this one's saved and running statistics.
    pub fn merge_statistics(&mut self, cpu: &Cpu, moments: &Vec<f64>) -> Result<()> {
        let args = MergeStatistics::<'_, Cpu, E> {
            moments: moments.into(),
            running: Some(RunningMut {
                mean: (&mut self.running_mean).into(),
                var: (&mut self.running_var).into(),
                num_batches_tracked: (&mut self.num_batches_tracked).into(),
            }),
            saved: SavedMut {
                mean_hi: (&mut self.mean_hi).into(),
                mean_lo: (&mut self.mean_lo).into(),
                invstd: (&mut self.invstd).into(),
                mask: None,
            },
        };
        cpu.merge_statistics(self.problem.channels(), &self.norm, args)
    }

    pub fn apply(&mut self, cpu: &Cpu) -> Result<()> {
        let args = Apply::<'_, Cpu, E> {
            x: (&self.x).into(),
            residual: self.residual.as_ref().map(CpuSlice::from),
            affine: affine(&self.weight, &self.bias),
            y: (&mut self.y).into(),
            saved: SavedRef {
                mean_hi: (&self.mean_hi).into(),
                mean_lo: (&self.mean_lo).into(),
                invstd: (&self.invstd).into(),
                mask: None,
            },
            mask: self.mask.as_mut().map(CpuSliceMut::from),
            workspace: &mut self.workspace,
        };
        cpu.apply(&self.problem, args)
    }

    pub fn backward_reduce(&mut self, cpu: &Cpu, sums: &mut Vec<f64>) -> Result<()> {
        let args = BackwardReduce::<'_, Cpu, E> {
            x: (&self.x).into(),
            residual: self.residual.as_ref().map(CpuSlice::from),
            dy: (&self.dy).into(),
            affine: affine(&self.weight, &self.bias),
            saved: SavedRef {
                mean_hi: (&self.mean_hi).into(),
                mean_lo: (&self.mean_lo).into(),
                invstd: (&self.invstd).into(),
                mask: self.mask.as_ref().map(CpuSlice::from),
            },
            sums: sums.into(),
            dweight: self.dweight.as_mut().map(CpuSliceMut::from),
            dbias: self.dbias.as_mut().map(CpuSliceMut::from),
            workspace: &mut self.workspace,
        };
        cpu.backward_reduce(&self.problem, args)
    }

    pub fn backward_apply(&mut self, cpu: &Cpu, sums: &Vec<f64>) -> Result<()> {
        let args = BackwardApply::<'_, Cpu, E> {
            x: (&self.x).into(),
            residual: self.residual.as_ref().map(CpuSlice::from),
            dy: (&self.dy).into(),
            affine: affine(&self.weight, &self.bias),
            saved: SavedRef {
                mean_hi: (&self.mean_hi).into(),
                mean_lo: (&self.mean_lo).into(),
                invstd: (&self.invstd).into(),
                mask: self.mask.as_ref().map(CpuSlice::from),
            },
            sums: sums.into(),
            dx: (&mut self.dx).into(),
            dresidual: self.dresidual.as_mut().map(CpuSliceMut::from),
            workspace: &mut self.workspace,
        };
        cpu.backward_apply(&self.problem, args)
    }

    /// An operand as a dense array; its gaps must hold what they held.
    pub fn tensor(&self, operand: Operand) -> Array3<E> {
        let flat = match operand {
            Operand::X => &self.x,
            Operand::Residual => self.residual.as_ref().unwrap(),
            Operand::Dy => &self.dy,
            Operand::Y => &self.y,
            Operand::Dx => &self.dx,
            Operand::Dresidual => self.dresidual.as_ref().unwrap(),
        };
        unflatten(&self.problem, operand, flat)
    }

    /// The bits of all that a call may write.
    pub fn fingerprint(&self) -> Vec<Vec<u64>> {
        let optional = |it: &Option<Vec<E::Param>>| it.as_deref().map_or(vec![], value_bits);
        vec![
            value_bits(&self.x),
            value_bits(&self.y),
            value_bits(&self.dx),
            self.dresidual.as_deref().map_or(vec![], value_bits),
            optional(&self.weight),
            optional(&self.bias),
            optional(&self.dweight),
            optional(&self.dbias),
            value_bits(&self.running_mean),
            value_bits(&self.running_var),
            self.num_batches_tracked.iter().map(|&tracked| tracked as u64).collect(),
            value_bits(&self.mean_hi),
            value_bits(&self.mean_lo),
            value_bits(&self.invstd),
            self.mask.iter().flatten().map(|&byte| u64::from(byte)).collect(),
        ]
    }
}

fn affine<'a, E: Element>(
    weight: &'a Option<Vec<E::Param>>,
    bias: &'a Option<Vec<E::Param>>,
) -> Affine<'a, Cpu, E> {
    Affine { weight: weight.as_ref().map(CpuSlice::from), bias: bias.as_ref().map(CpuSlice::from) }
}

fn running<'a, E: Element>(mean: &'a Vec<E::Param>, var: &'a Vec<E::Param>) -> Running<'a, Cpu, E> {
    Running { mean: mean.into(), var: var.into() }
}

fn strides(problem: &Problem, operand: Operand) -> (usize, usize, usize) {
    let stride = problem.batch_stride(operand);
    match problem.layout() {
        Layout::ChannelsFirst => (stride, problem.spatial(), 1),
        Layout::ChannelsLast => (stride, 1, problem.channels()),
    }
}

/// A tensor's elements in the problem's memory order, gaps of the sentinel between samples.
pub fn flatten<E: Element>(
    problem: &Problem,
    operand: Operand,
    tensor: &ArrayRef<E, Ix3>,
) -> Vec<E> {
    let (sn, sc, ss) = strides(problem, operand);
    let mut flat = vec![E::from_f64(SENTINEL); problem.span(operand)];
    for ((n, c, s), &value) in tensor.indexed_iter() {
        flat[n * sn + c * sc + s * ss] = value;
    }
    flat
}

fn unflatten<E: Element>(problem: &Problem, operand: Operand, flat: &[E]) -> Array3<E> {
    let (sn, sc, ss) = strides(problem, operand);
    let dim = (problem.batch(), problem.channels(), problem.spatial());
    let sample = dim.1 * dim.2;
    for gap in flat.chunks(sn.max(1)).filter(|it| it.len() > sample).map(|it| &it[sample..]) {
        assert!(gap.iter().all(|it| it.to_f64() == SENTINEL), "{operand:?}: a gap was written");
    }
    let values = Array3::from_shape_fn(dim, |(n, c, s)| flat[n * sn + c * sc + s * ss]);
    super::to_layout(&values, problem.layout())
}
