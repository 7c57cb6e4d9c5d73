//! The command line, and the checks that no single option can make.

use crate::idx::Dataset;
use crate::ops::Nonlinearity;
use clap::{Parser, ValueEnum};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread::available_parallelism;
use warpnorm::DType;

/// Trains a fully connected network on handwritten digits twice from the same initial weights,
/// with batch normalization and without: the first experiment of Ioffe & Szegedy 2015.
///
/// Prints tables, and draws what they say as PNG and SVG.
#[derive(Debug, Parser)]
#[command(name = "train", version)]
pub struct Options {
    /// Directory with MNIST's IDX files, gzip-compressed or not [default: the 8x8 digits of data/digits]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// Mini-batches to train each network on
    #[arg(long, default_value_t = 5000, value_parser = number(1, 100_000_000))]
    pub steps: usize,

    /// Images in a mini-batch
    #[arg(long, default_value_t = 60, value_parser = number(2, 1_000_000))]
    pub batch: usize,

    /// Step size of stochastic gradient descent
    #[arg(long, default_value_t = 0.5, value_name = "RATE", value_parser = learning_rate)]
    pub learning_rate: f64,

    /// Units in each hidden layer, input side first
    #[arg(
        long,
        default_value = "100,100,100",
        value_name = "UNITS,...",
        value_delimiter = ',',
        value_parser = number(1, 1_000_000)
    )]
    pub hidden: Vec<usize>,

    /// Nonlinearity of the hidden units
    #[arg(long, value_enum, default_value_t = Nonlinearity::Sigmoid)]
    pub activation: Nonlinearity,

    /// Element type of batch normalization's input and output; parameters are f32, with f64 f64
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    pub dtype: Dtype,

    /// Chooses the initial weights and the order of the images
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// Threads to use on the CPU; results do not depend on it [default: all cores]
    #[arg(long, value_name = "N", value_parser = number(1, 1024))]
    pub threads: Option<usize>,

    /// Where the networks run
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    pub device: Device,

    /// Trains for 200 steps there and on the CPU, and fails if the courses disagree
    #[arg(
        long,
        conflicts_with_all = ["data", "steps", "batch", "learning_rate", "hidden", "activation"]
    )]
    pub check_against_cpu: bool,

    /// Where the pictures go
    #[arg(long, value_name = "DIR", default_value = "target/warpnorm")]
    pub output: PathBuf,

    /// Mini-batches for each network of the learning-rate sweep
    #[arg(long, default_value_t = 1000, value_name = "STEPS", value_parser = number(1, 100_000_000))]
    pub sweep_steps: usize,

    /// Leaves out the learning-rate sweep
    #[arg(long, conflicts_with = "sweep_steps")]
    pub no_sweep: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    F32,
    F64,
    F16,
    Bf16,
}

