//! Times a training step of this layer beside candle's own: forward, and backward to x, weight and bias,
//! with ReLU after it, on the CPU's threads.
//!
//! `cargo run --release --example compare`

use candle_core::{DType, Device, ModuleT, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use std::time::{Duration, Instant};
use warpnorm_candle::{Activation, BatchNormConfig, batch_norm};

const SHAPES: [[usize; 4]; 4] =
    [[32, 64, 56, 56], [32, 512, 28, 28], [32, 2048, 7, 7], [4096, 1024, 1, 1]];

fn main() -> Result<()> {
    println!("| shape | element type | candle, ms | this, ms | times as fast |");
    println!("| --- | --- | ---: | ---: | ---: |");
    for shape in SHAPES {
        for dtype in [DType::F32, DType::BF16] {
            let [theirs, ours] = step_times(shape, dtype)?.map(|it| it.as_secs_f64() * 1e3);
            let [n, c, h, w] = shape;
            let ratio = theirs / ours;
            println!("| {n}x{c}x{h}x{w} | {dtype:?} | {theirs:.1} | {ours:.1} | {ratio:.1} |");
        }
    }
    Ok(())
}

/// The medians of candle's steps and of ours, made in turns.
fn step_times(shape: [usize; 4], dtype: DType) -> Result<[Duration; 2]> {
    const STEPS: usize = 9;
    let device = Device::Cpu;
    let x = Var::from_tensor(&Tensor::randn(1f32, 2f32, &shape, &device)?.to_dtype(dtype)?)?;
    let dy = Tensor::randn(0f32, 1f32, &shape, &device)?.to_dtype(dtype)?;
    let vb = VarBuilder::from_varmap(&VarMap::new(), DType::F32, &device);
    // candle multiplies by weights of x's type, and keeps statistics in f32.
    let own = candle_layer(shape[1], dtype, vb.pp("candle"))?;
    let config = BatchNormConfig { activation: Activation::Relu, ..Default::default() };
    let ours = batch_norm(shape[1], config, vb.pp("warpnorm"))?;
    let (mut theirs_taken, mut ours_taken) = (Vec::new(), Vec::new());
    for _ in 0..STEPS {
        theirs_taken.push(time(&dy, || own.forward_t(&x, true)?.relu())?);
        ours_taken.push(time(&dy, || ours.forward_t(&x, true))?);
    }
    Ok([theirs_taken, ours_taken].map(|mut taken| {
        taken.sort();
        taken[STEPS / 2]
    }))
}

fn candle_layer(channels: usize, dtype: DType, vb: VarBuilder) -> Result<candle_nn::BatchNorm> {
    let variable = |name, value, dtype| {
        let it = vb.get_with_hints(channels, name, candle_nn::Init::Const(value))?;
        it.to_dtype(dtype)
    };
    candle_nn::BatchNorm::new(
        channels,
        variable("running_mean", 0.0, DType::F32)?,
        variable("running_var", 1.0, DType::F32)?,
        variable("weight", 1.0, dtype)?,
        variable("bias", 0.0, dtype)?,
        1e-5,
    )
}

fn time(dy: &Tensor, forward: impl FnOnce() -> Result<Tensor>) -> Result<Duration> {
    let start = Instant::now();
    let y = forward()?;
    // What every step has beside the layer is in both times.
    (y * dy)?.sum_all()?.backward()?;
    Ok(start.elapsed())
}
