//! Device memory: there and back, in parts, and whose it is.

use crate::{Outcome, PASSED, Test, assert_refused, driver, open, open_beside, test, upload};
use cudarc::driver::sys::{CUcontext, CUdevice, CUresult};
use cudarc::driver::{CudaContext, DriverError};
use libtest_mimic::{Completion, Failed};
use std::sync::Arc;
use std::thread;
use warpnorm::cuda::{Cuda, CudaLauncher, GpuBuffer, GpuSlice, GpuSliceMut, Launcher, devices};
use warpnorm::{
    Affine, Backend, BatchNorm, DType, Epilogue, Inference, Layout, Norm, Problem, Running,
};

pub fn tests() -> Vec<Test> {
    vec![
        test("memory::there_and_back", there_and_back),
        test("memory::freed_by_another_thread", freed_by_another_thread),
        test("memory::parts_lie_where_they_should", parts_lie_where_they_should),
        test("memory::of_another_context_is_refused", of_another_context_is_refused),
        test("memory::of_another_device_is_refused", of_another_device_is_refused),
        test("memory::that_nothing_orders_is_refused", that_nothing_orders_is_refused),
        test("memory::a_stream_that_ends_is_waited_for", a_stream_that_ends_is_waited_for),
    ]
}

fn there_and_back() -> Outcome {
    let gpu = open()?;
    let values: Vec<i64> = (0..1000).collect();
    let buffer = gpu.upload(&values)?;
    assert_eq!(gpu.download(&buffer)?, values);
    assert_eq!(gpu.download(&gpu.duplicate(&buffer)?)?, values);
    assert_eq!(gpu.download(&gpu.zeros::<u8>(3)?)?, [0; 3]);
    assert!(gpu.download(&gpu.upload::<f32>(&[])?)?.is_empty());
    PASSED
}

/// One that has called nothing of CUDA, and so has no context to free it in: what fails there, the next
/// call reports.
fn freed_by_another_thread() -> Outcome {
    let gpu = Cuda::open(0)?;
    let buffer = gpu.upload(&[1.0f32; 1000])?;
    thread::spawn(move || drop(buffer)).join().expect("no panic");
    assert_eq!(gpu.download(&gpu.upload(&[2.0f32])?)?, [2.0]);
    PASSED
}

fn parts_lie_where_they_should() -> Outcome {
    let gpu = open()?;
    let gpu = gpu.launcher();
    let mut buffer = gpu.zeros::<f32>(10)?;
    let start = gpu.memory(&CudaLauncher::slice(&buffer))?.address;
    let at = |slice: GpuSlice<'_, f32>| {
        let memory = gpu.memory(&slice).unwrap();
        (memory.address - start, memory.bytes)
    };
    let at_mut = |mut slice: GpuSliceMut<'_, f32>| {
        let memory = gpu.memory_mut(&mut slice).unwrap();
        (memory.address - start, memory.bytes)
    };
    assert_eq!(at((&buffer.view().slice(3..7)).into()), (12, 16));
    assert_eq!(at(buffer.part(3..7)?), (12, 16));
    assert_eq!(at(buffer.part(10..10)?), (40, 0));
    assert_eq!(at(buffer.part(2..9)?.part(1..5)?), (12, 16));
    assert_eq!(at(GpuSlice::from(&buffer.view().slice(2..)).part(1..5)?), (12, 16));
    assert_eq!(at_mut(buffer.view_mut().slice_mut(5..).into()), (20, 20));
    assert_eq!(at_mut(buffer.part_mut(5..10)?), (20, 20));
    let mut slice = GpuSliceMut::from(&mut buffer);
    assert_eq!(at_mut(slice.part_mut(2..9)?.part_mut(1..5)?), (12, 16));
    assert_refused(buffer.part(3..11).map(drop), "`range`: expected a part of 0..10")?;
    assert_refused(buffer.part_mut(11..11).map(drop), "`range`: expected a part of 0..10")?;
    PASSED
}

/// Inference on `gpu` with an `x` that is not of its context.
fn infer_from(gpu: &Cuda, x: &GpuBuffer<f32>) -> warpnorm::Result<()> {
    let problem = Problem::new(&[5, 4], Layout::ChannelsLast, DType::F32, Epilogue::NONE)?;
    let (mean, var) = (gpu.zeros::<f32>(4)?, gpu.zeros::<f32>(4)?);
    let (mut y, mut workspace) = (gpu.zeros::<f32>(20)?, gpu.workspace(&problem)?);
    let args = Inference::<'_, Cuda, f32> {
        x: x.into(),
        residual: None,
        affine: Affine { weight: None, bias: None },
        running: Running { mean: (&mean).into(), var: (&var).into() },
        y: (&mut y).into(),
        workspace: &mut workspace,
    };
    gpu.inference(&problem, &Norm { eps: 1e-5, momentum: None }, args)
}

