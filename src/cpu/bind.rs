//! Arguments of the CPU's calls, checked and bound: everything that can be refused is refused here.

use super::channel::{Channels, Statistics, advance_channels, running_factor, save_channels};
use super::moments::ChannelMoments;
use super::parallel::{Along, Bits};
use super::runs::Runs;
use super::tensor::{BackwardTensors, CpuSlice, CpuSliceMut, GradientTensors, mask_shape};
use super::tile::Pass;
use super::{Cpu, CpuWorkspace, planes, rows};
use crate::arguments::{
    check_dresidual, check_no_mask, check_norm, check_residual, missing_mask, missing_residual,
};
use crate::backend::*;
use crate::config::check_eps;
use crate::element::{Element, Param, Scalar};
use crate::error::{Error, Result};
use crate::problem::{Operand, Problem};
use ndarray::{ArrayView3, ArrayViewMut3};

/// How the planes, or the rows, that loops run along are cut.
#[derive(Debug, Clone, Copy)]
pub(super) enum Partition {
    Planes(planes::Partition),
    Rows(rows::Partition),
}

/// What a call knows before it touches a tensor.
pub(super) struct Call<'p> {
    pub(super) problem: &'p Problem,
    /// Rows without gaps are bound as one matrix.
    pub(super) merged: bool,
    pub(super) runs: Runs,
    pub(super) partition: Partition,
    pub(super) parallel: bool,
}

impl<'p> Call<'p> {
    /// `gapless` says of each tensor of the call whether its samples follow each other directly.
    pub(super) fn new<E: Element>(
        cpu: &Cpu,
        problem: &'p Problem,
        gapless: &[bool],
        workspace: &CpuWorkspace,
    ) -> Result<Self> {
        problem.check_dtype(E::DTYPE)?;
        workspace.check(problem)?;
        let threads = cpu.threads(problem);
        let parallel = threads > 1;
        let batch = if problem.elements() == 0 { 0 } else { problem.batch() };
        let (channels, spatial) = (problem.channels(), problem.spatial());
        let merged = gapless.iter().all(|&gapless| gapless);
        let runs = Runs::of(problem, merged);
        let (rows, positions) = match runs {
            Runs::Samples => ([1, batch], spatial),
            _ if merged || spatial == 1 => ([1, batch * spatial], 1),
            _ => ([batch, spatial], 1),
        };
        let partition = match runs {
            Runs::Planes => {
                Partition::Planes(planes::Partition::new(batch, channels, spatial, threads))
            }
            Runs::Rows | Runs::Samples => {
                let (lanes, masked) = ([channels, positions], problem.epilogue().has_mask());
                Partition::Rows(rows::Partition::new(rows, lanes, merged, masked, parallel))
            }
        };
        Ok(Call { problem, merged, runs, partition, parallel })
    }

