//! Finite differences in f64: every gradient of every activation, with and without a residual, in
//! training and in evaluation.

use crate::common::*;
use ndarray::{Array3, ArrayRef, Ix3};
use warpnorm::*;

const DIM: Dim = (3, 4, 5);
const STEP: f64 = 1e-5;
/// Central differences are off by the third derivative times STEP^2 and by rounding over STEP.
const BAR: f64 = 1e-7;

/// `sum(dy * y)`, whose gradients backward computes.
fn loss(
    layer: &mut BatchNorm<Cpu, f64>,
    mode: Mode,
    x: &ArrayRef<f64, Ix3>,
    residual: Option<&ArrayRef<f64, Ix3>>,
    dy: &Array3<f64>,
) -> f64 {
    let y = match (mode, residual) {
        (Mode::Train, None) => layer.forward_train(x).map(|(y, _)| y),
        (Mode::Train, Some(residual)) => layer.forward_train_add(x, residual).map(|(y, _)| y),
        (Mode::Eval, None) => layer.forward_eval(x),
        (Mode::Eval, Some(residual)) => layer.forward_eval_add(x, residual),
    };
    (y.unwrap() * dy).sum()
}

/// Data whose pre-activations stay clear of the kinks by far more than a step moves them.
fn data(layout: Layout, epilogue: Epilogue) -> Data<f64> {
    let mut data = Data::<f64>::new(Case::new(DIM, layout, epilogue));
    data.weight = ndarray::array![1.5, -0.75, 0.5, 2.0];
    if epilogue.activation == Activation::Relu6 {
        data.bias += 3.0;
    }
    data
}

fn assert_close(what: &str, got: f64, difference: f64) {
    assert!((got - difference).abs() < BAR, "{what}: got {got}, difference {difference}");
}

fn check_differences(layout: Layout, epilogue: Epilogue, mode: Mode) {
    let data = data(layout, epilogue);
    let mut layer = data.layer(Cpu::new());
    let gradients = match mode {
        Mode::Train => train(&mut layer, &data.x, data.residual(), &data.dy).2,
        Mode::Eval => eval(&layer, &data.x, data.residual(), &data.dy).1,
    };
    // Training moves the running statistics, which training does not read: they need no reset.
    let mut difference = |f: &mut dyn FnMut(&mut BatchNorm<Cpu, f64>, f64) -> f64| {
        let [ahead, behind] = [STEP, -STEP].map(|step| f(&mut layer, step));
        (ahead - behind) / (2.0 * STEP)
    };
    let residual = data.residual();
    for index in ndarray::indices(DIM) {
        let numeric = difference(&mut |layer, step| {
            let mut x = data.x.clone();
            x[index] += step;
            loss(layer, mode, &x, residual, &data.dy)
        });
        assert_close(&format!("dx{index:?}"), gradients.dx[index], numeric);
        if let (Some(residual), Some(dresidual)) = (residual, &gradients.dresidual) {
            let numeric = difference(&mut |layer, step| {
                let mut residual = residual.to_owned();
                residual[index] += step;
                loss(layer, mode, &data.x, Some(&residual), &data.dy)
            });
            assert_close(&format!("dresidual{index:?}"), dresidual[index], numeric);
        }
    }
    for channel in 0..DIM.1 {
        let numeric = difference(&mut |layer, step| {
            layer.weight_mut().unwrap()[channel] = data.weight[channel] + step;
            let loss = loss(layer, mode, &data.x, residual, &data.dy);
            layer.weight_mut().unwrap()[channel] = data.weight[channel];
            loss
        });
        assert_close("dweight", gradients.dweight.as_ref().unwrap()[channel], numeric);
        let numeric = difference(&mut |layer, step| {
            layer.bias_mut().unwrap()[channel] = data.bias[channel] + step;
            let loss = loss(layer, mode, &data.x, residual, &data.dy);
            layer.bias_mut().unwrap()[channel] = data.bias[channel];
            loss
        });
        assert_close("dbias", gradients.dbias.as_ref().unwrap()[channel], numeric);
    }
}

#[test]
fn training_gradients_are_those_of_the_function() {
    for epilogue in epilogues() {
        LAYOUTS.iter().for_each(|&layout| check_differences(layout, epilogue, Mode::Train));
    }
}

#[test]
fn evaluation_gradients_are_those_of_the_function() {
    for epilogue in epilogues() {
        LAYOUTS.iter().for_each(|&layout| check_differences(layout, epilogue, Mode::Eval));
    }
}

/// Without running statistics the batch's own are used in evaluation, and are part of the function.
#[test]
fn evaluation_without_running_statistics_differentiates_through_the_batch() {
    for epilogue in epilogues() {
        let data = data(Layout::ChannelsFirst, epilogue);
        let mut layer: BatchNorm<Cpu, f64> = BatchNormConfig::new(DIM.1)
            .track_running_stats(false)
            .activation(epilogue.activation)
            .build(Cpu::new())
            .unwrap();
        fill(layer.weight_mut(), &data.weight);
        fill(layer.bias_mut(), &data.bias);
        let (_, gradients) = eval(&layer, &data.x, data.residual(), &data.dy);
        for index in ndarray::indices(DIM) {
            let [ahead, behind] = [STEP, -STEP].map(|step| {
                let mut x = data.x.clone();
                x[index] += step;
                loss(&mut layer, Mode::Eval, &x, data.residual(), &data.dy)
            });
            assert_close("dx", gradients.dx[index], (ahead - behind) / (2.0 * STEP));
        }
    }
}
