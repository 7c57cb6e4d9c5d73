//! The stateless calls on any backend: buffers go up before a call and come back after it, whatever
//! came of it.

use super::flat::Buffers;
use warpnorm::*;

/// [`Buffers`] in a backend's memory.
pub struct OnBackend<'b, B: Backend, E: Element> {
    backend: &'b B,
    problem: Problem,
    norm: Norm,
    workspace: &'b mut B::Workspace,
    pub x: B::Buffer<E>,
    pub residual: Option<B::Buffer<E>>,
    pub dy: B::Buffer<E>,
    pub y: B::Buffer<E>,
    pub dx: B::Buffer<E>,
    pub dresidual: Option<B::Buffer<E>>,
    weight: Option<B::Buffer<E::Param>>,
    bias: Option<B::Buffer<E::Param>>,
    dweight: Option<B::Buffer<E::Param>>,
    dbias: Option<B::Buffer<E::Param>>,
    running_mean: B::Buffer<E::Param>,
    running_var: B::Buffer<E::Param>,
    num_batches_tracked: B::Buffer<i64>,
    mean_hi: B::Buffer<E::Param>,
    mean_lo: B::Buffer<E::Param>,
    invstd: B::Buffer<E::Param>,
    pub mask: Option<B::Buffer<u8>>,
}

