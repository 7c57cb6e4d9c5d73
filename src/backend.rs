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

// In what follows a tensor has the problem's extents, layout and batch stride, and elements of E.

/// Weight and bias, read.
pub struct Affine<'a, B: Backend, E: Element> {
    /// gamma, `[C]` of `E::Param`; absent means 1.
    pub weight: Option<B::Slice<'a, E::Param>>,
    /// beta, `[C]` of `E::Param`; absent means 0.
    pub bias: Option<B::Slice<'a, E::Param>>,
}

/// Running statistics, read and advanced.
pub struct RunningMut<'a, B: Backend, E: Element> {
    /// The average of the batch means, `[C]` of `E::Param`.
    pub mean: B::SliceMut<'a, E::Param>,
    /// The average of the unbiased batch variances, `[C]` of `E::Param`.
    pub var: B::SliceMut<'a, E::Param>,
    /// Batches seen, `[1]` of i64; advanced by 1.
    pub num_batches_tracked: B::SliceMut<'a, i64>,
}

/// Running statistics to normalize with, read.
pub struct Running<'a, B: Backend, E: Element> {
    /// The mean, `[C]` of `E::Param`.
    pub mean: B::Slice<'a, E::Param>,
    /// The variance, `[C]` of `E::Param`.
    pub var: B::Slice<'a, E::Param>,
}

/// What a training forward leaves for backward, read: see [`Saved`](crate::Saved).
pub struct SavedRef<'a, B: Backend, E: Element> {
    /// The batch mean, rounded: `[C]` of `E::Param`.
    pub mean_hi: B::Slice<'a, E::Param>,
    /// What rounding took off the mean: `[C]` of `E::Param`.
    pub mean_lo: B::Slice<'a, E::Param>,
    /// `1 / sqrt(var + eps)` with the biased variance, 0 where `var + eps` is 0: `[C]` of
    /// `E::Param`.
    pub invstd: B::Slice<'a, E::Param>,
    /// The mask, [`Problem::mask_len`] bytes, where the epilogue has one; elsewhere none.
    pub mask: Option<B::Slice<'a, u8>>,
}

/// What a training forward leaves for backward, overwritten: see [`Saved`](crate::Saved).
pub struct SavedMut<'a, B: Backend, E: Element> {
    /// The batch mean, rounded: `[C]` of `E::Param`.
    pub mean_hi: B::SliceMut<'a, E::Param>,
    /// What rounding took off the mean: `[C]` of `E::Param`.
    pub mean_lo: B::SliceMut<'a, E::Param>,
    /// `1 / sqrt(var + eps)` with the biased variance, 0 where `var + eps` is 0: `[C]` of
    /// `E::Param`.
    pub invstd: B::SliceMut<'a, E::Param>,
    /// The mask, [`Problem::mask_len`] bytes, where the epilogue has one; elsewhere none.
    pub mask: Option<B::SliceMut<'a, u8>>,
}

/// Arguments of [`Backend::forward_train`].
pub struct ForwardTrain<'a, B: Backend, E: Element> {
    /// The input: a tensor, read.
    pub x: B::Slice<'a, E>,
    /// A tensor, read; present exactly if the epilogue has a residual.
    pub residual: Option<B::Slice<'a, E>>,
    /// Weight and bias, read.
    pub affine: Affine<'a, B, E>,
    /// Advanced if present.
    pub running: Option<RunningMut<'a, B, E>>,
    /// The output: a tensor, overwritten.
    pub y: B::SliceMut<'a, E>,
    /// What backward reads, overwritten.
    pub saved: SavedMut<'a, B, E>,
    /// From [`Backend::workspace`] of the same problem.
    pub workspace: &'a mut B::Workspace,
}

