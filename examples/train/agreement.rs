//! Train mode against eval mode at the end of training: how much depends on whose statistics
//! batch normalization uses.

use crate::cpu::softmax;
use crate::network::Network;
use crate::ops::{Ops, Real};
use crate::training::{Samples, accuracy, best};
use ndarray::{Array2, Zip};
use warpnorm::{Element, Result};

/// The trained network on the test images under different statistics, and a check.
pub struct Agreement {
    /// The first is what inference uses; the others are compared with it.
    pub rows: Vec<Row>,
    /// The largest difference in a probability between train mode on all training images as one
    /// batch, and eval mode on the same images with that batch's statistics.
    pub same_statistics: f64,
}

pub struct Row {
    pub statistics: &'static str,
    pub accuracy: f64,
    /// Test images that are given another class than in the first row.
    pub other_class: usize,
    /// The largest difference in a probability from the first row.
    pub difference: f64,
}

pub fn compare<E: Element<Param: Real>, O: Ops<E::Param>>(
    network: &Network<E, O>,
    samples: &Samples<E::Param>,
) -> Result<Agreement> {
    let (train, test) = (samples.train.images.view(), samples.test.images.view());
    let (population, train_mode) = network.with_statistics_of(train)?;
    let eval_mode = softmax(population.forward_eval(train)?);
    let same_statistics = difference(&softmax(train_mode), &eval_mode);

    let running = softmax(network.forward_eval(test)?);
    let population = softmax(population.forward_eval(test)?);
    let own = softmax(network.with_statistics_of(test)?.1);
    let row = |statistics, probabilities: &Array2<E::Param>| Row {
        statistics,
        accuracy: accuracy(probabilities, &samples.test.labels),
        other_class: other_class(&running, probabilities),
        difference: difference(&running, probabilities),
    };
    let rows = vec![
        row("running averages (eval mode)", &running),
        row("of all training images (eval mode)", &population),
        row("of the test images themselves (train mode)", &own),
    ];
    Ok(Agreement { rows, same_statistics })
}

fn other_class<P: Real>(a: &Array2<P>, b: &Array2<P>) -> usize {
    a.rows().into_iter().zip(b.rows()).filter(|&(a, b)| best(a) != best(b)).count()
}

/// NaN if any difference is.
fn difference<P: Real>(a: &Array2<P>, b: &Array2<P>) -> f64 {
    Zip::from(a).and(b).fold(0.0, |largest: f64, &a, &b| {
        let difference = Element::to_f64((a - b).abs());
        if difference > largest || difference.is_nan() { difference } else { largest }
    })
}
