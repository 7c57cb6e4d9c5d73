//! [`Backend`]: the stateless calls that a device offers, on buffers that are all the caller's.

use crate::element::{DType, Element, Scalar};
use crate::error::Result;
use crate::problem::Problem;

/// Rows of the moments that [`Backend::statistics`] writes: count, mean hi, mean lo, M2.
pub const MOMENT_ROWS: usize = 4;
/// Rows of the sums that [`Backend::backward_reduce`] writes: count, sum g, sum g * (x - mean).
pub const SUM_ROWS: usize = 3;

/// eps, and how far the running statistics move.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// Added to the variance; finite and not negative.
    pub eps: f64,
    /// The weight of the new value, 0 to 1 (PyTorch's convention); `None` is the cumulative
    /// average, `1 / (num_batches_tracked + 1)`.
    pub momentum: Option<f64>,
}

/// Weight and bias, `[C]` each; absent means 1 and 0.
pub struct Affine<'a, B: Backend, E: Element> {
    /// gamma.
    pub weight: Option<B::Slice<'a, E::Param>>,
    /// beta.
    pub bias: Option<B::Slice<'a, E::Param>>,
}

/// Running statistics to be advanced: `[C]`, `[C]` and `[1]`.
pub struct RunningMut<'a, B: Backend, E: Element> {
    /// The average of the batch means.
    pub mean: B::SliceMut<'a, E::Param>,
    /// The average of the unbiased batch variances.
    pub var: B::SliceMut<'a, E::Param>,
    /// One value: batches seen; advanced by 1.
    pub num_batches_tracked: B::SliceMut<'a, i64>,
}

/// Running statistics to normalize with, `[C]` each.
pub struct Running<'a, B: Backend, E: Element> {
    /// The mean.
    pub mean: B::Slice<'a, E::Param>,
    /// The variance.
    pub var: B::Slice<'a, E::Param>,
}

/// What a training forward leaves for backward: see [`Saved`](crate::Saved).
pub struct SavedRef<'a, B: Backend, E: Element> {
    /// `[C]`: the batch mean, rounded.
    pub mean_hi: B::Slice<'a, E::Param>,
    /// `[C]`: what rounding took off the mean.
    pub mean_lo: B::Slice<'a, E::Param>,
    /// `[C]`: `1 / sqrt(var + eps)` with the biased variance; 0 where `var + eps` is 0.
    pub invstd: B::Slice<'a, E::Param>,
    /// [`Problem::mask_len`] bytes where the epilogue has a mask.
    pub mask: Option<B::Slice<'a, u8>>,
}

/// [`SavedRef`], to be written.
pub struct SavedMut<'a, B: Backend, E: Element> {
    /// `[C]`: the batch mean, rounded.
    pub mean_hi: B::SliceMut<'a, E::Param>,
    /// `[C]`: what rounding took off the mean.
    pub mean_lo: B::SliceMut<'a, E::Param>,
    /// `[C]`: `1 / sqrt(var + eps)`.
    pub invstd: B::SliceMut<'a, E::Param>,
    /// [`Problem::mask_len`] bytes where the epilogue has a mask.
    pub mask: Option<B::SliceMut<'a, u8>>,
}

/// Arguments of [`Backend::forward_train`].
pub struct ForwardTrain<'a, B: Backend, E: Element> {
    /// The input.
    pub x: B::Slice<'a, E>,
    /// Present exactly if the epilogue has a residual.
    pub residual: Option<B::Slice<'a, E>>,
    /// Weight and bias.
    pub affine: Affine<'a, B, E>,
    /// Advanced if present.
    pub running: Option<RunningMut<'a, B, E>>,
    /// The output.
    pub y: B::SliceMut<'a, E>,
    /// Written for backward.
    pub saved: SavedMut<'a, B, E>,
    /// From [`Backend::workspace`] of the same problem.
    pub workspace: &'a mut B::Workspace,
}

