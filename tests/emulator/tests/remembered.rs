//! A workspace that remembers the plans of earlier calls, other problems' among them: launches and
//! results are those of a new one.
#![cfg(emulated)]

use conformance::suite;

use emulator::{Emulator, Options, clustered_facts};
use half::{bf16, f16};
use suite::flat::Buffers;
use suite::on_backend::{OnBackend, on_backend};
use suite::{Case, Data, LAYOUTS};
use warpnorm::cuda::{Choice, Device, Tier, Workspace};
use warpnorm::{
    Activation, Backend, DType, Element, Epilogue, MOMENT_ROWS, Operand, Problem, Result, SUM_ROWS,
};

type Gpu = Device<Emulator>;

const ADD_RELU: Epilogue = Epilogue { activation: Activation::Relu, residual: true };

/// A device with clusters of four blocks.
fn device(seed: u64) -> Gpu {
    Device::new(Emulator::new(Options { seed, facts: clustered_facts(4), ..Options::default() }))
}

/// One that serves every call of these tests.
fn large_workspace(device: &Gpu) -> Workspace<Emulator> {
    let layout = LAYOUTS[1];
    let problem = Problem::new(&[512, 256, 64], layout, DType::F32, Epilogue::NONE).unwrap();
    device.workspace(&problem).unwrap()
}

#[derive(Debug, Clone, Copy)]
struct Call {
    case: Case,
    /// Elements after each sample of x: with 1, samples begin at different places of a pack.
    gap: usize,
    dtype: DType,
    choice: Choice,
}

/// Kernels with their threads, and all that was written.
type Outcome = (Vec<(String, u64)>, Vec<u64>);

impl Call {
    fn on(&self, device: &Gpu, workspace: &mut Workspace<Emulator>) -> Result<Outcome> {
        match self.dtype {
            DType::F16 => self.of::<f16>(device, workspace),
            DType::Bf16 => self.of::<bf16>(device, workspace),
            _ => self.of::<f32>(device, workspace),
        }
    }

    /// Training, inference and the split form.
    fn of<E: Element>(&self, device: &Gpu, workspace: &mut Workspace<Emulator>) -> Result<Outcome> {
        let device = device.clone().with_choice(self.choice);
        let mut written = Vec::new();
        let mut buffers = self.buffers::<E>();
        on_backend(&mut buffers, &device, workspace, |on| {
            on.forward_train().and_then(|()| on.backward_train())
        })?;
        written.extend(bits(&buffers));
        let mut buffers = self.buffers::<E>();
        on_backend(&mut buffers, &device, workspace, |on| {
            on.inference().and_then(|()| on.inference_backward())
        })?;
        written.extend(bits(&buffers));
        let mut buffers = self.buffers::<E>();
        on_backend(&mut buffers, &device, workspace, |on| split(on, self.case.dim.1))?;
        written.extend(bits(&buffers));
        let counters = device.launcher().take_counters();
        Ok((counters.into_iter().map(|it| (it.kernel, it.threads)).collect(), written))
    }

    fn buffers<E: Element>(&self) -> Buffers<E> {
        Buffers::with_gaps(&Data::<E>::new(self.case), &[(Operand::X, self.gap)])
    }
}

fn split<E: Element>(on: &mut OnBackend<'_, Gpu, E>, channels: usize) -> Result<()> {
    let mut moments = vec![0.0; MOMENT_ROWS * channels];
    let mut sums = vec![0.0; SUM_ROWS * channels];
    on.statistics(&mut moments)?;
    on.merge_statistics(&moments)?;
    on.apply()?;
    on.backward_reduce(&mut sums)?;
    on.backward_apply(&sums)
}

fn bits<E: Element>(buffers: &Buffers<E>) -> Vec<u64> {
    [&buffers.y, &buffers.dx].into_iter().flat_map(|values| suite::value_bits(values)).collect()
}

fn calls() -> Vec<Call> {
    let tiers = [Tier::Streaming, Tier::Block, Tier::Cluster, Tier::Grid].map(Choice::Tier);
    let choices = [Choice::Best].into_iter().chain(tiers).cycle();
    let dtypes = [DType::F32, DType::F16, DType::Bf16].into_iter().cycle();
    let cases = [(4, 4, 512), (3, 5, 49)].into_iter().flat_map(|dim| {
        LAYOUTS.into_iter().flat_map(move |layout| {
            [Epilogue::NONE, ADD_RELU].map(|epilogue| Case::new(dim, layout, epilogue))
        })
    });
    let with_gaps = cases.flat_map(|case| [0, 1].map(|gap| (case, gap)));
    let calls = with_gaps.zip(dtypes).zip(choices);
    calls.map(|(((case, gap), dtype), choice)| Call { case, gap, dtype, choice }).collect()
}