/// Gradients that backward computes. All of them are overwritten and not added to, unlike
/// PyTorch's `.grad`.
pub struct GradientsMut<'a, B: Backend, E: Element> {
    /// Of `x`: a tensor.
    pub dx: B::SliceMut<'a, E>,
    /// Of the residual, if the epilogue has one and the gradient is wanted: a tensor.
    pub dresidual: Option<B::SliceMut<'a, E>>,
    /// Of the weight, if wanted: `[C]` of `E::Param`.
    pub dweight: Option<B::SliceMut<'a, E::Param>>,
    /// Of the bias, if wanted: `[C]` of `E::Param`.
    pub dbias: Option<B::SliceMut<'a, E::Param>>,
}

/// Arguments of [`Backend::backward_train`].
pub struct BackwardTrain<'a, B: Backend, E: Element> {
    /// The input of forward: a tensor, read.
    pub x: B::Slice<'a, E>,
    /// The residual of forward, a tensor, where
    /// [`Epilogue::backward_reads_residual`](crate::Epilogue::backward_reads_residual) says so;
    /// otherwise ignored.
    pub residual: Option<B::Slice<'a, E>>,
    /// The gradient of the output: a tensor, read.
    pub dy: B::Slice<'a, E>,
    /// Weight and bias as they were in forward, read.
    pub affine: Affine<'a, B, E>,
    /// What forward saved, read.
    pub saved: SavedRef<'a, B, E>,
    /// Overwritten.
    pub gradients: GradientsMut<'a, B, E>,
    /// From [`Backend::workspace`] of the same problem.
    pub workspace: &'a mut B::Workspace,
}

/// Arguments of [`Backend::inference`].
pub struct Inference<'a, B: Backend, E: Element> {
    /// The input: a tensor, read.
    pub x: B::Slice<'a, E>,
    /// A tensor, read; present exactly if the epilogue has a residual.
    pub residual: Option<B::Slice<'a, E>>,
    /// Weight and bias, read.
    pub affine: Affine<'a, B, E>,
    /// What to normalize with, read.
    pub running: Running<'a, B, E>,
    /// The output: a tensor, overwritten.
    pub y: B::SliceMut<'a, E>,
    /// From [`Backend::workspace`] of the same problem.
    pub workspace: &'a mut B::Workspace,
}

/// Arguments of [`Backend::inference_inplace`].
pub struct InferenceInplace<'a, B: Backend, E: Element> {
    /// The input: a tensor, overwritten with the output.
    pub x: B::SliceMut<'a, E>,
    /// A tensor, read; present exactly if the epilogue has a residual.
    pub residual: Option<B::Slice<'a, E>>,
    /// Weight and bias, read.
    pub affine: Affine<'a, B, E>,
    /// What to normalize with, read.
    pub running: Running<'a, B, E>,
    /// From [`Backend::workspace`] of the same problem.
    pub workspace: &'a mut B::Workspace,
}

/// Arguments of [`Backend::inference_backward`] (frozen batch norm).
pub struct InferenceBackward<'a, B: Backend, E: Element> {
    /// The input of forward: a tensor, read.
    pub x: B::Slice<'a, E>,
    /// The residual of forward: a tensor, read where the epilogue has a residual and an activation
    /// other than the identity (inference writes no mask); otherwise ignored.
    pub residual: Option<B::Slice<'a, E>>,
    /// The gradient of the output: a tensor, read.
    pub dy: B::Slice<'a, E>,
    /// Weight and bias as they were in forward, read.
    pub affine: Affine<'a, B, E>,
    /// What forward normalized with, read.
    pub running: Running<'a, B, E>,
    /// Overwritten.
    pub gradients: GradientsMut<'a, B, E>,
    /// From [`Backend::workspace`] of the same problem.
    pub workspace: &'a mut B::Workspace,
}

