//! Tensors that do not fit 32 bits.
#![cfg(emulated)]

use emulator::{Buffer, Emulator};
use half::f16;
use warpnorm::cuda::Device;
use warpnorm::*;

type Gpu = Device<Emulator>;

/// Rule 10: two samples 2^31 elements apart, in memory that is only there where it is touched.
#[test]
fn samples_2_to_the_31_elements_apart() {
    const STRIDE: usize = (1 << 31) + 8;
    for (extents, layout) in [
        ([2, 3, 1024], Layout::ChannelsFirst),
        ([2, 8, 9], Layout::ChannelsFirst),
        ([2, 16, 5], Layout::ChannelsLast),
    ] {
        let device = Device::new(Emulator::with_seed(1));
        let sample = extents[1] * extents[2];
        let problem = [Operand::X, Operand::Y].iter().try_fold(
            Problem::new(&extents, layout, DType::F16, Epilogue::NONE).unwrap(),
            |problem, &operand| problem.with_batch_stride(operand, STRIDE),
        );
        let problem = problem.unwrap();
        let mut x: Buffer<f16> = device.launcher().uninitialised(STRIDE + sample).unwrap();
        let values: Vec<f16> =
            (0..2 * sample).map(|i| f16::from_f64(((i * 37) % 101) as f64 * 0.01)).collect();
        x.write(0, &values[..sample]);
        x.write(STRIDE, &values[sample..]);
        let mut y: Buffer<f16> = device.launcher().uninitialised(STRIDE + sample).unwrap();
        let layer: BatchNorm<Gpu> = BatchNorm::new(extents[1], device.clone()).unwrap();
        let mut saved = Saved::new(&device, &problem).unwrap();
        let mut workspace = device.workspace(&problem).unwrap();
        layer
            .forward_batch_into::<f16>(
                &problem,
                Gpu::slice(&x),
                None,
                Gpu::slice_mut(&mut y),
                &mut saved,
                &mut workspace,
            )
            .unwrap();

        // The same samples side by side.
        let dense = Problem::new(&extents, layout, DType::F16, Epilogue::NONE).unwrap();
        let x = device.upload(&values).unwrap();
        let mut dense_y = device.zeros::<f16>(2 * sample).unwrap();
        let mut workspace = device.workspace(&dense).unwrap();
        layer
            .forward_batch_into::<f16>(
                &dense,
                Gpu::slice(&x),
                None,
                Gpu::slice_mut(&mut dense_y),
                &mut saved,
                &mut workspace,
            )
            .unwrap();
        let expected = device.download(&dense_y).unwrap();
        assert!(y.read(..sample) == expected[..sample], "{extents:?} {layout}");
        assert!(y.read(STRIDE..STRIDE + sample) == expected[sample..], "{extents:?} {layout}");
    }
}
