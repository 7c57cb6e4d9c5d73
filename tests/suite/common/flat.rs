//! Stateless calls on flat buffers that are all the test's own, outputs in larger buffers whose
//! gaps must stay as they were.

use super::on_backend::{OnBackend, on_backend};
use super::{
    Bars, Case, Data, Expected, MOMENTUM, assert_gradients_within, assert_tensor, value_bits,
};
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

    /// On the CPU, in this struct's workspace; other backends are [`on_backend`]'s.
    fn on_cpu(
        &mut self,
        cpu: &Cpu,
        call: impl FnOnce(&mut OnBackend<'_, Cpu, E>) -> Result<()>,
    ) -> Result<()> {
        let mut workspace = std::mem::take(&mut self.workspace);
        let result = on_backend(self, cpu, &mut workspace, call);
        self.workspace = workspace;
        result
    }

    pub fn forward_train(&mut self, cpu: &Cpu) -> Result<()> {
        self.on_cpu(cpu, |on| on.forward_train())
    }

    pub fn backward_train(&mut self, cpu: &Cpu) -> Result<()> {
        self.on_cpu(cpu, |on| on.backward_train())
    }

    pub fn inference(&mut self, cpu: &Cpu) -> Result<()> {
        self.on_cpu(cpu, |on| on.inference())
    }

    pub fn inference_inplace(&mut self, cpu: &Cpu) -> Result<()> {
        self.on_cpu(cpu, |on| on.inference_inplace())
    }

    pub fn inference_backward(&mut self, cpu: &Cpu) -> Result<()> {
        self.on_cpu(cpu, |on| on.inference_backward())
    }

    pub fn statistics(&mut self, cpu: &Cpu, moments: &mut Vec<f64>) -> Result<()> {
        self.on_cpu(cpu, |on| on.statistics(moments))
    }

    pub fn merge_statistics(&mut self, cpu: &Cpu, moments: &[f64]) -> Result<()> {
        self.on_cpu(cpu, |on| on.merge_statistics(moments))
    }

    pub fn apply(&mut self, cpu: &Cpu) -> Result<()> {
        self.on_cpu(cpu, |on| on.apply())
    }

    pub fn backward_reduce(&mut self, cpu: &Cpu, sums: &mut Vec<f64>) -> Result<()> {
        self.on_cpu(cpu, |on| on.backward_reduce(sums))
    }

    pub fn backward_apply(&mut self, cpu: &Cpu, sums: &[f64]) -> Result<()> {
        self.on_cpu(cpu, |on| on.backward_apply(sums))
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

    /// Compares y and the gradients, of training or of evaluation, with the textbook's.
    pub fn assert_results(&self, expected: &Expected, bars: Bars) {
        let y = self.tensor(Operand::Y);
        assert_tensor("y", &y, &expected.y, &expected.scale.y, bars.y);
        let residual = self.problem.epilogue().residual;
        let gradients = Gradients {
            dx: self.tensor(Operand::Dx),
            dresidual: residual.then(|| self.tensor(Operand::Dresidual)),
            dweight: self.dweight.clone().map(Into::into),
            dbias: self.dbias.clone().map(Into::into),
        };
        assert_gradients_within(&gradients, expected, residual, bars);
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
    super::in_layout(&values, problem.layout())
}