/// Arguments of [`Backend::apply`]: the last part of a split training forward.
pub struct Apply<'a, B: Backend, E: Element> {
    /// This rank's input: a tensor, read.
    pub x: B::Slice<'a, E>,
    /// A tensor, read; present exactly if the epilogue has a residual.
    pub residual: Option<B::Slice<'a, E>>,
    /// Weight and bias, read.
    pub affine: Affine<'a, B, E>,
    /// This rank's output: a tensor, overwritten.
    pub y: B::SliceMut<'a, E>,
    /// Merged over all ranks, read; its mask is ignored here.
    pub saved: SavedRef<'a, B, E>,
    /// This rank's mask, [`Problem::mask_len`] bytes, overwritten, where the epilogue has one; elsewhere
    /// none.
    pub mask: Option<B::SliceMut<'a, u8>>,
    /// From [`Backend::workspace`] of the same problem.
    pub workspace: &'a mut B::Workspace,
}

/// Arguments of [`Backend::merge_statistics`].
pub struct MergeStatistics<'a, B: Backend, E: Element> {
    /// The moments of all ranks: `[R, 4, C]` of f64, read.
    pub moments: B::Slice<'a, f64>,
    /// Advanced if present.
    pub running: Option<RunningMut<'a, B, E>>,
    /// `mean_hi`, `mean_lo` and `invstd` are overwritten; the mask is ignored.
    pub saved: SavedMut<'a, B, E>,
}

/// Arguments of [`Backend::backward_reduce`]: the first part of a split training backward.
pub struct BackwardReduce<'a, B: Backend, E: Element> {
    /// This rank's input: a tensor, read.
    pub x: B::Slice<'a, E>,
    /// As in [`BackwardTrain`].
    pub residual: Option<B::Slice<'a, E>>,
    /// This rank's gradient of the output: a tensor, read.
    pub dy: B::Slice<'a, E>,
    /// Weight and bias as they were in forward, read.
    pub affine: Affine<'a, B, E>,
    /// Merged statistics and this rank's mask, read.
    pub saved: SavedRef<'a, B, E>,
    /// This rank's sums: `[3, C]` of f64, overwritten.
    pub sums: B::SliceMut<'a, f64>,
    /// This rank's own, if wanted: `[C]` of `E::Param`, overwritten. The gradient is the sum over
    /// the ranks.
    pub dweight: Option<B::SliceMut<'a, E::Param>>,
    /// As `dweight`.
    pub dbias: Option<B::SliceMut<'a, E::Param>>,
    /// From [`Backend::workspace`] of the same problem.
    pub workspace: &'a mut B::Workspace,
}

/// Arguments of [`Backend::backward_apply`]: the last part of a split training backward.
pub struct BackwardApply<'a, B: Backend, E: Element> {
    /// This rank's input: a tensor, read.
    pub x: B::Slice<'a, E>,
    /// As in [`BackwardTrain`].
    pub residual: Option<B::Slice<'a, E>>,
    /// This rank's gradient of the output: a tensor, read.
    pub dy: B::Slice<'a, E>,
    /// Weight and bias as they were in forward, read.
    pub affine: Affine<'a, B, E>,
    /// Merged statistics and this rank's mask, read.
    pub saved: SavedRef<'a, B, E>,
    /// Merged over all ranks: `[3, C]` of f64, read.
    pub sums: B::Slice<'a, f64>,
    /// A tensor, overwritten.
    pub dx: B::SliceMut<'a, E>,
    /// A tensor, overwritten, if the epilogue has a residual and the gradient is wanted.
    pub dresidual: Option<B::SliceMut<'a, E>>,
    /// From [`Backend::workspace`] of the same problem.
    pub workspace: &'a mut B::Workspace,
}

