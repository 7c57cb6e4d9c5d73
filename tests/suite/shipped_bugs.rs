//! Bugs that other implementations shipped, each as a test that this one does not have it.

use crate::common::flat::Buffers;
use crate::common::*;
use half::f16;
use ndarray::{Array2, Array3, Axis, array};
use warpnorm::*;

fn plain(dim: Dim, layout: Layout) -> Case {
    Case::new(dim, layout, Epilogue::NONE)
}

/// cuDNN: inference fails over 65,535 rows (pytorch#19911), training over 131,070 (pytorch#2917).
#[test]
fn cudnn_more_rows_than_a_grid_has_blocks() {
    check_mode::<f32>(plain((65_536, 2, 1), Layout::ChannelsLast), Embedding::Dense, Mode::Eval);
    for layout in LAYOUTS {
        check_mode::<f32>(plain((131_071, 2, 1), layout), Embedding::Dense, Mode::Train);
        check_mode::<f16>(plain((131_072, 1, 2), layout), Embedding::Dense, Mode::Train);
    }
}

/// cuDNN: 70x32x100x100x100 fails (pytorch#51776). More elements than 2^31: here it is a problem
/// like any other, whose scratch does not grow with the tensor.
#[test]
fn cudnn_volumes_of_more_than_2_31_elements() {
    let extents = [70, 32, 100, 100, 100];
    for layout in LAYOUTS {
        let problem = Problem::new(&extents, layout, DType::F32, Epilogue::NONE).unwrap();
        assert_eq!(problem.elements(), 2_240_000_000);
        assert_eq!(problem.forward_floor_bytes(), 17_920_000_000);
        let workspace = Cpu::new().workspace(&problem).unwrap();
        assert!(workspace.bytes() < 1 << 20);
    }
    // The same volume in small, through five axes.
    let x = ndarray::Array5::from_shape_fn((7, 32, 5, 4, 3), |(n, c, d, h, w)| {
        ((n * 31 + c * 7 + d * 13 + h * 5 + w * 3) % 17) as f32
    });
    let (y, _) = BatchNorm::<Cpu>::new(32, Cpu::new()).unwrap().forward_train(&x).unwrap();
    let flat = x.to_shape((7, 32, 60)).unwrap().to_owned();
    let (expected, _) =
        BatchNorm::<Cpu>::new(32, Cpu::new()).unwrap().forward_train(&flat).unwrap();
    assert!(y.iter().eq(&expected));
}

/// cuDNN converts NCHW to NHWC and back (cudnn-frontend#134): scratch as large as the tensor.
#[test]
fn cudnn_copies_into_another_layout() {
    for epilogue in epilogues() {
        for layout in LAYOUTS {
            for (small, large) in
                [([4, 64, 7, 7], [64, 64, 112, 112]), ([9, 3, 9, 9], [99, 3, 999, 99])]
            {
                let bytes = |extents: &[usize]| {
                    let problem = Problem::new(extents, layout, DType::F32, epilogue).unwrap();
                    Cpu::new().workspace(&problem).unwrap().bytes()
                };
                // 16384 partial sums at most, of a few numbers each.
                assert!(bytes(&large) < bytes(&small) + (1 << 20), "{layout} {large:?}");
            }
        }
    }
}

/// Apex SyncBN, channels-last: wrong statistics when C is no power of two and H, W are large
/// (apex#1768).
#[test]
fn apex_channels_that_are_no_power_of_two() {
    for channels in [3, 5, 6, 12, 31, 33, 48, 96, 100] {
        let case = plain((2, channels, 61 * 67), Layout::ChannelsLast);
        check_mode::<f32>(case, Embedding::Dense, Mode::Train);
    }
}

/// PyTorch SyncBN: the running variance differs per rank for uneven batches (pytorch#22192).
/// Paddle averages the ranks' means unweighted (Paddle#32464).
#[test]
fn sync_batch_norm_with_uneven_ranks() {
    let whole = array![[1.0f64], [2.0], [4.0], [8.0], [16.0], [100.0]];
    let mut alone: BatchNorm<Cpu, f64> = BatchNorm::new(1, Cpu::new()).unwrap();
    alone.forward_train(&whole).unwrap();
    let cpu = Cpu::new();
    let ranks: Vec<Array3<f64>> = [0..5, 5..6]
        .map(|rows| whole.slice_axis(Axis(0), rows.into()).insert_axis(Axis(2)).to_owned())
        .into();
    let mut buffers: Vec<_> = ranks
        .iter()
        .map(|x| {
            let mut data = Data::<f64>::new(plain(x.dim(), Layout::ChannelsLast));
            data.x = x.clone();
            data.running_mean.fill(0.0);
            data.running_var.fill(1.0);
            let mut buffers = Buffers::dense(&data);
            buffers.norm.momentum = Some(0.1);
            buffers
        })
        .collect();
    let mut gathered = vec![];
    for rank in &mut buffers {
        let mut moments = vec![0.0; MOMENT_ROWS];
        rank.statistics(&cpu, &mut moments).unwrap();
        gathered.extend(moments);
    }
    for rank in &mut buffers {
        rank.merge_statistics(&cpu, &gathered).unwrap();
        let expected = [alone.running_mean().unwrap()[0], alone.running_var().unwrap()[0]];
        for (got, expected) in [rank.running_mean[0], rank.running_var[0]].iter().zip(expected) {
            assert!((got / expected - 1.0).abs() < 1e-15, "{got} {expected}");
        }
    }
    assert_eq!(buffers[0].running_var[0].to_bits(), buffers[1].running_var[0].to_bits());
}

