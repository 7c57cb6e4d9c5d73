//! Memory: what calls allocate, how far apart samples may lie, and what the bytes of a mask mean.

use crate::common::flat::Buffers;
use crate::common::*;
use bytemuck::{cast_slice, cast_slice_mut};
use half::f16;
use half::slice::HalfBitsSliceExt;
use memmap2::{MmapMut, MmapOptions};
use ndarray::{Array3, ArrayView3, ArrayViewMut3, ShapeBuilder};
use warpnorm::*;

/// Bytes that each call of a layer allocates when it is made again.
fn allocated(layout: Layout, batch: usize) -> [(&'static str, u64); 5] {
    let epilogue = Epilogue { activation: RELU, residual: true };
    let data = Data::<f32>::new(Case::new((batch, 16, 49), layout, epilogue));
    let Buffers { mut x, residual, dy, mut y, mut dx, dresidual, problem, mut workspace, .. } =
        Buffers::dense(&data);
    let (residual, mut dresidual) = (residual.unwrap(), dresidual.unwrap());
    let (mut dweight, mut dbias) = (vec![0.0; 16], vec![0.0; 16]);
    let mut layer = data.layer(Cpu::with_threads(1).unwrap());
    let mut saved = Saved::new(layer.backend(), &problem).unwrap();

    let count = |name, call: &mut dyn FnMut() -> Result<()>| {
        call().unwrap();
        (name, allocation_counter::measure(|| call().unwrap()).bytes_total)
    };
    macro_rules! gradients {
        () => {
            GradientsMut {
                dx: (&mut dx).into(),
                dresidual: Some((&mut dresidual).into()),
                dweight: Some((&mut dweight).into()),
                dbias: Some((&mut dbias).into()),
            }
        };
    }
    [
        count("forward_train_into", &mut || {
            let residual = Some((&residual).into());
            let (x, y) = ((&x).into(), (&mut y).into());
            layer.forward_train_into::<f32>(&problem, x, residual, y, &mut saved, &mut workspace)
        }),
        count("backward_into", &mut || {
            let (x, dy, of) = ((&x).into(), (&dy).into(), gradients!());
            layer.backward_into::<f32>(&problem, x, None, dy, &saved, of, &mut workspace)
        }),
        count("forward_eval_into", &mut || {
            let residual = Some((&residual).into());
            let (x, y) = ((&x).into(), (&mut y).into());
            layer.forward_eval_into::<f32>(&problem, x, residual, y, &mut workspace)
        }),
        count("backward_eval_into", &mut || {
            let residual = Some((&residual).into());
            let (x, dy, of) = ((&x).into(), (&dy).into(), gradients!());
            layer.backward_eval_into::<f32>(&problem, x, residual, dy, of, &mut workspace)
        }),
        count("forward_eval_inplace_into", &mut || {
            let residual = Some((&residual).into());
            let x = (&mut x).into();
            layer.forward_eval_inplace_into::<f32>(&problem, x, residual, &mut workspace)
        }),
    ]
}

#[test]
fn calls_allocate_nothing_that_grows_with_the_tensor() {
    let counted = allocation_counter::measure(|| drop(std::hint::black_box(vec![0u8; 4096])));
    assert_eq!(counted.bytes_total, 4096);
    for layout in LAYOUTS {
        for ((name, small), (_, large)) in
            allocated(layout, 8).into_iter().zip(allocated(layout, 512))
        {
            assert!(small <= 4096 && large <= small, "{name} {layout}: {small} bytes, {large}");
        }
    }
}

/// Samples with a gap between them, which is not touched and so takes no memory.
struct Apart {
    memory: MmapMut,
    dim: Dim,
    layout: Layout,
    /// Elements from one sample to the next.
    stride: usize,
}

impl Apart {
    fn new(tensor: &Array3<f16>, layout: Layout, stride: usize) -> Self {
        let (samples, channels, spatial) = tensor.dim();
        let bytes = ((samples - 1) * stride + channels * spatial) * size_of::<f16>();
        let memory = MmapOptions::new().len(bytes).no_reserve_swap().map_anon().unwrap();
        let mut apart = Apart { memory, dim: tensor.dim(), layout, stride };
        apart.view_mut().assign(tensor);
        apart
    }

    fn shape(&self) -> ndarray::StrideShape<ndarray::Ix3> {
        let (_, channels, spatial) = self.dim;
        let (channel, place) = match self.layout {
            Layout::ChannelsFirst => (spatial, 1),
            Layout::ChannelsLast => (1, channels),
        };
        self.dim.strides((self.stride, channel, place))
    }

    fn view(&self) -> ArrayView3<'_, f16> {
        let bits: &[u16] = cast_slice(&self.memory);
        ArrayView3::from_shape(self.shape(), bits.reinterpret_cast()).unwrap()
    }

    fn view_mut(&mut self) -> ArrayViewMut3<'_, f16> {
        let shape = self.shape();
        let bits: &mut [u16] = cast_slice_mut(&mut self.memory);
        ArrayViewMut3::from_shape(shape, bits.reinterpret_cast_mut()).unwrap()
    }
}

