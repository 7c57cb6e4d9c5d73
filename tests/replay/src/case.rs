//! A case folder: `meta.json` and arrays by name.

use crate::meta::{Kind, Meta};
use crate::npy;
use half::{bf16, f16};
use ndarray::ArrayD;
use std::fs;
use std::path::{Path, PathBuf};
use warpnorm::DType;

/// Why a folder could not be run or scored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

impl Malformed {
    /// A reason in words.
    pub fn new(reason: impl ToString) -> Self {
        Malformed(reason.to_string())
    }
}

/// A case folder whose `meta.json` has been read; arrays are read when they are asked for.
#[derive(Debug, Clone)]
pub struct Case {
    folder: PathBuf,
    /// `meta.json`.
    pub meta: Meta,
    /// `meta.kind`, or what the folder looks like.
    pub kind: Kind,
    /// The element type of `x`, `y` and their like.
    pub dtype: DType,
}

impl Case {
    /// Reads `meta.json`.
    ///
    /// # Errors
    /// It is missing, cannot be parsed, or names a type that is not known.
    pub fn open(folder: &Path) -> Result<Self, Malformed> {
        let text = fs::read_to_string(folder.join("meta.json"))
            .map_err(|error| Malformed(format!("meta.json: {error}")))?;
        let meta = Meta::parse(&text).map_err(|error| Malformed(format!("meta.json: {error}")))?;
        let named = meta.dtype().map_err(|error| Malformed(format!("meta.json: {error}")))?;
        let folder = folder.to_owned();
        let exists = |name: &str| folder.join(format!("{name}.npy")).is_file();
        let onnx = meta.opset.is_some() || meta.momentum_onnx.is_some();
        let onnx = onnx || exists("scale") && exists("mean") && exists("var");
        let kind = meta.kind.unwrap_or(if onnx { Kind::Onnx } else { Kind::Single });
        let dtype = named.unwrap_or(match () {
            _ if exists("x") || exists("x_step0") => DType::F32,
            _ if exists("x_f16_bits") || exists("x_step0_f16_bits") => DType::F16,
            _ if exists("x_bf16_bits") || exists("x_step0_bf16_bits") => DType::Bf16,
            _ => DType::F32,
        });
        Ok(Case { folder, meta, kind, dtype })
    }

    /// Whether there is a file of this name.
    pub fn has(&self, name: &str) -> bool {
        self.folder.join(format!("{name}.npy")).is_file()
    }

    /// Whether there is an input of this name, as numbers or as 16-bit patterns.
    pub fn has_input(&self, name: &str) -> bool {
        self.bits_suffix().is_some_and(|suffix| self.has(&format!("{name}{suffix}")))
            || self.has(name)
    }

    /// An array, if its file is there.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn array(&self, name: &str) -> Result<Option<ArrayD<f64>>, Malformed> {
        if !self.has(name) {
            return Ok(None);
        }
        npy::read(&self.folder.join(format!("{name}.npy")))
            .map(Some)
            .map_err(|error| Malformed(format!("{name}.npy: {error}")))
    }

    /// An array that must be there.
    ///
    /// # Errors
    /// The file is missing or cannot be read.
    pub fn require(&self, name: &str) -> Result<ArrayD<f64>, Malformed> {
        let missing = || Malformed(format!("{name}.npy is missing"));
        self.array(name)?.ok_or_else(missing)
    }

    /// An input tensor in the case's element type, from numbers or from 16-bit patterns.
    ///
    /// # Errors
    /// The file cannot be read, or holds patterns of more than 16 bits.
    pub fn input(&self, name: &str) -> Result<Option<ArrayD<f64>>, Malformed> {
        let Some(suffix) = self.bits_suffix() else {
            return self.array(name);
        };
        let file = format!("{name}{suffix}");
        let Some(patterns) = self.array(&file)? else {
            return self.array(name);
        };
        if let Some(wrong) = patterns.iter().find(|&&pattern| !is_pattern(pattern)) {
            return Err(Malformed(format!("{file}.npy: {wrong} is no 16-bit pattern")));
        }
        // By way of i32, so that int16 files mean the same as uint16 ones.
        let bits = patterns.mapv(|pattern| pattern as i32 as u16);
        Ok(Some(match self.dtype {
            DType::F16 => bits.mapv(|bits| f16::from_bits(bits).to_f64()),
            _ => bits.mapv(|bits| bf16::from_bits(bits).to_f64()),
        }))
    }

    /// An input tensor that must be there.
    ///
    /// # Errors
    /// The file is missing or cannot be read.
    pub fn require_input(&self, name: &str) -> Result<ArrayD<f64>, Malformed> {
        let missing = || match self.bits_suffix() {
            Some(suffix) => Malformed(format!("{name}{suffix}.npy is missing")),
            None => Malformed(format!("{name}.npy is missing")),
        };
        self.input(name)?.ok_or_else(missing)
    }

    /// A `[C]` array, if its file is there.
    ///
    /// # Errors
    /// The file cannot be read or has another shape.
    pub fn per_channel(&self, name: &str, channels: usize) -> Result<Option<Vec<f64>>, Malformed> {
        let Some(array) = self.array(name)? else {
            return Ok(None);
        };
        if array.shape() != [channels] {
            let found = array.shape();
            return Err(Malformed(format!(
                "{name}.npy: expected shape [{channels}], found {found:?}"
            )));
        }
        Ok(Some(array.iter().copied().collect()))
    }

    /// The names of all arrays in the folder, in alphabetical order.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn names(&self) -> Result<Vec<String>, Malformed> {
        let entries = fs::read_dir(&self.folder).map_err(Malformed::new)?;
        let files = entries.flatten().map(|entry| entry.file_name());
        let mut names: Vec<String> = files
            .filter_map(|file| Some(file.to_str()?.strip_suffix(".npy")?.to_owned()))
            .collect();
        names.sort();
        Ok(names)
    }

    fn bits_suffix(&self) -> Option<&'static str> {
        match self.dtype {
            DType::F16 => Some("_f16_bits"),
            DType::Bf16 => Some("_bf16_bits"),
            DType::F32 | DType::F64 => None,
        }
    }
}

fn is_pattern(value: f64) -> bool {
    value.fract() == 0.0 && (-32768.0..=65535.0).contains(&value)
}