/// Gradients that backward writes.
pub struct GradientsMut<'a, B: Backend, E: Element> {
    /// Of `x`.
    pub dx: B::SliceMut<'a, E>,
    /// Of the residual, if it has one and the gradient is wanted.
    pub dresidual: Option<B::SliceMut<'a, E>>,
    /// `[C]`, if wanted.
    pub dweight: Option<B::SliceMut<'a, E::Param>>,
    /// `[C]`, if wanted.
    pub dbias: Option<B::SliceMut<'a, E::Param>>,
}

/// Arguments of [`Backend::backward_train`].
pub struct BackwardTrain<'a, B: Backend, E: Element> {
    /// The input of forward.
    pub x: B::Slice<'a, E>,
    /// The residual of forward, where [`Epilogue::backward_reads_residual`](crate::Epilogue::backward_reads_residual) says so;
    /// otherwise not looked at.
    pub residual: Option<B::Slice<'a, E>>,
    /// The gradient of the output.
    pub dy: B::Slice<'a, E>,
    /// Weight and bias as they were in forward.
    pub affine: Affine<'a, B, E>,
    /// What forward saved.
    pub saved: SavedRef<'a, B, E>,
    /// What is written.
    pub gradients: GradientsMut<'a, B, E>,
    /// From [`Backend::workspace`] of the same problem.
    pub workspace: &'a mut B::Workspace,
}

/// Arguments of [`Backend::inference`].
pub struct Inference<'a, B: Backend, E: Element> {
    /// The input.
    pub x: B::Slice<'a, E>,
    /// Present exactly if the epilogue has a residual.
    pub residual: Option<B::Slice<'a, E>>,
    /// Weight and bias.
    pub affine: Affine<'a, B, E>,
    /// What to normalize with.
    pub running: Running<'a, B, E>,
    /// The output.
    pub y: B::SliceMut<'a, E>,
    /// From [`Backend::workspace`] of the same problem.
    pub workspace: &'a mut B::Workspace,
}

/// Arguments of [`Backend::inference_inplace`].
pub struct InferenceInplace<'a, B: Backend, E: Element> {
    /// The input, replaced by the output.
    pub x: B::SliceMut<'a, E>,
    /// Present exactly if the epilogue has a residual.
    pub residual: Option<B::Slice<'a, E>>,
    /// Weight and bias.
    pub affine: Affine<'a, B, E>,
    /// What to normalize with.
    pub running: Running<'a, B, E>,
    /// From [`Backend::workspace`] of the same problem.
    pub workspace: &'a mut B::Workspace,
}

/// Arguments of [`Backend::inference_backward`] (frozen batch norm).
pub struct InferenceBackward<'a, B: Backend, E: Element> {
    /// The input of forward.
    pub x: B::Slice<'a, E>,
    /// Present if the epilogue has a residual and an activation: there is no mask in inference.
    pub residual: Option<B::Slice<'a, E>>,
    /// The gradient of the output.
    pub dy: B::Slice<'a, E>,
    /// Weight and bias as they were in forward.
    pub affine: Affine<'a, B, E>,
    /// What forward normalized with.
    pub running: Running<'a, B, E>,
    /// What is written.
    pub gradients: GradientsMut<'a, B, E>,
    /// From [`Backend::workspace`] of the same problem.
    pub workspace: &'a mut B::Workspace,
}

/// Arguments of [`Backend::apply`]: the last part of a split training forward.
pub struct Apply<'a, B: Backend, E: Element> {
    /// This rank's input.
    pub x: B::Slice<'a, E>,
    /// Present exactly if the epilogue has a residual.
    pub residual: Option<B::Slice<'a, E>>,
    /// Weight and bias.
    pub affine: Affine<'a, B, E>,
    /// This rank's output.
    pub y: B::SliceMut<'a, E>,
    /// Merged over all ranks; the mask is this rank's and not looked at here.
    pub saved: SavedRef<'a, B, E>,
    /// Written where the epilogue has a mask.
    pub mask: Option<B::SliceMut<'a, u8>>,
    /// From [`Backend::workspace`] of the same problem.
    pub workspace: &'a mut B::Workspace,
}

/// Arguments of [`Backend::merge_statistics`].
pub struct MergeStatistics<'a, B: Backend, E: Element> {
    /// `[R, 4, C]`: the moments of all ranks.
    pub moments: B::Slice<'a, f64>,
    /// Advanced if present.
    pub running: Option<RunningMut<'a, B, E>>,
    /// `mean_hi`, `mean_lo` and `invstd` are written; the mask is not looked at.
    pub saved: SavedMut<'a, B, E>,
}