    pub(super) fn bind<'a, E: Element>(
        &self,
        operand: Operand,
        tensor: CpuSlice<'a, E>,
    ) -> Result<ArrayView3<'a, E>> {
        tensor.bind(self.problem, operand, self.runs, self.merged)
    }

    pub(super) fn bind_mut<'a, E: Element>(
        &self,
        operand: Operand,
        tensor: CpuSliceMut<'a, E>,
    ) -> Result<ArrayViewMut3<'a, E>> {
        tensor.bind(self.problem, operand, self.runs, self.merged)
    }

    /// The residual, which forward needs exactly if the epilogue has one.
    pub(super) fn bind_residual<'a, E: Element>(
        &self,
        residual: Option<CpuSlice<'a, E>>,
    ) -> Result<Option<ArrayView3<'a, E>>> {
        check_residual(self.problem, residual.is_some())?;
        residual.map(|residual| self.bind(Operand::Residual, residual)).transpose()
    }

    /// The residual, where backward needs it to know the pre-activation.
    pub(super) fn bind_residual_for_backward<'a, E: Element>(
        &self,
        residual: Option<CpuSlice<'a, E>>,
        needed: bool,
    ) -> Result<Option<ArrayView3<'a, E>>> {
        match (needed, residual) {
            (false, _) => Ok(None),
            (true, Some(residual)) => self.bind(Operand::Residual, residual).map(Some),
            (true, None) => Err(missing_residual(self.problem)),
        }
    }

    /// The shape in which the mask lies beside a bound tensor.
    pub(super) fn mask_shape(&self) -> (usize, usize, usize) {
        let (batch, rows, bytes) = mask_shape(self.problem);
        let one_matrix = self.runs == Runs::Rows && (self.merged || self.problem.spatial() == 1);
        if one_matrix { (1, batch * rows, bytes) } else { (batch, rows, bytes) }
    }

    pub(super) fn bind_mask<'a>(
        &self,
        mask: Option<CpuSlice<'a, u8>>,
    ) -> Result<Option<Bits<ArrayView3<'a, u8>>>> {
        if self.problem.mask_len() == 0 {
            check_no_mask("saved.mask", mask.map_or(0, |mask| mask.len()))?;
            return Ok(None);
        }
        let mask = mask.ok_or_else(|| missing_mask("saved.mask", self.problem))?;
        let mask = mask.flat("saved.mask", self.problem.mask_len())?;
        let view = ArrayView3::from_shape(self.mask_shape(), mask);
        view.map(|view| Some(Bits(view)))
            .map_err(|error| Error::argument("saved.mask", "mask_len bytes", error))
    }

    pub(super) fn bind_mask_mut<'a>(
        &self,
        argument: &str,
        mask: Option<CpuSliceMut<'a, u8>>,
    ) -> Result<Option<Bits<ArrayViewMut3<'a, u8>>>> {
        if self.problem.mask_len() == 0 {
            check_no_mask(argument, mask.map_or(0, |mask| mask.len()))?;
            return Ok(None);
        }
        let mask = mask.ok_or_else(|| missing_mask(argument, self.problem))?;
        let mask = mask.flat(argument, self.problem.mask_len())?;
        let view = ArrayViewMut3::from_shape(self.mask_shape(), mask);
        view.map(|view| Some(Bits(view)))
            .map_err(|error| Error::argument(argument, "mask_len bytes", error))
    }

    pub(super) fn pass(&self) -> Pass {
        Pass { epilogue: self.problem.epilogue(), streaming: self.is_streaming() }
    }

    /// Whether outputs of this call are too large to be found in the cache later.
    pub(super) fn is_streaming(&self) -> bool {
        let bytes = self.problem.elements() * self.problem.dtype().size();
        let run = match self.runs {
            Runs::Planes => self.problem.spatial() * self.problem.dtype().size(),
            Runs::Rows | Runs::Samples => bytes,
        };
        bytes >= STREAMING_BYTES && run >= STREAMING_RUN
    }
}

/// Outputs of this size and more leave no room in a last-level cache for what else is in use.
pub(super) const STREAMING_BYTES: usize = 12 << 20;
/// Shorter runs are mostly lines that a streaming store fills in part.
pub(super) const STREAMING_RUN: usize = 1024;

pub(super) fn is_gapless<T: Scalar>(
    problem: &Problem,
    operand: Operand,
    tensor: &CpuSlice<'_, T>,
) -> bool {
    match tensor {
        CpuSlice::Flat(_) => problem.is_gapless(operand),
        CpuSlice::View(view) => super::tensor::is_gapless(problem, view.strides()),
    }
}

pub(super) fn is_gapless_mut<T: Scalar>(
    problem: &Problem,
    operand: Operand,
    tensor: &CpuSliceMut<'_, T>,
) -> bool {
    match tensor {
        CpuSliceMut::Flat(_) => problem.is_gapless(operand),
        CpuSliceMut::View(view) => super::tensor::is_gapless(problem, view.strides()),
    }
}

/// [`is_gapless`] of each tensor of a forward call that does not work in place.
pub(super) fn is_forward_gapless<E: Element>(
    problem: &Problem,
    x: &CpuSlice<'_, E>,
    residual: &Option<CpuSlice<'_, E>>,
    y: &CpuSliceMut<'_, E>,
) -> [bool; 3] {
    [
        is_gapless(problem, Operand::X, x),
        residual.as_ref().is_none_or(|residual| is_gapless(problem, Operand::Residual, residual)),
        is_gapless_mut(problem, Operand::Y, y),
    ]
}

