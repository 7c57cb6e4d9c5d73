//! What runs a case: layers on some backend, asked with arrays in host memory.

use ndarray::{ArrayD, ArrayRef, IxDyn};
use warpnorm::{Backend, BatchNorm, Element, Gradients, Layout, Param, Result, Saved};

/// A tensor of a call, in memory as the subject's layout says.
pub type Tensor<E> = ArrayRef<E, IxDyn>;
/// The layer that a subject runs.
pub type LayerOf<S, P> = BatchNorm<<S as Subject>::Backend, P>;
/// `y`, and what backward needs.
pub type Trained<B, E> = (ArrayD<E>, Saved<B, <E as Element>::Param>);

/// What a case asks of a layer. Every refusal is the library's own.
pub trait Subject {
    /// Where the layer's parameters are.
    type Backend: Backend;

    /// To build layers on.
    fn backend(&self) -> &Self::Backend;

    /// How the tensors lie in memory.
    fn layout(&self) -> Layout;

    /// With the statistics of the batch; the running ones advance.
    ///
    /// # Errors
    /// The library refuses the call, or the device fails.
    fn forward_train<E: Element>(
        &self,
        bn: &mut LayerOf<Self, E::Param>,
        input: Input<'_, E>,
    ) -> Result<Trained<Self::Backend, E>>;

    /// The gradients of [`forward_train`](Self::forward_train).
    ///
    /// # Errors
    /// As there.
    fn backward<E: Element>(
        &self,
        bn: &LayerOf<Self, E::Param>,
        input: Input<'_, E>,
        dy: &Tensor<E>,
        saved: &Saved<Self::Backend, E::Param>,
    ) -> Result<Gradients<E, IxDyn>>;

    /// With running statistics; with the batch's in a layer that keeps none.
    ///
    /// # Errors
    /// As [`forward_train`](Self::forward_train).
    fn forward_eval<E: Element>(
        &self,
        bn: &LayerOf<Self, E::Param>,
        input: Input<'_, E>,
    ) -> Result<ArrayD<E>>;

    /// The gradients of [`forward_eval`](Self::forward_eval).
    ///
    /// # Errors
    /// As there.
    fn backward_eval<E: Element>(
        &self,
        bn: &LayerOf<Self, E::Param>,
        input: Input<'_, E>,
        dy: &Tensor<E>,
    ) -> Result<Gradients<E, IxDyn>>;

    /// A batch in parts, with the statistics of all of them: forward, and backward if there is a
    /// `dy` for every part.
    ///
    /// # Errors
    /// As [`forward_train`](Self::forward_train).
    fn synchronized<E: Element>(
        &self,
        bn: &mut LayerOf<Self, E::Param>,
        parts: &[Input<'_, E>],
        dy: Option<&[&Tensor<E>]>,
    ) -> Result<Synchronized<E>>;
}

/// What goes into a forward.
#[derive(Clone, Copy)]
pub struct Input<'a, E> {
    /// The input.
    pub x: &'a Tensor<E>,
    /// Added before the activation.
    pub residual: Option<&'a Tensor<E>>,
}

/// What a synchronized call gives.
pub struct Synchronized<E: Element> {
    /// Of each part.
    pub y: Vec<ArrayD<E>>,
    /// The same for every part.
    pub statistics: Statistics<E::Param>,
    /// Of each part, if there was a `dy`; `dweight` and `dbias` are the part's own.
    pub gradients: Option<Vec<Gradients<E, IxDyn>>>,
}

/// The statistics in a [`Saved`], in host memory.
pub struct Statistics<P> {
    /// The mean, rounded.
    pub mean_hi: Vec<P>,
    /// What rounding took off it.
    pub mean_lo: Vec<P>,
    /// `1 / sqrt(var + eps)`.
    pub invstd: Vec<P>,
}

impl<P: Param> Statistics<P> {
    /// Copies them to the host.
    ///
    /// # Errors
    /// The device fails to copy.
    pub fn download<B: Backend>(backend: &B, saved: &Saved<B, P>) -> Result<Self> {
        Ok(Statistics {
            mean_hi: backend.download(saved.mean_hi())?,
            mean_lo: backend.download(saved.mean_lo())?,
            invstd: backend.download(saved.invstd())?,
        })
    }
}