/// Runs `call` on `buffers` in the backend's memory.
pub fn on_backend<B: Backend, E: Element>(
    buffers: &mut Buffers<E>,
    backend: &B,
    workspace: &mut B::Workspace,
    call: impl FnOnce(&mut OnBackend<'_, B, E>) -> Result<()>,
) -> Result<()> {
    let mut on = OnBackend::upload(buffers, backend, workspace)?;
    let result = call(&mut on);
    on.download(buffers)?;
    result
}

impl<'b, B: Backend, E: Element> OnBackend<'b, B, E> {
    fn upload(from: &Buffers<E>, backend: &'b B, workspace: &'b mut B::Workspace) -> Result<Self> {
        fn optional<B: Backend, T: Scalar>(
            backend: &B,
            values: &Option<Vec<T>>,
        ) -> Result<Option<B::Buffer<T>>> {
            values.as_ref().map(|values| backend.upload(values)).transpose()
        }
        Ok(OnBackend {
            problem: from.problem,
            norm: from.norm,
            x: backend.upload(&from.x)?,
            residual: optional(backend, &from.residual)?,
            dy: backend.upload(&from.dy)?,
            y: backend.upload(&from.y)?,
            dx: backend.upload(&from.dx)?,
            dresidual: optional(backend, &from.dresidual)?,
            weight: optional(backend, &from.weight)?,
            bias: optional(backend, &from.bias)?,
            dweight: optional(backend, &from.dweight)?,
            dbias: optional(backend, &from.dbias)?,
            running_mean: backend.upload(&from.running_mean)?,
            running_var: backend.upload(&from.running_var)?,
            num_batches_tracked: backend.upload(&from.num_batches_tracked)?,
            mean_hi: backend.upload(&from.mean_hi)?,
            mean_lo: backend.upload(&from.mean_lo)?,
            invstd: backend.upload(&from.invstd)?,
            mask: optional(backend, &from.mask)?,
            backend,
            workspace,
        })
    }

    /// Brings back all that any call may write.
    pub fn download(&self, into: &mut Buffers<E>) -> Result<()> {
        fn optional<B: Backend, T: Scalar>(
            backend: &B,
            buffer: &Option<B::Buffer<T>>,
        ) -> Result<Option<Vec<T>>> {
            buffer.as_ref().map(|buffer| backend.download(buffer)).transpose()
        }
        let backend = self.backend;
        into.x = backend.download(&self.x)?;
        into.y = backend.download(&self.y)?;
        into.dx = backend.download(&self.dx)?;
        into.dresidual = optional(backend, &self.dresidual)?;
        into.weight = optional(backend, &self.weight)?;
        into.bias = optional(backend, &self.bias)?;
        into.dweight = optional(backend, &self.dweight)?;
        into.dbias = optional(backend, &self.dbias)?;
        into.running_mean = backend.download(&self.running_mean)?;
        into.running_var = backend.download(&self.running_var)?;
        into.num_batches_tracked = backend.download(&self.num_batches_tracked)?;
        into.mean_hi = backend.download(&self.mean_hi)?;
        into.mean_lo = backend.download(&self.mean_lo)?;
        into.invstd = backend.download(&self.invstd)?;
        into.mask = optional(backend, &self.mask)?;
        Ok(())
    }

    pub fn forward_train(&mut self) -> Result<()> {
        let args = ForwardTrain::<'_, B, E> {
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
            workspace: &mut *self.workspace,
        };
        self.backend.forward_train(&self.problem, &self.norm, args)
    }

    pub fn backward_train(&mut self) -> Result<()> {
        let args = BackwardTrain::<'_, B, E> {
            x: B::slice(&self.x),
            residual: self.residual.as_ref().map(B::slice),
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
                dweight: self.dweight.as_mut().map(B::slice_mut),
                dbias: self.dbias.as_mut().map(B::slice_mut),
            },
            workspace: &mut *self.workspace,
        };
        self.backend.backward_train(&self.problem, args)
    }

    pub fn inference(&mut self) -> Result<()> {
        let args = Inference::<'_, B, E> {
            x: B::slice(&self.x),
            residual: self.residual.as_ref().map(B::slice),
            affine: affine::<B, E>(&self.weight, &self.bias),
            running: Running {
                mean: B::slice(&self.running_mean),
                var: B::slice(&self.running_var),
            },
            y: B::slice_mut(&mut self.y),
            workspace: &mut *self.workspace,
        };
        self.backend.inference(&self.problem, &self.norm, args)
    }

    pub fn inference_inplace(&mut self) -> Result<()> {
        let args = InferenceInplace::<'_, B, E> {
            x: B::slice_mut(&mut self.x),
            residual: self.residual.as_ref().map(B::slice),
            affine: affine::<B, E>(&self.weight, &self.bias),
            running: Running {
                mean: B::slice(&self.running_mean),
                var: B::slice(&self.running_var),
            },
            workspace: &mut *self.workspace,
        };
        self.backend.inference_inplace(&self.problem, &self.norm, args)
    }

    pub fn inference_backward(&mut self) -> Result<()> {
        let args = InferenceBackward::<'_, B, E> {
            x: B::slice(&self.x),
            residual: self.residual.as_ref().map(B::slice),
            dy: B::slice(&self.dy),
            affine: affine::<B, E>(&self.weight, &self.bias),
            running: Running {
                mean: B::slice(&self.running_mean),
                var: B::slice(&self.running_var),
            },
            gradients: GradientsMut {
                dx: B::slice_mut(&mut self.dx),
                dresidual: self.dresidual.as_mut().map(B::slice_mut),
                dweight: self.dweight.as_mut().map(B::slice_mut),
                dbias: self.dbias.as_mut().map(B::slice_mut),
            },
            workspace: &mut *self.workspace,
        };
        self.backend.inference_backward(&self.problem, &self.norm, args)
    }

    pub fn statistics(&mut self, moments: &mut Vec<f64>) -> Result<()> {
        let mut on_backend = self.backend.upload(moments)?;
        let x = B::slice(&self.x);
        let result = self.backend.statistics::<E>(
            &self.problem,
            x,
            B::slice_mut(&mut on_backend),
            self.workspace,
        );
        *moments = self.backend.download(&on_backend)?;
        result
    }

    /// Merges the moments of all ranks into this one's saved and running statistics.
    pub fn merge_statistics(&mut self, moments: &[f64]) -> Result<()> {
        let moments = self.backend.upload(moments)?;
        let args = MergeStatistics::<'_, B, E> {
            moments: B::slice(&moments),
            running: Some(RunningMut {
                mean: B::slice_mut(&mut self.running_mean),
                var: B::slice_mut(&mut self.running_var),
                num_batches_tracked: B::slice_mut(&mut self.num_batches_tracked),
            }),
            saved: SavedMut {
                mean_hi: B::slice_mut(&mut self.mean_hi),
                mean_lo: B::slice_mut(&mut self.mean_lo),
                invstd: B::slice_mut(&mut self.invstd),
                mask: None,
            },
        };
        self.backend.merge_statistics(self.problem.channels(), &self.norm, args)
    }

    pub fn apply(&mut self) -> Result<()> {
        let args = Apply::<'_, B, E> {
            x: B::slice(&self.x),
            residual: self.residual.as_ref().map(B::slice),
            affine: affine::<B, E>(&self.weight, &self.bias),
            y: B::slice_mut(&mut self.y),
            saved: SavedRef {
                mean_hi: B::slice(&self.mean_hi),
                mean_lo: B::slice(&self.mean_lo),
                invstd: B::slice(&self.invstd),
                mask: None,
            },
            mask: self.mask.as_mut().map(B::slice_mut),
            workspace: &mut *self.workspace,
        };
        self.backend.apply(&self.problem, args)
    }

    pub fn backward_reduce(&mut self, sums: &mut Vec<f64>) -> Result<()> {
        let mut on_backend = self.backend.upload(sums)?;
        let args = BackwardReduce::<'_, B, E> {
            x: B::slice(&self.x),
            residual: self.residual.as_ref().map(B::slice),
            dy: B::slice(&self.dy),
            affine: affine::<B, E>(&self.weight, &self.bias),
            saved: SavedRef {
                mean_hi: B::slice(&self.mean_hi),
                mean_lo: B::slice(&self.mean_lo),
                invstd: B::slice(&self.invstd),
                mask: self.mask.as_ref().map(B::slice),
            },
            sums: B::slice_mut(&mut on_backend),
            dweight: self.dweight.as_mut().map(B::slice_mut),
            dbias: self.dbias.as_mut().map(B::slice_mut),
            workspace: &mut *self.workspace,
        };
        let result = self.backend.backward_reduce(&self.problem, args);
        *sums = self.backend.download(&on_backend)?;
        result
    }

    pub fn backward_apply(&mut self, sums: &[f64]) -> Result<()> {
        let sums = self.backend.upload(sums)?;
        let args = BackwardApply::<'_, B, E> {
            x: B::slice(&self.x),
            residual: self.residual.as_ref().map(B::slice),
            dy: B::slice(&self.dy),
            affine: affine::<B, E>(&self.weight, &self.bias),
            saved: SavedRef {
                mean_hi: B::slice(&self.mean_hi),
                mean_lo: B::slice(&self.mean_lo),
                invstd: B::slice(&self.invstd),
                mask: self.mask.as_ref().map(B::slice),
            },
            sums: B::slice(&sums),
            dx: B::slice_mut(&mut self.dx),
            dresidual: self.dresidual.as_mut().map(B::slice_mut),
            workspace: &mut *self.workspace,
        };
        self.backend.backward_apply(&self.problem, args)
    }
}

fn affine<'a, B: Backend, E: Element>(
    weight: &'a Option<B::Buffer<E::Param>>,
    bias: &'a Option<B::Buffer<E::Param>>,
) -> Affine<'a, B, E> {
    Affine { weight: weight.as_ref().map(B::slice), bias: bias.as_ref().map(B::slice) }
}
