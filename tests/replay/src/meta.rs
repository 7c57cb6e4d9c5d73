//! `meta.json`: what a case asks for, with the format's defaults for what it leaves out.

use serde::Deserialize;
use warpnorm::{Activation, DType};

/// What a case exercises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One forward, and a backward where there is a `dy`.
    Single,
    /// The same over several ranks that share their statistics.
    Sync,
    /// Training forwards one after another, then an evaluation.
    Sequence,
    /// A call that must be refused.
    Error,
    /// ONNX's names and conventions.
    Onnx,
}

/// Whether the layer trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Batch statistics.
    #[serde(alias = "training")]
    Train,
    /// Running statistics, if there are any.
    #[serde(alias = "evaluation", alias = "inference")]
    Eval,
}

/// The fields that decide what runs and how it is scored; others are ignored.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Meta {
    /// Absent in ONNX's cases.
    pub kind: Option<Kind>,
    /// Channels second.
    pub shape: Option<Vec<usize>>,
    /// Train if absent.
    pub mode: Option<Mode>,
    /// `f32` if absent, unless only 16-bit files are there.
    #[serde(alias = "dtype")]
    pub io_dtype: Option<String>,
    /// 1e-5 if absent.
    pub eps: Option<f64>,
    /// PyTorch's convention: `null` is the cumulative average; 0.1 if absent.
    pub momentum: Option<f64>,
    /// 0 if absent.
    pub num_batches_tracked_in: Option<i64>,
    /// Not checked if absent.
    pub num_batches_tracked_out: Option<u64>,
    /// True if absent.
    pub affine: Option<bool>,
    /// True if absent.
    pub track_running_stats: Option<bool>,
    /// Follows from `mode` and `track_running_stats` if absent.
    pub uses_batch_stats: Option<bool>,
    /// None if absent.
    pub activation: Option<String>,
    /// Of leaky ReLU; 0.01 if absent.
    #[serde(alias = "slope", alias = "leaky_relu_slope", alias = "alpha")]
    pub negative_slope: Option<f64>,
    /// Whether a residual is added before the activation; false if absent.
    pub residual: Option<bool>,
    /// Channels in which only what should be non-finite is checked.
    pub nonfinite_channels: Option<Vec<usize>>,
    /// The files to compare with; if absent, all that are there.
    pub outputs: Option<Vec<String>>,
    /// Rows of each rank.
    pub split: Option<Vec<usize>>,
    /// Training forwards of a sequence; if absent, as many as there are files.
    pub steps: Option<usize>,
    /// Of an ONNX case: weighs the old value.
    pub momentum_onnx: Option<f64>,
    /// Of an ONNX case: 1 if batch statistics are used.
    pub training_mode: Option<i64>,
    /// Of an ONNX case; its presence tells one.
    pub opset: Option<i64>,
}

impl Default for Meta {
    fn default() -> Self {
        Meta {
            kind: None,
            shape: None,
            mode: None,
            io_dtype: None,
            eps: None,
            // Not `None`, which is what an explicit null means.
            momentum: Some(0.1),
            num_batches_tracked_in: None,
            num_batches_tracked_out: None,
            affine: None,
            track_running_stats: None,
            uses_batch_stats: None,
            activation: None,
            negative_slope: None,
            residual: None,
            nonfinite_channels: None,
            outputs: None,
            split: None,
            steps: None,
            momentum_onnx: None,
            training_mode: None,
            opset: None,
        }
    }
}

impl Meta {
    /// Parses the text of a `meta.json`. Python writes NaN and Infinity there, which JSON lacks
    /// and JSON5 has.
    ///
    /// # Errors
    /// No JSON, or a field of the wrong type.
    pub fn parse(text: &str) -> Result<Self, String> {
        json5::from_str(text).map_err(|error| error.to_string())
    }

