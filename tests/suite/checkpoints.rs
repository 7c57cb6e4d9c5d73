//! Checkpoints in safetensors files: PyTorch's are read, ours are as PyTorch's, others are refused.

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, View, serialize};
use warpnorm::*;

/// Written by PyTorch: see torch_checkpoint.py beside it.
const PYTORCH: &[u8] = include_bytes!("data/torch_checkpoint.safetensors");

/// What that script has put into each of its layers.
fn expected<P: Param>() -> State<P> {
    let of = |value: fn(f64) -> f64| {
        Some([0.0, 1.0, 2.0].map(|channel| P::from_f64(value(channel))).to_vec())
    };
    State {
        weight: of(|channel| 1.0 + channel / 4.0),
        bias: of(|channel| -channel / 8.0),
        running_mean: of(|channel| 8.0 * channel - 3.0),
        running_var: of(|channel| 0.5 + channel),
        num_batches_tracked: Some(7),
    }
}

fn loads<P: Param>() {
    let file = SafeTensors::deserialize(PYTORCH).unwrap();
    for prefix in ["f32.", "f64.", "f16.", "bf16."] {
        let state = State::<P>::from_tensors(&file, prefix).unwrap();
        assert_eq!(state, expected(), "{prefix}");
        let mut layer: BatchNorm<Cpu, P> = BatchNorm::new(3, Cpu::new()).unwrap();
        layer.load_state(&state).unwrap();
        assert_eq!(layer.state().unwrap(), state, "{prefix}");
    }
    let bare = State::<P>::from_tensors(&file, "bare.").unwrap();
    assert_eq!((&bare.weight, &bare.bias), (&None, &None));
    let config = BatchNormConfig::new(3).affine(false);
    let mut layer: BatchNorm<Cpu, P> = config.build(Cpu::new()).unwrap();
    layer.load_state(&bare).unwrap();
    assert_eq!(layer.num_batches_tracked(), Some(0));
}

#[test]
fn a_checkpoint_of_pytorch_loads_into_layers_of_either_type() {
    loads::<f32>();
    loads::<f64>();
}

/// Name, element type, shape and bytes of each entry.
fn entries(file: &SafeTensors<'_>, prefix: &str) -> Vec<(String, Dtype, Vec<usize>, Vec<u8>)> {
    let own = file.iter().filter_map(|(name, tensor)| {
        let name = name.strip_prefix(prefix)?.to_owned();
        Some((name, tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec()))
    });
    let mut own: Vec<_> = own.collect();
    own.sort_by(|one, other| one.0.cmp(&other.0));
    own
}

fn is_written_as_pytorch_does<P: Param>(prefix: &str) {
    let bytes = serialize(expected::<P>().tensors(prefix), None).unwrap();
    let (ours, pytorchs) =
        (SafeTensors::deserialize(&bytes).unwrap(), SafeTensors::deserialize(PYTORCH).unwrap());
    assert_eq!(entries(&ours, prefix), entries(&pytorchs, prefix));
    assert_eq!(entries(&ours, prefix).len(), 5);
}

#[test]
fn a_checkpoint_is_what_pytorch_would_have_written() {
    is_written_as_pytorch_does::<f32>("f32.");
    is_written_as_pytorch_does::<f64>("f64.");
}

/// What the type of a layer cannot hold is rounded once.
#[test]
fn wider_numbers_are_rounded_once() {
    let third = 1.0f64 / 3.0;
    let bytes = third.to_le_bytes();
    let tensor = TensorView::new(Dtype::F64, vec![1], &bytes).unwrap();
    let bytes = serialize([("weight", tensor)], None).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let weight = |state: Result<State<f32>>| state.unwrap().weight;
    assert_eq!(weight(State::from_tensors(&file, "")), Some(vec![third as f32]));
    let exact = State::<f64>::from_tensors(&file, "").unwrap().weight;
    assert_eq!(exact, Some(vec![third]));
}

/// The error of a file that holds one entry more than nothing.
#[track_caller]
fn refused(name: &str, dtype: Dtype, shape: &[usize], bytes: usize) -> Error {
    let bytes = vec![0; bytes];
    let tensor = TensorView::new(dtype, shape.to_vec(), &bytes).unwrap();
    let bytes = serialize([(name, tensor)], None).unwrap();
    State::<f32>::from_tensors(&SafeTensors::deserialize(&bytes).unwrap(), "bn.").unwrap_err()
}

#[test]
fn entries_that_are_no_batch_norms_are_refused_by_name() {
    let error = |name, expected: &str, found: &str| Error::argument(name, expected, found);
    assert_eq!(
        refused("bn.weight", Dtype::F32, &[2, 3], 24),
        error("bn.weight", "shape [C]", "[2, 3]")
    );
    assert_eq!(refused("bn.bias", Dtype::F32, &[], 4), error("bn.bias", "shape [C]", "[]"));
    assert_eq!(
        refused("bn.running_var", Dtype::I32, &[3], 12),
        error("bn.running_var", "F32, F64, F16 or BF16", "I32")
    );
    let batches = "bn.num_batches_tracked";
    assert_eq!(refused(batches, Dtype::F64, &[], 8), error(batches, "one I64", "F64 of shape []"));
    assert_eq!(
        refused(batches, Dtype::I64, &[2], 16),
        error(batches, "one I64", "I64 of shape [2]")
    );
    assert_eq!(
        refused("other.weight", Dtype::F32, &[3], 12),
        error("prefix", "entries such as `bn.running_mean`", "[\"other.weight\"]")
    );
}

/// What a file has too little of is for the layer to say.
#[test]
fn entries_of_another_length_are_refused_by_the_layer() {
    let file = SafeTensors::deserialize(PYTORCH).unwrap();
    let state = State::from_tensors(&file, "f32.").unwrap();
    let mut layer: BatchNorm = BatchNorm::new(4, Cpu::new()).unwrap();
    let before = layer.state().unwrap();
    let error = layer.load_state(&state).unwrap_err();
    assert_eq!(error, Error::argument("weight", "4 elements", 3));
    let bare = State::from_tensors(&file, "bare.").unwrap();
    let mut affine: BatchNorm = BatchNorm::new(3, Cpu::new()).unwrap();
    assert!(affine.load_state(&bare).unwrap_err().to_string().starts_with("`weight`"));
    assert_eq!(layer.state().unwrap(), before);
}

#[test]
fn entries_say_what_they_are() {
    let tensors = expected::<f32>().tensors("bn.");
    let (name, tensor) = &tensors[0];
    assert_eq!((&name[..], tensor.dtype(), tensor.shape()), ("bn.weight", Dtype::F32, &[3][..]));
    assert_eq!((tensor.data_len(), tensor.data().len()), (12, 12));
}
