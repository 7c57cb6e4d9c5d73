//! Batch normalization's first experiment (Ioffe & Szegedy 2015, section 4.1): the same network
//! trained on handwritten digits with batch normalization and without, from the same initial
//! weights on the same mini-batches.
//!
//! ```text
//! cargo run --release --example train              # the 8x8 digits it carries
//! cargo run --release --example train -- --help
//! ```

mod agreement;
mod canvas;
mod idx;
mod network;
mod options;
mod plots;
mod report;
mod sweep;
mod training;

use canvas::Canvas;
use clap::Parser;
use half::{bf16, f16};
use idx::Dataset;
use indicatif::{ProgressBar, ProgressStyle};
use network::{Architecture, Network, Real};
use options::{Device, Dtype, Options};
use std::error::Error;
use std::process::ExitCode;
use training::{Curve, Samples, Schedule, train};
use warpnorm::{Cpu, Element};

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let data = match &options.data {
        Some(directory) => idx::load(directory)?,
        None => idx::carried_digits()?,
    };
    options.check(&data)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads()).build()?;
    pool.install(|| match options.dtype {
        Dtype::F32 => experiment::<f32>(options, &data),
        Dtype::F64 => experiment::<f64>(options, &data),
        Dtype::F16 => experiment::<f16>(options, &data),
        Dtype::Bf16 => experiment::<bf16>(options, &data),
    })
    .map_err(|error| error as Box<dyn Error>)
}

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Both networks, the tables, the pictures, the sweep.
fn experiment<E: Element<Param: Real>>(options: &Options, data: &Dataset) -> Outcome<()> {
    let canvas = Canvas::new(&options.output)?;
    let samples = Samples::<E::Param>::new(data);
    let architecture = Architecture {
        inputs: samples.train.images.ncols(),
        hidden: options.hidden.clone(),
        classes: data.classes,
        nonlinearity: options.activation,
    };
    let backend = match options.device {
        // On the threads of the pool that this runs in.
        Device::Cpu => Cpu::new(),
    };
    let setting = setting(options, data);
    let caption =
        format!("{setting}, learning rate {}, seed {}", options.learning_rate, options.seed);
    println!("{caption}\n");

    let mut plain = Network::<E>::new(&architecture, None, options.seed)?;
    let plain_curve = course(&mut plain, &samples, options, "without batch norm")?;
    let mut normalized = Network::<E>::new(&architecture, Some(&backend), options.seed)?;
    let normalized_curve = course(&mut normalized, &samples, options, "with batch norm")?;
    println!("{}", report::courses(&plain_curve, &normalized_curve));

    let agreement = agreement::compare(&normalized, &samples)?;
    println!("\nThe trained network on the test images, normalized by statistics that are ...");
    println!("{}", report::agreement(&agreement));
    println!(
        "On all training images as one batch, train mode and eval mode with that batch's\n\
         statistics (the variance unbiased) differ by at most {:.1e} in a probability.",
        agreement.same_statistics
    );

    plots::accuracy(&canvas, &caption, &plain_curve, &normalized_curve)?;
    plots::percentiles(&canvas, &caption, &plain_curve, &normalized_curve)?;
    if !options.no_sweep {
        let outcomes = swept::<E>(&architecture, &backend, &samples, options)?;
        println!(
            "\nTest accuracy after {} steps: median (range) of {} runs",
            report::grouped(options.sweep_steps),
            sweep::REPEATS
        );
        println!("{}", report::sweep(&outcomes));
        let caption = format!("{setting}, seeds from {}", options.seed);
        plots::sweep(&canvas, &caption, &outcomes, options.sweep_steps)?;
    }
    println!("\nPictures (PNG and SVG) are in {}", options.output.display());
    Ok(())
}

fn course<E: Element<Param: Real>>(
    network: &mut Network<E>,
    samples: &Samples<E::Param>,
    options: &Options,
    name: &'static str,
) -> Outcome<Curve> {
    const LOOKS: usize = 200;
    let progress = progress_bar(name, "steps", options.steps);
    let curve = train(network, samples, &schedule(options, options.steps), LOOKS, &progress)?;
    progress.finish();
    Ok(curve)
}

fn swept<E: Element<Param: Real>>(
    architecture: &Architecture,
    backend: &Cpu,
    samples: &Samples<E::Param>,
    options: &Options,
) -> Outcome<Vec<sweep::Outcome>> {
    let progress = progress_bar("learning rates", "runs", 2 * sweep::RATES.len() * sweep::REPEATS);
    let schedule = schedule(options, options.sweep_steps);
    let outcomes = sweep::sweep::<E>(architecture, backend, samples, &schedule, &progress)?;
    progress.finish();
    Ok(outcomes)
}

fn schedule(options: &Options, steps: usize) -> Schedule {
    Schedule {
        steps,
        batch: options.batch,
        learning_rate: options.learning_rate,
        seed: options.seed,
    }
}

fn progress_bar(name: &'static str, unit: &str, len: usize) -> ProgressBar {
    let template = format!("{{prefix:>18}} {{bar:40}} {{human_pos}}/{{human_len}} {unit}  {{msg}}");
    let style = ProgressStyle::with_template(&template).expect("a valid template");
    ProgressBar::new(len as u64).with_style(style).with_prefix(name)
}

/// What all runs have in common.
fn setting(options: &Options, data: &Dataset) -> String {
    let (height, width) = data.train.size();
    let hidden: Vec<String> = options.hidden.iter().map(usize::to_string).collect();
    format!(
        "{} training and {} test images of {height}×{width}, {} {} units, batches of {}, {}",
        report::grouped(data.train.labels.len()),
        report::grouped(data.test.labels.len()),
        hidden.join(" + "),
        options.activation.activation(),
        options.batch,
        options.dtype.dtype(),
    )
}
