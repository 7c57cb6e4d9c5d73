//! [`SyncBatchNorm`]: one batch in several parts, normalized with the statistics of all of it.

use crate::array::{Call, Gradients, inputs};
use crate::backend::{
    Apply, Backend, BackwardApply, BackwardReduce, MOMENT_ROWS, MergeStatistics, Norm, SUM_ROWS,
};
use crate::cpu::{Cpu, CpuWorkspace};
use crate::element::{Element, Param};
use crate::error::{Error, Result};
use crate::layer::BatchNorm;
use crate::memory::filled;
use crate::problem::Operand;
use crate::saved::Saved;
use crate::strides::{view, view_mut, zeros};
use ndarray::{Array, ArrayRef, Dimension};

/// A [`BatchNorm`] over a batch that comes in parts, as
/// `torch.nn.SyncBatchNorm` does over ranks: here within one process, one part per slice. Parts
/// may be uneven and empty. It is the split form of [`Backend`] with the communication left out,
/// and shows where a distributed one goes.
///
/// ```
/// use ndarray::array;
/// use warpnorm::{BatchNorm, Cpu, SyncBatchNorm};
///
/// let whole = array![[1.0f32], [2.0], [4.0]];
/// let parts = [array![[1.0f32]], array![[2.0], [4.0]]];
///
/// let mut bn: BatchNorm = BatchNorm::new(1, Cpu::new())?;
/// let mut sync = SyncBatchNorm::new(BatchNorm::new(1, Cpu::new())?);
/// let (y, _) = bn.forward_train(&whole)?;
/// let x = [&*parts[0], &*parts[1]];
/// let (y_parts, saved) = sync.forward_train(&x)?;
/// assert_eq!(y[[2, 0]], y_parts[1][[1, 0]]);
///
/// // `dx` comes per part; the weight's and the bias's gradient is the sum over the parts.
/// let dy = [&*array![[1.0f32]], &*array![[0.0], [2.0]]];
/// let gradients = sync.backward(&x, &dy, &saved)?;
/// let dbias: f32 = gradients.iter().map(|part| part.dbias.as_ref().unwrap()[0]).sum();
/// assert_eq!(dbias, 3.0);
/// # Ok::<(), warpnorm::Error>(())
/// ```
#[derive(Debug)]
pub struct SyncBatchNorm<P: Param = f32> {
    layer: BatchNorm<Cpu, P>,
}

/// What a synchronized forward keeps for backward: the same statistics for every part, and each
/// part's own mask.
#[derive(Debug)]
pub struct SyncSaved<P: Param> {
    parts: Vec<Saved<Cpu, P>>,
}

impl<P: Param> SyncSaved<P> {
    /// Each part's view of it; the statistics in them are the same.
    pub fn parts(&self) -> &[Saved<Cpu, P>] {
        &self.parts
    }
}

/// A part's tensors: x, residual, dy.
struct Part<'a, E, D: Dimension> {
    call: Call,
    x: &'a ArrayRef<E, D>,
    residual: Option<&'a ArrayRef<E, D>>,
    dy: Option<&'a ArrayRef<E, D>>,
}

impl<P: Param> SyncBatchNorm<P> {
    /// Synchronizes `layer` over parts.
    pub fn new(layer: BatchNorm<Cpu, P>) -> Self {
        SyncBatchNorm { layer }
    }

    /// The layer, for its parameters and for evaluation.
    pub fn layer(&self) -> &BatchNorm<Cpu, P> {
        &self.layer
    }

    /// The layer, for its parameters.
    pub fn layer_mut(&mut self) -> &mut BatchNorm<Cpu, P> {
        &mut self.layer
    }

    /// The layer alone again.
    pub fn into_layer(self) -> BatchNorm<Cpu, P> {
        self.layer
    }

    /// A `y` per part, with the statistics of all parts together; the running statistics advance
    /// once.
    ///
    /// # Errors
    /// As [`BatchNorm::forward_train`], the values per channel counted over all parts; no parts.
    #[allow(clippy::type_complexity)]
    pub fn forward_train<E: Element<Param = P>, D: Dimension>(
        &mut self,
        x: &[&ArrayRef<E, D>],
    ) -> Result<(Vec<Array<E, D>>, SyncSaved<P>)> {
        let parts = self.parts(x, None, None, false)?;
        self.forward_parts(&parts)
    }

