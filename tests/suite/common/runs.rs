//! The layer's calls in both modes, against the textbook.

use super::About;
use super::bars::{Bars, assert_gradients, assert_statistics, assert_tensor};
use super::data::{Case, Data};
use super::expected::Mode;
use super::tensors::{Embedded, Embedding};
use ndarray::{Array3, ArrayRef, Ix3};
use warpnorm::{BatchNorm, Cpu, Element, Gradients, Saved};

/// All results of a training step.
pub type Step<E> = (Array3<E>, Saved<Cpu, <E as Element>::Param>, Gradients<E, Ix3>);

pub fn train<E: Element>(
    layer: &mut BatchNorm<Cpu, E::Param>,
    x: &ArrayRef<E, Ix3>,
    residual: Option<&ArrayRef<E, Ix3>>,
    dy: &ArrayRef<E, Ix3>,
) -> Step<E> {
    match residual {
        None => {
            let (y, saved) = layer.forward_train(x).unwrap();
            let gradients = layer.backward(x, dy, &saved).unwrap();
            (y, saved, gradients)
        }
        Some(residual) => {
            let (y, saved) = layer.forward_train_add(x, residual).unwrap();
            let kept = layer.config().activation;
            let kept = kept.is_smooth().then_some(residual);
            let gradients = layer.backward_add(x, kept, dy, &saved).unwrap();
            (y, saved, gradients)
        }
    }
}

pub fn eval<E: Element>(
    layer: &BatchNorm<Cpu, E::Param>,
    x: &ArrayRef<E, Ix3>,
    residual: Option<&ArrayRef<E, Ix3>>,
    dy: &ArrayRef<E, Ix3>,
) -> (Array3<E>, Gradients<E, Ix3>) {
    match residual {
        None => (layer.forward_eval(x).unwrap(), layer.backward_eval(x, dy).unwrap()),
        Some(residual) => (
            layer.forward_eval_add(x, residual).unwrap(),
            layer.backward_eval_add(x, residual, dy).unwrap(),
        ),
    }
}

/// Training and evaluation, forward and backward, against the textbook.
pub fn check<E: Element>(case: Case, embedding: Embedding) {
    check_mode::<E>(case, embedding, Mode::Train);
    check_mode::<E>(case, embedding, Mode::Eval);
}

pub fn check_mode<E: Element>(case: Case, embedding: Embedding, mode: Mode) {
    let data = Data::<E>::new(case).without_gradients_at_kinks(mode);
    check_data(&data, embedding, mode);
}

pub fn check_data<E: Element>(data: &Data<E>, embedding: Embedding, mode: Mode) {
    let case = data.case;
    let _about = About((E::DTYPE, mode, case));
    let expected = data.expected(mode);
    let embed = |tensor| Embedded::new(tensor, case.layout, embedding);
    let (x, dy, residual) = (embed(&*data.x), embed(&*data.dy), data.residual().map(embed));
    let residual = residual.as_ref().map(Embedded::view);
    let residual = residual.as_deref();
    let mut layer = data.layer(Cpu::new());
    let (y, gradients) = match mode {
        Mode::Train => {
            let (y, saved, gradients) = train(&mut layer, &x.view(), residual, &dy.view());
            assert_statistics::<E>(&layer, &saved, &expected);
            (y, gradients)
        }
        Mode::Eval => eval(&layer, &x.view(), residual, &dy.view()),
    };
    assert_tensor("y", &y, &expected.y, &expected.scale.y, Bars::of(E::DTYPE).y);
    assert_gradients(&gradients, &expected, residual.is_some());
}
