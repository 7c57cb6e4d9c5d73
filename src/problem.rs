//! [`Problem`]: a validated batch-normalization call. Every call goes through one.

use crate::config::{Epilogue, Layout, MOST_CHANNELS, check_activation};
use crate::element::DType;
use crate::error::{Error, Result};
use std::fmt;

/// The tensors of a call that have the shape of `x`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operand {
    /// The input.
    X,
    /// What is added before the activation.
    Residual,
    /// The output.
    Y,
    /// The gradient of the output.
    Dy,
    /// The gradient of the input.
    Dx,
    /// The gradient of the residual.
    Dresidual,
}

impl Operand {
    const COUNT: usize = 6;
    pub(crate) const ALL: [Operand; Self::COUNT] =
        [Operand::X, Operand::Residual, Operand::Y, Operand::Dy, Operand::Dx, Operand::Dresidual];

    /// The argument's name in the calls.
    pub fn name(self) -> &'static str {
        match self {
            Operand::X => "x",
            Operand::Residual => "residual",
            Operand::Y => "y",
            Operand::Dy => "dy",
            Operand::Dx => "dx",
            Operand::Dresidual => "dresidual",
        }
    }
}

/// Shape, layout, element type and epilogue of a call, checked once.
///
/// ```
/// use warpnorm::{DType, Epilogue, Layout, Problem};
///
/// let problem = Problem::new(&[32, 64, 56, 56], Layout::ChannelsLast, DType::F32, Epilogue::NONE)?;
/// assert_eq!((problem.batch(), problem.channels(), problem.spatial()), (32, 64, 3136));
/// assert_eq!(problem.values_per_channel(), 32 * 3136);
/// # Ok::<(), warpnorm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Problem {
    batch: usize,
    channels: usize,
    spatial: usize,
    layout: Layout,
    dtype: DType,
    epilogue: Epilogue,
    batch_strides: [usize; Operand::COUNT],
}