    /// The activation by any of its usual names.
    ///
    /// # Errors
    /// A name that is not known.
    pub fn activation(&self) -> Result<Activation, String> {
        let name = self.activation.as_deref().unwrap_or("none");
        Ok(match plain(name).as_str() {
            "" | "none" | "identity" | "linear" => Activation::Identity,
            "relu" => Activation::Relu,
            "leakyrelu" => {
                Activation::LeakyRelu { negative_slope: self.negative_slope.unwrap_or(0.01) }
            }
            "relu6" => Activation::Relu6,
            "sigmoid" => Activation::Sigmoid,
            "tanh" => Activation::Tanh,
            "silu" | "swish" => Activation::Silu,
            "gelu" | "geluexact" | "geluerf" => Activation::Gelu,
            "gelutanh" => Activation::GeluTanh,
            _ => return Err(format!("unknown activation `{name}`")),
        })
    }

    /// The element type, if it is named.
    ///
    /// # Errors
    /// A name that is not known.
    pub fn dtype(&self) -> Result<Option<DType>, String> {
        let Some(name) = self.io_dtype.as_deref() else {
            return Ok(None);
        };
        Ok(Some(match plain(name).as_str() {
            "f32" | "fp32" | "float32" | "float" => DType::F32,
            "f64" | "fp64" | "float64" | "double" => DType::F64,
            "f16" | "fp16" | "float16" | "half" => DType::F16,
            "bf16" | "bfloat16" => DType::Bf16,
            _ => return Err(format!("unknown io_dtype `{name}`")),
        }))
    }

    /// Whether the layer normalizes with the batch's own statistics.
    pub fn uses_batch_stats(&self) -> bool {
        let training = self.mode != Some(Mode::Eval);
        self.uses_batch_stats.unwrap_or(training || !self.tracks())
    }

    /// Whether running statistics are kept.
    pub fn tracks(&self) -> bool {
        self.track_running_stats.unwrap_or(true)
    }
}

/// Lower case, without separators or a module path, so that `torch.float32` is `float32`.
fn plain(name: &str) -> String {
    let last = name.rsplit('.').next().unwrap_or(name);
    let letters = last.chars().filter(|letter| letter.is_ascii_alphanumeric());
    letters.collect::<String>().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_exactly() {
        let text = r#"{"eps": 1e-05, "momentum": 0.30000000000000004, "unread": [NaN, -Infinity]}"#;
        let meta = Meta::parse(text).unwrap();
        assert_eq!(meta.eps, Some(1e-5));
        assert_eq!(meta.momentum, Some(0.30000000000000004));
        let meta = Meta::parse(r#"{"eps": 0, "momentum": 1, "momentum_onnx": 0.8999999761581421}"#);
        let meta = meta.unwrap();
        assert_eq!((meta.eps, meta.momentum), (Some(0.0), Some(1.0)));
        assert_eq!(meta.momentum_onnx, Some(f64::from(0.9f32)));
    }

    #[test]
    fn null_is_the_cumulative_average_and_absence_is_not() {
        assert_eq!(Meta::parse("{}").unwrap().momentum, Some(0.1));
        assert_eq!(Meta::parse(r#"{"momentum": null}"#).unwrap().momentum, None);
        let nulls = r#"{"mode": null, "activation": null, "outputs": null, "kind": null}"#;
        assert!(Meta::parse(nulls).is_ok());
    }

    #[test]
    fn batch_statistics_are_used_in_training_and_for_want_of_others() {
        let uses = |text| Meta::parse(text).unwrap().uses_batch_stats();
        assert!(uses("{}"));
        assert!(!uses(r#"{"mode": "eval"}"#));
        assert!(uses(r#"{"mode": "eval", "track_running_stats": false}"#));
        assert!(uses(r#"{"mode": "eval", "uses_batch_stats": true}"#));
    }

    #[test]
    fn names_are_known_in_every_spelling() {
        let dtype = |name: &str| Meta::parse(&format!("{{'io_dtype': '{name}'}}")).unwrap().dtype();
        assert_eq!(dtype("torch.float16"), Ok(Some(DType::F16)));
        assert_eq!(dtype("BF16"), Ok(Some(DType::Bf16)));
        assert!(dtype("int8").is_err());
        let activation = |name: &str| {
            let text = format!("{{'activation': '{name}', 'negative_slope': 0.2}}");
            Meta::parse(&text).unwrap().activation()
        };
        assert_eq!(activation("LeakyReLU"), Ok(Activation::LeakyRelu { negative_slope: 0.2 }));
        assert_eq!(activation("gelu_tanh"), Ok(Activation::GeluTanh));
        assert!(activation("softmax").is_err());
    }
}