pub(super) fn optional<'a, P: Param>(
    argument: &str,
    channels: usize,
    values: Option<CpuSlice<'a, P>>,
) -> Result<Option<&'a [P]>> {
    values.map(|values| values.flat(argument, channels)).transpose()
}

pub(super) fn optional_mut<'a, P: Param>(
    argument: &str,
    channels: usize,
    values: Option<CpuSliceMut<'a, P>>,
) -> Result<Option<&'a mut [P]>> {
    values.map(|values| values.flat(argument, channels)).transpose()
}

pub(super) fn bind_channels<'a, E: Element>(
    channels: usize,
    affine: Affine<'a, Cpu, E>,
    statistics: Statistics<'a, E::Param>,
) -> Result<Channels<'a, E::Param>> {
    Ok(Channels {
        statistics,
        weight: optional("weight", channels, affine.weight)?,
        bias: optional("bias", channels, affine.bias)?,
    })
}

/// Saved statistics and the mask.
pub(super) type BoundSaved<'a, P> = (Statistics<'a, P>, Option<CpuSlice<'a, u8>>);

pub(super) fn bind_saved<'a, E: Element>(
    channels: usize,
    saved: SavedRef<'a, Cpu, E>,
) -> Result<BoundSaved<'a, E::Param>> {
    let statistics = Statistics::Saved {
        mean_hi: saved.mean_hi.flat("saved.mean_hi", channels)?,
        mean_lo: saved.mean_lo.flat("saved.mean_lo", channels)?,
        invstd: saved.invstd.flat("saved.invstd", channels)?,
    };
    Ok((statistics, saved.mask))
}

pub(super) fn bind_running<'a, E: Element>(
    channels: usize,
    running: Running<'a, Cpu, E>,
    eps: f64,
) -> Result<Statistics<'a, E::Param>> {
    check_eps(eps)?;
    Ok(Statistics::Running {
        mean: running.mean.flat("running_mean", channels)?,
        var: running.var.flat("running_var", channels)?,
        eps,
    })
}

/// Statistics to be written, all of length C.
pub(super) struct BoundSavedMut<'a, P> {
    pub(super) mean_hi: &'a mut [P],
    pub(super) mean_lo: &'a mut [P],
    pub(super) invstd: &'a mut [P],
    pub(super) running: Option<BoundRunningMut<'a, P>>,
    pub(super) factor: f64,
}

pub(super) struct BoundRunningMut<'a, P> {
    pub(super) mean: &'a mut [P],
    pub(super) var: &'a mut [P],
    pub(super) num_batches_tracked: &'a mut i64,
}

impl<'a, P: Param> BoundSavedMut<'a, P> {
    pub(super) fn bind<E: Element<Param = P>>(
        channels: usize,
        norm: &Norm,
        saved: SavedMut<'a, Cpu, E>,
        running: Option<RunningMut<'a, Cpu, E>>,
    ) -> Result<(Self, Option<CpuSliceMut<'a, u8>>)> {
        check_norm(norm)?;
        let running = running
            .map(|running| {
                let tracked = running.num_batches_tracked.flat("num_batches_tracked", 1)?;
                Ok::<_, Error>(BoundRunningMut {
                    mean: running.mean.flat("running_mean", channels)?,
                    var: running.var.flat("running_var", channels)?,
                    num_batches_tracked: &mut tracked[0],
                })
            })
            .transpose()?;
        let tracked = running.as_ref().map_or(0, |running| *running.num_batches_tracked);
        if tracked < 0 {
            return Err(Error::argument("num_batches_tracked", "0 or more", tracked));
        }
        let bound = BoundSavedMut {
            mean_hi: saved.mean_hi.flat("saved.mean_hi", channels)?,
            mean_lo: saved.mean_lo.flat("saved.mean_lo", channels)?,
            invstd: saved.invstd.flat("saved.invstd", channels)?,
            running,
            factor: running_factor(norm, tracked),
        };
        Ok((bound, saved.mask))
    }