/// Arguments of [`Backend::backward_reduce`]: the first part of a split training backward.
pub struct BackwardReduce<'a, B: Backend, E: Element> {
    /// This rank's input.
    pub x: B::Slice<'a, E>,
    /// As in [`BackwardTrain`].
    pub residual: Option<B::Slice<'a, E>>,
    /// This rank's gradient of the output.
    pub dy: B::Slice<'a, E>,
    /// Weight and bias as they were in forward.
    pub affine: Affine<'a, B, E>,
    /// Merged statistics, this rank's mask.
    pub saved: SavedRef<'a, B, E>,
    /// `[3, C]`, written.
    pub sums: B::SliceMut<'a, f64>,
    /// `[C]`: this rank's own, if wanted. The sum over the ranks is the gradient.
    pub dweight: Option<B::SliceMut<'a, E::Param>>,
    /// `[C]`: this rank's own, if wanted.
    pub dbias: Option<B::SliceMut<'a, E::Param>>,
    /// From [`Backend::workspace`] of the same problem.
    pub workspace: &'a mut B::Workspace,
}

/// Arguments of [`Backend::backward_apply`]: the last part of a split training backward.
pub struct BackwardApply<'a, B: Backend, E: Element> {
    /// This rank's input.
    pub x: B::Slice<'a, E>,
    /// As in [`BackwardTrain`].
    pub residual: Option<B::Slice<'a, E>>,
    /// This rank's gradient of the output.
    pub dy: B::Slice<'a, E>,
    /// Weight and bias as they were in forward.
    pub affine: Affine<'a, B, E>,
    /// Merged statistics, this rank's mask.
    pub saved: SavedRef<'a, B, E>,
    /// `[3, C]`: merged over all ranks.
    pub sums: B::Slice<'a, f64>,
    /// Written.
    pub dx: B::SliceMut<'a, E>,
    /// Written, if wanted.
    pub dresidual: Option<B::SliceMut<'a, E>>,
    /// From [`Backend::workspace`] of the same problem.
    pub workspace: &'a mut B::Workspace,
}

