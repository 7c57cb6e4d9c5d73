//! [`Saved`]: what a training forward keeps for backward.

use crate::backend::{Backend, SavedMut, SavedRef};
use crate::element::{Element, Param};
use crate::error::{Error, Result};
use crate::problem::Problem;
use std::fmt;

/// What a training forward keeps for backward: `[C]` mean (as a rounded value and the rest) and
/// invstd, and a mask of one bit per element where the epilogue asks for one
/// ([`Epilogue::has_mask`](crate::Epilogue::has_mask)). Nothing else of the tensor's size.
///
/// It is for calls with a residual, or for calls without, as the problem that it was made for. The calls
/// of a layer and of [`SyncBatchNorm`](crate::SyncBatchNorm) refuse it for others: gradients of another
/// forward would look right. To stateless calls it passes buffers alone, of which only the mask tells.
pub struct Saved<B: Backend, P: Param> {
    pub(crate) mean_hi: B::Buffer<P>,
    pub(crate) mean_lo: B::Buffer<P>,
    pub(crate) invstd: B::Buffer<P>,
    pub(crate) mask: Option<B::Buffer<u8>>,
    /// Whether its forwards have a residual: set once, so that it cannot be another one's.
    residual: bool,
}

impl<B: Backend, P: Param> fmt::Debug for Saved<B, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Saved")
            .field("channels", &B::len(&self.invstd))
            .field("mask_bytes", &self.mask.as_ref().map(B::len))
            .finish_non_exhaustive()
    }
}

impl<B: Backend, P: Param> Saved<B, P> {
    /// Room for what a training forward on `problem` saves, again and again.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn new(backend: &B, problem: &Problem) -> Result<Self> {
        let channels = problem.channels();
        Ok(Saved {
            mean_hi: backend.zeros(channels)?,
            mean_lo: backend.zeros(channels)?,
            invstd: backend.zeros(channels)?,
            mask: match problem.mask_len() {
                0 => None,
                len => Some(backend.zeros(len)?),
            },
            residual: problem.epilogue().residual,
        })
    }

    /// Refuses what is for calls with a residual to one without, and the reverse.
    pub(crate) fn check_residual(&self, problem: &Problem) -> Result<()> {
        let (expected, found) = match (problem.epilogue().residual, self.residual) {
            (true, false) => ("that of a forward with a residual", "that of one without"),
            (false, true) => ("that of a forward without a residual", "that of one with"),
            _ => return Ok(()),
        };
        Err(Error::argument("saved", expected, found))
    }

    /// `[C]`: the batch mean, rounded to P.
    pub fn mean_hi(&self) -> &B::Buffer<P> {
        &self.mean_hi
    }

    /// `[C]`: what rounding took off the mean; `mean_hi + mean_lo` has twice the digits of P.
    pub fn mean_lo(&self) -> &B::Buffer<P> {
        &self.mean_lo
    }

    /// `[C]`: `1 / sqrt(var + eps)` with the biased variance; 0 where `var + eps` is 0.
    pub fn invstd(&self) -> &B::Buffer<P> {
        &self.invstd
    }

    /// A bit per element, where the epilogue has a mask; the format is at [`Problem::mask_len`].
    pub fn mask(&self) -> Option<&B::Buffer<u8>> {
        self.mask.as_ref()
    }

    /// To pass to a stateless call.
    pub fn as_ref<E: Element<Param = P>>(&self) -> SavedRef<'_, B, E> {
        SavedRef {
            mean_hi: B::slice(&self.mean_hi),
            mean_lo: B::slice(&self.mean_lo),
            invstd: B::slice(&self.invstd),
            mask: self.mask.as_ref().map(B::slice),
        }
    }

    /// The statistics to read, `[C]` each, and the mask to write, [`Problem::mask_len`] bytes where the
    /// epilogue has one, as [`Backend::apply`](crate::Backend::apply) takes them.
    ///
    /// [`Problem::mask_len`]: crate::Problem::mask_len
    #[allow(clippy::type_complexity, reason = "what `Backend::apply` takes")]
    pub fn split_mask<E: Element<Param = P>>(
        &mut self,
    ) -> (SavedRef<'_, B, E>, Option<B::SliceMut<'_, u8>>) {
        let statistics = SavedRef {
            mean_hi: B::slice(&self.mean_hi),
            mean_lo: B::slice(&self.mean_lo),
            invstd: B::slice(&self.invstd),
            mask: None,
        };
        (statistics, self.mask.as_mut().map(B::slice_mut))
    }

    /// To pass to a stateless call that writes it.
    pub fn as_mut<E: Element<Param = P>>(&mut self) -> SavedMut<'_, B, E> {
        SavedMut {
            mean_hi: B::slice_mut(&mut self.mean_hi),
            mean_lo: B::slice_mut(&mut self.mean_lo),
            invstd: B::slice_mut(&mut self.invstd),
            mask: self.mask.as_mut().map(B::slice_mut),
        }
    }
}
