//! Tensors that begin anywhere, and tensors that do not fit 32 bits.
#![cfg(emulated)]

#[path = "../../suite/common/mod.rs"]
mod suite;

use emulator::{Buffer, Emulator};
use half::f16;
use suite::flat::Buffers;
use suite::{Case, Data, LAYOUTS, Mode};
use warpnorm::cuda::{Device, Launcher};
use warpnorm::*;

type Gpu = Device<Emulator>;

/// Elements before the first one of each tensor: x, residual, dy, y, dx, dresidual.
type Offsets = [usize; 6];

/// A buffer of a tensor that begins `offset` elements in; nothing may touch what is before it.
fn shifted<E: Element>(device: &Gpu, values: &[E], offset: usize) -> Buffer<E> {
    let mut all = vec![E::from_f64(99.0); offset];
    all.extend_from_slice(values);
    device.launcher().upload(&all).unwrap()
}

fn unshifted<E: Element>(device: &Gpu, buffer: &Buffer<E>, offset: usize) -> Vec<E> {
    let all = device.launcher().download(buffer).unwrap();
    assert!(all[..offset].iter().all(|it| it.to_f64() == 99.0), "written before its beginning");
    all[offset..].to_vec()
}

/// A training step on tensors that begin at `offsets`.
fn train<E: Element<Param = f32>>(device: &Gpu, buffers: &mut Buffers<E>, offsets: Offsets) {
    let problem = buffers.problem;
    let layer = {
        let config = BatchNormConfig::new(problem.channels())
            .eps(buffers.norm.eps)
            .activation(problem.epilogue().activation);
        let mut layer: BatchNorm<Gpu> = config.build(device.clone()).unwrap();
        let mut state = layer.state().unwrap();
        (state.weight, state.bias) = (buffers.weight.clone(), buffers.bias.clone());
        layer.load_state(&state).unwrap();
        layer
    };
    let x = shifted(device, &buffers.x, offsets[0]);
    let residual = buffers.residual.as_ref().map(|it| shifted(device, it, offsets[1]));
    let dy = shifted(device, &buffers.dy, offsets[2]);
    let mut y = shifted(device, &buffers.y, offsets[3]);
    let mut dx = shifted(device, &buffers.dx, offsets[4]);
    let mut dresidual = buffers.dresidual.as_ref().map(|it| shifted(device, it, offsets[5]));
    let (mut dweight, mut dbias) =
        (device.zeros(problem.channels()).unwrap(), device.zeros(problem.channels()).unwrap());
    let mut saved = Saved::new(device, &problem).unwrap();
    let mut workspace = device.workspace(&problem).unwrap();
    let residual_view = || residual.as_ref().map(|it| it.slice_range(offsets[1]..));

    layer
        .forward_batch_into::<E>(
            &problem,
            x.slice_range(offsets[0]..),
            residual_view(),
            y.slice_range_mut(offsets[3]..),
            &mut saved,
            &mut workspace,
        )
        .unwrap();
    let gradients = GradientsMut {
        dx: dx.slice_range_mut(offsets[4]..),
        dresidual: dresidual.as_mut().map(|it| it.slice_range_mut(offsets[5]..)),
        dweight: Some(Gpu::slice_mut(&mut dweight)),
        dbias: Some(Gpu::slice_mut(&mut dbias)),
    };
    layer
        .backward_into::<E>(
            &problem,
            x.slice_range(offsets[0]..),
            residual_view(),
            dy.slice_range(offsets[2]..),
            &saved,
            gradients,
            &mut workspace,
        )
        .unwrap();

    buffers.y = unshifted(device, &y, offsets[3]);
    buffers.dx = unshifted(device, &dx, offsets[4]);
    buffers.dresidual = dresidual.map(|it| unshifted(device, &it, offsets[5]));
    buffers.dweight = Some(device.download(&dweight).unwrap());
    buffers.dbias = Some(device.download(&dbias).unwrap());
}

fn check<E: Element<Param = f32>>(case: Case, offsets: Offsets) {
    let device = Device::new(Emulator::with_seed(3));
    let data = Data::<E>::new(case).without_gradients_at_kinks(Mode::Train);
    let mut buffers = Buffers::dense(&data);
    train(&device, &mut buffers, offsets);
    let bars = suite::Bars::of(E::DTYPE);
    buffers.assert_results(&data.expected(Mode::Train), bars);
}

/// All tensors alike off the boundaries of packs (whole packs but for the ends of planes), and each
/// in its own way (single elements).
#[test]
fn tensors_begin_anywhere() {
    let epilogues = [Epilogue::NONE, Epilogue { activation: Activation::Relu, residual: true }];
    for dim in [(3, 5, 520), (2, 3, 1031), (3, 8, 49), (5, 16, 1)] {
        for layout in LAYOUTS {
            for epilogue in epilogues {
                for offsets in [[1; 6], [7; 6], [8; 6], [0, 1, 2, 3, 4, 5]] {
                    check::<f32>(Case::new(dim, layout, epilogue), offsets);
                    check::<f16>(Case::new(dim, layout, epilogue), offsets);
                }
            }
        }
    }
}

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
