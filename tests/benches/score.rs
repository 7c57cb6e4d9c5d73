//! What is a right result, held against the CPU backend, whose results are.

use crate::calls::{Inputs, Tensors};
use crate::score::{Expected, bar, sampled_channels};
use half::{bf16, f16};
use warpnorm::{Activation, Backend, Cpu, Element, Epilogue, Layout, Problem};

fn trained<E: Element>(problem: &Problem) -> (Inputs<E>, Tensors<Cpu, E>) {
    let (cpu, inputs) = (Cpu::new(), Inputs::random(problem));
    let mut tensors = Tensors::new(&cpu, problem, &inputs).unwrap();
    let mut workspace = cpu.workspace(problem).unwrap();
    tensors.forward_train(&cpu, problem, &mut workspace).unwrap();
    tensors.backward_train(&cpu, problem, &mut workspace).unwrap();
    (inputs, tensors)
}

fn right_results_pass<E: Element>() {
    let relu = |residual| Epilogue { activation: Activation::Relu, residual };
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        for epilogue in [Epilogue::NONE, relu(false), relu(true)] {
            let problem = Problem::new(&[9, 5, 6, 7], layout, E::DTYPE, epilogue).unwrap();
            let (inputs, tensors) = trained::<E>(&problem);
            let expected = Expected::of(&problem, &inputs);
            let (y, dx) =
                (expected.y_error(&problem, &tensors.y), expected.dx_error(&problem, &tensors.dx));
            let bar = bar(E::DTYPE);
            assert!(y < bar && dx < bar, "{problem} {epilogue:?}: y {y:e}, dx {dx:e}");
        }
    }
}

#[test]
fn right_results_are_within_the_bar() {
    right_results_pass::<f32>();
    right_results_pass::<f16>();
    right_results_pass::<bf16>();
}

#[test]
fn inference_is_held_against_running_statistics() {
    let problem =
        Problem::new(&[9, 5, 6, 7], Layout::ChannelsFirst, f32::DTYPE, Epilogue::NONE).unwrap();
    let (inputs, mut tensors) = trained::<f32>(&problem);
    let of_training = tensors.y.clone();
    let cpu = Cpu::new();
    tensors.inference(&cpu, &problem, &mut cpu.workspace(&problem).unwrap()).unwrap();
    let (mean, var) = (&tensors.running_mean, &tensors.running_var);
    let expected = Expected::of_inference(&problem, &inputs, mean, var);
    assert!(expected.y_error(&problem, &tensors.y) < bar(f32::DTYPE));
    assert!(expected.y_error(&problem, &of_training) > 0.1);
}

#[test]
fn wrong_results_are_not() {
    let problem =
        Problem::new(&[9, 5, 6, 7], Layout::ChannelsLast, f32::DTYPE, Epilogue::NONE).unwrap();
    let (inputs, tensors) = trained::<f32>(&problem);
    let expected = Expected::of(&problem, &inputs);
    let mut y = tensors.y.clone();
    y[1234] += 1e-4;
    assert!(expected.y_error(&problem, &y) > bar(f32::DTYPE));
    assert!(expected.y_difference(&problem, &y, &tensors.y) > bar(f32::DTYPE));
    y[1234] = f32::NAN;
    assert_eq!(expected.y_error(&problem, &y), f64::INFINITY);
    let mut dx = tensors.dx.clone();
    dx[0] = -dx[0];
    assert!(expected.dx_error(&problem, &dx) > bar(f32::DTYPE));
    assert_eq!(expected.dx_difference(&problem, &tensors.dx, &tensors.dx), 0.0);
}

#[test]
fn channels_are_whole_few_and_from_both_ends() {
    assert_eq!(sampled_channels(5, 100), [0, 1, 2, 3, 4]);
    assert_eq!(sampled_channels(64, 1 << 22), [63]);
    let some = sampled_channels(2048, 1 << 14);
    assert_eq!((some.len(), some[0], some[some.len() - 1]), (64, 0, 2047));
}
