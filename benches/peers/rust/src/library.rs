//! What is asked of a library: one batch norm on one tensor, channels second.

use warpnorm::DType;

/// Host memory of a problem without an epilogue.
pub struct Host {
    pub extents: Vec<usize>,
    pub dtype: DType,
    pub x: Vec<f32>,
    pub dy: Vec<f32>,
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
}

/// A layer and its input, on the library's device.
pub trait Layer {
    /// A training forward; the output, and what backward needs, is kept until the next.
    fn forward(&mut self);

    /// The gradients of the last forward, with ones coming in, and dropped at once.
    fn backward(&mut self);

    /// y and dx, with `dy` coming in.
    fn results(&mut self, dy: &[f32]) -> (Vec<f32>, Vec<f32>);

    /// Waits until all is done.
    fn wait(&self) {}
}

pub struct Library {
    pub name: &'static str,
    pub version: &'static str,
    pub layer: fn(&Host, Device) -> Box<dyn Layer>,
}

/// Where to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    Cpu {
        threads: usize,
    },
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "needs the feature"))]
    Cuda,
}
