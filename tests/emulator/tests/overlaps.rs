//! Every two buffers of a call at the same address: refused by their names if either is written. By a
//! device that hands out addresses and launches nothing.

use conformance::devices::default_facts;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use warpnorm::cuda::{Device, DeviceFacts, Launch, Launched, Launcher, MemoryRef};
use warpnorm::*;

#[derive(Clone, Default)]
struct Addresses {
    launches: Arc<AtomicU32>,
}

struct Memory<T> {
    address: u64,
    len: usize,
    elements: PhantomData<T>,
}

impl<T> Memory<T> {
    fn at(address: u64, len: usize) -> Self {
        Memory { address, len, elements: PhantomData }
    }

    fn whole(&self) -> Result<MemoryRef<()>> {
        Ok(MemoryRef { address: self.address, bytes: self.len * size_of::<T>(), hold: () })
    }
}

// SAFETY: no launch uses its addresses.
unsafe impl Launcher for Addresses {
    type Buffer<T: Scalar> = Memory<T>;
    type Slice<'a, T: Scalar> = &'a Memory<T>;
    type SliceMut<'a, T: Scalar> = &'a mut Memory<T>;
    type Hold<'a> = ();

    fn facts(&self) -> DeviceFacts {
        default_facts()
    }

    fn zeros<T: Scalar>(&self, len: usize) -> Result<Memory<T>> {
        Ok(Memory::at(0, len))
    }

    fn upload<T: Scalar>(&self, values: &[T]) -> Result<Memory<T>> {
        self.zeros(values.len())
    }

    fn download<T: Scalar>(&self, buffer: &Memory<T>) -> Result<Vec<T>> {
        Ok(vec![T::default(); buffer.len])
    }

    fn duplicate<T: Scalar>(&self, buffer: &Memory<T>) -> Result<Memory<T>> {
        self.zeros(buffer.len)
    }

    fn clear<T: Scalar>(&self, _: &mut Memory<T>) -> Result<()> {
        Ok(())
    }

    fn len<T: Scalar>(buffer: &Memory<T>) -> usize {
        buffer.len
    }

    fn slice<T: Scalar>(buffer: &Memory<T>) -> &Memory<T> {
        buffer
    }

    fn slice_mut<T: Scalar>(buffer: &mut Memory<T>) -> &mut Memory<T> {
        buffer
    }

    fn memory<'s, T: Scalar>(&'s self, slice: &'s &Memory<T>) -> Result<MemoryRef<()>> {
        slice.whole()
    }

    fn memory_mut<'s, T: Scalar>(&'s self, slice: &'s mut &mut Memory<T>) -> Result<MemoryRef<()>> {
        slice.whole()
    }

    fn launch(&self, _: &Launch<'_>) -> Result<Launched> {
        self.launches.fetch_add(1, Ordering::Relaxed);
        Ok(Launched::Enqueued)
    }
}

const CHANNELS: usize = 3;
const READ: [&str; 8] =
    ["x", "dy", "weight", "bias", "saved.mean_hi", "saved.mean_lo", "saved.invstd", "saved.mask"];
const WRITTEN: [&str; 5] = ["dx", "dresidual", "dweight", "dbias", "workspace"];

/// A backward whose buffers, those that are read first, lie at these addresses.
fn backward(device: &Device<Addresses>, addresses: &[u64]) -> Result<()> {
    let epilogue = Epilogue { activation: Activation::Relu, residual: true };
    let problem = Problem::new(&[4, CHANNELS, 5], Layout::ChannelsFirst, DType::F32, epilogue)?;
    let mut addresses = addresses.iter().copied();
    let mut next = || addresses.next().expect("one for each buffer");
    let [x, dy] = [(); 2].map(|()| Memory::<f32>::at(next(), problem.elements()));
    let [weight, bias, mean_hi, mean_lo, invstd] =
        [(); 5].map(|()| Memory::<f32>::at(next(), CHANNELS));
    let mask = Memory::<u8>::at(next(), problem.mask_len());
    let [mut dx, mut dresidual] = [(); 2].map(|()| Memory::<f32>::at(next(), problem.elements()));
    let [mut dweight, mut dbias] = [(); 2].map(|()| Memory::<f32>::at(next(), CHANNELS));
    let mut workspace = device.workspace(&problem)?;
    workspace.buffer_mut().address = next();
    let args = BackwardTrain::<'_, Device<Addresses>, f32> {
        x: &x,
        residual: None,
        dy: &dy,
        affine: Affine { weight: Some(&weight), bias: Some(&bias) },
        saved: SavedRef {
            mean_hi: &mean_hi,
            mean_lo: &mean_lo,
            invstd: &invstd,
            mask: Some(&mask),
        },
        gradients: GradientsMut {
            dx: &mut dx,
            dresidual: Some(&mut dresidual),
            dweight: Some(&mut dweight),
            dbias: Some(&mut dbias),
        },
        workspace: &mut workspace,
    };
    device.backward_train(&problem, args)
}

#[test]
fn memory_given_twice_is_refused_unless_it_is_only_read() {
    let launcher = Addresses::default();
    let device = Device::new(launcher.clone());
    let all: Vec<&str> = READ.into_iter().chain(WRITTEN).collect();
    let apart: Vec<u64> = (1..=all.len() as u64).map(|number| number << 20).collect();
    backward(&device, &apart).unwrap();
    for second in 0..all.len() {
        for first in 0..second {
            let mut addresses = apart.clone();
            addresses[second] = addresses[first];
            let before = launcher.launches.load(Ordering::Relaxed);
            let outcome = backward(&device, &addresses);
            let launched = launcher.launches.load(Ordering::Relaxed) > before;
            if second < READ.len() {
                assert!(outcome.is_ok() && launched, "{first} {second}: {outcome:?}");
                continue;
            }
            // The later one is written: what is read comes first.
            let found = format!("memory that `{}` has too", all[first]);
            assert_eq!(outcome, Err(Error::argument(all[second], "memory of its own", found)));
            assert!(!launched, "{} {}", all[first], all[second]);
        }
    }
}