#[test]
fn problems_choices_and_element_types_in_alternation() {
    let device = device(3);
    let mut workspace = large_workspace(&device);
    let anew = |call: Call| (call, call.on(&device, &mut large_workspace(&device)).unwrap());
    let calls: Vec<_> = calls().into_iter().map(anew).collect();
    for pair in calls.windows(2) {
        for (call, expected) in pair.iter().chain(&pair[..1]) {
            assert_eq!(call.on(&device, &mut workspace).unwrap(), *expected, "{call:?}");
        }
    }
}

/// The same problem with x at every offset within a pack.
#[test]
fn addresses_in_alternation() {
    let device = device(2);
    let problem = Problem::new(&[3, 5, 1031], LAYOUTS[0], DType::F32, Epilogue::NONE).unwrap();
    let values: Vec<f32> = (0..problem.elements() + 8).map(|i| ((i * 37) % 101) as f32).collect();
    let x = device.upload(&values).unwrap();
    let mut moments = device.zeros::<f64>(MOMENT_ROWS * problem.channels()).unwrap();
    let mut statistics = |start: usize, workspace: &mut Workspace<Emulator>| {
        let x = x.slice_range(start..start + problem.elements());
        device.statistics::<f32>(&problem, x, Gpu::slice_mut(&mut moments), workspace).unwrap();
        let counters = device.launcher().counters();
        (counters.kernel, counters.threads, device.download(&moments).unwrap())
    };
    let mut workspace = device.workspace(&problem).unwrap();
    for start in [0, 1, 0, 2, 3, 1, 4, 0] {
        let expected = statistics(start, &mut device.workspace(&problem).unwrap());
        assert_eq!(statistics(start, &mut workspace), expected, "{start}");
    }
}

/// Threads with clones of one device, each with a workspace of its own.
#[test]
fn several_threads() {
    let device = device(1);
    let calls = &calls()[..6];
    let written = |call: &Call, workspace: &mut _| call.on(&device, workspace).unwrap().1;
    let expected: Vec<_> =
        calls.iter().map(|call| written(call, &mut large_workspace(&device))).collect();
    std::thread::scope(|scope| {
        for first in 0..4 {
            let (device, expected) = (device.clone(), &expected);
            scope.spawn(move || {
                let mut workspace = large_workspace(&device);
                for index in (0..2 * calls.len()).map(|step| (first + step) % calls.len()) {
                    let (_, written) = calls[index].on(&device, &mut workspace).unwrap();
                    assert_eq!(written, expected[index], "{:?}", calls[index]);
                }
            });
        }
    });
}

/// What cannot be is refused as often as it is asked for, and leaves nothing behind.
#[test]
fn a_refused_plan_between_good_ones() {
    let device = device(0);
    let mut workspace = large_workspace(&device);
    let good = calls()[0];
    let refused = Call { choice: Choice::Parts(Tier::Cluster, 9), ..good };
    let expected = good.on(&device, &mut large_workspace(&device)).unwrap();
    for _ in 0..2 {
        let error = refused.on(&device, &mut workspace).unwrap_err().to_string();
        assert!(error.contains("parts"), "{error}");
        assert_eq!(good.on(&device, &mut workspace).unwrap(), expected);
    }
}

/// A device that holds less than it says is asked again by every call, whose plans for the other way
/// are remembered.
#[test]
fn a_refused_launch_streams_every_time() {
    let facts = clustered_facts(4);
    let options = Options { facts, granted_multiprocessors: Some(1), ..Options::default() };
    let device = Device::new(Emulator::new(options));
    let mut workspace = large_workspace(&device);
    let call = Call { gap: 0, choice: Choice::Tier(Tier::Cluster), ..calls()[0] };
    let expected = call.on(&device, &mut large_workspace(&device)).unwrap();
    assert_eq!(expected.0[0].0, "statistics_planes_f32x4");
    for _ in 0..2 {
        assert_eq!(call.on(&device, &mut workspace).unwrap(), expected);
    }
}
