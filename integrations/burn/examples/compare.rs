//! Times a training step of this layer beside Burn's own: forward, and backward to x, gamma and beta,
//! with ReLU after it, on Flex and the CPU's threads.
//!
//! `cargo run --release --example compare`

use burn::module::{Param, RunningState};
use burn::tensor::{DType, Device, Distribution, Tensor, activation};
use std::time::{Duration, Instant};
use warpnorm_burn::{Activation, BatchNormConfig};

const SHAPES: [[usize; 4]; 4] =
    [[32, 64, 56, 56], [32, 512, 28, 28], [32, 2048, 7, 7], [4096, 1024, 1, 1]];

fn main() {
    println!("| shape | element type | Burn, ms | this, ms | times as fast |");
    println!("| --- | --- | ---: | ---: | ---: |");
    for shape in SHAPES {
        for dtype in [DType::F32, DType::BF16] {
            let [theirs, ours] = step_times(shape, dtype).map(|it| it.as_secs_f64() * 1e3);
            let [n, c, h, w] = shape;
            let ratio = theirs / ours;
            println!("| {n}x{c}x{h}x{w} | {dtype:?} | {theirs:.1} | {ours:.1} | {ratio:.1} |");
        }
    }
}

/// The medians of Burn's steps and of ours, made in turns.
fn step_times(shape: [usize; 4], dtype: DType) -> [Duration; 2] {
    const STEPS: usize = 9;
    let device = Device::flex().autodiff();
    let random = |mean, std| {
        let distribution = Distribution::Normal(mean, std);
        Tensor::<4>::random(shape, distribution, (&device, DType::F32)).cast(dtype).detach()
    };
    let (x, dy) = (random(1.0, 2.0).require_grad(), random(0.0, 1.0));
    let own = burn_layer(shape[1], dtype, &device);
    let ours = BatchNormConfig::new(shape[1]).with_activation(Activation::Relu).init(&device);
    let (mut theirs_taken, mut ours_taken) = (Vec::new(), Vec::new());
    for _ in 0..STEPS {
        theirs_taken.push(time(&dy, || activation::relu(own.forward(x.clone()))));
        ours_taken.push(time(&dy, || ours.forward(x.clone())));
    }
    [theirs_taken, ours_taken].map(|mut taken| {
        taken.sort();
        taken[STEPS / 2]
    })
}

/// Burn multiplies by weights of x's type, and adds statistics of it.
fn burn_layer(channels: usize, dtype: DType, device: &Device) -> burn::nn::BatchNorm {
    let vector = |value: f64| Tensor::<1>::full([channels], value, (device, dtype));
    let mut layer = burn::nn::BatchNormConfig::new(channels).init(device);
    layer.gamma = Param::from_tensor(vector(1.0));
    layer.beta = Param::from_tensor(vector(0.0));
    layer.running_mean = RunningState::new(vector(0.0));
    layer.running_var = RunningState::new(vector(1.0));
    layer
}

fn time(dy: &Tensor<4>, forward: impl FnOnce() -> Tensor<4>) -> Duration {
    let start = Instant::now();
    let y = forward();
    // What every step has beside the layer is in both times.
    drop((y * dy.clone()).sum().backward());
    start.elapsed()
}