#[test]
fn samples_may_lie_more_than_2_31_elements_apart() {
    for layout in LAYOUTS {
        let data = Data::<f16>::new(Case::new((2, 19, 13), layout, Epilogue::NONE));
        let results = |stride| {
            let (mut x, dy) =
                (Apart::new(&data.x, layout, stride), Apart::new(&data.dy, layout, stride));
            let mut layer = data.layer(Cpu::new());
            let (y, saved) = layer.forward_train(&x.view()).unwrap();
            let gradients = layer.backward(&x.view(), &dy.view(), &saved).unwrap();
            layer.forward_eval_inplace(&mut x.view_mut()).unwrap();
            let sums =
                [gradients.dweight, gradients.dbias].map(|it| value_bits(&it.unwrap().to_vec()));
            ([bits(&y), bits(&gradients.dx), bits(&x.view())], sums)
        };
        assert!(results((1 << 31) + 8) == results(19 * 13 + 8), "{layout}");
    }
}

/// The mask that `Problem::mask_len` describes, by the results: where the derivative is 1, y lies
/// between the activation's bounds or is NaN.
fn mask_by_the_documentation(y: &Array3<f32>, layout: Layout, activation: Activation) -> Vec<u8> {
    let passes = |y: f32| match activation {
        Activation::Relu6 => (0.0 < y && y < 6.0) || y.is_nan(),
        _ => y > 0.0 || y.is_nan(),
    };
    let (n, c, s) = y.dim();
    let (rows, len) = match layout {
        Layout::ChannelsFirst => (c, s),
        Layout::ChannelsLast => (s, c),
    };
    let mut mask = Vec::new();
    for (sample, row) in (0..n).flat_map(|sample| (0..rows).map(move |row| (sample, row))) {
        for byte in 0..len.div_ceil(8) {
            let bit = |i: usize| {
                let at = match layout {
                    Layout::ChannelsFirst => [sample, row, i],
                    Layout::ChannelsLast => [sample, i, row],
                };
                u8::from(passes(y[at])) << (i % 8)
            };
            mask.push((8 * byte..len.min(8 * byte + 8)).map(bit).sum());
        }
    }
    mask
}

#[test]
fn masks_are_as_documented() {
    let leaky = Activation::LeakyRelu { negative_slope: 0.1 };
    for activation in [RELU, leaky, Activation::Relu6] {
        for layout in LAYOUTS {
            // Where one layout is as good as the other, a tensor has that of fewer, longer rows.
            let thin = if layout == Layout::ChannelsLast { (5, 70, 1) } else { (5, 1, 70) };
            for dim in [(3, 11, 13), (2, 16, 24), thin] {
                let epilogue = Epilogue { activation, residual: true };
                let mut data =
                    Data::<f32>::new(Case { std: 3.0, ..Case::new(dim, layout, epilogue) });
                data.residual[[1, dim.1 / 2, dim.2 / 2]] = f32::NAN;
                let mut layer = data.layer(Cpu::new());
                let (y, saved) = layer.forward_train_add(&data.x, &data.residual).unwrap();
                let expected = mask_by_the_documentation(&y, layout, activation);
                let mask = saved.mask().unwrap();
                assert_eq!(mask.len(), expected.len(), "{activation} {layout} {dim:?}");
                // What the last byte of a row has beyond it means nothing.
                let len = if layout == Layout::ChannelsFirst { dim.2 } else { dim.1 };
                let meant = |at: usize| match len - 8 * (at % len.div_ceil(8)) {
                    rest @ 1..8 => (1u8 << rest) - 1,
                    _ => u8::MAX,
                };
                for (at, (&byte, &expected)) in mask.iter().zip(&expected).enumerate() {
                    let about = format!("{activation} {layout} {dim:?} byte {at}");
                    assert_eq!(byte & meant(at), expected, "{about}");
                }
            }
        }
    }
}
