//! [`Backend`] on the CPU.
//!
//! Its calls are compiled here, once for each element type: as generic functions they would be
//! compiled again in every crate that uses them, for every instruction set.

use super::bind::{BoundSavedMut, check_ranks};
use super::calls;
use super::moments::{Moments, read};
use super::tensor::{CpuSlice, CpuSliceMut};
use super::{Convert, Cpu, CpuWorkspace, WorkspaceSize};
use crate::backend::*;
use crate::element::{Element, Scalar};
use crate::error::{Error, Result};
use crate::memory::filled;
use crate::problem::Problem;
use half::{bf16, f16};

/// The calls on tensors of E.
#[allow(clippy::type_complexity, reason = "the signatures of the backend's methods")]
pub struct Calls<E: Element> {
    forward_train: fn(&Cpu, &Problem, &Norm, ForwardTrain<'_, Cpu, E>) -> Result<()>,
    backward_train: fn(&Cpu, &Problem, BackwardTrain<'_, Cpu, E>) -> Result<()>,
    inference: fn(&Cpu, &Problem, &Norm, Inference<'_, Cpu, E>) -> Result<()>,
    inference_inplace: fn(&Cpu, &Problem, &Norm, InferenceInplace<'_, Cpu, E>) -> Result<()>,
    inference_backward: fn(&Cpu, &Problem, &Norm, InferenceBackward<'_, Cpu, E>) -> Result<()>,
    statistics:
        fn(&Cpu, &Problem, CpuSlice<'_, E>, CpuSliceMut<'_, f64>, &mut CpuWorkspace) -> Result<()>,
    apply: fn(&Cpu, &Problem, Apply<'_, Cpu, E>) -> Result<()>,
    backward_reduce: fn(&Cpu, &Problem, BackwardReduce<'_, Cpu, E>) -> Result<()>,
    backward_apply: fn(&Cpu, &Problem, BackwardApply<'_, Cpu, E>) -> Result<()>,
}

impl<E: Element> Calls<E> {
    const ALL: Self = Calls {
        forward_train: calls::forward_train::<E>,
        backward_train: calls::backward_train::<E>,
        inference: calls::inference::<E>,
        inference_inplace: calls::inference_inplace::<E>,
        inference_backward: calls::inference_backward::<E>,
        statistics: calls::statistics::<E>,
        apply: calls::apply::<E>,
        backward_reduce: calls::backward_reduce::<E>,
        backward_apply: calls::backward_apply::<E>,
    };
}

/// An element type whose calls this crate holds.
pub trait Compiled: Convert {
    fn calls() -> &'static Calls<Self>
    where
        Self: Element;
}

macro_rules! compile {
    ($($element:ty),*) => {$(
        impl Compiled for $element {
            fn calls() -> &'static Calls<Self> {
                static CALLS: Calls<$element> = Calls::ALL;
                &CALLS
            }
        }
    )*};
}
compile!(f32, f64, f16, bf16);

impl Backend for Cpu {
    type Buffer<T: Scalar> = Vec<T>;
    type Slice<'a, T: Scalar> = CpuSlice<'a, T>;
    type SliceMut<'a, T: Scalar> = CpuSliceMut<'a, T>;
    type Workspace = CpuWorkspace;

    fn zeros<T: Scalar>(&self, len: usize) -> Result<Vec<T>> {
        filled(len, T::default())
    }

    fn upload<T: Scalar>(&self, values: &[T]) -> Result<Vec<T>> {
        Ok(values.to_vec())
    }

    fn download<T: Scalar>(&self, buffer: &Vec<T>) -> Result<Vec<T>> {
        Ok(buffer.clone())
    }

    fn duplicate<T: Scalar>(&self, buffer: &Vec<T>) -> Result<Vec<T>> {
        Ok(buffer.clone())
    }

    fn len<T: Scalar>(buffer: &Vec<T>) -> usize {
        buffer.len()
    }

    fn slice<T: Scalar>(buffer: &Vec<T>) -> CpuSlice<'_, T> {
        buffer.into()
    }

    fn slice_mut<T: Scalar>(buffer: &mut Vec<T>) -> CpuSliceMut<'_, T> {
        buffer.into()
    }

    fn workspace(&self, problem: &Problem) -> Result<CpuWorkspace> {
        CpuWorkspace::new(WorkspaceSize::of(problem))
    }

    fn forward_train<E: Element>(
        &self,
        problem: &Problem,
        norm: &Norm,
        args: ForwardTrain<'_, Self, E>,
    ) -> Result<()> {
        (E::calls().forward_train)(self, problem, norm, args)
    }

    fn backward_train<E: Element>(
        &self,
        problem: &Problem,
        args: BackwardTrain<'_, Self, E>,
    ) -> Result<()> {
        (E::calls().backward_train)(self, problem, args)
    }

    fn inference<E: Element>(
        &self,
        problem: &Problem,
        norm: &Norm,
        args: Inference<'_, Self, E>,
    ) -> Result<()> {
        (E::calls().inference)(self, problem, norm, args)
    }

    fn inference_inplace<E: Element>(
        &self,
        problem: &Problem,
        norm: &Norm,
        args: InferenceInplace<'_, Self, E>,
    ) -> Result<()> {
        (E::calls().inference_inplace)(self, problem, norm, args)
    }

    fn inference_backward<E: Element>(
        &self,
        problem: &Problem,
        norm: &Norm,
        args: InferenceBackward<'_, Self, E>,
    ) -> Result<()> {
        (E::calls().inference_backward)(self, problem, norm, args)
    }

    fn statistics<E: Element>(
        &self,
        problem: &Problem,
        x: CpuSlice<'_, E>,
        moments: CpuSliceMut<'_, f64>,
        workspace: &mut CpuWorkspace,
    ) -> Result<()> {
        (E::calls().statistics)(self, problem, x, moments, workspace)
    }

    fn apply<E: Element>(&self, problem: &Problem, args: Apply<'_, Self, E>) -> Result<()> {
        (E::calls().apply)(self, problem, args)
    }

    fn backward_reduce<E: Element>(
        &self,
        problem: &Problem,
        args: BackwardReduce<'_, Self, E>,
    ) -> Result<()> {
        (E::calls().backward_reduce)(self, problem, args)
    }

    fn backward_apply<E: Element>(
        &self,
        problem: &Problem,
        args: BackwardApply<'_, Self, E>,
    ) -> Result<()> {
        (E::calls().backward_apply)(self, problem, args)
    }

    fn merge_statistics<E: Element>(
        &self,
        channels: usize,
        norm: &Norm,
        args: MergeStatistics<'_, Self, E>,
    ) -> Result<()> {
        let MergeStatistics { moments, running, saved } = args;
        let ranks = check_ranks("moments", MOMENT_ROWS.saturating_mul(channels), &moments)?;
        let moments = moments.flat("moments", ranks * MOMENT_ROWS * channels)?;
        let (mut saved, _) = BoundSavedMut::bind(channels, norm, saved, running)?;
        let merged = |channel| {
            moments
                .chunks_exact(MOMENT_ROWS * channels)
                .map(|rank| read(rank, channels, channel))
                .fold(Moments::default(), Moments::merge)
        };
        let count = merged(0).count;
        if count <= 1.0 {
            return Err(Error::argument(
                "moments",
                "more than 1 value per channel to take statistics of",
                format_args!("{count} over {ranks} ranks"),
            ));
        }
        for channel in 0..channels {
            saved.write(channel, merged(channel), norm.eps);
        }
        saved.count_batch();
        Ok(())
    }

    fn merge_sums(
        &self,
        channels: usize,
        gathered: CpuSlice<'_, f64>,
        sums: CpuSliceMut<'_, f64>,
    ) -> Result<()> {
        let len = SUM_ROWS.saturating_mul(channels);
        let ranks = check_ranks("gathered", len, &gathered)?;
        let gathered = gathered.flat("gathered", ranks * len)?;
        let sums = sums.flat("sums", len)?;
        for (index, sum) in sums.iter_mut().enumerate() {
            *sum = gathered.iter().skip(index).step_by(len).sum();
        }
        Ok(())
    }
}