/// A device that runs batch normalization: stateless calls on buffers that are all the caller's.
///
/// `x`, `residual`, `y` and their gradients have the [`Problem`]'s extents, layout and element
/// type; every parameter and statistic is `[C]` of the element's [`Param`](crate::Param) type. No
/// call allocates anything proportional to a tensor, and none keeps what it was given. Every call
/// checks its arguments before it writes anything: after an [`Error::Argument`](crate::Error::Argument)
/// all buffers are as before. After any other error of a GPU the contents of what the call writes are
/// undefined.
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
    ///
    /// # Errors
    /// The device has no memory left.
    fn zeros<T: Scalar>(&self, len: usize) -> Result<Self::Buffer<T>>;
    /// A copy of host memory.
    ///
    /// # Errors
    /// The device has no memory left, or fails to copy.
    fn upload<T: Scalar>(&self, values: &[T]) -> Result<Self::Buffer<T>>;
    /// A copy in host memory. Waits for the calls that write `buffer`.
    ///
    /// # Errors
    /// The device fails to copy, or an earlier call failed on it; a buffer of another device.
    fn download<T: Scalar>(&self, buffer: &Self::Buffer<T>) -> Result<Vec<T>>;
    /// A buffer of the same contents.
    ///
    /// # Errors
    /// The device has no memory left, or fails to copy; a buffer of another device.
    fn duplicate<T: Scalar>(&self, buffer: &Self::Buffer<T>) -> Result<Self::Buffer<T>>;
    /// Elements of a buffer.
    fn len<T: Scalar>(buffer: &Self::Buffer<T>) -> usize;
    /// The whole of a buffer.
    fn slice<T: Scalar>(buffer: &Self::Buffer<T>) -> Self::Slice<'_, T>;
    /// The whole of a buffer.
    fn slice_mut<T: Scalar>(buffer: &mut Self::Buffer<T>) -> Self::SliceMut<'_, T>;
    /// Scratch for any call on `problem`, wherever its tensors lie; for one call at a time, and
    /// reusable as it is. A call on another problem takes it if it is large enough, or else refuses
    /// it. That a batch is smaller does not guarantee this: make one for each problem.
    ///
    /// # Errors
    /// The device has no memory left; an element type that it does not take.
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
    /// An argument that does not fit the problem; an eps or momentum out of its range; one value per
    /// channel or none.
    fn forward_train<E: Element>(
        &self,
        problem: &Problem,
        norm: &Norm,
        args: ForwardTrain<'_, Self, E>,
    ) -> Result<()>;

    /// The gradients of [`forward_train`](Self::forward_train) (Ioffe & Szegedy 2015, section 3).
    /// With `z = weight * xhat + bias + residual`, `xhat = (x - mean) * invstd`, sums over the m
    /// values of a channel and `g = dy * activation'(z)`:
    ///
    /// ```text
    /// dbias     = sum(g)
    /// dweight   = sum(g * xhat)
    /// dx        = weight * invstd * (g - dbias / m - xhat * dweight / m)
    /// dresidual = g
    /// ```
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
    /// An argument that does not fit the problem; an eps out of its range.
    fn inference<E: Element>(
        &self,
        problem: &Problem,
        norm: &Norm,
        args: Inference<'_, Self, E>,
    ) -> Result<()>;

    /// [`inference`](Self::inference) with the output in the input's place.
    ///
    /// # Errors
    /// An argument that does not fit the problem; an eps out of its range.
    fn inference_inplace<E: Element>(
        &self,
        problem: &Problem,
        norm: &Norm,
        args: InferenceInplace<'_, Self, E>,
    ) -> Result<()>;

    /// The gradients of [`inference`](Self::inference): those of
    /// [`backward_train`](Self::backward_train) with the statistics as constants, so that
    /// `dx = weight * invstd * g`.
    ///
    /// # Errors
    /// An argument that does not fit the problem; an eps out of its range.
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
    /// An argument that does not fit; an eps or momentum out of its range; on the CPU, one value per
    /// channel over all ranks, or none. (A GPU's calls cannot see the counts: there the running
    /// statistics of such channels stay as they are. [`Problem::check_trainable`] is the check to make
    /// before.)
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
    /// An argument that does not fit the problem; on the CPU, sums of one value per channel or none.
    fn backward_apply<E: Element>(
        &self,
        problem: &Problem,
        args: BackwardApply<'_, Self, E>,
    ) -> Result<()>;
}
