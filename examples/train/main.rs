//! Batch normalization's first experiment (Ioffe & Szegedy 2015, section 4.1): the same network
//! trained on handwritten digits with batch normalization and without, from the same initial
//! weights on the same mini-batches.
//!
//! ```text
//! cargo run --release --example train              # the 8x8 digits it carries
//! cargo run --release --example train -- --help
//! ```
//!
//! `network.rs` is the network, once for all devices; `ops.rs` says what it needs of one, `cpu.rs`
//! has that for the CPU, `accelerated.rs`, `cuda.rs` and `kernels.cu` for a GPU.

#[cfg(feature = "cuda")]
mod accelerated;
mod agreement;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod idx;
mod network;
mod norm;
mod ops;
mod options;
#[path = "../pictures/mod.rs"]
#[allow(dead_code, unused_imports, reason = "some is for the report")]
mod pictures;
mod place;
mod plots;
mod report;
mod sweep;
mod training;
mod twin;

use clap::Parser;
use half::{bf16, f16};
use idx::Dataset;
use indicatif::{ProgressBar, ProgressStyle};
use network::{Architecture, Network};
use ops::{Ops, Real};
use options::{Dtype, Options};
use pictures::Canvas;
use place::Place;
use std::error::Error;
use std::process::ExitCode;
use training::{Curve, Samples, Schedule, train};
use twin::Deviation;
use warpnorm::Element;

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
    match place::choose(options.device, options.dtype)? {
        Place::Cpu(cpu, name) => {
            println!("Running on {name}");
            let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads()).build()?;
            pool.install(|| match options.dtype {
                Dtype::F32 => Setup::<f32, _>::new(options, &data, cpu).run(),
                Dtype::F64 => Setup::<f64, _>::new(options, &data, cpu).run(),
                Dtype::F16 => Setup::<f16, _>::new(options, &data, cpu).run(),
                Dtype::Bf16 => Setup::<bf16, _>::new(options, &data, cpu).run(),
            })
        }
        #[cfg(feature = "cuda")]
        Place::Gpu(gpu, name) => {
            println!("Running on {name}");
            // Its work goes through one stream, which a second thread would not make faster.
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
            pool.install(|| match options.dtype {
                Dtype::F32 => Setup::<f32, _>::new(options, &data, gpu).run(),
                Dtype::F16 => Setup::<f16, _>::new(options, &data, gpu).run(),
                Dtype::Bf16 => Setup::<bf16, _>::new(options, &data, gpu).run(),
                Dtype::F64 => unreachable!("refused, or placed on the CPU"),
            })
        }
    }
    .map_err(|error| error as Box<dyn Error>)
}

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What all runs have in common.
struct Setup<'a, E: Element<Param: Real>, O: Ops<E::Param>> {
    options: &'a Options,
    data: &'a Dataset,
    samples: Samples<E::Param>,
    architecture: Architecture,
    ops: O,
}

impl<'a, E: Element<Param: Real>, O: Ops<E::Param>> Setup<'a, E, O> {
    fn new(options: &'a Options, data: &'a Dataset, ops: O) -> Self {
        let samples = Samples::<E::Param>::new(data);
        let architecture = Architecture {
            inputs: samples.train.images.ncols(),
            hidden: options.hidden.clone(),
            classes: data.classes,
            nonlinearity: options.activation,
        };
        Setup { options, data, samples, architecture, ops }
    }

    fn run(&self) -> Outcome<()> {
        let setting = setting(self.options, self.data);
        let Options { learning_rate, seed, .. } = *self.options;
        let caption = format!("{setting}, learning rate {learning_rate}, seed {seed}");
        println!("{caption}\n");
        match self.options.check_against_cpu {
            true => self.check(),
            false => self.experiment(&setting, &caption),
        }
    }

