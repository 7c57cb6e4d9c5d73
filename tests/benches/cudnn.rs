//! What cuDNN is told of a call, and which cuDNN that is.

use crate::describe::{Shape, layout, mode_name, modes, ops, reason_against, shape};
use crate::id::{Fused, Pass};
use crate::loaded;
use warpnorm::Layout::{ChannelsFirst, ChannelsLast};

#[test]
fn strides_follow_the_layout_and_dims_do_not() {
    let nchw = Shape { dims: vec![8, 16, 5, 7], strides: vec![560, 35, 7, 1] };
    let nhwc = Shape { dims: vec![8, 16, 5, 7], strides: vec![560, 1, 112, 16] };
    assert_eq!(shape(&[8, 16, 5, 7], ChannelsFirst), Ok(nchw));
    assert_eq!(shape(&[8, 16, 5, 7], ChannelsLast), Ok(nhwc));
    let ndhwc = shape(&[2, 3, 4, 5, 6], ChannelsLast).unwrap();
    assert_eq!(ndhwc.strides, [360, 1, 90, 18, 3]);
}

#[test]
fn missing_dimensions_are_1() {
    for layout in [ChannelsFirst, ChannelsLast] {
        let Shape { dims, strides } = shape(&[128, 100], layout).unwrap();
        assert_eq!(dims, [128, 100, 1, 1]);
        assert_eq!((strides[0], strides[1]), (100, 1));
    }
}

#[test]
fn per_activation_gets_matrices_as_pytorch_gives_them() {
    let modes = modes(Pass::TrainForward, 2);
    let layouts: Vec<_> = modes.iter().map(|&mode| layout(mode, ChannelsLast)).collect();
    assert_eq!(layouts, [ChannelsLast, ChannelsLast, ChannelsFirst]);
    assert_eq!(shape(&[128, 100], ChannelsFirst).unwrap().strides, [100, 1, 1, 1]);
}

#[test]
fn what_32_bits_do_not_hold_is_refused() {
    assert!(shape(&[1 << 32, 1], ChannelsLast).is_err());
    assert!(shape(&[1, 1 << 20, 1 << 12], ChannelsFirst).is_err());
    assert!(shape(&[1 << 12, 1 << 10, 1 << 10], ChannelsFirst).is_ok());
}

#[test]
fn training_has_the_persistent_mode_too_and_matrices_one_more() {
    let names = |pass, rank| modes(pass, rank).into_iter().map(mode_name).collect::<Vec<_>>();
    assert_eq!(names(Pass::TrainForward, 4), ["SPATIAL", "SPATIAL_PERSISTENT"]);
    assert_eq!(names(Pass::Inference, 4), ["SPATIAL"]);
    let of_matrices = ["SPATIAL", "SPATIAL_PERSISTENT", "PER_ACTIVATION"];
    assert_eq!(names(Pass::TrainBackward, 2), of_matrices);
}

#[test]
fn every_epilogue_has_an_operation_of_its_own() {
    let all = [Fused::None, Fused::Relu, Fused::AddRelu].map(ops);
    let numbers = all.map(|ops| ops as u32);
    assert_eq!(numbers, [0, 1, 2]);
}

#[test]
fn inference_of_very_many_samples_is_not_asked_for() {
    assert_eq!(reason_against(Pass::Inference, 65_535), None);
    assert!(reason_against(Pass::Inference, 65_536).unwrap().contains("65535"));
    assert_eq!(reason_against(Pass::TrainForward, 125_000), None);
}

const MAPS: &str = "\
7f00-7f01 r-xp 00000000 08:01 11 /usr/lib/libc.so.6
7f10-7f11 r--p 00000000 08:01 12 /opt/cu dnn/libcudnn.so.9.21.0
7f11-7f12 r-xp 00001000 08:01 12 /opt/cu dnn/libcudnn.so.9.21.0
7f20-7f21 r-xp 00000000 08:01 13 /opt/cu dnn/libcudnn_ops.so.9.21.0
7f30-7f31 rw-p 00000000 00:00 0
7ffd-7ffe rw-p 00000000 00:00 0 [stack]
";

#[test]
fn the_library_is_named_by_its_file() {
    let files = loaded::files(MAPS);
    assert_eq!(files.len(), 2);
    let library = loaded::library(&files).unwrap().unwrap();
    assert_eq!(library.to_str(), Some("/opt/cu dnn/libcudnn.so.9.21.0"));
    assert_eq!(loaded::library(&loaded::files("")), Ok(None));
}

#[test]
fn a_cudnn_of_two_installations_is_refused() {
    for other in ["/usr/lib/libcudnn.so.9", "/usr/lib/libcudnn_graph.so.9"] {
        let maps = format!("{MAPS}7f40-7f41 r-xp 00000000 08:01 14 {other}\n");
        let refused = loaded::library(&loaded::files(&maps)).unwrap_err();
        assert!(
            refused.contains(other) && refused.contains("/opt/cu dnn/libcudnn.so"),
            "{refused}"
        );
    }
}