/// A device that runs batch normalization: stateless calls on buffers that are all the caller's.
///
/// `x`, `residual`, `y` and their gradients have the [`Problem`]'s extents, layout and element
/// type; every parameter and statistic is `[C]` of the element's [`Param`](crate::Param) type. No
/// call allocates anything proportional to a tensor, and none keeps what it was given. Every call
/// checks its arguments before it writes anything: on `Err` all buffers are as before.
///
/// # The split form
/// To synchronize over several devices, or slices of a batch (ranks, in what follows), a training
/// forward is three calls: [`statistics`](Self::statistics) on each rank, which writes `[4, C]` f64
/// moments (rows count, mean hi, mean lo, M2, the sum of squared deviations from the mean); an
/// all-gather of them to `[R, 4, C]`, which is the caller's;
/// [`merge_statistics`](Self::merge_statistics) and [`apply`](Self::apply) on each rank. Backward
/// likewise: [`backward_reduce`](Self::backward_reduce) writes `[3, C]` f64 sums (rows count, sum of
/// the gradient g at the normalization's output, sum of g times the deviation from the mean)
/// together with the rank's own `dweight` and `dbias`; an all-gather to `[R, 3, C]`;
/// [`merge_sums`](Self::merge_sums); [`backward_apply`](Self::backward_apply).
///
/// Ranks may have uneven and empty batches. All merging follows the order of the ranks, so that
/// every rank arrives at the same bits. A rank's part of it, with ReLU over a residual:
///
/// ```
/// use warpnorm::*;
///
/// # let gather = |share: &[f64]| share.to_vec();
/// # let (x, residual, dy) = ([1.0f32, 5.0, 2.0, 9.0], [0.5f32; 4], [1.0f32; 4]);
/// let (cpu, channels) = (Cpu::new(), 2);
/// let epilogue = Epilogue { activation: Activation::Relu, residual: true };
/// let problem = Problem::new(&[2, channels], Layout::ChannelsLast, DType::F32, epilogue)?;
/// let norm = Norm { eps: 1e-5, momentum: Some(0.1) };
/// let mut saved: Saved<Cpu, f32> = Saved::new(&cpu, &problem)?;
/// let mut workspace = cpu.workspace(&problem)?;
/// let (mut y, mut dx) = ([0.0f32; 4], [0.0f32; 4]);
///
/// let mut share = vec![0.0; MOMENT_ROWS * channels];
/// cpu.statistics::<f32>(&problem, x[..].into(), (&mut share).into(), &mut workspace)?;
/// let moments = gather(&share); // your all-gather: [R, 4, C], in the order of the ranks
/// let merge = MergeStatistics {
///     moments: (&moments).into(),
///     running: None, // or this rank's own: all ranks' advance alike
///     saved: saved.as_mut(),
/// };
/// cpu.merge_statistics::<f32>(channels, &norm, merge)?;
/// let (statistics, mask) = saved.split_mask();
/// cpu.apply::<f32>(&problem, Apply {
///     x: x[..].into(),
///     residual: Some(residual[..].into()),
///     affine: Affine { weight: None, bias: None },
///     y: (&mut y[..]).into(),
///     saved: statistics,
///     mask,
///     workspace: &mut workspace,
/// })?;
///
/// let mut share = vec![0.0; SUM_ROWS * channels];
/// cpu.backward_reduce::<f32>(&problem, BackwardReduce {
///     x: x[..].into(),
///     residual: None, // the mask knows
///     dy: dy[..].into(),
///     affine: Affine { weight: None, bias: None },
///     saved: saved.as_ref(),
///     sums: (&mut share).into(),
///     dweight: None,
///     dbias: None,
///     workspace: &mut workspace,
/// })?;
/// let (gathered, mut sums) = (gather(&share), share); // [R, 3, C]
/// cpu.merge_sums(channels, (&gathered).into(), (&mut sums).into())?;
/// cpu.backward_apply::<f32>(&problem, BackwardApply {
///     x: x[..].into(),
///     residual: None,
///     dy: dy[..].into(),
///     affine: Affine { weight: None, bias: None },
///     saved: saved.as_ref(),
///     sums: (&sums).into(),
///     dx: (&mut dx[..]).into(),
///     dresidual: None,
///     workspace: &mut workspace,
/// })?;
/// # assert!((y[1] - 0.0).abs() < 1e-6 && (y[3] - 1.5).abs() < 1e-5 && saved.mask().is_some());
/// # Ok::<(), warpnorm::Error>(())
/// ```
pub trait Backend: Clone + Send + Sync + Sized + 'static {
    /// Memory that the device owns.
    type Buffer<T: Scalar>: Send + Sync;
    /// Borrowed memory, to read.
    type Slice<'a, T: Scalar>: Copy;
    /// Borrowed memory, to write.
    type SliceMut<'a, T: Scalar>;
    /// Scratch of a call: sized from its problem, one per concurrent call, reusable by later calls.
    type Workspace: Send;

    /// `len` zeros.
    fn zeros<T: Scalar>(&self, len: usize) -> Result<Self::Buffer<T>>;
    /// A copy of host memory.
    fn upload<T: Scalar>(&self, values: &[T]) -> Result<Self::Buffer<T>>;
    /// A copy in host memory.
    fn download<T: Scalar>(&self, buffer: &Self::Buffer<T>) -> Result<Vec<T>>;
    /// A buffer of the same contents.
    fn duplicate<T: Scalar>(&self, buffer: &Self::Buffer<T>) -> Result<Self::Buffer<T>>;
    /// Elements of a buffer.
    fn len<T: Scalar>(buffer: &Self::Buffer<T>) -> usize;
    /// The whole of a buffer.
    fn slice<T: Scalar>(buffer: &Self::Buffer<T>) -> Self::Slice<'_, T>;
    /// The whole of a buffer.
    fn slice_mut<T: Scalar>(buffer: &mut Self::Buffer<T>) -> Self::SliceMut<'_, T>;
    /// Scratch for any call on `problem`.
    fn workspace(&self, problem: &Problem) -> Result<Self::Workspace>;

    /// Refuses an element type that this device has no calls for, before anything is made of it.
    ///
    /// # Errors
    /// Such a type: f64 on a GPU.
    fn check_dtype(&self, dtype: DType) -> Result<()> {
        let _ = dtype;
        Ok(())
    }

    /// `y = activation(weight * (x - mean) * invstd + bias + residual)` with the batch's own
    /// statistics (Ioffe & Szegedy 2015, algorithm 1); advances the running statistics.
    ///
    /// # Errors
    /// An argument that does not fit the problem; one value per channel or none.
    fn forward_train<E: Element>(
        &self,
        problem: &Problem,
        norm: &Norm,
        args: ForwardTrain<'_, Self, E>,
    ) -> Result<()>;

    /// The gradients of [`forward_train`](Self::forward_train) (Ioffe & Szegedy 2015, section 3).
    ///
    /// # Errors
    /// An argument that does not fit the problem; one value per channel or none.
    fn backward_train<E: Element>(
        &self,
        problem: &Problem,
        args: BackwardTrain<'_, Self, E>,
    ) -> Result<()>;

    /// `y` with running statistics (Ioffe & Szegedy 2015, algorithm 2). `momentum` plays no part.
    ///
    /// # Errors
    /// An argument that does not fit the problem.
    fn inference<E: Element>(
        &self,
        problem: &Problem,
        norm: &Norm,
        args: Inference<'_, Self, E>,
    ) -> Result<()>;

    /// [`inference`](Self::inference) with the output in the input's place.
    ///
    /// # Errors
    /// An argument that does not fit the problem.
    fn inference_inplace<E: Element>(
        &self,
        problem: &Problem,
        norm: &Norm,
        args: InferenceInplace<'_, Self, E>,
    ) -> Result<()>;

    /// The gradients of [`inference`](Self::inference): the statistics are constants.
    ///
    /// # Errors
    /// An argument that does not fit the problem.
    fn inference_backward<E: Element>(
        &self,
        problem: &Problem,
        norm: &Norm,
        args: InferenceBackward<'_, Self, E>,
    ) -> Result<()>;

    /// Writes this rank's moments, `[4, C]`. An empty batch writes zeros.
    ///
    /// # Errors
    /// An argument that does not fit the problem.
    fn statistics<E: Element>(
        &self,
        problem: &Problem,
        x: Self::Slice<'_, E>,
        moments: Self::SliceMut<'_, f64>,
        workspace: &mut Self::Workspace,
    ) -> Result<()>;

    /// Merges the ranks' moments into what [`apply`](Self::apply) and backward need, and advances
    /// the running statistics.
    ///
    /// # Errors
    /// An argument that does not fit; one value per channel over all ranks, or none.
    fn merge_statistics<E: Element>(
        &self,
        channels: usize,
        norm: &Norm,
        args: MergeStatistics<'_, Self, E>,
    ) -> Result<()>;

    /// Writes this rank's `y` from merged statistics.
    ///
    /// # Errors
    /// An argument that does not fit the problem.
    fn apply<E: Element>(&self, problem: &Problem, args: Apply<'_, Self, E>) -> Result<()>;

    /// Writes this rank's backward sums, `[3, C]`, and its own `dweight` and `dbias`.
    ///
    /// # Errors
    /// An argument that does not fit the problem.
    fn backward_reduce<E: Element>(
        &self,
        problem: &Problem,
        args: BackwardReduce<'_, Self, E>,
    ) -> Result<()>;

    /// Adds up the ranks' sums: `[R, 3, C]` to `[3, C]`.
    ///
    /// # Errors
    /// An argument that does not fit.
    fn merge_sums(
        &self,
        channels: usize,
        gathered: Self::Slice<'_, f64>,
        sums: Self::SliceMut<'_, f64>,
    ) -> Result<()>;

    /// Writes this rank's `dx` and `dresidual` from merged sums.
    ///
    /// # Errors
    /// An argument that does not fit the problem.
    fn backward_apply<E: Element>(
        &self,
        problem: &Problem,
        args: BackwardApply<'_, Self, E>,
    ) -> Result<()>;
}