    /// [`forward_train`](Self::forward_train) with a residual per part, added before the
    /// activation.
    ///
    /// # Errors
    /// As there; residuals of other shapes or layouts.
    #[allow(clippy::type_complexity)]
    pub fn forward_train_add<E: Element<Param = P>, D: Dimension>(
        &mut self,
        x: &[&ArrayRef<E, D>],
        residual: &[&ArrayRef<E, D>],
    ) -> Result<(Vec<Array<E, D>>, SyncSaved<P>)> {
        let parts = self.parts(x, Some(residual), None, true)?;
        self.forward_parts(&parts)
    }

    #[allow(clippy::type_complexity)]
    fn forward_parts<E: Element<Param = P>, D: Dimension>(
        &mut self,
        parts: &[Part<'_, E, D>],
    ) -> Result<(Vec<Array<E, D>>, SyncSaved<P>)> {
        let len = MOMENT_ROWS * self.layer.channels();
        let backend = self.layer.backend.clone();
        let mut moments = filled(len * parts.len(), 0.0)?;
        let mut workspaces = workspaces(&backend, parts)?;
        // What an all-gather would do between devices, the buffer does here.
        let tasks = parts.iter().zip(moments.chunks_mut(len)).zip(&mut workspaces);
        backend.for_each(tasks, |((part, moments), workspace)| {
            backend.statistics(&part.call.problem, view(part.x)?, moments.into(), workspace)
        })?;
        let mut outputs = parts
            .iter()
            .map(|Part { call, x, .. }| {
                Ok((zeros(x, call.layout)?, Saved::new(&backend, &call.problem)?))
            })
            .collect::<Result<Vec<_>>>()?;
        self.merge::<E>(&moments, outputs.iter_mut().map(|(_, saved)| saved))?;

        let layer = &self.layer;
        let tasks = parts.iter().zip(&mut outputs).zip(&mut workspaces);
        backend.for_each(tasks, |((part, (y, saved)), workspace)| {
            let (saved, mask) = saved.split_mask::<E>();
            let apply = Apply {
                x: view(part.x)?,
                residual: part.residual.map(view).transpose()?,
                affine: layer.affine::<E>(),
                y: view_mut(y)?,
                saved,
                mask,
                workspace,
            };
            backend.apply(&part.call.problem, apply)
        })?;
        let (y, parts) = outputs.into_iter().unzip();
        Ok((y, SyncSaved { parts }))
    }

    /// Merges the parts' moments into every part's saved statistics; each arrives at the same
    /// bits, and the running statistics advance with the first.
    fn merge<'s, E: Element<Param = P>>(
        &mut self,
        moments: &[f64],
        saved: impl Iterator<Item = &'s mut Saved<Cpu, P>>,
    ) -> Result<()> {
        let norm: Norm = self.layer.norm();
        let (backend, channels) = (self.layer.backend.clone(), self.layer.channels());
        let mut running = self.layer.running_mut::<E>();
        for saved in saved {
            let merge = MergeStatistics {
                moments: moments.into(),
                running: running.take(),
                saved: saved.as_mut(),
            };
            backend.merge_statistics(channels, &norm, merge)?;
        }
        Ok(())
    }

    /// The gradients of [`forward_train`](Self::forward_train), per part. `dx` takes account of all
    /// parts. `dweight` and `dbias` are each part's own: sum them over the parts, as data-parallel
    /// training sums them over ranks.
    ///
    /// # Errors
    /// As [`BatchNorm::backward`]; another number of parts than forward had; a `saved` of
    /// [`forward_train_add`](Self::forward_train_add).
    pub fn backward<E: Element<Param = P>, D: Dimension>(
        &self,
        x: &[&ArrayRef<E, D>],
        dy: &[&ArrayRef<E, D>],
        saved: &SyncSaved<P>,
    ) -> Result<Vec<Gradients<E, D>>> {
        let parts = self.parts(x, None, Some(dy), false)?;
        self.backward_parts(&parts, saved)
    }

    /// The gradients of [`forward_train_add`](Self::forward_train_add), per part. As in
    /// [`BatchNorm::backward_add`], only a smooth activation needs the residuals again.
    ///
    /// # Errors
    /// As [`BatchNorm::backward_add`]; another number of parts than forward had.
    pub fn backward_add<E: Element<Param = P>, D: Dimension>(
        &self,
        x: &[&ArrayRef<E, D>],
        residual: Option<&[&ArrayRef<E, D>]>,
        dy: &[&ArrayRef<E, D>],
        saved: &SyncSaved<P>,
    ) -> Result<Vec<Gradients<E, D>>> {
        let parts = self.parts(x, residual, Some(dy), true)?;
        self.backward_parts(&parts, saved)
    }

