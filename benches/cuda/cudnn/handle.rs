//! cuDNN's handles and descriptors, destroyed when they are dropped.

#![allow(unsafe_code, reason = "cuDNN is a C library")]

use super::describe::{self, Shape};
use cudarc::cudnn::{result, sys};
use cudarc::driver::CudaStream;
use std::rc::Rc;
use std::sync::Arc;
use warpnorm::DType;

/// The library's name, from version 9 on, which has the numbers of errors that cudarc knows.
const LIBRARIES: [&str; 2] = ["libcudnn.so.9", "libcudnn.so"];
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
}

impl Handle {
    pub fn new(stream: Arc<CudaStream>) -> Outcome<Rc<Self>> {
        require_library()?;
        let bound = stream.context().bind_to_thread();
        bound.map_err(|error| error.to_string())?;
        let raw = result::create_handle().map_err(|error| error.to_string())?;
        let handle = Rc::new(Handle { raw, stream });
        // SAFETY: both are alive, and the handle keeps the stream.
        let set = unsafe { result::set_stream(raw, handle.stream.cu_stream().cast()) };
        set.map_err(|error| error.to_string())?;
        Ok(handle)
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
    // SAFETY: loading the library does nothing of note.
    let open = |name: &&str| unsafe { libloading::Library::new(*name) }.ok();
    let library = LIBRARIES.iter().find_map(open).ok_or_else(|| {
        let names = LIBRARIES.join(" and ");
        format!("{names} cannot be loaded; set LD_LIBRARY_PATH to cuDNN's directory")
    })?;
    // SAFETY: looked for, not called.
    let symbol = unsafe { library.get::<*const ()>("cudnnBatchNormalizationForwardTrainingEx") };
    symbol.map_err(|_| "this cuDNN has no batch normalization of its own".to_owned())?;
    // cudarc finds what is loaded by its name.
    std::mem::forget(library);
    // SAFETY: the symbol is there, as in every cuDNN.
    let present = unsafe { sys::is_culib_present() };
    if !present {
        return Err("libcudnn.so is under no name that cudarc looks for".to_owned());
    }
    match result::get_version() {
        version if version < LEAST_VERSION => Err(format!("cuDNN {version} is older than 9")),
        _ => Ok(()),
    }
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