impl Problem {
    /// A call on dense tensors of `extents` = `[N, C, spatial...]` (channels second in either
    /// layout; `[N, C]` alone is a spatial extent of 1).
    ///
    /// # Errors
    /// Fewer than two extents, no channels, more elements or channels than can be addressed, an
    /// activation with a non-finite parameter. A batch of 0 is allowed here; training refuses it.
    pub fn new(
        extents: &[usize],
        layout: Layout,
        dtype: DType,
        epilogue: Epilogue,
    ) -> Result<Self> {
        let &[batch, channels, ref spatial @ ..] = extents else {
            return Err(Error::argument(
                "extents",
                "at least two, [N, C, spatial...]",
                format_args!("{extents:?}"),
            ));
        };
        if channels == 0 {
            return Err(Error::argument(
                "extents",
                "at least 1 channel",
                format_args!("{extents:?}"),
            ));
        }
        check_activation(epilogue.activation)?;
        let bytes = extents
            .iter()
            .try_fold(dtype.size(), |product, &extent| product.checked_mul(extent.max(1)));
        if channels > MOST_CHANNELS || bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(Error::argument(
                "extents",
                "a tensor, and channels, that can be addressed",
                format_args!("{extents:?}"),
            ));
        }
        let spatial = spatial.iter().product();
        Ok(Problem {
            batch,
            channels,
            spatial,
            layout,
            dtype,
            epilogue,
            batch_strides: [channels * spatial; Operand::COUNT],
        })
    }

    /// The same call with `operand` a slice of a larger array: `stride` elements between its
    /// samples instead of `channels * spatial`.
    ///
    /// # Errors
    /// A stride at which the samples would overlap, or that cannot be addressed.
    pub fn with_batch_stride(mut self, operand: Operand, stride: usize) -> Result<Self> {
        let sample = self.channels * self.spatial;
        let span = stride
            .checked_mul(self.batch)
            .and_then(|elements| elements.checked_mul(self.dtype.size()));
        if stride < sample || span.is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(Error::argument(
                operand.name(),
                format_args!("a batch stride of at least {sample} that can be addressed"),
                stride,
            ));
        }
        self.batch_strides[operand as usize] = stride;
        Ok(self)
    }

    /// The same call with another epilogue.
    ///
    /// # Errors
    /// An activation with a non-finite parameter.
    pub fn with_epilogue(mut self, epilogue: Epilogue) -> Result<Self> {
        check_activation(epilogue.activation)?;
        self.epilogue = epilogue;
        Ok(self)
    }

    /// N.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// C.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The product of the spatial extents; 1 for `[N, C]`.
    pub fn spatial(&self) -> usize {
        self.spatial
    }

    /// The layout that all tensors of the call share.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The element type that all tensors of the call share.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Residual and activation.
    pub fn epilogue(&self) -> Epilogue {
        self.epilogue
    }

    /// N * C * spatial.
    pub fn elements(&self) -> usize {
        self.batch * self.channels * self.spatial
    }

    /// N * spatial: how many values a channel's statistics are taken over.
    pub fn values_per_channel(&self) -> usize {
        self.batch * self.spatial
    }

    /// Elements between the samples of `operand`.
    pub fn batch_stride(&self, operand: Operand) -> usize {
        self.batch_strides[operand as usize]
    }

    /// Whether the samples of `operand` follow each other without gaps.
    pub(crate) fn is_gapless(&self, operand: Operand) -> bool {
        self.batch <= 1 || self.batch_stride(operand) == self.channels * self.spatial
    }

    /// Elements from the first to one past the last that `operand` uses.
    pub fn span(&self, operand: Operand) -> usize {
        let sample = self.channels * self.spatial;
        match self.batch {
            0 => 0,
            batch => (batch - 1) * self.batch_stride(operand) + sample,
        }
    }

    /// Rows of the mask: one per contiguous run of the layout, padded to whole bytes, so that
    /// rows can be written by different threads.
    pub(crate) fn mask_rows(&self) -> (usize, usize) {
        match (self.layout, self.spatial) {
            (Layout::ChannelsFirst, 0 | 2..) => (self.channels, self.spatial.div_ceil(8)),
            // Of one position, layouts are the same.
            _ => (self.spatial, self.channels.div_ceil(8)),
        }
    }

    /// Bytes of the mask that a training forward with this epilogue writes, 0 if it writes none
    /// ([`Epilogue::has_mask`]).
    ///
    /// The mask is `[N, C, ceil(spatial / 8)]` bytes for channels-first and
    /// `[N, spatial, ceil(C / 8)]` for channels-last and where there is one position, without gaps,
    /// whatever the tensors' batch strides. Bit `i % 8` (0 is the least significant) of byte `i / 8`
    /// of a row is element `i` of it; what a row's bytes have beyond its elements means nothing. A bit
    /// is 1 where the derivative is 1: for ReLU and leaky ReLU where `z > 0`, for ReLU6 where
    /// `0 < z < 6`, and where `z` is NaN. It is 0 where the derivative is 0, or leaky ReLU's
    /// `negative_slope`.
    ///
    /// On a GPU, channels-first rows whose elements are no multiple of 8 lie differently in as many
    /// bytes (`docs/kernels.md`): a mask is for the backend that wrote it.
    pub fn mask_len(&self) -> usize {
        let (rows, bytes) = self.mask_rows();
        if self.epilogue.has_mask() { self.batch * rows * bytes } else { 0 }
    }

    /// The least bytes a training forward moves: `x` (and the residual) read, `y` (and the mask)
    /// written.
    pub fn forward_floor_bytes(&self) -> usize {
        self.bytes_of(2 + usize::from(self.epilogue.residual))
    }

    /// The least bytes a training backward moves: `x` and `dy` (and mask or residual, where the
    /// activation asks for it) read, `dx` (and `dresidual`) written.
    pub fn backward_floor_bytes(&self) -> usize {
        let residual = usize::from(self.epilogue.residual);
        self.bytes_of(3 + residual + usize::from(self.epilogue.backward_reads_residual()))
    }

    /// Bytes of `tensors` tensors and the mask. One tensor can be addressed, several need not be.
    fn bytes_of(&self, tensors: usize) -> usize {
        let tensor = self.elements() * self.dtype.size();
        tensor.saturating_mul(tensors).saturating_add(self.mask_len())
    }

    /// Refuses a batch that has no variance to speak of: PyTorch's rule, and the paper's m - 1.
    /// Training calls ask for themselves. In the split form the batch is that of all ranks, and
    /// what counts it on a GPU is in the GPU's memory: there the caller asks.
    ///
    /// # Errors
    /// One value per channel, or none.
    pub fn check_trainable(&self, values_per_channel: usize) -> Result<()> {
        if values_per_channel > 1 {
            return Ok(());
        }
        Err(Error::argument(
            "x",
            "more than 1 value per channel to take statistics of",
            format_args!("{values_per_channel} ({self})"),
        ))
    }

    pub(crate) fn check_dtype(&self, dtype: DType) -> Result<()> {
        if self.dtype == dtype {
            return Ok(());
        }
        Err(Error::argument("problem", format_args!("dtype {dtype}"), self.dtype))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} N={} C={} spatial={}",
            self.layout, self.dtype, self.batch, self.channels, self.spatial
        )
    }
}
