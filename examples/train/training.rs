//! One training run: mini-batches in, a learning curve out.

use crate::idx::{Dataset, Split};
use crate::network::Network;
use crate::ops::{Ops, Real};
use indicatif::ProgressBar;
use ndarray::{Array2, ArrayView1, Axis};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64;
use std::time::{Duration, Instant};
use warpnorm::{Element, Result};

/// A data set in the numbers that a network takes: an image a row, pixels from 0 to 1.
pub struct Samples<P> {
    pub train: Part<P>,
    pub test: Part<P>,
}

pub struct Part<P> {
    pub images: Array2<P>,
    pub labels: Vec<u8>,
}

impl<P: Real> Samples<P> {
    /// The brightest pixel of the training images becomes 1.
    pub fn new(data: &Dataset) -> Self {
        let brightest = data.train.images.iter().copied().max().unwrap_or(1).max(1);
        let part = |split: &Split| {
            let scaled = |pixel: u8| P::from_f64(f64::from(pixel) / f64::from(brightest));
            let (count, height, width) = split.images.dim();
            let images = split.images.mapv(scaled).into_shape_with_order((count, height * width));
            Part {
                images: images.expect("the same number of pixels"),
                labels: split.labels.clone(),
            }
        };
        Samples { train: part(&data.train), test: part(&data.test) }
    }
}

/// Stochastic gradient descent without further ado.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    pub steps: usize,
    pub batch: usize,
    pub learning_rate: f64,
    /// The order of the images follows from it.
    pub seed: u64,
}

/// A network's course on the test images, and what it cost.
#[derive(Debug, Clone)]
pub struct Curve {
    pub points: Vec<Point>,
    /// Spent in training steps, evaluations not counted.
    pub time: Duration,
    /// The part of it spent in batch normalization, if that can be told.
    pub norm_time: Option<Duration>,
}

/// The state after some steps.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    pub step: usize,
    /// Share of the test images whose class is found.
    pub accuracy: f64,
    /// The mean cross-entropy over the test images.
    pub loss: f64,
    /// The 15th, 50th and 85th percentiles, over the test images, of what enters the nonlinearity
    /// of one unit of the last hidden layer.
    pub percentiles: [f64; 3],
}

/// Trains the network, and looks at it before the first step, after every `every` steps, and at
/// the end.
pub fn train<E: Element<Param: Real>, O: Ops<E::Param>>(
    network: &mut Network<E, O>,
    samples: &Samples<E::Param>,
    schedule: &Schedule,
    every: usize,
    progress: &ProgressBar,
) -> Result<Curve> {
    let mut batches = Batches::new(samples.train.labels.len(), schedule);
    let mut points = vec![look(network, &samples.test, 0)?];
    let mut time = Duration::ZERO;
    for step in 1..=schedule.steps {
        let start = Instant::now();
        let chosen = batches.draw();
        let images = samples.train.images.select(Axis(0), chosen);
        let labels: Vec<u8> = chosen.iter().map(|&index| samples.train.labels[index]).collect();
        network.train_step(images.view(), &labels, schedule.learning_rate)?;
        let look_now = step % every == 0 || step == schedule.steps;
        if look_now {
            network.wait()?;
        }
        time += start.elapsed();
        if look_now {
            let point = look(network, &samples.test, step)?;
            progress.set_position(step as u64);
            progress.set_message(format!("{:.1} %", 100.0 * point.accuracy));
            points.push(point);
        }
    }
    Ok(Curve { points, time, norm_time: network.norm_time() })
}

fn look<E: Element<Param: Real>, O: Ops<E::Param>>(
    network: &Network<E, O>,
    test: &Part<E::Param>,
    step: usize,
) -> Result<Point> {
    let logits = network.forward_eval(test.images.view())?;
    let pre_activation = network.pre_activation(test.images.view())?;
    Ok(Point {
        step,
        accuracy: accuracy(&logits, &test.labels),
        loss: cross_entropy(&logits, &test.labels),
        percentiles: percentiles(pre_activation.view(), [15.0, 50.0, 85.0]),
    })
}

/// Mini-batches without repetition from a shuffled order; what is left over at its end and would
/// not fill a batch is put back.
struct Batches {
    order: Vec<usize>,
    drawn: usize,
    batch: usize,
    rng: Pcg64,
}

