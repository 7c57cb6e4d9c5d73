//! cuDNN's handles and descriptors, destroyed when they are dropped.

#![allow(unsafe_code, reason = "cuDNN is a C library")]

use super::describe::{self, Shape};
use super::loaded;
use cudarc::cudnn::{result, sys};
use cudarc::driver::CudaStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use warpnorm::DType;

/// From here on it has the numbers of errors that cudarc knows.
const LEAST_VERSION: usize = 90_000;

/// Where the library cannot be used: why.
pub type Outcome<T> = Result<T, String>;

/// cuDNN's own word for it.
pub fn checked(status: sys::cudnnStatus_t) -> Outcome<()> {
    status.result().map_err(|error| error.to_string())
}

pub struct Handle {
    pub raw: sys::cudnnHandle_t,
    pub stream: Arc<CudaStream>,
    /// The file, where the system says it.
    pub library: Option<PathBuf>,
}

impl Handle {
    pub fn new(stream: Arc<CudaStream>) -> Outcome<Rc<Self>> {
        require_library()?;
        let bound = stream.context().bind_to_thread();
        bound.map_err(|error| error.to_string())?;
        let raw = result::create_handle().map_err(|error| error.to_string())?;
        let mut handle = Handle { raw, stream, library: None };
        handle.library = one_installation()?;
        // SAFETY: both are alive, and the handle keeps the stream.
        let set = unsafe { result::set_stream(raw, handle.stream.cu_stream().cast()) };
        set.map_err(|error| error.to_string())?;
        Ok(Rc::new(handle))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and nothing else destroys it.
        let _ = unsafe { result::destroy_handle(self.raw) };
    }
}

/// cudarc panics where the library is missing, and looks functions up when they are called.
fn require_library() -> Outcome<()> {
    // What cudarc will load, by the names that it tries in their order.
    let names = cudarc::get_lib_name_candidates("cudnn");
    // SAFETY: loading the library does nothing of note.
    let open = |name: &String| unsafe { libloading::Library::new(name) }.ok();
    let library = names.iter().find_map(open).ok_or_else(|| {
        "libcudnn.so.9 cannot be loaded; set LD_LIBRARY_PATH to cuDNN's directory".to_owned()
    })?;
    for name in ["cudnnBatchNormalizationForwardTrainingEx", "cudnnOpsVersionCheck"] {
        // SAFETY: looked for, not called.
        let symbol = unsafe { library.get::<*const ()>(name) };
        symbol.map_err(|_| format!("this cuDNN has no {name}: it is none of version 9"))?;
    }
    std::mem::forget(library);
    match result::get_version() {
        version if version < LEAST_VERSION => Err(format!("cuDNN {version} is older than 9")),
        _ => Ok(()),
    }
}

/// The file of a cuDNN of which all that batch normalization needs is of one version.
fn one_installation() -> Outcome<Option<PathBuf>> {
    // SAFETY: the symbol is there. It also loads what is checked, which else a first call would.
    checked(unsafe { sys::cudnnOpsVersionCheck() })?;
    let files = loaded::files(&std::fs::read_to_string("/proc/self/maps").unwrap_or_default());
    loaded::library(&files).map(|file| file.map(Path::to_owned))
}

/// `9.21.0`, of the number 92100.
pub fn version() -> String {
    let version = result::get_version();
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

pub struct TensorDescriptor {
    pub raw: sys::cudnnTensorDescriptor_t,
}

impl TensorDescriptor {
    fn create() -> Outcome<Self> {
        let raw = result::create_tensor_descriptor().map_err(|error| error.to_string())?;
        Ok(TensorDescriptor { raw })
    }

    pub fn new(dtype: DType, Shape { dims, strides }: &Shape) -> Outcome<Self> {
        let descriptor = Self::create()?;
        let dtype = describe::data_type(dtype);
        let rank = dims.len() as i32;
        // SAFETY: a descriptor of `create`; the arrays hold `rank` numbers.
        let set = unsafe {
            result::set_tensornd_descriptor(
                descriptor.raw,
                dtype,
                rank,
                dims.as_ptr(),
                strides.as_ptr(),
            )
        };
        set.map_err(|error| error.to_string())?;
        Ok(descriptor)
    }

    /// Of parameters and statistics for a tensor.
    pub fn of_params(tensor: &Self, mode: sys::cudnnBatchNormMode_t) -> Outcome<Self> {
        let descriptor = Self::create()?;
        // SAFETY: both are descriptors, and `tensor` is set.
        let status =
            unsafe { sys::cudnnDeriveBNTensorDescriptor(descriptor.raw, tensor.raw, mode) };
        checked(status)?;
        Ok(descriptor)
    }
}

impl Drop for TensorDescriptor {
    fn drop(&mut self) {
        // SAFETY: made by `create`, and nothing else destroys it.
        let _ = unsafe { result::destroy_tensor_descriptor(self.raw) };
    }
}

/// ReLU.
pub struct ActivationDescriptor {
    pub raw: sys::cudnnActivationDescriptor_t,
}

impl ActivationDescriptor {
    pub fn relu() -> Outcome<Self> {
        let raw = result::create_activation_descriptor().map_err(|error| error.to_string())?;
        let descriptor = ActivationDescriptor { raw };
        let (mode, nan) = (
            sys::cudnnActivationMode_t::CUDNN_ACTIVATION_RELU,
            sys::cudnnNanPropagation_t::CUDNN_PROPAGATE_NAN,
        );
        // SAFETY: a descriptor just made.
        let set = unsafe { result::set_activation_descriptor(raw, mode, nan, 0.0) };
        set.map_err(|error| error.to_string())?;
        Ok(descriptor)
    }
}

impl Drop for ActivationDescriptor {
    fn drop(&mut self) {
        // SAFETY: made by `relu`, and nothing else destroys it.
        let _ = unsafe { sys::cudnnDestroyActivationDescriptor(self.raw) };
    }
}
