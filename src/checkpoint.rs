//! Parameters and running statistics to and from safetensors, under PyTorch's names.
//!
//! Entries are `<prefix>weight`, `<prefix>bias`, `<prefix>running_mean`, `<prefix>running_var`
//! (`[C]`) and `<prefix>num_batches_tracked` (i64, a scalar): what `state_dict()` of a
//! `torch.nn.BatchNorm*d` holds, `prefix` being the module's path with a dot, e.g. `layer1.0.bn1.`.
//!
//! Written are F32 for a layer of `f32`, F64 for one of `f64`. Read are F32, F64, F16 and BF16 for
//! either, converted with one rounding; the batch count is I64 both ways.
//!
//! ```
//! use safetensors::SafeTensors;
//! use warpnorm::{BatchNorm, Cpu, State};
//!
//! let mut bn: BatchNorm = BatchNorm::new(2, Cpu::new())?;
//! bn.forward_train(&ndarray::arr2(&[[1.0f32, 2.0], [3.0, 6.0]]))?;
//! let bytes = safetensors::serialize(bn.state()?.tensors("bn1."), None).unwrap();
//!
//! let file = SafeTensors::deserialize(&bytes).unwrap();
//! let mut restored: BatchNorm = BatchNorm::new(2, Cpu::new())?;
//! restored.load_state(&State::from_tensors(&file, "bn1.")?)?;
//! assert_eq!(restored.running_mean(), bn.running_mean());
//! assert_eq!(restored.num_batches_tracked(), Some(1));
//! # Ok::<(), warpnorm::Error>(())
//! ```

use crate::element::{DType, Param};
use crate::error::{Error, Result};
use crate::layer::State;
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, View};
use std::borrow::Cow;

/// One entry to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct StateTensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for StateTensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

impl<P: Param> State<P> {
    /// The entries of this layer, for `safetensors::serialize` together with those of others.
    pub fn tensors(&self, prefix: &str) -> Vec<(String, StateTensor)> {
        let floats = [
            ("weight", &self.weight),
            ("bias", &self.bias),
            ("running_mean", &self.running_mean),
            ("running_var", &self.running_var),
        ];
        let mut entries: Vec<_> = floats
            .into_iter()
            .filter_map(|(name, values)| {
                Some((format!("{prefix}{name}"), encode(values.as_ref()?)))
            })
            .collect();
        if let Some(batches) = self.num_batches_tracked {
            let bytes = batches.to_le_bytes().to_vec();
            let scalar = StateTensor { dtype: Dtype::I64, shape: Vec::new(), bytes };
            entries.push((format!("{prefix}num_batches_tracked"), scalar));
        }
        entries
    }

    /// The entries that `file` has under `prefix`. F16, BF16, F32 and F64 are converted to P;
    /// what is not there stays `None`, for
    /// [`load_state`](crate::BatchNorm::load_state) to judge.
    ///
    /// # Errors
    /// An entry of another rank or element type; no entry at all. Lengths are for `load_state`.
    pub fn from_tensors(file: &SafeTensors<'_>, prefix: &str) -> Result<Self> {
        let floats = |name: &str| {
            let name = format!("{prefix}{name}");
            file.tensor(&name).ok().map(|tensor| decode(&name, &tensor)).transpose()
        };
        let batches = format!("{prefix}num_batches_tracked");
        let state = State {
            weight: floats("weight")?,
            bias: floats("bias")?,
            running_mean: floats("running_mean")?,
            running_var: floats("running_var")?,
            num_batches_tracked: file
                .tensor(&batches)
                .ok()
                .map(|tensor| decode_scalar(&batches, &tensor))
                .transpose()?,
        };
        if state == State::default() {
            let expected = format_args!("entries such as `{prefix}running_mean`").to_string();
            let found = format_args!("{:?}", file.names()).to_string();
            return Err(Error::argument("prefix", expected, found));
        }
        Ok(state)
    }
}

fn encode<P: Param>(values: &[P]) -> StateTensor {
    let (dtype, bytes) = match P::DTYPE {
        DType::F64 => {
            let bytes = values.iter().flat_map(|value| value.to_f64().to_le_bytes()).collect();
            (Dtype::F64, bytes)
        }
        _ => {
            let bytes = values.iter().flat_map(|value| (value.to_f64() as f32).to_le_bytes());
            (Dtype::F32, bytes.collect())
        }
    };
    StateTensor { dtype, shape: vec![values.len()], bytes }
}

fn decode<P: Param>(name: &str, tensor: &TensorView<'_>) -> Result<Vec<P>> {
    if tensor.shape().len() != 1 {
        return Err(Error::argument(name, "shape [C]", format_args!("{:?}", tensor.shape())));
    }
    let data = tensor.data();
    Ok(match tensor.dtype() {
        Dtype::F32 => numbers(data, |bytes| f32::from_le_bytes(bytes).into()),
        Dtype::F64 => numbers(data, f64::from_le_bytes),
        Dtype::F16 => numbers(data, |bytes| f16::from_le_bytes(bytes).to_f64()),
        Dtype::BF16 => numbers(data, |bytes| bf16::from_le_bytes(bytes).to_f64()),
        other => {
            return Err(Error::argument(name, "F32, F64, F16 or BF16", format_args!("{other:?}")));
        }
    })
}

fn numbers<P: Param, const N: usize>(data: &[u8], number: impl Fn([u8; N]) -> f64) -> Vec<P> {
    data.as_chunks::<N>().0.iter().map(|&bytes| P::from_f64(number(bytes))).collect()
}

fn decode_scalar(name: &str, tensor: &TensorView<'_>) -> Result<i64> {
    match (tensor.dtype(), tensor.data().try_into()) {
        (Dtype::I64, Ok(bytes)) => Ok(i64::from_le_bytes(bytes)),
        (dtype, _) => Err(Error::argument(
            name,
            "one I64",
            format_args!("{dtype:?} of shape {:?}", tensor.shape()),
        )),
    }
}
