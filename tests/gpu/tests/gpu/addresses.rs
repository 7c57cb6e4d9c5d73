//! Calls on raw addresses, as stacks give them that share nothing else.

use crate::{Outcome, PASSED, Test, assert_refused, open, test, upload, values};
use warpnorm::cuda::{Cuda, CudaLauncher, GpuBuffer, GpuSlice, GpuSliceMut, Launcher};
use warpnorm::{
    Affine, Backend, DType, Epilogue, ForwardTrain, Inference, Layout, Norm, Problem, Result,
    Running, RunningMut, SavedMut, Scalar,
};

const SAMPLES: usize = 50;
const CHANNELS: usize = 8;
const LEN: usize = SAMPLES * CHANNELS;
const NORM: Norm = Norm { eps: 1e-5, momentum: Some(0.1) };

pub fn tests() -> Vec<Test> {
    vec![
        test("addresses::give_what_slices_give", give_what_slices_give),
        test("addresses::input_and_output_in_one_place_are_refused", one_place_is_refused),
        test("addresses::off_the_element_or_too_short_are_refused", misfits_are_refused),
    ]
}

fn problem() -> Problem {
    Problem::new(&[SAMPLES, CHANNELS], Layout::ChannelsLast, DType::F32, Epilogue::NONE).unwrap()
}

fn address<T: Scalar>(gpu: &Cuda, buffer: &GpuBuffer<T>) -> u64 {
    gpu.launcher().memory(&CudaLauncher::slice(buffer)).unwrap().address
}

/// How a call is told of a buffer.
#[derive(Clone, Copy)]
enum By {
    Slice,
    Address,
}

impl By {
    fn read<'a, T: Scalar>(self, gpu: &Cuda, buffer: &'a GpuBuffer<T>) -> GpuSlice<'a, T> {
        match self {
            By::Slice => buffer.into(),
            // SAFETY: the buffer is borrowed, was made on this stream, and is freed in its order.
            By::Address => unsafe { GpuSlice::from_raw(address(gpu, buffer), buffer.view().len()) },
        }
    }

    fn write<'a, T: Scalar>(self, gpu: &Cuda, buffer: &'a mut GpuBuffer<T>) -> GpuSliceMut<'a, T> {
        let (address, len) = (address(gpu, buffer), buffer.view().len());
        match self {
            By::Slice => buffer.into(),
            // SAFETY: as above; the borrow is exclusive.
            By::Address => unsafe { GpuSliceMut::from_raw(address, len) },
        }
    }
}

/// What a training forward writes.
struct Written {
    y: GpuBuffer<f32>,
    statistics: [GpuBuffer<f32>; 5],
    num_batches_tracked: GpuBuffer<i64>,
}

impl Written {
    fn new(gpu: &Cuda) -> Result<Self> {
        let row = || gpu.zeros(CHANNELS);
        Ok(Written {
            y: gpu.zeros(LEN)?,
            statistics: [row()?, row()?, row()?, row()?, row()?],
            num_batches_tracked: gpu.zeros(1)?,
        })
    }

    fn bits(&self, gpu: &Cuda) -> Result<Vec<Vec<u32>>> {
        let buffers = std::iter::once(&self.y).chain(&self.statistics);
        let bits = |buffer| Ok(gpu.download(buffer)?.into_iter().map(f32::to_bits).collect());
        buffers.map(bits).collect()
    }
}

fn forward(gpu: &Cuda, by: By) -> Result<Written> {
    let (x, weight) = (gpu.upload(&values(LEN))?, gpu.upload(&values(CHANNELS))?);
    let mut written = Written::new(gpu)?;
    let mut workspace = gpu.workspace(&problem())?;
    let [mean, var, mean_hi, mean_lo, invstd] =
        written.statistics.each_mut().map(|row| by.write(gpu, row));
    let args = ForwardTrain::<'_, Cuda, f32> {
        x: by.read(gpu, &x),
        residual: None,
        affine: Affine { weight: Some(by.read(gpu, &weight)), bias: None },
        running: Some(RunningMut {
            mean,
            var,
            num_batches_tracked: by.write(gpu, &mut written.num_batches_tracked),
        }),
        y: by.write(gpu, &mut written.y),
        saved: SavedMut { mean_hi, mean_lo, invstd, mask: None },
        workspace: &mut workspace,
    };
    gpu.forward_train(&problem(), &NORM, args)?;
    Ok(written)
}

fn give_what_slices_give() -> Outcome {
    let gpu = open()?;
    let (by_slice, by_address) = (forward(&gpu, By::Slice)?, forward(&gpu, By::Address)?);
    assert_eq!(by_slice.bits(&gpu)?, by_address.bits(&gpu)?);
    assert!(by_address.bits(&gpu)?[0].iter().any(|&bits| bits != 0), "nothing was written");
    assert_eq!(gpu.download(&by_address.num_batches_tracked)?, [1]);
    PASSED
}

/// Inference from one place to another, `(address, elements)` each.
fn infer(gpu: &Cuda, x: (u64, usize), y: (u64, usize)) -> Result<()> {
    let (mean, var) = (gpu.zeros::<f32>(CHANNELS)?, gpu.zeros::<f32>(CHANNELS)?);
    let mut workspace = gpu.workspace(&problem())?;
    let args = Inference::<'_, Cuda, f32> {
        // SAFETY: callers give places within buffers that they hold, or what must be refused
        // before it is launched.
        x: unsafe { GpuSlice::from_raw(x.0, x.1) },
        residual: None,
        affine: Affine { weight: None, bias: None },
        running: Running { mean: (&mean).into(), var: (&var).into() },
        // SAFETY: as above.
        y: unsafe { GpuSliceMut::from_raw(y.0, y.1) },
        workspace: &mut workspace,
    };
    gpu.inference(&problem(), &NORM, args)
}

fn one_place_is_refused() -> Outcome {
    let gpu = open()?;
    let memory = upload(&gpu, 2 * LEN)?;
    let start = address(&gpu, &memory);
    let before = gpu.download(&memory)?;
    let x = (start, LEN);
    for shift in [0, 4, 16, 4 * LEN as u64 - 4] {
        let refused = infer(&gpu, x, (start + shift, LEN));
        assert_refused(refused, "`y`: expected memory of its own, found memory that `x` has too")?;
    }
    assert_eq!(gpu.download(&memory)?, before);
    infer(&gpu, x, (start + 4 * LEN as u64, LEN))?;
    assert_ne!(gpu.download(&memory)?, before);
    PASSED
}

fn misfits_are_refused() -> Outcome {
    let gpu = open()?;
    let (from, to) = (upload(&gpu, LEN + 1)?, upload(&gpu, LEN + 1)?);
    let (x, y) = (address(&gpu, &from), address(&gpu, &to));
    assert_refused(infer(&gpu, (x + 2, LEN), (y, LEN)), "`x`: expected an address")?;
    assert_refused(infer(&gpu, (x, LEN), (y + 1, LEN)), "`y`: expected an address")?;
    assert_refused(infer(&gpu, (0, LEN), (y, LEN)), "`x`: expected an address")?;
    assert_refused(infer(&gpu, (x, LEN - 1), (y, LEN)), "`x`: expected 400 elements")?;
    assert_refused(infer(&gpu, (x, LEN), (y, LEN - 1)), "`y`: expected 400 elements")?;
    PASSED
}