    /// Both networks, the tables, the pictures, the sweep.
    fn experiment(&self, setting: &str, caption: &str) -> Outcome<()> {
        let canvas = Canvas::new(&self.options.output)?;
        let (_, plain_curve) = self.course(false, self.options.steps)?;
        let (normalized, normalized_curve) = self.course(true, self.options.steps)?;
        println!("{}", report::courses(&plain_curve, &normalized_curve));

        let agreement = agreement::compare(&normalized, &self.samples)?;
        println!("\nThe trained network on the test images, normalized by statistics that are ...");
        println!("{}", report::agreement(&agreement));
        println!(
            "On all training images as one batch, train mode and eval mode with that batch's\n\
             statistics (the variance unbiased) differ by at most {:.1e} in a probability.",
            agreement.same_statistics
        );
        // Only the CPU is.
        if !O::SYNCHRONOUS {
            self.compare_with_cpu([&plain_curve, &normalized_curve])?;
        }

        plots::accuracy(&canvas, caption, &plain_curve, &normalized_curve)?;
        plots::percentiles(&canvas, caption, &plain_curve, &normalized_curve)?;
        if !self.options.no_sweep {
            let outcomes = self.swept()?;
            println!(
                "\nTest accuracy after {} steps: median (range) of {} runs",
                report::grouped(self.options.sweep_steps),
                sweep::REPEATS
            );
            println!("{}", report::sweep(&outcomes));
            let caption = format!("{setting}, seeds from {}", self.options.seed);
            plots::sweep(&canvas, &caption, &outcomes, self.options.sweep_steps)?;
        }
        println!("\nPictures (PNG and SVG) are in {}", self.options.output.display());
        Ok(())
    }

    /// Both networks' courses as far as they can be compared, and an error if they disagree.
    fn check(&self) -> Outcome<()> {
        let steps = twin::comparable(self.options.steps, self.every());
        let (_, plain_curve) = self.course(false, steps)?;
        let (_, normalized_curve) = self.course(true, steps)?;
        let deviations = self.compare_with_cpu([&plain_curve, &normalized_curve])?;
        let bound = Deviation::bound(E::DTYPE);
        let allowed = format!(
            "{:.2} points and {:.1e}, what rounding explains in {}",
            100.0 * bound.accuracy,
            bound.loss,
            E::DTYPE
        );
        if deviations.iter().all(|deviation| deviation.is_within(&bound)) {
            println!("They agree: that is within {allowed}.");
            return Ok(());
        }
        Err(format!("the curves disagree: that is beyond {allowed}").into())
    }

    /// Trains on the CPU for as long as can be compared, and says what the differences are.
    fn compare_with_cpu(&self, [plain, normalized]: [&Curve; 2]) -> Outcome<[Deviation; 2]> {
        let (schedule, every) = (self.schedule(self.options.steps), self.every());
        let compare = |curve, norm| {
            twin::compare::<E>(curve, &self.architecture, norm, &self.samples, &schedule, every)
        };
        let deviations = [compare(plain, false)?, compare(normalized, true)?];
        println!("\n{}", report::deviations(&deviations));
        Ok(deviations)
    }

    /// A new network, trained, and its course.
    fn course(&self, normalized: bool, steps: usize) -> Outcome<(Network<E, O>, Curve)> {
        let name = if normalized { "with batch norm" } else { "without batch norm" };
        let progress = progress_bar(name, "steps", steps);
        let mut network =
            Network::<E, O>::new(&self.architecture, &self.ops, normalized, self.options.seed)?;
        let schedule = self.schedule(steps);
        let curve = train(&mut network, &self.samples, &schedule, self.every(), &progress)?;
        progress.finish();
        Ok((network, curve))
    }

    fn swept(&self) -> Outcome<Vec<sweep::Outcome>> {
        let runs = 2 * sweep::RATES.len() * sweep::REPEATS;
        let progress = progress_bar("learning rates", "runs", runs);
        let schedule = self.schedule(self.options.sweep_steps);
        let outcomes = sweep::sweep::<E, O>(
            &self.architecture,
            &self.ops,
            &self.samples,
            &schedule,
            &progress,
        )?;
        progress.finish();
        Ok(outcomes)
    }

    /// Steps from one look at a network to the next.
    fn every(&self) -> usize {
        const LOOKS: usize = 200;
        self.options.steps.div_ceil(LOOKS)
    }

    fn schedule(&self, steps: usize) -> Schedule {
        let Options { batch, learning_rate, seed, .. } = *self.options;
        Schedule { steps, batch, learning_rate, seed }
    }
}

fn progress_bar(name: &'static str, unit: &str, len: usize) -> ProgressBar {
    let template = format!("{{prefix:>18}} {{bar:40}} {{human_pos}}/{{human_len}} {unit}  {{msg}}");
    let style = ProgressStyle::with_template(&template).expect("a valid template");
    ProgressBar::new(len as u64).with_style(style).with_prefix(name)
}

/// In words.
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