impl Dtype {
    pub fn dtype(self) -> DType {
        match self {
            Dtype::F32 => DType::F32,
            Dtype::F64 => DType::F64,
            Dtype::F16 => DType::F16,
            Dtype::Bf16 => DType::Bf16,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// A GPU if there is one, else the CPU
    Auto,
    /// The CPU
    Cpu,
    /// An NVIDIA GPU, for f32, f16 and bf16
    Cuda,
}

/// Options that do not go together, or do not go with the data.
#[derive(Debug, thiserror::Error)]
#[error("{option}: expected {expected}, found {found}")]
pub struct OptionError {
    option: &'static str,
    expected: String,
    found: String,
}

impl Options {
    pub fn threads(&self) -> usize {
        let all = || available_parallelism().map_or(1, NonZeroUsize::get);
        self.threads.unwrap_or_else(all)
    }

    /// Refuses what would fail later, or take the machine's memory.
    pub fn check(&self, data: &Dataset) -> Result<(), OptionError> {
        const MOST_PARAMETERS: usize = 1 << 28;
        let error = |option, expected: String, found: usize| OptionError {
            option,
            expected,
            found: found.to_string(),
        };
        if self.device == Device::Cuda && self.dtype == Dtype::F64 {
            return Err(OptionError {
                option: "--device",
                expected: "cpu or auto, as --dtype is f64".to_owned(),
                found: "cuda".to_owned(),
            });
        }
        let images = data.train.labels.len();
        if self.batch > images {
            let expected = format!("at most {images}, the number of training images");
            return Err(error("--batch", expected, self.batch));
        }
        if data.classes < 2 {
            let expected = "labels of at least 2 classes".to_owned();
            return Err(error("--data", expected, data.classes));
        }
        if data.test.labels.len() < 2 {
            let expected = "at least 2 test images".to_owned();
            return Err(error("--data", expected, data.test.labels.len()));
        }
        let parameters = self.parameters(data);
        if parameters > MOST_PARAMETERS {
            let expected = format!("a network of at most {MOST_PARAMETERS} weights");
            return Err(error("--hidden", expected, parameters));
        }
        Ok(())
    }

    fn parameters(&self, data: &Dataset) -> usize {
        let (height, width) = data.train.size();
        let mut inputs = height * width;
        let mut parameters = 0usize;
        for outputs in self.hidden.iter().copied().chain([data.classes]) {
            parameters = parameters.saturating_add(inputs.saturating_mul(outputs));
            inputs = outputs;
        }
        parameters
    }
}

fn number(least: usize, most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("expected a whole number from {least} to {most}")),
    }
}

fn learning_rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (1e-6..=1e6).contains(&rate) => Ok(rate),
        _ => Err("expected a number from 0.000001 to 1000000".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::idx::carried_digits;
    use clap::{CommandFactory, error::ErrorKind};

    fn parse(arguments: &[&str]) -> Result<Options, clap::Error> {
        Options::try_parse_from([&["train"], arguments].concat())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
        let options = parse(&[]).unwrap();
        assert_eq!((options.batch, &options.hidden[..]), (60, &[100, 100, 100][..]));
        options.check(&carried_digits().unwrap()).unwrap();
    }

    #[test]
    fn every_invalid_value_is_refused() {
        for arguments in [
            ["--steps", "0"],
            ["--steps", "-3"],
            ["--batch", "1"],
            ["--batch", "sixty"],
            ["--learning-rate", "0"],
            ["--learning-rate", "NaN"],
            ["--learning-rate", "inf"],
            ["--hidden", "100,0"],
            ["--hidden", ""],
            ["--hidden", "100,,100"],
            ["--activation", "softsign"],
            ["--dtype", "f8"],
            ["--seed", "-1"],
            ["--threads", "0"],
            ["--device", "tpu"],
            ["--sweep-steps", "0"],
        ] {
            let error = parse(&arguments).err().unwrap_or_else(|| panic!("{arguments:?}"));
            let kind = error.kind();
            assert!(
                matches!(
                    kind,
                    ErrorKind::ValueValidation
                        | ErrorKind::InvalidValue
                        | ErrorKind::UnknownArgument
                ),
                "{arguments:?}: {kind:?}"
            );
            assert!(error.to_string().contains(arguments[0]) || kind == ErrorKind::UnknownArgument);
        }
    }

    #[test]
    fn options_must_fit_the_data() {
        let digits = carried_digits().unwrap();
        let message = |arguments: &[&str]| {
            parse(arguments).unwrap().check(&digits).err().unwrap().to_string()
        };
        assert_eq!(
            message(&["--batch", "1348"]),
            "--batch: expected at most 1347, the number of training images, found 1348"
        );
        assert_eq!(
            message(&["--device", "cuda", "--dtype", "f64"]),
            "--device: expected cpu or auto, as --dtype is f64, found cuda"
        );
        assert!(
            message(&["--hidden", "100000,100000"]).starts_with("--hidden: expected a network")
        );
    }
}