impl Batches {
    fn new(images: usize, schedule: &Schedule) -> Self {
        Batches {
            order: (0..images).collect(),
            drawn: images,
            batch: schedule.batch,
            rng: Pcg64::seed_from_u64(schedule.seed),
        }
    }

    fn draw(&mut self) -> &[usize] {
        if self.drawn + self.batch > self.order.len() {
            self.order.shuffle(&mut self.rng);
            self.drawn = 0;
        }
        self.drawn += self.batch;
        &self.order[self.drawn - self.batch..self.drawn]
    }
}

/// Share of rows whose largest entry is the label's. A row with NaN in it is wrong.
pub fn accuracy<P: Real>(scores: &Array2<P>, labels: &[u8]) -> f64 {
    let right = scores
        .rows()
        .into_iter()
        .zip(labels)
        .filter(|&(row, &label)| best(row) == Some(usize::from(label)));
    right.count() as f64 / labels.len() as f64
}

/// The mean of -log(softmax) at the labels.
fn cross_entropy<P: Real>(logits: &Array2<P>, labels: &[u8]) -> f64 {
    let loss = |(row, &label): (ArrayView1<P>, &u8)| {
        let row = row.mapv(Element::to_f64);
        let largest = row.fold(f64::NEG_INFINITY, |largest, &logit| largest.max(logit));
        let sum: f64 = row.iter().map(|logit| (logit - largest).exp()).sum();
        largest + sum.ln() - row[usize::from(label)]
    };
    logits.rows().into_iter().zip(labels).map(loss).sum::<f64>() / labels.len() as f64
}

/// The index of the largest entry, the first of equals; `None` if any is NaN.
pub fn best<P: Real>(row: ArrayView1<P>) -> Option<usize> {
    let mut best = 0;
    for (index, &score) in row.iter().enumerate() {
        if score.is_nan() {
            return None;
        }
        if score > row[best] {
            best = index;
        }
    }
    Some(best)
}

/// Linear between neighbours, as NumPy's default.
fn percentiles<P: Real>(values: ArrayView1<P>, percents: [f64; 3]) -> [f64; 3] {
    let mut sorted: Vec<f64> = values.iter().map(|&value| Element::to_f64(value)).collect();
    sorted.sort_by(f64::total_cmp);
    percents.map(|percent| {
        let position = percent / 100.0 * (sorted.len() - 1) as f64;
        let (below, above) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
        below + (above - below) * position.fract()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{arr2, array};

    #[test]
    fn every_batch_is_full_and_an_epoch_repeats_nothing() {
        let schedule = Schedule { steps: 0, batch: 3, learning_rate: 1.0, seed: 7 };
        let mut batches = Batches::new(11, &schedule);
        for _ in 0..20 {
            let mut epoch: Vec<usize> = (0..3).flat_map(|_| batches.draw().to_vec()).collect();
            epoch.sort_unstable();
            epoch.dedup();
            assert_eq!(epoch.len(), 9);
        }
    }

    #[test]
    fn percentiles_are_numpys() {
        let values = array![4.0, 1.0, 3.0, 2.0, 10.0];
        assert_eq!(percentiles(values.view(), [0.0, 62.5, 75.0]), [1.0, 3.5, 4.0]);
    }

    #[test]
    fn the_loss_is_that_of_the_probabilities() {
        let logits = arr2(&[[0.0, 3.0f64.ln()], [1000.0, 1000.0]]);
        let expected = -(0.75f64.ln() + 0.5f64.ln()) / 2.0;
        assert!((cross_entropy(&logits, &[1, 0]) - expected).abs() < 1e-12);
        assert!(cross_entropy(&arr2(&[[f64::NAN, 1.0]]), &[1]).is_nan());
    }

    #[test]
    fn a_diverged_network_finds_nothing() {
        let scores = arr2(&[[0.1, 0.7, 0.2], [f64::NAN, 0.0, 1.0], [0.5, 0.5, 0.0]]);
        assert_eq!(accuracy(&scores, &[1, 2, 0]), 2.0 / 3.0);
        assert_eq!(accuracy(&scores, &[0, 0, 1]), 0.0);
    }
}
