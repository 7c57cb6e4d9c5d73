//! Shares of a tensor that are long for each thread, of data that changes along the way: moments that are
//! taken about the mean so far must not lose digits, nor leave fp32's range.

use crate::Subject;
use crate::suite::flat::Buffers;
use crate::suite::on_backend::on_backend;
use crate::suite::{About, Bars, Case, Data, Dim, LAYOUTS, Mode, Random};
use half::{bf16, f16};
use warpnorm::cuda::{Choice, Tier};
use warpnorm::{Backend, Element, Epilogue, Layout};

/// The value at this place, of so many in a channel. `noise` is normal.
type Series = fn(place: f64, channel: usize, noise: f64) -> f64;

const SERIES: [(&str, Series); 9] = [
    ("a drift", |place, _, noise| 1000.0 * place + noise),
    (
        "zeros first",
        |place, channel, noise| if place < 0.4 { 0.0 } else { channel as f64 - 3.0 + noise },
    ),
    ("outliers first", |place, _, noise| if place < 0.001 { 3e4 } else { noise }),
    // Nothing is to be taken about it.
    ("one outlier, first of all", |place, _, noise| if place == 0.0 { 1000.0 } else { noise }),
    ("heavy tails", |_, _, noise| (2.0 * noise).exp()),
    ("a step in every channel but one", |place, channel, noise| match channel {
        1 => 7.25,
        _ if place < 0.3 => 1000.0 + 0.01 * noise,
        _ => -3.0 + noise,
    }),
    ("values that nearly cancel", |place, _, noise| {
        let sign = if ((place * 1e6) as u64).is_multiple_of(2) { 1.0 } else { -1.0 };
        sign + if noise > 2.5 { 0.0078125 } else { 0.0 }
    }),
    ("nearly constant", |_, _, noise| if noise > 2.0 { 1.0078125 } else { 1.0 }),
    ("two values", |place, channel, _| if place < 0.1 * channel as f64 { -7.0 } else { 0.1 }),
];

/// Such as only f32 and bf16 hold.
const WIDE_SERIES: [(&str, Series); 4] = [
    (
        "tiny ones, and then others",
        |place, _, noise| if place < 0.5 { 1e-25 * noise } else { noise },
    ),
    (
        "huge ones, and then others",
        |place, _, noise| if place < 0.3 { 1e25 * noise } else { noise },
    ),
    ("tiny throughout", |_, _, noise| 1e-28 * noise),
    ("zeros, and then tiny ones", |place, _, noise| if place < 0.3 { 0.0 } else { 1e-26 * noise }),
];

/// Such as only f32 holds.
const FINE_SERIES: [(&str, Series); 2] = [
    ("a mean far from zero", |_, channel, noise| 1e4 * channel as f64 + 1e-2 * noise),
    ("a drift far from zero", |place, _, noise| 1e6 + 30.0 * place + 0.1 * noise),
];

fn series<E: Element>(dim: Dim, layout: Layout, of: Series) -> Data<E> {
    let mut data = Data::<E>::new(Case { eps: 1e-60, ..Case::new(dim, layout, Epilogue::NONE) });
    let values = (dim.0 * dim.2) as f64;
    let mut random = Random::new(7);
    for ((n, c, s), x) in data.x.indexed_iter_mut() {
        let place = (n * dim.2 + s) as f64 / values;
        *x = E::from_f64(of(place, c, random.normal()));
    }
    data
}

fn check<S: Subject, E: Element<Param = f32>>(subject: &S, data: &Data<E>, choice: Choice) {
    let device = subject.device(0).with_choice(choice);
    let expected = data.expected(Mode::Train);
    let mut buffers = Buffers::dense(data);
    let mut workspace = device.workspace(&buffers.problem).unwrap();
    on_backend(&mut buffers, &device, &mut workspace, |on| {
        on.forward_train().and_then(|()| on.backward_train())
    })
    .unwrap();
    for (c, &mean) in expected.mean.iter().enumerate() {
        let got = f64::from(buffers.mean_hi[c]) + f64::from(buffers.mean_lo[c]);
        assert!((got - mean).abs() <= 2e-7 * mean.abs(), "mean[{c}]: {got:e}, not {mean:e}");
        let (got, invstd) = (f64::from(buffers.invstd[c]), expected.invstd[c]);
        assert!((got - invstd).abs() <= 2e-7 * invstd, "invstd[{c}]: {got:e}, not {invstd:e}");
    }
    buffers.assert_results(&expected, Bars::of(E::DTYPE));
}

/// Few blocks to a channel, so that each thread's share is long.
fn choice(tier: Tier, layout: Layout) -> Choice {
    match (tier, layout) {
        (Tier::Streaming, Layout::ChannelsFirst) => Choice::Parts(tier, 1),
        (Tier::Streaming, Layout::ChannelsLast) => Choice::Parts(tier, 2),
        _ => Choice::Tier(tier),
    }
}

/// Planes, and columns that fold into channels.
const CHANNELS_FIRST: &[Dim] = &[(2, 3, 8192), (2, 2, 9001), (1500, 8, 4)];
/// Columns of single elements, and of packs.
const CHANNELS_LAST: &[Dim] = &[(2, 3, 8192), (6000, 8, 1), (700, 33, 1)];

fn check_all<S: Subject, E: Element<Param = f32>>(subject: &S, names: &[(&str, Series)]) {
    for &(name, of) in names {
        for (layout, dims) in LAYOUTS.into_iter().zip([CHANNELS_FIRST, CHANNELS_LAST]) {
            for &dim in dims {
                let choice = choice(subject.tier(), layout);
                let _about = About((E::DTYPE, name, dim, layout, choice));
                check(subject, &series::<E>(dim, layout, of), choice);
            }
        }
    }
}

pub fn in_f32<S: Subject>(subject: &S) {
    check_all::<S, f32>(subject, &SERIES);
    check_all::<S, f32>(subject, &WIDE_SERIES);
    check_all::<S, f32>(subject, &FINE_SERIES);
}

pub fn in_f16<S: Subject>(subject: &S) {
    check_all::<S, f16>(subject, &SERIES);
}

pub fn in_bf16<S: Subject>(subject: &S) {
    check_all::<S, bf16>(subject, &SERIES);
    check_all::<S, bf16>(subject, &WIDE_SERIES);
}