    fn backward_parts<E: Element<Param = P>, D: Dimension>(
        &self,
        parts: &[Part<'_, E, D>],
        saved: &SyncSaved<P>,
    ) -> Result<Vec<Gradients<E, D>>> {
        check_count("saved", parts.len(), saved.parts.len())?;
        for (part, saved) in parts.iter().zip(&saved.parts) {
            saved.check_residual(&part.call.problem)?;
        }
        let (layer, backend) = (&self.layer, &self.layer.backend);
        let len = SUM_ROWS * layer.channels();
        let mut gathered = filled(len * parts.len(), 0.0)?;
        let gradients = parts.iter().map(|part| layer.gradients(&part.call, part.x));
        let mut gradients = gradients.collect::<Result<Vec<_>>>()?;
        let mut workspaces = workspaces(backend, parts)?;
        let shares = gathered.chunks_mut(len).zip(&mut gradients);
        let tasks = parts.iter().zip(&saved.parts).zip(shares).zip(&mut workspaces);
        backend.for_each(tasks, |(((part, saved), (sums, gradients)), workspace)| {
            let gradients = gradients.as_mut()?;
            let reduce = BackwardReduce {
                x: view(part.x)?,
                residual: part.residual.map(view).transpose()?,
                dy: view(part.dy()?)?,
                affine: layer.affine::<E>(),
                saved: saved.as_ref(),
                sums: sums.into(),
                dweight: gradients.dweight,
                dbias: gradients.dbias,
                workspace,
            };
            backend.backward_reduce(&part.call.problem, reduce)
        })?;
        let mut sums = filled(len, 0.0)?;
        backend.merge_sums(layer.channels(), (&gathered).into(), (&mut sums).into())?;
        let tasks = parts.iter().zip(&saved.parts).zip(&mut gradients).zip(&mut workspaces);
        backend.for_each(tasks, |(((part, saved), gradients), workspace)| {
            let gradients = gradients.as_mut()?;
            let apply = BackwardApply {
                x: view(part.x)?,
                residual: part.residual.map(view).transpose()?,
                dy: view(part.dy()?)?,
                affine: layer.affine::<E>(),
                saved: saved.as_ref(),
                sums: (&sums).into(),
                dx: gradients.dx,
                dresidual: gradients.dresidual,
                workspace,
            };
            backend.backward_apply(&part.call.problem, apply)
        })?;
        Ok(gradients)
    }

    /// Checks the parts, each for itself and all together.
    fn parts<'a, E: Element<Param = P>, D: Dimension>(
        &self,
        x: &[&'a ArrayRef<E, D>],
        residual: Option<&[&'a ArrayRef<E, D>]>,
        dy: Option<&[&'a ArrayRef<E, D>]>,
        adds_residual: bool,
    ) -> Result<Vec<Part<'a, E, D>>> {
        for (operand, tensors) in [(Operand::Residual, residual), (Operand::Dy, dy)] {
            if let Some(tensors) = tensors {
                check_count(operand.name(), x.len(), tensors.len())?;
            }
        }
        let parts = (0..x.len())
            .map(|index| {
                let x = x[index];
                let residual = residual.map(|residual| residual[index]);
                let dy = dy.map(|dy| dy[index]);
                let call = self.layer.call(&inputs(x, residual, dy), adds_residual);
                let call = call.map_err(|error| of_part(index, error))?;
                Ok(Part { call, x, residual, dy })
            })
            .collect::<Result<Vec<_>>>()?;
        if parts.is_empty() {
            return Err(Error::argument("x", "at least one part", 0));
        }
        let values: usize = parts.iter().map(|part| part.call.problem.values_per_channel()).sum();
        if values <= 1 {
            return Err(Error::argument(
                "x",
                "more than 1 value per channel to take statistics of",
                format_args!("{values} over {} parts", parts.len()),
            ));
        }
        // Before the running statistics advance: the parts meet the parameters after that.
        self.layer.check_affine()?;
        Ok(parts)
    }
}

impl<'a, E, D: Dimension> Part<'a, E, D> {
    fn dy(&self) -> Result<&'a ArrayRef<E, D>> {
        self.dy.ok_or_else(|| Error::argument("dy", "a tensor", "none"))
    }
}

fn workspaces<E, D: Dimension>(
    backend: &Cpu,
    parts: &[Part<'_, E, D>],
) -> Result<Vec<CpuWorkspace>> {
    parts.iter().map(|part| backend.workspace(&part.call.problem)).collect()
}

/// The same, with the part that it is about.
fn of_part(index: usize, error: Error) -> Error {
    match error {
        Error::Argument { argument, expected, found } => {
            Error::Argument { argument, expected, found: format!("{found} (part {index})") }
        }
        other => other,
    }
}

fn check_count(argument: &str, expected: usize, found: usize) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::argument(argument, format_args!("{expected} parts, as x"), found))
}
