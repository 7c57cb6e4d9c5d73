//! Inputs on which formulas part ways, and how far results are off.

use crate::calls::Inputs;
use crate::files::{HardInput, Score};
use crate::library::{Device, Host, Library};
use crate::score::Expected;
use half::f16;
use rand::{RngExt, SeedableRng};
use rand_distr::StandardNormal;
use warpnorm::{DType, Element, Epilogue, Layout, Problem};

const EXTENTS: [usize; 4] = [16, 8, 14, 14];

struct Input {
    name: &'static str,
    dtype: DType,
    mean: f64,
    std: f64,
}

const INPUTS: [Input; 4] = [
    Input { name: "f32, mean 0, std 1", dtype: DType::F32, mean: 0.0, std: 1.0 },
    Input { name: "f16, mean 0, std 1e4", dtype: DType::F16, mean: 0.0, std: 1e4 },
    Input { name: "f32, mean 1e4, std 1e-2", dtype: DType::F32, mean: 1e4, std: 1e-2 },
    Input { name: "f32, mean 0, std 1e20", dtype: DType::F32, mean: 0.0, std: 1e20 },
];

impl Input {
    /// Rounded to the element type, so that every library gets the same.
    fn host(&self) -> Host {
        let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(7);
        let elements = EXTENTS.iter().product();
        let mut normal = |mean: f64, std: f64, limit: f64| -> Vec<f32> {
            let mut value = || mean + std * random.sample::<f64, _>(StandardNormal);
            let rounded = |value: f64| match self.dtype {
                DType::F16 => f16::from_f64(value.clamp(-limit, limit)).to_f32(),
                _ => value as f32,
            };
            (0..elements).map(|_| rounded(value())).collect()
        };
        Host {
            x: normal(self.mean, self.std, 6e4),
            dy: normal(0.0, 1.0, 6e4),
            weight: vec![1.5; EXTENTS[1]],
            bias: vec![0.25; EXTENTS[1]],
            extents: EXTENTS.to_vec(),
            dtype: self.dtype,
        }
    }
}

/// Each library on each input.
pub fn measure(libraries: &[Library], device: Device) -> Vec<HardInput> {
    let mut found = Vec::new();
    for input in INPUTS {
        let host = input.host();
        for library in libraries {
            let (y, dx) = (library.layer)(&host, device).results(&host.dy);
            let (y, dx) = match input.dtype {
                DType::F16 => errors::<f16>(&host, &y, &dx),
                _ => errors::<f32>(&host, &y, &dx),
            };
            found.push(HardInput {
                library: library.name.to_owned(),
                input: input.name.to_owned(),
                y: Score(y),
                dx: Score(dx),
            });
        }
    }
    found
}

fn errors<E: Element<Param = f32>>(host: &Host, y: &[f32], dx: &[f32]) -> (f64, f64) {
    let problem = Problem::new(&host.extents, Layout::ChannelsFirst, E::DTYPE, Epilogue::NONE);
    let problem = problem.expect("a shape that exists");
    let narrow = |values: &[f32]| values.iter().map(|v| E::from_f64((*v).into())).collect();
    let inputs = Inputs::<E> {
        x: narrow(&host.x),
        dy: narrow(&host.dy),
        residual: Vec::new(),
        weight: host.weight.clone(),
        bias: host.bias.clone(),
    };
    let expected = Expected::of(&problem, &inputs);
    let (y, dx): (Vec<E>, Vec<E>) = (narrow(y), narrow(dx));
    (expected.y_error(&problem, &y), expected.dx_error(&problem, &dx))
}