fn of_another_context_is_refused() -> Outcome {
    let gpu = open()?;
    let context = second_context()?;
    let other = Cuda::on_stream(context.new_stream()?)?;
    infer_from(&other, &upload(&other, 20)?)?;
    other.launcher().synchronize()?;
    assert_refused(infer_from(&gpu, &upload(&other, 20)?), "`x`: expected memory of device 0")?;
    assert_refused(gpu.download(&upload(&other, 20)?).map(drop), "`buffer`: expected")?;
    let mut layer: BatchNorm<Cuda> = BatchNorm::new(4, gpu.clone())?;
    if let Some(bias) = layer.bias_buffer_mut() {
        *bias = upload(&other, 4)?;
    }
    assert_refused(layer.state().map(drop), "`bias`: expected memory of device 0")?;
    assert_refused(layer.duplicate().map(drop), "`bias`: expected memory of device 0")?;
    let problem = layer.problem::<f32>(&[5, 4], Layout::ChannelsLast, false)?;
    let reset = other.workspace(&problem)?.reset(&gpu);
    assert_refused(reset, "`workspace`: expected memory of device 0")?;
    PASSED
}

fn of_another_device_is_refused() -> Outcome {
    if devices()?.len() < 2 {
        return Ok(Completion::ignored_with("there is one GPU only"));
    }
    let (first, second) = (open()?, Cuda::open(1)?);
    assert_refused(infer_from(&first, &upload(&second, 20)?), "found memory of device 1")?;
    infer_from(&second, &upload(&second, 20)?)?;
    second.launcher().synchronize()?;
    PASSED
}

/// Two of cudarc's contexts on one of CUDA's: on the default stream all goes in order, with
/// another stream nothing puts the two in order.
fn that_nothing_orders_is_refused() -> Outcome {
    let (first, second) = (Cuda::open(0)?, Cuda::open(0)?);
    let x = upload(&first, 20)?;
    infer_from(&second, &x)?;
    second.synchronize()?;
    let forked = open_beside(&second)?;
    let refusal = "`x`: expected memory of the launcher's own CudaContext";
    assert_refused(infer_from(&forked, &x), refusal)?;
    assert_refused(infer_from(&second, &x), refusal)?;
    infer_from(&forked, &upload(&second, 20)?)?;
    forked.synchronize()?;
    PASSED
}

/// cudarc orders memory with the streams that are there.
fn a_stream_that_ends_is_waited_for() -> Outcome {
    const ROWS: usize = 1 << 18;
    let gpu = Cuda::open(0)?;
    let problem = Problem::new(&[ROWS, 256], Layout::ChannelsLast, DType::F32, Epilogue::NONE)?;
    let x = gpu.upload(&vec![2.0f32; problem.elements()])?;
    let (mean, var) = (gpu.zeros::<f32>(256)?, gpu.upload(&[1.0f32; 256])?);
    let (mut y, mut workspace) = (gpu.zeros::<f32>(problem.elements())?, gpu.workspace(&problem)?);
    let beside = open_beside(&gpu)?;
    let args = Inference::<'_, Cuda, f32> {
        x: (&x).into(),
        residual: None,
        affine: Affine { weight: None, bias: None },
        running: Running { mean: (&mean).into(), var: (&var).into() },
        y: (&mut y).into(),
        workspace: &mut workspace,
    };
    beside.inference(&problem, &Norm { eps: 1e-5, momentum: None }, args)?;
    drop(beside);
    assert!(gpu.download(&y)?.iter().all(|value| (1.9..2.0).contains(value)));
    PASSED
}

/// A context beside the primary one. cudarc has the function that makes one for some versions of
/// CUDA only; drivers have this one in all.
fn second_context() -> Result<Arc<CudaContext>, Failed> {
    type Create = unsafe extern "C" fn(*mut CUcontext, u32, CUdevice) -> CUresult;
    let device = CudaContext::new(0)?.cu_device();
    let name = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
    let mut context = std::ptr::null_mut();
    // SAFETY: the driver is loaded already, and this is its function as cuda.h declares it.
    let created = unsafe {
        let library = libloading::Library::new(name)?;
        let create = library.get::<Create>("cuCtxCreate_v2")?;
        create(&mut context, 0, device)
    };
    if created != CUresult::CUDA_SUCCESS {
        return Err(DriverError(created).into());
    }
    // SAFETY: it was just created on this device, and nothing else will destroy it.
    Ok(driver(unsafe { CudaContext::from_raw_context(0, device, context) })?)
}