/// PyTorch: 1e30 in fp32 gives NaN (pytorch#162489).
#[test]
fn pytorch_1e30_in_single_precision() {
    for layout in LAYOUTS {
        let x = crate::common::array::<f32>((2, 3, 4), layout, |n, _, s| {
            if (n + s) % 2 == 0 { 1e30 } else { -1e30 }
        });
        let mut layer: BatchNorm = BatchNorm::new(3, Cpu::new()).unwrap();
        let (y, saved) = layer.forward_train(&x).unwrap();
        assert!(y.iter().zip(&x).all(|(&y, &x)| (y - x.signum()).abs() < 1e-6), "{y}");
        let dx = layer.backward(&x, &x, &saved).unwrap().dx;
        assert!(dx.iter().all(|dx| dx.is_finite()));
    }
}

/// PyTorch: constant channels give +-1 (pytorch#5410).
#[test]
fn pytorch_constant_channels_give_one() {
    for value in [1e4 / 3.0, 0.1, 12_345.678, -1e10] {
        for layout in LAYOUTS {
            for dim in [(32, 16, 49), (1000, 3, 1), (7, 2, 5001)] {
                let x = crate::common::array::<f32>(dim, layout, |_, _, _| value);
                let mut layer: BatchNorm =
                    BatchNormConfig::new(dim.1).eps(1e-30).build(Cpu::new()).unwrap();
                let (y, _) = layer.forward_train(&x).unwrap();
                assert!(y.iter().all(|&y| y == 0.0), "{value} {layout} {dim:?}");
            }
        }
    }
}

/// PyTorch: [125000, 50] is ten times slower than the same data as 4-D (pytorch#38915). Here both
/// are the same call: the bits agree, and how fast it is belongs to the benchmarks.
#[test]
fn pytorch_two_axes_are_as_good_as_four() {
    let flat = Array2::from_shape_fn((125_000, 50), |(n, c)| ((n * 7 + c * 3) % 101) as f32);
    let volume = flat.to_shape((125, 100, 10, 50)).unwrap().permuted_axes([0, 3, 1, 2]);
    let mut layer: BatchNorm = BatchNorm::new(50, Cpu::new()).unwrap();
    let (two, _) = layer.forward_train(&flat).unwrap();
    let (four, _) = layer.forward_train(&volume).unwrap();
    assert!(two.iter().eq(four.permuted_axes([0, 2, 3, 1]).iter()));
}

/// XLA, Flax, tt-metal: E[x^2] - E[x]^2 cancels (tensorflow#25115, tt-metal#45968).
#[test]
fn xla_the_variance_of_a_far_mean() {
    for layout in LAYOUTS {
        for (mean, std) in [(1e4, 1e-2), (-3e5, 1.0), (1e7, 8.0)] {
            let case = Case { mean, std, ..plain((16, 5, 100), layout) };
            check_mode::<f32>(case, Embedding::Dense, Mode::Train);
        }
    }
}

/// candle: the running variance is infinite after one value per channel.
#[test]
fn candle_one_value_per_channel() {
    let mut layer: BatchNorm = BatchNorm::new(3, Cpu::new()).unwrap();
    let error = layer.forward_train(&array![[1.0f32, 2.0, 3.0]]).err().unwrap();
    assert!(error.to_string().contains("more than 1 value per channel"), "{error}");
    assert_eq!(layer.running_var().unwrap(), [1.0; 3]);
    assert_eq!(layer.num_batches_tracked(), Some(0));
}

/// Burn: the running variance is biased.
#[test]
fn burn_running_variance_is_biased() {
    let config = BatchNormConfig::new(1).momentum(Some(1.0));
    let mut layer: BatchNorm = config.build(Cpu::new()).unwrap();
    layer.forward_train(&array![[1.0f32], [3.0]]).unwrap();
    assert_eq!(layer.running_var().unwrap(), [2.0]);
}

/// ONNX weights the old value by its momentum; here, as in PyTorch, it weights the new one.
#[test]
fn onnx_momentum_weights_the_old_value() {
    let config = BatchNormConfig::new(1).momentum(Some(0.125));
    let mut layer: BatchNorm = config.build(Cpu::new()).unwrap();
    layer.forward_train(&array![[7.0f32], [9.0]]).unwrap();
    assert_eq!(layer.running_mean().unwrap(), [1.0]);
    assert_eq!(layer.running_var().unwrap(), [0.875 + 0.25]);
}
