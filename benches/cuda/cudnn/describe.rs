//! What a call is to cuDNN. Pure: shapes in, arguments out.

use crate::id::{Fused, Pass};
use cudarc::cudnn::sys::{
    cudnnBatchNormMode_t as Mode, cudnnBatchNormOps_t as Ops, cudnnDataType_t,
};
use warpnorm::{DType, Layout};

/// A tensor as `cudnnSetTensorNdDescriptor` takes it: `[N, C, spatial...]`, whatever the layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    pub dims: Vec<i32>,
    pub strides: Vec<i32>,
}

/// At least four dimensions; missing ones are 1.
pub fn shape(extents: &[usize], layout: Layout) -> Result<Shape, String> {
    let mut dims = Vec::with_capacity(extents.len().max(4));
    for &extent in extents {
        dims.push(i32::try_from(extent).map_err(|_| format!("extent {extent} beyond 32 bits"))?);
    }
    dims.resize(dims.len().max(4), 1);
    // From the innermost dimension on.
    let order: Vec<usize> = match layout {
        Layout::ChannelsFirst => (0..dims.len()).rev().collect(),
        Layout::ChannelsLast => [1].into_iter().chain((2..dims.len()).rev()).chain([0]).collect(),
    };
    let mut strides = vec![0; dims.len()];
    let mut stride = 1_i64;
    for axis in order {
        strides[axis] = i32::try_from(stride).map_err(|_| "strides beyond 32 bits".to_owned())?;
        stride *= i64::from(dims[axis]);
    }
    Ok(Shape { dims, strides })
}

/// How a mode is told that a tensor lies. Where all spatial extents are 1 either layout describes the
/// same memory, and `PER_ACTIVATION` gets the one that PyTorch gives it.
pub fn layout(mode: Mode, layout: Layout) -> Layout {
    if mode == Mode::CUDNN_BATCHNORM_PER_ACTIVATION { Layout::ChannelsFirst } else { layout }
}

pub fn data_type(dtype: DType) -> cudnnDataType_t {
    match dtype {
        DType::F32 => cudnnDataType_t::CUDNN_DATA_FLOAT,
        DType::F64 => cudnnDataType_t::CUDNN_DATA_DOUBLE,
        DType::F16 => cudnnDataType_t::CUDNN_DATA_HALF,
        DType::Bf16 => cudnnDataType_t::CUDNN_DATA_BFLOAT16,
    }
}

pub fn ops(fused: Fused) -> Ops {
    match fused {
        Fused::None => Ops::CUDNN_BATCHNORM_OPS_BN,
        Fused::Relu => Ops::CUDNN_BATCHNORM_OPS_BN_ACTIVATION,
        Fused::AddRelu => Ops::CUDNN_BATCHNORM_OPS_BN_ADD_ACTIVATION,
    }
}

/// The ways to make a call, the fastest of which counts. Inference is one kernel in either spatial
/// mode. A 2-D tensor's values are its channels', so that `PER_ACTIVATION`, which takes its own
/// statistics at every position, is the same there.
pub fn modes(pass: Pass, rank: usize) -> Vec<Mode> {
    let mut modes = vec![Mode::CUDNN_BATCHNORM_SPATIAL];
    if pass != Pass::Inference {
        modes.push(Mode::CUDNN_BATCHNORM_SPATIAL_PERSISTENT);
    }
    if rank == 2 {
        modes.push(Mode::CUDNN_BATCHNORM_PER_ACTIVATION);
    }
    modes
}

/// Why a call is not made: PyTorch does not give cuDNN so many samples for inference either, and a fault
/// would take the device from all that follows.
pub fn reason_against(pass: Pass, samples: usize) -> Option<String> {
    const MOST: usize = 65_535;
    let beyond = pass == Pass::Inference && samples > MOST;
    beyond.then(|| format!("not asked: inference of more than {MOST} samples"))
}

/// `SPATIAL`, not `CUDNN_BATCHNORM_SPATIAL`.
pub fn mode_name(mode: Mode) -> String {
    format!("{mode:?}").trim_start_matches("CUDNN_BATCHNORM_").to_owned()
}
