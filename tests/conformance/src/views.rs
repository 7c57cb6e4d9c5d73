//! Tensors that begin anywhere.

use crate::suite::flat::Buffers;
use crate::suite::{Bars, Case, Data, LAYOUTS, Mode};
use crate::{ADD_RELU, BufferOf, DeviceOf, Subject};
use warpnorm::cuda::{Alignment, Launcher, Pass, Plan};
use warpnorm::*;

/// Elements before the first one of each tensor: x, residual, dy, y, dx, dresidual.
type Offsets = [usize; 6];

/// A buffer of a tensor that begins `offset` elements in; nothing may touch what is before it.
fn shifted<S: Subject, E: Element>(
    device: &DeviceOf<S>,
    values: &[E],
    offset: usize,
) -> BufferOf<S, E> {
    let mut all = vec![E::from_f64(99.0); offset];
    all.extend_from_slice(values);
    device.upload(&all).unwrap()
}

fn unshifted<S: Subject, E: Element>(
    device: &DeviceOf<S>,
    buffer: &BufferOf<S, E>,
    offset: usize,
) -> Vec<E> {
    let all = device.download(buffer).unwrap();
    assert!(all[..offset].iter().all(|it| it.to_f64() == 99.0), "written before its beginning");
    all[offset..].to_vec()
}

/// A layer with the parameters of `buffers`.
fn layer<S: Subject, E: Element<Param = f32>>(
    device: &DeviceOf<S>,
    buffers: &Buffers<E>,
) -> BatchNorm<DeviceOf<S>> {
    let config = BatchNormConfig::new(buffers.problem.channels())
        .eps(buffers.norm.eps)
        .activation(buffers.problem.epilogue().activation);
    let mut layer: BatchNorm<DeviceOf<S>> = config.build(device.clone()).unwrap();
    let mut state = layer.state().unwrap();
    (state.weight, state.bias) = (buffers.weight.clone(), buffers.bias.clone());
    layer.load_state(&state).unwrap();
    layer
}

/// A training step on tensors that begin at `offsets`.
fn train<S: Subject, E: Element<Param = f32>>(
    device: &DeviceOf<S>,
    buffers: &mut Buffers<E>,
    offsets: Offsets,
) {
    let problem = buffers.problem;
    let layer = layer::<S, E>(device, buffers);
    let put = |values: &[E], offset| shifted::<S, E>(device, values, offset);
    let x = put(&buffers.x, offsets[0]);
    let residual = buffers.residual.as_ref().map(|it| put(it, offsets[1]));
    let dy = put(&buffers.dy, offsets[2]);
    let mut y = put(&buffers.y, offsets[3]);
    let mut dx = put(&buffers.dx, offsets[4]);
    let mut dresidual = buffers.dresidual.as_ref().map(|it| put(it, offsets[5]));
    let (mut dweight, mut dbias) =
        (device.zeros(problem.channels()).unwrap(), device.zeros(problem.channels()).unwrap());
    let mut saved = Saved::new(device, &problem).unwrap();
    let mut workspace = device.workspace(&problem).unwrap();

    layer
        .forward_batch_into::<E>(
            &problem,
            S::part(&x, offsets[0]),
            residual.as_ref().map(|it| S::part(it, offsets[1])),
            S::part_mut(&mut y, offsets[3]),
            &mut saved,
            &mut workspace,
        )
        .unwrap();
    let gradients = GradientsMut {
        dx: S::part_mut(&mut dx, offsets[4]),
        dresidual: dresidual.as_mut().map(|it| S::part_mut(it, offsets[5])),
        dweight: Some(DeviceOf::<S>::slice_mut(&mut dweight)),
        dbias: Some(DeviceOf::<S>::slice_mut(&mut dbias)),
    };
    layer
        .backward_into::<E>(
            &problem,
            S::part(&x, offsets[0]),
            residual.as_ref().map(|it| S::part(it, offsets[1])),
            S::part(&dy, offsets[2]),
            &saved,
            gradients,
            &mut workspace,
        )
        .unwrap();

    let take = |buffer: &_, offset| unshifted::<S, E>(device, buffer, offset);
    buffers.y = take(&y, offsets[3]);
    buffers.dx = take(&dx, offsets[4]);
    buffers.dresidual = dresidual.map(|it| take(&it, offsets[5]));
    buffers.dweight = Some(device.download(&dweight).unwrap());
    buffers.dbias = Some(device.download(&dbias).unwrap());
}

/// All tensors alike off the boundaries of packs (whole packs but for the ends of planes), and each
/// in its own way (single elements).
pub(crate) fn tensors_begin_anywhere<S: Subject, E: Element<Param = f32>>(subject: &S) {
    let mut cases = Vec::new();
    for dim in [(3, 5, 520), (2, 3, 1031), (3, 8, 49), (5, 16, 1)] {
        for layout in LAYOUTS {
            for epilogue in [Epilogue::NONE, ADD_RELU] {
                let offsets = [[1; 6], [7; 6], [8; 6], [0, 1, 2, 3, 4, 5]].into_iter();
                cases.extend(offsets.map(|offsets| (Case::new(dim, layout, epilogue), offsets)));
            }
        }
    }
    for (case, offsets) in cases.into_iter().skip(subject.one_in() / 2).step_by(subject.one_in()) {
        let data = Data::<E>::new(case).without_gradients_at_kinks(Mode::Train);
        let mut buffers = Buffers::dense(&data);
        train::<S, E>(&subject.device(3), &mut buffers, offsets);
        buffers.assert_results(&data.expected(Mode::Train), Bars::of(E::DTYPE));
    }
}

/// Masks over planes that are no whole bytes: by packs where a row of mask has room for the bits before a
/// plane, and by single elements where it has none or tensors lie in different ways. Forward and backward
/// need not go alike.
pub(crate) fn masks_of_odd_planes<S: Subject, E: Element<Param = f32>>(subject: &S) {
    let leaky = Activation::LeakyRelu { negative_slope: 0.1 };
    let offsets = [[0; 6], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1]];
    // The last but one has samples that begin at packs of f32, and every other at a byte of mask.
    let dims = [(3, 8, 169), (2, 4, 514), (2, 2, 1028), (2, 3, 516), (2, 8, 523)];
    let activations = [Activation::Relu, leaky, Activation::Relu6, Activation::Relu, leaky];
    let cases = dims.into_iter().zip(activations).flat_map(|(dim, activation)| {
        let epilogue = Epilogue { activation, residual: true };
        offsets.map(|offsets| (Case::new(dim, Layout::ChannelsFirst, epilogue), offsets))
    });
    for (case, offsets) in cases.skip(subject.one_in() / 2).step_by(subject.one_in()) {
        let data = Data::<E>::new(case).without_gradients_at_kinks(Mode::Train);
        let (device, mut buffers) = (subject.device(2), Buffers::dense(&data));
        let goes_by_packs = pack_of(&device, &buffers.problem) > 1;
        let begin_at_packs = (case.dim.1 * case.dim.2).is_multiple_of(16 / size_of::<E>());
        assert_eq!(goes_by_packs, begin_at_packs && case.dim.2 % 8 != 3, "{case:?}");
        train::<S, E>(&device, &mut buffers, offsets);
        buffers.assert_results(&data.expected(Mode::Train), Bars::of(E::DTYPE));
    }
}

/// Elements per access of what lies on the boundaries of packs.
fn pack_of(device: &cuda::Device<impl Launcher>, problem: &Problem) -> u32 {
    let facts = device.launcher().facts();
    Plan::new(Pass::Apply, problem, &facts, Alignment::ALIGNED).unwrap().pack
}