    /// Saves some channels' statistics, and advances the running ones.
    pub(super) fn write<E: Element<Param = P>>(&mut self, moments: ChannelMoments<'_>, eps: f64) {
        let range = moments.range();
        let rows = [&mut *self.mean_hi, &mut *self.mean_lo, &mut *self.invstd];
        save_channels::<E>(moments, eps, rows.map(|row| &mut row[range.clone()]));
        if let Some(running) = &mut self.running {
            let (mean, var) = (&mut running.mean[range.clone()], &mut running.var[range]);
            advance_channels::<E>(moments, self.factor, mean, var);
        }
    }

    pub(super) fn count_batch(&mut self) {
        if let Some(running) = &mut self.running {
            *running.num_batches_tracked = running.num_batches_tracked.saturating_add(1);
        }
    }

    pub(super) fn statistics(&self) -> Statistics<'_, P> {
        Statistics::Saved { mean_hi: self.mean_hi, mean_lo: self.mean_lo, invstd: self.invstd }
    }

    pub(super) fn along(&mut self) -> super::by_planes::ForwardStatistics<'_, P> {
        let running = self.running.as_mut();
        (
            Along(self.mean_hi),
            Along(self.mean_lo),
            Along(self.invstd),
            running.map(|running| (Along(&mut *running.mean), Along(&mut *running.var))),
        )
    }
}

/// A backward call's arguments, checked.
pub(super) struct Backward<'a, 'p, E: Element> {
    pub(super) call: Call<'p>,
    pub(super) inputs: BackwardTensors<'a, E>,
    pub(super) outputs: GradientTensors<'a, E>,
    pub(super) channels: Channels<'a, E::Param>,
    pub(super) dweight: Option<&'a mut [E::Param]>,
    pub(super) dbias: Option<&'a mut [E::Param]>,
}

/// x, dy, residual and mask as passed.
pub(super) type RawInputs<'a, E> =
    (CpuSlice<'a, E>, CpuSlice<'a, E>, Option<CpuSlice<'a, E>>, Option<CpuSlice<'a, u8>>);

impl<'a, 'p, E: Element> Backward<'a, 'p, E> {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn bind(
        cpu: &Cpu,
        problem: &'p Problem,
        (x, dy, residual, mask): RawInputs<'a, E>,
        needs_residual: bool,
        affine: Affine<'a, Cpu, E>,
        statistics: Statistics<'a, E::Param>,
        gradients: GradientsMut<'a, Cpu, E>,
        workspace: &CpuWorkspace,
    ) -> Result<Self> {
        let count = problem.channels();
        let GradientsMut { dx, dresidual, dweight, dbias } = gradients;
        let residual = residual.filter(|_| needs_residual);
        let gapless = [
            is_gapless(problem, Operand::X, &x),
            is_gapless(problem, Operand::Dy, &dy),
            residual.is_none_or(|residual| is_gapless(problem, Operand::Residual, &residual)),
            is_gapless_mut(problem, Operand::Dx, &dx),
            dresidual.as_ref().is_none_or(|it| is_gapless_mut(problem, Operand::Dresidual, it)),
        ];
        let call = Call::new::<E>(cpu, problem, &gapless, workspace)?;
        check_dresidual(problem, dresidual.is_some())?;
        let inputs = (
            call.bind(Operand::X, x)?,
            call.bind(Operand::Dy, dy)?,
            call.bind_residual_for_backward(residual, needs_residual)?,
            match mask {
                // Inference keeps no mask: it has the residual.
                None if needs_residual => None,
                mask => call.bind_mask(mask)?,
            },
        );
        let dresidual = dresidual.map(|it| call.bind_mut(Operand::Dresidual, it)).transpose()?;
        Ok(Backward {
            inputs,
            outputs: (call.bind_mut(Operand::Dx, dx)?, dresidual),
            channels: bind_channels::<E>(count, affine, statistics)?,
            dweight: optional_mut("dweight", count, dweight)?,
            dbias: optional_mut("dbias", count, dbias)?,
            call,
        })
    }
}
