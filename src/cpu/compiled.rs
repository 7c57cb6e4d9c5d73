//! [`Backend`] on the CPU.
//!
//! Its calls are compiled here, once for each element type: as generic functions they would be
//! compiled again in every crate that uses them, for every instruction set.

use super::calls;
use super::tensor::{CpuSlice, CpuSliceMut};
use super::{Convert, Cpu, CpuWorkspace, WorkspaceSize};
use crate::backend::*;
use crate::element::{Element, Scalar};
use crate::error::Result;
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
        calls::merge_statistics(channels, norm, args)
    }

    fn merge_sums(
        &self,
        channels: usize,
        gathered: CpuSlice<'_, f64>,
        sums: CpuSliceMut<'_, f64>,
    ) -> Result<()> {
        calls::merge_sums(channels, gathered, sums)
    }
}
